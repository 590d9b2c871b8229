import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ..errors import BadRow, DatasetError
from ..losses import tubed_skeleton
from ..media.pictures import displayed_size, quiet_pillow
from ..models.processing import Sa2VAProcessor
from .augment import Augmentation
from .columns import (
    IMAGE_COLUMNS,
    PHRASE_COLUMNS,
    _layout,
    bad_row,
    iter_undecoded,
    normalize_row,
    read_pair,
    worse_pair,
)
from .prompts import ANSWERS, QUESTIONS, check_templates, conversation


# What is made for the trainer, not for the model.
TARGETS = ("labels", "masks", "original_masks", "skeletons", "chosen_masks", "rejected_masks")


@dataclass
class SegCollator:
    """
    Rows to one batch: prompts and teacher-forced answers, tiles for the VLM, pixels for SAM 2 and masks. Every row is
    checked, wherever it comes from.

    Args:
        processor (`Sa2VAProcessor`): of the model.
        mask_size (`int`, *optional*, defaults to a quarter of SAM 2's image size):
            Side of the square of `masks`. The default is the decoder's own grid, as in Sa2VA's training; a larger one
            compares upsampled logits with finer masks, which helps structures thinner than a cell of the grid.
        augmentation (`Augmentation`, *optional*): applied to every row; leave it out for evaluation.
        views (`int`, *optional*):
            Show so many augmented views of each row, one an epoch, over and over. By default every epoch has new ones.
        questions (`list[str]`, *optional*): templates with `{phrase}`; one is drawn for each object of a training row.
        answers (`list[str]`, *optional*): templates with one `[SEG]`.
        with_skeletons (`bool`, *optional*, defaults to `False`): add `skeletons` for the skeleton recall loss.
        seed (`int`, *optional*, defaults to 0): of augmentation and templates.
        epoch (`int`, *optional*, defaults to 0):
            Every row is drawn from (seed, epoch, its `row_index`), never from the global random state, so a resumed
            run sees what the interrupted one would have seen.
        max_length (`int`, *optional*): most tokens of a row, the positions that the model has.
        with_pairs (`bool`, *optional*):
            Whether every row has to have a pair of masks, or none is read. By default those that rows have are read.
        allow_worse (`bool`, *optional*, defaults to `True`):
            Take pairs whose chosen mask is worse than the rejected one.

    Returns:
        `dict` with
            - `input_ids`, `attention_mask`, `labels` of shape `(batch, tokens)`, right-padded, int64;
            - the VLM's pixels as [`Sa2VAProcessor.tiles`] gives them; absent when no row has an image;
            - `grounding_pixel_values` of shape `(images, 3, S, S)`, float32, and `image_counts` of shape `(batch,)`;
            - `masks` of shape `(masks, mask_size, mask_size)`, uint8 {0, 1}, in the order of the model's masks;
            - `original_masks`, a list with a `(masks of the row, H, W)` uint8 tensor for each row, at its image's
            size;
            - `skeletons`, like `masks`, if asked for;
            - `chosen_masks` and `rejected_masks` of shape `(batch, mask_size, mask_size)`, where rows hold a pair (see
            [`~preferences.build_preferences`]).

    Raises:
        `DatasetError`: naming the `sample_id` of a row that [`~data.columns.check_dataset`] would refuse, whose pair
            [`~preferences.check_preferences`] would refuse, or that does not fit the model.
    """

    processor: Sa2VAProcessor
    mask_size: int | None = None
    augmentation: Augmentation | None = None
    views: int | None = None
    questions: list[str] | tuple[str, ...] = QUESTIONS
    answers: list[str] | tuple[str, ...] = ANSWERS
    with_skeletons: bool = False
    seed: int = 0
    epoch: int = field(default=0)
    max_length: int | None = None
    with_pairs: bool | None = None
    allow_worse: bool = True

    def __post_init__(self):
        check_templates(self.questions, self.answers)
        if self.mask_size is None:
            self.mask_size = self.processor.grounding_image_size // 4
        if self.mask_size < 1:
            raise ValueError(f"mask_size must be positive, got {self.mask_size}.")

    def _generator(self, row: dict, position: int, stream: int) -> np.random.Generator:
        # Rows that did not come through a trainer have no number; their identifier stands in for it.
        number = row.get("row_index")
        if number is None:
            number = zlib.crc32(str(row.get("sample_id", position)).encode())
        return np.random.default_rng([self.seed % 2**32, self.view, int(number), stream])

    @property
    def view(self) -> int:
        """What the present epoch shows of each row."""
        return self.epoch if self.views is None else self.epoch % self.views

    def augment(
        self, row: dict, images: list[Image.Image], masks: list[Image.Image], position: int = 0
    ) -> tuple[list[Image.Image], list[Image.Image]]:
        """
        Images and masks of a row as the present epoch shows them. Of the masks alone, they are what they would be
        beside their images.
        """
        if self.augmentation is None:
            return images, masks
        return self.augmentation(images, masks, self._generator(row, position, stream=0))

    def _pick(self, templates, count: int, rng: np.random.Generator) -> list[str]:
        if len(templates) == 1:
            return [templates[0]] * count
        return [templates[index] for index in rng.integers(len(templates), size=count)]

    def __call__(self, rows: list[dict]) -> dict:
        chats, images, counts, masks, pairs = [], [], [], [], []
        for position, raw in enumerate(rows):
            row = normalize_row(raw)
            pair, number = self.pair(raw, row["masks"], len(row["images"])), len(row["masks"])
            row["images"], changed = self.augment(raw, row["images"], [*row["masks"], *pair], position)
            row["masks"], pair = changed[:number], changed[number:]
            chat = row["messages"]
            if chat is None:
                rng = self._generator(raw, position, stream=1)
                number = len(row["phrases"])
                chat = conversation(
                    row["phrases"], self._pick(self.questions, number, rng), self._pick(self.answers, number, rng)
                )
            chats.append(chat)
            images.append(row["images"])
            counts.append(len(row["images"]))
            masks.append(row["masks"])
            pairs.append(pair)

        for raw, group in zip(rows, images, strict=True):
            try:
                image_tokens(self.processor, [image.size for image in group])
            except DatasetError as error:
                raise DatasetError(bad_row(raw, [str(error)])) from error
        pixels, blocks = self._tiles(images)
        encoded = []
        for raw, chat, block in zip(rows, chats, blocks, strict=True):
            try:
                encoded.append(self.processor.encode_chat(chat, block))
            except ValueError as error:
                raise DatasetError(bad_row(raw, [str(error)])) from error
            if fault := too_long(len(encoded[-1][0]), self.max_length):
                raise DatasetError(bad_row(raw, [fault]))
        lengths = torch.tensor([len(ids) for ids, _ in encoded])
        batch = {
            "input_ids": self.processor.pad([ids for ids, _ in encoded]),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": self.processor.pad([labels for _, labels in encoded], value=-100),
            **pixels,
            "grounding_pixel_values": self.processor.grounding_inputs([image for group in images for image in group]),
            "image_counts": torch.tensor(counts),
            "original_masks": [_stack(group, size=None) for group in masks],
            "masks": _stack([mask for group in masks for mask in group], size=self.mask_size),
            **stack_pairs(pairs, self.mask_size),
        }
        if self.with_skeletons:
            batch["skeletons"] = tubed_skeleton(batch["masks"])
        return batch

    def pair(self, raw: dict, masks: list[Image.Image], frames: int = 1) -> list[Image.Image]:
        """
        The preferred and the rejected mask of a row (mode `L`, 0 and 255), or nothing.

        Args:
            raw (`dict`): the row as it came.
            masks (`list[PIL.Image.Image]`): its masks, from [`~data.columns.normalize_row`].
            frames (`int`, *optional*, defaults to 1): its images.

        Raises:
            `DatasetError`: naming the row.
        """
        fault = None
        if self.with_pairs is False:
            return []
        try:
            pair = read_pair(raw, masks[0].size if masks else None)
        except DatasetError as error:
            raise DatasetError(bad_row(raw, [str(error)])) from error
        if not pair:
            fault = "chosen_mask and rejected_mask are missing (None)" if self.with_pairs else None
        elif frames != 1:
            fault = f"has {frames} images; pairs are of one"
        elif len(masks) != 1:
            fault = f"has {len(masks)} masks; pairs are of one object"
        elif not self.allow_worse and (worse := worse_pair(raw, pair, masks[0])):
            fault = f"the chosen mask is worse than the rejected one ({worse}); allow_worse takes it"
        if fault is not None:
            raise DatasetError(bad_row(raw, [fault]))
        return pair

    def _tiles(self, images: list[list[Image.Image]]) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
        # A clip's frames get fewer pixels than a still image.
        parts = [self.processor.tiles(group, clip=len(group) > 1) for group in images]
        pixels = [part for part, _ in parts if part]
        names = pixels[0] if pixels else ()
        return {name: torch.cat([part[name] for part in pixels]) for name in names}, [blocks for _, blocks in parts]


