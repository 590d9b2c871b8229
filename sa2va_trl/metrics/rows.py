"""
The metrics of a row of a dataset: means over its masks. (What processes that score are given, and all that they need.)
"""

import math
from typing import NamedTuple

import numpy as np

from ..motion import backward_flows
from ..postprocessing import IDENTITY, Postprocessing, draw_row
from .clips import flicker, warped_iou
from .presence import absence_sensitivity, absence_specificity
from .segmentation import METRICS, confusion_counts, iou, segmentation_metrics
from .sets import ALL_METRICS, PROTOCOL_METRICS, calibration_metrics, mask_metrics
from .tracks import track_scores


#: `"overlap"` is `METRICS` alone, `"all"` is `ALL_METRICS`.
METRIC_SETS = ("overlap", "all")


class ScoredPart(NamedTuple):
    """
    What of a row a score depends on.

    Args:
        targets (`np.ndarray` of shape `(masks, H, W)`): bool.
        frames (`np.ndarray` of shape `(T, H, W)`, *optional*):
            Grey values of a clip, where metrics or post-processing need them.
        count (`int`, *optional*, defaults to 1): T, of an image 1.
    """

    targets: np.ndarray
    frames: np.ndarray | None
    count: int = 1


def score_masks(
    part: ScoredPart,
    probabilities: np.ndarray,
    threshold: float,
    metrics: str = "overlap",
    postprocessing: Postprocessing = IDENTITY,
) -> dict:
    """
    The metrics of one row, averaged over its masks.

    Args:
        part (`ScoredPart`): of the row.
        probabilities (`np.ndarray` of shape `(masks, H, W)`): in [0, 1].
        threshold (`float`): probability above which a pixel belongs to the mask.
        metrics (`str`, *optional*, defaults to `"overlap"`):
            One of `METRIC_SETS`, or a protocol of [`~metrics.sets.PROTOCOL_METRICS`].
        postprocessing ([`~postprocessing.Postprocessing`], *optional*): of the masks; calibration is of what they are
            drawn from.

    Returns:
        `dict[str, float]`: means over those masks of which a metric is defined.
    """
    flows = None if part.frames is None else backward_flows(part.frames)
    found = draw_row(probabilities, threshold, postprocessing, part.count, flows)
    if metrics == "rvos":
        return _track_metrics(found, part)
    if metrics == "refcoco":
        return _expression_metrics(found, part)
    if metrics == "overlap":
        values = [segmentation_metrics(mask, target) for mask, target in zip(found, part.targets, strict=True)]
        return {name: float(np.mean([value[name] for value in values])) for name in METRICS}
    values = [
        {**mask_metrics(mask, target), **calibration_metrics(p, target)}
        for mask, p, target in zip(found, probabilities, part.targets, strict=True)
    ]
    means = {name: _mean([value.get(name, math.nan) for value in values]) for name in ALL_METRICS}
    return means | _clip_metrics(found, flows)


def _clip_metrics(found: np.ndarray, flows: np.ndarray | None) -> dict[str, float]:
    """Of masks `(objects * T, H, W)` of a clip, object by object; nothing of an image."""
    if flows is None:
        return {}
    objects = found.reshape(-1, len(flows) + 1, *found.shape[1:])
    return {
        "flicker": _mean([flicker(masks) for masks in objects]),
        "warped_iou": _mean([warped_iou(masks, flows) for masks in objects]),
    }


def _track_metrics(found: np.ndarray, part: ScoredPart) -> dict[str, float]:
    """J&F, J and F of masks `(objects * T, H, W)`, means over objects."""
    tracks = (own.reshape(-1, part.count, *own.shape[1:]) for own in (found, part.targets))
    scores = [track_scores(*pair) for pair in zip(*tracks, strict=True)]
    return {name: float(np.mean([getattr(own, name) for own in scores])) for name in PROTOCOL_METRICS["rvos"]}


def _expression_metrics(found: np.ndarray, part: ScoredPart) -> dict[str, float]:
    """What cIoU and gIoU are made of: of all masks of a row, which are of one expression."""
    counts = confusion_counts(found.any(0), part.targets.any(0))
    values = iou(counts), counts.tp, counts.tp + counts.fp + counts.fn
    values += absence_sensitivity(counts), absence_specificity(counts)
    return dict(zip(PROTOCOL_METRICS["refcoco"], map(float, values), strict=True))


def _mean(values: list[float]) -> float:
    """Of the values that are defined; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def check_metric_set(metrics: str) -> None:
    """
    Raises:
        `ValueError`: a set of metrics that is none.
    """
    if metrics not in METRIC_SETS:
        raise ValueError(f"metrics must be {' or '.join(METRIC_SETS)}, got {metrics!r}.")
