"""
How far the contours of two masks are apart.

Contours run between pixels, distances are from each piece of one contour to the nearest piece of the other, and
weights are the lengths of the pieces, all as in DeepMind's `surface-distance`
([`~metrics.pair.MeasuredMask.contour`]). What lies outside the image is background. Distances are in pixels, or in the
unit of the pair's spacing.

Distances are better when lower; if a mask is empty there is none, and the result is NaN. Normalised surface Dice is
better when higher and never undefined: 1 of two empty masks, 0 if only one is.
"""

import math

import numpy as np

from .pair import MaskPair


def hd95(pair: MaskPair) -> float:
    """
    95th percentile of the Hausdorff distance: the larger of the distances within which 95 % of one contour are from
    the other.

    Args:
        pair (`MaskPair`): the masks.

    Returns:
        `float`: in the unit of the pair's spacing; NaN if a mask is empty.
    """
    if pair.pred.is_empty or pair.target.is_empty:
        return math.nan
    ways = zip(pair.contour_distances, (pair.pred.contour.lengths, pair.target.contour.lengths), strict=True)
    return max(_quantile(distances, lengths, 0.95) for distances, lengths in ways)


def assd(pair: MaskPair) -> float:
    """
    Average symmetric surface distance: the mean distance along both contours.

    Args:
        pair (`MaskPair`): the masks.

    Returns:
        `float`: in the unit of the pair's spacing; NaN if a mask is empty.
    """
    if pair.pred.is_empty or pair.target.is_empty:
        return math.nan
    return float(np.average(np.concatenate(pair.contour_distances), weights=_lengths(pair)))


def nsd(pair: MaskPair, tolerance: float) -> float:
    """
    Normalised surface Dice (Nikolov et al., JMIR 2021, arXiv 1809.04430): the share of both contours that is within a
    tolerance of the other.

    Args:
        pair (`MaskPair`): the masks.
        tolerance (`float`): 0 or more, in the unit of the pair's spacing.

    Returns:
        `float` in [0, 1]: 1 of two empty masks, 0 if only one is.

    Raises:
        `ValueError`: a tolerance below 0.
    """
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be 0 or more, got {tolerance}.")
    if pair.pred.is_empty or pair.target.is_empty:
        return float(pair.pred.is_empty and pair.target.is_empty)
    return float(np.average(np.concatenate(pair.contour_distances) <= tolerance, weights=_lengths(pair)))


def _lengths(pair: MaskPair) -> np.ndarray:
    return np.concatenate([pair.pred.contour.lengths, pair.target.contour.lengths])


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The smallest value below or at which there is a share of the weights."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(np.searchsorted(reached, share), len(values) - 1)])
