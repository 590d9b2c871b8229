import re
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainerCallback

from ..data.collator import SegCollator
from ..data.columns import DatasetError, check_dataset
from ..data.splits import check_no_leakage
from ..metrics import Counts, dice, iou
from ..models.grounding import upsample_mask_logits


COLUMNS = ["image", "images", "mask", "masks", "phrase", "phrases", "messages", "sample_id", "row_index"]
# What the collator makes for the trainer, not for the model.
TARGETS = ("labels", "masks", "original_masks", "skeletons")


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


def mask_statistics(
    mask_logits: torch.Tensor, row_index: torch.Tensor, targets: list[torch.Tensor], image_size: int, threshold: float
) -> torch.Tensor:
    """
    Dice and IoU of each row at its image's own size, averaged over the row's masks.

    Args:
        mask_logits (`torch.Tensor` of shape `(masks, h, w)`): logits on the decoder's grid.
        row_index (`torch.LongTensor` of shape `(masks,)`): the row of each mask.
        targets (`list[torch.Tensor]`): for each row, uint8 {0, 1} of shape `(masks of the row, H, W)`.
        image_size (`int`): side of SAM 2's square.
        threshold (`float`): probability above which a pixel belongs to the mask.

    Returns:
        `torch.Tensor` of shape `(rows, 2)`, float32: Dice and IoU in [0, 1], NaN for rows without masks.
    """
    statistics = mask_logits.new_full((len(targets), 2), float("nan"), dtype=torch.float32)
    for row, target in enumerate(targets):
        if len(target) == 0:
            continue
        logits = upsample_mask_logits(mask_logits[row_index == row], image_size, target.shape[-2:])
        predicted, target = (logits.sigmoid() > threshold).flatten(1), target.bool().flatten(1)
        tp, fp, fn = (
            (a & b).sum(1).cpu().numpy() for a, b in ((predicted, target), (predicted, ~target), (~predicted, target))
        )
        counts = Counts(tp, fp, fn, target.shape[1] - tp - fp - fn)
        statistics[row, 0], statistics[row, 1] = float(np.mean(dice(counts))), float(np.mean(iou(counts)))
    return statistics


def mean_statistics(prediction) -> dict[str, float]:
    """`compute_metrics` of the mask trainers: mean Dice and IoU over the rows that have masks."""
    values = np.asarray(prediction.predictions, dtype=np.float64).reshape(-1, 2)
    values = values[~np.isnan(values[:, 0])]
    if len(values) == 0:
        return {}
    return {"dice": float(values[:, 0].mean()), "iou": float(values[:, 1].mean())}


class SegTrainerMixin:
    """
    What the mask trainers share: columns that survive, checks before training, mask statistics and the model card.
    """

    _tag_names = ["sa2va_trl", "segmentation"]
    eval_collator: SegCollator

    @staticmethod
    def prepare_dataset(dataset, name: str, num_proc: int | None):
        """Check every row, before anything else happens."""
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            parts = dataset.items()
            return {key: SegTrainerMixin.prepare_dataset(part, f"{name}[{key}]", num_proc) for key, part in parts}
        check_dataset(dataset, name=name, num_proc=num_proc)
        if "row_index" in (dataset.column_names or []):
            raise DatasetError(f"{name} has a column `row_index`, which the trainer needs for itself: rename it.")
        if not isinstance(dataset, Dataset):
            return dataset
        if "image" not in dataset.column_names and "images" not in dataset.column_names:
            # TRL takes a dataset for a vision dataset, and leaves its rows alone, by this column.
            dataset = dataset.add_column("image", [None] * len(dataset))
        return dataset

    @staticmethod
    def check_splits(train_dataset, eval_dataset) -> None:
        """Refuse an evaluation set that shares samples, videos or patients with the training set."""
        parts = eval_dataset.items() if isinstance(eval_dataset, dict) else [("eval_dataset", eval_dataset)]
        for key, part in parts:
            if isinstance(train_dataset, Dataset) and isinstance(part, Dataset):
                check_no_leakage(train_dataset, part, names=("train_dataset", key))

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
        """Dice and IoU of each row, shape `(batch, 2)`: all that evaluation gathers, never maps."""
        config = self.accelerator.unwrap_model(self.model).config
        return mask_statistics(
            outputs.mask_logits,
            outputs.row_index,
            inputs["original_masks"],
            config.grounding_config.image_size,
            config.mask_threshold,
        )

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags=None):
        """
        Write `README.md` into the output folder.

        Args:
            model_name (`str`, *optional*): title; the output folder's name by default.
            dataset_name (`str`, *optional*): name of the training data, if it may be published.
            tags (`str` or `list[str]`, *optional*): further tags.
        """
        if not self.is_world_process_zero():
            return
        base = self.accelerator.unwrap_model(self.model).config._name_or_path
        # A local folder's path says more about its owner than about the model.
        base = base if base and re.fullmatch(r"[\w.\-]+/[\w.\-]+", base) and not Path(base).exists() else None
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        data = ModelCardData(
            base_model=base,
            datasets=dataset_name,
            library_name="sa2va_trl",
            pipeline_tag="image-segmentation",
            tags=sorted({*tags, *self._tag_names}),
        )
        name = model_name or Path(self.args.output_dir).name
        evaluations = [entry for entry in self.state.log_history if "eval_dice" in entry]
        results = "".join(
            f"| {entry['step']} | {entry['eval_dice']:.4f} | {entry['eval_iou']:.4f} |\n" for entry in evaluations
        )
        ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n"
            f"Trained with `{type(self).__name__}` of sa2va_trl"
            + (f" from [{base}](https://huggingface.co/{base})" if base else "")
            + ".\n\n## What trains\n\n```\n"
            + self.trainable_summary
            + "\n```\n"
            + (
                f"\n## Evaluation during training\n\n| step | Dice | IoU |\n|---|---|---|\n{results}"
                if results
                else ""
            )
        ).save(str(Path(self.args.output_dir) / "README.md"))
