"""Processes that work beside this one on parts of a long job."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def _end_with_parent() -> None:
    """End this process when that which started it has ended, be it killed: it would wait for work for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Workers:
    """
    Processes that work beside this one, or none.

    Args:
        count (`int`): of them; with 1 this one does all.
    """

    def __init__(self, count: int):
        self.count = count
        self.pool = None
        if count > 1:  # not by forking, since threads may hold locks
            self.pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(self, function: Callable, jobs: Iterable[tuple]) -> Iterator[Any]:
        """
        Args:
            function (`Callable`): of a module, or a `functools.partial` of one.
            jobs (`Iterable[tuple]`): its arguments. Few are waiting at any time, so that they fill no memory.

        Yields:
            The results, in the order of the jobs.
        """
        if self.pool is None:
            for job in jobs:
                yield function(*job)
            return
        waiting = deque()
        for job in jobs:
            waiting.append(self.pool.submit(function, *job))
            if len(waiting) > 2 * self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
