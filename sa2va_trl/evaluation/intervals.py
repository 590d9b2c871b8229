"""
Intervals of a mean over images, from resampling patients.

Which method is the default was decided by simulation (`recipes/benchmarks/statistics.py`, figures in
`docs/evaluation.md`): for 30 patients of unequal numbers of images with skewed Dice, percentile and BCa intervals miss
the true mean more often than they say, and the studentised bootstrap does not.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from .clusters import Clusters, by_cluster


METHODS = ("studentized", "bca", "percentile")
# With fewer, a resample is too often one cluster many times over, which has no spread to divide by.
FEWEST = 6
# A studentised interval that reaches as many times as far as Student's is the work of single resamples.
FARTHEST = 6.0


class Interval(NamedTuple):
    """
    Where a mean lies.

    Args:
        low, high (`float`): ends, in the unit of the values; NaN where no spread can be estimated.
        method (`str` or `None`): what they come from: one of `METHODS`, `"t"`, or `None` where there are none.
    """

    low: float
    high: float
    method: str | None

    def ends(self) -> list[float | None]:
        """Both ends for JSON, `None` where there are none."""
        return [None if math.isnan(end) else end for end in (self.low, self.high)]


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "studentized",
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """
    Bootstrap interval of a mean, and how it was found.

    Images of one patient resemble each other, and an interval that takes them for independent is too narrow. With
    `clusters` the patients are resampled: each drawn patient brings all of its images, and the mean is over all the
    images drawn.

    Methods, of Efron and Tibshirani, An Introduction to the Bootstrap (1993):

    * `"studentized"` (bootstrap-t, chapter 12): quantiles of the resamples' deviation in units of their own standard
      error, which is that of a ratio of sums over clusters. With fewer than 6 clusters, or where single resamples
      decide (hardly any cluster differs from the rest), Student's t with the jackknife's standard error takes its
      place: `method` of the result is then `"t"`.
    * `"bca"` (bias-corrected and accelerated, chapter 14.3), accelerated by the jackknife over clusters. Where it is
      not defined, because all resamples lie on one side of the mean, the result is the percentile interval, and its
      `method` says so.
    * `"percentile"` (chapters 13 and 8.5).

    Args:
        values (`Sequence[float]`):
            One finite number an image.
        clusters (`Sequence`, *optional*):
            One label an image, such as the patient or the video it comes from. Without it every image is its own
            cluster.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage aimed at, between 0 and 1.
        resamples (`int`, *optional*, defaults to `10_000`):
            Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling. The interval does not depend on the order of the images nor on the names of the
            clusters.
        method (`str`, *optional*, defaults to `"studentized"`):
            One of `METHODS`.
        bounds (`tuple[float, float]`, *optional*):
            What the mean can be at all, such as `(0, 1)`; the interval is cut there.

    Returns:
        `Interval`: `(nan, nan, None)` for a single image or a single cluster, from which no spread can be estimated;
        both ends the mean where all clusters have the same.

    Raises:
        `ValueError`: `values` is empty, not one-dimensional or not finite, `clusters` has another length or a missing
            label, or `confidence`, `resamples` or `method` is out of its range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
    return interval_of(by_cluster(values, clusters), confidence, resamples, seed, method, bounds)


