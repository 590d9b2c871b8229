"""Pictures in files of numbers: NIfTI in two dimensions, with or without time, and NPY."""

import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DatasetError
from .pictures import MAX_PIXELS, picture_source


logger = logging.getLogger(__name__)
_COLOURS = (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), np.dtype([(c, "u1") for c in "RGBA"]))


def _unreadable(path: Path, error: Exception) -> DatasetError:
    reason = " ".join(str(error).split())[:300]
    return DatasetError(f"{path} cannot be read: is damaged or cut off ({type(error).__name__}: {reason})")


# ---------------------------------------------------------------------------------------------------------------------
# NIfTI
# ---------------------------------------------------------------------------------------------------------------------


class NiftiFrames:
    """
    The frames of a NIfTI file, as arrays whose rows run down and whose columns run to the right.

    A file holds its voxels as (i, j, slice, time); a picture's column is along i and its row along j. Where the file
    says how it lies in the patient, pictures are shown as DICOM shows them: an axis is turned round where it runs to
    the patient's right, front or head. (Most programs write the first axis to the left; `dcm2niix` writes the second
    one upwards.) A file that says nothing (neither sform nor qform, or the identity, which programs write that know of
    no patient) is shown as it lies. So a mask lies on its image, whichever program has written which.

    Args:
        path (`str` or `os.PathLike`): of the file, `.nii` or `.nii.gz`: (X, Y), (X, Y, frames) or (X, Y, 1, frames).
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Raises:
        `DatasetError`: with the file; it is damaged, has more axes or is too large.
        `ImportError`: nibabel is not installed (`pip install 'sa2va_trl[formats]'`).
    """

    def __init__(self, path: str | os.PathLike, max_pixels: int = MAX_PIXELS):
        try:
            import nibabel
        except ImportError as error:
            raise ImportError("NIfTI needs nibabel: pip install 'sa2va_trl[formats]'.") from error
        self.path = path = Path(path)
        try:
            self.image = nibabel.load(path, keep_file_open=True)  # of a .gz, the next frame is where it is
            shape, self.dtype = self.image.shape, self.image.get_data_dtype()
            self.turned = self._turned(nibabel)
        except Exception as error:  # a damaged header raises nearly anything
            raise _unreadable(path, error) from error
        kept = list(shape[:2]) + [length for length in shape[2:] if length != 1]
        if len(shape) < 2 or len(kept) > 3 or not all(kept):
            raise DatasetError(
                f"{path} cannot be read: it holds {' x '.join(map(str, shape))} voxels; read are pictures, with or "
                "without time (X x Y, X x Y x frames, X x Y x 1 x frames)"
            )
        self.size, self.frames = (int(shape[0]), int(shape[1])), int(kept[2]) if len(kept) == 3 else 1
        if self.size[0] * self.size[1] > max_pixels:
            raise DatasetError(
                f"{path} cannot be read: is too large: {self.size[0]} x {self.size[1]} pixels, the limit is "
                f"{max_pixels:,}"
            )
        self._axis = next((axis for axis in range(2, len(shape)) if shape[axis] != 1), None)
        if not path.name.lower().endswith(".gz"):
            length = int(np.prod(shape, dtype=object)) * self.dtype.itemsize
            if length > path.stat().st_size:
                raise DatasetError(f"{path} is cut off, or its header is wrong: it states {length:,} bytes of voxels")

    def _turned(self, nibabel) -> tuple[bool, bool]:
        """Whether i and j are to be turned round."""
        header, affine = self.image.header, self.image.affine
        codes = [int(header[name]) for name in ("sform_code", "qform_code") if name in header]
        if not any(codes) or affine is None or not np.isfinite(affine).all() or np.array_equal(affine, np.eye(4)):
            return False, False
        axes = nibabel.aff2axcodes(affine)
        # DICOM's patient has x to the left and y to the back; upright, pictures begin at the head.
        return axes[0] in ("R", "A", "S"), axes[1] in ("R", "A", "S")

    def __len__(self) -> int:
        return self.frames

    def array(self, index: int) -> np.ndarray:
        """
        The values of a frame, scaled as the header says.

        Args:
            index (`int`): of the frame, from 0.

        Returns:
            `np.ndarray` of shape `(height, width)`, or `(height, width, 3)` of a file in colour.

        Raises:
            `DatasetError`: damaged or cut off.
        """
        places = [slice(None), slice(None)] + [0] * (len(self.image.shape) - 2)
        if self._axis is not None:
            places[self._axis] = index
        try:
            values = np.asarray(self.image.dataobj[tuple(places)])
        except Exception as error:
            raise _unreadable(self.path, error) from error
        if values.dtype in _COLOURS:
            values = np.stack([values[name] for name in "RGB"], axis=-1)
        values = np.swapaxes(values, 0, 1)
        return values[:: -1 if self.turned[1] else 1, :: -1 if self.turned[0] else 1]

    def window(self) -> tuple[float, float] | None:
        """
        The values that are black and white in every frame: those of the header (`cal_min`, `cal_max`); `None` where
        all values are whole numbers from 0 to 255; else the smallest and the largest of the whole file.
        """
        header = self.image.header
        try:
            low, high = float(header["cal_min"]), float(header["cal_max"])
        except (KeyError, ValueError):
            low = high = 0.0
        if np.isfinite([low, high]).all() and high > low:
            return low, high
        if self.dtype == np.uint8 and self.image.dataobj.slope == 1 and self.image.dataobj.inter == 0:
            return None
        low, high, whole = np.inf, -np.inf, True
        for index in range(self.frames):
            values = self.array(index)
            if not np.isfinite(values).all():
                raise DatasetError(f"{self.path} cannot be read: frame {index} holds values that are no numbers")
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole = whole and (values.dtype.kind in "iub" or bool((values == np.rint(values)).all()))
        return None if whole and low >= 0 and high <= 255 else (low, high)


