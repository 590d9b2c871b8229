"""
Calibration of probability maps over all of their pixels, for `evaluate.load` with the path of this file.

Example:

    ```python
    import evaluate

    metric = evaluate.load("sa2va_trl/metrics/modules/calibration.py")
    metric.compute(predictions=probabilities, references=targets)  # {"ece": …, "brier": …}
    ```
"""

from functools import reduce

import datasets
import evaluate
import numpy as np

from sa2va_trl.metrics import Reliability, reliability


class Calibration(evaluate.Metric):
    """Expected calibration error and Brier score of `sa2va_trl.metrics.reliability`."""

    def _info(self) -> evaluate.MetricInfo:
        def maps(kind: str) -> datasets.List:
            return datasets.List(datasets.List(datasets.Value(kind)))

        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=Calibration._compute.__doc__,
            features=datasets.Features({"predictions": maps("float32"), "references": maps("uint8")}),
        )

    def _compute(self, predictions: list, references: list, bins: int = 15) -> dict[str, float]:
        """
        Args:
            predictions (`list`): probabilities of shape `(H, W)`, in [0, 1].
            references (`list`): masks of the same shape, 0 and 1.
            bins (`int`, *optional*, defaults to 15): of equal width.

        Returns:
            `dict[str, float]`: `ece` and `brier`.
        """
        pairs = zip(predictions, references, strict=True)
        found = reduce(Reliability.merge, [reliability(np.asarray(p), np.asarray(t), bins) for p, t in pairs])
        return {"ece": found.ece, "brier": found.brier}
