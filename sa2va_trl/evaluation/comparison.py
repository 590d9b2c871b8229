"""Runs beside each other on the same samples: from tables of scores to a comparison, and that in words."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..metrics import LOWER_IS_BETTER, METRICS
from ..metrics.sets import metric_bounds
from .clusters import cluster_name, sample_clusters
from .differences import POWER, mean_of_seeds, paired_difference, summarize
from .significance import holm, smallest_p


ALPHA = 0.05


def compare(
    tables: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    metric: str = "dice",
    pairs: Sequence[tuple[str, str]] | None = None,
    lower_is_better: bool | None = None,
) -> dict:
    """
    Runs beside each other on the same samples, ready for JSON.

    Args:
        tables (`Mapping[str, pandas.DataFrame]`):
            By name of the run, one row a sample with `sample_id`, `metric` and, where they are known, `patient_id` and
            `video_id`, as `sa2va-trl evaluate` leaves them in `per_sample.parquet`. The order of rows is free. Several
            tables of one run, in a list, are those of its seeds: a sample's number is their mean, and what is tested
            is still the patients, so that the result holds for the average of these seeds.
        metric (`str`, *optional*, defaults to `"dice"`):
            Column to compare. Samples of which it is not defined (NaN) in any run are left out of all.
        pairs (`Sequence[tuple[str, str]]`, *optional*):
            Names to compare, (before, after); each run with the one before it by default. They are one family for
            `holm`.
        lower_is_better (`bool`, *optional*):
            Which way the metric improves; by default as [`~metrics.LOWER_IS_BETTER`] says of its name.

    Returns:
        `dict`: `metric` and `lower_is_better`; `runs`, by name as `summarize`, of several seeds also `seeds` (`n`,
        `means`, `std`); `differences`, one a pair, with `before`, `after`, what `paired_difference` says (its
        `minimum_detectable` for as many tests as there are pairs), `wilcoxon_p_holm`, `permutation_p_holm` and
        `seeds_se` (standard error of the difference from the choice of the seeds alone; `None` unless both runs have
        several); `clusters` (what is resampled, [`~evaluation.clusters.cluster_name`]); `undefined`, by run how many
        samples the metric was not defined of, and `left_out`, the samples; and `notes`, sentences that belong to the
        numbers.

    Raises:
        `ValueError`: fewer than two runs, a pair of unknown or equal names or a repeated one, a table without a
            column, with a sample twice or with other samples, patients or videos than the first, values that are
            infinite, or no sample of which the metric is defined in all runs.

    Example:

        ```python
        >>> import pandas as pd
        >>> from sa2va_trl.evaluation import compare

        >>> samples = {"sample_id": ["a", "b", "c"], "patient_id": ["p", "q", "r"]}
        >>> before = pd.DataFrame({**samples, "dice": [0.50, 0.70, 0.60]})
        >>> after = pd.DataFrame({**samples, "dice": [0.75, 0.70, 0.85]})
        >>> (difference,) = compare({"SFT": before, "DPO": after})["differences"]
        >>> round(difference["mean"], 4), difference["improved"], difference["ties"], difference["clusters"]
        (0.1667, 1.0, 1, 3)

        ```
    """
    names = list(tables)
    if len(names) < 2:
        raise ValueError(f"A comparison needs at least two runs, got {', '.join(names) or 'none'}.")
    pairs = list(zip(names, names[1:], strict=False)) if pairs is None else [tuple(pair) for pair in pairs]
    for before, after in pairs:
        if before not in tables or after not in tables or before == after:
            raise ValueError(f"`pairs`: ({before}, {after}) does not name two of the runs {', '.join(names)}.")
    if not pairs or len(set(pairs)) < len(pairs):
        raise ValueError(f"`pairs` needs at least one pair and none twice, got {pairs}.")
    seeds, undefined, left_out = _common(tables, metric)
    first = seeds[names[0]][0]
    clusters = sample_clusters(first)
    if lower_is_better is None:
        lower_is_better = metric in LOWER_IS_BETTER
    bounds = metric_bounds(metric)

    values, runs = {}, {}
    for name, own in seeds.items():
        values[name], spread = mean_of_seeds([table[metric].to_numpy(dtype=np.float64) for table in own])
        runs[name] = summarize(values[name], clusters, bounds) | ({} if spread is None else {"seeds": spread})
    differences = [
        {
            "before": before,
            "after": after,
            **paired_difference(
                values[before],
                values[after],
                clusters,
                lower_is_better,
                bounds and (-bounds[1], bounds[1]),
                ALPHA / len(pairs),
            ),
            "seeds_se": _seeds_se(runs[before], runs[after]),
        }
        for before, after in pairs
    ]
    for test in ("wilcoxon_p", "permutation_p"):
        for entry, adjusted in zip(differences, holm([entry[test] for entry in differences]), strict=True):
            entry[f"{test}_holm"] = adjusted
    comparison = {
        "metric": metric,
        "lower_is_better": lower_is_better,
        "runs": runs,
        "differences": differences,
        "clusters": cluster_name(first),
        "undefined": undefined,
        "left_out": left_out,
    }
    alone = all(np.isin(own, (0, 1)).all() for own in values.values()) and metric in METRICS
    return {**comparison, "notes": _notes(comparison, alone)}


def averaged(
    tables: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]], metric: str = "dice"
) -> dict[str, pd.DataFrame]:
    """
    What [`compare`] compares: of each run one table of the samples that all runs have the metric of, in one order,
    with the metric's mean over the run's seeds.

    Args:
        tables (`Mapping`), metric (`str`, *optional*, defaults to `"dice"`): as there.

    Returns:
        `dict[str, pandas.DataFrame]`: by name of the run.

    Raises:
        `ValueError`: as there.
    """
    return {
        name: own[0].assign(**{metric: mean_of_seeds([table[metric].to_numpy(dtype=np.float64) for table in own])[0]})
        for name, own in _common(tables, metric)[0].items()
    }


def comparison_table(comparison: dict) -> str:
    """
    A comparison to read.

    Args:
        comparison (`dict`): from `compare`.

    Returns:
        `str`: a line a run with its mean and interval, then a line a pair with the difference, its interval, the
        adjusted p value of the permutation test, the effect size and the share of samples that improved; then the
        notes.
    """

    def interval(bounds: Sequence[float | None], sign: str = "") -> str:
        return " - " if None in bounds else " to ".join(f"{bound:{sign}.4f}" for bound in bounds)

    metric = comparison["metric"]
    runs = [
        [name, f"{run['mean']:.4f}", interval(run["ci95"]), str(run["n"])] for name, run in comparison["runs"].items()
    ]
    differences = [
        [
            f"{entry['after']} - {entry['before']}",
            f"{entry['mean']:+.4f}",
            interval(entry["ci95"], "+"),
            f"{entry['permutation_p_holm']:.2g}",
            "-" if entry["effect_size"] is None else f"{entry['effect_size']:+.2f}",
            "-" if entry["improved"] is None else f"{entry['improved']:.1%}",
            str(entry["ties"]),
        ]
        for entry in comparison["differences"]
    ]
    text = _columns([["run", metric, "95 % interval", "n"], *runs])
    text += "\n\n"
    text += _columns([["difference", metric, "95 % interval", "p (Holm)", "effect", "improved", "ties"], *differences])
    return "\n\n".join([text, *comparison["notes"]])


def some(names: Sequence) -> str:
    """
    Args:
        names (`Sequence`): of samples or files.

    Returns:
        `str`: up to three of them, and how many more.
    """
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _notes(comparison: dict, alone: bool) -> list[str]:
    """What has to be said with the numbers. `alone`: every image's is 0 or 1."""
    metric, kind, differences = comparison["metric"], comparison["clusters"], comparison["differences"]
    count, tests, notes = differences[0]["clusters"], len(differences), []
    if comparison["lower_is_better"]:
        notes.append(f"Lower {metric} is better: a difference below 0 is an improvement.")
    if comparison["left_out"]:
        of_runs = ", ".join(f"{number} in {name}" for name, number in comparison["undefined"].items() if number)
        notes.append(
            f"Left out, because {metric} is not defined of them in all runs ({of_runs}): "
            f"{some(comparison['left_out'])}. A run that finds nothing may so be spared its hardest samples: compare "
            "the overlap too."
        )
    if alone:
        notes.append(
            f"Every {metric} is 0 or 1, as where all masks of the split are empty: this compares how often a run "
            "finds nothing where there is nothing, and not how well it draws."
        )
    if count == 1:
        only = kind[:-1]
        notes.append(
            f"All samples are of one {only}: there is no interval, and no test can tell the runs from chance "
            f"(p = 1). It takes six {kind} or more to show a difference."
        )
    elif smallest_p(count, tests) > ALPHA:
        needed = 1 + math.ceil(math.log2(tests / ALPHA))
        floor = smallest_p(count)
        notes.append(
            f"The test is by {kind[:-1]}: with {count} {kind} p cannot be below {floor:.2g} before correction"
            + (f" and {smallest_p(count, tests):.2g} after it" if tests > 1 else "")
            + f", even where all agree. It takes {needed} or more to show a difference."
        )
    elif unclear := [entry for entry in differences if entry["std_clusters"] and entry["permutation_p_holm"] > ALPHA]:
        least = "; ".join(
            f"{entry['after']} - {entry['before']}, differences below {entry['minimum_detectable']:.2g}"
            for entry in unclear
        )
        floor = f": with {count} {kind} p cannot be below {smallest_p(count, tests):.2g}" if count < 10 else ""
        notes.append(
            f"Not shown is not the same as equal{floor}. Of {count} {kind} would not be found with {POWER:.0%} power: "
            f"{least}."
        )
    for name, run in comparison["runs"].items():
        if "seeds" in run:
            means = ", ".join(f"{mean:.4f}" for mean in run["seeds"]["means"])
            notes.append(
                f"{name} is the mean of {run['seeds']['n']} seeds: {means} (standard deviation "
                f"{run['seeds']['std']:.4f}). Interval and test are over {kind}, for the average of these seeds."
            )
    for entry in differences:
        if entry["seeds_se"] and abs(entry["mean"]) < 2 * entry["seeds_se"]:
            notes.append(
                f"{entry['after']} - {entry['before']} is within what other seeds alone may give "
                f"(twice the standard error {entry['seeds_se']:.4f})."
            )
    return notes


