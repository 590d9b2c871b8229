"""What pictures look like: each is decoded once in a process, in whatever set of rows it comes back."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from datasets import Dataset, Image

from ..errors import DatasetError
from ..media.pictures import decode_image, quiet_pillow
from .columns import is_image_list
from .known import content_key
from .near_duplicates import SIDE, pixel_digest, small_grey, thumbnails_of
from .stored import iter_undecoded


class Sight(NamedTuple):
    """
    Args:
        digest (`str`): of the pixels, see [`~data.near_duplicates.pixel_digest`].
        grey (`bytes`): the picture in small, see [`~data.near_duplicates.small_grey`].
    """

    digest: str
    grey: bytes


class Sights(NamedTuple):
    """
    Args:
        rows (`list[int]`): that each picture is of, in order; several of a clip.
        digests (`list[str]`): of each.
        thumbnails (`np.ndarray` of shape `(pictures, 1024)`): see [`~data.near_duplicates.thumbnails_of`].
    """

    rows: list[int]
    digests: list[str]
    thumbnails: np.ndarray


# Some 1,200 bytes a picture, as long as the process lives.
_SEEN: dict[bytes, Sight] = {}


def remember_sight(value: Any, image: PIL.Image.Image) -> Sight:
    """
    Keep what a picture looks like.

    Args:
        value: it, as stored.
        image (`PIL.Image.Image`): it, decoded and upright.

    Returns:
        [`Sight`].
    """
    sight = Sight(pixel_digest(image), small_grey(image).tobytes())
    if (key := content_key([value])) is not None:
        _SEEN[key] = sight
    return sight


def _sight(value: Any) -> Sight | None:
    """That of a stored picture; `None` of one that cannot be decoded, which the check of rows reports."""
    key = content_key([value])
    if key in _SEEN:
        return _SEEN[key]
    try:
        return remember_sight(value, decode_image(value))
    except DatasetError:
        return None


def sights_of(dataset: Dataset, num_proc: int | None = None) -> Sights:
    """
    What all pictures of a set of rows look like.

    Args:
        dataset (`datasets.Dataset`): with `image` or `images`, or without pictures.
        num_proc (`int`, *optional*): threads that decode; 1 by default.

    Returns:
        [`Sights`], without pictures that cannot be decoded.
    """
    columns = [
        name
        for name in ("image", "images")
        if isinstance(dataset.features.get(name), Image) or is_image_list(dataset.features.get(name))
    ]

    rows: list[int] = []
    sights: list[Sight] = []
    start = 0
    with quiet_pillow(), ThreadPoolExecutor(num_proc or 1) as pool:
        for batch in iter_undecoded(dataset.select_columns(columns)) if columns else ():
            own = [
                (number, picture)
                for number, row in enumerate(batch, start)
                for picture in (row.get("image"), *(row.get("images") or ()))
                if picture is not None
            ]
            for (number, _), sight in zip(own, pool.map(_sight, [picture for _, picture in own]), strict=True):
                if sight is not None:
                    rows.append(number)
                    sights.append(sight)
            start += len(batch)
    greys = np.frombuffer(b"".join(sight.grey for sight in sights), dtype=np.uint8).reshape(-1, SIDE * SIDE)
    return Sights(rows, [sight.digest for sight in sights], thumbnails_of(greys))
