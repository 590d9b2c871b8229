"""
The metrics of a row of a dataset: means over its masks. (What processes that score are given, and all that they need.)
"""

import math
from typing import NamedTuple

import numpy as np

from ..motion import backward_flows
from ..postprocessing import IDENTITY, Postprocessing, draw_row
from .clips import flicker, warped_iou
from .segmentation import METRICS, segmentation_metrics
from .sets import ALL_METRICS, calibration_metrics, mask_metrics


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
        metrics (`str`, *optional*, defaults to `"overlap"`): one of `METRIC_SETS`.
        postprocessing ([`~postprocessing.Postprocessing`], *optional*): of the masks; calibration is of what they are
            drawn from.

    Returns:
        `dict[str, float]`: means over those masks of which a metric is defined.
    """
    flows = None if part.frames is None else backward_flows(part.frames)
    found = draw_row(probabilities, threshold, postprocessing, part.count, flows)
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