def _seeds_se(before: dict, after: dict) -> float | None:
    own = [run.get("seeds") for run in (before, after)]
    return None if None in own else math.sqrt(sum(seeds["std"] ** 2 / seeds["n"] for seeds in own))


def _columns(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Names to the left, numbers to the right.
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def _common(
    tables: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]], metric: str
) -> tuple[dict[str, list[pd.DataFrame]], dict[str, int], list[str]]:
    """Of each run a table a seed, as `_defined` gives them."""
    seeds = {name: [own] if isinstance(own, pd.DataFrame) else list(own) for name, own in tables.items()}
    if empty := [name for name, own in seeds.items() if not own]:
        raise ValueError(f"run {empty[0]!r} has no table.")
    return _defined(_align(seeds, metric), metric)


def _align(seeds: dict[str, list[pd.DataFrame]], metric: str) -> dict[str, list[pd.DataFrame]]:
    """The tables with their rows in the order of the first one's, checked."""
    first, *_ = seeds
    reference = seeds[first][0]
    aligned = {}
    for name, own in seeds.items():
        aligned[name] = []
        for number, table in enumerate(own, start=1):
            title = repr(name) if len(own) == 1 else f"{name!r} (table {number})"
            _check_table(table, title, metric)
            expected, found = set(reference["sample_id"]), set(table["sample_id"])
            if expected != found:
                parts = [
                    f"only {owner} has {some(sorted(lone))}"
                    for owner, lone in ((repr(first), expected - found), (title, found - expected))
                    if lone
                ]
                raise ValueError(
                    f"runs {first!r} and {title} were scored on different samples: {'; '.join(parts)}. Evaluate both "
                    "on the same split."
                )
            table = table.set_index("sample_id").loc[reference["sample_id"]].reset_index()
            groups, others = (sample_clusters(part) or part["sample_id"].tolist() for part in (reference, table))
            other = [sample for sample, one, two in zip(table["sample_id"], groups, others, strict=True) if one != two]
            if other:
                raise ValueError(
                    f"runs {first!r} and {title} name other patients, videos or pictures for {some(other)}. "
                    "Evaluate both on the same data, and by the same protocol."
                )
            aligned[name].append(table)
    return aligned


