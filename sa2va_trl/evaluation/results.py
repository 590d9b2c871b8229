"""Scores of a row, and tables of them summed up."""

import numpy as np
import pandas as pd

from ..data.columns import IDENTIFIERS
from ..data.layout import normalize_row
from ..metrics import METRICS, segmentation_metrics
from .statistics import sample_clusters, summarize


# Where a row says which way a router has sent it: columns for [`score`].
ROUTE = "__route__"


def score(row: dict, probabilities: np.ndarray, threshold: float) -> dict:
    """
    Metrics of one row at its image's own size, averaged over its masks.

    Args:
        row (`dict`): decoded, with masks.
        probabilities (`np.ndarray` of shape `(masks, H, W)`): in [0, 1].
        threshold (`float`): probability above which a pixel belongs to the mask.

    Returns:
        `dict` with the row's identifiers and `METRICS`; of a row from a router also which way it went.
    """
    targets = [np.asarray(mask) > 0 for mask in normalize_row(row)["masks"]]
    values = [segmentation_metrics(p > threshold, target) for p, target in zip(probabilities, targets, strict=True)]
    identifiers = {name: row[name] for name in IDENTIFIERS if row.get(name) is not None}
    means = {name: float(np.mean([value[name] for value in values])) for name in METRICS}
    return {**identifiers, **means, **row.get(ROUTE, {})}


def aggregate(samples: pd.DataFrame) -> dict[str, dict]:
    """
    Mean, spread and interval of every metric over samples. Where there are patients (or else videos), the interval
    comes from resampling them, not their frames.

    Args:
        samples (`pandas.DataFrame`): one row a sample, from [`score`].

    Returns:
        `dict[str, dict]`: for each metric `mean`, `std`, `ci95` and `n`.
    """
    clusters = sample_clusters(samples)
    return {name: summarize(samples[name].to_numpy(), clusters) for name in METRICS}
