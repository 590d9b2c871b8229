"""
J and F, the measures of video object segmentation: how a track of masks lies on its truth, frame by frame.

As DAVIS computes them (Perazzi et al., CVPR 2016, section 4.1; Pont-Tuset et al., arXiv 1704.00675), which the
evaluations of referring sets have taken over: MeViS, Ref-YouTube-VOS and Ref-DAVIS17. Of two empty masks both are 1.
"""

from typing import NamedTuple

import numpy as np

from .pair import nearest
from .segmentation import check_masks, confusion_counts, iou


#: How far a contour may lie beside the other one, as a share of the image's diagonal.
TOLERANCE = 0.008


class TrackScores(NamedTuple):
    """
    The measures of one track.

    Args:
        j, f (`float`): means over frames, in [0, 1].
        j_frames, f_frames (`np.ndarray` of shape `(frames,)`): of each frame that counts.
    """

    j: float
    f: float
    j_frames: np.ndarray
    f_frames: np.ndarray

    @property
    def j_and_f(self) -> float:
        """J&F, the mean of both."""
        return (self.j + self.f) / 2


def region_similarity(pred: np.ndarray, target: np.ndarray) -> float:
    """
    J of one frame: intersection over union.

    Args:
        pred, target (`np.ndarray` of shape `(H, W)`): `bool` or numbers 0 and 1.

    Returns:
        `float` in [0, 1]: 1 of two empty masks, 0 if only one is.

    Raises:
        `ValueError`: the shapes differ, there are no pixels, or a value is neither 0 nor 1.
    """
    return float(iou(confusion_counts(pred, target)))


def contour_pixels(mask: np.ndarray) -> np.ndarray:
    """
    The contour of a mask, one pixel wide: where it differs from the pixel to the right, below, or to the right and
    below (`seg2bmap` of the Berkeley segmentation benchmark). The border of the image is none: a mask that covers all
    of it has no contour.

    Args:
        mask (`np.ndarray` of shape `(H, W)`): bool.

    Returns:
        `np.ndarray` of shape `(H, W)`: bool.
    """
    found = np.zeros_like(mask)
    found[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    found[:-1] |= mask[:-1] ^ mask[1:]
    found[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return found


def contour_accuracy(pred: np.ndarray, target: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """
    F of one frame: the harmonic mean of the share of the predicted contour that is near the true one, and of the share
    of the true contour that is near the predicted one. Near is within a disk.

    Args:
        pred, target (`np.ndarray` of shape `(H, W)`): `bool` or numbers 0 and 1.
        tolerance (`float`, *optional*, defaults to `TOLERANCE`):
            Radius of the disk: below 1 a share of the image's diagonal, rounded up to whole pixels, else pixels.

    Returns:
        `float` in [0, 1]: 1 where neither mask has a contour, 0 where only one has.

    Raises:
        `ValueError`: as [`region_similarity`], or a tolerance that is not above 0.

    Example:

    ```python
    >>> import numpy as np
    >>> from sa2va_trl.metrics import contour_accuracy, region_similarity

    >>> pred, target = np.zeros((2, 60, 80), dtype=bool)
    >>> target[20:40, 20:40] = pred[20:40, 22:42] = True
    >>> round(region_similarity(pred, target), 4), round(contour_accuracy(pred, target), 4)
    (0.8182, 0.525)

    ```
    """
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be above 0, got {tolerance}.")
    pred, target = check_masks(pred, target, planar=True)
    ours, theirs = (np.argwhere(contour_pixels(mask)) for mask in (pred, target))
    if not (len(ours) and len(theirs)):
        return float(len(ours) == len(theirs))
    radius = tolerance if tolerance >= 1 else np.ceil(tolerance * np.linalg.norm(pred.shape))
    # (Squares of distances are whole numbers: what lies on the edge of the disk is not lost to rounding.)
    precision, recall = (np.mean(nearest(*ways) <= radius + 1e-9) for ways in ((theirs, ours), (ours, theirs)))
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def track_scores(
    preds: np.ndarray, targets: np.ndarray, tolerance: float = TOLERANCE, without_ends: bool = False
) -> TrackScores:
    """
    J, F and J&F of the track of one object, means over its frames.

    Args:
        preds, targets (`np.ndarray` of shape `(frames, H, W)`): `bool` or numbers 0 and 1.
        tolerance (`float`, *optional*, defaults to `TOLERANCE`): as in [`contour_accuracy`].
        without_ends (`bool`, *optional*, defaults to `False`):
            Leave out the first frame and the last, as DAVIS does where the first one is given (semi-supervised). Where
            words say what to segment, all frames count.

    Returns:
        [`TrackScores`]

    Raises:
        `ValueError`: the shapes differ, no frame counts, or as [`region_similarity`].
    """
    if np.shape(preds) != np.shape(targets) or np.ndim(preds) != 3:
        raise ValueError(
            f"`preds` and `targets` must have the same shape (frames, H, W), got {np.shape(preds)} and "
            f"{np.shape(targets)}."
        )
    own = slice(1, -1) if without_ends else slice(None)
    pairs = list(zip(preds[own], targets[own], strict=True))
    if not pairs:
        raise ValueError(f"No frame counts of the {len(preds)} of the track.")
    j = np.array([region_similarity(*pair) for pair in pairs])
    f = np.array([contour_accuracy(*pair, tolerance) for pair in pairs])
    return TrackScores(float(j.mean()), float(f.mean()), j, f)
