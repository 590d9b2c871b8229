"""What is predicted of an image, in the form that all exports begin with."""

from typing import NamedTuple

import numpy as np


class Found(NamedTuple):
    """
    An object that was found in an image.

    Args:
        label (`str`): its class in the annotation tool.
        mask (`np.ndarray` of shape `(height, width)` and type `bool`):
            Where it is. If nowhere, the export names its class, and has no object of it.
        score (`float`, *optional*): how sure the model is, in [0, 1].
    """

    label: str
    mask: np.ndarray
    score: float | None = None


class Annotated(NamedTuple):
    """
    An image and what was found in it.

    Args:
        image (`str`): its file, from the folder of the export, with `/`.
        size (`tuple[int, int]`): (width, height), as displayed.
        objects (`tuple[Found, ...]`): in their order.
        frame (`int`, *optional*): its number in a file of several, where the export has that file itself (DICOM).
    """

    image: str
    size: tuple[int, int]
    objects: tuple[Found, ...] = ()
    frame: int | None = None


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """
    The smallest box around a mask.

    Args:
        mask (`np.ndarray` of shape `(height, width)` and type `bool`): not empty.

    Returns:
        `tuple[int, int, int, int]`: left, top, width and height in pixels.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1
