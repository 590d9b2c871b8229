"""Tapering tubes around centre lines, rasterised: where they are, and what they absorb of a ray through them."""

from collections.abc import Iterator

import numpy as np


REFERENCE_SIZE = 256  # radii of vessels are drawn in pixels of a frame this wide
_REFERENCE_RADIUS = 5.0  # a filled tube of this radius absorbs `contrast`, in log intensity


def _along(values, segments, u):
    """Values at `u` in [0, 1] of the way between the two ends of each segment, shape `(S, h, w)` like `u`."""
    first, last = values[segments].astype(np.float32).T
    return first[:, None, None] + u * (last - first)[:, None, None]


def _reach(points: np.ndarray, radii: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """How far each segment goes from its middle, in pixels."""
    a, b = points[segments[:, 0]], points[segments[:, 1]]
    return np.maximum(radii[segments[:, 0]], radii[segments[:, 1]]) + 0.5 * np.abs(b - a).max(axis=1) + 1


def _padding(reach: np.ndarray) -> int:
    return int(np.ceil(2 * reach.max())) + 2


def _windows(points, radii, segments, size) -> Iterator[tuple[np.ndarray, ...]]:
    """
    The pixels near each segment, in small windows of their own: for groups of segments their numbers, and per window
    whether a pixel's centre lies inside (`hit`), its place in the padded picture, `u` and half the chord, squared.
    """
    a, b = points[segments[:, 0]], points[segments[:, 1]]
    reach = _reach(points, radii, segments)
    pad = _padding(reach)
    width = size + 2 * pad
    in_picture = ((np.minimum(a, b) < size + reach[:, None]) & (np.maximum(a, b) > -1 - reach[:, None])).all(axis=1)

    # Thin and thick segments get windows of different sizes: most of the tree is thin.
    cut = np.median(reach)
    for chosen in (in_picture & (reach <= cut), in_picture & (reach > cut)):
        index = np.flatnonzero(chosen)
        if not index.size:
            continue
        half = int(np.ceil(reach[index].max()))
        side = np.arange(2 * half + 1)
        start, end = a[index].astype(np.float32), b[index].astype(np.float32)
        corner = np.rint(0.5 * (start + end)).astype(np.int64) - half
        corner = np.clip(corner, -pad, size + pad - len(side))
        x = (corner[:, 0, None] + side)[:, None, :]
        y = (corner[:, 1, None] + side)[:, :, None]
        direction = end - start
        squared = np.maximum((direction**2).sum(axis=1), 1e-6)
        direction_x, direction_y = (direction / squared[:, None]).T[:, :, None, None]
        px = x.astype(np.float32) - start[:, 0, None, None]
        py = y.astype(np.float32) - start[:, 1, None, None]
        u = np.clip(px * direction_x + py * direction_y, 0, 1)
        distance = (px - u * direction[:, 0, None, None]) ** 2 + (py - u * direction[:, 1, None, None]) ** 2

        chord = _along(radii, segments[index], u) ** 2 - distance
        hit = chord > 0
        yield index, hit, ((y + pad) * width + (x + pad))[hit], u, chord


def tubes(
    points: np.ndarray,
    radii: np.ndarray,
    segments: np.ndarray,
    size: int,
    weight: np.ndarray | None = None,
    layer: np.ndarray | None = None,
    solid: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Rasterise tapering tubes, each segment in its own small window.

    Args:
        points (`np.ndarray` of shape `(P, 2)`): (x, y) in pixels.
        radii (`np.ndarray` of shape `(P,)`): in pixels.
        segments (`np.ndarray` of shape `(S, 2)`): indices of the two ends.
        size (`int`): width and height of the picture.
        weight (`np.ndarray` of shape `(P,)`, *optional*): factor on the absorption, linear along a segment.
        layer (`np.ndarray` of shape `(S,)`, *optional*): tubes in one layer merge, those of different layers add up.
        solid (`np.ndarray` of shape `(S,)`, bool, *optional*): segments that count for `inside`; all by default.

    Returns:
        `tuple`: `inside` (H, W) bool, whether the pixel's centre lies in a `solid` segment, and `absorption` (H, W)
        float32 relative to a tube of the reference radius.
    """
    scale = size / REFERENCE_SIZE
    weight = np.ones(len(points)) if weight is None else weight
    layer = np.zeros(len(segments), dtype=np.int64) if layer is None else layer
    num_layers = int(layer.max(initial=0)) + 1
    pad = _padding(_reach(points, radii, segments))
    width = size + 2 * pad
    inside = np.zeros(width * width, dtype=bool)
    absorption = np.zeros(num_layers * width * width, dtype=np.float32)
    for index, hit, pixel, u, chord in _windows(points, radii, segments, size):
        inside[pixel if solid is None else pixel[np.broadcast_to(solid[index][:, None, None], hit.shape)[hit]]] = True
        # Beer-Lambert would be linear in the chord; the exponent stands for the display curve of an X-ray system,
        # which lifts small vessels.
        value = _along(weight, segments[index], u)[hit] * (np.sqrt(chord[hit]) / (_REFERENCE_RADIUS * scale)) ** 0.7
        lane = np.broadcast_to(layer[index][:, None, None], hit.shape)[hit]
        np.maximum.at(absorption, lane * width * width + pixel, value)
    crop = slice(pad, pad + size)
    inside = inside.reshape(width, width)[crop, crop]
    return inside, absorption.reshape(num_layers, width, width).sum(axis=0)[crop, crop]


def paint_tubes(
    points: np.ndarray, radii: np.ndarray, segments: np.ndarray, size: int, colour: np.ndarray, count: int
) -> np.ndarray:
    """
    Where the tubes of each colour are, by the same decision for every pixel as [`tubes`].

    Args:
        points, radii, segments, size: as in [`tubes`].
        colour (`np.ndarray` of shape `(S,)`, integers): of each segment in [0, `count`); others are not painted.
        count (`int`): how many colours there are.

    Returns:
        `np.ndarray` of shape `(count, H, W)`, bool.
    """
    chosen = (colour >= 0) & (colour < count)
    if not chosen.any():
        return np.zeros((count, size, size), dtype=bool)
    segments, colour = segments[chosen], colour[chosen]
    pad = _padding(_reach(points, radii, segments))
    width = size + 2 * pad
    painted = np.zeros(count * width * width, dtype=bool)
    for index, hit, pixel, _, _ in _windows(points, radii, segments, size):
        lane = np.broadcast_to(colour[index].astype(np.int64)[:, None, None], hit.shape)[hit]
        painted[lane * width * width + pixel] = True
    crop = slice(pad, pad + size)
    return painted.reshape(count, width, width)[:, crop, crop]
