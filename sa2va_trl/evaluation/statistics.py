"""Means over images with confidence intervals that respect patients."""

import math
from collections.abc import Hashable, Sequence

import numpy as np


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
        ValueError: if `values` is empty, not one-dimensional or not finite, if `clusters` has another length or a
        missing
            label, or if `confidence` or `resamples` is out of its range.
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
        ValueError: as `bootstrap_ci`.
    """
    values = _check_values(values)
    bounds = bootstrap_ci(values, clusters)
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "ci95": [None if math.isnan(bound) else bound for bound in bounds],
        "n": len(values),
    }


def _check_values(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"`values` must be a sequence of at least one number, got shape {values.shape}.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(values)} `values` are not finite, the first at index {bad[0]} ({values[bad[0]]}): "
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
