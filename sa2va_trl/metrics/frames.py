"""What is measured of one frame and its mask: contrast, thickness, motion."""

import math

import numpy as np
from scipy import ndimage

from ..skeletons import skeleton


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
        values["thickness"] = float(2 * depth[skeleton(mask)].mean())
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
