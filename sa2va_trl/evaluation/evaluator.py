"""An evaluation: what is predicted of the rows of a dataset, scored."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data.checks import check_dataset
from ..errors import DatasetError
from ..files import write_json  # noqa: F401  (defined here once)
from ..metrics import METRICS  # noqa: F401  (defined here once)
from ..metrics.rows import check_metric_set
from ..postprocessing import IDENTITY, Postprocessing
from .predictions import passes, predict_probabilities, probabilities_of, read_predictions, stored_features  # noqa: F401  (defined here once)
from .results import (
    ROUTE,  # noqa: F401  (defined here once)
    aggregate,
    score,  # noqa: F401  (defined here once)
)
from .workers import scored


def evaluate(
    dataset: Dataset,
    predictions: Iterator[tuple[dict, np.ndarray]],
    threshold: float = 0.5,
    on_row: Callable[[dict, np.ndarray, dict], None] | None = None,
    metrics: str = "overlap",
    workers: int = 0,
    postprocessing: Postprocessing = IDENTITY,
) -> tuple[dict[str, dict], pd.DataFrame]:
    """
    Score predictions of a dataset.

    Args:
        dataset (`datasets.Dataset`): checked before anything is predicted.
        predictions (iterator): from [`predict_probabilities`] or [`read_predictions`] over the same rows.
        threshold (`float`, *optional*, defaults to 0.5): between 0 and 1; a model's own is `config.mask_threshold`.
        on_row (`Callable`, *optional*):
            Called with each row, its probabilities (float32, as they came) and its scores, for overlays and maps; such
            as [`~evaluation.overlays.KeptMasks`].
        metrics (`str`, *optional*, defaults to `"overlap"`): set of metrics, `"overlap"` or `"all"`.
        workers (`int`, *optional*, defaults to 0):
            Processes that score beside this one, which predicts. Scores and their order are the same without.
        postprocessing ([`~postprocessing.Postprocessing`], *optional*):
            Of the masks; a model's own is made `from_dict` of its `config.mask_postprocessing`.

    Returns:
        Metrics as in [`aggregate`], and the samples they come from.

    Raises:
        `DatasetError`: bad rows, or no row with a mask.
        `ValueError`: a threshold outside (0, 1), a set of metrics that is none, or fewer than no workers.

    Example:

        ```python
        >>> from sa2va_trl import tiny_sa2va
        >>> from sa2va_trl.data import synthetic_dataset
        >>> from sa2va_trl.evaluation import evaluate, predict_probabilities

        >>> model, processor = tiny_sa2va(image_size=128)
        >>> dataset = synthetic_dataset(num_videos=1, frames_per_video=2, size=64)
        >>> predictions = predict_probabilities(model, processor, dataset, progress=False)
        >>> metrics, samples = evaluate(dataset, predictions)
        >>> list(metrics)
        ['dice', 'iou', 'precision', 'recall', 'specificity', 'accuracy']
        >>> metrics["dice"]["n"], samples["sample_id"].tolist()
        (2, ['v0000_f000', 'v0000_f001'])

        ```
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    check_metric_set(metrics)
    check_dataset(dataset, name="dataset")
    samples = []
    for row, probabilities, scores in scored(predictions, threshold, metrics, workers, postprocessing):
        samples.append(scores)
        if on_row is not None:
            on_row(row, probabilities, samples[-1])
    if not samples:
        raise DatasetError("The dataset has no row with a mask, so there is nothing to score.")
    frame = pd.DataFrame(samples)
    return aggregate(frame), frame
