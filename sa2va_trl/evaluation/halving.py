"""The best of many candidates by successive halving: all on a few patients, the better ones on more of them."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Round:
    """
    One round of a search.

    Args:
        candidates (`list[int]`): that were scored, the best first.
        means (`list[float]`): over the images of the round, in the same order.
        clusters (`int`): patients (or else videos, or images) of the round.
        images (`int`): theirs.
    """

    candidates: list[int]
    means: list[float]
    clusters: int
    images: int


@dataclass
class Halving:
    """
    What a search has found.

    Args:
        rounds (`list[Round]`): in their order; the last one has all images.
        values (`np.ndarray` of shape `(candidates, images)`): NaN where a candidate was not scored.
    """

    rounds: list[Round]
    values: np.ndarray

    @property
    def best(self) -> int:
        """The candidate with the highest mean over all images; of equal ones the first that was given."""
        return self.rounds[-1].candidates[0]

    @property
    def scored(self) -> int:
        """How many images were scored in all, over candidates."""
        return int(np.isfinite(self.values).sum())


def successive_halving(
    count: int,
    score: Callable[[list[int], list[int]], np.ndarray],
    clusters: Sequence[Hashable],
    kept: Sequence[int] = (0,),
    finalists: int = 4,
    eta: int = 2,
    seed: int = 0,
) -> Halving:
    """
    Score candidates on more and more images, and drop the worse ones after every round (Jamieson and Talwalkar,
    AISTATS 2016, arXiv 1502.07943). Every round has `eta` times the clusters of the one before and keeps one candidate
    of `eta`, so all rounds cost about the same; with few clusters there are fewer rounds, which keep fewer each. No
    image is scored twice for a candidate.

    Args:
        count (`int`): candidates.
        score (`Callable`):
            From candidates and images (positions, both ascending) to an array of shape `(candidates, images)` of
            finite numbers, higher is better.
        clusters (`Sequence`): one label an image, such as its patient; the images of one come together.
        kept (`Sequence[int]`, *optional*, defaults to `(0,)`): never dropped, so that others can be compared with
            them on all images.
        finalists (`int`, *optional*, defaults to 4): scored on all images, beside those that are kept.
        eta (`int`, *optional*, defaults to 2): at least 2.
        seed (`int`, *optional*, defaults to 0): of the order in which clusters are taken.

    Returns:
        [`Halving`].

    Raises:
        `ValueError`: no candidates or images, `kept` names others, a number out of its range, or `score` has returned
            another shape or numbers that are not finite.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.evaluation.halving import successive_halving

        >>> quality = np.linspace(0, 1, 32)
        >>> found = successive_halving(32, lambda which, images: quality[which][:, None] + np.zeros(len(images)),
        ...     clusters=range(64))
        >>> found.best, [(len(each.candidates), each.images) for each in found.rounds], found.scored
        (31, [(32, 8), (17, 16), (9, 32), (5, 64)], 696)

        ```
    """
    if count < 1 or not len(clusters):
        raise ValueError(f"There is nothing to search: {count} candidates on {len(clusters)} images.")
    if eta < 2 or finalists < 1:
        raise ValueError(f"eta must be at least 2 and finalists at least 1, got {eta} and {finalists}.")
    if unknown := [candidate for candidate in kept if not 0 <= candidate < count]:
        raise ValueError(f"kept names {unknown}, of {count} candidates.")
    labels = list(dict.fromkeys(clusters))
    place = {labels[which]: order for order, which in enumerate(np.random.default_rng(seed).permutation(len(labels)))}
    places = np.array([place[label] for label in clusters])
    rest = [candidate for candidate in range(count) if candidate not in kept]
    # Rounds before the last one: no more than there are new clusters for, so that of few patients none decides alone
    # again and again.
    surplus = max(len(rest) / finalists, 1)
    others = min(math.ceil(math.log(surplus, eta) - 1e-9), math.floor(math.log(len(labels), eta) + 1e-9))
    values, rounds, before = np.full((count, len(places)), np.nan), [], 0
    for number in range(others + 1):
        taken = math.ceil(len(labels) / eta ** (others - number))
        which = sorted({*kept, *rest})
        images = np.flatnonzero((places >= before) & (places < taken)).tolist()
        if images:
            found = np.asarray(score(which, images), dtype=np.float64)
            if found.shape != (len(which), len(images)) or not np.isfinite(found).all():
                raise ValueError(
                    f"score must return {len(which)} x {len(images)} finite numbers, got shape {found.shape}."
                )
            values[np.ix_(which, images)] = found
        seen = values[which][:, places < taken]
        means = np.ascontiguousarray(seen).mean(1)
        order = np.argsort(-means, kind="stable")
        ranked = [which[position] for position in order]
        rounds.append(Round(ranked, means[order].tolist(), taken, seen.shape[1]))
        before = taken
        if number < others:
            keep = max(math.ceil(finalists * surplus ** (1 - (number + 1) / others) - 1e-9), finalists)
            rest = [candidate for candidate in ranked if candidate in set(rest)][:keep]
    return Halving(rounds, values)
