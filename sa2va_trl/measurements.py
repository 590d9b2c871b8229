"""Measurements of a frame and of its masks: pure functions of arrays."""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize


def measure(grey: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """
    Simple measurements that may say why a frame is hard.

    Args:
        grey (`np.ndarray` of shape `(H, W)`): in [0, 1].
        mask (`np.ndarray` of shape `(H, W)`): bool.

    Returns:
        `dict[str, float]`; all but `area` are NaN of an empty mask:
            - `contrast`: difference of the mean grey values of the mask and of a ring around it, over the ring's;
            - `area`: share of the picture that the mask covers (vessels that no contrast agent fills are not in it);
            - `sharpness`: variance of the Laplacian over the variance of the grey values, in mask and ring, both after
            a Gaussian of 2 pixels, which spares it most of the noise; contrast alone does not change it;
            - `thickness`: mean diameter along the skeleton, in pixels, from the distance transform;
            - `border_distance`: mean distance of the mask's pixels to the border, over the shorter side.
    """
    values = dict.fromkeys(("contrast", "area", "sharpness", "thickness", "border_distance"), math.nan)
    values["area"] = float(mask.mean())
    if mask.any():
        side = min(mask.shape)
        away = ndimage.distance_transform_edt(~mask)
        near = away <= 1.5 + max(3.0, 0.02 * side)
        ring = near & (away > 1.5)
        if ring.any():
            around = grey[ring].mean()
            values["contrast"] = float(abs(grey[mask].mean() - around) / max(around, 1e-6))
        variation = ndimage.gaussian_filter(grey, 2.0)[near].var()
        values["sharpness"] = float(ndimage.gaussian_laplace(grey, 2.0)[near].var() / max(variation, 1e-12))
        # Padded, or a vessel that is cut off by the border would seem to grow thicker there.
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        values["thickness"] = float(2 * depth[skeletonize(mask)].mean())
        y, x = np.nonzero(mask)
        edge = np.minimum.reduce([y, x, mask.shape[0] - 1 - y, mask.shape[1] - 1 - x])
        values["border_distance"] = float(edge.mean() / side)
    return values


def motion(grey: np.ndarray, previous: np.ndarray) -> float:
    """
    Mean absolute difference of two frames after a Gaussian of 2 pixels, which spares it most of the noise.

    Args:
        grey, previous (`np.ndarray` of shape `(H, W)`): in [0, 1].

    Returns:
        `float` in [0, 1]; NaN if the frames differ in size.
    """
    if grey.shape != previous.shape:
        return math.nan
    return float(np.abs(ndimage.gaussian_filter(grey - previous, 2.0)).mean())


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
