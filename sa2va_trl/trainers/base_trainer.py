"""What the mask trainers share."""

import copy
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import EarlyStoppingCallback, set_seed
from trl.trainer.utils import create_model_from_path

from .. import losses
from ..adapters.presets import LORA, freeze_all_but_full, get_peft_config
from ..data.augment import Augmentation
from ..data.checks import check_dataset
from ..data.collator import SegCollator
from ..data.fit import check_fit
from ..data.prompts import ANSWERS, QUESTIONS
from ..data.splits import check_no_leakage
from ..data.stored import plain_rows
from ..errors import DatasetError
from ..features.encoding import FeatureCollator, max_positions
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor
from ..models.checkpoints import HUB_OPTIONS
from .base_config import refuse
from .callbacks import _EpochToCollator
from .frozen_features import FrozenFeaturesMixin
from .mask_statistics import MaskMetrics, _metrics_of, mask_statistics, mean_statistics
from .publishing import PublishingMixin
from .resuming import ResumingMixin


COLUMNS = ["image", "images", "mask", "masks", "phrase", "phrases", "messages", "sample_id"]
# Of the config, the options of [`~losses.mask_losses`].
MASK_LOSS_OPTIONS = (
    *("mask_weight", "dice_weight", "skeleton_recall_weight", "cldice_weight", "iou_weight"),
    *("num_points", "oversample_ratio", "importance_ratio", "cldice_iterations"),
)


