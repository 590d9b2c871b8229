"""
Regions of an image that a text speaks of (`<vp>`): the clause that announces them, and the cells that they feed.

InternVL's alone. A region is drawn on the grid of one tile's tokens, and the features of its cells are fed a second
time, behind those of the image's last tile, which shows the whole image.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import nn

from ..media.masks import binary_mask
from ..media.pictures import picture_source


REGION_START, REGION_END = "<vp>", "</vp>"
#: Cells of a region that Sa2VA was trained with, at least; its training passes over samples with smaller ones.
LEAST_CELLS = 4


def is_box(region: Any) -> bool:
    """Whether a region is given as a box: a flat sequence of numbers (four, if it is a good one)."""
    if isinstance(region, (np.ndarray, torch.Tensor)):
        return region.ndim == 1
    return isinstance(region, (list, tuple)) and all(isinstance(value, Real) for value in region)


def box_mask(box: Sequence[float], size: tuple[int, int]) -> PIL.Image.Image:
    """
    A box as a mask. A pixel belongs to it where its centre lies inside.

    Args:
        box (`Sequence[float]`): (x0, y0, x1, y1) in pixels, x to the right and y down, from the image's corner.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `PIL.Image.Image`: of mode `L`, 0 and 255.

    Raises:
        `ValueError`: With the reason alone: not four finite numbers, in another order, or beyond the image.

    Example:

        ```python
        >>> from sa2va_trl.models.regions import box_mask

        >>> box_mask((2, 0, 4, 1), size=(4, 2)).tobytes().hex()
        '0000ffff00000000'

        ```
    """
    values = [float(value) for value in box]
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ValueError(f"is not a box of four numbers (x0, y0, x1, y1): {values}")
    x0, y0, x1, y1 = values
    width, height = size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"is the box {values}; (x0, y0, x1, y1) must be in order and inside its image of {width} x {height} "
            "(width x height)"
        )
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside = ((y0 <= rows) & (rows < y1))[:, None] & ((x0 <= columns) & (columns < x1))
    return PIL.Image.fromarray(inside.astype(np.uint8) * 255)


def region_mask(region: Any, size: tuple[int, int]) -> PIL.Image.Image:
    """
    A region as a mask, in whatever form it is given.

    Args:
        region: a box (see [`box_mask`]), a mask as a PIL image, or as an array or tensor of shape `(H, W)`, bool or
            of whole numbers (0 and 1, or 0 and 255).
        size (`tuple[int, int]`): (width, height) of its image.

    Returns:
        `PIL.Image.Image`: of mode `L`, 0 and 255.

    Raises:
        `ValueError`: With the reason alone: neither a box nor a mask, or a mask of another size.
    """
    if is_box(region):
        return box_mask(region, size)
    if not isinstance(region, (PIL.Image.Image, np.ndarray, torch.Tensor, list, tuple)):
        raise ValueError(f"is a {type(region).__name__}, neither a mask nor a box (x0, y0, x1, y1)")
    picture = picture_source(region.cpu() if isinstance(region, torch.Tensor) else region)
    if picture.size != size:
        found, own = (f"{width} x {height}" for width, height in (picture.size, size))
        raise ValueError(f"is {found}, its image {own} (width x height)")
    return binary_mask(picture)


def region_cells(mask: PIL.Image.Image, side: int) -> torch.Tensor:
    """
    The cells of a region, by the nearest pixel, as Sa2VA draws them.

    Args:
        mask (`PIL.Image.Image`): of mode `L`, from [`region_mask`].
        side (`int`): of the grid: 16 in published models.

    Returns:
        `torch.Tensor` of shape `(side, side)`, bool.
    """
    pixels = torch.from_numpy(np.array(mask))[None, None]
    return F.interpolate(pixels, size=(side, side), mode="nearest")[0, 0] > 0


def image_regions(regions: Sequence[Any], size: tuple[int, int], side: int) -> torch.Tensor:
    """
    The cells of all regions of an image.

    Args:
        regions (`Sequence`): masks and boxes, see [`region_mask`].
        size (`tuple[int, int]`): (width, height) of the image.
        side (`int`): of the grid.

    Returns:
        `torch.Tensor` of shape `(regions, side, side)`, bool.

    Raises:
        `ValueError`: no list, such as a mask or a box by itself; or naming the region (region1 is the first) that
            cannot be read, is empty, or holds no cell.
    """
    if not _are_regions(regions):
        raise ValueError(
            "The regions of an image must be a list of masks and boxes, such as [(x0, y0, x1, y1)] for one box; got "
            f"{_in_words(regions)}."
        )
    found = torch.zeros((len(regions), side, side), dtype=torch.bool)
    for number, region in enumerate(regions):
        try:
            mask = region_mask(region, size)
        except ValueError as error:
            raise ValueError(f"region{number + 1} {error}.") from error
        found[number] = region_cells(mask, side)
        if not found[number].any():
            fault = (
                f"holds no cell of the {side} x {side} that the model sees of an image: draw it larger"
                if mask.getbbox()
                else "is empty"
            )
            raise ValueError(f"region{number + 1} {fault}.")
    return found


def _are_regions(value: Any) -> bool:
    """Whether a value is several regions, and not one of them or something else."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 3 or (value.ndim == 2 and value.shape[1] == 4)  # masks, or boxes
    return isinstance(value, (list, tuple)) and not (value and is_box(value))


