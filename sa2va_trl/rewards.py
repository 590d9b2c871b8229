"""Rewards of predicted masks, with the signature of TRL's reward functions.

A reward function takes keyword arguments, each a list with one entry a sample: `pred_masks`, the columns of the
dataset (`mask`, or `masks` where a row has several objects) and whatever else the trainer passes, and returns one
float a sample. All rewards here lie in [0, 1], 1 is best, and of several objects the mean counts.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from .media.masks import binary_mask
from .metrics import betti0_score, cldice, confusion_counts, dice


def dice_reward(pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any) -> list[float]:
    """
    Dice coefficient, see [`~metrics.dice`].

    Args:
        pred_masks (`list`):
            For each sample a mask of shape `(H, W)`, or `(objects, H, W)`: arrays, tensors or PIL images. In arrays
            and tensors anything but 0 is foreground (threshold probabilities first); PIL images are judged like a
            dataset's masks ([`~media.masks.binary_mask`]).
        mask (`list`, *optional*):
            For each sample its target of the same size, or `None` where the row has `masks`.
        masks (`list`, *optional*):
            For each sample the targets of its objects.
        kwargs:
            Other columns, which do not matter here.

    Returns:
        `list[float]`: in [0, 1].

    Raises:
        `ValueError`: a sample has no target, or another number or size of masks than predicted.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.rewards import dice_reward

        >>> target = np.zeros((8, 8), dtype=np.uint8)
        >>> target[:4] = 1
        >>> dice_reward(pred_masks=[target, 1 - target], mask=[target, target])
        [1.0, 0.0]

        ```
    """
    return _score(lambda pred, target: dice(confusion_counts(pred, target)), pred_masks, mask, masks)


def cldice_reward(pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any) -> list[float]:
    """Centreline Dice on hard skeletons, see [`~metrics.cldice`]. Arguments as [`dice_reward`]."""
    return _score(cldice, pred_masks, mask, masks)


def betti0_reward(pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any) -> list[float]:
    """Agreement of the numbers of components, see [`~metrics.betti0_score`]. Arguments as [`dice_reward`]."""
    return _score(betti0_score, pred_masks, mask, masks)


REWARDS = {"dice": dice_reward, "cldice": cldice_reward, "betti0": betti0_reward}


class WeightedReward:
    """
    Weighted mean of rewards: in [0, 1], 1 for equal masks, whatever the weights.

    Args:
        weights (`dict[str, float]`):
            Of `"dice"`, `"cldice"` and `"betti0"`; not negative, and not all 0. They need not add up to 1.

    Raises:
        `ValueError`: an unknown reward, or weights that make no mean.
    """

    # TRL logs a reward under its function's name.
    __name__ = "weighted_reward"

    def __init__(self, weights: dict[str, float]):
        if unknown := sorted(weights.keys() - REWARDS.keys()):
            raise ValueError(f"reward: unknown {', '.join(unknown)}; there are {', '.join(REWARDS)}.")
        values = np.array(list(weights.values()), dtype=float)
        if not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
            raise ValueError(f"reward: weights must be 0 or more and not all 0, got {weights}.")
        self.weights = {name: float(weight / values.sum()) for name, weight in weights.items() if weight}

    def __call__(self, pred_masks: list, **kwargs: Any) -> list[float]:
        """Arguments and result as [`dice_reward`]."""
        parts = [REWARDS[name](pred_masks=pred_masks, **kwargs) for name in self.weights]
        # (Weights that add up to 1 can still give 1 + 2e-16.)
        return [min(1.0, float(value)) for value in np.array(list(self.weights.values())) @ np.array(parts)]


def get_reward(reward: str | dict[str, float] | Callable[..., list[float]]) -> Callable[..., list[float]]:
    """
    A reward function by name.

    Args:
        reward (`str`, `dict` or `Callable`):
            `"dice"`, `"cldice"` or `"betti0"`; weights of several as a `dict`, or as JSON such as
            `'{"dice": 0.6, "cldice": 0.4}'`; or a function with TRL's signature, which is returned as it is.

    Returns:
        `Callable`: with TRL's signature.

    Raises:
        `ValueError`: an unknown name or weights that make no mean.
    """
    if isinstance(reward, str) and reward.lstrip().startswith("{"):
        try:
            reward = json.loads(reward)
        except json.JSONDecodeError as error:
            raise ValueError(f"reward: {reward!r} is not JSON ({error}).") from error
    if isinstance(reward, dict):
        return WeightedReward(reward)
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise ValueError(f"reward: unknown {reward!r}; there are {', '.join(REWARDS)}, or weights as JSON.")
        return REWARDS[reward]
    return reward


def _score(metric: Callable, pred_masks: list, mask: list | None, masks: list | None) -> list[float]:
    count = len(pred_masks)
    singles = [None] * count if mask is None else mask
    groups = [None] * count if masks is None else masks
    if len(singles) != count or len(groups) != count:
        raise ValueError(f"{count} predictions, but {len(singles)} `mask` and {len(groups)} `masks`.")
    rewards = []
    for number, (pred, single, group) in enumerate(zip(pred_masks, singles, groups, strict=True)):
        if single is None and not _length(group):
            raise ValueError(f"sample {number} has no target: neither `mask` nor `masks`.")
        pred, target = _planes(pred), _planes(group if single is None else single)
        if pred.shape != target.shape:
            raise ValueError(
                f"sample {number}: predicted masks are {pred.shape}, targets {target.shape} (objects, height, width)."
            )
        rewards.append(float(np.mean([metric(*pair) for pair in zip(pred, target, strict=True)])))
    return rewards


def _length(group: Any) -> int:
    return 0 if group is None else len(group)


def _planes(masks: Any) -> np.ndarray:
    """One mask, or the masks of several objects, as `bool` of shape `(objects, H, W)`."""
    if isinstance(masks, list | tuple):
        return np.concatenate([_planes(mask) for mask in masks])
    if isinstance(masks, Image):
        masks = np.asarray(binary_mask(masks))
    array = (masks.detach().cpu().numpy() if isinstance(masks, torch.Tensor) else np.asarray(masks)) != 0
    return array[None] if array.ndim == 2 else array
