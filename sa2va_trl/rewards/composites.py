"""Rewards of several parts, and rewards by name."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .functions import PAIR_SCORES, REWARDS
from .samples import score_samples


class CompositeReward:
    """
    A reward of several parts, which can be had one by one: `combine(components(…))` is what a call gives.

    Args:
        names (`tuple[str, ...]`): of `REWARDS`.
        name (`str`): what TRL logs the reward under.
    """

    def __init__(self, names: tuple[str, ...], name: str):
        self.names = names
        # TRL logs a reward under its function's name.
        self.__name__ = name

    def components(
        self, pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any
    ) -> dict[str, list[float]]:
        """
        The parts, unweighted, for a log such as `rewards/<name>/mean`. Skeletons and components are found once for all
        of them.

        Args:
            pred_masks, mask, masks, kwargs: as [`~rewards.dice_reward`].

        Returns:
            `dict[str, list[float]]`: for each name a value a sample, in [0, 1].
        """
        return score_samples({name: PAIR_SCORES[name] for name in self.names}, pred_masks, mask, masks)

    def combine(self, components: dict[str, list[float]]) -> list[float]:
        """
        The reward of its parts.

        Args:
            components (`dict[str, list[float]]`): of [`components`].
        """
        raise NotImplementedError

    def linear_weights(self) -> dict[str, float]:
        """Of the parts that the reward is a sum of: what each is multiplied by in it. None that is not known to be."""
        return {}

    def __call__(self, pred_masks: list, **kwargs: Any) -> list[float]:
        """Arguments and result as [`~rewards.dice_reward`]."""
        return self.combine(self.components(pred_masks=pred_masks, **kwargs))


class WeightedReward(CompositeReward):
    """
    Weighted mean of rewards: in [0, 1], 1 for equal masks, whatever the weights.

    Args:
        weights (`dict[str, float]`):
            Of names of `REWARDS`; not negative, and not all 0. They need not add up to 1.
        name (`str`, *optional*, defaults to `"weighted_reward"`):
            What TRL logs it under.

    Raises:
        `ValueError`: an unknown reward, or weights that make no mean.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.rewards import WeightedReward

        >>> pred, target = np.zeros((2, 8, 8), dtype=np.uint8)
        >>> target[:4], pred[:2] = 1, 1
        >>> reward = WeightedReward({"recall": 3, "precision": 1})
        >>> reward.components(pred_masks=[pred], mask=[target])
        {'recall': [0.5], 'precision': [1.0]}
        >>> reward(pred_masks=[pred], mask=[target])
        [0.625]

        ```
    """

    def __init__(self, weights: dict[str, float], name: str = "weighted_reward"):
        if unknown := sorted(weights.keys() - REWARDS.keys()):
            raise ValueError(f"reward: unknown {', '.join(unknown)}; there are {', '.join(REWARDS)}.")
        values = np.array(list(weights.values()), dtype=float)
        if not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
            raise ValueError(f"reward: weights must be 0 or more and not all 0, got {weights}.")
        self.weights = {key: float(weight) for key, weight in weights.items() if weight}
        super().__init__(tuple(self.weights), name)

    def linear_weights(self) -> dict[str, float]:
        """The weights, divided by their sum."""
        total = sum(self.weights.values())
        return {name: weight / total for name, weight in self.weights.items()}

    def combine(self, components: dict[str, list[float]]) -> list[float]:
        """The weighted mean of the parts."""
        # No product of matrices, which sums in another order where there are more samples. (Weights that add up to 1
        # can still give 1 + 2e-16.)
        weights = self.linear_weights().items()
        values = sum(weight * np.array(components[name], dtype=float) for name, weight in weights)
        return [min(1.0, float(value)) for value in values]


class PublishedReward(CompositeReward):
    """
    The sum that earlier work trained on, for comparison:
    `0.5 · 10 dice + 0.2 · 5 min(recall, 0.85) + 0.2 · 2 topology + 0.1 · 3 vessel_length`.

    It is no mean: it goes from 0 to 6.55, where equal masks are. How a recall counts is open in the plan ("a bonus
    below 0.85"); here each point of it is paid for up to 0.85 and nothing beyond. To pay for the distance to 0.85
    instead would differ by a constant, of which advantages within a group know nothing.

    **It over-segments**: below a recall of 0.85, Dice and recall both pay for a pixel that is found, and a false one
    costs Dice alone. Prefer the preset `default`.
    """

    #: Weight and scale of each part.
    TERMS = {"dice": (0.5, 10.0), "recall": (0.2, 5.0), "topology": (0.2, 2.0), "vessel_length": (0.1, 3.0)}
    #: Beyond this, recall is worth nothing more.
    RECALL_TARGET = 0.85

    def __init__(self) -> None:
        super().__init__(tuple(self.TERMS), "published_reward")

    def linear_weights(self) -> dict[str, float]:
        """Weight times scale, of all but recall."""
        return {name: weight * scale for name, (weight, scale) in self.TERMS.items() if name != "recall"}

    def combine(self, components: dict[str, list[float]]) -> list[float]:
        """The sum of the parts, each with its weight and scale."""
        parts = {name: np.array(components[name], dtype=float) for name in self.names}
        parts["recall"] = np.minimum(parts["recall"], self.RECALL_TARGET)
        return [float(value) for value in sum(w * scale * parts[name] for name, (w, scale) in self.TERMS.items())]


#: Composite rewards that have a name: `default` is precision-neutral, `published` is for comparison.
PRESETS = {"default": WeightedReward({"dice": 0.6, "cldice": 0.4}, "default_reward"), "published": PublishedReward()}


def component_weights(reward: Callable[..., list[float]]) -> dict[str, float]:
    """
    Args:
        reward (`Callable`): of [`get_reward`].

    Returns:
        `dict[str, float]`: the weight of each part as it was given, by name; empty of a reward without weights.
    """
    if isinstance(reward, PublishedReward):
        return {name: weight for name, (weight, _) in reward.TERMS.items()}
    return dict(reward.weights) if isinstance(reward, WeightedReward) else {}


def with_weights(reward: Callable[..., list[float]], weights: dict[str, float]) -> Callable[..., list[float]]:
    """
    The same reward with other weights; the one that is given, which may be a preset, stays as it is.

    Args:
        reward (`Callable`): of [`get_reward`], with weights.
        weights (`dict[str, float]`): of parts that it has; the others stay.

    Returns:
        `Callable`: a [`WeightedReward`] is divided by the sum of its weights again.

    Raises:
        `ValueError`: it has no such part.
    """
    own = component_weights(reward)
    if unknown := sorted(weights.keys() - own.keys()):
        raise ValueError(f"reward: {', '.join(unknown)} is none of its parts, which are {', '.join(own) or 'none'}.")
    if isinstance(reward, PublishedReward):
        changed = PublishedReward()
        changed.TERMS = {name: (weights.get(name, own[name]), scale) for name, (_, scale) in reward.TERMS.items()}
        return changed
    return WeightedReward({**own, **weights}, reward.__name__)


def get_reward(reward: str | dict[str, float] | Callable[..., list[float]]) -> Callable[..., list[float]]:
    """
    A reward function by name.

    Args:
        reward (`str`, `dict` or `Callable`):
            A name of `REWARDS` or `PRESETS`; weights of several of `REWARDS` as a `dict`, or as JSON such as
            `'{"dice": 0.6, "cldice": 0.4}'`; or a function with TRL's signature, which is returned as it is.

    Returns:
        `Callable`: with TRL's signature; a [`CompositeReward`] of weights and presets.

    Raises:
        `ValueError`: an unknown name, weights that make no mean, or something that is no function.
    """
    if isinstance(reward, str) and reward.lstrip().startswith("{"):
        try:
            reward = json.loads(reward)
        except json.JSONDecodeError as error:
            raise ValueError(f"reward: {reward!r} is not JSON ({error}).") from error
    if isinstance(reward, dict):
        return WeightedReward(reward)
    if isinstance(reward, str):
        known = {**REWARDS, **PRESETS}
        if reward not in known:
            raise ValueError(f"reward: unknown {reward!r}; there are {', '.join(known)}, or weights as JSON.")
        return known[reward]
    if not callable(reward):
        raise ValueError(f"reward: {reward!r:.80} is no name, no weights and no function.")
    return reward
