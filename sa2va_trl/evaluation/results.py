"""Scores of a row, tables of them summed up, and the files that they go to."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.columns import IDENTIFIERS
from ..data.layout import normalize_row
from ..files import whole_file, write_json
from ..metrics import METRICS, segmentation_metrics
from .clusters import sample_clusters
from .differences import summarize


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
        `dict[str, dict]`: for each metric `mean`, `std`, `ci95`, `n` and `ci95_method`.
    """
    clusters = sample_clusters(samples)
    return {name: summarize(samples[name].to_numpy(), clusters, bounds=(0, 1)) for name in METRICS}


def from_worst_to_best(samples: pd.DataFrame, count: int, by: str = "dice") -> pd.DataFrame:
    """
    Samples to look at, evenly spread over the order from the worst to the best.

    Args:
        samples (`pandas.DataFrame`): one row a sample, from [`score`].
        count (`int`): how many; of fewer samples all.
        by (`str`, *optional*, defaults to `"dice"`): column to order by; higher is better.

    Returns:
        `pandas.DataFrame`: rows of `samples`, the worst first.
    """
    order = samples.sort_values(by, kind="stable").reset_index(drop=True)
    return order.iloc[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def worst_and_improved(before: pd.DataFrame, after: pd.DataFrame, count: int, by: str = "dice") -> dict[str, str]:
    """
    Samples to look at of two models: what the second finds hardest, and where it is better by most.

    Args:
        before, after (`pandas.DataFrame`): of the first and the second model, one row a sample, of the same samples.
        count (`int`): how many of each.
        by (`str`, *optional*, defaults to `"dice"`): column to judge by; higher is better.

    Returns:
        `dict[str, str]`: `sample_id` by title: `"worst_00"` and so on, then `"improved_00"` and so on, of which there
        are fewer where fewer samples are better. A sample may come twice.
    """
    first, second = (table.set_index("sample_id")[by] for table in (before, after))
    gain = (second - first[second.index]).sort_values(ascending=False)
    chosen = {f"worst_{number:02}": name for number, name in enumerate(second.sort_values().index[:count])}
    improved = enumerate(gain.index[:count])
    return chosen | {f"improved_{number:02}": name for number, name in improved if gain[name] > 0}


def save_results(
    folder: str | os.PathLike, metrics: dict[str, dict], samples: pd.DataFrame, router: dict | None = None
) -> None:
    """
    Write what an evaluation has found. Each file appears whole.

    Args:
        folder (`str` or `os.PathLike`): made if it is not there; gets `metrics.json` and `per_sample.parquet`.
        metrics (`dict[str, dict]`): from [`~evaluation.evaluate`].
        samples (`pandas.DataFrame`): from there, too.
        router (`dict`, *optional*):
            What is to be said of a router, in `router.json`. Without it the file of an earlier evaluation is removed.
    """
    folder = Path(folder)
    with whole_file(folder / "per_sample.parquet") as temporary:
        samples.to_parquet(temporary)
    write_json(folder / "metrics.json", metrics)
    if router is None:
        (folder / "router.json").unlink(missing_ok=True)
    else:
        write_json(folder / "router.json", router)
