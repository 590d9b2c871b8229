"""Images that are in a data set twice, or nearly so."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image


# Of the thumbnails that are compared.
SIDE = 32
#: Correlation of thumbnails from which on two images are taken for the same scene.
ALIKE = 0.98
# Of a thumbnail that shows nothing: black or of one grey, within a level, at so many of its places. (Of generated runs
# before the agent no frame is at more than 14 %, dark collimated frames of nothing but noise are at 86 % and more.)
_FLAT, _LEVEL = 0.85, 1


def pixel_digest(image: Image.Image) -> str:
    """What equal pixels of equal size share, whatever file they came in."""
    pixels = np.asarray(image.convert("RGB"))
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()


def small_grey(image: Image.Image) -> np.ndarray:
    """Of a picture of any mode and size, what [`thumbnails_of`] compares: uint8, of shape `(1024,)`."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)).ravel()


def show_nothing(greys: np.ndarray) -> np.ndarray:
    """
    Which pictures show nothing: frames before the X-rays are on, dark noise between collimators, whatever small marker
    or bright pixel stands in them. At 85 % or more of their places they are black or of one grey.

    Args:
        greys (`np.ndarray` of shape `(images, 1024)`): from [`small_grey`].

    Returns:
        `np.ndarray` of shape `(images,)`, bool.
    """
    levels = np.sort(greys, axis=1).astype(np.int16)
    black = levels <= _LEVEL
    middle = (black.sum(axis=1) + levels.shape[1]) // 2  # of what is not black
    grey = np.take_along_axis(levels, np.minimum(middle, levels.shape[1] - 1)[:, None], axis=1)
    return (black | (np.abs(levels - grey) <= _LEVEL)).mean(axis=1) >= _FLAT


def thumbnails_of(greys: np.ndarray) -> np.ndarray:
    """
    Small grey pictures of mean 0 and length 1, so that the product of two is their correlation: brightness, contrast,
    compression and size hardly change it.

    Args:
        greys (`np.ndarray` of shape `(images, 1024)`): from [`small_grey`].

    Returns:
        `np.ndarray` of the same shape: float32; zeros of pictures that [`show_nothing`].
    """
    pixels = greys.astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(pixels, axis=1, keepdims=True)
    pixels /= np.maximum(lengths, 1e-3)
    pixels[show_nothing(greys)] = 0
    return pixels


def thumbnail(image: Image.Image) -> np.ndarray:
    """That of one picture, see [`thumbnails_of`]; of shape `(1024,)`."""
    return thumbnails_of(small_grey(image)[None])[0]


def duplicates(digests: Sequence[str]) -> list[list[int]]:
    """Positions of those that are equal, a list for each digest that comes more than once."""
    places = defaultdict(list)
    for place, digest in enumerate(digests):
        places[digest].append(place)
    return [own for own in places.values() if len(own) > 1]


def equal_pictures(digests: Sequence[Hashable], thumbnails: np.ndarray) -> list[list[int]]:
    """Positions of equal pictures, but for those that [`show_nothing`], whose thumbnails are zeros."""
    shown = np.flatnonzero(thumbnails.any(axis=1)).tolist()
    return [[shown[place] for place in places] for places in duplicates([digests[row] for row in shown])]


def near_duplicates(
    thumbnails: np.ndarray,
    groups: Sequence[Hashable],
    limit: float,
    most: int = 200,
    familiar: Sequence[bool] | None = None,
) -> list[tuple[int, int, float]]:
    """
    Pairs of images that look alike though they are of different groups.

    Args:
        thumbnails (`np.ndarray` of shape `(images, 1024)`): from [`thumbnail`].
        groups (`Sequence`): one label an image; pairs of one group, such as a split, do not count.
        limit (`float`): correlation from which on images look alike.
        most (`int`, *optional*, defaults to 200): pairs to give, those that are most alike.
        familiar (`Sequence[bool]`, *optional*): one an image; pairs of two that are do not count either.

    Returns:
        `list[tuple[int, int, float]]`: two positions, the first one smaller, and the correlation; most alike first.

    Example:

        ```python
        >>> import numpy as np
        >>> from PIL import Image
        >>> from sa2va_trl.data.near_duplicates import near_duplicates, thumbnail

        >>> picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
        >>> other = picture.rotate(90)
        >>> shown = np.stack([thumbnail(image) for image in (picture, other, picture.resize((96, 96)))])
        >>> [(a, b) for a, b, _ in near_duplicates(shown, ["train", "train", "test"], limit=0.9)]
        [(0, 2)]

        ```
    """
    familiar = None if familiar is None else np.asarray(familiar, dtype=bool)
    _, codes = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    pairs, values = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
    for start in range(0, len(thumbnails), 1024):  # bounds the memory: a block of rows against all
        alike = thumbnails[start : start + 1024] @ thumbnails.T
        alike[codes[start : start + 1024, None] == codes] = -1
        if familiar is not None:
            alike[np.ix_(familiar[start : start + 1024], familiar)] = -1
        own = np.argwhere(np.triu(alike >= limit, start + 1))
        values = np.concatenate([values, np.minimum(alike[tuple(own.T)], 1)])
        pairs = np.concatenate([pairs, own + (start, 0)])
        kept = np.argsort(-values, kind="stable")[:most]
        pairs, values = pairs[kept], values[kept]
    return [(int(one), int(other), float(value)) for (one, other), value in zip(pairs, values, strict=True)]


class Crossings(NamedTuple):
    """
    What pictures of several splits have in common.

    Args:
        equal (`list[list[int]]`): positions of pictures that are equal, and in several splits.
        unknown (`list[tuple[int, int]]`): pairs that look alike, of which nothing says that they are of two patients.
        alike (`list[tuple[int, int]]`): pairs that look alike, of whomever.
    """

    equal: list[list[int]]
    unknown: list[tuple[int, int]]
    alike: list[tuple[int, int]]


def crossings(
    digests: Sequence[Hashable], thumbnails: np.ndarray, splits: Sequence[Hashable], known: Sequence[bool]
) -> Crossings:
    """
    Find what pictures of several splits have in common.

    Args:
        digests (`Sequence`): one a picture, of its pixels.
        thumbnails (`np.ndarray` of shape `(images, 1024)`): from [`thumbnails_of`].
        splits (`Sequence`): of each.
        known (`Sequence[bool]`): whether one knows which patient each is of.

    Returns:
        [`Crossings`]: of pairs those that are most alike, 200 at the most. Without a patient they are mostly frames of
        one run; those of two patients may be one standard view.
    """
    equal = [rows for rows in equal_pictures(digests, thumbnails) if len({splits[row] for row in rows}) > 1]
    unknown: list[tuple[int, int]] = []
    if not all(known):
        unknown = [pair[:2] for pair in near_duplicates(thumbnails, splits, ALIKE, familiar=known)]
    alike = [pair[:2] for pair in near_duplicates(thumbnails, splits, ALIKE)] if any(known) else unknown
    return Crossings(equal, unknown, alike)
