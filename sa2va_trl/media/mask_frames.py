"""
The objects of a mask of several frames, judged as one mask: what a frame happens not to hold changes nothing.

But for the numbers of pixels ([`~media.mask_objects.Census`]), [`~media.mask_objects`] asks of a mask which values
occur in it. So one pixel of each stands for all frames, and what it is taken for holds in every frame.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import PIL.Image

from .mask_objects import MaskObjects, array_objects, census_of, mask_objects


class PictureKind(NamedTuple):
    """
    What the pages of an image file have in common.

    Args:
        mode (`str`): of Pillow.
        palette (`tuple[int, ...]`): its colours, one channel after the other; empty where there is none.
        transparency (`bytes`, `int` or `None`): that is declared.
        lossy (`bool`): as of [`~media.mask_objects.mask_objects`].
    """

    mode: str
    palette: tuple[int, ...] = ()
    transparency: bytes | int | tuple | None = None
    lossy: bool = False


class FrameObjects(NamedTuple):
    """
    The objects of the frames of a mask.

    Args:
        pixels (`dict[str | None, np.ndarray | float]`):
            By the name of an object ([`~media.mask_objects.MaskObjects`]) which pixels are it, see [`pixels_of`]; of
            floating point the least value.
        frames (`list[tuple[str | None, ...]]`): the objects of each frame, in the order of their ids.
    """

    pixels: dict[str | None, np.ndarray | float]
    frames: list[tuple[str | None, ...]]


def _numbers(frame: np.ndarray) -> np.ndarray:
    """Pixels as one number each: of colours their channels, one byte after the other."""
    if frame.ndim == 2:
        return frame
    return frame.astype(np.int64) @ (1 << 8 * np.arange(frame.shape[2], dtype=np.int64)[::-1])


def _colours(numbers: np.ndarray, channels: int) -> np.ndarray:
    return np.stack([numbers >> 8 * place & 255 for place in range(channels)][::-1], axis=-1).astype(np.uint8)


def _distinct(frame: np.ndarray) -> np.ndarray:
    """The numbers of a frame's pixels, each once; of floating point the smallest and the largest."""
    if frame.dtype.kind == "f":
        return np.array([frame.min(), frame.max()])
    if frame.dtype == np.uint8 and frame.ndim == 2:  # much faster than sorting
        return np.flatnonzero(np.bincount(frame.reshape(-1), minlength=256))
    return np.unique(_numbers(frame))


def _as_picture(pixels: np.ndarray, kind: PictureKind) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(pixels)
    if kind.mode == "P":
        picture.putpalette(list(kind.palette))
    if kind.transparency is not None:
        picture.info["transparency"] = kind.transparency
    return picture


def judge_frames(
    frames: Iterable[np.ndarray],
    kind: PictureKind | None = None,
    threshold: float | None = None,
    known: Collection[str] = (),
) -> FrameObjects:
    """
    Tell the objects of frames that are one mask.

    Args:
        frames (`Iterable[np.ndarray]`):
            Each of shape `(height, width)` or `(height, width, channels)` and of one type; gone through once.
        kind ([`PictureKind`], *optional*): of pages of an image file; `None` of arrays that were never pictures.
        threshold, known (*optional*): as of [`~media.mask_objects.mask_objects`].

    Returns:
        [`FrameObjects`]

    Raises:
        `ValueError`: with the reason alone; no mask, or one that may mean several things.

    Example:

    ```python
    >>> import numpy as np
    >>> from sa2va_trl.media.mask_frames import judge_frames, pixels_of

    >>> frames = np.array([[[0, 0], [0, 2]], [[0, 1], [0, 0]], [[0, 0], [0, 0]]], dtype=np.uint8)
    >>> found = judge_frames(frames)
    >>> found.frames
    [('2',), ('1',), ()]
    >>> pixels_of(frames[0], found.pixels["2"]).tolist()
    [[False, False], [False, True]]

    ```
    """
    own, census, one = [], None, None
    for one in frames:
        if one.dtype.kind not in "biuf" or one.ndim not in (2, 3) or one.ndim == 3 and one.dtype != np.uint8:
            raise ValueError(f"is an array of {one.dtype} of shape {one.shape}; expected one number a pixel")
        own.append(_distinct(one))
        if one.ndim == 2 and one.dtype.kind in "iu" and one.dtype.itemsize > 1:
            found = census_of(one)
            census = found if census is None else census.joined(found)
    if one is None:
        raise ValueError("holds no frame")
    every = np.unique(np.concatenate(own))
    channels = one.shape[2] if one.ndim == 3 else 0
    pixels = (_colours(every, channels) if channels else every.astype(one.dtype))[None]
    if kind is None:
        objects = array_objects(pixels, threshold, known, census)
    else:
        objects = mask_objects(_as_picture(pixels, kind), threshold, known, kind.lossy, census)
    return _of_frames(objects, every, own, threshold if one.dtype.kind == "f" else None)


def _of_frames(objects: MaskObjects, every: np.ndarray, own: list[np.ndarray], least: float | None) -> FrameObjects:
    numbers = objects.numbers[0]
    pixels = {
        name: every[numbers == number] if least is None else least for number, name in enumerate(objects.names, 1)
    }
    there = (np.unique(numbers[np.searchsorted(every, found)]) for found in own)
    return FrameObjects(pixels, [tuple(objects.names[number - 1] for number in found if number) for found in there])


def pixels_of(frame: np.ndarray, wanted: np.ndarray | float) -> np.ndarray:
    """
    The pixels of an object of a frame.

    Args:
        frame (`np.ndarray`): as of [`judge_frames`].
        wanted (`np.ndarray` or `float`): of [`FrameObjects`].

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.
    """
    if not isinstance(wanted, np.ndarray):
        return frame >= wanted
    numbers = _numbers(frame)
    return numbers == wanted[0] if len(wanted) == 1 else np.isin(numbers, wanted)
