"""Dice, IoU and a user's metrics of the rows of an evaluation."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers.trainer_utils import EvalPrediction

from ..mask_logits import mask_probabilities, upsample_mask_logits
from ..metrics import Counts, dice, iou


def mask_statistics(
    mask_logits: torch.Tensor,
    row_index: torch.Tensor,
    targets: list[torch.Tensor],
    image_size: int,
    threshold: float,
    mask_metrics: "MaskMetrics | None" = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """
    Dice and IoU of each row at its image's own size, averaged over the row's masks, and what else is measured of them.

    Args:
        mask_logits (`torch.Tensor` of shape `(masks, h, w)`): logits on the decoder's grid.
        row_index (`torch.LongTensor` of shape `(masks,)`): the row of each mask.
        targets (`list[torch.Tensor]`): for each row, uint8 {0, 1} of shape `(masks of the row, H, W)`.
        image_size (`int`): side of SAM 2's square.
        threshold (`float`): probability above which a pixel belongs to the mask.
        mask_metrics (`MaskMetrics`, *optional*): further metrics.
        temperature (`float`, *optional*, defaults to 1.0): of these probabilities, `config.mask_temperature`.

    Returns:
        `torch.Tensor` of shape `(rows, 2 + metrics)`, float32: Dice and IoU in [0, 1] and the further metrics, NaN for
        rows without masks.
    """
    names = [] if mask_metrics is None else mask_metrics.names
    statistics = mask_logits.new_full((len(targets), 2 + len(names)), float("nan"), dtype=torch.float32)
    for row, target in enumerate(targets):
        if len(target) == 0:
            continue
        logits = upsample_mask_logits(mask_logits[row_index == row], image_size, target.shape[-2:])
        predicted, target = mask_probabilities(logits, temperature) > threshold, target.bool()
        if names:
            measured = mask_metrics(predicted.cpu().numpy(), target.cpu().numpy())
            statistics[row, 2:] = torch.tensor([measured[name] for name in names])
        predicted, target = predicted.flatten(1), target.flatten(1)
        tp, fp, fn = (
            (a & b).sum(1).cpu().numpy() for a, b in ((predicted, target), (predicted, ~target), (~predicted, target))
        )
        counts = Counts(tp, fp, fn, target.shape[1] - tp - fp - fn)
        statistics[row, 0], statistics[row, 1] = float(np.mean(dice(counts))), float(np.mean(iou(counts)))
    return statistics


def mean_statistics(prediction: EvalPrediction, names: Sequence[str] = ("dice", "iou")) -> dict[str, float]:
    """
    `compute_metrics` of the mask trainers: means over the rows that have masks.

    Args:
        prediction (`EvalPrediction`): with `predictions` of shape `(rows, metrics)`, from [`mask_statistics`].
        names (`Sequence[str]`, *optional*, defaults to `("dice", "iou")`): of the metrics.

    Returns:
        `dict[str, float]`: without those that no row has.
    """
    values = np.asarray(prediction.predictions, dtype=np.float64).reshape(-1, len(names))
    return {
        name: float(np.nanmean(column))
        for name, column in zip(names, values.T, strict=True)
        if not np.isnan(column).all()
    }


def names_of_metrics(compute_metrics: Callable[[EvalPrediction], dict], width: int) -> list[str] | None:
    """
    The names of what somebody's `compute_metrics` returns of two rows.

    Args:
        compute_metrics (`Callable[[EvalPrediction], dict]`): tried on rows whose statistics are all 0.5.
        width (`int`): how many statistics a row has.

    Returns:
        `list[str]`, without the prefix `eval_`; `None` where it cannot be tried on such rows.
    """
    rows = EvalPrediction(np.full((2, width), 0.5, dtype=np.float32), np.zeros(2, dtype=np.float32))
    try:
        return [name.removeprefix("eval_") for name in compute_metrics(rows)]
    except Exception:  # whatever it needs: an evaluation shows what it returns
        return None


class MaskMetrics:
    """
    A user's metrics over masks, see `mask_metrics` of [`SegSFTTrainer`].

    Args:
        function (`Callable[[np.ndarray, np.ndarray], dict[str, float]]`):
            Of predicted and true masks of a row, bool of shape `(masks, H, W)`. It is tried once, on two discs, for
            the names of its metrics: every process has to know them, with or without a row that has masks.

    Raises:
        `ValueError`: it does not return numbers by name, or names that are taken.
    """

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], dict[str, float]]):
        self.function, self.names = function, None
        rows, columns = np.mgrid[:32, :32]
        discs = [(rows - 15) ** 2 + (columns - center) ** 2 < 81 for center in (14, 17)]
        self.names = list(self(*(disc[None] for disc in discs)))
        if taken := sorted({"dice", "iou", "loss"} & set(self.names)):
            raise ValueError(f"mask_metrics returns {', '.join(taken)}, which evaluation has already: rename it.")

    def __call__(self, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
        found = self.function(predicted, target)
        if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found):
            raise ValueError(f"mask_metrics must return a dict of numbers by name, got {found!r}.")
        if self.names is not None and set(found) != set(self.names):
            raise ValueError(
                f"mask_metrics must return the same metrics of every row: {', '.join(self.names)}; got "
                f"{', '.join(found)}. One that a row does not have is NaN."
            )
        try:
            return {name: float(value) for name, value in found.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"mask_metrics must return a dict of numbers by name, got {found!r}.") from error
