"""Polygons that somebody wrote: judged, and drawn for [`~data.readers.entries.AnnotatedObject`]."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...errors import DatasetError
from ..masks import polygons_to_mask


_TOLERANCE = 1.0  # pixels that a polygon may reach over the image's edge: annotation tools round
_FEW_PIXELS = 4  # up to this side an object may well lie in the first pixel
_OVERSHOOT = 0.1  # beyond 0 and 1, of shares of the image


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number (`true` is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(values: list) -> bool:
    try:  # (millions of them)
        return {*map(type, values)} <= {int, float} and all(map(math.isfinite, values))
    except OverflowError:  # a whole number that no float holds
        return False


def polygon_fault(polygon: Any, size: tuple[int, int] | None = None) -> str | None:
    """
    The first fault of one polygon.

    Args:
        polygon: as it came; it should be `[x1, y1, x2, y2, ...]` in pixels.
        size (`tuple[int, int]`, *optional*): (width, height) of the image, where it is known.

    Returns:
        `str`, or `None` where there is none.
    """
    if not isinstance(polygon, list):
        return f"is not a list of numbers but {polygon!r:.40}"
    if not _are_numbers(polygon):
        for value in polygon:
            if not is_number(value):
                return f"holds {value!r:.40}, which is not a number"
            if not _are_numbers([value]):
                return f"holds {value!r:.40}, which is not finite"
    if len(polygon) % 2:
        return f"is ragged: {len(polygon)} coordinates, an odd number (expected x1, y1, x2, y2, ...)"
    if len(polygon) < 6:
        return f"has {len(polygon) // 2} point(s), a polygon needs at least 3"
    return None if size is None else _reach_fault(polygon, size)


def _reach_fault(polygon: Sequence[float], size: tuple[int, int]) -> str | None:
    for axis, name, limit in ((0, "x", size[0]), (1, "y", size[1])):
        low, high = min(polygon[axis::2]), max(polygon[axis::2])
        if low < -_TOLERANCE or high > limit + _TOLERANCE:
            return (
                f"leaves the image: {name} from {low:g} to {high:g}, the image is {size[0]} x {size[1]} "
                "(width x height); are the coordinates in the pixels of this very file?"
            )
    return None


def shares_fault(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> str | None:
    """
    What is wrong with faultless polygons that say shares of the image where pixels are expected.

    Args:
        polygons (`list[list[float]]`): of one image or object.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `str`, or `None`.
    """
    polygons = [polygon for polygon in polygons if len(polygon)]
    if not polygons or max(size) <= _FEW_PIXELS:
        return None
    if min(map(min, polygons)) < -_OVERSHOOT or max(map(max, polygons)) > 1 + _OVERSHOOT:
        return None
    return (
        f"all coordinates lie in [0, 1], the image is {size[0]} x {size[1]} (width x height): shares of the image? "
        "multiply x by the width and y by the height"
    )


def draw_polygons(polygons: tuple[np.ndarray, ...], size: tuple[int, int]) -> np.ndarray:
    """
    The mask of one object, see [`~data.masks.polygons_to_mask`].

    Args:
        polygons (`tuple` of `np.ndarray` of shape `(2 * points,)`): in pixels; joined by OR.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        `DatasetError`: with the reason alone: one leaves the image.
    """
    for number, polygon in enumerate(polygons):
        if fault := _reach_fault(polygon, size):
            raise DatasetError(f"polygon {number} {fault}")
    return polygons_to_mask(polygons, size)


def polygon_drawing(polygons: Any) -> Callable[[tuple[int, int]], np.ndarray]:
    """
    What draws the polygons of one object.

    Args:
        polygons: as they came; they should be `[[x1, y1, x2, y2, ...], ...]` in pixels.

    Returns:
        A partial [`draw_polygons`].

    Raises:
        `DatasetError`: with the reason alone: there are none, or one has a fault.
    """
    if not isinstance(polygons, list) or not polygons:
        raise DatasetError(f"has no polygons but {polygons!r:.40}")
    for number, polygon in enumerate(polygons):
        if fault := polygon_fault(polygon):
            raise DatasetError(f"polygon {number} {fault}")
    return partial(draw_polygons, tuple(np.asarray(polygon, dtype=np.float64) for polygon in polygons))


def sources_shares_fault(
    draws: Iterable[Callable[[tuple[int, int]], np.ndarray]], size: tuple[int, int]
) -> str | None:
    """
    [`shares_fault`] over all polygons of a source: a single one may well lie in an image's first pixel.

    Args:
        draws (`list[Callable]`): of all objects; those that are no partial [`draw_polygons`] are passed over.
        size (`tuple[int, int]`): (width, height) of one of the images.

    Returns:
        `str`, or `None`.
    """
    return shares_fault([one for d in draws if getattr(d, "func", None) is draw_polygons for one in d.args[0]], size)


def draw_together(parts: tuple[Callable[[tuple[int, int]], np.ndarray], ...], size: tuple[int, int]) -> np.ndarray:
    """
    The mask of an object of several parts, joined by OR.

    Args:
        parts (`tuple[Callable]`): each draws one, as [`~data.readers.entries.AnnotatedObject`] says.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.
    """
    mask = np.zeros(size[::-1], dtype=bool)
    for draw in parts:
        mask |= draw(size)
    return mask


def point_pairs(points: Any) -> list[float]:
    """
    A polygon as one flat list, of `[[x1, y1], [x2, y2], ...]`.

    Args:
        points: as they came.

    Returns:
        `list`, of what stood there: see [`polygon_fault`].

    Raises:
        `DatasetError`: with the reason alone: it is no list of pairs.
    """
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise DatasetError(f"`points` must be a list of [x, y], not {points!r:.40}")
    return [value for point in points for value in point]
