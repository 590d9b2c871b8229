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


def raw_page(path: str | os.PathLike, index: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    One picture of an image file with the values that it holds, for a mask.

    Args:
        path (`str` or `os.PathLike`): of the file.
        index (`int`): of the picture, from 0.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Returns:
        `PIL.Image.Image`: upright, in its own mode.

    Raises:
        `DatasetError`: with the file; unreadable, too large, or of a depth that Pillow would lose.
    """
    path = Path(path)
    with _open(path) as file:
        numbers = _page_numbers(path, file)
        if index >= len(numbers):
            raise DatasetError(f"{path} has no page {index}: it has {len(numbers)}")
        with _readable(path, f"page {index} "), quiet_pillow():
            _turn_to(file, numbers[index], max_pixels)
            if lost := loses_depth(file):
                raise DatasetError(lost)
            file.load()
            return ImageOps.exif_transpose(file)


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
