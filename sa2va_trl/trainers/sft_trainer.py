"""Supervised fine-tuning of the language model and the mask head together."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback
from trl import SFTTrainer

from .. import losses
from ..data.collator import TARGETS, SegCollator
from ..models import Sa2VAProcessor
from ..models.outputs import Sa2VAOutput
from .base_trainer import RowSet, RowSets, SegTrainerMixin
from .sft_config import SegSFTConfig


if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


class SegSFTTrainer(SegTrainerMixin, SFTTrainer):
    """
    Supervised fine-tuning of [`Sa2VAForConditionalGeneration`] on images with masks.

    The loss is the sum of the language cross-entropy and the mask losses, each averaged over the objects (or answer
    tokens) of a row and then over rows. Every row counts alike, so neither the micro-batch size nor accumulation nor
    the number of processes changes it. (Sa2VA's own training has five objects in every row, which makes its mask
    losses these; its language loss is averaged over the tokens of a micro-batch.) Every part is logged without its
    weight: `lm_loss`, `mask_loss`, `dice_loss`, `skeleton_recall_loss`, `cldice_loss`, `scnp_loss`, `iou_loss`.

    Args:
        model (`str`, `Sa2VAForConditionalGeneration` or `PeftModel`): what to train.
        args (`SegSFTConfig`): options.
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows as in [`~data.checks.check_dataset`]; those of a stream are checked as they come.
        eval_dataset (`datasets.Dataset` or a `dict` of them, *optional*):
            Sharing no sample, video or patient with `train_dataset`.
        processing_class (`Sa2VAProcessor`, *optional*): loaded from the model's name by default.
        data_collator (`SegCollator`, *optional*): made from `args` by default.
        peft_config (`LoraConfig`, *optional*): in place of `args.trainable`.
        callbacks, optimizers, optimizer_cls_and_kwargs, quantization_config: as in `SFTTrainer`.
        compute_metrics (`Callable[[EvalPrediction], dict[str, float]]`, *optional*):
            In place of the means over rows. Different from `SFTTrainer`'s it gets no logits: `predictions` is an array
            of shape `(rows, 2 + metrics)` with Dice, IoU and `mask_metrics` of each row, in [0, 1] where they are Dice
            and IoU, NaN in rows without masks; `label_ids` says nothing. Where the best checkpoint is chosen by a
            metric, it is tried once on two rows of 0.5, for the names of what it returns.
        mask_metrics (`Callable[[np.ndarray, np.ndarray], dict[str, float]]`, *optional*):
            Further metrics, of predicted and true masks of one row: bool of shape `(masks, H, W)` at the image's own
            size, one an object, or one an object and frame. The same names for every row, NaN where there is none to
            tell. Evaluation reports their means over rows as `eval_NAME`; `metric_for_best_model` may name them.

    Raises:
        `DatasetError`: bad rows, all at once, or splits that share something.
        `ValueError`: options that contradict each other.
        `TypeError`: a config of another trainer.

    Example:

    ```python
    >>> import tempfile

    >>> from sa2va_trl import SegSFTConfig, SegSFTTrainer, tiny_sa2va
    >>> from sa2va_trl.data import synthetic_splits

    >>> model, processor = tiny_sa2va(image_size=64)
    >>> data = synthetic_splits(1, 1, 1, frames_per_video=2, size=64)
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = SegSFTTrainer(
    ...     model=model,
    ...     args=SegSFTConfig(
    ...         folder.name, max_steps=1, use_cpu=True, report_to="none", logging_strategy="no"
    ...     ),
    ...     train_dataset=data["train"],
    ...     eval_dataset=data["validation"],
    ...     processing_class=processor,
    ... )
    >>> trainer.train().global_step  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    1
    >>> trainer.save_model()  # the adapter, the processor and a model card
    >>> folder.cleanup()

    ```
    """

    _tag_names = [*SegTrainerMixin._tag_names, "sft"]
    _name = "SegSFT"
    _stage = "supervised fine-tuning"

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: SegSFTConfig | None = None,
        data_collator: SegCollator | None = None,
        train_dataset: RowSet | None = None,
        eval_dataset: RowSets | None = None,
        processing_class: Sa2VAProcessor | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: PeftConfig | None = None,
        mask_metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None,
    ):
        if args is None:
            args = SegSFTConfig("sa2va-sft")
        if not isinstance(args, SegSFTConfig):
            raise TypeError(f"args must be a SegSFTConfig, got {type(args).__name__}.")
        compute_metrics = self.set_metrics(args, eval_dataset, compute_metrics, mask_metrics)
        prepared = self.prepare_run(
            model, args, data_collator, train_dataset, eval_dataset, processing_class, quantization_config, peft_config
        )
        super().__init__(
            **prepared,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.finish_init()

    def reasons_against_features(self) -> list[str]:
        reasons = super().reasons_against_features()
        if self.args.lm_weight:
            reasons.append(
                f"lm_weight={self.args.lm_weight} asks for a language loss, which needs the text (set it to 0)"
            )
        return reasons

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Sa2VAOutput]:
        if "features" in inputs:
            outputs = model(features=inputs["features"])
            values = self.mask_losses(outputs, inputs)
            loss = self._weighted(values)
            self.record(**values)
            return (loss, outputs) if return_outputs else loss
        labels = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
        keep = torch.nonzero((labels != -100).any(0))[:, 0]
        labels = labels[:, keep]
        outputs = model(**{name: value for name, value in inputs.items() if name not in TARGETS}, logits_to_keep=keep)
        values = {
            "lm_loss": losses.language_modeling_loss(outputs.logits, labels).mean(),
            **self.mask_losses(outputs, inputs),
        }
        loss = self._weighted(values)
        supervised = labels != -100
        correct = ((outputs.logits.argmax(-1) == labels) & supervised).sum() / supervised.sum().clamp(min=1)
        self.record(**values, mean_token_accuracy=correct)
        return (loss, outputs) if return_outputs else loss
