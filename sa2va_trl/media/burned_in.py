"""Text that is written into the pixels of a clip: names and dates, often."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage


_BRIGHT, _STEADY, _STROKE, _CONTRAST = 180, 32, 9, 64
_HEIGHTS, _LETTERS = (5, 48), 4


class Extent(NamedTuple):
    """
    What is kept of frames that have been looked at one by one.

    Args:
        low, high (`np.ndarray` of shape `(height, width)`, uint8): the darkest and brightest that each pixel was.
        frames (`int`): how many there were.
    """

    low: np.ndarray
    high: np.ndarray
    frames: int


def static_text(frames: Iterable[Image.Image | np.ndarray]) -> list[tuple[int, int, int, int]]:
    """
    Where bright text stands that no frame changes. What is bright in every frame, hardly changes and is as thin as
    the stroke of a letter falls into pieces; four or more of a height in one row are a line of text. It finds what
    machines write over a run (white, with or without a dark edge). It does not read it, and it does not find dark or
    large text, or text on a white ground: finding none is no promise.

    Args:
        frames (iterable of `PIL.Image.Image` or of `np.ndarray` of shape `(height, width[, 3])`, uint8):
            Of one size; a few that are spread over the clip. Of a single one, what moves cannot be told from text.

    Returns:
        `list[tuple[int, int, int, int]]`: (left, top, right, bottom) of each line, in pixels, from the top.

    Raises:
        `ValueError`: no frames, or frames of several sizes.

    Example:

    ```python
    >>> import numpy as np
    >>> from sa2va_trl.media.burned_in import static_text

    >>> letters = np.zeros((40, 80), np.uint8)
    >>> letters[10:18, 10:50:8] = letters[10:18, 14:50:8] = 255
    >>> static_text([letters, letters])
    [(10, 10, 47, 18)]

    ```
    """
    seen = None
    for frame in frames:
        own = extent_of(frame)
        seen = own if seen is None else joined(seen, own)
    if seen is None:
        raise ValueError("There are no frames to look for text in.")
    return text_within(seen)


def extent_of(frame: Image.Image | np.ndarray) -> Extent:
    """
    Args:
        frame (`PIL.Image.Image` or `np.ndarray`): as in [`static_text`].

    Returns:
        [`Extent`]: of this one frame.
    """
    picture = frame if isinstance(frame, Image.Image) else Image.fromarray(frame)
    grey = np.asarray(picture.convert("L"))
    return Extent(grey, grey, 1)


def joined(one: Extent, other: Extent) -> Extent:
    """
    Args:
        one, other ([`Extent`]): of frames of a clip.

    Returns:
        [`Extent`]: of all of them.

    Raises:
        `ValueError`: frames of two sizes.
    """
    if one.low.shape != other.low.shape:
        raise ValueError(f"The frames of a clip must have one size; found {one.low.shape} and {other.low.shape}.")
    low, high = np.minimum(one.low, other.low), np.maximum(one.high, other.high)
    return Extent(low, high, one.frames + other.frames)


def text_within(seen: Extent) -> list[tuple[int, int, int, int]]:
    """
    Args:
        seen ([`Extent`]): of frames that are spread over a clip.

    Returns:
        `list[tuple[int, int, int, int]]`: as [`static_text`].
    """
    strokes = (seen.low >= _BRIGHT) & (seen.high - seen.low <= _STEADY)
    if strokes.any():
        strokes &= ndimage.white_tophat(seen.low, size=_STROKE) >= _CONTRAST
    pieces = ndimage.find_objects(ndimage.label(strokes, np.ones((3, 3)))[0])
    boxes = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in pieces]
    letters = [
        box for box in boxes if _HEIGHTS[0] <= box[3] - box[1] <= _HEIGHTS[1] and box[2] - box[0] <= _HEIGHTS[1]
    ]
    return sorted(_around(line) for line in _lines(letters) if len(line) >= _LETTERS)


def _around(line: list[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    lefts, tops, rights, bottoms = zip(*line, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _lines(letters: list[tuple[int, int, int, int]]) -> list[list[tuple[int, int, int, int]]]:
    """Boxes from left to right, each with those before it that it follows: beside the last, as high, not far away."""
    lines: list[list[tuple[int, int, int, int]]] = []
    for box in sorted(letters):
        height = box[3] - box[1]
        for line in lines:
            last = line[-1]
            common = min(box[3], last[3]) - max(box[1], last[1])
            tall = max(height, last[3] - last[1])
            if common >= 0.5 * tall and box[0] - last[2] <= 1.5 * tall:
                line.append(box)
                break
        else:
            lines.append([box])
    return lines
