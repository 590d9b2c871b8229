"""Rows that go through a model together: of like size, and as many as memory takes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch


logger = logging.getLogger(__name__)
T = TypeVar("T")

# As many rows as memory takes, in place of a number.
AUTO = "auto"
# At most so many: on a CPU, where more than a few gain nothing, and on a GPU.
CPU_ROWS, GPU_ROWS = 4, 32
# Of a group's longest row, what the shortest has at least: so much less than a quarter of it is padding.
_LIKE = 0.75
# Of free memory, what a pass may take: pieces of it are too small to be of use.
_USABLE = 0.8


def parse_batch_size(value: int | str) -> int | str:
    """
    Args:
        value (`int` or `str`): of an option.

    Returns:
        `int`, or `"auto"`.

    Raises:
        `ValueError`: neither `"auto"` nor a whole number of at least 1.

    Example:

        ```python
        >>> from sa2va_trl.batches import parse_batch_size

        >>> parse_batch_size("8"), parse_batch_size("auto")
        (8, 'auto')

        ```
    """
    if value == AUTO:
        return AUTO
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, or auto; got {value!r}.")
    return number


def like_sized(work: Sequence[int], size: int) -> list[list[int]]:
    """
    Rows in groups of like size, so that little is padded: none has less than three quarters of its group's longest.

    Args:
        work (`Sequence[int]`): size of each row, in tokens.
        size (`int`): rows of a group at most.

    Returns:
        `list[list[int]]`: numbers of rows, the longest rows first, those of one size in their order.

    Example:

        ```python
        >>> from sa2va_trl.batches import like_sized

        >>> like_sized([10, 40, 11, 38, 12], size=2)
        [[1, 3], [4, 2], [0]]

        ```
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(work)), key=lambda row: -work[row]):
        if groups and len(groups[-1]) < size and work[row] >= _LIKE * work[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class Batches:
    """
    How many rows go through a model at a time: a number, or as many as memory takes. That is found out as it goes: on
    a GPU the longest of the first rows goes alone, and what it took says how many fit; where memory runs out
    nevertheless, half as many go from then on. Rows that are given together go in groups of like size.

    Args:
        size (`int` or `"auto"`): rows at a time.
        device (`torch.device`): of the model.
    """

    def __init__(self, size: int | str, device: torch.device):
        self.device = device
        self.most = parse_batch_size(size)
        if size == AUTO:
            self.most = GPU_ROWS if device.type == "cuda" else CPU_ROWS
        # Of `most` it is not known yet whether they fit.
        self._pending = size == AUTO and device.type == "cuda"

    def run(self, call: Callable[[list[int]], T], work: Sequence[int]) -> Iterator[tuple[list[int], T]]:
        """
        Args:
            call (`Callable`): from numbers of rows to whatever a pass makes of them.
            work (`Sequence[int]`): size of each row, in tokens.

        Yields:
            For every pass the numbers of its rows, and what `call` made of them.

        Raises:
            `OutOfMemoryError`: a single row does not fit (of torch).
        """
        left = list(range(len(work)))
        while left:
            rows = [left[place] for place in like_sized([work[row] for row in left], self._size())[0]]
            short, before = False, _allocated(self.device) if self._pending else 0
            try:
                made = call(rows)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                short = True
            if short:  # (Here, where nothing holds the tensors of the pass any more.)
                self.most = len(rows) // 2
                torch.cuda.empty_cache()
                logger.warning("Out of memory with %d rows at a time: going on with %d.", len(rows), self.most)
                continue
            if self._pending:
                self._pending = False
                self.most = min(self.most, _that_fit(self.device, before))
                logger.debug("%d rows at a time.", self.most)
            yield rows, made
            left = [row for row in left if row not in rows]

    def in_order(self, call: Callable[[list[int]], Sequence[T]], work: Sequence[int]) -> list[T]:
        """
        As `run`, of passes that make something of each row.

        Args:
            call (`Callable`): from numbers of rows to what a pass makes of each.
            work (`Sequence[int]`): size of each row, in tokens.

        Returns:
            `list`: what was made of each row, in the order of `work`.

        Raises:
            `OutOfMemoryError`: a single row does not fit (of torch).
        """
        made = {}
        for rows, own in self.run(call, work):
            made |= dict(zip(rows, own, strict=True))
        return [made[row] for row in range(len(work))]

    def _size(self) -> int:
        return 1 if self._pending else self.most


def _allocated(device: torch.device) -> int:
    """Bytes of tensors, from where the peak is counted on."""
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _that_fit(device: torch.device, before: int) -> int:
    """How many rows fit, after one that was alone with `before` bytes; at least one."""
    taken = max(1, torch.cuda.max_memory_allocated(device) - before)
    unused = torch.cuda.memory_reserved(device) - before  # (cached by torch, free for the next pass)
    free = torch.cuda.mem_get_info(device)[0] + max(0, unused)
    return max(1, int(_USABLE * free / taken))
