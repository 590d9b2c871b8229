"""Images, folders of images and videos as a stream of named pictures."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from .columns import DatasetError, decode_image, quiet_pillow, too_deep


#: What readers of datasets and `read_media` take for an image.
IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}


def read_media(path: str | Path) -> Iterator[tuple[str, Image.Image]]:
    """
    Read whatever pictures a path holds, one at a time.

    Args:
        path (`str` or `Path`): an image, a video, or a folder of images (not searched deeper).

    Yields:
        A name (the file's stem; `STEM_f00012` for frame 12 of a video; the whole file name where two files of a folder
        share a stem) and an RGB image.

    Raises:
        `FileNotFoundError`: nothing is there.
        `DatasetError`: not an image or a video, an empty folder, an unreadable file, or a video without frames.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DatasetError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        # All of them before the first is given out: a run over a folder should not fail in its middle.
        faults = []
        for file in files:
            try:
                _image(file)
            except DatasetError as error:
                faults.append(str(error))
        if faults:
            raise DatasetError(f"{len(faults)} of {len(files)} images cannot be used:\n  " + "\n  ".join(faults))
        stems = [file.stem for file in files]
        for file in files:
            yield (file.stem if stems.count(file.stem) == 1 else file.name), _image(file)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        yield from _frames(path)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield path.stem, _image(path)
    else:
        known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise DatasetError(f"{path} is neither an image nor a video by its suffix; known are {known}.")


class _ArrayFrames:
    """Frames of a `(frames, H, W, 3)` array, made into pictures one at a time."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])


class _SpooledFrames:
    """Frames of one size that lie one after the other in a file. Read, not mapped: mapped pages count as memory."""

    def __init__(self, file, size: tuple[int, int], total: int):
        self.file, self.size, self.total = file, size, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Image.Image:
        length = 3 * self.size[0] * self.size[1]
        self.file.seek(index * length)
        return Image.frombytes("RGB", self.size, self.file.read(length))


@contextmanager
def open_video(video: Sequence[Image.Image] | np.ndarray | str | os.PathLike) -> Iterator[Sequence[Image.Image]]:
    """
    Frames of a video in any order. A file's frames are spooled to a temporary file (`TMPDIR` says where) and never lie
    in memory together.

    Args:
        video (`list[PIL.Image.Image]`, `np.ndarray` or path):
            Pictures of one size, a uint8 array of shape `(frames, H, W, 3)`, or a video file.

    Yields:
        What has a length and gives the picture at an index.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: no frames, frames of different sizes or of more than 8 bits a channel, an array of another type
            or shape, or (`DatasetError`) a file that cannot be read.
    """
    if isinstance(video, np.ndarray):
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
            size, total = None, 0
            for total, (_, frame) in enumerate(_frames(Path(video)), start=1):
                size = size or frame.size
                if frame.size != size:
                    raise DatasetError(
                        f"{video}: frame {total - 1} is {frame.width} x {frame.height}, the first {size[0]} x "
                        f"{size[1]}; the frames of a video must have one size."
                    )
                file.write(frame.tobytes())
            yield _SpooledFrames(file, size, total)
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


def _image(path: Path) -> Image.Image:
    try:
        with quiet_pillow():
            image = decode_image({"path": str(path), "bytes": None})
        if fault := too_deep(image):
            raise DatasetError(fault)
        return image.convert("RGB")
    except (DatasetError, OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _frames(path: Path) -> Iterator[tuple[str, Image.Image]]:
    try:
        import av
    except ImportError as error:
        raise ImportError("Videos need PyAV: pip install 'sa2va_trl[video]'.") from error
    index = -1
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DatasetError(f"{path} has no frames: it holds no video stream.")
            for index, frame in enumerate(container.decode(video=0)):
                yield f"{path.stem}_f{index:05d}", frame.to_image()
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(f"{path} cannot be read as a video: {error}") from error
    if index < 0:
        raise DatasetError(f"{path} has no frames.")
