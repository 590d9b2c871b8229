"""Files of masks, of any kind: the objects in them, and how one is drawn."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ...media.arrays import NiftiFrames, open_npy
from ...media.mask_objects import MaskObjects, array_objects, mask_objects
from ...media.pictures import MAX_PIXELS, decode_image, open_image
from ...media.suffixes import kind_by_name


#: Kinds of files ([`~media.suffixes.kind_by_name`]) that images and masks of pairs are read from.
PAIR_KINDS = ("image", "nifti", "npy")


def read_mask_file(
    path: Path, threshold: float | None = None, known: Collection[str] = (), max_pixels: int = MAX_PIXELS
) -> MaskObjects:
    """
    The objects of a mask file. Use inside `quiet_pillow`.

    Args:
        path (`Path`): an image of one page, a NIfTI or NPY file of one frame.
        threshold, known (*optional*): as of [`~media.mask_objects.mask_objects`].
        max_pixels (`int`, *optional*, defaults to 100,000,000): the largest width x height.

    Returns:
        [`~media.mask_objects.MaskObjects`], upright.

    Raises:
        `DatasetError`: with the reason alone; unreadable, or no mask.
        `ImportError`: NIfTI, and nibabel is not installed.
    """
    kind = kind_by_name(path)
    try:
        if kind == "nifti":
            return array_objects(_nifti_values(path, max_pixels), threshold, known)
        if kind == "npy":
            return array_objects(_npy_values(path, max_pixels), threshold, known)
        with open_image(path, max_pixels) as opened:
            lossy = is_lossy(opened.format, path)
        return mask_objects(decode_image(path, max_pixels), threshold, known, lossy)
    except DatasetError as error:
        raise DatasetError(reason_alone(error, path)) from error
    except (OSError, ValueError) as error:
        raise DatasetError(str(error)) from error


def reason_alone(error: DatasetError, path: Path) -> str:
    """What an error of a file says beside its path, which the caller gives."""
    return str(error).replace(str(path), path.name).removeprefix(f"{path.name} ")


def _nifti_values(path: Path, max_pixels: int) -> np.ndarray:
    if not path.is_file():
        raise DatasetError("file is missing")
    found = NiftiFrames(path, max_pixels)
    if len(found) > 1:
        raise DatasetError(f"holds {len(found)} slices or frames; a mask of one picture is X x Y")
    values = found.array(0)
    # Labels are often stored as floating point, or scaled by 1.
    return values.astype(np.int64) if is_whole(values) else values


def is_whole(values: np.ndarray) -> bool:
    """Whether floating-point values are labels: whole numbers, all of them, of a usual size."""
    if values.dtype.kind != "f" or not np.isfinite(values).all() or not (values == np.rint(values)).all():
        return False
    return bool(np.abs(values).max(initial=0) < 2**31)


def _npy_values(path: Path, max_pixels: int) -> np.ndarray:
    if not path.is_file():
        raise DatasetError("file is missing")
    frames = open_npy(path, max_pixels)
    if frames.ndim == 3 and frames.shape[2] == 1 < frames.shape[0]:  # (height, width, 1)
        frames = np.moveaxis(frames, 2, 0)
        if frames[0].size > max_pixels:
            size = f"{frames.shape[2]} x {frames.shape[1]}"
            raise DatasetError(f"is too large: {size} pixels, the limit is {max_pixels:,}; scale it down")
    if len(frames) > 1:
        raise DatasetError(f"holds {len(frames)} frames; a mask of one picture has the shape (height, width)")
    return np.asarray(frames[0])


def is_lossy(form: str | None, path: Path) -> bool:
    """
    Whether the pixels of a picture are not those that were saved.

    Args:
        form (`str` or `None`): its format, as Pillow calls it.
        path (`Path`): of the file.
    """
    if form != "WEBP":
        return form in ("JPEG", "MPO", "JPEG2000")
    with open(path, "rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8 ", b"VP8L"):
                return head[:4] == b"VP8 "
            if head[:4] == b"ANMF":  # a frame of an animation: where it lies, then chunks of its own
                file.seek(16, 1)
                continue
            length = int.from_bytes(head[4:], "little")
            file.seek(length + length % 2, 1)
    return True


@lru_cache(maxsize=2)  # the objects of one file are drawn one after the other
def _held(
    path: Path, threshold: float | None, known: frozenset[str], max_pixels: int, changed: tuple[int, int]
) -> MaskObjects:
    return read_mask_file(path, threshold, known, max_pixels)


def draw_mask_file(
    size: tuple[int, int],
    path: Path,
    names: frozenset[str | None],
    threshold: float | None,
    known: frozenset[str],
    max_pixels: int,
) -> np.ndarray:
    """
    The pixels of objects of a mask file.

    Args:
        size (`tuple[int, int]`): (width, height) of the image.
        path, threshold, known, max_pixels: as of [`read_mask_file`].
        names (`frozenset`): of the objects, which are drawn as one.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        `DatasetError`: with the reason alone.
    """
    changed = mask_state(path)
    try:
        found = _held(path, threshold, known, max_pixels, changed)
    except DatasetError as error:
        raise DatasetError(f"mask {path.name} {error}") from error
    if fault := size_fault(found.numbers.shape, size):
        raise DatasetError(f"mask {path.name} {fault}")
    return found.mask(names)


def mask_state(path: Path) -> tuple[int, int]:
    """
    What tells whether a mask file has changed since it was read.

    Raises:
        `DatasetError`: it is not there.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DatasetError(f"mask {path.name} file is missing") from error
    return state.st_size, state.st_mtime_ns


def size_fault(shape: tuple[int, int], size: tuple[int, int]) -> str | None:
    """What is wrong where a mask of a shape (height, width) has not the (width, height) of its image."""
    height, width = shape
    if (width, height) == tuple(size):
        return None
    return f"is {width} x {height}, its image {size[0]} x {size[1]} (width x height)"


def nifti_fault(image: Path, mask: Path) -> str | None:
    """
    What is wrong where it is not known how a mask in NIfTI lies on its image; else `None`.

    Args:
        image, mask (`Path`): files that can be read, of one size.
    """
    kinds = kind_by_name(image), kind_by_name(mask)
    if "nifti" not in kinds:
        return None
    lies = [_orientation(path) if kind == "nifti" else None for path, kind in zip((image, mask), kinds, strict=True)]
    if kinds == ("nifti", "nifti"):
        if (lies[0] is None) != (lies[1] is None) and any(map(any, filter(None, lies))):
            return "states no orientation and its image one by which it is turned, or the other way round: give both"
        return None
    found = NiftiFrames(image if kinds[0] == "nifti" else mask)
    if lies[0] is None and lies[1] is None and found.size[0] == found.size[1]:
        return (
            "may lie on its side: one of mask and image is NIfTI that states no orientation, the other is not NIfTI, "
            "and they are square. Save both in one format"
        )
    return None


def _orientation(path: Path) -> tuple[bool, bool] | None:
    """By which axes a NIfTI file is turned; `None` where it does not say how it lies."""
    found = NiftiFrames(path)
    header, affine = found.image.header, found.image.affine
    stated = any(int(header[name]) for name in ("sform_code", "qform_code") if name in header)
    return None if not stated or affine is None or np.array_equal(affine, np.eye(4)) else found.turned
