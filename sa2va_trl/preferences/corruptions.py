"""Typical faults of a vessel segmentation, drawn into a mask that is right.

Every function takes a mask of shape `(H, W)`, uint8 {0, 1}, and a `numpy.random.Generator`, and returns a new mask of
the same shape and kind. It is empty or full where the input is; anything else comes back changed. Sizes follow the
width of the vessels, so the faults look alike at every resolution. The catalogue is that of the topology errors in
Topo-R1 (arXiv 2603.13054): broken, missing and spurious connections, and borders that are off.
"""

import numpy as np
from scipy import ndimage
from skimage.draw import line

from ..skeletons import skeleton


_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_TRIES = 20


def broken_branch(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A gap across a vessel, one to three times as long as the vessel is wide."""
    if not _can_change(mask):
        return mask.copy()
    vessels = _Vessels(mask)
    inner = np.flatnonzero(vessels.degree == 2)
    starts = rng.permutation(inner if len(inner) else len(vessels.points))
    before = _count(mask)
    best = None
    for start in starts[:_TRIES]:
        half = max(vessels.radius[start] * rng.uniform(1, 3), 1)
        broken = vessels.without(vessels.stretch(start, half))
        if broken.any() and (best is None or _count(broken) > before):
            best = broken
        if best is not None and _count(best) > before:
            break
    # A spot that any gap would wipe out loses a pixel of its border instead.
    return best if best is not None else _without_one_pixel(mask, rng)


def lost_branches(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some of the branches that end freely are lost, thin ones first; of a lone vessel, one end."""
    if not _can_change(mask):
        return mask.copy()
    vessels = _Vessels(mask)
    plane = np.zeros(mask.shape, dtype=bool)
    plane[tuple(vessels.points[vessels.degree <= 2].T)] = True
    labels, count = ndimage.label(plane, _NEIGHBOURS)
    branch = labels[tuple(vessels.points.T)]
    ends = np.unique(branch[(vessels.degree <= 1) & (branch > 0)])
    if count > 1 and len(ends):
        radius = ndimage.mean(vessels.radius, branch, ends)
        ends = ends[np.argsort(radius, kind="stable")]
        lost = ends[: rng.integers(1, max(len(ends) // 2, 1) + 1)]
        remaining = vessels.without(np.isin(branch, lost))
        if remaining.any() and not np.array_equal(remaining, mask):
            return remaining
    tips = np.flatnonzero(vessels.degree <= 1)
    start = rng.choice(tips) if len(tips) else rng.integers(len(vessels.points))
    remaining = vessels.without(vessels.stretch(start, max(len(vessels.points) * rng.uniform(0.2, 0.4), 1)))
    return remaining if remaining.any() else _without_one_pixel(mask, rng)


def bridged_vessels(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A connection that is not there: between two vessels or two turns of one; from a lone spot, a spur."""
    if not _can_change(mask):
        return mask.copy()
    vessels = _Vessels(mask)
    radius = np.median(vessels.radius)
    reach = 10 * radius + 4
    best, most = None, 0
    for _ in range(_TRIES):
        start = vessels.points[rng.integers(len(vessels.points))]
        near = np.flatnonzero(np.hypot(*(vessels.points - start).T) <= reach)
        way = line(*start.tolist(), *vessels.points[rng.choice(near)].tolist())
        # A bridge is a new way through the background, not a thicker vessel.
        new = np.count_nonzero(mask[way] == 0)
        if new > most:
            best, most = way, new
        if most >= 3 * radius:
            break
    if best is None:
        start = vessels.points[rng.integers(len(vessels.points))]
        background = np.argwhere(mask == 0)
        distance = np.hypot(*(background - start).T)
        near = np.flatnonzero(distance <= max(reach, distance.min()))
        best = line(*start.tolist(), *background[rng.choice(near)].tolist())
    plane = np.ones(mask.shape, dtype=bool)
    plane[best] = False
    bridge = ndimage.distance_transform_edt(plane) <= radius - 1
    return (bridge | mask.astype(bool)).astype(np.uint8)


def dilated(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Borders too far out: by one pixel up to the median radius of the vessels, or 2 where that is less."""
    if not _can_change(mask):
        return mask.copy()
    distance = ndimage.distance_transform_edt(mask == 0)
    return (distance <= _shift(mask, rng)).astype(np.uint8)


def eroded(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Borders too far in: by as much as `dilated` moves them out, so that thin vessels vanish."""
    if not _can_change(mask):
        return mask.copy()
    distance = ndimage.distance_transform_edt(mask)
    shift = min(_shift(mask, rng), distance.max() - 1)
    remaining = distance > shift
    return remaining.astype(np.uint8) if shift >= 1 else _without_one_pixel(mask, rng)


CORRUPTIONS = {
    "broken_branch": broken_branch,
    "lost_branches": lost_branches,
    "bridged_vessels": bridged_vessels,
    "dilated": dilated,
    "eroded": eroded,
}


class _Vessels:
    """Centrelines of a mask: their points, the number of neighbours of each and the vessel's radius there."""

    def __init__(self, mask: np.ndarray):
        self.mask = mask
        thinned = skeleton(mask.astype(bool))
        self.points = np.argwhere(thinned)
        place = tuple(self.points.T)
        self.degree = (ndimage.convolve(thinned.astype(int), _NEIGHBOURS.astype(int), mode="constant") - 1)[place]
        self.radius = ndimage.distance_transform_edt(mask)[place]
        # The point of the centreline that each pixel is nearest to.
        number = np.full(mask.shape, -1)
        number[place] = np.arange(len(self.points))
        rows, columns = ndimage.distance_transform_edt(~thinned, return_distances=False, return_indices=True)
        self.nearest = number[rows, columns]

    def stretch(self, start: int, half: float) -> np.ndarray:
        """Which points lie within `half` pixels of a point, along its own vessel."""
        plane = np.zeros(self.mask.shape, dtype=bool)
        near = np.hypot(*(self.points - self.points[start]).T) <= half
        plane[tuple(self.points[near].T)] = True
        labels, _ = ndimage.label(plane, _NEIGHBOURS)
        return labels[tuple(self.points.T)] == labels[tuple(self.points[start])]

    def without(self, points: np.ndarray) -> np.ndarray:
        """The mask without the pixels around some points of its centreline."""
        return (self.mask.astype(bool) & ~points[self.nearest]).astype(np.uint8)


def _can_change(mask: np.ndarray) -> bool:
    return bool(mask.any()) and not mask.all()


def _count(mask: np.ndarray) -> int:
    return ndimage.label(mask, _NEIGHBOURS)[1]


def _shift(mask: np.ndarray, rng: np.random.Generator) -> float:
    return rng.uniform(1, max(float(np.median(_Vessels(mask).radius)), 2))


def _without_one_pixel(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    remaining = mask.copy()
    remaining[tuple(rng.choice(np.argwhere(mask)))] = 0
    return remaining