class SegTrainerMixin(FrozenFeaturesMixin, PublishingMixin, ResumingMixin):
    """
    What the mask trainers share: columns that survive, checks before training, mask statistics and the model card.
    """

    _tag_names = ["sa2va_trl", "segmentation"]
    _stage: str
    eval_collator: SegCollator

    # Fingerprints of the sets that fit the model, with the trainer's own collators.
    _fitting: frozenset[str] = frozenset()

    def prepare_dataset(self, dataset, name: str, args):
        """
        Check every row of a set, or of each of a `dict`, before anything else happens; nothing is copied or written.

        Returns:
            The set as it is read: without a format, see [`~data.stored.plain_rows`].
        """
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {key: self.prepare_dataset(part, f"{name}[{key}]", args) for key, part in dataset.items()}
        dataset = plain_rows(dataset)
        if dataset is not getattr(self, "train_dataset", None):  # which holds its rows several times, if repeated
            self.check_rows(dataset, name, args)
        return dataset

    def check_rows(self, dataset, name: str, args) -> None:
        """
        Check the rows of one set.

        Raises:
            `DatasetError`: rows that cannot be used, all of them at once.
        """
        check_dataset(dataset, name=name, num_proc=args.dataset_num_proc)
        if "row_index" in (dataset.column_names or []):
            raise DatasetError(f"{name} has a column `row_index`, which the trainer needs for itself: rename it.")

    def check_fit(self, dataset, name: str, collator) -> None:
        """Check that the rows of a set, or of each of a `dict`, fit the model, see [`~data.fit.check_fit`]."""
        if isinstance(dataset, dict):
            for key, part in dataset.items():
                self.check_fit(part, f"{name}[{key}]", collator)
        elif isinstance(dataset, Dataset) and isinstance(collator, SegCollator):
            if dataset._fingerprint not in self._fitting:
                check_fit(dataset, collator, name)
                self._fitting |= {dataset._fingerprint}

    def prepare_another(self, dataset, name: str):
        """As the constructor does with its own, check a set that is given to `evaluate` or `predict`."""
        dataset = self.prepare_dataset(dataset, name, self.args)
        collator = self.eval_collator
        self.check_fit(dataset, name, collator.collator if isinstance(collator, FeatureCollator) else collator)
        return dataset

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """
        As in `Trainer`. Sets that the constructor has not seen are checked first.

        Raises:
            `DatasetError`: rows that cannot be used, all of them at once.
        """
        if not (eval_dataset is None or isinstance(eval_dataset, str)):
            eval_dataset = self.prepare_another(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        """
        As in `Trainer`: the Dice and IoU of each row. Rows that the constructor has not seen are checked first.

        Raises:
            `DatasetError`: rows that cannot be used, all of them at once.
            `TypeError`: a `dict` of sets.
        """
        if isinstance(test_dataset, dict):
            raise TypeError("predict takes one set of rows: call it for each, or evaluate with all of them.")
        test_dataset = self.prepare_another(test_dataset, "test_dataset")
        return super().predict(test_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        # TRL makes token rows of what it does not take for a vision dataset, such as rows of text alone.
        return dataset

    @staticmethod
    def check_splits(train_dataset, eval_dataset) -> None:
        """Refuse an evaluation set that shares samples, videos or patients with the training set."""
        parts = eval_dataset.items() if isinstance(eval_dataset, dict) else [("eval_dataset", eval_dataset)]
        for key, part in parts:
            if isinstance(train_dataset, Dataset) and isinstance(part, Dataset):
                check_no_leakage(train_dataset, part, names=("train_dataset", key))

    # Starting

    # What trains unless the config says it.
    _trainable = "stage1"

    def prepare_run(
        self,
        model,
        args,
        data_collator,
        train_dataset,
        eval_dataset,
        processing_class,
        quantization_config,
        peft_config,
    ) -> dict:
        """
        Check and prepare what a trainer was given, before TRL's own constructor sees it.

        Returns:
            `dict`: the arguments of TRL's constructor that are affected.

        Raises:
            `ValueError`: options that contradict each other or cannot take effect.
            `DatasetError`: rows that cannot be used, all of them at once, or splits that share patients.
        """
        train_dataset = self.prepare_dataset(train_dataset, "train_dataset", args)
        eval_dataset = self.prepare_dataset(eval_dataset, "eval_dataset", args)
        self.check_splits(train_dataset, eval_dataset)
        once = train_dataset
        if args.dataset_repeats > 1:
            if not isinstance(train_dataset, Dataset):
                raise ValueError("dataset_repeats needs a datasets.Dataset, whose length is known.")
            # (Copies nothing, of a selection either.)
            train_dataset = concatenate_datasets([train_dataset] * args.dataset_repeats)
        if isinstance(model, str) and processing_class is None:
            options = args.model_init_kwargs or {}
            options = {name: options[name] for name in (*HUB_OPTIONS, "subfolder") if name in options}
            processing_class = Sa2VAProcessor.from_pretrained(model, **options)
        if processing_class is None:
            raise ValueError(
                "processing_class, the model's Sa2VAProcessor, is needed with a model that is already loaded."
            )

        if not isinstance(model, str) and (args.model_init_kwargs is not None or quantization_config is not None):
            raise ValueError(
                "model_init_kwargs and quantization_config have no effect on a model that is already loaded."
            )
        if data_collator is not None:
            names = ("augmentation", "cache_views", "mask_size", "question_templates", "answer_templates")
            refuse(args, dict.fromkeys(names, "the given data_collator decides"))
        decided = peft_config is not None or isinstance(model, PeftModel)
        if decided:
            refuse(args, dict.fromkeys((*LORA, "train_embeddings"), "the given adapter decides"))
        if decided and args.trainable is not None:
            raise ValueError("Give either `trainable` or a `peft_config`/`PeftModel`: both say what trains.")
        trainable = args.trainable or self._trainable
        if isinstance(model, str):
            # As TRL does, which would look for the class in the config, where published checkpoints name remote code.
            set_seed(args.seed)
            loading = dict(args.model_init_kwargs or {})
            if quantization_config is not None:
                loading["quantization_config"] = quantization_config
            if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
                loading["device_map"] = None
            model = create_model_from_path(model, Sa2VAForConditionalGeneration, **loading)
            args = copy.copy(args)
            args.model_init_kwargs = None
        if not decided:
            peft_config = get_peft_config(
                trainable,
                processing_class.seg_token_id,
                args.lora_r,
                args.lora_alpha,
                args.lora_dropout,
                args.train_embeddings,
                model.config.grounding_config.mask_decoder_name,
            )
            if peft_config is None:
                freeze_all_but_full(model)
        options = {
            "processor": processing_class,
            "mask_size": args.mask_size,
            "questions": args.question_templates or QUESTIONS,
            "answers": args.answer_templates or ANSWERS,
            "with_skeletons": args.skeleton_recall_weight > 0,
            "seed": args.data_seed,
            "max_length": max_positions(model),
            **self.collator_options(args),
        }
        augmentation = Augmentation(**(args.augmentation or {}))
        self.eval_collator = SegCollator(
            **{**options, "questions": options["questions"][:1], "answers": options["answers"][:1]}
        )
        data_collator = data_collator or SegCollator(
            **options,
            augmentation=None if augmentation == Augmentation() else augmentation,
            views=args.cache_views,
        )
        self.check_fit(once, "train_dataset", data_collator)
        self.check_fit(eval_dataset, "eval_dataset", self.eval_collator)
        if isinstance(train_dataset, Dataset):
            self._fitting |= {train_dataset._fingerprint}
        return {
            "model": model,
            "args": args,
            "data_collator": data_collator,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "processing_class": processing_class,
            "peft_config": peft_config,
        }

    mask_metrics: MaskMetrics | None = None

    def set_metrics(self, args, eval_dataset, compute_metrics, mask_metrics):
        """
        Call before TRL's own constructor.

        Args:
            args: the config.
            eval_dataset: one set, or a `dict` of them.
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
            returned = names if compute_metrics is None else _metrics_of(compute_metrics, len(names))
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

    # Metrics that a trainer adds to those of its evaluation.
    _further_metrics = ()

    def _determine_best_metric(self, metrics, trial):
        if (wanted := self.args.metric_for_best_model) is not None:
            if f"eval_{wanted.removeprefix('eval_')}" not in metrics:
                found = sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
                raise ValueError(
                    f"metric_for_best_model={wanted!r} is none of the metrics of this evaluation: {', '.join(found)}."
                )
        return super()._determine_best_metric(metrics, trial)

    @staticmethod
    def collator_options(args) -> dict:
        """What a trainer asks of its collators beyond what all do."""
        return {"with_pairs": False}

    def finish_init(self) -> None:
        """Call at the end of a trainer's constructor."""
        args = self.args
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            how = "PeftModel.from_pretrained(model, ADAPTER, is_trainable=True)"
            raise ValueError(
                "Nothing of the model trains: "
                + (f"load its adapter with {how}." if isinstance(self.model, PeftModel) else "unfreeze some of it.")
            )
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            self._keep_trained_in_float32()
        self.add_callback(_EpochToCollator(self.data_collator))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.prepare_to_save()
        if self.is_world_process_zero():
            print(self.trainable_summary)
        self.setup_features()

    def _keep_trained_in_float32(self) -> None:
        # PEFT does so for LoRA only. An update at these learning rates is less than one step of a bfloat16 weight;
        # DeepSpeed and FSDP keep float32 masters themselves.
        half = [p for p in self.model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
        if half and not (self.args.bf16 or self.args.fp16):
            raise ValueError(
                "The weights to train are half precision: load the model with dtype=float32, or train with bf16=True."
            )
        for parameter in half:
            parameter.data = parameter.data.float()

    def _set_signature_columns_if_needed(self):
        self._signature_columns = COLUMNS

    @contextmanager
    def _evaluation_collator(self):
        training = self.data_collator
        self.data_collator = self.eval_collator
        try:
            yield
        finally:
            self.data_collator = training

    def get_eval_dataloader(self, *args, **kwargs):
        with self._evaluation_collator():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs):
        with self._evaluation_collator():
            return super().get_test_dataloader(*args, **kwargs)

    def record(self, **values: torch.Tensor) -> None:
        """Log scalars under their names, averaged over processes now and over micro-batches when they are logged."""
        mode = "train" if self.model.training else "eval"
        stacked = torch.stack([value.detach().float() for value in values.values()])
        for name, value in zip(values, self.accelerator.reduce(stacked, reduction="mean").tolist(), strict=True):
            self._metrics[mode][name].append(value)

    def statistics(self, outputs, inputs) -> torch.Tensor:
        """Dice, IoU and `mask_metrics` of each row, shape `(batch, 2 + metrics)`: all that is gathered, never maps."""
        config = self.accelerator.unwrap_model(self.model).config
        return mask_statistics(
            outputs.mask_logits,
            outputs.row_index,
            inputs["original_masks"],
            config.grounding_config.image_size,
            config.mask_threshold,
            self.mask_metrics,
        )

    # Losses

    def mask_losses(self, outputs, inputs) -> dict[str, torch.Tensor]:
        """
        The mask losses of a batch, without their weights.

        Args:
            outputs (`Sa2VAOutput`): with `mask_logits`, `iou_scores` and `row_index`.
            inputs (`dict`): the collator's batch.

        Returns:
            `dict[str, torch.Tensor]`: scalars, averaged over the masks of a row and then over all rows of the batch.

        Raises:
            `ValueError`: the batch has another number of masks than the model drew.
        """
        options = {name: getattr(self.args, name) for name in MASK_LOSS_OPTIONS}
        return losses.mask_losses(
            outputs.mask_logits,
            outputs.iou_scores,
            inputs["masks"],
            outputs.row_index,
            len(inputs["original_masks"]),
            inputs.get("skeletons"),
            **options,
        )

    def _weighted(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(getattr(self.args, name.replace("_loss", "_weight")) * value for name, value in values.items())

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
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
