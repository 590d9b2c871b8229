"""Rewards by their rank among those before."""

from collections.abc import Sequence

import numpy as np


class RankNormalizer:
    """
    Replaces a reward by its quantile among the last ones, as Dr. Seg's distribution-ranked reward does (Sun et al.,
    2026, arXiv 2603.00152): whatever the scale of a reward and wherever its values crowd, its ranks are spread evenly,
    so that several rewards weigh alike.

    The history holds the present values too, so that the first ones have a rank already and the order within a batch
    does not matter. Of `n` values of the history, a reward above `b` of them and equal to `e` (itself among them) has
    the rank `(b + e / 2) / n`: between 0 and 1, and 1/2 on average over the history.

    Args:
        size (`int`, *optional*, defaults to 1024):
            How many values are remembered; the eldest are forgotten first. A batch that is larger is ranked in itself.

    Raises:
        `ValueError`: a size below 1.

    Example:

        ```python
        >>> from sa2va_trl.rewards import RankNormalizer

        >>> ranks = RankNormalizer(size=4)
        >>> ranks([0.1, 0.2, 0.9, 0.2])
        [0.125, 0.5, 0.875, 0.5]
        >>> ranks([0.5])
        [0.625]

        ```
    """

    def __init__(self, size: int = 1024):
        if size < 1:
            raise ValueError(f"size must be 1 or more, got {size}.")
        self.size = size
        self._values = np.empty(0)

    def __call__(self, values: Sequence[float]) -> list[float]:
        """
        Rank rewards, and remember them.

        Args:
            values (`Sequence[float]`): finite.

        Returns:
            `list[float]`: in (0, 1), one for each.

        Raises:
            `ValueError`: a value that is not finite.
        """
        ranks = self.rank(values)
        self.remember(values)
        return ranks

    def rank(self, values: Sequence[float]) -> list[float]:
        """As a call, and the history stays as it is: what comes one after the other has the same ranks as together."""
        values = np.asarray(values, dtype=float)
        if not np.isfinite(values).all():
            raise ValueError(f"only finite rewards have a rank, got {values.tolist()}.")
        # A batch beyond the size is ranked in itself and not in a part of it.
        history = np.sort(np.concatenate([self._values[len(self._values) - self._kept(len(values)) :], values]))
        below, up_to = np.searchsorted(history, values, "left"), np.searchsorted(history, values, "right")
        return ((below + up_to) / (2 * max(len(history), 1))).tolist()

    def remember(self, values: Sequence[float]) -> None:
        """Take rewards into the history, the last one last."""
        self._values = np.concatenate([self._values, np.asarray(values, dtype=float)])[-self.size :]

    def _kept(self, new: int) -> int:
        return min(len(self._values), max(self.size - new, 0))

    def state_dict(self) -> dict:
        """The history, for a checkpoint: plain numbers, the eldest first."""
        return {"size": self.size, "values": self._values.tolist()}

    def load_state_dict(self, state: dict) -> None:
        """
        Go on from a history.

        Args:
            state (`dict`): of [`state_dict`].

        Raises:
            `ValueError`: a history of another size.
        """
        if state["size"] != self.size:
            raise ValueError(f"the history was of {state['size']} rewards, this one is of {self.size}.")
        self._values = np.asarray(state["values"], dtype=float)
