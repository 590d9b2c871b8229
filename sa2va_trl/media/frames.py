"""The one door to pictures in files of any kind: all frames in their order, or one by its number."""

import atexit
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import DatasetError
from .arrays import NiftiFrames, nifti_frames, npy_frames, open_npy
from .dicom import count_dicom, dicom_frames
from .pages import count_pages, page_frames
from .pictures import MAX_PIXELS
from .suffixes import KINDS, kind_of
from .video import count_video, video_frames


_HELD = 4  # clips that are read by turns: pictures and masks of two


def _kind(path: Path) -> str:
    kind = kind_of(path)
    if kind is None:
        known = ", ".join(suffix for suffixes in KINDS.values() for suffix in sorted(suffixes))
        raise DatasetError(
            f"{path} is neither an image nor a video by its suffix, nor DICOM by its content; known are {known}."
        )
    return kind


def frames_of(
    path: str | os.PathLike, start: int = 0, max_pixels: int = MAX_PIXELS, tell: bool = True
) -> Iterator[Image.Image]:
    """
    The frames of a file in their order, one in memory at a time.

    Args:
        path (`str` or `os.PathLike`): an image of one or several pages, a video, a DICOM, NIfTI or NPY file.
        start (`int`, *optional*, defaults to 0): the first frame to give.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.
        tell (`bool`, *optional*, defaults to `True`): warn where the end or parts of a video are missing.

    Yields:
        `PIL.Image.Image`: upright, mode `L` or `RGB`.

    Raises:
        `DatasetError`: with the file: of another kind, unreadable or too large.
        `ImportError`: what reads this kind is not installed; the message names the extra.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "video":
        return video_frames(path, start, max_pixels, tell)
    if kind == "dicom":
        return dicom_frames(path, start, max_pixels)
    if kind == "nifti":
        return nifti_frames(path, start, max_pixels)
    if kind == "npy":
        return (frame if frame.mode == "L" else frame.convert("RGB") for frame in npy_frames(path, start, max_pixels))
    return page_frames(path, start, max_pixels)


def count_frames(path: str | os.PathLike) -> int:
    """
    How many frames a file holds; by its header, but of a video, which is decoded for it.

    Args:
        path (`str` or `os.PathLike`): as in [`frames_of`].

    Returns:
        `int`: at least 1.

    Raises:
        `DatasetError`, `ImportError`: as [`frames_of`]; also of a video of which the end or parts are missing.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "video":
        return count_video(path)
    if kind == "dicom":
        return count_dicom(path)
    if kind == "nifti":
        return len(NiftiFrames(path))
    if kind == "npy":
        return len(open_npy(path))
    return count_pages(path)


class _Position(NamedTuple):
    """How far a file has been read: what gives the next frame, and its number."""

    frames: Iterator[Image.Image]
    next: int


class _Held(threading.local):
    """Files that are being read, by what identifies them, the latest last. Of one thread."""

    def __init__(self):
        self.positions: OrderedDict[tuple, _Position] = OrderedDict()


_held = _Held()


def _close() -> None:
    """Close what this thread has open."""
    while _held.positions:
        _held.positions.popitem()[1].frames.close()


# Decoders are closed while what they need is still there: a forked process has no threads of theirs, and would wait.
atexit.register(_close)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_close)


def frame_of(path: str | os.PathLike, index: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    One frame of a file. Asked for in their order, the frames of a clip are decoded once: the file stays open where it
    has been read to, until others have been asked for.

    Args:
        path (`str` or `os.PathLike`): as in [`frames_of`].
        index (`int`): of the frame, from 0.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Returns:
        `PIL.Image.Image`: upright, mode `L` or `RGB`.

    Raises:
        `FileNotFoundError`: there is no such file.
        `DatasetError`: as [`frames_of`], or the file has no such frame.
        `ImportError`: as [`frames_of`].
    """
    path = Path(path)
    if index < 0:
        raise DatasetError(f"{path} has no frame {index}")
    state = path.stat()
    key = (path.absolute(), state.st_size, state.st_mtime_ns, max_pixels)
    frames, at = _held.positions.pop(key, (None, 0))
    # What comes before the frame of a video is decoded anyway; the others begin with any frame.
    goes_on = frames is not None and (at == index or at < index and kind_of(path) == "video")
    if not goes_on:
        frames, at = frames_of(path, index, max_pixels, tell=False), index
    for _ in range(at, index + 1):
        frame = next(frames, None)
    if frame is None:
        raise DatasetError(f"{path} has no frame {index}: it has {count_frames(path)}")
    _held.positions[key] = _Position(frames, index + 1)
    while len(_held.positions) > _HELD:
        _held.positions.popitem(last=False)[1].frames.close()
    return frame
