"""Segmentation metrics of one predicted mask against one target mask.

Overlap metrics are functions of `Counts`, so that the same formula serves a pair of masks, an array of counts over a
dataset and a tensor of counts gathered during training. All of them lie in [0, 1], higher is better, and none is ever
NaN:

| prediction | target | dice, iou | precision | recall | cldice |
|---|---|---|---|---|---|
| empty | empty | 1 | 1 | 1 | 1 |
| empty | not empty | 0 | 0 | 0 | 0 |
| not empty | empty | 0 | 0 | 0 | 0 |

Where a ratio is 0 / 0 it is 1 if there was nothing to find and nothing was found, and otherwise the worst value, 0, as
Metrics Reloaded (Maier-Hein et al., Nature Methods 2024) advises for undefined values in an aggregate. In particular
the recall of an empty target is 1 only for an empty prediction, so that over-segmenting an image without vessels is
never rewarded. Specificity is 1 if the target has no negative pixel: no false alarm is possible.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from skimage.measure import label

from ..skeletons import skeletons


# What a metric of `Counts` is: a number where the counts are numbers, and of their kind and shape where they are more.
Ratio = float | np.ndarray | torch.Tensor


class Counts(NamedTuple):
    """Pixel counts of a binary confusion matrix: integers, or arrays or tensors of one shape."""

    tp: Any
    fp: Any
    fn: Any
    tn: Any


def confusion_counts(pred: np.ndarray, target: np.ndarray) -> Counts:
    """
    Confusion matrix of two masks.

    Args:
        pred (`np.ndarray`):
            Predicted mask of any shape, `bool` or numbers 0 and 1.
        target (`np.ndarray`, same shape):
            Target mask.

    Returns:
        `Counts` of Python integers.

    Raises:
        `ValueError`: the shapes differ, there are no pixels, or a value is neither 0 nor 1.
    """
    pred, target = check_masks(pred, target)
    tp = int(np.count_nonzero(pred & target))
    fp = int(np.count_nonzero(pred)) - tp
    fn = int(np.count_nonzero(target)) - tp
    return Counts(tp, fp, fn, pred.size - tp - fp - fn)


def dice(counts: Counts) -> Ratio:
    """
    Dice coefficient (F1 score), `2 tp / (2 tp + fp + fn)`; 1 if both masks are empty.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.metrics import confusion_counts, dice

        >>> pred, target = np.zeros((2, 8, 8), dtype=bool)
        >>> target[:4], pred[1:4] = True, True
        >>> round(dice(confusion_counts(pred, target)), 4)
        0.8571

        ```
    """
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, 1.0)


def iou(counts: Counts) -> Ratio:
    """Intersection over union (Jaccard index), `tp / (tp + fp + fn)`; 1 if both masks are empty."""
    return ratio(counts.tp, counts.tp + counts.fp + counts.fn, 1.0)


def precision(counts: Counts) -> Ratio:
    """Positive predictive value, `tp / (tp + fp)`; of an empty prediction 1 if the target is empty too, else 0."""
    return ratio(counts.tp, counts.tp + counts.fp, counts.fn == 0)


def recall(counts: Counts) -> Ratio:
    """Sensitivity, `tp / (tp + fn)`; of an empty target 1 if the prediction is empty too, else 0."""
    return ratio(counts.tp, counts.tp + counts.fn, counts.fp == 0)


def specificity(counts: Counts) -> Ratio:
    """True-negative rate, `tn / (tn + fp)`; 1 if the target has no negative pixel."""
    return ratio(counts.tn, counts.tn + counts.fp, 1.0)


def accuracy(counts: Counts) -> Ratio:
    """Share of the pixels that are right, `(tp + tn) / (tp + fp + fn + tn)`."""
    return ratio(counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn, 1.0)


def segmentation_metrics(pred: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """
    The overlap metrics of one pair of masks.

    Args:
        pred (`np.ndarray`):
            Predicted mask of any shape, `bool` or numbers 0 and 1.
        target (`np.ndarray`, same shape):
            Target mask.

    Returns:
        `dict[str, float]` with the keys `dice`, `iou`, `precision`, `recall`, `specificity` and `accuracy`: all lie in
        [0, 1].

    Raises:
        `ValueError`: the shapes differ, there are no pixels, or a value is neither 0 nor 1.
    """
    counts = confusion_counts(pred, target)
    return {metric.__name__: metric(counts) for metric in (dice, iou, precision, recall, specificity, accuracy)}


def cldice(pred: np.ndarray, target: np.ndarray) -> float:
    """
    Centreline Dice (Shit et al., CVPR 2021, arXiv 2003.07311) on hard skeletons: the harmonic mean of the share of the
    predicted skeleton within the target and the share of the target's skeleton within the prediction. Skeletons are
    thinned to one pixel (Zhang and Suen, 1984, see [`~skeletons.skeleton`]).

    Args:
        pred (`np.ndarray` of shape `(H, W)`):
            Predicted mask, `bool` or numbers 0 and 1.
        target (`np.ndarray` of shape `(H, W)`):
            Target mask.

    Returns:
        `float` in [0, 1]: 1 if both masks are empty, 0 if only one is.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`, there are no pixels, or a value is neither 0 nor 1.
    """
    pred, target = check_masks(pred, target, planar=True)
    return centreline_dice(pred, target, *skeletons(np.stack([pred, target])))


def centreline_dice(
    pred: np.ndarray, target: np.ndarray, pred_skeleton: np.ndarray, target_skeleton: np.ndarray
) -> float:
    """
    [`cldice`] of masks whose skeletons are known.

    Args:
        pred, target, pred_skeleton, target_skeleton (`np.ndarray` of shape `(H, W)`): bool.
    """
    if not pred.any() or not target.any():
        return float(pred.any() == target.any())
    # a mask that is not empty has a skeleton that is not empty, so both means exist
    topology_precision = np.count_nonzero(target & pred_skeleton) / np.count_nonzero(pred_skeleton)
    topology_sensitivity = np.count_nonzero(pred & target_skeleton) / np.count_nonzero(target_skeleton)
    total = topology_precision + topology_sensitivity
    return float(2 * topology_precision * topology_sensitivity / total) if total else 0.0


def betti0_error(pred: np.ndarray, target: np.ndarray) -> int:
    """
    Absolute difference of the numbers of connected components (8-connectivity; every component counts, whatever its
    size).

    Args:
        pred (`np.ndarray` of shape `(H, W)`):
            Predicted mask, `bool` or numbers 0 and 1.
        target (`np.ndarray` of shape `(H, W)`):
            Target mask.

    Returns:
        `int`, 0 or more; lower is better.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`, there are no pixels, or a value is neither 0 nor 1.
    """
    ours, theirs = _components(pred, target)
    return abs(ours - theirs)


def betti0_score(pred: np.ndarray, target: np.ndarray) -> float:
    """
    Ratio of the smaller to the larger number of connected components (8-connectivity): the Betti-0 error as a share of
    the larger number, subtracted from 1.

    Args:
        pred (`np.ndarray` of shape `(H, W)`):
            Predicted mask, `bool` or numbers 0 and 1.
        target (`np.ndarray` of shape `(H, W)`):
            Target mask.

    Returns:
        `float` in [0, 1]: 1 for equal numbers (also of two empty masks), 0 if only one mask is empty.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`, there are no pixels, or a value is neither 0 nor 1.
    """
    ours, theirs = _components(pred, target)
    return min(ours, theirs) / max(ours, theirs) if max(ours, theirs) else 1.0


def _components(pred: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    pred, target = check_masks(pred, target, planar=True)
    return int(label(pred, connectivity=2).max()), int(label(target, connectivity=2).max())


def ratio(numerator: Any, denominator: Any, undefined: Any) -> Ratio:
    """`numerator / denominator`, and `undefined` where the denominator is 0, for scalars, arrays and tensors."""
    if isinstance(denominator, torch.Tensor):
        values = numerator / denominator
        return torch.where(denominator > 0, values, torch.as_tensor(undefined).to(values))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(np.greater(denominator, 0), np.true_divide(numerator, denominator), undefined)
    return values if np.ndim(denominator) else float(values)


def check_masks(pred: np.ndarray, target: np.ndarray, planar: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """
    Two masks as booleans.

    Args:
        pred, target (`np.ndarray`): of one shape, `bool` or numbers 0 and 1.
        planar (`bool`, *optional*, defaults to `False`): the shape must be `(H, W)`.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`, there are no pixels, or a value is neither 0 nor 1.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    shapes = f"`pred` {pred.shape} and `target` {target.shape}"
    if pred.shape != target.shape:
        raise ValueError(f"Shapes of {shapes} differ: compare masks at the same size.")
    if pred.size == 0 or (planar and pred.ndim != 2):
        raise ValueError(f"Expected {'shape (H, W)' if planar else 'masks'} with at least one pixel, got {shapes}.")
    return as_bool(pred, "pred"), as_bool(target, "target")


def as_bool(mask: np.ndarray, name: str) -> np.ndarray:
    """
    A mask as booleans.

    Args:
        mask (`np.ndarray`): of any shape, `bool` or numbers 0 and 1.
        name (`str`): what the message calls it.

    Raises:
        `ValueError`: a value is neither 0 nor 1.
    """
    if mask.dtype == bool:
        # Arrays of Pillow's 1-bit images have bytes of 255, at which `skeletonize` crashes. (As bytes, since comparing
        # booleans to a number takes eight times as long.)
        return mask.view(np.uint8) != 0
    foreground = mask == 1
    if not (foreground | (mask == 0)).all():
        raise ValueError(
            f"`{name}` must hold only 0 and 1, got {mask.dtype} values from {mask.min()} to {mask.max()}: "
            "threshold probabilities first, and divide masks of 0 and 255 by 255."
        )
    return foreground


METRICS = ("dice", "iou", "precision", "recall", "specificity", "accuracy")
