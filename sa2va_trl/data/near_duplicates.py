"""Images that are in a data set twice, or nearly so."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from PIL import Image


# Of the thumbnails that are compared.
SIDE = 32


def pixel_digest(image: Image.Image) -> str:
    """What equal pixels of equal size share, whatever file they came in."""
    pixels = np.asarray(image.convert("RGB"))
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()


def thumbnail(image: Image.Image) -> np.ndarray:
    """
    A small grey picture of mean 0 and length 1, so that the product of two is their correlation: brightness, contrast,
    compression and size hardly change it.

    Args:
        image (`PIL.Image.Image`): any mode and size.

    Returns:
        `np.ndarray` of shape `(1024,)`: float32; zeros of a picture without any contrast.
    """
    pixels = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32).ravel()
    pixels -= pixels.mean()
    length = np.linalg.norm(pixels)
    return pixels / length if length > 1e-3 else np.zeros_like(pixels)


def duplicates(digests: Sequence[str]) -> list[list[int]]:
    """Positions of those that are equal, a list for each digest that comes more than once."""
    places = defaultdict(list)
    for place, digest in enumerate(digests):
        places[digest].append(place)
    return [own for own in places.values() if len(own) > 1]


def near_duplicates(
    thumbnails: np.ndarray, groups: Sequence[Hashable], limit: float, most: int = 200
) -> list[tuple[int, int, float]]:
    """
    Pairs of images that look alike though they are of different groups.

    Args:
        thumbnails (`np.ndarray` of shape `(images, 1024)`): from [`thumbnail`].
        groups (`Sequence`): one label an image; pairs of one group, such as a split, do not count.
        limit (`float`): correlation from which on images look alike.
        most (`int`, *optional*, defaults to 200): pairs to give, those that are most alike.

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
    pairs, values = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
    for start in range(0, len(thumbnails), 1024):  # bounds the memory: a block of rows against all
        alike = thumbnails[start : start + 1024] @ thumbnails.T
        alike[codes[start : start + 1024, None] == codes] = -1
        own = np.argwhere(np.triu(alike >= limit, start + 1))
        values = np.concatenate([values, np.minimum(alike[tuple(own.T)], 1)])
        pairs = np.concatenate([pairs, own + (start, 0)])
        kept = np.argsort(-values, kind="stable")[:most]
        pairs, values = pairs[kept], values[kept]
    return [(int(one), int(other), float(value)) for (one, other), value in zip(pairs, values, strict=True)]
