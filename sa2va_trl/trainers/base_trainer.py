"""What the mask trainers share."""

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from datasets import Dataset, concatenate_datasets
from peft import PeftConfig, PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed
from transformers.trainer_utils import PredictionOutput
from trl.trainer.utils import create_model_from_path

from .. import losses
from ..adapters.presets import LORA, WHOLE, get_peft_config
from ..data.augment import Augmentation
from ..data.checks import check_dataset
from ..data.collator import SegCollator
from ..data.fit import Largest, check_fit
from ..data.prompts import ANSWERS, QUESTIONS
from ..data.splits import check_no_leakage
from ..data.stored import plain_rows
from ..errors import DatasetError
from ..features.encoding import FeatureCollator, max_positions
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor
from ..models.checkpoints import HUB_OPTIONS
from ..models.outputs import Sa2VAOutput
from ..processes import process_rank
from .adaptive_weights import AdaptingMixin
from .base_config import SegArguments, refuse
from .callbacks import EpochToCollator
from .evaluating import EvaluatingMixin, RowSet, RowSets
from .frozen_features import FrozenFeaturesMixin
from .needs import NeedsMixin
from .planning import PlanningMixin
from .publishing import PublishingMixin
from .resuming import ResumingMixin


if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

logger = logging.getLogger(__name__)

# The columns that reach the collator.
ROW_COLUMNS = ["image", "images", "mask", "masks", "phrase", "phrases", "messages", "regions", "sample_id"]
# Of the config, the options of [`~losses.mask_losses`].
MASK_LOSS_OPTIONS = (
    *("mask_weight", "dice_weight", "skeleton_recall_weight", "cldice_weight", "scnp_weight", "iou_weight"),
    *("num_points", "oversample_ratio", "importance_ratio", "cldice_iterations"),
)


