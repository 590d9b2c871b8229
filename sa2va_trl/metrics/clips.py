"""
How steady the masks of a clip are, without its truth: proxies, since a model that never moves its mask is steady too.

The masks are those of one object, in the order of the frames. Where two frames that follow each other both have none,
nothing has changed.
"""

import math

import numpy as np

from ..motion import backward_flows, carried  # noqa: F401  (flows are found beside what is measured with them)
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
    values = []
    for before, after, flow in zip(masks, masks[1:], flows, strict=False):
        # (What comes from outside the frame is background.)
        values.append(iou(confusion_counts(after, carried(before, flow, order=0, outside=0))))
    return float(np.mean(values))
