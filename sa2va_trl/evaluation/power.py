"""How large a difference is, and how large one must be to be found."""

import math

import numpy as np
from scipy import optimize, special, stats

from .significance import smallest_p


def effect_size(mean: float, spread: float, clusters: int) -> float | None:
    """
    Standardised mean difference of pairs: Cohen's d_z (Statistical Power Analysis, 1988, section 2.3.5), the mean in
    units of the differences' standard deviation between clusters, times Hedges' correction for few of them (Journal
    of Educational Statistics 6, 1981, 107-128).

    Args:
        mean (`float`): difference.
        spread (`float`): standard deviation of the clusters' differences, in the same unit.
        clusters (`int`): how many.

    Returns:
        `float`: without a unit, with the sign of `mean`. `None` where there is no spread.
    """
    if clusters < 2 or not spread > 0:
        return None
    degrees = clusters - 1
    # Of 1 degree of freedom the correction is 0: two clusters say nothing of the size.
    correction = 0.0
    if degrees > 1:
        correction = math.exp(special.gammaln(degrees / 2) - special.gammaln((degrees - 1) / 2))
        correction /= math.sqrt(degrees / 2)
    return correction * mean / spread


def minimum_detectable_difference(
    spread: float, clusters: int, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """
    The mean difference that [`~evaluation.sign_flip_p`] finds with a given probability.

    The test of the mean difference is taken for Student's, whose power the noncentral t distribution gives (Cohen,
    1988, chapter 2); its level is the largest multiple of `2 ** (1 - clusters)` that is at most `alpha`, because p has
    no values between.

    Args:
        spread (`float`):
            Standard deviation of the clusters' differences (`std_clusters` of [`~evaluation.paired_difference`]), in
            the metric's unit.
        clusters (`int`): patients of the comparison, or of one that is planned.
        power (`float`, *optional*, defaults to `0.8`): chance to find it, between `alpha` and 1.
        alpha (`float`, *optional*, defaults to `0.05`): p value below which a difference counts as found.

    Returns:
        `float`: in the unit of `spread`. `None` where so few clusters can show no difference, however large.

    Raises:
        `ValueError`: a negative spread, no cluster, or a probability out of its range.

    Example:

        ```python
        >>> from sa2va_trl.evaluation import minimum_detectable_difference

        >>> [round(minimum_detectable_difference(0.05, patients), 3) for patients in (10, 30, 100)]
        [0.05, 0.026, 0.014]
        >>> minimum_detectable_difference(0.05, 5) is None
        True

        ```
    """
    if not spread >= 0 or clusters < 1:
        raise ValueError(f"A spread of 0 or more and a cluster or more are needed, got {spread} and {clusters}.")
    if not 0 < alpha < power < 1:
        raise ValueError(f"`alpha` and `power` must lie between 0 and 1, `alpha` below, got {alpha} and {power}.")
    step = smallest_p(clusters)
    if step > alpha:
        return None
    # (With many clusters the steps are too small to matter, and in the end to be written as a number.)
    level, degrees = math.floor(alpha / step) * step if clusters < 50 else alpha, clusters - 1
    critical = stats.t.ppf(1 - level / 2, degrees)

    def lacking(shift: float) -> float:
        return stats.nct.sf(critical, degrees, shift) - power

    shift = optimize.brentq(lacking, 0.0, critical + 10 * (1 + critical / np.sqrt(degrees)))
    return float(shift * spread / math.sqrt(clusters))
