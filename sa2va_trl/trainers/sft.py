import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import EarlyStoppingCallback, set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import create_model_from_path

from .. import losses
from ..data.augment import Augmentation
from ..data.collator import ANSWERS, QUESTIONS, SegCollator, check_templates
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor
from ..models.checkpoints import HUB_OPTIONS
from .base import TARGETS, SegTrainerMixin, _EpochToCollator, check_cache_options, mean_statistics, refuse
from .trainable import EMBEDDINGS, TRAINABLE, freeze_all_but_full, get_peft_config


_ANSWERS_ONLY = "the loss is always on the assistant's turns, and on them only"
_NO_TEXT = "rows are never turned into token rows; they keep their images and masks"
REFUSED = {
    "packing": "rows with images cannot be packed",
    "eval_packing": "rows with images cannot be packed",
    "packing_strategy": "rows with images cannot be packed",
    "padding_free": "rows with images are padded",
    "pad_to_multiple_of": "batches are padded to their longest row",
    "max_length": "truncating could cut image tokens or [SEG]; shorten the text or lower the number of tiles",
    "truncation_mode": "nothing is truncated",
    "dataset_text_field": _NO_TEXT,
    "dataset_kwargs": _NO_TEXT,
    "shuffle_dataset": "the sampler shuffles; set `train_sampling_strategy` instead",
    "completion_only_loss": _ANSWERS_ONLY,
    "assistant_only_loss": _ANSWERS_ONLY,
    "loss_type": "the language loss is the cross-entropy; see the `*_weight` options for the others",
    "label_smoothing_factor": "the language loss is the plain cross-entropy",
    "router_aux_loss_coef": "the supported language models have no router",
    "chat_template_path": "the prompt template belongs to the checkpoint (`prompt_template` in its config)",
    "eos_token": "the end of an answer belongs to the prompt template",
    "pad_token": "the tokenizer's own padding token is used",
    "eval_do_concat_batches": "Dice and IoU are averaged over all batches",
    "batch_eval_metrics": "Dice and IoU are averaged over all batches",
    "average_tokens_across_devices": "every row counts alike, however many tokens its answer has",
    "label_names": "labels and masks are what the collator makes",
    "use_liger_kernel": "it would replace the forward that also draws the masks",
    "trust_remote_code": "the model is native; no code is downloaded",
}


LORA = ("lora_r", "lora_alpha", "lora_dropout")


