"""Scores of a row, tables of them summed up, and the files that they go to."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data.columns import IDENTIFIERS
from ..data.layout import normalize_row
from ..data.stored import plain_rows
from ..files import whole_file, write_json
from ..metrics import ALL_METRICS, METRICS
from ..metrics.rows import ScoredPart, check_metric_set, score_masks
from ..metrics.sets import PROTOCOL_METRICS, metric_bounds
from ..motion import backward_flows
from ..postprocessing import IDENTITY, Postprocessing, draw_row
from .clusters import cluster_name, sample_clusters
from .differences import summarize


# Where a row says which way a router has sent it: columns for [`score`].
ROUTE = "__route__"


def score(
    row: dict,
    probabilities: np.ndarray,
    threshold: float,
    metrics: str = "overlap",
    postprocessing: Postprocessing = IDENTITY,
) -> dict:
    """
    Metrics of one row at its image's own size, averaged over its masks.

    Args:
        row (`dict`): decoded, with masks.
        probabilities (`np.ndarray` of shape `(masks, H, W)`): in [0, 1].
        threshold (`float`): probability above which a pixel belongs to the mask.
        metrics (`str`, *optional*, defaults to `"overlap"`): set of metrics, one of [`~metrics.rows.METRIC_SETS`].
        postprocessing ([`~postprocessing.Postprocessing`], *optional*): of the masks.

    Returns:
        `dict` with the row's identifiers and the metrics, `METRICS` or `ALL_METRICS`, in this order; of a row from a
        router also which way it went. A metric that is undefined of all the masks is NaN, as those of clips are of an
        image.

    Raises:
        `ValueError`: a set that is none.
    """
    part = scored_part(row, metrics, postprocessing)
    values = score_masks(part, probabilities, threshold, metrics, postprocessing)
    return {**row_identifiers(row), **values}


def row_identifiers(row: dict) -> dict:
    """
    What a table of scores says a row is: identifiers, the structure that is asked for or the expression of a video
    where rows name one, and of a row from a router which way it went.
    """
    names = (*IDENTIFIERS, "structure", "exp_id")
    return {**{name: row[name] for name in names if row.get(name) is not None}, **row.get(ROUTE, {})}


def scored_part(row: dict, metrics: str = "overlap", postprocessing: Postprocessing = IDENTITY) -> ScoredPart:
    """
    Args:
        row (`dict`): decoded, with masks.
        metrics (`str`, *optional*, defaults to `"overlap"`):
            One of [`~metrics.rows.METRIC_SETS`], or a protocol of [`~metrics.sets.PROTOCOL_METRICS`].
        postprocessing ([`~postprocessing.Postprocessing`], *optional*): of the masks.

    Returns:
        [`ScoredPart`]: without frames unless the row is a clip, and the metrics are `"all"` or post-processing follows
        its motion.

    Raises:
        `ValueError`: a set that is none.
    """
    if metrics not in PROTOCOL_METRICS:
        check_metric_set(metrics)
    layout, frames = normalize_row(row), None
    if (metrics == "all" or postprocessing.needs_motion) and len(layout["images"]) > 1:
        frames = grey_frames(layout)
    targets = np.stack([np.asarray(mask) > 0 for mask in layout["masks"]])
    return ScoredPart(targets, frames, len(layout["images"]))


def grey_frames(layout: dict) -> np.ndarray:
    """The images of a row, as [`~data.layout.normalize_row`] gives it: `(T, H, W)`, float32 in [0, 1]."""
    return np.stack([np.asarray(image.convert("L"), dtype=np.float32) / 255 for image in layout["images"]])


def drawn_masks(
    row: dict, probabilities: np.ndarray, threshold: float, postprocessing: Postprocessing = IDENTITY
) -> np.ndarray:
    """
    The masks that [`score`] scores.

    Args:
        row, probabilities, threshold, postprocessing: as there.

    Returns:
        `np.ndarray` of shape `(masks, H, W)`: bool.
    """
    flows, frames = None, len(row.get("images") or [None])
    if postprocessing.needs_motion and frames > 1:
        flows = backward_flows(grey_frames(normalize_row(row)))
    return draw_row(probabilities, threshold, postprocessing, frames, flows)


def aggregate(samples: pd.DataFrame, names: Sequence[str] | None = None) -> dict[str, dict]:
    """
    Mean, spread and interval of every metric over samples. Where there are patients (or else videos), the interval
    comes from resampling them, not their frames.

    Args:
        samples (`pandas.DataFrame`): one row a sample, from [`score`].
        names (`Sequence[str]`, *optional*): of the columns; those of `ALL_METRICS` that there are by default.

    Returns:
        `dict[str, dict]`: for each metric `mean`, `std`, `ci95`, `ci95_method` and `n`, the samples that these are
        of. Of a table with more than the overlap also `undefined`, the samples that they leave out since the metric is
        NaN there (with `n` 0 the others are `None`); and under `"by_patient"` and `"by_video"`, where these are known,
        the same of the means of each patient or video, which `n` and `undefined` count then.
    """
    names = [name for name in ALL_METRICS if name in samples] if names is None else list(names)
    if set(names) == set(METRICS):
        clusters = sample_clusters(samples)
        return {name: summarize(samples[name].to_numpy(), clusters, metric_bounds(name)) for name in METRICS}
    found = {name: _summarize_defined(samples, name) for name in names}
    for key, column in (("by_patient", "patient_id"), ("by_video", "video_id")):
        if column in samples and samples[column].notna().any():
            means = samples.groupby(column)[names].mean().rename_axis("sample_id").reset_index()
            found[key] = {name: _summarize_defined(means, name) for name in names}
    return found


def _summarize_defined(samples: pd.DataFrame, name: str) -> dict:
    """[`summarize`] of the values that are defined."""
    defined = samples[samples[name].notna()]
    about = {"mean": None, "std": None, "ci95": [None, None], "n": 0, "ci95_method": None}
    if len(defined):
        about = summarize(defined[name].to_numpy(dtype=np.float64), sample_clusters(defined), metric_bounds(name))
    return {**about, "undefined": len(samples) - len(defined)}


def remarks(samples: pd.DataFrame, dataset: Dataset) -> list[str]:
    """
    What has to be said of an evaluation before its numbers are believed.

    Args:
        samples (`pandas.DataFrame`): one row a sample, from [`score`].
        dataset (`datasets.Dataset`): the rows.

    Returns:
        `list[str]`: a sentence each; none where there is nothing to say.
    """
    found, clusters = [], sample_clusters(samples)
    if len(samples) == 1 or (clusters is not None and len(set(clusters)) == 1):
        kind = cluster_name(samples)
        found.append(
            f"All samples are of one {kind[:-1]}: there is no interval, and the means say nothing of other {kind}."
        )
    # (Of masks with something in them, every Dice is hardly ever 0 or 1, so others need not be read again.)
    if (
        "dice" in samples
        and samples["dice"].isin((0, 1)).all()
        and not any(np.any(mask) for row in plain_rows(dataset) for mask in normalize_row(row)["masks"])
    ):
        found.append(
            "All masks of the split are empty: this says how often nothing is found where nothing is (Dice 1), and "
            "not how well anything is drawn."
        )
    return found


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
