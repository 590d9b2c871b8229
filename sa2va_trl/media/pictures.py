"""Pictures from files, bytes and arrays: opened with a guard on size, depth and pages, turned upright."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from ..errors import DatasetError


MAX_PIXELS = 100_000_000
_PHOTOMETRIC = 262  # a TIFF's tag: 0 where white is zero
_ORIENTATION = PIL.ExifTags.Base.Orientation
# A page of a TIFF that is a thumbnail of the one before, or its mask (tag 254, bits 0 and 2).
_NEW_SUBFILE_TYPE, _NO_PICTURE = 254, 0b101


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """
    Switch Pillow's own size limit and warnings off, so that `open_image` is the only one to refuse a large image.

    Pillow's limit warns at one size, raises at another, and names neither the file nor both sides. Limit and warning
    filters are global variables: enter this once, outside any threads.
    """
    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")  # e.g. "Corrupt EXIF data": the pixels are what counts
            yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def picture_pages(image: PIL.Image.Image) -> list[int]:
    """
    Which pages of an opened image file are pictures, at least one: the pages of a TIFF but its thumbnails and masks,
    the frames of an animation. Of an MPO it is the photo, which previews or the other eye's view follow.
    """
    if getattr(image, "format", None) == "MPO" or not getattr(image, "is_animated", False):
        return [0]
    if image.format != "TIFF":
        return list(range(image.n_frames))
    place, pixels = image.tell(), None if image.tile else image.im
    numbers = [number for number in range(image.n_frames) if not _page_type(image, number) & _NO_PICTURE]
    image.seek(place)
    if pixels is not None:  # seeking forgets what has been decoded, and what was changed since
        image.im, image.tile = pixels, []
    return numbers or [0]


def _page_type(image: PIL.Image.Image, number: int) -> int:
    image.seek(number)
    return image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)


def page_count(image: PIL.Image.Image) -> int:
    """Number of pictures in an opened image file, see [`picture_pages`]."""
    return len(picture_pages(image))


def pages_fault(image: PIL.Image.Image) -> str | None:
    """What is wrong with an opened image file that is to be one picture, and holds several; else `None`."""
    numbers = picture_pages(image)
    if len(numbers) > 1:
        return (
            f"holds {len(numbers)} pictures: split it into files, one a row, or make them a clip's `images` and "
            "`masks`"
        )
    if numbers != [0]:  # `datasets.Image` reads the first page
        return f"has a thumbnail or mask as its first page, its picture is page {numbers[0]}: save that one alone"
    return None


def loses_depth(image: PIL.Image.Image) -> str | None:
    """How Pillow would lose depth without a word in decoding an opened file; else `None`."""
    for codec, _, _, args in getattr(image, "tile", ()):
        args = args if isinstance(args, tuple) else (args,)
        deep = any(isinstance(arg, str) and ";16" in arg for arg in args)
        deep = deep or (codec.startswith("ppm") and isinstance(args[-1], int) and args[-1] > 255)
        if deep and not image.mode.startswith(("I", "F")):
            return (
                "has 16 bits in each of several channels, of which only the upper 8 can be read: save it with 8 bits "
                "(a mask as grey, 0 and 255)"
            )
    if getattr(image, "format", None) == "TIFF" and image.mode.startswith("I") and image.tag_v2.get(_PHOTOMETRIC) == 0:
        return "is a TIFF of more than 8 bits in which white is zero, which Pillow reads inverted: save it as PNG"
    return None


def _scrambled(image: PIL.Image.Image) -> str | None:
    # Pillow (13.0) maps such a file into memory row by row in its turned size; `datasets.Image` opens it so as well.
    if getattr(image, "format", None) != "TIFF" or not getattr(image, "filename", ""):
        return None
    orientation = image.tag_v2.get(_ORIENTATION)
    if orientation not in (5, 6, 7, 8) or not any(tile.codec_name == "raw" for tile in image.tile):
        return None
    return (
        f"is an uncompressed TIFF that lies on its side (orientation {orientation}), which Pillow scrambles: save it "
        "upright, or as PNG"
    )


def open_image(source: Any, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """
    Open an image far enough to know its size: the header is read, no pixel is decoded. Use inside `quiet_pillow`.

    Args:
        source (`PIL.Image.Image`, `dict` or path):
            A decoded image, an undecoded `datasets.Image` value (`{"bytes", "path"}`), or the path of a file.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height accepted.

    Returns:
        `PIL.Image.Image`: Opened; `source` itself where it is a decoded image.

    Raises:
        `DatasetError`: With the reason alone; the caller knows the row. It is missing, unreadable or too large, holds
            several pictures, or Pillow would decode it wrongly.
    """
    if isinstance(source, PIL.Image.Image):
        image = source
    else:
        path, data = (source["path"], source["bytes"]) if isinstance(source, dict) else (str(source), None)
        if data is None and path is None:
            raise DatasetError("holds neither bytes nor a path")
        try:
            if data is not None:
                image = PIL.Image.open(io.BytesIO(data))
            elif "://" in path:  # a remote file, or a member of an archive
                with fsspec.open(path, "rb") as file:
                    image = PIL.Image.open(io.BytesIO(file.read()))
            else:
                image = PIL.Image.open(path)
        except FileNotFoundError as error:
            raise DatasetError("file is missing") from error
        except PIL.UnidentifiedImageError as error:  # its own text is the address of a buffer
            raise DatasetError("is unreadable: not an image format that Pillow knows") from error
        except Exception as error:  # a broken header raises nearly anything: struct.error, SyntaxError, ValueError ...
            raise DatasetError(f"is unreadable ({type(error).__name__}: {error})") from error
    width, height = image.size
    fault = None
    if width * height > max_pixels:
        fault = f"is too large: {width} x {height} pixels, the limit is {max_pixels:,}; scale it down"
    else:
        try:
            fault = pages_fault(image) or _scrambled(image) or loses_depth(image)
        except Exception as error:
            fault = f"is unreadable or truncated ({type(error).__name__}: {error})"
    if fault is not None:
        if image is not source:
            image.close()
        raise DatasetError(fault)
    return image


def displayed_size(source: Any, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """
    The size of an image as `datasets.Image` decodes it, from the header where the format allows.

    Args:
        source (`PIL.Image.Image`, `dict` or path): As in `open_image`; a decoded image is as its pixels lie.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): The largest width x height accepted.

    Returns:
        `tuple[int, int]`: (width, height) in pixels.

    Raises:
        `DatasetError`: As `open_image`.
    """
    image = open_image(source, max_pixels)
    if image is source:
        return image.size
    with image:
        try:
            # Pillow turns a TIFF itself, and has swapped its sides.
            turned = image.format != "TIFF" and _may_turn(image) and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        except Exception as error:
            raise DatasetError(f"is unreadable ({type(error).__name__}: {error})") from error
        return image.size[::-1] if turned else image.size


def _may_turn(image: PIL.Image.Image) -> bool:
    """Of a PNG, whether it holds what may say so at all: behind the pixels, Pillow would decode those to find it."""
    if image.format != "PNG" or "exif" in image.info:
        return True
    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(place)
    return any(name in data for name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))


def too_deep(image: PIL.Image.Image) -> str | None:
    """
    What is wrong with an image that a conversion to RGB would clip (more than 8 bits a channel) or cannot convert;
    else `None`.
    """
    if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        return None
    if image.mode.startswith(("I", "F")):
        return f"has more than 8 bits a channel (mode {image.mode}), which would be clipped: window it to 8 bits first"
    return f"has mode {image.mode}, which is not read: convert it to RGB first"


def decode_image(source: Any, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """
    Decode an image in full, turned upright as `datasets.Image` turns it.

    Args:
        source (`PIL.Image.Image`, `dict` or path): As in `open_image`.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): The largest width x height accepted.

    Returns:
        `PIL.Image.Image`: In its own mode.

    Raises:
        `DatasetError`: As `open_image`, or damaged.
    """
    image = open_image(source, max_pixels)
    try:
        image.load()
        return PIL.ImageOps.exif_transpose(image)
    except Exception as error:
        raise DatasetError(f"is unreadable or truncated ({type(error).__name__}: {error})") from error


def file_of(value: Any) -> str | None:
    """The path of an undecoded `datasets.Image` value, where it has one."""
    return value.get("path") if isinstance(value, dict) else None


def picture_source(value: Any) -> Any:
    """
    What `open_image` takes, of an image or mask in any form that a row, a transform or a stream may hold.

    Args:
        value: what `open_image` takes, bytes of a file, or an array (nested lists, a tensor) of shape `(H, W)`,
            `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)`, bool or whole numbers in [0, 255].

    Returns:
        `PIL.Image.Image`, `dict` or path; an array becomes a picture of 8 bits a channel, True 255.

    Raises:
        `DatasetError`: With the reason alone: an array of another shape, type or range, or no image at all.
    """
    if isinstance(value, PIL.Image.Image | dict | str | os.PathLike):
        return value
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    try:
        array = np.asarray(value)
    except Exception as error:  # lists of several lengths, a tensor that is not on the CPU ...
        raise DatasetError(f"is a {type(value).__name__}, not an image ({error})") from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size or not (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)):
        raise DatasetError(
            f"is an array of shape {array.shape}; expected (H, W) or (H, W, 3): move the channels to the end"
        )
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise DatasetError(
            f"is an array of {array.dtype} from {array.min()} to {array.max()}; expected bool or whole numbers in "
            "[0, 255]"
        )
    return PIL.Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def read_image(value: Any, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """
    An image of a row in any form that it may have, decoded.

    Args:
        value: as in `picture_source`.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): The largest width x height accepted.

    Returns:
        `PIL.Image.Image`: In its own mode; turned upright, unless it came decoded.

    Raises:
        `DatasetError`: As `picture_source` and `open_image`, or damaged.
    """
    value = picture_source(value)
    if not isinstance(value, PIL.Image.Image):
        return decode_image(value, max_pixels)
    # Whoever decoded it has turned it the way that its masks lie.
    open_image(value, max_pixels)
    try:
        value.load()
    except Exception as error:
        raise DatasetError(f"is unreadable or truncated ({type(error).__name__}: {error})") from error
    return value