@lru_cache(maxsize=64)
def _window_of(path: Path, changed: int) -> tuple[float, float] | None:
    """The window of a file, looked for once."""
    found = NiftiFrames(path)
    window = found.window()
    if window is not None and float(found.image.header["cal_max"]) <= float(found.image.header["cal_min"]):
        text = "%s: shown from %g to %g, the range of the whole file; cal_min and cal_max in its header set another."
        logger.warning(text, path, *window)
    return window


def nifti_frames(path: str | os.PathLike, start: int = 0, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """
    The frames of a NIfTI file as pictures, all through one window ([`NiftiFrames`] says how they lie).

    Args:
        path (`str` or `os.PathLike`): of the file.
        start (`int`, *optional*, defaults to 0): the first frame to give.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Yields:
        `PIL.Image.Image`: mode `L`, or `RGB` of a file in colour.

    Raises:
        `DatasetError`, `ImportError`: as [`NiftiFrames`].
    """
    found = NiftiFrames(path, max_pixels)
    if found.dtype.kind == "c":
        raise DatasetError(f"{path} cannot be read: it holds complex numbers")
    window = None if found.dtype in _COLOURS else _window_of(found.path, found.path.stat().st_mtime_ns)
    for index in range(start, found.frames):
        values = found.array(index)
        if window is not None:
            low, high = window
            share = (values.astype(np.float64) - low) / (high - low or 1)
            values = np.rint(share.clip(0, 1) * 255)
        yield Image.fromarray(np.ascontiguousarray(values.astype(np.uint8)))


# ---------------------------------------------------------------------------------------------------------------------
# NPY
# ---------------------------------------------------------------------------------------------------------------------


def open_npy(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """
    The frames of an array file, read from the disk when they are looked at; nothing in it is ever unpickled.

    Args:
        path (`str` or `os.PathLike`):
            Of the file, of shape (height, width), (height, width, 3 or 4), (frames, height, width) or
            (frames, height, width, 3 or 4).
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Returns:
        `np.ndarray` of shape `(frames, height, width[, channels])`

    Raises:
        `DatasetError`: with the file; it is damaged, cut off or too large, or has another shape.
    """
    path = Path(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        raise _unreadable(path, error) from error
    channels = array.ndim >= 3 and array.shape[-1] in (3, 4)
    if array.ndim - channels not in (2, 3) or not array.size:
        raise DatasetError(
            f"{path} cannot be read: it is an array of shape {array.shape}; expected (height, width) or (frames, "
            "height, width), with or without 3 channels at the end"
        )
    if array.ndim - channels == 2:
        array = array[None]
    if array.shape[1] * array.shape[2] > max_pixels:
        raise DatasetError(
            f"{path} cannot be read: is too large: {array.shape[2]} x {array.shape[1]} pixels, the limit is "
            f"{max_pixels:,}"
        )
    return array


def npy_frames(path: str | os.PathLike, start: int = 0, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """
    The frames of an array file as pictures.

    Args:
        path (`str` or `os.PathLike`): of the file, as [`open_npy`]; bool, or whole numbers from 0 to 255.
        start (`int`, *optional*, defaults to 0): the first frame to give.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Yields:
        `PIL.Image.Image`: mode `L`, `RGB` or `RGBA`.

    Raises:
        `DatasetError`: with the file; as [`open_npy`], or values that are no picture's.
    """
    array = open_npy(path, max_pixels)
    for index in range(start, len(array)):
        try:
            yield picture_source(np.asarray(array[index]))
        except DatasetError as error:
            raise DatasetError(f"{path} cannot be read: frame {index} {error}") from error
