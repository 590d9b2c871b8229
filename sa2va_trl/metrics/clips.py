"""
How steady the masks of a clip are, without its truth: proxies, since a model that never moves its mask is steady too.

The masks are those of one object, in the order of the frames. Where two frames that follow each other both have none,
nothing has changed.
"""

import math

import numpy as np
from scipy import ndimage
from skimage.registration import optical_flow_ilk

from .segmentation import confusion_counts, iou


def flicker(masks: np.ndarray) -> float:
    """
    Share of the foreground that comes or goes from one frame to the next: the mean of 1 - IoU of neighbouring frames.
    What moves flickers too; [`warped_iou`] allows for motion.

    Args:
        masks (`np.ndarray` of shape `(T, H, W)`): bool.

    Returns:
        `float` in [0, 1], lower is better; NaN of fewer than two frames.
    """
    if len(masks) < 2:
        return math.nan
    pairs = zip(masks, masks[1:], strict=False)
    return 1 - float(np.mean([iou(confusion_counts(after, before)) for before, after in pairs]))


def backward_flows(frames: np.ndarray) -> np.ndarray:
    """
    Where each pixel of a frame was in the frame before, by iterative Lucas-Kanade (Le Besnerais and Champagnat, ICIP
    2005, as `skimage.registration.optical_flow_ilk`). Some tenths of a second a pair of 512 pixels.

    Args:
        frames (`np.ndarray` of shape `(T, H, W)`): grey values, in [0, 1].

    Returns:
        `np.ndarray` of shape `(T - 1, 2, H, W)`: rows and columns to go, in pixels.
    """
    pairs = zip(frames, frames[1:], strict=False)
    flows = [optical_flow_ilk(after, before, dtype=np.float32) for before, after in pairs]
    return np.stack(flows) if flows else np.empty((0, 2, *frames.shape[1:]), dtype=np.float32)


def warped_iou(masks: np.ndarray, flows: np.ndarray) -> float:
    """
    IoU of each mask with the one before it, carried along by the motion of the picture; the mean over the clip.

    Args:
        masks (`np.ndarray` of shape `(T, H, W)`): bool.
        flows (`np.ndarray` of shape `(T - 1, 2, H, W)`): from [`backward_flows`].

    Returns:
        `float` in [0, 1]; NaN of fewer than two frames.

    Raises:
        `ValueError`: not one flow for every two neighbouring frames.
    """
    if len(flows) != max(len(masks) - 1, 0):
        raise ValueError(f"{len(masks)} masks need {max(len(masks) - 1, 0)} flows, got {len(flows)}.")
    if len(masks) < 2:
        return math.nan
    grid = np.indices(masks.shape[1:])
    values = []
    for before, after, flow in zip(masks, masks[1:], flows, strict=False):
        # (The nearest pixel, since a mask has no values in between; what comes from outside the frame is background.)
        carried = ndimage.map_coordinates(before, grid + flow, order=0, mode="constant", cval=0)
        values.append(iou(confusion_counts(after, carried)))
    return float(np.mean(values))