def _in_words(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, (np.ndarray, torch.Tensor)) else ""
    return f"{type(value).__name__}{shape}"


def region_clause(cells: Sequence[int], image_token: str) -> str:
    """
    What stands behind an image's block and announces its regions, word for word as in Sa2VA's training.

    Args:
        cells (`Sequence[int]`): of each region; none, and there is no clause.
        image_token (`str`): `<IMG_CONTEXT>`, one of which stands for each cell.

    Returns:
        `str`: which ends with a newline.
    """
    if not cells:
        return ""
    parts = [f"region{number}{REGION_START}{image_token * n}{REGION_END}" for number, n in enumerate(cells, start=1)]
    return f"\nThere are {len(cells)} part regions in the picture: {', '.join(parts)}.\n"


def with_regions(features: torch.Tensor, region_masks: torch.Tensor, region_counts: torch.LongTensor) -> torch.Tensor:
    """
    The image features that a language model reads, one for each image token of its texts: those of every tile, and
    behind a tile those of its regions' cells.

    Args:
        features (`torch.Tensor` of shape `(tiles, side * side, D)`): of all tiles in order.
        region_masks (`torch.Tensor` of shape `(regions, side, side)`, bool): the cells of every region, in the order
            of their tiles.
        region_counts (`torch.LongTensor` of shape `(tiles,)`): regions of each tile.

    Returns:
        `torch.Tensor` of shape `(image tokens, D)`.

    Raises:
        `ValueError`: shapes that do not go together.

    Example:

        ```python
        >>> import torch
        >>> from sa2va_trl.models.regions import with_regions

        >>> tiles = torch.arange(8.0).reshape(2, 4, 1)  # two tiles of four tokens
        >>> cells = torch.tensor([[[False, True], [False, True]]])  # the right half, of the first tile
        >>> with_regions(tiles, cells, torch.tensor([1, 0]))[:, 0].tolist()
        [0.0, 1.0, 2.0, 3.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0]

        ```
    """
    tiles, length, width = features.shape
    if region_counts.shape != (tiles,) or region_masks.shape[1:].numel() != length:
        raise ValueError(
            f"region_counts of shape {tuple(region_counts.shape)} and region_masks of shape "
            f"{tuple(region_masks.shape)} do not go with {tiles} tiles of {length} tokens."
        )
    counts = region_counts.tolist()
    if sum(counts) != len(region_masks):
        raise ValueError(f"region_counts says {sum(counts)} regions, and there are {len(region_masks)}.")
    # (Places, not features, are put in order: one copy, and gradients of cells that are fed twice add up.)
    places = torch.arange(tiles * length, device=features.device).reshape(tiles, length)
    cells = region_masks.to(features.device).flatten(1)
    order, first = [], 0
    for tile, count in enumerate(counts):
        order += [places[tile], *(places[tile][own] for own in cells[first : first + count])]
        first += count
    return features.reshape(tiles * length, width)[torch.cat(order)]


@contextmanager
def fed_regions(
    projector: nn.Module, region_masks: torch.Tensor | None, region_counts: torch.LongTensor | None
) -> Iterator[None]:
    """
    A context in which what leaves InternVL's projector has the cells of regions in it.

    All that comes behind (`generate` encodes images before its first pass, a forward pass on its way) goes by the
    number of features, and no module runs that would not run without regions, as ZeRO-3 wants it.

    Args:
        projector (`nn.Module`): the VLM's, whose outputs are of shape `(tiles, side * side, D)`.
        region_masks, region_counts (`torch.Tensor`, *optional*): see [`with_regions`]; without them nothing happens.

    Raises:
        `ValueError`: one of the two without the other.
    """
    if (region_masks is None) != (region_counts is None):
        raise ValueError("region_masks and region_counts go together: pass both, or neither.")
    if region_masks is None:
        yield
        return

    def add(module: nn.Module, args: tuple, features: torch.Tensor) -> torch.Tensor:
        # One token an entry: `generate` tells by their lengths which features are of which row, where it has several
        # sequences of each.
        return with_regions(features, region_masks, region_counts)[:, None]

    hook = projector.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
