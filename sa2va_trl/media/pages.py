"""Image files of one picture or several: TIFF, animated GIF, PNG and WebP, page by page."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import DatasetError
from .pictures import MAX_PIXELS, decode_image, loses_depth, picture_pages, quiet_pillow, too_deep


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


def count_pages(path: str | os.PathLike) -> int:
    """
    How many pictures an image file holds.

    Args:
        path (`str` or `os.PathLike`): of the file.

    Returns:
        `int`: at least 1.

    Raises:
        `DatasetError`: with the file; it is unreadable.
    """
    path = Path(path)
    with _open(path) as file:
        return len(_page_numbers(path, file))


def page_frames(path: str | os.PathLike, start: int = 0, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """
    The pictures of an image file, turned upright as `datasets.Image` turns them.

    Args:
        path (`str` or `os.PathLike`): of the file.
        start (`int`, *optional*, defaults to 0): the first to give.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Yields:
        `PIL.Image.Image`: mode `L` of grey ones, else `RGB`.

    Raises:
        `DatasetError`: with the file and page; unreadable, too large, or of more than 8 bits a channel.
    """
    path = Path(path)
    with _open(path) as file:
        numbers = _page_numbers(path, file)
        for index, number in list(enumerate(numbers))[start:]:
            where = f"page {index} " if len(numbers) > 1 else ""
            with _readable(path, where), quiet_pillow():  # page by page: it may not be left open while others run
                page = _page(file, number, max_pixels)
            yield page


class RawPages:
    """
    The pictures of an image file with the values that it holds, for masks: one at a time, upright, in their own mode.

    Args:
        path (`str` or `os.PathLike`): of the file, which stays open.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Raises:
        `DatasetError`: with the file; unreadable, too large, or of a depth that Pillow would lose.
    """

    def __init__(self, path: str | os.PathLike, max_pixels: int = MAX_PIXELS):
        self.path, self.max_pixels = Path(path), max_pixels
        self.file = _open(self.path)
        self.format = self.file.format
        self.numbers = _page_numbers(self.path, self.file)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Image.Image:
        if index >= len(self.numbers):
            raise IndexError(f"{self.path} has no page {index}: it has {len(self.numbers)}")
        with _readable(self.path, f"page {index} "), quiet_pillow():
            _turn_to(self.file, self.numbers[index], self.max_pixels)
            if lost := loses_depth(self.file):
                raise DatasetError(lost)
            self.file.load()
            return ImageOps.exif_transpose(self.file)


@contextmanager
def _readable(path: Path, where: str) -> Iterator[None]:
    """Say of what goes wrong in which file it does, and where."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{path} cannot be read: {where}{error}") from error
    except Exception as error:
        raise DatasetError(
            f"{path} cannot be read: {where}is unreadable or truncated ({type(error).__name__}: {error})"
        ) from error


def _turn_to(file: Image.Image, number: int, max_pixels: int) -> None:
    file.seek(number)
    if file.width * file.height > max_pixels:
        raise DatasetError(
            f"is too large: {file.width} x {file.height} pixels, the limit is {max_pixels:,}; scale it down"
        )


def _page(file: Image.Image, number: int, max_pixels: int) -> Image.Image:
    _turn_to(file, number, max_pixels)
    lost = loses_depth(file)  # a decoded page no longer says so
    file.load()
    if fault := lost or too_deep(file):
        raise DatasetError(fault)
    return ImageOps.exif_transpose(file).convert("L" if file.mode in ("1", "L", "LA") else "RGB")
