"""How a mask trainer evaluates: on rows as they are, by statistics of masks, and which checkpoint is the best."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from ..data.collator import SegCollator
from ..models.outputs import Sa2VAOutput
from .base_config import SegArguments
from .mask_statistics import MaskMetrics, mask_statistics, mean_statistics, names_of_metrics


# What a trainer is given to train on, and to evaluate.
RowSet = Dataset | IterableDataset
RowSets = RowSet | dict[str, RowSet]


class EvaluatingMixin:
    """
    Evaluation without augmentation, in which only statistics of masks are gathered, and never maps.

    Of the trainer it needs what `Trainer` has, an `eval_collator`, and a call to [`~EvaluatingMixin.set_metrics`] in
    its constructor.
    """

    eval_collator: SegCollator
    mask_metrics: MaskMetrics | None = None
    # Metrics that a trainer adds to those of its evaluation.
    _further_metrics = ()

    def set_metrics(
        self,
        args: SegArguments,
        eval_dataset: RowSets | None,
        compute_metrics: Callable[[EvalPrediction], dict] | None,
        mask_metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None,
    ) -> Callable[[EvalPrediction], dict]:
        """
        Decide what an evaluation measures. Call before TRL's own constructor.

        Args:
            args (`SegArguments`): the config.
            eval_dataset (`datasets.Dataset`, `datasets.IterableDataset` or a `dict` of them, *optional*): as given.
            compute_metrics, mask_metrics (`Callable`, *optional*): see [`SegSFTTrainer`].

        Returns:
            `Callable`: what Trainer computes metrics with.

        Raises:
            `ValueError`: `mask_metrics` cannot be used, or `metric_for_best_model` is none of the metrics.
        """
        if mask_metrics is not None:
            if args.prediction_loss_only:
                raise ValueError("mask_metrics has no effect with prediction_loss_only=True.")
            self.mask_metrics = MaskMetrics(mask_metrics)
        names = ["dice", "iou", *(self.mask_metrics.names if self.mask_metrics else [])]
        wanted = (args.metric_for_best_model or "").removeprefix("eval_")
        if wanted and args.eval_strategy != "no":
            returned = names if compute_metrics is None else names_of_metrics(compute_metrics, len(names))
            known = ["loss"]
            if not args.prediction_loss_only:
                known += [*(names if returned is None else returned), *self._further_metrics]
            sets = list(eval_dataset) if isinstance(eval_dataset, dict) else None
            if sets is not None:
                known = [f"{name}_{metric}" for name in sets for metric in known]
            whose = f" of the evaluation sets {' and '.join(map(str, sets))}" if sets else ""
            certain = returned is not None or (
                sets is not None and not any(wanted.startswith(f"{name}_") for name in sets)
            )
            if certain and wanted not in known:
                raise ValueError(
                    f"metric_for_best_model={args.metric_for_best_model!r} is none of the metrics{whose}: "
                    f"{', '.join(known)}."
                )
        return compute_metrics or partial(mean_statistics, names=names)

    def _determine_best_metric(self, metrics, trial):
        if (wanted := self.args.metric_for_best_model) is not None:
            if f"eval_{wanted.removeprefix('eval_')}" not in metrics:
                found = sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
                raise ValueError(
                    f"metric_for_best_model={wanted!r} is none of the metrics of this evaluation: {', '.join(found)}."
                )
        return super()._determine_best_metric(metrics, trial)

    @contextmanager
    def _evaluation_collator(self) -> Iterator[None]:
        training = self.data_collator
        self.data_collator = self.eval_collator
        try:
            yield
        finally:
            self.data_collator = training

    def get_eval_dataloader(self, *args, **kwargs) -> DataLoader:
        with self._evaluation_collator():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs) -> DataLoader:
        with self._evaluation_collator():
            return super().get_test_dataloader(*args, **kwargs)

    def statistics(self, outputs: Sa2VAOutput, inputs: dict[str, Any]) -> torch.Tensor:
        """Dice, IoU and `mask_metrics` of each row, shape `(batch, 2 + metrics)`: all that is gathered, never maps."""
        config = self.accelerator.unwrap_model(self.model).config
        return mask_statistics(
            outputs.mask_logits,
            outputs.row_index,
            inputs["original_masks"],
            config.grounding_config.image_size,
            config.mask_threshold,
            self.mask_metrics,
            config.mask_temperature,
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            if prediction_loss_only:
                return loss, None, None
            statistics = self.statistics(outputs, inputs)
        # Trainer computes metrics only where there are labels.
        return loss, statistics, torch.zeros(len(statistics), device=statistics.device)

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler=False):
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=skip_scheduler)
        # With `eval_on_start` (which skips the scheduler), what training starts from can turn out to be the best.
        if skip_scheduler and self.args.load_best_model_at_end and self.state.global_step == 0:
            self._determine_best_metric(metrics, trial)
            self._save_checkpoint(self.model, trial)
            self.state.best_model_checkpoint = str(Path(self._get_output_dir(trial)) / "checkpoint-0")
        return metrics