def interval_of(
    groups: Clusters,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "studentized",
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """
    [`bootstrap_interval`] of sums over sizes, whatever these are: such as of intersections over unions.

    Args:
        groups ([`~evaluation.clusters.Clusters`]): what is resampled.
        confidence, resamples, seed, method, bounds: as there.

    Returns:
        `Interval`.
    """
    if len(groups.sums) == 1:
        return Interval(math.nan, math.nan, None)
    mean = groups.mean
    # About the mean: what is then close to zero is a tie, and is no further from it for the unit of the values.
    centred = Clusters(groups.sums - mean * groups.sizes, groups.sizes)
    smallest = 1e-9 * abs(centred.sums).max() + 1e-12 * abs(groups.sums).max()
    if abs(centred.sums).max() <= smallest:
        low, high = 0.0, 0.0
    elif method == "studentized":
        low, high, method = _studentized(centred, confidence, resamples, seed)
    else:
        means = np.sort(_resampled(centred, resamples, seed)[0])
        tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        corrected = _bca(centred, means, tails, smallest / groups.sizes.sum()) if method == "bca" else None
        low, high = np.quantile(means, tails if corrected is None else corrected)
        method = "percentile" if corrected is None else method
    low, high = mean + low, mean + high
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Interval(float(low), float(high), method)


def bootstrap_ci(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "studentized",
    bounds: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """
    The ends of [`bootstrap_interval`].

    Args:
        values, clusters, confidence, resamples, seed, method, bounds: as there.

    Returns:
        `tuple[float, float]`: lower and upper bound, in the unit of `values`. `(nan, nan)` for a single image or a
        single cluster.

    Raises:
        `ValueError`: as there.

    Example:

        ```python
        >>> from sa2va_trl.evaluation import bootstrap_ci

        >>> dice = [0.91, 0.93, 0.92, 0.80, 0.78, 0.88, 0.85, 0.90, 0.71, 0.86]
        >>> patients = ["a", "a", "a", "b", "b", "c", "d", "e", "f", "g"]
        >>> [round(bound, 2) for bound in bootstrap_ci(dice, patients, bounds=(0, 1))]
        [0.73, 0.94]

        ```
    """
    interval = bootstrap_interval(values, clusters, confidence, resamples, seed, method, bounds)
    return interval.low, interval.high


def _resampled(groups: Clusters, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every resample the mean over its images, and that mean's standard error."""
    rng, count = np.random.default_rng(seed), len(groups.sums)
    sums, sizes = groups
    columns = np.stack([sums, sizes, sums * sums, sums * sizes, sizes * sizes], axis=1)
    totals = np.empty((resamples, columns.shape[1]))
    block = max(1, 2**22 // count)  # bounds the memory: 32 MiB of indices at a time
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        draws = rng.integers(count, size=(stop - start, count))
        draws += count * np.arange(stop - start)[:, None]
        times = np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)
        totals[start:stop] = times @ columns
    sum_, size, squares, products, sizes_squared = totals.T
    means = sum_ / size
    residual = np.maximum(squares - 2 * means * products + means**2 * sizes_squared, 0)  # of (sum - mean * size)
    return means, np.sqrt(residual * count / (count - 1)) / size


def _studentized(centred: Clusters, confidence: float, resamples: int, seed: int) -> tuple[float, float, str]:
    """Deviations of both ends from the mean, and the method that has found them."""
    count = len(centred.sums)
    student = stats.t.ppf((1 + confidence) / 2, count - 1)
    if count >= FEWEST:
        means, errors = _resampled(centred, resamples, seed)
        error = math.sqrt((centred.sums**2).sum() * count / (count - 1)) / centred.sizes.sum()
        scores = np.sort(means / np.maximum(errors, 1e-6 * error))
        low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
        if max(-low, high) <= FARTHEST * student:
            # (The mean is inside, however few the resamples.)
            return min(-high * error, 0.0), max(-low * error, 0.0), "studentized"
    half = student * centred.standard_error()
    return -half, half, "t"


def _bca(centred: Clusters, means: np.ndarray, tails: np.ndarray, tie: float) -> np.ndarray | None:
    """The shares of the resamples' means that are the ends, or `None` where they are not defined."""
    below = (np.searchsorted(means, -tie) + np.searchsorted(means, tie, side="right")) / (2 * len(means))
    if not 0 < below < 1:
        return None
    bias = stats.norm.ppf(below)
    others = centred.left_out()
    influence = others.mean() - others
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    shifted = bias + stats.norm.ppf(tails)
    if (acceleration * shifted >= 1).any():
        return None
    return stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
