"""Features of rows: computed, and read in place of the images."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..batches import AUTO, CPU_ROWS, GPU_ROWS, Batches
from ..data.collator import TARGETS, SegCollator, join_pairs
from ..data.fit import check_fit, image_tokens
from ..data.layout import row_layout
from ..data.stored import plain_rows
from ..media.pictures import displayed_size
from ..models import Sa2VAProcessor
from ..models.outputs import SegFeatures, join_features
from ..questions import question_of
from .packed_masks import PackedMasks, draw_masks
from .rows import KEY, MASKS_KEY, feature_bytes, item_sizes, view_key
from .store import FeatureStore


# A store and the key of each row of a data set in it.
Stored = tuple[FeatureStore, list[str]]


def to_model(model: nn.Module, batch: dict) -> dict:
    """
    What a model takes of a collator's batch, on its device and in its type.

    Args:
        model (`nn.Module`): a Sa2VA model, or a `PeftModel` around one.
        batch (`dict`): from [`~data.collator.SegCollator`] or [`FeatureCollator`].

    Returns:
        `dict` without what losses are taken against; floating-point tensors in the VLM's type, others and SAM 2's
        pixels, which it casts itself, in their own.
    """
    return {
        name: value.to(model.device)
        if name in ("features", "grounding_pixel_values")
        else value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
        if name not in TARGETS
    }


def unwrapped(model: nn.Module) -> nn.Module:
    """
    A model without what trains it on several processes (DDP, DeepSpeed) or compiles it.

    Args:
        model (`nn.Module`): wrapped or not; a `PeftModel` is a model.

    Returns:
        `nn.Module`.
    """
    # accelerate loads DeepSpeed, where it is installed, to find out whether a model is one of its own.
    return model if isinstance(model, (PreTrainedModel, PeftModel)) else extract_model_from_parallel(model)


def max_positions(model: nn.Module) -> int:
    """The most tokens of a row that a model, or a `PeftModel` around one, has positions for."""
    return model.config.text_config.max_position_embeddings


def rows_in_memory(model: nn.Module) -> int:
    """
    How many rows are good to have the features of at a time, where memory decides: on a GPU those that take a quarter
    of what is free.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): on its device.
    """
    if model.device.type != "cuda":
        return CPU_ROWS
    quarter = torch.cuda.mem_get_info(model.device)[0] // 4
    return max(1, min(GPU_ROWS, quarter // feature_bytes(model.config, 1, 1, *item_sizes(model))))


def row_collator(model: nn.Module, processor: Sa2VAProcessor, question: str | None = None) -> SegCollator:
    """
    What rows go through to a model that is judged, and not trained.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): that is asked.
        processor (`Sa2VAProcessor`): of the model.
        question (`str`, *optional*): template to ask with; by default the model's own, see [`~questions.question_of`].

    Returns:
        [`~data.collator.SegCollator`].
    """
    questions = (question_of(model.config) if question is None else question,)
    return SegCollator(processor, questions=questions, max_length=max_positions(model), with_pairs=False)


class RowEncoder:
    """
    Rows of a data set through a model, in batches: their features, from the pixels or from a store.

    Made once by what is given model and rows, and passed to what goes through them.

    Args:
        model (`Sa2VAForConditionalGeneration`, or whatever wraps it): in the mode that it is to encode in.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`].
        features (*optional*): a store and the key of each row, from [`~evaluation.stored_features`].
        batch_size (`int` or `"auto"`, *optional*, defaults to 4): rows a batch; as many as memory takes.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
        question (`str`, *optional*): template to ask with; by default the model's own, see [`~questions.question_of`].
        by_size (`bool`, *optional*, defaults to `False`):
            Let only rows of like size go through the model together, so that a batch may take several passes. Not for
            a model whose weights are sharded among processes, which have to make as many passes each.

    Raises:
        `ValueError`: `"auto"` without `by_size`.
        `DatasetError`: rows that do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Sa2VAProcessor,
        dataset: Dataset,
        features: Stored | None = None,
        batch_size: int | str = 4,
        progress: bool = True,
        question: str | None = None,
        by_size: bool = False,
    ):
        self.model, self.bare, self.dataset = model, unwrapped(model), plain_rows(dataset)
        if batch_size == AUTO and not by_size:
            raise ValueError("batch_size=auto is for evaluation; here the rows of a batch are fixed: give a number.")
        self.passes = Batches(batch_size, self.bare.device) if by_size and features is None else None
        self.batch_size = rows_in_memory(self.bare) if batch_size == AUTO else batch_size
        self.progress = progress
        self.collator, self.keys = row_collator(self.bare, processor, question), None
        if features is not None:
            store, self.keys = features
            self.collator = FeatureCollator(self.collator, store)
        elif isinstance(dataset, Dataset):
            check_fit(self.dataset, self.collator, name="dataset")

    def changed(self, change: Callable) -> "RowEncoder":
        """
        The same rows from pixels that are changed first; the decoded rows stay as they are.

        Args:
            change (`Callable`): of images and masks of a row, see [`~evaluation.views.Change`].

        Returns:
            `RowEncoder` beside this one, of the same model.
        """
        other = copy.copy(self)
        other.collator = replace(self.collator, augmentation=change)
        return other

    @torch.no_grad()
    def __call__(self, numbers: Iterable[int]) -> tuple[list[dict], list[torch.Tensor], SegFeatures]:
        """
        Args:
            numbers (`Iterable[int]`): of the rows of one batch.

        Returns:
            The decoded rows, for each its masks of shape `(masks, H, W)` (uint8 {0, 1}, the images' own sizes), and
            their features.
        """
        numbers = [int(number) for number in numbers]
        rows = [self.dataset[number] for number in numbers]
        if self.keys is not None:
            batch = self.collator([{**row, KEY: self.keys[number]} for row, number in zip(rows, numbers, strict=True)])
            return rows, batch["original_masks"], batch["features"].to(self.bare.device)
        if self.passes is None:
            return rows, *self._encode(rows)
        parts, masks = [], {}
        work = [self._work(row) for row in rows]
        for own, (drawn, encoded) in self.passes.run(lambda own: self._encode([rows[row] for row in own]), work):
            parts.append((own, encoded))
            masks |= dict(zip(own, drawn, strict=True))
        return rows, [masks[row] for row in range(len(rows))], join_features(parts)

    def _encode(self, rows: list[dict]) -> tuple[list[torch.Tensor], SegFeatures]:
        batch = self.collator(rows)
        encoded = self.model(**to_model(self.bare, batch), encode_only=True).features
        return batch["original_masks"], encoded

    def _work(self, row: dict) -> int:
        """Tokens of the images of a row, which its text adds little to."""
        try:
            sizes = [displayed_size(image) for image in row_layout(row).images]
            return sum(image_tokens(self.collator.processor, sizes))
        except ValueError:  # the collator says of which row, and all that is wrong with it
            return 0

    def batches(self, title: str) -> Iterator[tuple[int, list[dict], list[torch.Tensor], SegFeatures]]:
        """
        All rows, in their order.

        Args:
            title (`str`): of the bar.

        Yields:
            For every batch the position of its first row, the decoded rows, their masks and their features.
        """
        count = len(self.dataset)
        for start in tqdm(range(0, count, self.batch_size), desc=title, disable=not self.progress):
            yield start, *self(range(start, min(start + self.batch_size, count)))


def encoder(
    model: nn.Module, collator: SegCollator, prepare: Callable[[dict], dict]
) -> Callable[[list[dict]], tuple[SegFeatures, list[int], list[int]]]:
    """
    What [`FeatureStore.build`] takes as `encode`.

    Args:
        model (`nn.Module`): a Sa2VA model, or whatever wraps it (PEFT, DDP, DeepSpeed).
        collator (`SegCollator`): without augmentation.
        prepare (`Callable`): brings a batch to the model's device and type.

    Returns:
        `Callable`: from rows to features, and each row's `[SEG]`s and images.
    """

    # Rows of preferences and others may meet here, and never in training.
    collator = replace(collator, with_pairs=False)

    @torch.no_grad()
    def encode(rows: list[dict]) -> tuple[SegFeatures, list[int], list[int]]:
        batch = collator(rows)
        segs = (batch["input_ids"] == collator.processor.seg_token_id).sum(1).tolist()
        images = batch["image_counts"].tolist()
        inputs = prepare({name: value for name, value in batch.items() if name not in TARGETS})
        mode = {module: module.training for module in model.modules()}
        model.eval()
        try:
            return model(**inputs, encode_only=True).features, segs, images
        finally:
            for module, training in mode.items():
                module.training = training

    return encode


@dataclass
class FeatureCollator:
    """
    Rows that have a key in a store to one batch without pixels and text; other rows as `collator` does.

    Args:
        collator (`SegCollator`): says how masks are drawn.
        store (`FeatureStore`): with the rows' features.
        packed (`PackedMasks`, *optional*): with the masks of rows that have a key in it; other rows hold pictures.

    Returns:
        `dict` with `image_counts`, `features` ([`~models.outputs.SegFeatures`]), `masks`, `original_masks` and, if
        asked for, `skeletons`, see [`~data.collator.SegCollator`]. The order is that of the rows.
    """

    collator: SegCollator
    store: FeatureStore
    packed: PackedMasks | None = None

    def __call__(self, rows: list[dict]) -> dict:
        if any(row.get(KEY) is None for row in rows):
            return self.collator(rows)
        features, image_counts = self.store.read(self._keys(rows, KEY))
        if any(row.get(MASKS_KEY) is None for row in rows):
            drawn = [draw_masks(self.collator, row) for row in rows]
        else:
            drawn = self.packed.read(self._keys(rows, MASKS_KEY))
        batch = {
            # First, because Trainer takes the batch's size from the first tensor.
            "image_counts": image_counts,
            "features": features,
            "original_masks": [own.original for own in drawn],
            "masks": torch.cat([own.masks for own in drawn]),
            **join_pairs([own.pair for own in drawn]),
        }
        if self.collator.with_skeletons:
            batch["skeletons"] = torch.cat([own.skeletons for own in drawn])
        return batch

    def _keys(self, rows: list[dict], name: str) -> list[str]:
        return [view_key(row[name], self.collator, row.get("row_index", 0)) for row in rows]
