"""Regions of a row's image (`regions`): read in any form, and measured on the model's grid."""

from collections.abc import Sequence
from typing import Any

import PIL.Image

from ..errors import DatasetError
from ..media.pictures import MAX_PIXELS, picture_source
from ..models.processing import Sa2VAProcessor
from ..models.regions import LEAST_CELLS, box_mask, is_box
from .masks import decode_mask


def read_region(
    region: Any, size: tuple[int, int], max_pixels: int = MAX_PIXELS, mode: str | None = None
) -> PIL.Image.Image:
    """
    A region of a row as a mask.

    Args:
        region: a box (x0, y0, x1, y1) in pixels, or a mask in any form that a row may hold.
        size (`tuple[int, int]`): (width, height) of the row's image.
        max_pixels, mode: see [`~data.masks.decode_mask`].

    Returns:
        `PIL.Image.Image`: of mode `L`, 0 and 255.

    Raises:
        `DatasetError`: With the reason alone: no box in its image, no mask of the image's size, or nothing in it.
    """
    if not is_box(region):
        mask = decode_mask(picture_source(region), size, max_pixels, mode)
        if mask.getbbox() is None:
            raise DatasetError("is empty")
        return mask
    try:
        mask = box_mask(region, size)
    except (TypeError, ValueError) as error:
        raise DatasetError(str(error)) from error
    if mask.getbbox() is None:
        raise DatasetError(f"is empty: the box {list(region)} holds the centre of no pixel")
    return mask


def region_cells(processor: Sa2VAProcessor, regions: Sequence[PIL.Image.Image]) -> list[int]:
    """
    How many cells of the model's grid each region of an image has.

    Args:
        processor (`Sa2VAProcessor`): of the model.
        regions (`Sequence[PIL.Image.Image]`): from [`read_region`].

    Returns:
        `list[int]`: one a region.

    Raises:
        `DatasetError`: With the reason alone: the model takes no regions, or one has fewer than four cells, with which
            Sa2VA was not trained.
    """
    if not regions:
        return []
    try:
        side = processor.region_side
        cells = processor.region_cells(regions, regions[0].size).sum((1, 2)).tolist()
    except ValueError as error:
        raise DatasetError(str(error).removesuffix(".")) from error
    small = [f"region{number} has {count}" for number, count in enumerate(cells, start=1) if count < LEAST_CELLS]
    if small:
        raise DatasetError(
            f"{', '.join(small)} of the {side} x {side} cells that the model sees of an image, and {LEAST_CELLS} are "
            "the fewest that it is trained with: draw it larger, or leave the row out"
        )
    return cells
