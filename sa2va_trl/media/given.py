"""A picture as a caller hands it over: a PIL image, the path of a file, or an array."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from .frames import frames_of
from .pictures import too_deep


# What inference takes as a picture.
Given = Image.Image | np.ndarray | str | os.PathLike


def given_picture(value: Given, name: str) -> Image.Image:
    """
    A picture in any form that inference takes.

    Args:
        value (`PIL.Image.Image`, `np.ndarray` or path):
            An image of 8 bits a channel, a uint8 array of shape `(H, W)` or `(H, W, 3)`, or a file of one picture as
            in [`~media.frames.frames_of`].
        name (`str`): what messages call it.

    Returns:
        `PIL.Image.Image`: in its own mode; of a file upright, mode `L` or `RGB`.

    Raises:
        `ValueError`: with the name: of another kind, type or shape, more than 8 bits a channel, or (`DatasetError`) a
            file that cannot be read or holds several pictures.
        `FileNotFoundError`: there is no such file.
        `ImportError`: what reads its kind of file is not installed.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.media.given import given_picture

        >>> given_picture(np.zeros((2, 3, 3), np.uint8), "Image 0").size
        (3, 2)
        >>> given_picture(np.zeros((2, 3)), "Image 0")
        Traceback (most recent call last):
        ValueError: Image 0 must be uint8 of shape (H, W) or (H, W, 3), got float64 of shape (2, 3).

        ```
    """
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or not value.size or not (value.ndim == 2 or value.ndim == 3 == value.shape[-1]):
            raise ValueError(
                f"{name} must be uint8 of shape (H, W) or (H, W, 3), got {value.dtype} of shape {value.shape}."
            )
        return Image.fromarray(np.ascontiguousarray(value))
    if isinstance(value, str | os.PathLike):
        value = _only_picture(Path(value), name)
    if not isinstance(value, Image.Image):
        raise ValueError(f"{name} must be a PIL image, the path of a file or an array, got {type(value).__name__}.")
    if fault := too_deep(value):
        raise ValueError(f"{name} {fault}.")
    return value


def _only_picture(path: Path, name: str) -> Image.Image:
    if not path.exists():
        raise FileNotFoundError(f"{name}: there is no file {path}.")
    frames = frames_of(path)
    first, second = next(frames), next(frames, None)
    frames.close()
    if second is not None:
        raise ValueError(f"{name}: {path} holds several pictures. Give it as `video`, or one of them.")
    return first
