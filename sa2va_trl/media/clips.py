"""Images, folders of images and videos as a stream of named pictures."""

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from ..errors import DatasetError, listed
from .arrays import open_npy
from .dicom import no_picture
from .frames import count_frames, frames_of
from .given import given_picture
from .pictures import MAX_PIXELS
from .suffixes import IMAGE_SUFFIXES, has_dicom_preamble, is_byproduct, kind_of, stem_of


logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    """
    A picture and where it comes from.

    Args:
        name (`str`): as in [`read_media`].
        file (`Path`): that holds it.
        frame (`int` or `None`): its number in a video or a file of several pages.
        image (`PIL.Image.Image`): RGB.
    """

    name: str
    file: Path
    frame: int | None
    image: Image.Image


def read_media(path: str | Path) -> Iterator[tuple[str, Image.Image]]:
    """
    Read whatever pictures a path holds, one at a time. Links are followed.

    A TIFF of several pages, an animated GIF, PNG or WebP, and a DICOM, NIfTI or NPY file of several frames are read
    like a video, in whole; an MPO file is a photo, and its first picture is read. In a folder, too, each page of such
    a file is a picture like the other images.

    What a folder holds beside images (other kinds of files, videos, sub-folders, which are not searched, DICOM files
    without a picture, and secondary captures, which are read where they are named themselves) is left out with one
    warning that names it. Hidden files and what systems leave in folders are passed over.

    Args:
        path (`str` or `Path`): an image, a video, a DICOM file (by its content, whatever its suffix), a NIfTI or NPY
            file, or a folder of images.

    Yields:
        A name (the file's stem; `STEM_f00012` for frame 12 of a video or a file of several pages; the whole file name
        in place of the stem where two files of a folder would share one) and an RGB image.

    Raises:
        `FileNotFoundError`: nothing is there.
        `DatasetError`: not an image or a video, a folder without images, an unreadable file, a video without frames or
            with damage that its decoder cannot get over, or frames of different sizes. Nothing has been given out
            then.
        `ImportError`: a video, DICOM or NIfTI file, and what reads it is not installed (`pip install
            'sa2va_trl[video,dicom,formats]'`).
    """
    for picture in read_pictures(path):
        yield picture.name, picture.image


def read_pictures(path: str | Path) -> Iterator[Picture]:
    """
    As [`read_media`], with the file and frame of every picture.

    Args:
        path (`str` or `Path`): an image, a video, or a folder of images.

    Yields:
        [`Picture`]

    Raises:
        `FileNotFoundError`, `DatasetError`, `ImportError`: as there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    files, others = folder_images(path) if path.is_dir() else ([path], [])
    if others and files:
        logger.warning(
            "%s: left out, since of a folder only single images and DICOM files in it are read, each clip by its own "
            "path: %s",
            *(path, listed(others)),
        )
    if not files:
        holds = f"; it holds {listed(others)}" if others else ""
        raise DatasetError(
            f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}, or DICOM){holds}. What lies in its folders "
            "is not read: name one of them, or a file."
        )

    # All of them before the first is given out: a run over a folder or a clip should not fail in its middle.
    counts, faults = [], []
    for file in files:
        try:
            count = sum(1 for _ in _of_one_size(file, _frames(file)))
            counts.append(None if count == 1 and kind_of(file) != "video" else count)
        except DatasetError as error:
            faults.append(str(error))
    if faults and path.is_dir():
        raise DatasetError(f"{len(faults)} of {len(files)} images cannot be used:\n  " + "\n  ".join(faults))
    if faults:
        raise DatasetError(faults[0])
    for file, count, name in zip(files, counts, picture_names(files, counts), strict=True):
        for index, image in enumerate(_frames(file, tell=False)):
            if count is None:
                yield Picture(name, file, None, image)
            else:
                yield Picture(frame_name(name, index), file, index, image)


def folder_images(folder: Path) -> tuple[list[Path], list[str]]:
    """
    What a folder holds, in the order of the names.

    Args:
        folder (`Path`): not searched deeper.

    Returns:
        The image files, and the names of everything else (of folders with a slash behind, of DICOM files without a
        picture and of secondary captures with the reason). Hidden files and what systems leave in folders are neither.
    """
    files, others = [], []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or is_byproduct(entry):
            continue
        if entry.is_dir():
            others.append(f"{entry.name}/")
        elif (reason := _left_out(entry)) is None:
            files.append(entry)
        else:
            others.append(f"{entry.name}{reason}")
    return files, others


def _left_out(file: Path) -> str | None:
    """What is said behind the name of a file that a folder is not read for; `None` where it is."""
    kind = kind_of(file)
    if kind == "dicom":
        try:
            reason = no_picture(file)
        except DatasetError:
            return None if has_dicom_preamble(file) else ""  # reading a damaged one says more
        return reason and f" ({reason})"
    if kind == "npy":  # probabilities, features, ...
        try:
            return None if open_npy(file).dtype in (bool, np.uint8) else ""
        except DatasetError:
            return ""
    return None if kind in ("image", "nifti") else ""


def picture_names(files: Sequence[Path], counts: Sequence[int | None]) -> list[str]:
    """
    Names of the files of one folder, such that no two of their pictures have the same.

    Args:
        files (`list[Path]`): image files.
        counts (`list[int]`): of their frames; `None` where a file is one picture.

    Returns:
        `list[str]`: the stem, or the whole file name where another picture would have the same name.
    """
    names = [stem_of(file) for file in files]
    while True:
        own: dict[str, set[int]] = {}
        for number, (name, count) in enumerate(zip(names, counts, strict=True)):
            for picture in [name] if count is None else (frame_name(name, index) for index in range(count)):
                own.setdefault(picture, set()).add(number)
        shared = {number for numbers in own.values() if len(numbers) > 1 for number in numbers}
        if not shared:
            return names
        # No whole name is another's, with frame number or without: each round makes at least one of them whole.
        names = [file.name if number in shared else names[number] for number, file in enumerate(files)]


def frame_name(name: str, index: int) -> str:
    """The name of a frame of a clip."""
    return f"{name}_f{index:05d}"


def is_clip(path: str | os.PathLike) -> bool:
    """Whether a file holds frames of a clip: a video by its suffix, or another file that has several pages."""
    kind = kind_of(path)
    if kind in ("video", None):
        return kind == "video"
    try:
        return Path(path).is_file() and count_frames(path) > 1
    except (DatasetError, ImportError):  # reading it says more
        return False


class _Clip(Sequence):
    """Frames of a clip in any order, made into pictures one at a time."""


class _ArrayFrames(_Clip):
    """Frames of a `(frames, H, W, 3)` array."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])


