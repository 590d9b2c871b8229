"""Polygons that rasterise back to the mask that they are made of."""

import math

import numpy as np
from skimage.measure import find_contours


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """
    A polygon for each connected part of a mask, such that [`~data.masks.polygons_to_mask`] of them is the mask.

    Outlines lead from the middle of a pixel's edge to the next (marching squares). A hole is reached by a line along
    the edges, through the object, there and back, so that a part with holes is one ring. Then points are left out, one
    by one, as long as the triangle of a point and its neighbours holds no pixel's centre: what lies inside by the
    even-odd rule changes within this triangle alone.

    Args:
        mask (`np.ndarray` of shape `(height, width)` and type `bool`): pixels that only touch at a corner are apart.

    Returns:
        `list[np.ndarray]` of shape `(points, 2)`, x and y in pixels, multiples of 0.5; the last point leads to the
        first.

    Example:

    ```python
    >>> import numpy as np
    >>> from sa2va_trl.data.export.outlines import outlines

    >>> [sorted(ring.tolist()) for ring in outlines(np.array([[True]]))]
    [[[0.0, 0.5], [0.5, 0.0], [0.5, 1.0], [1.0, 0.5]]]

    ```
    """
    padded = np.pad(mask, 1)
    # Twice x and y of the picture, whole numbers, of (row, column) of the padded one, where centres are whole.
    loops = [
        list(map(tuple, np.rint(2 * contour[:-1, ::-1] - 1).astype(int).tolist()))
        for contour in find_contours(padded.astype(np.uint8), 0.5, fully_connected="low")
    ]
    return [_simplified(np.array(ring) / 2) for ring in _joined(loops, padded)]


def _joined(loops: list[list[tuple[int, int]]], padded: np.ndarray) -> list[list[tuple[int, int]]]:
    """The outlines of parts, with those of their holes in them."""
    holes = {number: loop for number, loop in enumerate(loops) if _area(loop) < 0}
    part_of = {number: number for number in range(len(loops))}
    loop_at = {point: number for number, loop in enumerate(loops) for point in loop}
    # A hole is left at the left edge of its leftmost pixel, the upper one. From the upper end of this edge a line
    # leads to the left, with object above and below, until one of the two pixels on its left is none. That is where
    # another outline of this part passes by. It reaches further to the left, so it is joined already.
    for number, loop in sorted(holes.items(), key=lambda one: min(one[1])):
        x, y = start = min(loop)  # (x is even: of a vertical edge)
        column, row = x // 2, (y + 1) // 2  # of the pixel on its left, padded
        while padded[row - 1, column] and padded[row, column]:
            column -= 1
        end = (2 * column, y if not padded[row, column] else y - 2)
        part = part_of[number] = part_of[loop_at[end]]
        way = [end, (2 * column, y - 1), (x, y - 1)]
        first, at = loop.index(start), loops[part].index(end)
        loops[part][at:at] = [*way, *loop[first:], *loop[:first], start, *way[:0:-1]]
    return [loop for number, loop in enumerate(loops) if number not in holes]


def _area(loop: list[tuple[int, int]]) -> int:
    """With a sign: above 0 where the loop goes around an object."""
    points = np.array(loop)
    following = np.roll(points, -1, axis=0)
    return int((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum())


def _simplified(ring: np.ndarray) -> np.ndarray:
    points = ring.tolist()
    while True:
        number, before = 0, len(points)
        while number < len(points) > 3:
            if _holds_no_centre(points[number - 1], points[number], points[(number + 1) % len(points)]):
                del points[number]
            else:
                number += 1
        if len(points) == before:
            return np.array(points)


def _holds_no_centre(*corners: list[float]) -> bool:
    """Whether no centre of a pixel lies within a triangle or on its edge. (Multiples of 0.5 are exact here.)"""
    (ax, ay), (bx, by), (cx, cy) = corners
    xs = np.arange(math.ceil(min(ax, bx, cx) - 0.5), max(ax, bx, cx)) + 0.5
    ys = (np.arange(math.ceil(min(ay, by, cy) - 0.5), max(ay, by, cy)) + 0.5)[:, None]
    sides = [
        (qx - px) * (ys - py) - (qy - py) * (xs - px)
        for (px, py), (qx, qy) in ((corners[0], corners[1]), (corners[1], corners[2]), (corners[2], corners[0]))
    ]
    low, high = np.minimum(np.minimum(*sides[:2]), sides[2]), np.maximum(np.maximum(*sides[:2]), sides[2])
    return not ((low >= 0) | (high <= 0)).any()


def one_ring(rings: list[np.ndarray]) -> np.ndarray:
    """
    Rings as one, joined by lines that lead there and back (`merge_multi_segment` of Ultralytics' converter of COCO),
    which [`~data.readers.yolo.draw_ring`] takes apart again.

    Args:
        rings (`list[np.ndarray]` of shape `(points, 2)`): from [`outlines`], at least one.

    Returns:
        `np.ndarray` of shape `(points, 2)`.
    """
    # Whoever takes them apart looks for points that come again. So each ring is closed before the next begins, and all
    # lines come from the first point of the first.
    joined, start = rings[0].tolist(), rings[0][0]
    for ring in rings[1:]:
        first = int(np.hypot(*(ring - start).T).argmin())
        joined += [start.tolist(), *ring[first:].tolist(), *ring[: first + 1].tolist()]
    return np.array(joined)
