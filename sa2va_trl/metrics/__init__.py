"""Pure functions of masks: metrics, agreement between masks, and what is measured of a frame."""

from .agreement import NearMask, agreement, dices, spread, tolerant_dice
from .boundary import assd, hd95, nsd
from .calibration import Reliability, reliability
from .clips import backward_flows, flicker, warped_iou
from .frames import measure, motion
from .pair import MaskPair, MeasuredMask
from .presence import absence_sensitivity, absence_specificity
from .referring import cumulative_iou, generalized_iou
from .segmentation import (
    METRICS,
    Counts,
    accuracy,
    betti0_error,
    betti0_score,
    centreline_dice,
    cldice,
    confusion_counts,
    dice,
    iou,
    precision,
    recall,
    segmentation_metrics,
    specificity,
)
from .sets import ALL_METRICS, LOWER_IS_BETTER, calibration_metrics, mask_metrics
from .shape import dice_by_width, skeleton_length_error, volumetric_similarity, width_error
from .topology import (
    betti1_error,
    betti_matching_error,
    betti_matching_errors,
    betti_numbers,
    closed_connections,
    endpoint_count,
    false_connections,
    junction_count,
    junction_error,
    missed_connections,
    skeleton_components,
)
from .tracks import TrackScores, contour_accuracy, region_similarity, track_scores


__all__ = [
    "ALL_METRICS",
    "LOWER_IS_BETTER",
    "METRICS",
    "Counts",
    "MaskPair",
    "MeasuredMask",
    "NearMask",
    "Reliability",
    "TrackScores",
    "absence_sensitivity",
    "absence_specificity",
    "accuracy",
    "agreement",
    "assd",
    "backward_flows",
    "betti0_error",
    "betti0_score",
    "betti1_error",
    "betti_matching_error",
    "betti_matching_errors",
    "betti_numbers",
    "calibration_metrics",
    "centreline_dice",
    "cldice",
    "closed_connections",
    "confusion_counts",
    "contour_accuracy",
    "cumulative_iou",
    "dice",
    "dice_by_width",
    "dices",
    "endpoint_count",
    "false_connections",
    "flicker",
    "generalized_iou",
    "hd95",
    "iou",
    "junction_count",
    "junction_error",
    "mask_metrics",
    "measure",
    "missed_connections",
    "motion",
    "nsd",
    "precision",
    "recall",
    "region_similarity",
    "reliability",
    "segmentation_metrics",
    "skeleton_components",
    "skeleton_length_error",
    "specificity",
    "spread",
    "tolerant_dice",
    "track_scores",
    "volumetric_similarity",
    "warped_iou",
    "width_error",
]