def _check_table(table: pd.DataFrame, title: str, metric: str) -> None:
    if lacking := [column for column in ("sample_id", metric) if column not in table]:
        raise ValueError(f"run {title} has no column {', '.join(lacking)}, only {', '.join(table)}.")
    if not pd.api.types.is_numeric_dtype(table[metric]):
        raise ValueError(f"run {title}: column {metric} holds no numbers.")
    twice = table["sample_id"][table["sample_id"].duplicated()]
    if len(twice):
        raise ValueError(f"run {title} has samples twice: {some(twice)}.")
    endless = table["sample_id"][np.isinf(table[metric].to_numpy(dtype=np.float64, na_value=np.nan))]
    if len(endless):
        raise ValueError(
            f"run {title} has an infinite {metric} of {some(endless)}: give such samples their worst value, or NaN to "
            "leave them out of all runs."
        )


def _defined(
    seeds: dict[str, list[pd.DataFrame]], metric: str
) -> tuple[dict[str, list[pd.DataFrame]], dict[str, int], list[str]]:
    """The aligned tables without samples that lack the metric anywhere; how many those are by run, and which."""
    missing = {name: np.any([table[metric].isna() for table in own], axis=0) for name, own in seeds.items()}
    anywhere = np.any(list(missing.values()), axis=0)
    undefined = {name: int(own.sum()) for name, own in missing.items()}
    samples = next(iter(seeds.values()))[0]["sample_id"]
    if anywhere.all():
        counts = ", ".join(f"{number} of {len(samples)} in {name!r}" for name, number in undefined.items())
        raise ValueError(
            f"No sample has a {metric} in all runs (not defined of {counts}): there is nothing to compare."
        )
    if anywhere.any():
        seeds = {name: [table[~anywhere].reset_index(drop=True) for table in own] for name, own in seeds.items()}
    return seeds, undefined, samples[anywhere].tolist()
