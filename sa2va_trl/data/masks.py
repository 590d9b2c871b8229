"""Masks of rows: from polygons, to PNG, and decoded and judged (by [`~media.masks`], as rewards judge)."""

import io
from typing import Any

import numpy as np
import PIL.Image
from skimage.draw import polygon2mask

from ..errors import DatasetError
from ..media.masks import binary_mask, mask_values  # noqa: F401  (the latter stood here once)
from ..media.pictures import MAX_PIXELS, decode_image, pages_fault, read_image


def encode_mask(mask: np.ndarray | PIL.Image.Image) -> dict[str, Any]:
    """
    A mask as a stored `datasets.Image` value.

    Args:
        mask (`np.ndarray` of shape `(height, width)` and type `bool`, or `PIL.Image.Image`): 0 and 1, or a picture as
            it is to be.

    Returns:
        `dict`: PNG in `bytes`, of an array in mode `L`, values 0 and 255; `path` is `None`.
    """
    if isinstance(mask, np.ndarray):
        mask = PIL.Image.fromarray(mask.astype(np.uint8) * 255)
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def polygons_to_mask(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """
    Rasterise the polygons of one object and join them by OR.

    Coordinates are COCO's: continuous, x to the right and y down, the pixel in column c and row r covering [c, c + 1)
    x [r, r + 1). A pixel belongs to the object where its centre (c + 0.5, r + 0.5) lies inside a polygon. (Sa2VA's own
    loader adds the polygons up instead, so that its targets exceed 1 where they overlap.)

    Args:
        polygons (list of list of `float`):
            Each `[x1, y1, x2, y2, ...]`, in pixels. None gives an empty mask.
        size (`tuple[int, int]`):
            (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.
    """
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    for flat in polygons:
        points = np.asarray(flat, dtype=np.float64).reshape(-1, 2)
        # scikit-image has a pixel's centre at whole coordinates, and takes (row, column)
        rows_columns = points[:, ::-1] - 0.5
        # rasterise in the polygon's own box: an object is mostly a small part of the image
        low = np.clip(np.floor(rows_columns.min(axis=0)), 0, None).astype(int)
        high = np.minimum(np.ceil(rows_columns.max(axis=0)).astype(int) + 1, (height, width))
        if (high > low).all():
            box = mask[low[0] : high[0], low[1] : high[1]]
            box |= polygon2mask(box.shape, rows_columns - low)
    return mask


#: In the `info` of a mask that a stream has decoded: what is wrong with it, which its pixels no longer say.
LOST = "sa2va_trl_lost"


def judge_mask(mask: PIL.Image.Image) -> PIL.Image.Image:
    """
    [`~media.masks.binary_mask`] of a picture that has been decoded or opened, with the error of data.

    Args:
        mask (`PIL.Image.Image`): before any conversion.

    Returns:
        `PIL.Image.Image`: Mode `L`, values 0 and 255.

    Raises:
        `DatasetError`: With the reason alone: it holds several pictures, or is no mask.
    """
    if fault := pages_fault(mask):
        raise DatasetError(fault)
    try:
        return binary_mask(mask)
    except ValueError as error:
        raise DatasetError(str(error)) from error


def conversion_fault(decoded: PIL.Image.Image, mask: PIL.Image.Image | None, mode: str | None) -> str | None:
    """
    What is wrong where `datasets.Image(mode=...)` makes another mask of a picture than its raw pixels say.

    Args:
        decoded (`PIL.Image.Image`): before the conversion.
        mask (`PIL.Image.Image` or `None`): what its raw pixels say, where they are a mask.
        mode (`str` or `None`): that it is converted to.

    Returns:
        `str`, or `None` where nothing is wrong.
    """
    if mode is None or mode == decoded.mode or (mode == "L" and decoded.mode == "1"):
        return None
    try:
        if mask is not None and binary_mask(decoded.convert(mode)).tobytes() == mask.tobytes():
            return None
    except ValueError:
        pass
    return (
        f"would be read wrongly: its column is Image(mode={mode!r}), which converts it (mode {decoded.mode}) unseen; "
        "cast the column: `mask` to datasets.Image(), `masks` to datasets.List(datasets.Image())"
    )


def decode_mask(
    source: Any, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS, mode: str | None = None
) -> PIL.Image.Image:
    """
    Decode a mask and check it.

    Args:
        source (`PIL.Image.Image`, `dict` or path):
            As in `open_image`.
        size (`tuple[int, int]`, *optional*):
            (width, height) of the image that the mask belongs to.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height accepted.
        mode (`str`, *optional*):
            Of the dataset's `datasets.Image` feature, which converts to it when a row is read.

    Returns:
        `PIL.Image.Image`: Mode `L`, values 0 and 255.

    Raises:
        `DatasetError`: If it is unreadable, holds several pictures, is of another size than the image, is no mask by
            [`~media.masks.binary_mask`], or becomes another one by the conversion to `mode`. All reasons that apply
            are in the one message.
    """
    # As with an image: whoever has decoded it has turned it.
    decoded = (
        read_image(source, max_pixels) if isinstance(source, PIL.Image.Image) else decode_image(source, max_pixels)
    )
    reasons, mask = [], None
    if fault := decoded.info.get(LOST):
        raise DatasetError(fault)
    if size is not None and decoded.size != size:
        reasons.append(f"is {decoded.width} x {decoded.height}, its image {size[0]} x {size[1]} (width x height)")
    try:
        mask = judge_mask(decoded)
    except DatasetError as error:
        reasons.append(str(error))
    else:
        if reason := conversion_fault(decoded, mask, mode):
            reasons.append(reason)
    if reasons:
        raise DatasetError(" and ".join(reasons))
    return mask
