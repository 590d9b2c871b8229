"""Means over images and differences between two models, with intervals and tests that respect patients."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from .clusters import by_cluster, check_values
from .intervals import bootstrap_interval
from .power import effect_size, minimum_detectable_difference
from .significance import sign_flip_p, smallest_p


POWER = 0.8


def summarize(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
) -> dict:
    """
    Mean over images (macro average), spread and 95 % bootstrap interval, ready for JSON.

    Args:
        values (`Sequence[float]`):
            One finite number an image.
        clusters (`Sequence`, *optional*):
            One label an image, such as the patient; see [`~evaluation.bootstrap_interval`].
        bounds (`tuple[float, float]`, *optional*): what the mean can be at all, such as `(0, 1)` of a Dice.

    Returns:
        `dict`: `mean`, `std` (between images, `n - 1` in the denominator; 0 for one image), `ci95` (`[lower, upper]`;
        `[None, None]` for a single image or cluster), `n` (images) and `ci95_method` (what the interval comes from,
        see [`~evaluation.bootstrap_interval`]; `None` where there is none).

    Raises:
        `ValueError`: as [`~evaluation.bootstrap_interval`].
    """
    values = check_values(values)
    interval = bootstrap_interval(values, clusters, bounds=bounds)
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "ci95": interval.ends(),
        "n": len(values),
        "ci95_method": interval.method,
    }


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    lower_is_better: bool = False,
    bounds: tuple[float, float] | None = None,
    alpha: float = 0.05,
) -> dict:
    """
    How far one model is better than another on the same images, ready for JSON.

    The test is [`~evaluation.sign_flip_p`], of the mean over images whose interval is given, by cluster: frames of one
    patient are not independent, and a test that takes them for it finds differences where there are none. The price
    is that `k` clusters cannot give a p value below `2 ** (1 - k)`: to pass 0.05 takes at least six, before any
    correction. Beside it stands Wilcoxon's signed-rank test (two-sided; zero differences are left out) of the
    clusters' mean differences, in which every patient counts the same, however many images there are.

    Args:
        before, after (`Sequence[float]`):
            One finite number an image, in the same order.
        clusters (`Sequence`, *optional*):
            One label an image, such as the patient; see [`~evaluation.bootstrap_interval`].
        lower_is_better (`bool`, *optional*, defaults to `False`): which way images improve.
        bounds (`tuple[float, float]`, *optional*): what the mean difference can be at all, such as `(-1, 1)`.
        alpha (`float`, *optional*, defaults to `0.05`): p value below which a difference counts as found.

    Returns:
        `dict`:

        * `mean` (of `after - before` over images, in the metric's unit), `ci95` (`[lower, upper]`, cluster bootstrap
          of the images' differences; `[None, None]` for a single image or cluster) and `ci95_method`;
        * `wilcoxon_p` and `permutation_p` (1 where nothing differs), and `smallest_p`, which neither can be below;
        * `improved` (share of the images with a difference that became better; `None` where nothing differs), `ties`
          (images without a difference), `n` (images) and `clusters` (what is resampled and tested: clusters, or images
          without them);
        * `effect_size` ([`~evaluation.effect_size`], with the sign of `mean`; `None` without a spread), `std_clusters`
          (the spread that it is in units of: standard error of `mean` by the jackknife, times the root of `clusters`;
          `None` for one cluster) and `minimum_detectable` (the difference that would be found with a chance of 80 %,
          [`~evaluation.minimum_detectable_difference`]; `None` where none could be).

    Raises:
        `ValueError`: as [`~evaluation.bootstrap_interval`], or `before` and `after` differ in length.
    """
    before, after = check_values(before, "before"), check_values(after, "after")
    if len(before) != len(after):
        raise ValueError(f"`before` and `after` must pair up, got {len(before)} and {len(after)} values.")
    difference = after - before
    groups = by_cluster(difference, clusters)
    means, count = groups.sums / groups.sizes, len(groups.sums)
    interval = bootstrap_interval(difference, clusters, bounds=bounds)
    spread = groups.standard_error() * math.sqrt(count)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    improved = worse if lower_is_better else better
    return {
        "mean": float(difference.mean()),
        "ci95": interval.ends(),
        "wilcoxon_p": float(stats.wilcoxon(means[means != 0]).pvalue) if means.any() else 1.0,
        "improved": improved / (better + worse) if better + worse else None,
        "ties": len(difference) - better - worse,
        "n": len(difference),
        "clusters": count,
        "ci95_method": interval.method,
        "permutation_p": sign_flip_p(difference, clusters),
        "smallest_p": smallest_p(count),
        "effect_size": effect_size(float(difference.mean()), spread, count),
        "std_clusters": None if count == 1 else spread,
        "minimum_detectable": None if count == 1 else minimum_detectable_difference(spread, count, POWER, alpha),
    }


def mean_of_seeds(values: Sequence[np.ndarray]) -> tuple[np.ndarray, dict | None]:
    """
    One run of several seeds: an image's number is the mean over seeds, so that seeds are not taken for patients.

    Args:
        values (`Sequence[np.ndarray]`): of every seed one number an image, of shape `(images,)`.

    Returns:
        The numbers of the images, and of several seeds how these differ, ready for JSON: `n`, `means` (over images, a
        seed each) and `std` (of those, `n - 1` in the denominator); `None` of a single one.
    """
    if len(values) == 1:
        return values[0], None
    means = [float(own.mean()) for own in values]
    return np.mean(values, axis=0), {"n": len(values), "means": means, "std": float(np.std(means, ddof=1))}
