import copy
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.trainer_utils import EvalPrediction, HubStrategy
from transformers.utils import PushInProgress
from transformers.utils.hub import hf_api
from trl.trainer.utils import create_model_from_path

from .. import losses
from ..adapters.base_model import check_base
from ..adapters.peft_model import SegPeftModel
from ..adapters.presets import LORA, freeze_all_but_full, get_peft_config, trainable_table
from ..data.augment import Augmentation
from ..data.collator import ANSWERS, QUESTIONS, SegCollator, check_fit
from ..data.columns import IMAGE_COLUMNS, check_dataset, plain_rows
from ..data.splits import check_no_leakage
from ..errors import DatasetError, FeatureError
from ..features.encoding import MODES, FeatureCollator, encoder, max_positions
from ..features.fingerprint import before_the_cut, fingerprint, random_before_the_cut
from ..features.rows import NumberedRows, View, feature_bytes, row_keys, row_sizes, view_key
from ..features.store import FeatureStore, features_folder
from ..hub import commit_operations, resume_operations, weight_files
from ..metrics import Counts, dice, iou
from ..model_card import model_card, public_name, write_card
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor
from ..models.checkpoints import HUB_OPTIONS
from ..models.grounding import upsample_mask_logits
from ..processes import everywhere
from .resuming import ResumingMixin


COLUMNS = ["image", "images", "mask", "masks", "phrase", "phrases", "messages", "sample_id"]


def refuse(args, reasons: dict[str, str]) -> None:
    """
    Raise for every inherited option that was changed and has no meaning here, all of them at once.

    Args:
        args (`TrainingArguments`): a config.
        reasons (`dict[str, str]`): option names and what to do instead.

    Raises:
        `ValueError`: naming each option that differs from its default.
    """
    defaults = {
        entry.name: entry.default if entry.default is not MISSING else entry.default_factory()
        for entry in fields(args)
        if entry.default is not MISSING or entry.default_factory is not MISSING
    }
    changed = [name for name in reasons if getattr(args, name) != defaults[name]]
    if changed:
        lines = "\n".join(f"  {name}={getattr(args, name)!r}: {reasons[name]}" for name in changed)
        raise ValueError(f"{type(args).__name__} does not take these options:\n{lines}")


