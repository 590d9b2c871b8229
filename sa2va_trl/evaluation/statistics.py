"""Means over images and differences between models, with intervals and tests that respect patients."""

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats


def bootstrap_ci(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapters 13 and 8.5).

    Images of one patient resemble each other, and an interval that takes them for independent is too narrow. With
    `clusters` the patients are resampled: each drawn patient brings all of its images, and the mean is over all the
    images drawn.

    Args:
        values (`Sequence[float]`):
            One finite number an image.
        clusters (`Sequence`, *optional*):
            One label an image, such as the patient or the video it comes from. Without it every image is its own
            cluster.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage aimed at, between 0 and 1.
        resamples (`int`, *optional*, defaults to `5000`):
            Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling. The interval does not depend on the order of the images nor on the names of the
            clusters.

    Returns:
        `tuple[float, float]`: lower and upper bound, in the unit of `values`. `(nan, nan)` for a single image or a
        single cluster, from which no spread can be estimated.

    Raises:
        `ValueError`: `values` is empty, not one-dimensional or not finite, `clusters` has another length or a missing
            label, or `confidence` or `resamples` is out of its range.
    """
    values = _check_values(values)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
    codes = np.arange(len(values)) if clusters is None else _cluster_codes(clusters, len(values))
    sums, sizes = np.bincount(codes, values), np.bincount(codes)
    if len(sums) == 1:
        return math.nan, math.nan
    order = np.lexsort((sums, sizes))  # the same images in another order draw the same resamples
    sums, sizes = sums[order], sizes[order]

    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 2**22 // len(sums))  # bounds the memory: 32 MiB of indices at a time
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        draws = rng.integers(len(sums), size=(stop - start, len(sums)))
        means[start:stop] = sums[draws].sum(1) / sizes[draws].sum(1)
    lower, upper = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lower), float(upper)


def summarize(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> dict:
    """
    Mean over images (macro average), spread and 95 % bootstrap interval, ready for JSON.

    Args:
        values (`Sequence[float]`):
            One finite number an image.
        clusters (`Sequence`, *optional*):
            One label an image, such as the patient; see `bootstrap_ci`.

    Returns:
        `dict`: `mean`, `std` (between images, `n - 1` in the denominator; 0 for one image), `ci95` (`[lower, upper]`;
        `[None, None]` for a single image or cluster) and `n` (images).

    Raises:
        `ValueError`: as `bootstrap_ci`.
    """
    values = _check_values(values)
    bounds = bootstrap_ci(values, clusters)
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "ci95": [None if math.isnan(bound) else bound for bound in bounds],
        "n": len(values),
    }


def sample_clusters(samples: pd.DataFrame) -> list[Hashable] | None:
    """
    What the samples of a table are resampled by: patients, or else videos, or else themselves.

    Args:
        samples (`pandas.DataFrame`):
            One row a sample, with `sample_id` and, where they are known, `patient_id` and `video_id`.

    Returns:
        `list`: one label a sample; a sample whose patient and video are not known counts as its own. `None` for a
        table that has neither column.
    """
    groups = [samples[name] for name in ("patient_id", "video_id") if name in samples]
    if not groups:
        return None
    return pd.concat([*groups, samples["sample_id"]], axis=1).bfill(axis=1).iloc[:, 0].tolist()


def paired_difference(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> dict:
    """
    How far one model is better than another on the same images, ready for JSON.

    The test is Wilcoxon's signed-rank test (two-sided; zero differences are left out). With `clusters` it is over the
    clusters' mean differences, however few they are: frames of one patient are not independent, and a test that takes
    them for it finds differences where there are none. The price is that `k` clusters cannot give a p value below
    `2 ** (1 - k)`: to pass 0.05 takes at least six, before any correction.

    Args:
        before, after (`Sequence[float]`):
            One finite number an image, higher is better, in the same order.
        clusters (`Sequence`, *optional*):
            One label an image, such as the patient; see `bootstrap_ci`.

    Returns:
        `dict`: `mean` (of `after - before` over images), `ci95` (`[lower, upper]`, cluster bootstrap of the images'
        differences; `[None, None]` for a single image or cluster), `wilcoxon_p` (1 where nothing differs), `improved`
        (share of the images with a difference that became better; `None` where nothing differs), `ties` (images
        without a difference), `n` (images) and `clusters` (what is resampled and tested: clusters, or images without
        them).

    Raises:
        `ValueError`: as `bootstrap_ci`, or `before` and `after` differ in length.
    """
    before, after = _check_values(before, "before"), _check_values(after, "after")
    if len(before) != len(after):
        raise ValueError(f"`before` and `after` must pair up, got {len(before)} and {len(after)} values.")
    difference = after - before
    codes = np.arange(len(difference)) if clusters is None else _cluster_codes(clusters, len(difference))
    means = np.bincount(codes, difference) / np.bincount(codes)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    return {
        "mean": float(difference.mean()),
        "ci95": [None if math.isnan(bound) else bound for bound in bootstrap_ci(difference, clusters)],
        "wilcoxon_p": float(stats.wilcoxon(means[means != 0]).pvalue) if means.any() else 1.0,
        "improved": better / (better + worse) if better + worse else None,
        "ties": len(difference) - better - worse,
        "n": len(difference),
        "clusters": len(means),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """
    p values adjusted for their number, step-down (Holm, Scandinavian Journal of Statistics 6, 1979, 65-70). Rejecting
    those of at most 5 % keeps the chance of any false rejection at 5 %, whatever their dependence.

    Args:
        p_values (`Sequence[float]`): in [0, 1], of one family of tests.

    Returns:
        `list[float]`: adjusted values, in the same order.

    Raises:
        `ValueError`: a value that is no probability.
    """
    values = np.asarray(p_values, dtype=np.float64).reshape(-1)
    if not ((values >= 0) & (values <= 1)).all():  # NaN is refused too
        raise ValueError(f"`p_values` must lie in [0, 1], got {values.tolist()}.")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(np.minimum(values[order] * np.arange(len(values), 0, -1), 1))
    return adjusted.tolist()


def compare(
    tables: Mapping[str, pd.DataFrame], metric: str = "dice", pairs: Sequence[tuple[str, str]] | None = None
) -> dict:
    """
    Runs beside each other on the same samples, ready for JSON.

    Args:
        tables (`Mapping[str, pandas.DataFrame]`):
            By name of the run, one row a sample with `sample_id`, `metric` and, where they are known, `patient_id` and
            `video_id`, as `sa2va-trl evaluate` leaves them in `per_sample.parquet`. The order of rows is free.
        metric (`str`, *optional*, defaults to `"dice"`): column to compare; higher is better.
        pairs (`Sequence[tuple[str, str]]`, *optional*):
            Names to compare, (before, after); each run with the one before it by default. They are one family for
            `holm`.

    Returns:
        `dict`: `metric`; `runs`, by name as `summarize`; and `differences`, one a pair, with `before`, `after`, what
        `paired_difference` says, and `wilcoxon_p_holm`.

    Raises:
        `ValueError`: fewer than two tables, a pair of unknown or equal names or a repeated one, a table without a
            column, with a sample twice or with other samples, patients or videos than the first, or values that are
            not finite.

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
    aligned = _align(tables, metric)
    clusters = sample_clusters(aligned[names[0]])
    values = {name: aligned[name][metric].to_numpy() for name in names}
    differences = [
        {"before": before, "after": after, **paired_difference(values[before], values[after], clusters)}
        for before, after in pairs
    ]
    for entry, adjusted in zip(differences, holm([entry["wilcoxon_p"] for entry in differences]), strict=True):
        entry["wilcoxon_p_holm"] = adjusted
    return {
        "metric": metric,
        "runs": {name: summarize(values[name], clusters) for name in names},
        "differences": differences,
    }


