"""Pure functions of masks: metrics, agreement between masks, and what is measured of a frame."""

from .agreement import NearMask, agreement, dices, spread, tolerant_dice
from .frames import measure, motion
from .segmentation import (
    METRICS,
    Counts,
    accuracy,
    betti0_error,
    betti0_score,
    cldice,
    confusion_counts,
    dice,
    iou,
    precision,
    recall,
    segmentation_metrics,
    specificity,
)


#: Columns of scores that improve downwards; [`~evaluation.compare`] turns what it says of them.
LOWER_IS_BETTER: frozenset[str] = frozenset()


__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "Counts",
    "NearMask",
    "accuracy",
    "agreement",
    "betti0_error",
    "betti0_score",
    "cldice",
    "confusion_counts",
    "dice",
    "dices",
    "iou",
    "measure",
    "motion",
    "precision",
    "recall",
    "segmentation_metrics",
    "specificity",
    "spread",
    "tolerant_dice",
]
