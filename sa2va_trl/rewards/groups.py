"""Rewards of a group: several masks of one object, as a policy draws them."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from .checks import CheckedReward, checked
from .composites import CompositeReward
from .functions import REWARDS
from .samples import one_target, planes


class GroupScores(NamedTuple):
    """
    Args:
        rewards (`np.ndarray` of shape `(K,)`): float64.
        components (`dict[str, np.ndarray]`): the parts of each, unweighted, by name: float64, `(K,)`.
    """

    rewards: np.ndarray
    components: dict[str, np.ndarray]


def score_group(
    reward: str | dict[str, float] | Callable[..., list[float]],
    pred_masks: np.ndarray,
    target: np.ndarray,
    **columns: Any,
) -> GroupScores:
    """
    Rewards of several masks of one object. Work is done on the box that holds all of them and the target, whose
    skeleton and components are found once; the values are those of each mask at full size.

    Args:
        reward (`str`, `dict` or `Callable`): see [`~rewards.get_reward`].
        pred_masks (`np.ndarray` or `torch.Tensor` of shape `(K, H, W)`): anything but 0 is foreground.
        target (`np.ndarray` or `torch.Tensor` of shape `(H, W)`): likewise.
        columns:
            What else the object's row has, such as `sample_id`; a reward gets it once a mask;
            `trainer_state` as it is.

    Returns:
        [`GroupScores`].

    Raises:
        `RewardError`: the reward raises, as it does of masks of another size, or gives no finite number.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.rewards import score_group

        >>> target = np.zeros((16, 16), dtype=bool)
        >>> target[6:9, 1:15] = True
        >>> scores = score_group("default", np.stack([target, ~target]), target, sample_id="one")
        >>> scores.rewards.tolist(), scores.components["dice"].tolist()
        ([1.0, 0.0], [1.0, 0.0])

        ```
    """
    return _score(checked(reward), pred_masks, target, columns)


class GroupScorer:
    """
    Scores many groups, on request by processes beside this one that live as long as it does. Use it in `with`, or
    [`close`] it.

    Args:
        reward (`str`, `dict` or `Callable`):
            See [`~rewards.get_reward`]. With workers it must be one that can be pickled, and each has its own copy.
        workers (`int`, *optional*, defaults to 0):
            Processes that score; 0 for none beside this one. They are started when the first groups come.

    Raises:
        `ValueError`: fewer than no workers, an unknown reward, or one that workers cannot be given.
    """

    def __init__(self, reward: str | dict[str, float] | Callable[..., list[float]], workers: int = 0):
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}.")
        self.reward, self.workers, self._pool = checked(reward), workers, None
        if workers:
            try:
                pickle.dumps(self.reward)
            except Exception as error:
                raise ValueError(
                    f"reward {self.reward.__name__} cannot be given to workers ({error}): define it in a module, or "
                    "use workers=0."
                ) from error
        inner = self.reward.reward
        # Others may look at the whole group.
        self._is_by_mask = isinstance(inner, CompositeReward) or any(inner is known for known in REWARDS.values())

    def __call__(self, groups: Iterable[tuple[np.ndarray, np.ndarray, dict[str, Any]]]) -> list[GroupScores]:
        """
        Score groups.

        Args:
            groups (`Iterable`): the arguments of [`score_group`]: masks, target and columns.

        Returns:
            `list[GroupScores]`: in their order.

        Raises:
            `RewardError`: of the first group at which the reward fails.
        """
        groups = list(groups)
        if not self.workers:
            return [_score(self.reward, *group) for group in groups]
        if self._pool is None:
            # Not by forking, since the model's threads may hold locks.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, context, _begin, (self.reward,))
        # Where there are fewer groups than workers, each is shared out.
        shares = -(-self.workers // max(len(groups), 1)) if self._is_by_mask else 1
        waiting = []
        for pred_masks, target, columns in groups:
            preds, target = planes(pred_masks), planes(target)
            parts = np.array_split(preds, min(shares, max(len(preds), 1)))
            waiting.append([self._pool.submit(_work, _packed(part), _packed(target), columns) for part in parts])
        return [_joined([future.result() for future in futures]) for futures in waiting]

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> "GroupScorer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _score(reward: CheckedReward, pred_masks: np.ndarray, target: np.ndarray, columns: dict[str, Any]) -> GroupScores:
    preds, count = list(planes(pred_masks)), len(pred_masks)
    (target,) = one_target(target)
    # (The state of the trainer is one for all, as TRL passes it.)
    repeated = {name: value if name == "trainer_state" else [value] * count for name, value in columns.items()}
    parts = reward.components(pred_masks=preds, mask=[target] * count, **repeated)
    rewards = np.array(reward.combine(parts) if count else [], dtype=float)
    return GroupScores(rewards, {name: np.array(values, dtype=float) for name, values in parts.items()})


def _joined(parts: list[GroupScores]) -> GroupScores:
    names = parts[0].components
    components = {name: np.concatenate([part.components[name] for part in parts]) for name in names}
    return GroupScores(np.concatenate([part.rewards for part in parts]), components)


def _packed(masks: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.packbits(masks), masks.shape


def _unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def _begin(reward: CheckedReward) -> None:
    global _reward
    _reward = reward


def _work(preds: tuple, target: tuple, columns: dict[str, Any]) -> GroupScores:
    return _score(_reward, _unpacked(*preds), _unpacked(*target), columns)
