"""Scores of predictions, on request by processes beside the one that predicts."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from ..metrics.rows import score_masks
from ..postprocessing import IDENTITY, Postprocessing
from .results import row_identifiers, score, scored_part


def scored(
    predictions: Iterator[tuple[dict, np.ndarray]],
    threshold: float,
    metrics: str = "overlap",
    workers: int = 0,
    postprocessing: Postprocessing = IDENTITY,
) -> Iterator[tuple[dict, np.ndarray, dict]]:
    """
    Predictions with their scores, in their order.

    Args:
        predictions (iterator): rows and their probabilities.
        threshold (`float`): probability above which a pixel belongs to the mask.
        metrics (`str`, *optional*, defaults to `"overlap"`): one of [`~metrics.rows.METRIC_SETS`].
        workers (`int`, *optional*, defaults to 0): processes that score; 0 for none beside this one.
        postprocessing ([`~postprocessing.Postprocessing`], *optional*): of the masks.

    Yields:
        The row, its probabilities and what [`score`] says of them.

    Raises:
        `ValueError`: fewer than no workers.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}.")
    if workers == 0:
        for row, probabilities in predictions:
            yield row, probabilities, score(row, probabilities, threshold, metrics, postprocessing)
        return
    # Not by forking, since the model's threads may hold locks.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = deque()
        for row, probabilities in predictions:
            work = scored_part(row, metrics, postprocessing), probabilities, threshold, metrics, postprocessing
            waiting.append((row, probabilities, pool.submit(score_masks, *work)))
            if len(waiting) > 2 * workers:  # a bound on the memory
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(row, probabilities, future) -> tuple[dict, np.ndarray, dict]:
    return row, probabilities, {**row_identifiers(row), **future.result()}
