"""
cIoU and gIoU of referring expressions, one mask an expression.

An expression may have no target (gRefCOCO: Liu et al., GRES, CVPR 2023, arXiv 2306.00968). Its mask is empty then, and
so should the prediction be: its IoU is 1 if it is, else 0, and what was invented counts in the union of cIoU.
"""

from collections.abc import Iterable

import numpy as np

from .segmentation import Counts, iou


def cumulative_iou(counts: Iterable[Counts]) -> float:
    """
    cIoU (oIoU in older papers): the intersections of all expressions over their unions. Large objects weigh more.

    Args:
        counts (iterable of `Counts`): of each expression, from [`~metrics.confusion_counts`].

    Returns:
        `float` in [0, 1]: 1 where nothing is there and nothing was found in any.

    Raises:
        `ValueError`: there are none.
    """
    return float(iou(Counts(*np.sum(_listed(counts), axis=0))))


def generalized_iou(counts: Iterable[Counts]) -> float:
    """
    gIoU (mIoU where every expression has a target): the mean of the IoUs of all expressions. Each weighs the same.

    Args:
        counts (iterable of `Counts`): of each expression, from [`~metrics.confusion_counts`].

    Returns:
        `float` in [0, 1].

    Raises:
        `ValueError`: there are none.

    Example:

    ```python
    >>> import numpy as np
    >>> from sa2va_trl.metrics import confusion_counts, cumulative_iou, generalized_iou

    >>> pred, target = np.zeros((2, 3, 8, 8), dtype=bool)  # of three expressions
    >>> pred[0, :4] = target[0, :2] = True  # half of what was found is there
    >>> pred[1, 0, :4] = True  # something was found where nothing is; the third is without a target, too
    >>> counts = [confusion_counts(*pair) for pair in zip(pred, target)]
    >>> generalized_iou(counts), round(cumulative_iou(counts), 4)
    (0.5, 0.4444)

    ```
    """
    return float(np.mean([iou(own) for own in _listed(counts)]))


def _listed(counts: Iterable[Counts]) -> list[Counts]:
    counts = list(counts)
    if not counts:
        raise ValueError("There are no expressions to measure.")
    return counts