def image_tokens(processor: Sa2VAProcessor, sizes: list[tuple[int, int]]) -> list[int]:
    """
    Tokens of each image of a row, of `(width, height)` in pixels; several are the frames of a clip.

    Raises:
        `DatasetError`: With the reason alone: the VLM does not take an image of that size.
    """
    counts = []
    for width, height in sizes:
        try:
            counts.append(processor.num_image_tokens((width, height), clip=len(sizes) > 1))
        except ValueError as error:
            raise DatasetError(
                f"an image of {width} x {height} pixels (width x height) does not fit the model ({error}): crop or "
                "pad it"
            ) from error
    return counts


def too_long(length: int, max_length: int | None) -> str | None:
    """What is wrong with a row of so many tokens; else `None`."""
    if max_length is None or length <= max_length:
        return None
    return (
        f"needs {length:,} tokens, the model has {max_length:,} positions: give it fewer or smaller images, or less "
        "text"
    )


def check_fit(dataset: Dataset, collator: SegCollator, name: str = "train_dataset") -> None:
    """
    Check that rows fit the model, all at once: images of a size that the VLM takes, and no more tokens than it has
    positions. No pixel is decoded, and each text is tokenised once. Of rows with a `with_transform`, which may change
    both, nothing is known before the collator sees them.

    Args:
        dataset (`datasets.Dataset`): rows that have passed [`~data.columns.check_dataset`].
        collator (`SegCollator`): with the processor, the templates and `max_length`.
        name (`str`, *optional*, defaults to `"train_dataset"`): what the message calls the dataset.

    Raises:
        `DatasetError`: With every row that does not fit.
    """
    if dataset.format["type"] == "custom":
        return
    wanted = [*IMAGE_COLUMNS, *PHRASE_COLUMNS, "messages", "sample_id"]
    dataset = dataset.select_columns([column for column in wanted if column in dataset.column_names])
    processor, lengths, bad, position = collator.processor, {}, [], 0
    one = processor.image_block(1)

    def length(messages: list[dict], frames: int = 0) -> int:
        return len(processor.encode_chat(messages, [one] * frames)[0])

    # Each turn is tokenised on its own, so the longest turns make the longest conversation.
    answer = _longest(collator.answers, lambda answer: length([{"role": "assistant", "content": answer}]))

    def question(phrase: str, frames: int) -> str:
        def of(template: str) -> int:
            return length(conversation([phrase], [template], [answer])[:1], frames)

        return _longest(collator.questions, of)

    def text_length(layout) -> int:
        """Of the longest that the templates can make, with one token an image."""
        frames = len(layout.images)
        key = (frames, json.dumps(layout.messages or layout.phrases))
        if key not in lengths:
            chat = layout.messages
            if chat is None:
                number = len(layout.phrases)
                # All images stand in the first turn.
                shown = [frames] + [0] * (number - 1)
                questions = [question(phrase, count) for phrase, count in zip(layout.phrases, shown, strict=True)]
                chat = conversation(layout.phrases, questions, [answer] * number)
            lengths[key] = length(chat, frames)
        return lengths[key]

    with quiet_pillow():
        for rows in iter_undecoded(dataset):
            for row in rows:
                layout = _layout(row)
                try:
                    counts = image_tokens(processor, [displayed_size(image) for image in layout.images])
                    fault = too_long(text_length(layout) + sum(counts) - len(counts), collator.max_length)
                except ValueError as error:  # of an image, or of the processor
                    fault = str(error)
                if fault is not None:
                    bad.append(BadRow(position, row["sample_id"], None, fault))
                position += 1
    if bad:
        raise DatasetError(f"{name}: {len(bad)} of {len(dataset)} rows do not fit the model:", bad)