class _EpochToCollator(TrainerCallback):
    def __init__(self, collator: SegCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        # The epoch is a float that has just reached the next whole number.
        self.collator.epoch = int((state.epoch or 0) + 1e-6)


class _BuildFeatures(TrainerCallback):
    def __init__(self, trainer: "SegTrainerMixin"):
        self.trainer = trainer

    # Not earlier: DeepSpeed and mixed precision have wrapped the model, and a resumed run has its weights.
    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.build_features()


def check_cache_options(args) -> None:
    """
    Raises:
        `ValueError`: an unknown `cache_features`, a `cache_dir` or `cache_views` without a cache, or views of nothing.
    """
    if args.cache_features not in MODES:
        raise ValueError(f"cache_features must be one of {', '.join(MODES)}, got {args.cache_features!r}.")
    for name in ("cache_dir", "cache_views"):
        if getattr(args, name) is not None and args.cache_features == "off":
            raise ValueError(f"{name} has no meaning with cache_features=off.")
    if args.cache_views is not None and (args.cache_views < 1 or not any((args.augmentation or {}).values())):
        raise ValueError(
            f"cache_views is a number of augmented views of each row, and needs augmentation; got {args.cache_views} "
            f"with augmentation={args.augmentation}."
        )


def mask_statistics(
    mask_logits: torch.Tensor,
    row_index: torch.Tensor,
    targets: list[torch.Tensor],
    image_size: int,
    threshold: float,
    mask_metrics: "MaskMetrics | None" = None,
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
        predicted, target = logits.sigmoid() > threshold, target.bool()
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


def mean_statistics(prediction, names: Sequence[str] = ("dice", "iou")) -> dict[str, float]:
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


def _metrics_of(compute_metrics, width: int) -> list[str] | None:
    """The names of what somebody's `compute_metrics` returns of two rows, `None` where it cannot be tried on them."""
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

    def __init__(self, function):
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


class SegTrainerMixin(ResumingMixin):
    """
    What the mask trainers share: columns that survive, checks before training, mask statistics and the model card.
    """

    _tag_names = ["sa2va_trl", "segmentation"]
    _stage: str
    eval_collator: SegCollator

    # Fingerprints of the sets that have been checked: evaluating them again costs nothing.
    _checked: frozenset[str] = frozenset()
    _fitting: frozenset[str] = frozenset()

    def prepare_dataset(self, dataset, name: str, args):
        """
        Check every row of a set, or of each of a `dict`, before anything else happens; nothing is copied or written.

        Returns:
            The set as it is read: without a format, see [`~data.columns.plain_rows`].
        """
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {key: self.prepare_dataset(part, f"{name}[{key}]", args) for key, part in dataset.items()}
        dataset = plain_rows(dataset)
        if isinstance(dataset, Dataset) and dataset._fingerprint in self._checked:
            return dataset
        self.check_rows(dataset, name, args)
        if isinstance(dataset, Dataset):
            self._checked |= {dataset._fingerprint}
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
        """Check that the rows of a set, or of each of a `dict`, fit the model, see [`~data.collator.check_fit`]."""
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
            self._checked |= {train_dataset._fingerprint}
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

    # Frozen features, see `data.features`

    features: FeatureStore | None = None
    _features_ready = False
    # Of the rows of each set that has features, by its fingerprint.
    _keys: dict[str, list[str]] = {}
    # Whether the training rows are evaluated, too: then they have features as they are, beside their augmented views.
    _evaluates_training = False

    def reasons_against_features(self) -> list[str]:
        """Why features cannot stand in for the pixels of this run; a trainer adds its own reasons."""
        reasons = []
        trained = [name for name, parameter in before_the_cut(self.model) if parameter.requires_grad]
        if trained:
            reasons.append(
                f"{len(trained)} weights before the mask head train, such as {trained[0]} (trainable=head trains none)"
            )
        if dropouts := random_before_the_cut(self.model):
            reasons.append(f"{len(dropouts)} dropout layers before the mask head, such as {dropouts[0]}")
        collator = self.data_collator
        if not isinstance(collator, SegCollator):
            reasons.append(f"the data_collator is a {type(collator).__name__} and not a SegCollator")
        else:
            if collator.augmentation is not None and collator.views is None:
                reasons.append("augmentation changes the images (cache_views takes a number of views of each)")
            for name, option in (("questions", "question_templates"), ("answers", "answer_templates")):
                own = list(getattr(collator, name))
                if len(own) > 1:
                    reasons.append(f"each epoch draws from {len(own)} {option}")
                elif own != list(getattr(self.eval_collator, name)):
                    reasons.append(f"training and evaluation have other {option}")
        for name, dataset in self._feature_datasets():
            if not isinstance(dataset, Dataset):
                reasons.append(f"{name} is a {type(dataset).__name__}, whose length is not known")
            elif dataset.format["type"] is not None:
                reasons.append(f"{name} has a transform, which may change the images")
        if self.is_fsdp_enabled:
            reasons.append("FSDP shards the model in a way that features are not tested with")
        return reasons

    def _feature_datasets(self) -> list[tuple[str, Dataset]]:
        parts = [("train_dataset", self.train_dataset)]
        if isinstance(self.eval_dataset, dict):
            parts += [(f"eval_dataset[{name}]", part) for name, part in self.eval_dataset.items()]
        else:
            parts.append(("eval_dataset", self.eval_dataset))
        return [(name, part) for name, part in parts if part is not None]

    def setup_features(self) -> None:
        """
        Call at the end of `__init__`: decide about `args.cache_features`, say so, and prepare data and collators.

        Raises:
            `ValueError`: `cache_features="on"` and something that needs the pixels.
            `FeatureError`: `cache_features="on"` and no room for them.
        """
        mode = self.args.cache_features
        if mode == "off":
            return
        if reasons := self.reasons_against_features():
            if mode == "on":
                lines = "\n".join(f"  {reason}" for reason in reasons)
                raise ValueError(f"cache_features=on is not possible here:\n{lines}")
            self._without_features("; ".join(reasons))
            return
        parts = self._feature_datasets()
        question, answer = self.eval_collator.questions[0], self.eval_collator.answers[0]
        self._feature_rows, self._feature_sizes, keys = {}, {}, {}
        for name, dataset in parts:
            # Repeated rows stand one after the other, repetition by repetition.
            repeats = getattr(self.args, "dataset_repeats", 1) if name == "train_dataset" else 1
            once = dataset.select(range(len(dataset) // repeats))
            own = row_keys(once, question, answer)
            for index, (key, size) in enumerate(zip(own, row_sizes(once), strict=True)):
                self._feature_rows.setdefault(key, (dataset, index))
                self._feature_sizes[key] = size
            keys[name] = own * repeats
        if self.data_collator.augmentation is not None:
            self._add_views(keys)
        store = self._open_features()
        missing = store.missing(self._feature_rows)
        need, total = self._feature_need(missing), self._feature_need(self._feature_rows)
        count, free = len(self._feature_rows), store.free() if self.is_world_process_zero() else 0
        size = f"{total / 2**20:,.1f} MiB for {count} rows ({total / max(count, 1):,.0f} bytes each) in {store.folder}"
        if everywhere(need > free)[0]:
            message = (
                f"there is no room for features: {need:,} bytes are needed in {store.folder} and {free:,} can be "
                "written; set cache_dir to another disk"
            )
            if mode == "on":
                raise FeatureError(f"cache_features=on: {message}.")
            self._without_features(message)
            return
        why = "nothing before the mask head trains or varies and no language loss is asked for; "
        state = "all there" if not missing else f"{len(missing)} to compute, {need / 2**20:,.1f} MiB to write"
        self._tell(f"cache_features={mode}: on, {why if mode == 'auto' else ''}{size}; {state}.")

        self._keys = {dataset._fingerprint: keys[name] for name, dataset in parts}
        self._encoding_collator = self.eval_collator
        self.features, self._features_ready = store, not missing
        self.data_collator = FeatureCollator(self.data_collator, store)
        self.eval_collator = FeatureCollator(self.eval_collator, store)
        self.add_callback(_BuildFeatures(self))

    def _without_features(self, reason: str) -> None:
        self._tell(f"cache_features=auto: off, {reason}.")
        if self.args.cache_views is not None:
            self.data_collator.views = None  # then there is no reason for a few views only

    def _add_views(self, keys: dict[str, list[str]]) -> None:
        """Views of the training rows, in place of the rows, are what training reads."""
        names = [name for name in keys if name != "train_dataset" or self._evaluates_training]
        evaluated = {key for name in names for key in keys[name]}
        rows = keys["train_dataset"]
        sizes = {key: self._feature_sizes[key] for key in rows}
        for key in sizes.keys() - evaluated:
            del self._feature_rows[key], self._feature_sizes[key]
        for number in range(self.data_collator.views):
            view = View(NumberedRows(self.train_dataset), self.data_collator, number)
            for index, key in enumerate(rows):
                seen = view_key(key, view.collator, index)
                self._feature_rows[seen], self._feature_sizes[seen] = (view, index), sizes[key]

    def _tell(self, message: str) -> None:
        if self.is_world_process_zero():
            print(message)

    @property
    def _feature_dtypes(self) -> tuple[torch.dtype | None, str | None]:
        """What DeepSpeed casts weights to, and what mixed precision computes in."""
        kind = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else None
        if self.is_deepspeed_enabled:
            return getattr(torch, kind) if kind else None, None
        return None, kind

    def _open_features(self) -> FeatureStore:
        root = self.args.cache_dir or features_folder(self._feature_datasets()[0][1])
        dtype, autocast = self._feature_dtypes
        return FeatureStore(root, fingerprint(self.model, self.processing_class, dtype, autocast)).open()

    def _feature_need(self, keys) -> int:
        dtype, autocast = self._feature_dtypes
        itemsize = 2 if autocast or dtype else self.accelerator.unwrap_model(self.model).dtype.itemsize
        config = self.model.config
        return sum(feature_bytes(config, *self._feature_sizes[key], itemsize) for key in keys)

    def build_features(self) -> None:
        """
        Compute the features that are missing. All processes call it together, with a model that is ready to train.

        Raises:
            `FeatureError`: see [`~features.store.FeatureStore.build`].
        """
        dtype, autocast = self._feature_dtypes
        prints = fingerprint(self.model, self.processing_class, dtype, autocast)
        if prints != self.features.prints:  # other weights since, such as a resumed run's
            self.features.change(prints)
        self.features.build(
            self._feature_rows,
            encoder(self.model_wrapped, self._encoding_collator, self._prepare_inputs),
            self.args.per_device_eval_batch_size,
            self._feature_need,
            progress=not self.args.disable_tqdm,
        )
        self._features_ready = True
        # Workers that live on know the features of the time when they were started.
        getattr(self, "_eval_dataloaders", {}).clear()

    def _remove_unused_columns(self, dataset, description=None):
        keys = self._keys.get(dataset._fingerprint)
        # A transform may read any column.
        if dataset.format["type"] is None:
            dataset = super()._remove_unused_columns(dataset, description)
        # Training computes what is missing before it reads a row; an evaluation on its own does not.
        if keys is None or not (self._features_ready or description == "Training"):
            return NumberedRows(dataset)
        drop = [name for name in IMAGE_COLUMNS if name in dataset.column_names]
        return NumberedRows(dataset.remove_columns(drop), keys)

    def floating_point_ops(self, inputs):
        return 0 if "features" in inputs else super().floating_point_ops(inputs)

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
        share = self.mask_shares(rows, inputs)
        return {name: (value * share).sum() for name, value in values.items()}

    @staticmethod
    def mask_shares(row_index: torch.Tensor, inputs: dict) -> torch.Tensor:
        """How much each mask counts, shape `(masks,)`: the masks of a row alike, and all rows of the batch alike."""
        batch = len(inputs["original_masks"])
        counts = torch.bincount(row_index, minlength=batch).clamp(min=1)
        return 1 / (counts[row_index] * batch)

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

    # Saving and pushing

    def prepare_to_save(self) -> None:
        """Call once the model is there and before anything trains: what its card and the record of its base need."""
        # A path that is a local folder now might not be one when the card is written.
        self._base_model = public_name(self.model.config._name_or_path)
        self.trainable_summary = trainable_table(self.model)
        if isinstance(self.model, PeftModel):
            SegPeftModel.adopt(self.model)

    def init_hf_repo(self, token=None, private=None):
        if self.args.hub_model_id is None:
            raise ValueError(
                "Pushing needs hub_model_id: without it the repository would get the name of the output folder."
            )
        if self._pushes_checkpoints and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                f"hub_strategy={self.args.hub_strategy.value!r} is not available with DeepSpeed or FSDP, whose "
                "checkpoints hold their configuration and the frozen weights: use 'every_save' or 'end'."
            )
        super().init_hf_repo(token=token, private=private)

    @property
    def _pushes_checkpoints(self) -> bool:
        return self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_card(output_dir or self.args.output_dir, self._card())

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if isinstance(self.model, SegPeftModel):
            check_base(self.model, self.model.base_record, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_model_card(self, model_name: str | None = None, dataset_name=None, tags=None, metrics=None):
        """
        Write `README.md` into the output folder, see [`~model_card.model_card`].

        Args:
            model_name (`str`, *optional*): title; by default the repository's name, and never the output folder's.
            dataset_name (`str` or `list[str]`, *optional*): training data; named if it is a Hub id.
            tags (`str` or `list[str]`, *optional*): further tags.
            metrics (`dict`, `str` or `os.PathLike`, *optional*): an evaluation's `metrics.json` or its content.
        """
        if self.is_world_process_zero():
            write_card(self.args.output_dir, self._card(model_name, dataset_name, tags, metrics))

    def _card(self, model_name=None, dataset_name=None, tags=None, metrics=None):
        is_adapter = isinstance(self.model, PeftModel)
        repo_id = getattr(self, "hub_model_id", None) or self.args.hub_model_id
        # TRL gives the output folder's name where there is no repository.
        if model_name is None or model_name == Path(self.args.output_dir).name:
            kind = "adapter" if is_adapter else "model"
            model_name = repo_id.split("/")[-1] if repo_id else f"Sa2VA {kind}, {self._stage}"
        return model_card(
            title=model_name,
            base_model=self._base_model,
            is_adapter=is_adapter,
            repo_id=repo_id,
            dataset_name=dataset_name,
            trainable=self.trainable_summary,
            stage=f"{self._stage} (`{type(self).__name__}`)",
            metrics=metrics,
            log=self.state.log_history,
            tags=[*([tags] if isinstance(tags, str) else tags or []), *self._tag_names],
        )

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ):
        """
        As in `Trainer`, but what goes up is the model, its processor and its card and nothing else of the output
        folder, see [`~hub.commit_operations`].

        Args:
            commit_message, blocking, token, revision, private: as in `Trainer`.
            kwargs: for `create_model_card`.

        Returns:
            `CommitInfo`, or a `Future` of it if not `blocking`; `None` on other processes than the main one.

        Raises:
            `ValueError`: `hub_model_id` is not set.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)  # on all processes
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        is_adapter = isinstance(self.model, PeftModel)
        return hf_api().create_commit(
            repo_id=self.hub_model_id,
            operations=commit_operations(self.args.output_dir, is_adapter, self.processing_class),
            commit_message=commit_message,
            token=token,
            run_as_future=not blocking,
            revision=revision if revision is not None else self.args.hub_revision,
        )

    def _push_from_checkpoint(self, checkpoint_folder):
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self._finish_current_push()  # it reads the files that the next lines write
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint, output = Path(checkpoint_folder), Path(self.args.output_dir)
        is_adapter = isinstance(self.model, PeftModel)
        # Pushed from the output folder: the checkpoint may be rotated away before the upload ends.
        for name in [*weight_files(checkpoint, is_adapter), "README.md"]:
            shutil.copy(checkpoint / name, output / name)
        operations = commit_operations(output, is_adapter, self.processing_class)
        if self._pushes_checkpoints:
            name = "last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            evaluations = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
            operations += commit_operations(checkpoint, is_adapter, self.processing_class, name)
            operations += resume_operations(checkpoint, name, evaluations)
        job = hf_api().create_commit(
            repo_id=self.hub_model_id,
            operations=operations,
            commit_message=f"Training in progress, step {self.state.global_step}",
            token=self.args.hub_token,
            # What resuming needs is read from the checkpoint itself, which has to stay until it is up.
            run_as_future=not self._pushes_checkpoints,
            revision=self.args.hub_revision,
        )
        if not self._pushes_checkpoints:
            self.push_in_progress = PushInProgress([job])