def comparison_table(comparison: dict) -> str:
    """
    A comparison to read.

    Args:
        comparison (`dict`): from `compare`.

    Returns:
        `str`: a line a run with its mean and interval, then a line a pair with the difference, its interval, the
        adjusted p value and the share of samples that improved.
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
            f"{entry['wilcoxon_p_holm']:.2g}",
            "-" if entry["improved"] is None else f"{entry['improved']:.1%}",
            str(entry["ties"]),
        ]
        for entry in comparison["differences"]
    ]
    text = _columns([["run", metric, "95 % interval", "n"], *runs])
    text += "\n\n"
    text += _columns([["difference", metric, "95 % interval", "p (Holm)", "improved", "ties"], *differences])
    count = comparison["differences"][0]["clusters"]
    if count < 6:
        text += (
            f"\n\nThe test is by patient (or else video, or image), and of {count} patients even all that agree give "
            f"p = {2.0 ** (1 - count):.2g} before correction. It takes six or more to show a difference."
        )
    return text


def _columns(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Names to the left, numbers to the right.
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def _align(tables: Mapping[str, pd.DataFrame], metric: str) -> dict[str, pd.DataFrame]:
    """The tables with their rows in the order of the first one's, checked."""
    first = next(iter(tables))
    for name, table in tables.items():
        if lacking := [column for column in ("sample_id", metric) if column not in table]:
            raise ValueError(f"run {name!r} has no column {', '.join(lacking)}, only {', '.join(table)}.")
        if not pd.api.types.is_numeric_dtype(table[metric]):
            raise ValueError(f"run {name!r}: column {metric} holds no numbers.")
        bad = table["sample_id"][table["sample_id"].duplicated()]
        if len(bad):
            raise ValueError(f"run {name!r} has samples twice: {_some(bad)}.")
        bad = table["sample_id"][~np.isfinite(table[metric].to_numpy(dtype=np.float64))]
        if len(bad):
            raise ValueError(
                f"run {name!r} has no finite {metric} of {_some(bad)}: leave such samples out of all runs, or give "
                "them their worst value."
            )
        expected, found = set(tables[first]["sample_id"]), set(table["sample_id"])
        if expected != found:
            parts = [
                f"only {owner!r} has {_some(sorted(own))}"
                for owner, own in ((first, expected - found), (name, found - expected))
                if own
            ]
            raise ValueError(
                f"runs {first!r} and {name!r} were scored on different samples: {'; '.join(parts)}. Evaluate both on "
                "the same split."
            )
    order = tables[first]["sample_id"]
    aligned = {name: table.set_index("sample_id").loc[order].reset_index() for name, table in tables.items()}
    for name, table in aligned.items():
        groups, own = (sample_clusters(part) or order.tolist() for part in (aligned[first], table))
        other = [sample for sample, one, two in zip(order, groups, own, strict=True) if one != two]
        if other:
            raise ValueError(
                f"runs {first!r} and {name!r} name other patients or videos for {_some(other)}. Evaluate both on the "
                "same data."
            )
    return aligned


def _some(samples: Sequence) -> str:
    """Up to three of the names, and how many more."""
    names = [str(sample) for sample in samples]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_values(values: Sequence[float], name: str = "values") -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"`{name}` must be a sequence of at least one number, got shape {values.shape}.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(values)} `{name}` are not finite, the first at index {bad[0]} ({values[bad[0]]}): "
            "leave such images out, or give them their worst value, before summarizing."
        )
    return values


def _cluster_codes(clusters: Sequence[Hashable], length: int) -> np.ndarray:
    labels = list(clusters)
    if len(labels) != length:
        raise ValueError(f"`clusters` must hold one label a value, got {len(labels)} labels for {length} values.")
    missing = [index for index, cluster in enumerate(labels) if cluster is None or cluster != cluster]
    if missing:
        raise ValueError(
            f"{len(missing)} of {length} `clusters` are missing (None or NaN), the first at index {missing[0]}: "
            "give every image a label, or leave `clusters` out."
        )
    codes = {cluster: code for code, cluster in enumerate(dict.fromkeys(labels))}
    return np.array([codes[cluster] for cluster in labels])