class SegTrainerMixin(
    EvaluatingMixin, FrozenFeaturesMixin, PublishingMixin, NeedsMixin, PlanningMixin, AdaptingMixin, ResumingMixin
):
    """
    What the mask trainers share: checks before training, columns that survive and mask losses; and, from its own
    bases, mask statistics, features of what is frozen, model cards, plans of epochs, weights that adapt and resuming.

    Of the class it stands before, in the order of bases, it needs a TRL trainer, whose constructor takes what
    [`~SegTrainerMixin.prepare_run`] returns; of the trainer itself `_stage`, and calls in its constructor to
    [`~SegTrainerMixin.set_metrics`] and `prepare_run` before TRL's and to [`~SegTrainerMixin.finish_init`] after it.
    """

    _tag_names = ["sa2va_trl", "segmentation"]
    # What the run is, in a few words, for the card.
    _stage: str
    # What trains unless the config says it.
    _trainable = "stage1"

    # Of the training rows, where something is known of them.
    largest_row: Largest | None = None
    # What gradients are clipped of, and the optimizer of the run that it is for.
    _clipped: tuple[Any, list[torch.nn.Parameter]] = (None, [])
    # Fingerprints of the sets that fit the model, with the trainer's own collators.
    _fitting: frozenset[str] = frozenset()

    def _tell(self, message: str, level: int = logging.INFO, shown: bool = False) -> None:
        """Log a message once, whatever the number of processes; commands put it on the screen where it is `shown`."""
        if self.is_world_process_zero():
            logger.log(level, message, extra={"shown": shown})

    # Rows

    def prepare_dataset(self, dataset: RowSets | None, name: str, args: SegArguments) -> RowSets | None:
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

    def check_rows(self, dataset: RowSet, name: str, args: SegArguments) -> None:
        """
        Check the rows of one set; a trainer adds what it asks of them.

        Args:
            dataset (`datasets.Dataset` or `datasets.IterableDataset`): the rows.
            name (`str`): what the message calls them.
            args (`SegArguments`): the config.

        Raises:
            `DatasetError`: rows that cannot be used, all of them at once.
        """
        check_dataset(dataset, name=name, num_proc=args.dataset_num_proc)
        if "row_index" in (dataset.column_names or []):
            raise DatasetError(f"{name} has a column `row_index`, which the trainer needs for itself: rename it.")

    def check_fit(self, dataset: RowSets | None, name: str, collator: Callable[[list[dict]], dict]) -> None:
        """Check that the rows of a set, or of each of a `dict`, fit the model, see [`~data.fit.check_fit`]."""
        if isinstance(dataset, dict):
            for key, part in dataset.items():
                self.check_fit(part, f"{name}[{key}]", collator)
        elif isinstance(dataset, Dataset) and isinstance(collator, SegCollator):
            if dataset._fingerprint not in self._fitting:
                largest = check_fit(dataset, collator, name)
                if name == "train_dataset":
                    self.largest_row = largest
                self._fitting |= {dataset._fingerprint}

    def prepare_another(self, dataset: RowSets, name: str) -> RowSets:
        """As the constructor does with its own, check a set that is given to `evaluate` or `predict`."""
        dataset = self.prepare_dataset(dataset, name, self.args)
        collator = self.eval_collator
        self.check_fit(dataset, name, collator.collator if isinstance(collator, FeatureCollator) else collator)
        return dataset

    def evaluate(
        self,
        eval_dataset: RowSets | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        As in `Trainer`. Sets that the constructor has not seen are checked first.

        Raises:
            `DatasetError`: rows that cannot be used, all of them at once.
        """
        if not (eval_dataset is None or isinstance(eval_dataset, str)):
            eval_dataset = self.prepare_another(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def predict(
        self, test_dataset: RowSet, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
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
    def check_splits(train_dataset: RowSet | None, eval_dataset: RowSets | None, accept_alike: bool = False) -> None:
        """
        Refuse an evaluation set that shares samples, videos, patients or images with the training set, or has images
        that look like those of it, see [`~data.check_no_leakage`].

        Raises:
            `DatasetError`: naming what they share.
        """
        parts = eval_dataset.items() if isinstance(eval_dataset, dict) else [("eval_dataset", eval_dataset)]
        for key, part in parts:
            if isinstance(train_dataset, Dataset) and isinstance(part, Dataset):
                names, is_first = ("train_dataset", key), process_rank() == 0
                check_no_leakage(train_dataset, part, names=names, accept_alike=accept_alike, warn=is_first)

    # Starting

    def prepare_run(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: SegArguments,
        data_collator: Callable[[list[dict]], dict] | None,
        train_dataset: RowSet | None,
        eval_dataset: RowSets | None,
        processing_class: Sa2VAProcessor | None,
        quantization_config: "BitsAndBytesConfig | None",
        peft_config: PeftConfig | None,
    ) -> dict[str, Any]:
        """
        Check and prepare what a trainer was given, before TRL's own constructor sees it.

        Args:
            model (`str`, `Sa2VAForConditionalGeneration` or `PeftModel`): what to train; loaded if it is a name.
            args (`SegArguments`): the config.
            data_collator (`Callable`, *optional*): made from `args` by default.
            train_dataset (`datasets.Dataset` or `datasets.IterableDataset`): checked, and repeated as `args` say.
            eval_dataset (`datasets.Dataset` or a `dict` of them, *optional*): checked.
            processing_class (`Sa2VAProcessor`, *optional*): loaded from the model's name by default.
            quantization_config (`BitsAndBytesConfig`, *optional*): of a model that is loaded here.
            peft_config (`PeftConfig`, *optional*): in place of `args.trainable`.

        Returns:
            `dict`: the arguments of TRL's constructor that are affected.

        Raises:
            `ValueError`: options that contradict each other or cannot take effect.
            `DatasetError`: rows that cannot be used, all of them at once, or splits that share patients or images.
        """
        train_dataset = self.prepare_dataset(train_dataset, "train_dataset", args)
        eval_dataset = self.prepare_dataset(eval_dataset, "eval_dataset", args)
        self.check_splits(train_dataset, eval_dataset, args.accept_alike)
        once = train_dataset
        if args.dataset_repeats > 1:
            if not isinstance(train_dataset, Dataset):
                raise ValueError("dataset_repeats needs a datasets.Dataset, whose length is known.")
            # (Copies nothing, of a selection either.)
            train_dataset = concatenate_datasets([train_dataset] * args.dataset_repeats)
        if processing_class is None:
            processing_class = _processor_of(model, args)
        if not isinstance(model, str) and (args.model_init_kwargs is not None or quantization_config is not None):
            raise ValueError(
                "model_init_kwargs and quantization_config have no effect on a model that is already loaded."
            )
        if data_collator is not None:
            names = ("augmentation", "cache_views", "mask_size", "question_templates", "answer_templates")
            refuse(args, dict.fromkeys(names, "the given data_collator decides"))
        if args.adaptive_weights is not None:
            args = copy.copy(args)  # whose weights change
        decided = peft_config is not None or isinstance(model, PeftModel)
        if decided:
            refuse(args, dict.fromkeys((*LORA, "train_embeddings"), "the given adapter decides"))
        if decided and args.trainable is not None:
            raise ValueError("Give either `trainable` or a `peft_config`/`PeftModel`: both say what trains.")
        if isinstance(model, str):
            model = _load(model, args, quantization_config)
            args = copy.copy(args)
            args.model_init_kwargs = None
        if not decided:
            peft_config = get_peft_config(
                args.trainable or self._trainable,
                processing_class.seg_token_id,
                args.lora_r,
                args.lora_alpha,
                args.lora_dropout,
                args.train_embeddings,
                model.config.grounding_config.mask_decoder_name,
            )
            if peft_config is None:
                WHOLE[args.trainable or self._trainable](model)
        options = {
            "processor": processing_class,
            "mask_size": args.mask_size,
            "with_skeletons": args.skeleton_recall_weight > 0,
            "seed": args.data_seed,
            "max_length": max_positions(model),
        }
        questions, answers = args.question_templates or QUESTIONS, args.answer_templates or ANSWERS
        self.eval_collator = SegCollator(
            **options, questions=questions[:1], answers=answers[:1], **self.collator_options(args, training=False)
        )
        if data_collator is None:
            augmentation = Augmentation(**(args.augmentation or {}))
            data_collator = SegCollator(
                **options,
                questions=questions,
                answers=answers,
                augmentation=None if augmentation == Augmentation() else augmentation,
                views=args.cache_views,
                **self.collator_options(args, training=True),
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

    @staticmethod
    def collator_options(args: SegArguments, training: bool) -> dict[str, Any]:
        """
        What a trainer asks of a collator beyond what all do.

        Args:
            args (`SegArguments`): the config.
            training (`bool`): whether it is that of the training rows.

        Returns:
            `dict`: arguments of [`~data.collator.SegCollator`].
        """
        return {"with_pairs": False}

    def finish_init(self) -> None:
        """
        Call at the end of a trainer's constructor.

        Raises:
            `ValueError`: nothing trains, or half-precision weights do; SAM 2 is to stay in float32 and would not;
                features cannot be cached as asked for.
            `FeatureError`: there is no room for features.
        """
        args = self.args
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            how = "PeftModel.from_pretrained(model, ADAPTER, is_trainable=True)"
            raise ValueError(
                "Nothing of the model trains: "
                + (f"load its adapter with {how}." if isinstance(self.model, PeftModel) else "unfreeze some of it.")
            )
        self._check_grounding_dtype()
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            self._keep_trained_in_float32()
        self.add_callback(EpochToCollator(self.data_collator))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.setup_plan()
        self.setup_weights()
        self.prepare_to_save()
        self._tell(self.trainable_summary, shown=True)
        self.setup_features()

    def _check_grounding_dtype(self) -> None:
        half = self.is_deepspeed_enabled and (self.args.bf16 or self.args.fp16)
        if self.model.config.grounding_dtype is not None and self.model.dtype != torch.float32:
            given = ["DeepSpeed with mixed precision"] * half
            given += [name for name in ("bf16_full_eval", "fp16_full_eval") if getattr(self.args, name)]
            if given:
                raise ValueError(f"{given[0]} casts all weights, and grounding_dtype has no effect: leave one out.")

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

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        # Only what trains has gradients, and to walk through a frozen model for it takes longer than to clip. (What
        # clips itself, such as DeepSpeed, is asked as ever.)
        if self.accelerator.distributed_type != DistributedType.NO or self._has_mixed_mesh_grads(model):
            return super()._clip_grad_norm(model)
        optimizer, clipped = self._clipped
        if optimizer is not self.optimizer:
            clipped = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self._clipped = self.optimizer, clipped
        return self.accelerator.clip_grad_norm_(clipped, self.args.max_grad_norm)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ROW_COLUMNS

    def record(self, **values: torch.Tensor) -> None:
        """Log scalars under their names, averaged over processes now and over micro-batches when they are logged."""
        mode = "train" if self.model.training else "eval"
        stacked = torch.stack([value.detach().float() for value in values.values()])
        for name, value in zip(values, self.accelerator.reduce(stacked, reduction="mean").tolist(), strict=True):
            self._metrics[mode][name].append(value)
            if mode == "train":
                self.watch(name, value)

    # Losses

    @property
    def mask_loss_options(self) -> dict[str, Any]:
        """Of the config, the options of [`~losses.mask_losses`]."""
        return {name: getattr(self.args, name) for name in MASK_LOSS_OPTIONS}

    def mask_losses(self, outputs: Sa2VAOutput, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
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
        return losses.mask_losses(
            outputs.mask_logits,
            outputs.iou_scores,
            inputs["masks"],
            outputs.row_index,
            len(inputs["original_masks"]),
            inputs.get("skeletons"),
            **self.mask_loss_options,
        )

    def _weighted(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(getattr(self.args, name.replace("_loss", "_weight")) * value for name, value in values.items())


def _processor_of(model: "str | PreTrainedModel | PeftModel", args: SegArguments) -> Sa2VAProcessor:
    if not isinstance(model, str):
        raise ValueError(
            "processing_class, the model's Sa2VAProcessor, is needed with a model that is already loaded."
        )
    options = args.model_init_kwargs or {}
    options = {name: options[name] for name in (*HUB_OPTIONS, "subfolder") if name in options}
    return Sa2VAProcessor.from_pretrained(model, **options)


def _load(name: str, args: SegArguments, quantization_config: "BitsAndBytesConfig | None") -> PreTrainedModel:
    # As TRL does, which would look for the class in the config, where published checkpoints name remote code.
    set_seed(args.seed)
    loading = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        loading["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        loading["device_map"] = None
    return create_model_from_path(name, Sa2VAForConditionalGeneration, **loading)
