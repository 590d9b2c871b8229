"""
Overlap, topology, boundary, shape and presence of masks, for `evaluate.load` with the path of this file.

Example:

    ```python
    import evaluate

    metric = evaluate.load("sa2va_trl/metrics/modules/masks.py")
    metric.add_batch(predictions=masks, references=targets)  # lists of (H, W) arrays of 0 and 1
    metric.compute()  # {"dice": …, "dice_undefined": 0, "hd95": …, "hd95_undefined": 2, …}
    ```
"""

import datasets
import evaluate
import numpy as np

from sa2va_trl.metrics import mask_metrics


class Masks(evaluate.Metric):
    """Means over images of `sa2va_trl.metrics.mask_metrics`."""

    def _info(self) -> evaluate.MetricInfo:
        mask = datasets.List(datasets.List(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=Masks._compute.__doc__,
            features=datasets.Features({"predictions": mask, "references": mask}),
        )

    def _compute(
        self, predictions: list, references: list, spacing: tuple[float, float] = (1.0, 1.0)
    ) -> dict[str, float]:
        """
        Args:
            predictions, references (`list`): masks of shape `(H, W)`, 0 and 1, of which pairs have one size.
            spacing (`tuple[float, float]`, *optional*): height and width of a pixel.

        Returns:
            `dict[str, float]`: by metric the mean over those images of which it is defined (NaN if there are none),
            and under its name with `_undefined` how many the mean leaves out.
        """
        pairs = zip(predictions, references, strict=True)
        values = [mask_metrics(np.asarray(pred), np.asarray(target), spacing) for pred, target in pairs]
        found = {}
        for name in values[0]:
            column = np.array([value[name] for value in values])
            defined = column[~np.isnan(column)]
            found[name] = float(defined.mean()) if len(defined) else float("nan")
            found[f"{name}_undefined"] = len(column) - len(defined)
        return found
