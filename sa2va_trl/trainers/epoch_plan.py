"""The rows of an epoch of hard-sample training: which, how often and in which order. Pure functions."""

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import TrainingArguments

from ..errors import DatasetError, MiningError
from ..features.rows import row_sizes
from ..mining.hardness import takes_threshold, what_is_hard
from ..mining.selection import select_hard


DIFFICULTIES = ("threshold", "dice", "spread", "cluster")
CURRICULA = ("none", "difficulty", "thickness")
# What a plan may need of a score table.
SCORE_COLUMNS = ("dice", "spread", "reward_spread", "cluster", "thickness", "review")


@takes_threshold
def select_rows(
    scores: pd.DataFrame, hard_below: float | None = None, worst: float | None = None, include_review: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """
    Tell hard rows from ordinary ones.

    Args:
        scores (`pandas.DataFrame`): one row a dataset row, with `dice` (NaN: no mask) and, if known, `review`.
        hard_below (`float`, *optional*): rows with a Dice below it are hard; 0.75 where `worst` is not given either.
        worst (`float`, *optional*): in its place, this share of the rows is hard.
        include_review (`bool`, *optional*, defaults to `False`): keep rows that are flagged for review.

    Returns:
        Two `np.ndarray` of bool: rows that are hard, and rows that are ordinary. Rows without a mask and rows flagged
        for review are neither.

    Raises:
        `MiningError`: all rows are hard, or none is (the message says what would select some), or none can be used.
    """
    dice = scores["dice"].to_numpy(dtype=float)
    usable = ~np.isnan(dice)
    if "review" in scores and not include_review:
        usable &= ~scores["review"].to_numpy(dtype=bool)
    if not usable.any():
        raise MiningError(
            f"None of {len(dice)} rows can be trained on: all are flagged for review or have no mask. Look at them, "
            "or train on them with include_review=True."
        )
    hard = np.zeros(len(dice), dtype=bool)
    hard[usable] = select_hard(scores[usable], hard_below if worst is None else None, worst)
    return hard, usable & ~hard


def row_weights(scores: pd.DataFrame, difficulty: str = "threshold", weight_cap: float = 3.0) -> np.ndarray:
    """
    How often hard rows are drawn, relative to each other.

    Args:
        scores (`pandas.DataFrame`): hard rows, with the columns that `difficulty` needs.
        difficulty (`str`, *optional*, defaults to `"threshold"`): see [`~trainers.HardSampleConfig`].
        weight_cap (`float`, *optional*, defaults to 3.0): see [`~trainers.HardSampleConfig`].

    Returns:
        `np.ndarray` of shape `(rows,)`, not negative, with a mean of 1 before the cap.

    Raises:
        `MiningError`: no row has a positive weight.
    """
    if difficulty == "threshold":
        return np.ones(len(scores))
    if difficulty == "cluster":
        sizes = scores["cluster"].map(scores["cluster"].value_counts())
        # A hard row outside of all clusters is one of its own.
        weights = 1 / sizes.to_numpy(dtype=float, na_value=1)
        return weights / weights.mean()
    weights = 1 - scores["dice"].to_numpy(dtype=float)
    if difficulty == "spread":
        weights = weights * scores["spread"].to_numpy(dtype=float)
    if not weights.sum() > 0:
        raise MiningError(
            f"difficulty={difficulty} gives no hard row a weight: the candidate masks of each are all the same. Use "
            "difficulty=threshold, dice or cluster."
        )
    return np.minimum(weights / weights.mean(), weight_cap)


def capped(weights: np.ndarray, cap: float) -> np.ndarray:
    """
    Weights of which none is more than a multiple of their mean: what a row has beyond it is shared out among the
    others in proportion.

    Args:
        weights (`np.ndarray` of shape `(rows,)`): not negative, not all 0.
        cap (`float`): the multiple, at least 1.

    Returns:
        `np.ndarray` of shape `(rows,)`: with a mean of 1. Where fewer than one row in `cap` has a weight, those have
        equal ones, which are larger.
    """
    positive = weights > 0
    if positive.sum() * cap <= len(weights):
        return positive * (len(weights) / positive.sum())
    found, full = np.zeros(len(weights)), np.zeros(len(weights), dtype=bool)
    while True:
        free = positive & ~full
        found[free] = weights[free] / weights[free].sum() * (len(weights) - cap * full.sum())
        over = free & (found > cap)
        if not over.any():
            return found
        full |= over
        found[full] = cap


def draw(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """
    Systematic sampling: `count` draws in proportion to the weights, in which every entry comes as often as expected,
    rounded up or down.

    Args:
        weights (`np.ndarray` of shape `(entries,)`): not negative, not all zero.
        count (`int`): number of draws.
        rng (`np.random.Generator`): source of every random number.

    Returns:
        `np.ndarray` of shape `(count,)`: positions, in random order.
    """
    order = rng.permutation(len(weights))
    start = rng.uniform(0.01, 0.99)  # off the edges, where rounding would decide
    ends = np.cumsum(weights[order]) / np.sum(weights) * count
    ends[-1] = count
    return rng.permutation(order[np.searchsorted(ends, start + np.arange(count), side="right")])


def plan_epoch(
    scores: pd.DataFrame,
    hard: np.ndarray,
    ordinary: np.ndarray,
    length: int,
    epoch: int,
    seed: int = 0,
    difficulty: str = "threshold",
    weight_cap: float = 3.0,
    easy_share: float = 0.5,
    curriculum: str = "none",
) -> list[int]:
    """
    The rows of an epoch in their order: the same on every process and in every run.

    Args:
        scores (`pandas.DataFrame`): one row a dataset row, with the columns that the options need.
        hard, ordinary (`np.ndarray` of bool): from [`select_rows`].
        length (`int`): rows of an epoch.
        epoch (`int`): from 0.
        seed (`int`, *optional*, defaults to 0): of all epochs.
        difficulty, weight_cap, easy_share, curriculum: see [`~trainers.HardSampleConfig`].

    Returns:
        `list[int]` of `length` row numbers. Every stretch of it holds ordinary rows in their share. In the order of
        thickness, rows without one (their masks are empty) are in the last band.
    """
    rng = np.random.default_rng([seed % 2**32, epoch])
    easy_count = round(easy_share * length)
    numbers = np.flatnonzero(hard)
    drawn = numbers[draw(row_weights(scores.iloc[numbers], difficulty, weight_cap), length - easy_count, rng)]
    if curriculum != "none":
        values = scores["dice" if curriculum == "difficulty" else "thickness"].to_numpy(dtype=float)[drawn]
        bands = np.array_split(np.argsort(-values, kind="stable"), 3)
        drawn = np.concatenate([drawn[rng.permutation(band)] for band in bands])
    numbers = np.flatnonzero(ordinary)
    easy = numbers[draw(np.ones(len(numbers)), easy_count, rng)]
    hard_before = np.arange(length + 1) * len(drawn) // length
    is_hard = np.diff(hard_before).astype(bool)
    plan = np.empty(length, dtype=int)
    plan[is_hard], plan[~is_hard] = drawn, easy
    return plan.tolist()


def match_scores(scores: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """
    Bring a score table into the order of a dataset.

    Args:
        scores (`pandas.DataFrame`): with `sample_id` and `dice`.
        dataset (`datasets.Dataset`): the rows that it is about.

    Returns:
        `pandas.DataFrame` with those of `SCORE_COLUMNS` that it has, one row a dataset row; `dice` is NaN where a row
        has no mask.

    Raises:
        `DatasetError`: columns are missing, identifiers are missing, unknown or used twice, a Dice is none, or a
            spread is negative or infinite.
    """
    missing = [name for name in ("sample_id", "dice") if name not in scores]
    if missing:
        raise DatasetError(f"The scores have no column {' and '.join(missing)}: mine them first, with labels.")
    ids = scores["sample_id"]
    twice = ids[ids.duplicated()].tolist()
    if twice:
        raise DatasetError(f"The scores hold {len(twice)} sample_id more than once, such as {twice[0]!r}.")
    own = list(dataset["sample_id"])
    unknown = sorted(set(ids) - set(own))
    if unknown:
        raise DatasetError(
            f"The scores hold {len(unknown)} of {len(ids)} sample_id that train_dataset lacks, such as "
            f"{unknown[0]!r}: they are of another dataset or split."
        )
    lacking = np.flatnonzero(~pd.Series(own).isin(ids))
    if len(lacking):
        sizes = row_sizes(dataset.select(lacking))
        lacking = [own[row] for row, (_, segs) in zip(lacking, sizes, strict=True) if segs]
    if len(lacking):
        raise DatasetError(
            f"The scores lack {len(lacking)} of {len(own)} rows of train_dataset, such as {lacking[0]!r}: score them, "
            "or leave them out."
        )
    dice = scores["dice"].to_numpy(dtype=float)
    if not ((dice >= 0) & (dice <= 1)).all():
        bad = ids[~((dice >= 0) & (dice <= 1))].tolist()
        raise DatasetError(f"{len(bad)} scores have a dice outside of [0, 1], such as that of {bad[0]!r}.")
    for name in {"spread", "reward_spread"} & set(scores):
        values = scores[name].to_numpy(dtype=float)
        if (bad := ~(np.isnan(values) | ((values >= 0) & (values < np.inf)))).any():
            raise DatasetError(f"{bad.sum()} scores have a {name} below 0 or infinite, such as {ids[bad].iloc[0]!r}.")
    found = scores.set_index("sample_id").reindex(own).reset_index(drop=True)
    found = found[[name for name in SCORE_COLUMNS if name in found]]
    return found.assign(review=found["review"].fillna(False)) if "review" in found else found


def check_marks(args: TrainingArguments, recorded: dict | None) -> None:
    """
    Check that the runs that scores mark are of the frames that are hard here.

    Args:
        args (`HardSampleConfig`): options.
        recorded (`dict`, *optional*): what was decided when the scores were mined, see [`~mining.hardness.decided`].

    Raises:
        `ValueError`: `difficulty="cluster"`, and an option says that something else is hard.
    """
    own = what_is_hard(args.hard_below, args.worst, recorded)
    if args.difficulty == "cluster" and recorded not in (None, own):
        (name, value), (other, mined) = *own.items(), *recorded.items()
        raise ValueError(
            f"{name}={value:g} contradicts difficulty=cluster: the scores mark runs of frames that are hard by "
            f"{other}={mined:g}. Leave {name} out, or mine again with it."
        )


def check_columns(scores: pd.DataFrame, args: TrainingArguments) -> None:
    """
    Check that the scores have what options need.

    Args:
        scores (`pandas.DataFrame`): from [`match_scores`].
        args (`HardSampleConfig`): options.

    Raises:
        `ValueError`: an option needs a column of the scores that is missing or has gaps, or has no effect without it.
    """
    needed = {}
    if args.difficulty in ("spread", "cluster"):
        needed[args.difficulty] = f"difficulty={args.difficulty}"
    if args.curriculum == "thickness":
        needed["thickness"] = "curriculum=thickness"
    if args.include_review:
        needed["review"] = "include_review=True"
    for column, option in needed.items():
        if column not in scores:
            raise ValueError(f"{option} needs a column {column!r}, which the scores lack; they have {list(scores)}.")
        gaps = scores[column].isna()[scores["dice"].notna()]
        # Most rows are in no run, and empty masks have no thickness.
        if {"cluster": False, "thickness": gaps.all()}.get(column, gaps.any()):
            raise ValueError(f"{option} needs a {column!r} of each row; {gaps.sum()} of {len(gaps)} have none.")