class _GivenFrames(_Clip):
    """Frames that somebody holds: images and arrays."""

    def __init__(self, frames: Sequence[Image.Image | np.ndarray]):
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Image.Image:
        return given_picture(self.frames[index], f"Frame {index}")


class _SpooledFrames(_Clip):
    """Frames that lie one after the other in a file. Read, not mapped: mapped pages count as memory."""

    def __init__(self, file: BinaryIO, frames: Iterable[Image.Image]):
        self.file, self.places = file, []
        for frame in frames:
            self.places.append((file.tell(), frame.size))
            file.write(frame.convert("RGB").tobytes())

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        start, size = self.places[index]
        self.file.seek(start)
        return Image.frombytes("RGB", size, self.file.read(3 * size[0] * size[1]))


@contextmanager
def open_video(
    video: Sequence[Image.Image | np.ndarray | str | os.PathLike] | np.ndarray | str | os.PathLike,
) -> Iterator[Sequence[Image.Image]]:
    """
    Frames of a video in any order. Frames of files are spooled to a temporary file (`TMPDIR` says where) and never lie
    in memory together.

    Args:
        video (`list`, `np.ndarray` or path):
            Pictures in any form that [`~media.given.given_picture`] takes, a uint8 array of shape
            `(frames, H, W, 3)`, or a file: a video, a TIFF of several pages, an animated GIF, PNG or WebP, a DICOM,
            NIfTI or NPY file. What this function has given out is a video, too. Frames need not have one size.

    Yields:
        What has a length and gives the picture at an index.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: no frames, one that is no picture or has more than 8 bits a channel, an array of another type or
            shape, or (`DatasetError`) a file that cannot be read.
        `ImportError`: the file of a video, and PyAV is not installed (`pip install 'sa2va_trl[video]'`).
    """
    if isinstance(video, _Clip):
        yield video
    elif isinstance(video, np.ndarray):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
            raise ValueError(
                f"A video array must be uint8 of shape (frames, H, W, 3), got {video.dtype} of shape {video.shape}."
            )
        if 0 in video.shape:
            raise ValueError(f"The video has no frames: its array has the shape {video.shape}.")
        yield _ArrayFrames(video)
    elif isinstance(video, str | os.PathLike):
        if not Path(video).exists():
            raise FileNotFoundError(f"There is no file {video}.")
        with tempfile.TemporaryFile() as file:
            yield _SpooledFrames(file, _frames(Path(video)))
    elif isinstance(video, Sequence):
        if not len(video):
            raise ValueError("The video has no frames.")
        pictures = (given_picture(frame, f"Frame {index}") for index, frame in enumerate(video))
        if any(isinstance(frame, str | os.PathLike) for frame in video):
            with tempfile.TemporaryFile() as file:
                yield _SpooledFrames(file, pictures)
        else:
            for _ in pictures:  # each is judged before work begins
                pass
            yield _GivenFrames(video)
    else:
        raise ValueError(
            "A video is a list of pictures, a uint8 array of shape (frames, H, W, 3) or the path of a file, got "
            f"{type(video).__name__}."
        )


def in_size(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    """
    A frame in the size of its clip's masks, which is that of the first frame.

    Args:
        frame (`PIL.Image.Image`): of a clip.
        size (`tuple[int, int]`): width and height.

    Returns:
        `PIL.Image.Image`: the same where it has that size already.
    """
    return frame if frame.size == size else frame.resize(size, Image.Resampling.BILINEAR)


def _frames(path: Path, tell: bool = True) -> Iterator[Image.Image]:
    """The frames of a clip, RGB, at least one; with `tell`, a warning where its end or parts of it are missing."""
    return (frame.convert("RGB") for frame in frames_of(path, max_pixels=MAX_PIXELS, tell=tell))


def _of_one_size(path: Path, frames: Iterator[Image.Image]) -> Iterator[Image.Image]:
    size = None
    for index, frame in enumerate(frames):
        size = size or frame.size
        if frame.size != size:
            raise DatasetError(
                f"{path}: frame {index} is {frame.width} x {frame.height}, the first {size[0]} x {size[1]}; the "
                "frames of a video must have one size."
            )
        yield frame