@dataclass
class SegSFTConfig(SFTConfig):
    r"""
    Configuration of [`SegSFTTrainer`]. Only what it adds to [`trl.SFTConfig`] is listed.

    > [!NOTE]
    > Different from `SFTConfig`: `max_length` is `None`, `bf16` is off where there is no GPU, and
    > `metric_for_best_model` is `"dice"` if the best checkpoint is to be loaded.

    Parameters:
        > Parameters that control what trains

        trainable (`str`, *optional*):
            `"stage1"`, `"head"` or `"full"`, see [`~trainers.trainable.get_peft_config`]. Defaults to `"stage1"`,
            unless the trainer gets a `peft_config` or a `PeftModel`, which then decide.
        lora_r, lora_alpha, lora_dropout:
            LoRA of `"stage1"`.
        train_embeddings (`str`, *optional*, defaults to `"none"`):
            `"none"`, `"seg"` or `"full"`, with `"stage1"`.

        > Parameters that control the loss

        lm_weight (`float`, *optional*, defaults to 1.0), mask_weight (2.0), dice_weight (0.5):
            Weights of cross-entropy, mask BCE and Dice; the official ones.
        skeleton_recall_weight, cldice_weight, iou_weight (`float`, *optional*, defaults to 0.0):
            Weights of the skeleton recall loss, soft clDice, and the squared error of SAM 2's predicted IoU.
        cldice_iterations (`int`, *optional*, defaults to 10):
            At least half the width of the widest vessel, in cells of the mask grid.
        num_points (`int`, *optional*, defaults to 12544):
            Points that BCE and Dice are computed on; 0 for all cells of the grid.
        oversample_ratio (`float`, *optional*, defaults to 3.0), importance_ratio (0.75):
            See [`~losses.sample_points`].
        mask_size (`int`, *optional*):
            Side of the grid that masks are compared on; the decoder's own by default.

        > Parameters that control the data

        augmentation (`dict`, *optional*):
            Arguments of [`~data.augment.Augmentation`], for training only.
        question_templates, answer_templates (`list[str]`, *optional*):
            What `phrase` columns are wrapped in.
        dataset_repeats (`int`, *optional*, defaults to 1):
            How often the training rows are seen in one epoch.
        early_stopping_patience (`int`, *optional*):
            Evaluations without a better metric before training stops.
        cache_features (`str`, *optional*, defaults to `"auto"`):
            `"on"` computes what comes before the mask head once and reads it from disk from then on, `"off"` does so
            in every step. `"auto"` is `"on"` where that changes nothing: with `trainable="head"`, `lm_weight=0`, no
            augmentation, at most one template each, and room on the disk. It says what it decided and why.
        cache_dir (`str`, *optional*):
            Where features go: beside the data set, or else into the cache of `datasets`, by default.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "augmentation"]

    trainable: str | None = field(
        default=None, metadata={"help": f"What trains: one of {', '.join(TRAINABLE)}. Defaults to stage1."}
    )
    lora_r: int = field(default=64, metadata={"help": "LoRA rank of stage1."})
    lora_alpha: int = field(default=128, metadata={"help": "LoRA alpha of stage1."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA dropout of stage1."})
    train_embeddings: str = field(
        default="none", metadata={"help": f"Embeddings and head in stage1: one of {', '.join(EMBEDDINGS)}."}
    )
    lm_weight: float = field(default=1.0, metadata={"help": "Weight of the language cross-entropy."})
    mask_weight: float = field(default=2.0, metadata={"help": "Weight of the mask BCE."})
    dice_weight: float = field(default=0.5, metadata={"help": "Weight of the Dice loss."})
    skeleton_recall_weight: float = field(default=0.0, metadata={"help": "Weight of the skeleton recall loss."})
    cldice_weight: float = field(default=0.0, metadata={"help": "Weight of the soft clDice loss."})
    cldice_iterations: int = field(default=10, metadata={"help": "Iterations of the soft skeleton."})
    iou_weight: float = field(default=0.0, metadata={"help": "Weight of the error of the predicted IoU."})
    num_points: int = field(default=12544, metadata={"help": "Points a mask for BCE and Dice; 0 for the dense loss."})
    oversample_ratio: float = field(default=3.0, metadata={"help": "Candidates drawn for each point."})
    importance_ratio: float = field(default=0.75, metadata={"help": "Share of points where the mask is uncertain."})
    mask_size: int | None = field(default=None, metadata={"help": "Side of the grid that masks are compared on."})
    augmentation: dict | str | None = field(default=None, metadata={"help": "Augmentation of training rows."})
    question_templates: list[str] | None = field(
        default=None, metadata={"help": "Questions with {phrase}; one is drawn for each object."}
    )
    answer_templates: list[str] | None = field(
        default=None, metadata={"help": "Answers with one [SEG]; one is drawn for each object."}
    )
    dataset_repeats: int = field(default=1, metadata={"help": "How often an epoch sees each training row."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without improvement before training stops."}
    )
    cache_features: str = field(
        default="auto", metadata={"help": "Features of what is frozen, computed once: auto, on or off."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where features go; beside the data by default."})
    max_length: int | None = field(default=None, metadata={"help": "Not available: nothing is truncated."})

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "dice"
        refuse(self, REFUSED)  # before the base class turns defaults into values
        super().__post_init__()
        if self.train_sampling_strategy == "group_by_length":
            raise ValueError("train_sampling_strategy='group_by_length' is not available: rows have no token lengths.")
        if self.prediction_loss_only and self.metric_for_best_model in ("dice", "iou", "eval_dice", "eval_iou"):
            raise ValueError(
                f"prediction_loss_only=True computes no {self.metric_for_best_model} to choose the best checkpoint by."
            )
        for name in ("lm", "mask", "dice", "skeleton_recall", "cldice", "iou"):
            if getattr(self, f"{name}_weight") < 0:
                raise ValueError(f"{name}_weight must not be negative, got {getattr(self, f'{name}_weight')}.")
        if self.num_points < 0 or self.oversample_ratio < 1 or not 0 <= self.importance_ratio <= 1:
            raise ValueError(
                "num_points must not be negative, oversample_ratio at least 1 and importance_ratio within [0, 1]; got "
                f"{self.num_points}, {self.oversample_ratio} and {self.importance_ratio}."
            )
        for name, least in (("dataset_repeats", 1), ("lora_r", 1), ("lora_alpha", 1), ("cldice_iterations", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.mask_size is not None and self.mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, got {self.mask_size}.")
        if self.trainable in ("head", "full"):
            refuse(self, dict.fromkeys(LORA, f"trainable={self.trainable!r} has no LoRA"))
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError("early_stopping_patience needs load_best_model_at_end=True and a metric to watch.")
        try:
            augmentation = Augmentation(**(self.augmentation or {}))
        except TypeError as error:
            names = ", ".join(Augmentation.__dataclass_fields__)
            raise ValueError(f"augmentation takes {names}; got {self.augmentation}.") from error
        if self.dataloader_persistent_workers and augmentation != Augmentation():
            raise ValueError(
                "augmentation needs dataloader_persistent_workers=False: workers that live on never learn of a new "
                "epoch."
            )
        check_cache_options(self)
        check_templates(self.question_templates or QUESTIONS, self.answer_templates or ANSWERS)
        get_peft_config(self.trainable or "stage1", seg_token_id=0, train_embeddings=self.train_embeddings)


class SegSFTTrainer(SegTrainerMixin, SFTTrainer):
    """
    Supervised fine-tuning of [`Sa2VAForConditionalGeneration`] on images with masks.

    The loss is the sum of the language cross-entropy and the mask losses, each averaged over the objects (or answer
    tokens) of a row and then over rows. Every row counts alike, so neither the micro-batch size nor accumulation nor
    the number of processes changes it. (Sa2VA's own training has five objects in every row, which makes its mask
    losses these; its language loss is averaged over the tokens of a micro-batch.) Every part is logged without its
    weight: `lm_loss`, `mask_loss`, `dice_loss`, `skeleton_recall_loss`, `cldice_loss`, `iou_loss`.

    Args:
        model (`str`, `Sa2VAForConditionalGeneration` or `PeftModel`): what to train.
        args (`SegSFTConfig`): options.
        train_dataset (`datasets.Dataset`): rows as in [`~data.columns.check_dataset`].
        eval_dataset (`datasets.Dataset` or a `dict` of them, *optional*):
            Sharing no sample, video or patient with `train_dataset`.
        processing_class (`Sa2VAProcessor`, *optional*): loaded from the model's name by default.
        data_collator (`SegCollator`, *optional*): made from `args` by default.
        peft_config (`LoraConfig`, *optional*): in place of `args.trainable`.
        callbacks, optimizers, optimizer_cls_and_kwargs, quantization_config, compute_metrics: as in `SFTTrainer`.

    Raises:
        `DatasetError`: bad rows, all at once, or splits that share something.
        `ValueError`: options that contradict each other.
    """

    _tag_names = [*SegTrainerMixin._tag_names, "sft"]
    _name = "SegSFT"
    _stage = "supervised fine-tuning"

    def __init__(
        self,
        model,
        args: SegSFTConfig | None = None,
        data_collator: SegCollator | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        optimizer_cls_and_kwargs=None,
        quantization_config=None,
        peft_config=None,
    ):
        if args is None:
            args = SegSFTConfig("sa2va-sft")
        if not isinstance(args, SegSFTConfig):
            raise TypeError(f"args must be a SegSFTConfig, got {type(args).__name__}.")
        train_dataset = self.prepare_dataset(train_dataset, "train_dataset", args.dataset_num_proc)
        eval_dataset = self.prepare_dataset(eval_dataset, "eval_dataset", args.dataset_num_proc)
        self.check_splits(train_dataset, eval_dataset)
        if isinstance(train_dataset, Dataset):
            # Repeated by concatenation, which copies nothing; a column added to a selection would copy all its rows.
            train_dataset = concatenate_datasets([train_dataset.flatten_indices()] * args.dataset_repeats)
            train_dataset = train_dataset.add_column("row_index", list(range(len(train_dataset))))
        elif args.dataset_repeats > 1:
            raise ValueError("dataset_repeats needs a datasets.Dataset, whose length is known.")
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
            names = ("augmentation", "mask_size", "question_templates", "answer_templates")
            refuse(args, dict.fromkeys(names, "the given data_collator decides"))
        decided = peft_config is not None or isinstance(model, PeftModel)
        if decided:
            refuse(args, dict.fromkeys((*LORA, "train_embeddings"), "the given adapter decides"))
        if decided and args.trainable is not None:
            raise ValueError("Give either `trainable` or a `peft_config`/`PeftModel`: both say what trains.")
        trainable = args.trainable or "stage1"
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
            "seed": args.data_seed if args.data_seed is not None else args.seed,
        }
        augmentation = Augmentation(**(args.augmentation or {}))
        self.eval_collator = SegCollator(
            **{**options, "questions": options["questions"][:1], "answers": options["answers"][:1]}
        )
        data_collator = data_collator or SegCollator(
            **options, augmentation=None if augmentation == Augmentation() else augmentation
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics or mean_statistics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            peft_config=peft_config,
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

    def reasons_against_features(self) -> list[str]:
        reasons = super().reasons_against_features()
        if self.args.lm_weight:
            reasons.append(
                f"lm_weight={self.args.lm_weight} asks for a language loss, which needs the text (set it to 0)"
            )
        return reasons

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
        args, masks = self.args, inputs["masks"]
        logits, rows = outputs.mask_logits, outputs.row_index
        if len(logits) != len(masks):
            raise ValueError(f"The conversations hold {len(logits)} [SEG] for {len(masks)} masks.")
        if len(masks) == 0:
            # Still a function of the model's output: ZeRO-3 wants the backward passes of all ranks to run alike.
            logits = logits.new_zeros(masks.shape) + logits.sum()
        elif logits.shape[-1] != masks.shape[-1]:
            logits = F.interpolate(logits[:, None], size=masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        values = {}
        if args.mask_weight or args.dice_weight:
            points, targets = logits, masks
            if args.num_points:
                points, targets = losses.sample_points(
                    logits, masks, args.num_points, args.oversample_ratio, args.importance_ratio
                )
            values["mask_loss"] = losses.mask_bce_loss(points, targets)
            values["dice_loss"] = losses.dice_loss(points, targets)
        if args.skeleton_recall_weight:
            values["skeleton_recall_loss"] = losses.skeleton_recall_loss(logits, inputs["skeletons"])
        if args.cldice_weight:
            values["cldice_loss"] = losses.soft_cldice_loss(logits, masks, args.cldice_iterations)
        if args.iou_weight:
            predicted, target = (logits > 0).flatten(1), masks.bool().flatten(1)
            union = (predicted | target).sum(1)
            achieved = torch.where(union > 0, (predicted & target).sum(1) / union.clamp(min=1), 1.0)
            values["iou_loss"] = (outputs.iou_scores - achieved) ** 2
        batch = len(inputs["original_masks"])
        counts = torch.bincount(rows, minlength=batch).clamp(min=1)
        share = 1 / (counts[rows] * batch)
        return {name: (value * share).sum() for name, value in values.items()}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
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
