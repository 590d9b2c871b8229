from collections.abc import Iterator

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data.checks import check_dataset
from ..errors import DatasetError
from ..files import write_json  # noqa: F401  (defined here once)
from ..metrics import METRICS  # noqa: F401  (defined here once)
from .predictions import passes, predict_probabilities, probabilities_of, read_predictions, stored_features  # noqa: F401  (defined here once)
from .results import (
    ROUTE,  # noqa: F401  (defined here once)
    aggregate,
    score,
)


def evaluate(
    dataset: Dataset, predictions: Iterator[tuple[dict, np.ndarray]], threshold: float = 0.5, on_row=None
) -> tuple[dict[str, dict], pd.DataFrame]:
    """
    Score predictions of a dataset.

    Args:
        dataset (`datasets.Dataset`): checked before anything is predicted.
        predictions (iterator): from [`predict_probabilities`] or [`read_predictions`] over the same rows.
        threshold (`float`, *optional*, defaults to 0.5): between 0 and 1.
        on_row (`callable`, *optional*): called with (row, probabilities, scores), for overlays and maps.

    Returns:
        Metrics as in [`aggregate`], and the samples they come from.

    Raises:
        `DatasetError`: bad rows, or no row with a mask.
        `ValueError`: a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    check_dataset(dataset, name="dataset")
    samples = []
    for row, probabilities in predictions:
        samples.append(score(row, probabilities, threshold))
        if on_row is not None:
            on_row(row, probabilities, samples[-1])
    if not samples:
        raise DatasetError("The dataset has no row with a mask, so there is nothing to score.")
    frame = pd.DataFrame(samples)
    return aggregate(frame), frame
