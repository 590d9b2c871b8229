"""What reports of evaluations and of comparisons show: their sections, and the pictures that lie beside them."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from ..data.columns import IDENTIFIERS
from ..metrics import LOWER_IS_BETTER
from . import plots
from .curves import panels
from .gallery import Picture
from .page import Gallery, Numbers, Plot, Section, Table, Words
from .statistics import comparison_table


BY = "dice"
# A score at a limit belongs above it.
BUCKETS = {"< 0.50": 0.0, "0.50–0.65": 0.5, "0.65–0.75": 0.65, "≥ 0.75": 0.75}
HARD_BELOW = 0.75
HEADLINES = ("dice", "iou", "precision", "recall", "cldice", "hd95")
# More would make the page long: of more, the worst.
MOST_CLIPS, MOST_PATIENTS = 16, 60
HardRuns = Mapping[str, Sequence[tuple[float, float]]]


def score_columns(samples: pd.DataFrame) -> list[str]:
    """The columns of a table of samples that are metrics: numbers, and no identifiers."""
    is_number, is_bool = pd.api.types.is_numeric_dtype, pd.api.types.is_bool_dtype
    return [
        name for name in samples if name not in IDENTIFIERS and is_number(samples[name]) and not is_bool(samples[name])
    ]


def buckets(scores: pd.Series) -> pd.Series:
    """The names of the ranges of `BUCKETS` that Dice coefficients lie in; in order as categories."""
    limits = [*BUCKETS.values(), np.inf]
    return pd.cut(scores, limits, right=False, labels=list(BUCKETS))


def evaluation_report(
    metrics: Mapping[str, Mapping],
    samples: pd.DataFrame,
    gallery: Mapping[str, Sequence[Picture]],
    threshold: float,
    hard: HardRuns,
    remarks: Sequence[str] = (),
) -> tuple[list[Section], dict[str, bytes]]:
    """
    Args:
        metrics (`Mapping[str, Mapping]`): by name `mean`, `std`, `ci95`, `n`, as in [`~evaluation.results.aggregate`].
        samples (`pandas.DataFrame`): one row a sample; every column of numbers counts as a metric.
        gallery (`Mapping[str, Sequence[Picture]]`): by title.
        threshold (`float`): that the masks were evaluated at.
        hard (`Mapping[str, Sequence[tuple[float, float]]]`): by `video_id` the first and last frame of hard runs.
        remarks (`Sequence[str]`, *optional*): from [`~evaluation.results.remarks`].

    Returns:
        The sections of the page, and the files beside it: `metrics_distribution.png`.
    """
    metrics = {name: entry for name, entry in metrics.items() if "mean" in entry}  # without those by patient and video
    drawn = [name for name in metrics if name in samples and len(plots.finite(samples[name]))]
    drawn = drawn or score_columns(samples)[:1]  # of metrics that are no means of a column
    figure = plots.distributions(samples, drawn)
    scores = [_headline(metrics, len(samples)), *map(Words, remarks), _all_metrics(metrics, samples)]
    spread = [
        Plot(plots.to_svg(plots.distributions(samples, [name]), f"metric{number}"), f"{name} of the images.", "small")
        for number, name in enumerate(drawn)
    ]
    if BY in samples:
        counts = buckets(samples[BY]).value_counts(sort=False).to_frame("images")
        caption = "Images by Dice; each range has its lower limit."
        spread.insert(0, Plot(plots.to_svg(plots.bucket_bars(counts), "buckets"), caption))
    sections = [Section("Result", scores), Section("Distribution", spread)]
    sections += group_sections({"": samples}, BY if BY in samples else drawn[0], hard)
    sections += gallery_section(gallery, threshold)
    sections.append(Section("Samples", [sample_table(samples)]))
    return sections, {"metrics_distribution.png": plots.to_png(figure)}


def _headline(metrics: Mapping[str, Mapping], count: int) -> Numbers:
    chosen = [name for name in HEADLINES if name in metrics] or list(metrics)[:4]
    entries = [(name, _number(metrics[name]["mean"]), _interval(metrics[name]["ci95"])) for name in chosen]
    return Numbers([*entries, ("images", str(count), "at their own size")])


def _all_metrics(metrics: Mapping[str, Mapping], samples: pd.DataFrame) -> Table:
    rows = []
    for name, entry in metrics.items():
        median = float(samples[name].median()) if name in samples else None
        left_out = len(samples) - entry["n"]
        better = "lower" if name in LOWER_IS_BETTER else "higher"
        low, high = entry["ci95"]
        rows.append([name, entry["mean"], low, high, entry["std"], median, entry["n"], left_out, better])
    columns = ["metric", "mean", "95 % from", "95 % to", "std", "median", "images", "left out", "better"]
    caption = (
        "Means over images, with intervals that resample patients (or else videos, or pictures that several samples "
        "are of) where they are known. Left out: "
        "images of which a metric says nothing."
    )
    return Table(columns, rows, caption)


def comparison_report(
    comparison: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    hard: HardRuns,
    gallery: Mapping[str, Sequence[Picture]] | None = None,
    names: Sequence[str] = (),
    threshold: float = 0.5,
) -> tuple[list[Section], dict[str, bytes]]:
    """
    Args:
        comparison (`Mapping`): from [`~evaluation.compare`].
        tables (`Mapping[str, pandas.DataFrame]`): what was compared, by name of the run.
        hard (`Mapping[str, Sequence[tuple[float, float]]]`): of the last run, as in [`evaluation_report`].
        gallery (`Mapping[str, Sequence[Picture]]`, *optional*): by title.
        names (`Sequence[str]`, *optional*): of the runs whose masks it shows.
        threshold (`float`, *optional*, defaults to 0.5): that they were evaluated at.

    Returns:
        As [`evaluation_report`].
    """
    metric, runs = comparison["metric"], comparison["runs"]
    lower = comparison["lower_is_better"]
    values = {name: table.set_index("sample_id")[metric] for name, table in tables.items()}
    order = next(iter(values.values())).index
    values = {name: own.loc[order] for name, own in values.items()}
    entries = [(name, _number(run["mean"]), _interval(run["ci95"])) for name, run in runs.items()]
    verdict = [
        Words(f"{metric} of the same samples; {'lower' if lower else 'higher'} is better."),
        Numbers(entries),
        Words(comparison_table(comparison), plain=True),
    ]
    figure = plots.boxes(values, metric)
    spread = [Plot(plots.to_svg(figure, "runs"), f"{metric} of every image by run.")]
    if metric == BY:
        counts = pd.DataFrame({name: buckets(own).value_counts(sort=False) for name, own in values.items()})
        caption = "Images by Dice; each range has its lower limit."
        spread.append(Plot(plots.to_svg(plots.bucket_bars(counts), "buckets"), caption))
    pairs = []
    for number, entry in enumerate(comparison["differences"]):
        before, after = entry["before"], entry["after"]
        drawn = plots.paired(values[before], values[after], (before, after), metric, lower)
        change = f"{_number(entry['mean'], '+')}, {_interval(entry['ci95'], '+')}"
        caption = f"{after} against {before}, image by image: {change}."
        pairs.append(Plot(plots.to_svg(drawn, f"pair{number}"), caption))
    sections = [Section("Verdict", verdict), Section("Pairs", pairs), Section("Distribution", spread)]
    sections += group_sections(tables, metric, hard)
    sections += gallery_section(gallery or {}, threshold, names)
    first = next(iter(tables.values())).set_index("sample_id").loc[order]
    table = first[[name for name in IDENTIFIERS if name in first]].reset_index()
    for name, own in values.items():
        table[name] = own.to_numpy()
    for entry in comparison["differences"]:
        difference = values[entry["after"]] - values[entry["before"]]
        table[f"{entry['after']} − {entry['before']}"] = difference.to_numpy()
    sections.append(Section("Samples", [Table.of_frame(table, f"{metric} of every sample.", filters=True)]))
    return sections, {"metrics_distribution.png": plots.to_png(figure)}


def group_sections(tables: Mapping[str, pd.DataFrame], by: str, hard: HardRuns) -> list[Section]:
    """
    The same scores by patient and by clip, where samples say what they are of.

    Args:
        tables (`Mapping[str, pandas.DataFrame]`): by name of the run; of one alone the name is not shown.
        by (`str`): column to show.
        hard (`Mapping[str, Sequence[tuple[float, float]]]`): as in [`evaluation_report`].

    Returns:
        `list[Section]`: none, one or two.
    """
    sections, last = [], list(tables.values())[-1]
    if "patient_id" in last and last["patient_id"].notna().any():
        table = _group_table(tables, "patient_id", by)
        worst = last.groupby("patient_id")[by].mean().sort_values(ascending=by not in LOWER_IS_BETTER).index
        values = {str(name): last.loc[last["patient_id"] == name, by] for name in worst[:MOST_PATIENTS]}
        more = f", of {len(worst)} the {MOST_PATIENTS} worst" if len(worst) > MOST_PATIENTS else ""
        caption = f"{by} of every image by patient, from the worst mean on{more}{_of_the_last(tables)}."
        sections.append(Section("Patients", [Plot(plots.to_svg(plots.boxes(values, by), "patients"), caption), table]))
    if "video_id" in last and last["video_id"].notna().any():
        sections.append(Section("Clips", [*_timelines(tables, by, hard), _group_table(tables, "video_id", by)]))
    return sections


def _of_the_last(tables: Mapping[str, pd.DataFrame]) -> str:
    return f" ({list(tables)[-1]})" if len(tables) > 1 else ""


def _group_table(tables: Mapping[str, pd.DataFrame], group: str, by: str) -> Table:
    last = list(tables.values())[-1]
    groups = last.groupby(group)
    table = groups[by].agg(images="size", mean="mean", median="median", lowest="min", highest="max")
    if len(tables) > 1:
        means = {name: own.groupby(group)[by].mean() for name, own in tables.items()}
        table = pd.concat([table[["images"]], pd.DataFrame(means)], axis=1)
    caption = (
        f"{by} by {group.removesuffix('_id')}{_of_the_last(tables) if len(tables) == 1 else ', means of each run'}."
    )
    return Table.of_frame(table.reset_index(names=group), caption, filters=len(table) > 20)


def _timelines(tables: Mapping[str, pd.DataFrame], by: str, hard: HardRuns) -> list[Plot | Words]:
    last = list(tables.values())[-1]
    if "frame_index" not in last or by != BY:
        return []
    clips = last.dropna(subset=["video_id", "frame_index"]).groupby("video_id")
    worst = clips[by].mean()[clips.size() > 1].sort_values().index
    parts = []
    for number, video in enumerate(islice(worst, MOST_CLIPS)):
        runs = {}
        for name, table in tables.items():
            own = table[table["video_id"] == video].sort_values("frame_index")
            runs[name] = own.set_index("frame_index")[by]
        found = hard.get(video, ())
        figure = plots.timeline(runs, found, HARD_BELOW, by)
        frames = ", ".join(f"{first:g}–{end:g}" for first, end in found) or "none"
        caption = f"{video}: {by} over its {len(list(runs.values())[-1])} frames. Runs of hard frames: {frames}."
        parts.append(Plot(plots.to_svg(figure, f"clip{number}"), caption, "half"))
    if parts:
        which = f"The {len(parts)} worst of {len(worst)} clips" if len(worst) > len(parts) else "Every clip"
        text = f"{which}, from the worst on. A run of frames below {HARD_BELOW} is shaded{_of_the_last(tables)}."
        return [Words(text), *parts]
    return []


def gallery_section(
    groups: Mapping[str, Sequence[Picture]], threshold: float, names: Sequence[str] = ()
) -> list[Section]:
    """
    The pictures of a report, if there are any.

    Args:
        groups (`Mapping[str, Sequence[Picture]]`): by title.
        threshold (`float`): that the masks were evaluated at.
        names (`Sequence[str]`, *optional*): of the runs that have drawn on each picture.

    Returns:
        `list[Section]`: one or none.
    """
    pictures = [picture for own in groups.values() for picture in own]
    if not pictures:
        return []
    text = "Masks are drawn on the images; a picture can be enlarged. "
    if all(picture.is_binary for picture in pictures):
        text += "What was predicted is 0 or 1 and nothing between: a threshold to move would change nothing."
        threshold = None
    else:
        text += "The threshold redraws them from probabilities in 256 steps; the scores below a picture's name stay."
    return [Section("Gallery", [Words(text), Gallery(groups, threshold, names)])]


def sample_table(samples: pd.DataFrame) -> Table:
    """Every sample, to be sorted and searched, with the range of its Dice coefficient to choose from."""
    names = [name for name in IDENTIFIERS if name in samples]
    table = samples[names + [name for name in samples if name not in names]]
    if BY not in table:
        return Table.of_frame(table, "Every sample.", filters=True)
    table = table.assign(range=buckets(table[BY]).astype(object))
    table["_"] = table[BY]
    table = table.sort_values("_", kind="stable").drop(columns="_")
    return Table.of_frame(table, "Every sample, from the worst on.", choices="range", filters=True)


def training_report(logs: Mapping[str, list[dict]]) -> tuple[list[Section], dict[str, bytes]]:
    """
    Args:
        logs (`Mapping[str, list[dict]]`): by name of the run, from [`~evaluation.curves.read_log`].

    Returns:
        A section with the curves of training and `training_curves.png`; neither where nothing was logged.
    """
    drawn = {name: own for name, log in logs.items() if (own := panels(log))}
    if not drawn:
        return [], {}
    figure = plots.curves(drawn)
    caption = "Losses, metrics and learning rate over the steps of training."
    section = Section("Training", [Plot(plots.to_svg(figure, "training"), caption)])
    return [section], {"training_curves.png": plots.to_png(figure)}


def about_section(about: Mapping[str, Mapping[str, Any]]) -> Section:
    """How the report came about: by title (options, versions, digests) names and values."""
    tables = [
        Table(["name", "value"], [[name, str(value)] for name, value in entries.items()], title)
        for title, entries in about.items()
        if entries
    ]
    return Section("Configuration", tables)


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None or np.isnan(value) else f"{value:{sign}.4f}"


def _interval(bounds: Sequence[float | None], sign: str = "") -> str:
    if None in bounds:
        return "no interval from one patient"
    return "95 % " + " to ".join(f"{bound:{sign}.4f}" for bound in bounds)
