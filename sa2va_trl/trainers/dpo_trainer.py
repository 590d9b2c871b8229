"""Direct preference optimisation over masks, against the model that training starts from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from .. import losses
from ..data.collator import TARGETS, SegCollator
from ..data.columns import PAIR_COLUMNS
from ..errors import DatasetError
from ..features.fingerprint import before_the_cut
from ..mask_logits import mask_probabilities, resize_mask_logits
from ..models import Sa2VAProcessor
from ..preferences.dataset import check_preferences
from ..preferences.pairs import mine_pairs
from .base_trainer import RowSet, RowSets, SegTrainerMixin
from .dpo_config import SegDPOConfig


if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


class SegDPOTrainer(SegTrainerMixin, DPOTrainer):
    """
    Direct preference optimisation over masks.

    A mask decoder is deterministic, so a mask has no log-probability of its own; `args.score` stands in for it (see
    [`~losses.mask_rewards`]), and DPO's losses (arXiv 2305.18290) are taken on the margin of the preferred over the
    rejected mask. With the reference, margins and hence `rewards/accuracies` are zero at the first step.

    The reference is the model with its adapter switched off, a copy of a given adapter, or `ref_model`; there is never
    a second copy of the backbone beside an adapter. Where nothing before the mask head trains, policy and reference
    share one `encode` (or features computed once, see `cache_features`).

    Logged: TRL's `rewards/chosen`, `rewards/rejected`, `rewards/margins` and `rewards/accuracies`; `masks/dice_chosen`
    and `masks/dice_rejected` (Dice of the drawn mask with each), `masks/greedy_dice` (with the ground truth), and
    `masks/pairs`, the share of masks that had a pair whose masks differ on the grid (see `mask_size`). Evaluation
    reports `eval_dice` and `eval_iou` as [`SegSFTTrainer`] does, and the best checkpoint is chosen by Dice; rows
    without a pair have the supervised losses as their `eval_loss`.

    Args:
        model (`str`, `Sa2VAForConditionalGeneration` or `PeftModel`): what to train.
        ref_model (`Sa2VAForConditionalGeneration`, *optional*): the reference where no adapter trains.
        args (`SegDPOConfig`): options.
        data_collator (`SegCollator`, *optional*): made from `args` by default.
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            From [`~preferences.build_preferences`], or any with `pairs="online"`; rows of a stream are checked as they
            come.
        eval_dataset (`datasets.Dataset` or a `dict` of them, *optional*):
            Sharing no sample, video or patient with `train_dataset`; with or without pairs.
        processing_class (`Sa2VAProcessor`, *optional*): loaded from the model's name by default.
        callbacks, optimizers, quantization_config: as in `DPOTrainer`.
        peft_config (`LoraConfig`, *optional*): in place of `args.trainable`.
        compute_metrics, mask_metrics: as in [`SegSFTTrainer`].

    Raises:
        `DatasetError`: bad rows, all at once, rows without pairs, or splits that share something.
        `ValueError`: options that contradict each other, or no reference.
        `TypeError`: a config of another trainer.

    Example:

    ```python
    >>> import tempfile

    >>> from sa2va_trl import SegDPOConfig, SegDPOTrainer, build_preferences, tiny_sa2va
    >>> from sa2va_trl.data import synthetic_splits

    >>> model, processor = tiny_sa2va(image_size=64)
    >>> data = synthetic_splits(1, 1, 1, frames_per_video=2, size=64)
    >>> pairs = build_preferences(data["train"], model, processor, rejected="dilated", progress=False)
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = SegDPOTrainer(
    ...     model=model,
    ...     args=SegDPOConfig(
    ...         folder.name,
    ...         score="dice",
    ...         max_steps=1,
    ...         cache_dir=folder.name,
    ...         use_cpu=True,
    ...         report_to="none",
    ...         logging_strategy="no",
    ...     ),
    ...     train_dataset=pairs,
    ...     eval_dataset=data["validation"],
    ...     processing_class=processor,
    ... )
    >>> trainer.train().global_step  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    1
    >>> folder.cleanup()

    ```
    """

    _tag_names = [*SegTrainerMixin._tag_names, "dpo"]
    _name = "SegDPO"
    _stage = "preference optimisation over masks"
    _trainable = "head"

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: PreTrainedModel | None = None,
        args: SegDPOConfig | None = None,
        data_collator: SegCollator | None = None,
        train_dataset: RowSet | None = None,
        eval_dataset: RowSets | None = None,
        processing_class: Sa2VAProcessor | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: PeftConfig | None = None,
        mask_metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None,
    ):
        if args is None:
            args = SegDPOConfig("sa2va-dpo")
        if not isinstance(args, SegDPOConfig):
            raise TypeError(f"args must be a SegDPOConfig, got {type(args).__name__}.")
        self._check_pair_columns(train_dataset, args)
        if ref_model is not None and not args.use_reference:
            raise ValueError("ref_model has no effect with use_reference=False.")
        compute_metrics = self.set_metrics(args, eval_dataset, compute_metrics, mask_metrics)
        prepared = self.prepare_run(
            model, args, data_collator, train_dataset, eval_dataset, processing_class, quantization_config, peft_config
        )
        if ref_model is None and prepared["peft_config"] is None and not isinstance(prepared["model"], PeftModel):
            raise ValueError(
                "trainable='full' leaves no adapter that could be switched off for the reference: give ref_model."
            )
        if isinstance(model, PeftModel) and ref_model is None and "default" not in model.peft_config:
            raise ValueError(
                f"The adapter is called {', '.join(model.peft_config)}: load it as `default`, which the reference "
                "is copied from."
            )
        super().__init__(
            **prepared,
            ref_model=ref_model,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._copy_trained_tokens()
        # Whether policy and reference see the same features.
        self._shared_encoding = ref_model is None and not any(
            parameter.requires_grad for _, parameter in before_the_cut(self.model)
        )
        self.finish_init()

    def reasons_against_features(self) -> list[str]:
        reasons = super().reasons_against_features()
        if self.ref_model is not None:
            reasons.append("ref_model has an encoder of its own, whose features are not those of the model")
        return reasons

    @staticmethod
    def _check_pair_columns(train_dataset: RowSet | None, args: SegDPOConfig) -> None:
        columns = getattr(train_dataset, "column_names", None)
        if columns is None and isinstance(train_dataset, IterableDataset):
            return  # the collator asks each row for its pair
        if args.pairs == "dataset" and not set(PAIR_COLUMNS) <= set(columns or []):
            raise DatasetError(
                "train_dataset has no chosen_mask and rejected_mask: make them with `sa2va-trl build_preferences`, or "
                "mine them while training with pairs='online'."
            )

    def check_rows(self, dataset: RowSet, name: str, args: SegDPOConfig) -> None:
        super().check_rows(dataset, name, args)
        if args.pairs == "dataset" and isinstance(dataset, Dataset) and set(PAIR_COLUMNS) <= set(dataset.column_names):
            check_preferences(dataset, name, args.allow_worse)

    @staticmethod
    def collator_options(args: SegDPOConfig, training: bool) -> dict[str, Any]:
        # Stored pairs are none of an online run's, in training and in evaluation. Else training needs a pair of every
        # row, and evaluation takes those that rows have.
        with_pairs = False if args.pairs == "online" else True if training else None
        return {"allow_worse": args.allow_worse, "with_pairs": with_pairs}

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, *PAIR_COLUMNS, "chosen_reward", "rejected_reward"]

    def _copy_trained_tokens(self) -> None:
        # TRL's copy of a given adapter leaves out trained rows of the embeddings, whose names end in the adapter's.
        named = dict(self.model.named_parameters())
        for name, parameter in named.items():
            if name.endswith(".default") and (copied := named.get(name.removesuffix("default") + "ref")) is not None:
                copied.data.copy_(parameter.data)

    @property
    def _mines(self) -> bool:
        return self.args.pairs == "online" and self.model.training

    def _draw(self, model, inputs):
        """Masks of the policy, masks of the reference (or `None`) and, where they were needed, the features."""
        given = {name: value for name, value in inputs.items() if name not in TARGETS}
        features = given.get("features")
        if features is None and (self._shared_encoding or self._mines):
            with torch.no_grad():
                features = model(**given, encode_only=True).features
        if features is not None and self._shared_encoding:
            given = {"features": features}
        elif "features" not in given:
            given["logits_to_keep"] = 1  # nothing is learned from them
        outputs = model(**given)
        if not self.args.use_reference:
            return outputs, None, features
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if self.ref_model is not None:
                return outputs, self.ref_model(**given).mask_logits, features
            adapted = self.accelerator.unwrap_model(self.model)
            with use_adapter(adapted, adapter_name="ref" if "ref" in adapted.peft_config else None):
                return outputs, self.model(**given).mask_logits, features

    def _pairs(self, inputs, features, count: int):
        """Preferred and rejected masks, and which of the batch's masks they are about; `None` without any."""
        if "chosen_masks" in inputs and not self._mines:
            if len(inputs["chosen_masks"]) != count:
                raise DatasetError(
                    f"{len(inputs['chosen_masks'])} pairs for {count} masks: a row of preferences has one object."
                )
            return inputs["chosen_masks"], inputs["rejected_masks"], slice(None)
        if not self._mines:
            return None
        generator = torch.Generator().manual_seed(self.args.seed + self.state.global_step)
        mined = mine_pairs(
            self.model,
            features,
            inputs["masks"],
            chosen=self.args.online_chosen,
            rejected=self.args.online_rejected,
            min_gap=self.args.min_gap,
            generator=generator,
        )
        return mined.chosen, mined.rejected, mined.index

    def _compute_loss(self, model, inputs, return_outputs):
        outputs, reference, features = self._draw(model, inputs)
        logits, masks = outputs.mask_logits, inputs["masks"]
        pairs = self._pairs(inputs, features, len(logits))
        if pairs is None:
            loss = self._supervised(outputs, inputs)
        else:
            chosen, rejected, index = pairs
            size = masks.shape[-2:]
            logits = resize_mask_logits(logits, size)
            base = None if reference is None else resize_mask_logits(reference, size)[index]
            own, other = losses.mask_rewards(logits[index], chosen, rejected, self.args.score, base)
            each = losses.preference_loss(
                own - other, self.args.loss_type[0], self.args.beta, self.args.label_smoothing
            )
            # As in `mask_losses`, every row counts alike, with or without a pair, so that neither micro-batches nor
            # processes matter.
            # (The sum of all logits keeps every rank's backward pass the same where none has a pair.)
            share = losses.mask_shares(outputs.row_index, len(inputs["original_masks"]))[index]
            loss = (each * share).sum() + 0.0 * logits.sum()
            if self.args.sft_weight:
                loss = loss + self.args.sft_weight * self._supervised(outputs, inputs)
            self._record_pairs(logits.detach(), masks, own.detach(), other.detach(), chosen, rejected, index)
        return (loss, outputs) if return_outputs else loss

    def _supervised(self, outputs, inputs) -> torch.Tensor:
        return self._weighted(self.mask_losses(outputs, inputs))

    def _record_pairs(self, logits, masks, own, other, chosen, rejected, index):
        config = self.accelerator.unwrap_model(self.model).config
        drawn = (mask_probabilities(logits, config.mask_temperature) > config.mask_threshold).float()
        none = logits.new_zeros(1)

        def mean(values):
            return (values if len(values) else none).mean()

        beta = self.args.beta
        self.record(
            **{
                "rewards/chosen": beta * mean(own),
                "rewards/rejected": beta * mean(other),
                "rewards/margins": beta * mean(own - other),
                "rewards/accuracies": mean((own > other).float()),
                "masks/dice_chosen": mean(losses.soft_dice(drawn[index], chosen) if len(chosen) else none),
                "masks/dice_rejected": mean(losses.soft_dice(drawn[index], rejected) if len(chosen) else none),
                "masks/greedy_dice": mean(losses.soft_dice(drawn, masks) if len(drawn) else none),
                "masks/pairs": (chosen != rejected).flatten(1).any(1).sum() / max(1, len(masks)),
            }
        )
