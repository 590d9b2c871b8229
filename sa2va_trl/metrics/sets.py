"""The metrics of one predicted mask that go by a name, as columns of a table."""

import math

import numpy as np

from .boundary import assd, hd95, nsd
from .calibration import reliability
from .pair import MaskPair, Spacing
from .presence import absence_sensitivity, absence_specificity
from .segmentation import (
    METRICS,
    accuracy,
    centreline_dice,
    dice,
    iou,
    precision,
    recall,
    specificity,
)
from .shape import dice_by_width, skeleton_length_error, volumetric_similarity, width_error
from .topology import (
    betti1_error,
    betti_matching_error,
    betti_numbers,
    false_connections,
    junction_error,
    missed_connections,
)


OVERLAP = (dice, iou, precision, recall, specificity, accuracy)
#: What each set of metrics adds to `METRICS`, the overlap.
TOPOLOGY_METRICS = (
    "cldice",
    "betti0_error",
    "betti1_error",
    "betti_matching_error",
    "junction_error",
    "missed_connections",
    "false_connections",
)
BOUNDARY_METRICS = ("hd95", "assd", "nsd_1", "nsd_2")
SHAPE_METRICS = (
    "volumetric_similarity",
    "skeleton_length_error",
    "width_error",
    "dice_thin",
    "dice_medium",
    "dice_thick",
)
PRESENCE_METRICS = ("absence_sensitivity", "absence_specificity")
CALIBRATION_METRICS = ("ece", "brier")
CLIP_METRICS = ("flicker", "warped_iou")
#: Every metric that a column may be named after, in the order of tables.
ALL_METRICS = (
    *METRICS,
    *TOPOLOGY_METRICS,
    *BOUNDARY_METRICS,
    *SHAPE_METRICS,
    *PRESENCE_METRICS,
    *CALIBRATION_METRICS,
    *CLIP_METRICS,
)
#: What protocols of referring sets measure of a row; the first says how good it is. (Of `refcoco`, the presence
#: metrics are the T-acc and N-acc of gRefCOCO.)
PROTOCOL_METRICS = {
    "rvos": ("j_and_f", "j", "f"),
    "refcoco": ("iou", "intersection", "union", *PRESENCE_METRICS),
}
#: Of these a lower value is the better one.
LOWER_IS_BETTER = frozenset(
    {
        *(name for name in TOPOLOGY_METRICS if name != "cldice"),
        "hd95",
        "assd",
        "skeleton_length_error",
        "width_error",
        "ece",
        "brier",
        "flicker",
    }
)


# Of these a value has no largest one.
_UNBOUNDED = {
    *(name for name in TOPOLOGY_METRICS if name != "cldice"),
    *("hd95", "assd", "skeleton_length_error", "width_error"),
}


def metric_bounds(name: str) -> tuple[float, float] | None:
    """The least and the largest value that a metric of `ALL_METRICS`, J or F can have; `None` of another column."""
    if name not in (*ALL_METRICS, *PROTOCOL_METRICS["rvos"]):
        return None
    return 0.0, math.inf if name in _UNBOUNDED else 1.0


def topology_metrics(pair: MaskPair) -> dict[str, float]:
    """The metrics of `TOPOLOGY_METRICS`, by name."""
    pred, target = pair.pred, pair.target
    return {
        "cldice": centreline_dice(pred.mask, target.mask, pred.skeleton, target.skeleton),
        "betti0_error": abs(betti_numbers(pred)[0] - betti_numbers(target)[0]),
        "betti1_error": betti1_error(pair),
        "betti_matching_error": betti_matching_error(pair),
        "junction_error": junction_error(pair),
        "missed_connections": missed_connections(pair),
        "false_connections": false_connections(pair),
    }


def mask_metrics(pred: np.ndarray, target: np.ndarray, spacing: Spacing = (1.0, 1.0)) -> dict[str, float]:
    """
    All metrics of one predicted mask: overlap, topology, boundary, shape and presence.

    Args:
        pred (`np.ndarray` of shape `(H, W)`):
            Predicted mask, `bool` or numbers 0 and 1.
        target (`np.ndarray` of shape `(H, W)`):
            Target mask.
        spacing (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
            Height and width of a pixel: the unit of distances, widths and the tolerances 1 and 2 of surface Dice.

    Returns:
        `dict[str, float]`: by the names of `METRICS`, `TOPOLOGY_METRICS`, `BOUNDARY_METRICS`, `SHAPE_METRICS` and
        `PRESENCE_METRICS`, in this order; NaN where a metric is undefined.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`, there are no pixels, or a value is neither 0 nor 1.
    """
    pair = MaskPair(pred, target, spacing)
    counts = pair.counts
    return {
        **{metric.__name__: metric(counts) for metric in OVERLAP},
        **topology_metrics(pair),
        "hd95": hd95(pair),
        "assd": assd(pair),
        "nsd_1": nsd(pair, 1),
        "nsd_2": nsd(pair, 2),
        "volumetric_similarity": volumetric_similarity(counts),
        "skeleton_length_error": skeleton_length_error(pair),
        "width_error": width_error(pair),
        **dict(zip(("dice_thin", "dice_medium", "dice_thick"), dice_by_width(pair), strict=True)),
        "absence_sensitivity": absence_sensitivity(counts),
        "absence_specificity": absence_specificity(counts),
    }


def calibration_metrics(probabilities: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """
    The metrics of `CALIBRATION_METRICS`, by name.

    Args:
        probabilities (`np.ndarray` of shape `(H, W)`): in [0, 1].
        target (`np.ndarray` of shape `(H, W)`): bool.

    Returns:
        `dict[str, float]`: NaN for a map of zeros and ones alone, which is a mask and says nothing of probabilities.
    """
    if np.isin(probabilities, (0, 1)).all():
        return dict.fromkeys(CALIBRATION_METRICS, float("nan"))
    found = reliability(probabilities, target)
    return {"ece": found.ece, "brier": found.brier}
