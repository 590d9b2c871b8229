"""Images, folders of images and videos as a stream of named pictures."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .columns import DatasetError, decode_image, quiet_pillow, too_deep


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
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
            for index, frame in enumerate(container.decode(video=0)):
                yield f"{path.stem}_f{index:05d}", frame.to_image()
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(f"{path} cannot be read as a video: {error}") from error
    if index < 0:
        raise DatasetError(f"{path} has no frames.")
