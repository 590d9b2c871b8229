"""Rows to batches: prompts and teacher-forced answers, tiles, pixels and masks."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ..errors import DatasetError
from ..losses import tubed_skeleton
from ..models.modeling import MASK_TARGETS
from ..models.processing import Sa2VAProcessor
from .augment import Augmentation
from .columns import REGIONS
from .fit import image_tokens, too_long
from .layout import bad_row, normalize_row, read_pair, worse_pair
from .prompts import ANSWERS, QUESTIONS, check_templates, conversation
from .row_regions import read_region, region_cells


# It could be imported from here before it had a file of its own.
from .fit import check_fit  # noqa: F401  # isort: skip


# What is made for the trainer, not for the model.
TARGETS = ("labels", *MASK_TARGETS)


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
            - the VLM's pixels as [`Sa2VAProcessor.tiles`] gives them; absent when no row has an image. With
            `region_masks` and `region_counts` where a row has regions;
            - `grounding_pixel_values` of shape `(images, 3, S, S)`, float32, and `image_counts` of shape `(batch,)`;
            - `masks` of shape `(masks, mask_size, mask_size)`, uint8 {0, 1}, in the order of the model's masks;
            - `original_masks`, a list with a `(masks of the row, H, W)` uint8 tensor for each row, at its image's
            size;
            - `skeletons`, like `masks`, if asked for;
            - `chosen_masks` and `rejected_masks` of shape `(batch, mask_size, mask_size)`, where rows hold a pair (see
            [`~preferences.build_preferences`]).

    Raises:
        `DatasetError`: naming the `sample_id` of a row that [`~data.checks.check_dataset`] would refuse, whose pair
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
        beside their images. A row whose regions would move out of sight is shown as it is.
        """
        pictures = [*images, *masks]
        given = (row.get(REGIONS) or []) if pictures and isinstance(self.augmentation, Augmentation) else []
        regions = [read_region(region, pictures[0].size) for region in given]
        return self.augment_with(row, images, masks, regions, position)[:2]

    def augment_with(
        self,
        row: dict,
        images: list[Image.Image],
        masks: list[Image.Image],
        regions: list[Image.Image],
        position: int = 0,
    ) -> tuple[list[Image.Image], list[Image.Image], list[Image.Image]]:
        """As `augment`, of a row whose regions have been read: images, masks and regions."""
        if self.augmentation is None:
            return images, masks, regions
        changed, moved = self.augmentation(images, [*masks, *regions], self._generator(row, position, stream=0))
        seen = moved[len(masks) :]
        if isinstance(self.augmentation, Augmentation):
            try:
                region_cells(self.processor, seen)
            except DatasetError:
                return images, masks, regions
        return changed, moved[: len(masks)], seen

    def _pick(self, templates, count: int, rng: np.random.Generator) -> list[str]:
        if len(templates) == 1:
            return [templates[0]] * count
        return [templates[index] for index in rng.integers(len(templates), size=count)]

    def __call__(self, rows: list[dict]) -> dict:
        chats, images, counts, masks, pairs, regions = [], [], [], [], [], []
        for position, raw in enumerate(rows):
            row = normalize_row(raw)
            with _of_row(raw):
                region_cells(self.processor, row[REGIONS])
            pair, number = self.pair(raw, row["masks"], len(row["images"])), len(row["masks"])
            drawn = [*row["masks"], *pair]
            row["images"], changed, row[REGIONS] = self.augment_with(raw, row["images"], drawn, row[REGIONS], position)
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
            regions.append(row[REGIONS])

        for raw, group in zip(rows, images, strict=True):
            with _of_row(raw):
                image_tokens(self.processor, [image.size for image in group])
        pixels, blocks = self._tiles(images, regions)
        encoded = []
        for raw, chat, block in zip(rows, chats, blocks, strict=True):
            with _of_row(raw):
                encoded.append(self.processor.encode_chat(chat, block))
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
            "original_masks": [stack_masks(group, size=None) for group in masks],
            "masks": stack_masks([mask for group in masks for mask in group], size=self.mask_size),
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
            masks (`list[PIL.Image.Image]`): its masks, from [`~data.layout.normalize_row`].
            frames (`int`, *optional*, defaults to 1): its images.

        Raises:
            `DatasetError`: naming the row.
        """
        fault = None
        if self.with_pairs is False:
            return []
        with _of_row(raw):
            pair = read_pair(raw, masks[0].size if masks else None)
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

    def _tiles(
        self, images: list[list[Image.Image]], regions: list[list[Image.Image]]
    ) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
        # A clip's frames get fewer pixels than a still image.
        parts = [
            self.processor.tiles(group, clip=len(group) > 1, regions=[own] if own else None)
            for group, own in zip(images, regions, strict=True)
        ]
        if any(regions):
            # Images without regions say so, beside others.
            side = self.processor.region_side
            for part, _ in parts:
                if part and "region_counts" not in part:
                    part["region_masks"] = torch.zeros((0, side, side), dtype=torch.bool)
                    part["region_counts"] = torch.zeros(len(part["pixel_values"]), dtype=torch.long)
        pixels = [part for part, _ in parts if part]
        names = pixels[0] if pixels else ()
        # (A batch of one is not copied.)
        joined = (
            pixels[0] if len(pixels) == 1 else {name: torch.cat([part[name] for part in pixels]) for name in names}
        )
        return joined, [blocks for _, blocks in parts]


@contextmanager
def _of_row(raw: dict) -> Iterator[None]:
    """Whatever is wrong in it is wrong with a row, which is named."""
    try:
        yield
    except ValueError as error:
        raise DatasetError(bad_row(raw, [str(error)])) from error


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
    return join_pairs([stack_masks(pair, size) for pair in pairs])


def join_pairs(pairs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    As [`stack_pairs`], of pairs that are drawn.

    Args:
        pairs (`list[torch.Tensor]`): of each row, of shape `(2, size, size)`, or empty where it has none.
    """
    if not any(map(len, pairs)):
        return {}
    if not all(map(len, pairs)):
        raise DatasetError("Rows with and without chosen_mask and rejected_mask are mixed in one batch.")
    return dict(zip(("chosen_masks", "rejected_masks"), torch.stack(pairs, dim=1), strict=True))


def stack_masks(masks: list[Image.Image], size: int | None) -> torch.Tensor:
    """
    Masks as one tensor.

    Args:
        masks (`list[PIL.Image.Image]`): mode `L`, 0 and 255.
        size (`int` or `None`):
            Side of the square that they are drawn on (nearest, as in Sa2VA's training); `None` for their own size,
            which is one then.

    Returns:
        `torch.Tensor` of shape `(masks, H, W)`, uint8 {0, 1}.
    """
    if not masks:
        return torch.zeros((0, size or 1, size or 1), dtype=torch.uint8)
    if size is not None:
        masks = [mask.resize((size, size), Image.Resampling.NEAREST) for mask in masks]
    return torch.from_numpy(np.stack([np.asarray(mask) > 0 for mask in masks]).astype(np.uint8))