def _longest(templates: list[str] | tuple[str, ...], length: Callable[[str], int]) -> str:
    """(Of one alone, nothing is reckoned.)"""
    return templates[0] if len(templates) == 1 else max(templates, key=length)


def preference_pair(row: dict) -> list[Image.Image]:
    """The preferred and the rejected mask of a row (mode `L`, 0 and 255), or nothing."""
    return read_pair(row, None)


def stack_pairs(pairs: list[list[Image.Image]], size: int) -> dict[str, torch.Tensor]:
    """
    The pairs of a batch.

    Args:
        pairs (`list[list[PIL.Image.Image]]`): of each row, from [`SegCollator.pair`].
        size (`int`): side of the square that they are drawn on.

    Returns:
        `dict` with `chosen_masks` and `rejected_masks`, uint8 {0, 1} of shape `(rows, size, size)`; empty where no row
        has a pair.

    Raises:
        `DatasetError`: some rows have a pair and others have none.
    """
    if not any(pairs):
        return {}
    if not all(pairs):
        raise DatasetError("Rows with and without chosen_mask and rejected_mask are mixed in one batch.")
    names = ("chosen_masks", "rejected_masks")
    return {name: _stack(list(group), size) for name, group in zip(names, zip(*pairs, strict=True), strict=True)}


def _stack(masks: list[Image.Image], size: int | None) -> torch.Tensor:
    """Masks as uint8 {0, 1}; on a square of side `size` (nearest, as Sa2VA's training), or at their own size."""
    if not masks:
        return torch.zeros((0, size or 1, size or 1), dtype=torch.uint8)
    if size is not None:
        masks = [mask.resize((size, size), Image.Resampling.NEAREST) for mask in masks]
    return torch.from_numpy(np.stack([np.asarray(mask) > 0 for mask in masks]).astype(np.uint8))
