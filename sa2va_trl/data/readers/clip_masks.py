"""Masks of clips that stand in one file, a frame of it for each of the clip: all of them are judged as one mask."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL.Image

from ...errors import DatasetError
from ...media.arrays import NiftiFrames, open_npy
from ...media.mask_frames import FrameObjects, PictureKind, judge_frames, pixels_of
from ...media.mask_objects import mask_objects
from ...media.pages import RawPages
from ...media.pictures import MAX_PIXELS
from ...media.suffixes import kind_by_name
from .mask_files import is_lossy, is_whole, mask_state, reason_alone, size_fault


class MaskFrames:
    """
    The frames of a mask file, one at a time, as arrays with the values that it holds.

    Args:
        path (`Path`): of a TIFF of several pages, an animation, a NIfTI or NPY file.
        max_pixels (`int`, *optional*, defaults to 100,000,000): the largest width x height.

    Raises:
        `DatasetError`: unreadable.
        `ImportError`: NIfTI, and nibabel is not installed.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS):
        self.path = path
        self.kind: PictureKind | None = None
        self.whole = False
        kind = kind_by_name(path)
        if kind == "nifti":
            self.frames = NiftiFrames(path, max_pixels)
            # Labels are often stored as floating point, or scaled by 1.
            self.whole = all(is_whole(self.frames.array(index)) for index in range(len(self.frames)))
        elif kind == "npy":
            self.frames = open_npy(path, max_pixels)
        else:
            self.frames = RawPages(path, max_pixels)
            self.lossy = is_lossy(self.frames.format, path)
            self.kind = self._kind_of(self._page(0))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> np.ndarray:
        if isinstance(self.frames, NiftiFrames):
            values = self.frames.array(index)
            return values.astype(np.int64) if self.whole else values
        if self.kind is None:
            return np.asarray(self.frames[index])
        page = self._page(index)
        other = self._kind_of(page)
        if other != self.kind:
            alike = other.mode == self.kind.mode
            what = "another palette" if alike else f"mode {other.mode}, the first of mode {self.kind.mode}"
            raise DatasetError(f"has a page {index} of {what}: save all of them alike")
        values = np.asarray(page)
        return values.astype(values.dtype.newbyteorder("="))

    def _page(self, index: int) -> PIL.Image.Image:
        page = self.frames[index]
        # Pillow gives the first frame of a GIF with its palette, and the others in colour.
        if self.frames.format == "GIF" or page.mode == "PA":
            return page.convert("RGBA")
        if page.mode not in ("1", "L", "P", "LA", "RGB", "RGBA", "F") and not page.mode.startswith("I"):
            mask_objects(page)  # says why not
        return page

    def _kind_of(self, page: PIL.Image.Image) -> PictureKind:
        if page.mode != "P":
            return PictureKind(page.mode, lossy=self.lossy)
        return PictureKind("P", tuple(page.getpalette("RGB") or ()), page.info.get("transparency"), self.lossy)


def read_clip_mask(
    path: Path, threshold: float | None = None, known: Collection[str] = (), max_pixels: int = MAX_PIXELS
) -> FrameObjects:
    """
    The objects of a mask file of several frames.

    Args:
        path (`Path`): as of [`MaskFrames`].
        threshold, known (*optional*): as of [`~media.mask_objects.mask_objects`].
        max_pixels (`int`, *optional*, defaults to 100,000,000): the largest width x height.

    Returns:
        [`~media.mask_frames.FrameObjects`]

    Raises:
        `DatasetError`: with the reason alone; unreadable, or no mask.
        `ImportError`: as of [`MaskFrames`].
    """
    try:
        frames = MaskFrames(path, max_pixels)
        return judge_frames((frames[index] for index in range(len(frames))), frames.kind, threshold, known)
    except DatasetError as error:
        raise DatasetError(reason_alone(error, path)) from error
    except (OSError, ValueError) as error:
        raise DatasetError(str(error)) from error


@lru_cache(maxsize=2)  # pictures are asked for clip by clip
def _opened(path: Path, max_pixels: int, changed: tuple[int, int]) -> MaskFrames:
    return MaskFrames(path, max_pixels)


@lru_cache(maxsize=2)  # the objects of one frame are drawn one after the other
def _frame(path: Path, index: int, max_pixels: int, changed: tuple[int, int]) -> np.ndarray:
    return _opened(path, max_pixels, changed)[index]


def draw_clip_mask(
    size: tuple[int, int], path: Path, index: int, pixels: np.ndarray | float, max_pixels: int
) -> np.ndarray:
    """
    The pixels of an object in a frame of a mask file.

    Args:
        size (`tuple[int, int]`): (width, height) of the frame.
        path, max_pixels: as of [`read_clip_mask`].
        index (`int`): of the frame.
        pixels (`np.ndarray` or `float`): that are the object, see [`~media.mask_frames.FrameObjects`].

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        `DatasetError`: with the reason alone.
    """
    changed = mask_state(path)
    try:
        found = _frame(path, index, max_pixels, changed)
    except DatasetError as error:
        raise DatasetError(f"mask {path.name} {reason_alone(error, path)}") from error
    except (OSError, ValueError, IndexError) as error:
        raise DatasetError(f"mask {path.name} {error}") from error
    if fault := size_fault(found.shape[:2], size):
        raise DatasetError(f"mask {path.name} {fault}")
    return pixels_of(found, pixels)
