"""How well masks agree with each other."""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage


def tolerant_dice(a: np.ndarray, b: np.ndarray, tolerance: float) -> float:
    """
    Dice coefficient that forgives a shift: a pixel counts as found if the other mask is within `tolerance` of it.

    Args:
        a, b (`np.ndarray` of shape `(H, W)`): bool.
        tolerance (`float`): in pixels.

    Returns:
        `float` in [0, 1]: with a tolerance of 0 the Dice coefficient; 1 of two empty masks, 0 if only one is.
    """
    return agreement(NearMask.of(a, tolerance), NearMask.of(b, tolerance))


class NearMask(NamedTuple):
    """
    A mask, and what is near it.

    Args:
        mask, near (`np.ndarray` of shape `(H, W)`): bool; `near` where the mask is within some distance.
    """

    mask: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, tolerance: float) -> "NearMask":
        """
        Args:
            mask (`np.ndarray` of shape `(H, W)`): bool.
            tolerance (`float`): in pixels.

        Returns:
            `NearMask`: the mask, and the pixels within the tolerance of it.
        """
        return cls(mask, ndimage.distance_transform_edt(~mask) <= tolerance if mask.any() else mask)


def agreement(a: NearMask, b: NearMask) -> float:
    """[`tolerant_dice`] of masks whose surroundings are known; NaN if they differ in size."""
    if a.mask.shape != b.mask.shape:
        return math.nan
    total = int(a.mask.sum()) + int(b.mask.sum())
    return (int((a.mask & b.near).sum()) + int((b.mask & a.near).sum())) / total if total else 1.0


def dices(masks: np.ndarray, target: np.ndarray) -> np.ndarray:
    """
    Dice coefficients of several masks with one.

    Args:
        masks (`np.ndarray` of shape `(K, H, W)`): bool.
        target (`np.ndarray` of shape `(H, W)`): bool.

    Returns:
        `np.ndarray` of shape `(K,)`, in [0, 1]; 1 where both are empty.
    """
    total = masks.sum((1, 2)) + target.sum()
    return np.where(total > 0, 2 * (masks & target).sum((1, 2)) / np.maximum(total, 1), 1.0)


def spread(masks: np.ndarray) -> float:
    """
    How much candidate masks differ.

    Args:
        masks (`np.ndarray` of shape `(K, H, W)`): bool.

    Returns:
        `float` in [0, 1]: 1 - mean Dice of all pairs; 0 of fewer than two.
    """
    if len(masks) < 2:
        return 0.0
    pairs = [dices(masks[number + 1 :], masks[number]) for number in range(len(masks) - 1)]
    return float(1 - np.concatenate(pairs).mean())
