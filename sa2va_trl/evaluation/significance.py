"""Whether a difference is more than chance: a permutation test by patient, and the correction for several tests."""

from collections.abc import Hashable, Sequence

import numpy as np

from .clusters import by_cluster


def sign_flip_p(
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """
    Paired permutation test of two models (Fisher, The Design of Experiments, 1935, section 21), by cluster.

    If both were equally good, which of them made which masks of a patient would be as good as tossed: the mean
    difference over images is compared with those after swapping the models in some of the clusters, in all ways where
    these are no more than `resamples`, else in as many at random (and then the observed one counts as one of them, so
    that p is never 0: Phipson and Smyth, 2010). A cluster's images are swapped together, because they are not
    independent.

    Args:
        differences (`Sequence[float]`): one finite number an image, after - before.
        clusters (`Sequence`, *optional*): one label an image, such as the patient; every image its own by default.
        resamples (`int`, *optional*, defaults to `10_000`): ways to swap.
        seed (`int`, *optional*, defaults to `0`): of the random ones.

    Returns:
        `float`: two-sided p value; never below [`smallest_p`].

    Raises:
        `ValueError`: as [`~evaluation.bootstrap_ci`].

    Example:

        ```python
        >>> from sa2va_trl.evaluation import sign_flip_p

        >>> sign_flip_p([0.03, 0.05, 0.01, 0.02, 0.04, 0.02])  # all six agree: 2 of 2 ** 6 ways are as extreme
        0.03125

        ```
    """
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
    sums = by_cluster(differences, clusters, "differences").sums
    count = len(sums)
    observed = abs(sums.sum()) - 1e-12 * abs(sums).sum()  # other orders of adding are ties
    if is_exact(count, resamples):
        # (The last cluster stays as it is: the other half of the ways are the same, with the opposite sign.)
        ways = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1
        return float((abs((1 - 2 * ways) @ sums) >= observed).mean())
    rng, extreme = np.random.default_rng(seed), 0
    block = max(1, 2**22 // count)  # bounds the memory: 32 MiB of signs at a time
    for start in range(0, resamples, block):
        ways = rng.integers(2, size=(min(block, resamples - start), count), dtype=np.int8)
        extreme += int((abs((1.0 - 2.0 * ways) @ sums) >= observed).sum())
    return (1 + extreme) / (1 + resamples)


def is_exact(clusters: int, resamples: int = 10_000) -> bool:
    """
    Args:
        clusters (`int`): how many.
        resamples (`int`, *optional*, defaults to `10_000`): of [`sign_flip_p`].

    Returns:
        `bool`: whether all ways to swap are tried; up to 14 clusters by default.
    """
    return clusters <= 60 and 2 ** (clusters - 1) <= resamples


def smallest_p(clusters: int, tests: int = 1) -> float:
    """
    What a p value cannot be below, even where all clusters agree: `2 ** (1 - clusters)`, times the number of tests
    that Holm's correction is for.

    Args:
        clusters (`int`): how many.
        tests (`int`, *optional*, defaults to `1`): of one family.

    Returns:
        `float`, of [`sign_flip_p`] and of the signed-rank test alike.
    """
    return min(1.0, tests * 2.0 ** (1 - clusters))


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
