"""
Topology of one predicted mask against one target mask: components, holes, junctions, connections.

The foreground is 8-connected and the background 4-connected (what lies outside the image is background too), so that a
hole is what a foreground curve closes in. Every component and hole counts, whatever its size. All errors are counts,
lower is better, and none is ever undefined: of two empty masks they are 0. What is counted on the skeleton (junctions
and connections) depends on which way thinning goes, and may change by a few when an image is turned.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching
from scipy.spatial import cKDTree
from skimage.measure import label

from ..skeletons import RING, are_ends, crossings, neighbours
from .pair import MaskPair, MeasuredMask
from .segmentation import check_masks


def betti_numbers(mask: MeasuredMask) -> tuple[int, int]:
    """Components and holes of a mask."""
    return int(mask.components[1]), int(mask.backgrounds[1]) - 1


def betti1_error(pair: MaskPair) -> int:
    """Absolute difference of the numbers of holes."""
    return abs(betti_numbers(pair.pred)[1] - betti_numbers(pair.target)[1])


def betti_matching_errors(pair: MaskPair) -> tuple[int, int]:
    """
    Betti matching error (Stucki et al., ICML 2023, arXiv 2211.15272) of two masks, in dimensions 0 and 1: the
    components, and the holes, of either mask that have no partner in the other. Unlike the difference of Betti numbers
    it is not fooled by as many features in other places.

    Partners are found through the union of the masks. Two components are partners if they become one in it: a
    component of the union that holds some of either mask gives one pair. Two holes are partners if a hole of the union
    lies in both. Where holes could be paired in several ways, which the persistence barcodes of binary masks leave to
    the order of pixels, we take the way with most pairs: no order gives a smaller error, and some order gives it.

    Args:
        pair (`MaskPair`): the masks.

    Returns:
        `tuple[int, int]`: of components and of holes.
    """
    labels, count = pair.union.components
    touched = np.zeros((2, count + 1), dtype=bool)
    for row, mask in zip(touched, (pair.pred.mask, pair.target.mask), strict=True):
        row[labels[mask]] = True
    components = int(touched.all(0).sum())

    labels, count = pair.union.backgrounds
    somewhere = np.zeros(count + 1, dtype=np.int64)
    somewhere[labels.ravel()] = np.arange(labels.size)  # a pixel of each label: the last that is written
    holes = somewhere[2:]
    within = np.stack([mask.backgrounds[0].ravel()[holes] for mask in (pair.pred, pair.target)])
    within = within[:, (within > 1).all(0)]
    shape = (pair.pred.backgrounds[1] + 1, pair.target.backgrounds[1] + 1)
    edges = csr_array((np.ones(within.shape[1], dtype=np.int8), tuple(within)), shape=shape)
    partners = int((maximum_bipartite_matching(edges) >= 0).sum())

    ours, theirs = betti_numbers(pair.pred), betti_numbers(pair.target)
    return ours[0] + theirs[0] - 2 * components, ours[1] + theirs[1] - 2 * partners


def betti_matching_error(pair: MaskPair) -> int:
    """Sum of [`betti_matching_errors`] over both dimensions."""
    return sum(betti_matching_errors(pair))


def junction_count(mask: MeasuredMask) -> int:
    """
    Places where a skeleton branches: groups (8-connectivity) of its pixels around which it leaves three times or more
    ([`~skeletons.crossings`]).
    """
    if mask.is_empty:
        return 0
    return _groups(mask.centres[crossings(neighbours(mask.skeleton, mask.centres)) > 2])[1]


def endpoint_count(mask: MeasuredMask) -> int:
    """Ends of a skeleton ([`~skeletons.are_ends`]): a lone pixel has none."""
    return int(are_ends(neighbours(mask.skeleton, mask.centres)).sum())


def skeleton_components(mask: MeasuredMask) -> int:
    """Components of a skeleton (8-connectivity)."""
    return int(label(mask.skeleton, connectivity=2, return_num=True)[1])


def junction_error(pair: MaskPair) -> int:
    """Absolute difference of [`junction_count`]."""
    return abs(junction_count(pair.pred) - junction_count(pair.target))


def missed_connections(pair: MaskPair) -> int:
    """
    Connections of the target that the prediction lacks, in the sense of ContextLoss (Schacht et al., 2025, arXiv
    2506.11134): stretches of the target's skeleton outside the prediction which, filled in, would join parts of the
    prediction that are apart. One that would join `k` parts counts `k - 1` times. The missing end of a vessel joins
    nothing, and neither does a vessel that is missing whole.
    """
    return _missed(pair.pred, pair.target)


def false_connections(pair: MaskPair) -> int:
    """
    [`missed_connections`] the other way round: connections that the prediction makes between parts of the target that
    are apart.
    """
    return _missed(pair.target, pair.pred)


def closed_connections(before: np.ndarray, after: np.ndarray, target: np.ndarray) -> int:
    """
    Connections of the target that an earlier prediction misses and a later one has, the second figure of ContextLoss
    (arXiv 2506.11134): how many of the parts that a gap of the earlier one keeps apart are in one component of the
    later one at their ends.

    Args:
        before, after, target (`np.ndarray` of shape `(H, W)`): masks, `bool` or numbers 0 and 1.

    Returns:
        `int`: at most [`missed_connections`] of the earlier prediction.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`, there are no pixels, or a value is neither 0 nor 1.
    """
    before, target = check_masks(before, target, planar=True)
    after, target = check_masks(after, target, planar=True)
    before, after, target = (MeasuredMask(np.pad(mask, 1)) for mask in (before, after, target))
    gaps, parts, ends = _contacts(before, target)
    later = after.components[0][tuple(ends.T)]
    closed = 0
    for gap in np.unique(gaps):
        here = (gaps == gap) & (later > 0)  # an end that is no longer found is joined to nothing
        names, own = np.unique(parts[here], return_inverse=True)
        others, common = np.unique(later[here], return_inverse=True)
        size = len(names) + len(others)
        links = csr_array((np.ones(len(own)), (own, len(names) + common)), shape=(size, size))
        closed += len(names) - connected_components(links, directed=False, return_labels=False)
    return closed


def _missed(covering: MeasuredMask, whole: MeasuredMask) -> int:
    gaps, parts, _ = _contacts(covering, whole)
    pairs = gaps.astype(np.int64) * (covering.components[1] + 1) + parts
    return len(np.unique(pairs)) - len(np.unique(gaps))


def _contacts(covering: MeasuredMask, whole: MeasuredMask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Where stretches of a mask's skeleton that another mask does not cover touch the skeleton that it does cover: the
    number of the stretch, the covering mask's component there, and row and column of the covered pixel, `(n, 2)`.
    """
    is_covered = covering.mask[tuple(whole.centres.T)]
    numbers = np.full(whole.mask.shape, -1, dtype=np.int32)
    open_ones = whole.centres[~is_covered]
    numbers[tuple(open_ones.T)] = _groups(open_ones)[0]
    covered = whole.centres[is_covered]
    places = covered[:, None] + np.array(RING)
    stretches = numbers[places[..., 0], places[..., 1]]
    pixel, neighbour = np.nonzero(stretches >= 0)
    ends = covered[pixel]
    return stretches[pixel, neighbour], covering.components[0][tuple(ends.T)], ends


def _groups(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Which pixels of a few, `(n, 2)`, hang together (8-connectivity): their groups from 0 on, and how many."""
    if not len(pixels):
        return np.empty(0, dtype=np.int32), 0
    pairs = cKDTree(pixels).query_pairs(1.5, output_type="ndarray")
    links = csr_array((np.ones(len(pairs), dtype=np.int8), tuple(pairs.T)), shape=(len(pixels),) * 2)
    count, labels = connected_components(links, directed=False)
    return labels, count
