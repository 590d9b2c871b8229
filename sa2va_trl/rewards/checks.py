"""Rewards that say which sample they fail at."""

import math
from collections.abc import Callable
from typing import Any

from .composites import CompositeReward, get_reward
from .functions import REWARDS


class RewardError(ValueError):
    """A reward that raised, or gave something that is no reward: which one, of which sample and, if known, when."""


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; one in a tensor or array is, as it is for TRL."""
    try:
        return not isinstance(value, str | bytes) and math.isfinite(float(value))
    except (TypeError, ValueError, RuntimeError):
        return False


class CheckedReward(CompositeReward):
    """
    A reward that names itself and the sample where it raises or gives no finite number, and whose parts can be had one
    by one whatever it is; of a plain function the only part is the function itself. Made by [`checked`].

    Args:
        reward (`Callable`): with TRL's signature.
    """

    def __init__(self, reward: Callable[..., list[float]]):
        self.reward = reward
        # (Not in a dict: what is no function of ours need not be hashable.)
        self._own = next((name for name, function in REWARDS.items() if function is reward), None)
        name = getattr(reward, "__name__", type(reward).__name__)
        parts = reward.names if isinstance(reward, CompositeReward) else (self._own or name,)
        super().__init__(parts, name)

    def components(self, pred_masks: list, **kwargs: Any) -> dict[str, list[float]]:
        """
        The parts, each checked.

        Args:
            pred_masks (`list`): as of [`~rewards.dice_reward`].
            kwargs: columns: `sample_id`, where there is one, is what samples are called, and `trainer_state`, which
                TRL's trainers pass, tells the step.

        Raises:
            `RewardError`: the reward raised, or gave another number of values than samples or one that is not finite.
        """
        try:
            found = self._parts(pred_masks, kwargs)
        except Exception as error:
            raise self._error(f"{type(error).__name__}: {error}", self._culprit(pred_masks, kwargs), kwargs) from error
        for name, values in found.items():
            part = f"{name}: " if self.names != (name,) else ""
            if not hasattr(values, "__len__") or len(values) != len(pred_masks):
                raise self._error(f"{part}{values!r:.80} in place of {len(pred_masks)} values", None, kwargs)
            for number, value in enumerate(values):
                if not _is_number(value):
                    raise self._error(f"{part}{value} in place of a finite number", number, kwargs)
        return {name: [float(value) for value in values] for name, values in found.items()}

    def linear_weights(self) -> dict[str, float]:
        """As of the reward; of a function of `REWARDS` 1, and nothing of another, whatever it is called."""
        if isinstance(self.reward, CompositeReward):
            return self.reward.linear_weights()
        return {} if self._own is None else {self._own: 1.0}

    def combine(self, components: dict[str, list[float]]) -> list[float]:
        """As the reward does."""
        if isinstance(self.reward, CompositeReward):
            return self.reward.combine(components)
        return components[self.names[0]]

    def _parts(self, pred_masks: list, columns: dict) -> dict[str, list[float]]:
        if isinstance(self.reward, CompositeReward):
            return self.reward.components(pred_masks=pred_masks, **columns)
        return {self.names[0]: self.reward(pred_masks=pred_masks, **columns)}

    def _culprit(self, pred_masks: list, columns: dict) -> int | None:
        """The first sample at which the reward raises if it is given alone."""
        count = len(pred_masks)
        for number in range(count):
            own = {
                name: column[number : number + 1] if isinstance(column, list) and len(column) == count else column
                for name, column in columns.items()
            }
            try:
                self._parts(pred_masks[number : number + 1], own)
            except Exception:
                return number
        return None

    def _error(self, what: str, number: int | None, columns: dict) -> RewardError:
        where = f"reward {self.__name__}"
        if number is not None:
            identifiers = columns.get("sample_id")
            of = f" (sample_id {identifiers[number]})" if identifiers is not None else ""
            where += f", sample {number} of the batch{of}"
        step = getattr(columns.get("trainer_state"), "global_step", None)
        return RewardError(f"{where}{'' if step is None else f', step {step}'}: {what}.")


def checked(reward: str | dict[str, float] | Callable[..., list[float]]) -> CheckedReward:
    """
    A reward whose failures name it and the sample.

    Args:
        reward (`str`, `dict` or `Callable`): see [`~rewards.get_reward`].

    Returns:
        [`CheckedReward`]: also with TRL's signature.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.rewards import checked

        >>> def brightness(pred_masks, **kwargs):
        ...     return [float("nan") if not mask.any() else 1.0 for mask in pred_masks]

        >>> masks = [np.ones((2, 2)), np.zeros((2, 2))]
        >>> checked(brightness)(pred_masks=masks, sample_id=["a", "b"])
        Traceback (most recent call last):
        ...
        sa2va_trl.rewards.checks.RewardError: reward brightness, sample 1 of the batch (sample_id b): nan in place of a finite number.

        ```
    """  # noqa: E501
    return reward if isinstance(reward, CheckedReward) else CheckedReward(get_reward(reward))
