"""
Size, length and width of a predicted mask against its target's, and Dice of thin and thick vessels apart.

| prediction | target | volumetric similarity | skeleton length error | width error | Dice by width |
|---|---|---|---|---|---|
| empty | empty | 1 | 0 | NaN | NaN |
| empty | not empty | 0 | 1 | NaN | 0, NaN for widths that the target lacks |
| not empty | empty | 0 | NaN | NaN | NaN |
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .pair import MaskPair
from .segmentation import Counts, Ratio, ratio


def volumetric_similarity(counts: Counts) -> Ratio:
    """
    How alike the areas are, wherever they lie: `1 - |fn - fp| / (2 tp + fp + fn)` (Taha and Hanbury, BMC Medical
    Imaging 2015); in [0, 1], 1 if both masks are empty.
    """
    total = 2 * counts.tp + counts.fp + counts.fn
    return ratio(total - abs(counts.fn - counts.fp), total, 1.0)


def skeleton_length_error(pair: MaskPair) -> float:
    """
    Difference of the lengths of the skeletons, in pixels that they count, over that of the target's.

    Args:
        pair (`MaskPair`): the masks.

    Returns:
        `float`, 0 or more, lower is better: 0 if both masks are empty, NaN if only the target is.
    """
    ours, theirs = len(pair.pred.centres), len(pair.target.centres)
    if not theirs:
        return math.nan if ours else 0.0
    return abs(ours - theirs) / theirs


def width_error(pair: MaskPair) -> float:
    """
    Absolute difference of the mean widths along either skeleton.

    Args:
        pair (`MaskPair`): the masks.

    Returns:
        `float`, 0 or more, lower is better, in pixels or the unit of the pair's spacing; NaN if a mask is empty.
    """
    if pair.pred.is_empty or pair.target.is_empty:
        return math.nan
    return float(abs(pair.pred.widths.mean() - pair.target.widths.mean()))


def dice_by_width(pair: MaskPair, edges: Sequence[float] = (4.0, 10.0)) -> list[float]:
    """
    Dice of thin, medium and thick vessels apart. A pixel, predicted or not, belongs to the width that the target has
    at the nearest pixel of its skeleton; a mask that has grown around a thin vessel is an error there.

    Args:
        pair (`MaskPair`): the masks.
        edges (`Sequence[float]`, *optional*, defaults to `(4.0, 10.0)`):
            Widths, in pixels or the unit of the pair's spacing, up to which a vessel is thin, medium and so on. The
            quartiles of coronary arteries in angiograms of 512 pixels are about 4 and 10.

    Returns:
        `list[float]`: in [0, 1], one more than there are edges; NaN for widths that the target has nowhere.

    Raises:
        `ValueError`: edges that do not rise.
    """
    if not all(low < high for low, high in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"`edges` must rise, got {list(edges)}.")
    if pair.target.is_empty:
        return [math.nan] * (len(edges) + 1)
    target = pair.target
    kinds = np.zeros(target.mask.shape, dtype=np.int64)
    kinds[target.skeleton] = np.searchsorted(edges, target.widths)
    near = ndimage.distance_transform_edt(
        ~target.skeleton, target.spacing, return_distances=False, return_indices=True
    )
    pixels = pair.union.mask
    kind = kinds[tuple(near[:, pixels])]
    ours, theirs = pair.pred.mask[pixels], target.mask[pixels]
    both, total, real = (np.bincount(kind, v, len(edges) + 1) for v in (ours & theirs, ours * 1 + theirs, theirs))
    return [float(2 * b / t) if r else math.nan for b, t, r in zip(both, total, real, strict=True)]
