"""Images, folders of images and videos as a stream of named pictures."""

import logging
import math
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..errors import DatasetError
from .pictures import MAX_PIXELS, decode_image, loses_depth, picture_pages, quiet_pillow, too_deep
from .suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_byproduct


logger = logging.getLogger(__name__)
_LISTED = 50


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

    A TIFF of several pages and an animated GIF, PNG or WebP are read like a video, in whole; an MPO file is a photo,
    and its first picture is read. In a folder, too, each page of such a file is a picture like the other images.

    What a folder holds beside images (other kinds of files, videos, sub-folders, which are not searched) is left out
    with one warning that names it. Hidden files and what systems leave in folders are passed over.

    Args:
        path (`str` or `Path`): an image, a video, or a folder of images.

    Yields:
        A name (the file's stem; `STEM_f00012` for frame 12 of a video or a file of several pages; the whole file name
        in place of the stem where two files of a folder would share one) and an RGB image.

    Raises:
        `FileNotFoundError`: nothing is there.
        `DatasetError`: not an image or a video, a folder without images, an unreadable file, a video without frames or
            with damage that its decoder cannot get over, or frames of different sizes. Nothing has been given out
            then.
        `ImportError`: a video, and PyAV is not installed (`pip install 'sa2va_trl[video]'`).
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
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if not path.is_dir() and path.suffix.lower() not in known:
        raise DatasetError(
            f"{path} is neither an image nor a video by its suffix; known are {', '.join(sorted(known))}."
        )
    files, others = folder_images(path) if path.is_dir() else ([path], [])
    if others and files:
        logger.warning(
            "%s: left out, since only images that lie in the folder itself are read: %s", path, listed(others)
        )
    if not files:
        holds = f"; it holds {listed(others)}" if others else ""
        raise DatasetError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){holds}.")

    # All of them before the first is given out: a run over a folder or a clip should not fail in its middle.
    counts, faults = [], []
    for file in files:
        try:
            count = sum(1 for _ in _of_one_size(file, _frames(file)))
            counts.append(None if count == 1 and file.suffix.lower() in IMAGE_SUFFIXES else count)
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
        The image files, and the names of everything else (of folders with a slash behind). Hidden files and what
        systems leave in folders are neither.
    """
    files, others = [], []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or is_byproduct(entry):
            continue
        if entry.is_dir():
            others.append(f"{entry.name}/")
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            files.append(entry)
        else:
            others.append(entry.name)
    return files, others


def picture_names(files: Sequence[Path], counts: Sequence[int | None]) -> list[str]:
    """
    Names of the files of one folder, such that no two of their pictures have the same.

    Args:
        files (`list[Path]`): image files.
        counts (`list[int]`): of their frames; `None` where a file is one picture.

    Returns:
        `list[str]`: the stem, or the whole file name where another picture would have the same name.
    """
    names = [file.stem for file in files]
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
    """Whether a file holds frames of a clip: a video by its suffix, or an image file that has several pages."""
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
        return False
    try:
        with _open(path) as file:
            return len(_page_numbers(path, file)) > 1
    except DatasetError:  # reading it says more
        return False


def listed(names: list[str]) -> str:
    """Names for a message: the first 50, and how many more."""
    more = f", ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


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


class _SpooledFrames(_Clip):
    """Frames of one size that lie one after the other in a file. Read, not mapped: mapped pages count as memory."""

    def __init__(self, file, size: tuple[int, int], total: int):
        self.file, self.size, self.total = file, size, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Image.Image:
        length = 3 * self.size[0] * self.size[1]
        self.file.seek(range(self.total)[index] * length)
        return Image.frombytes("RGB", self.size, self.file.read(length))


@contextmanager
def open_video(video: Sequence[Image.Image] | np.ndarray | str | os.PathLike) -> Iterator[Sequence[Image.Image]]:
    """
    Frames of a video in any order. A file's frames are spooled to a temporary file (`TMPDIR` says where) and never lie
    in memory together.

    Args:
        video (`list[PIL.Image.Image]`, `np.ndarray` or path):
            Pictures of one size, a uint8 array of shape `(frames, H, W, 3)`, or a file: a video, a TIFF of several
            pages, an animated GIF, PNG or WebP. What this function has given out is a video, too.

    Yields:
        What has a length and gives the picture at an index.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: no frames, frames of different sizes or of more than 8 bits a channel, an array of another type
            or shape, or (`DatasetError`) a file that cannot be read.
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
            total = 0
            for frame in _of_one_size(Path(video), _frames(Path(video))):
                file.write(frame.tobytes())
                total += 1
            yield _SpooledFrames(file, frame.size, total)
    elif isinstance(video, Sequence) and all(isinstance(frame, Image.Image) for frame in video):
        if not len(video):
            raise ValueError("The video has no frames.")
        sizes = sorted({frame.size for frame in video})
        if len(sizes) > 1:
            found = ", ".join(f"{width} x {height}" for width, height in sizes)
            raise ValueError(f"The frames of a video must have one size; found {found}.")
        for index, frame in enumerate(video):
            if fault := too_deep(frame):
                raise ValueError(f"Frame {index} {fault}.")
        yield video
    else:
        raise ValueError(
            "A video is a list of PIL images, a uint8 array of shape (frames, H, W, 3) or the path of a file, got "
            f"{type(video).__name__}."
        )


def _frames(path: Path, tell: bool = True) -> Iterator[Image.Image]:
    """The frames of a clip, RGB, at least one; with `tell`, a warning where its end or parts of it are missing."""
    return _pages(path) if path.suffix.lower() in IMAGE_SUFFIXES else _video_frames(path, tell)


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


