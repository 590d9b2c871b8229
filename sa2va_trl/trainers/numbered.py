"""Rows by number: batches that know them, and epochs that choose them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """
    Rows as a function of the epoch says. The trainer sets `epoch`: accelerate's `set_epoch` does not reach a sampler
    behind both its skipping of batches and its sharding, which is where a resumed run on several processes has it.

    Args:
        length (`int`): rows of an epoch.
        plan (`Callable`): from the number of an epoch to its rows.
    """

    def __init__(self, length: int, plan: Callable[[int], list[int]]):
        self.length, self.plan, self.epoch = length, plan, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.plan(self.epoch))


@dataclass
class WithRowNumbers:
    """
    Batches of a collator with the rows' numbers in the training set, `row_numbers`.

    Args:
        collator (`Callable`): of the batches.
    """

    collator: Callable[[list[dict]], dict]

    def __call__(self, rows: list[dict]) -> dict:
        return {**self.collator(rows), "row_numbers": torch.tensor([row["row_index"] for row in rows])}
