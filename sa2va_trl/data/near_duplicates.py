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
# Pairs that are given, and pictures that are compared with all others at once.
_MOST, _BLOCK = 200, 256


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
    most: int = _MOST,
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
    _, codes = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    order, rows = np.arange(len(thumbnails)), len(thumbnails)
    if familiar is not None:  # these come last, and are compared with those before them alone
        order = np.argsort(np.asarray(familiar, dtype=bool), kind="stable")
        rows -= sum(map(bool, familiar))
        thumbnails, codes = thumbnails[order], codes[order]
    pairs, values = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
    for start in range(0, rows, _BLOCK):  # bounds the memory: a block of rows against all that follow
        end = min(start + _BLOCK, rows)
        alike = np.minimum(thumbnails[start:end] @ thumbnails[start:].T, 1)
        alike[codes[start:end, None] == codes[start:]] = -1
        # (Of pairs as alike as the last of those that are kept, none is needed any more.)
        found = alike >= limit if len(values) < most else (alike >= limit) & (alike > values[-1])
        own = np.argwhere(np.triu(found, 1))
        values = np.concatenate([values, alike[tuple(own.T)]])
        pairs = np.concatenate([pairs, np.sort(order[own + start], axis=1)])
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
    digests: Sequence[Hashable],
    thumbnails: np.ndarray,
    splits: Sequence[Hashable],
    known: Sequence[bool],
    accept_alike: bool = False,
    warn: bool = True,
) -> Crossings:
    """
    Find what pictures of several splits have in common. What nobody will hear of is not looked for: whoever refuses
    equal pictures, or those of unknown patients, says nothing of what else looks alike.

    Args:
        digests (`Sequence`): one a picture, of its pixels.
        thumbnails (`np.ndarray` of shape `(images, 1024)`): from [`thumbnails_of`].
        splits (`Sequence`): of each.
        known (`Sequence[bool]`): whether one knows which patient each is of.
        accept_alike (`bool`, *optional*, defaults to `False`): what looks alike is refused in no case.
        warn (`bool`, *optional*, defaults to `True`): what is not refused is named.

    Returns:
        [`Crossings`]: of pairs those that are most alike, 200 at the most. Without a patient they are mostly frames of
        one run; those of two patients may be one standard view.
    """
    equal = [rows for rows in equal_pictures(digests, thumbnails) if len({splits[row] for row in rows}) > 1]
    unknown: list[tuple[int, int, float]] = []
    if not equal and not all(known) and (warn or not accept_alike):
        unknown = near_duplicates(thumbnails, splits, ALIKE, familiar=known)
    alike = list(unknown)
    if not equal and any(known) and warn and (accept_alike or not unknown):
        places = np.flatnonzero(known).tolist()
        own = near_duplicates(thumbnails[places], [splits[place] for place in places], ALIKE)
        alike += [(places[one], places[other], value) for one, other, value in own]
        alike = sorted(alike, key=lambda pair: -pair[2])[:_MOST]
    return Crossings(equal, [pair[:2] for pair in unknown], [pair[:2] for pair in alike])