def _open(path: Path) -> Image.Image:
    with quiet_pillow():
        try:
            file = Image.open(path)
        except Exception as error:
            try:
                decode_image({"path": str(path), "bytes": None})  # knows words for it
            except DatasetError as reason:
                raise DatasetError(f"{path} cannot be read: {reason}") from error
            raise
    # Pillow maps an uncompressed TIFF that has a name, and scrambles it where it is to be turned.
    file.filename = ""
    return file


def _page_numbers(path: Path, file: Image.Image) -> list[int]:
    """Which pages of an image file are pictures."""
    try:
        with quiet_pillow():
            return picture_pages(file)
    except Exception as error:  # what is damaged raises nearly anything
        raise DatasetError(
            f"{path} cannot be read: its pages cannot be counted ({type(error).__name__}: {error}); it is damaged or "
            "cut off"
        ) from error


def _pages(path: Path) -> Iterator[Image.Image]:
    """The pictures of an image file, turned upright as `datasets.Image` turns them."""
    with _open(path) as file:
        numbers = _page_numbers(path, file)
        for index, number in enumerate(numbers):
            where = f"page {index} " if len(numbers) > 1 else ""
            try:
                with quiet_pillow():  # page by page: it may not be left open while others run
                    page = _page(file, number)
            except DatasetError as error:
                raise DatasetError(f"{path} cannot be read: {where}{error}") from error
            except Exception as error:
                raise DatasetError(
                    f"{path} cannot be read: {where}is unreadable or truncated ({type(error).__name__}: {error})"
                ) from error
            yield page


def _page(file: Image.Image, number: int) -> Image.Image:
    file.seek(number)
    if file.width * file.height > MAX_PIXELS:
        raise DatasetError(
            f"is too large: {file.width} x {file.height} pixels, the limit is {MAX_PIXELS:,}; scale it down"
        )
    lost = loses_depth(file)  # a decoded page no longer says so
    file.load()
    if fault := lost or too_deep(file):
        raise DatasetError(fault)
    return ImageOps.exif_transpose(file).convert("RGB")


def _video_frames(path: Path, tell: bool) -> Iterator[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise ImportError("Videos need PyAV: pip install 'sa2va_trl[video]'.") from error
    opened, index, damaged, ends = False, 0, [], {}
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DatasetError(f"{path} has no frames: it holds no video stream.")
            opened, stream = True, container.streams.video[0]
            for packet in container.demux():  # sound, too: some containers state an end of the whole only
                if packet.pts is not None:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0.0))
                for frame in packet.decode() if packet.stream.index == stream.index else ():
                    if frame.is_corrupt:
                        damaged.append(str(index))
                    if not index:  # once: side data holds on to its frame, and the matrix is the stream's
                        turn = _turn(path, frame)
                    image = frame.to_image()
                    yield image if turn is None else image.transpose(turn)
                    index += 1
            missing = _missing(container, stream, index, ends)
    except (av.FFmpegError, IndexError) as error:
        if not opened:
            raise DatasetError(f"{path} cannot be read as a video: {error}") from error
        raise DatasetError(
            f"{path} is damaged: frame {index} cannot be read ({error}). Cut the clip before it, or convert what a "
            "player still shows."
        ) from error
    if not index:
        raise DatasetError(f"{path} has no frames.")
    if tell and damaged:
        logger.warning(
            "%s is damaged: its decoder has patched up frame %s; frames that build on it may be wrong, too.",
            path,
            listed(damaged),
        )
    if tell and missing:
        logger.warning("%s ends early: %s.", path, missing)


def _missing(container, stream, count: int, ends: dict[int, float]) -> str | None:
    """
    What a video lacks of what its header states, read to its end: `count` frames, and `ends`, the second at which each
    stream ends. Times decide: an edit list leaves frames out, and an AVI may state frames that stand for "no change".
    """
    rate = float(stream.average_rate or 0) or 25.0
    if stream.duration is not None:
        stated, reached, slack = float(stream.duration * stream.time_base), ends.get(stream.index, 0.0), 0.5 / rate
        if container.format.name == "avi":  # the duration is reckoned anew from what is there
            stated = max(stated, stream.frames / rate)
    elif container.duration is not None:
        stated, reached, slack = container.duration / 1e6, max(ends.values(), default=0.0), 0.25
    else:
        return None
    if reached >= stated - slack or 0 < stream.frames <= count:
        return None
    if stream.frames:
        return f"{count} frames could be read of the {stream.frames} that its header states"
    return f"it could be read to second {reached:.2f} ({count} frames) of the {stated:.2f} that its header states"


# How a frame is to be shown: of a display matrix (a, b; c, d), the signs; a pixel (x, y) goes to (ax + cy, bx + dy).
_TURNS = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def _turn(path: Path, frame) -> Image.Transpose | None:
    """How to turn a video's frames to what players show: phones write what the sensor saw, and a matrix beside it."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    matrix = struct.unpack("=9i", bytes(stored)) if stored is not None else (1, 0, 0, 0, 1)
    axes = matrix[0:2], matrix[3:5]
    if not all(map(any, axes)):  # shows nothing: no matrix at all
        return None
    shares = [entry / max(map(abs, axis)) for axis in axes for entry in axis]  # players leave scales alone, too
    signs = tuple(map(round, shares))
    if signs not in _TURNS or any(abs(share - sign) > 0.02 for share, sign in zip(shares, signs, strict=True)):
        angle = math.degrees(math.atan2(shares[1], shares[0]))
        raise DatasetError(
            f"{path}: its frames are to be shown turned by {angle:.0f} degrees, which is no quarter turn; have a tool "
            "write the clip anew, upright."
        )
    return _TURNS[signs]
