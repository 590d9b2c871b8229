"""What is hard: the limit or the share, how options say it, and the decision that scores carry with them."""

import math
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import pandas as pd


#: Dice below which a sample is hard. (A frame at the limit is not.)
HARD_BELOW = 0.75
# Where a table of scores has its decision, see [`decided`].
_DECIDED = "sa2va_trl.mining"
Function = TypeVar("Function", bound=Callable)


def takes_threshold(function: Function) -> Function:
    """The function, which also takes its `hard_below` under the earlier name, `threshold=`."""

    @wraps(function)
    def call(*args, **options):
        if "threshold" in options:
            if "hard_below" in options:
                raise TypeError(f"{function.__name__}: threshold is the earlier name of hard_below, give one of them.")
            options["hard_below"] = options.pop("threshold")
        return function(*args, **options)

    return call


def one_limit(hard_below: float | None, threshold: float | None) -> float | None:
    """
    The limit of a set of options, which may have it under its earlier name.

    Args:
        hard_below, threshold (`float`, *optional*): the option, by both of its names.

    Returns:
        `float`, or `None` where it is not given.

    Raises:
        `ValueError`: both are given, and they differ.
    """
    if threshold is None or threshold == hard_below:
        return hard_below
    if hard_below is not None:
        raise ValueError(f"hard_below={hard_below} and threshold={threshold}, its earlier name: give one of them.")
    return threshold


def check_hardness(hard_below: float | None, worst: float | None) -> None:
    """
    Check what is to be hard.

    Args:
        hard_below (`float`, *optional*): samples with a score below it.
        worst (`float`, *optional*): this share of the samples.

    Raises:
        `ValueError`: an option out of its range, or both.
    """
    if hard_below is not None and worst is not None:
        raise ValueError("hard_below and worst both say what is hard: give one of them.")
    if hard_below is not None and math.isnan(hard_below):
        raise ValueError("hard_below must be a number, got nan.")
    if worst is not None and not 0 < worst < 1:
        raise ValueError(f"worst is the share of hard samples, between 0 and 1; got {worst}.")


def what_is_hard(hard_below: float | None, worst: float | None, recorded: dict | None = None) -> dict:
    """
    What options say is hard, or else what was decided before, or else the default.

    Args:
        hard_below, worst (`float`, *optional*): options, at most one of them.
        recorded (`dict`, *optional*): from [`decided`].

    Returns:
        `dict`: `hard_below` or `worst`, whichever decides.
    """
    own = {name: value for name, value in (("hard_below", hard_below), ("worst", worst)) if value is not None}
    return own or recorded or {"hard_below": HARD_BELOW}


def decided(scores: pd.DataFrame, by: str = "dice") -> dict | None:
    """
    What was hard when the scores were mined.

    Args:
        scores (`pandas.DataFrame`): from [`~mining.selection.mine`], or read from their file.
        by (`str`, *optional*, defaults to `"dice"`): column to judge by.

    Returns:
        `dict`: `hard_below` or `worst`; `None` where nothing was decided, not by this column, or (in a file of an
        earlier version) nobody wrote it down.
    """
    found = scores.attrs.get(_DECIDED)
    if found is None or found.get("by") != by:
        return None
    return {name: value for name, value in found.items() if name != "by"}


def record(scores: pd.DataFrame) -> dict | None:
    """The decision as it is written beside scores, which JSON can hold; `None` where there is none."""
    return scores.attrs.get(_DECIDED)


def with_record(scores: pd.DataFrame, found: dict | None) -> pd.DataFrame:
    """
    Scores that carry a decision.

    Args:
        scores (`pandas.DataFrame`): gets the decision in its `attrs`, in place.
        found (`dict`, *optional*): `by`, and `hard_below` or `worst`.

    Returns:
        The same table.
    """
    if found is not None:
        scores.attrs[_DECIDED] = found
    return scores
