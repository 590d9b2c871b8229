"""Rows as features see them: what tells them apart, their numbers and their augmented views."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from torch import nn

from ..data.collator import SegCollator
from ..data.columns import IDENTIFIERS, REGIONS
from ..data.layout import Layout, normalize_row, row_layout
from ..data.prompts import conversation
from ..data.stored import iter_undecoded
from ..errors import DatasetError
from ..models.configuration import Sa2VAConfig
from ..models.regions import is_box
from ..tokens import SEG_TOKEN
from .fingerprint import json_digest


# Column of a data set whose rows may be read from a store.
KEY = "features_key"
# Column of those of them whose masks are packed.
MASKS_KEY = "masks_key"


class RowFacts(NamedTuple):
    """
    What is known of a stored row before anything is decoded.

    Args:
        images, segs (`int`): its images and `[SEG]`s.
        key (`str`):
            What tells its features apart: rows with the same images, regions and text have one key; their masks and
            identifiers play no part.
        digest (`str` or `None`): what tells it apart in whole: images, text, masks and identifiers.
    """

    images: int
    segs: int
    key: str
    digest: str | None


def row_facts(dataset: Dataset, question: str, answer: str, digests: bool = False) -> list[RowFacts]:
    """
    All that is known of rows before anything is decoded, in one pass.

    Args:
        dataset (`datasets.Dataset`): checked rows.
        question, answer (`str`): templates for rows with phrases.
        digests (`bool`, *optional*, defaults to `False`): whether `digest`, for which masks are read, is asked for.

    Returns:
        `list[RowFacts]`: one a row.
    """
    facts = []
    for rows in iter_undecoded(dataset):
        for row in rows:
            layout = row_layout(row)
            key = _key(layout, question, answer)
            digest = _digest(row, key, layout.masks) if digests else None
            facts.append(RowFacts(len(layout.images), _segs(layout), key, digest))
    return facts


def row_keys(dataset: Dataset, question: str, answer: str) -> list[str]:
    """The keys alone, see [`row_facts`]."""
    return [facts.key for facts in row_facts(dataset, question, answer)]


def row_sizes(dataset: Dataset) -> list[tuple[int, int]]:
    """Images and `[SEG]`s of every row; of files nothing is read, as their keys would need it."""
    layouts = (row_layout(row) for rows in iter_undecoded(dataset) for row in rows)
    return [(len(layout.images), _segs(layout)) for layout in layouts]


# What follows is part of files on disk: of the names of features, and of what scores are of.


def _key(layout: Layout, question: str, answer: str) -> str:
    found = hashlib.sha256()
    for image in layout.images:
        found.update(picture_digest(image))
    chat = layout.messages
    if chat is None:
        number = len(layout.phrases)
        chat = conversation(layout.phrases, [question] * number, [answer] * number)
    found.update(json.dumps(chat, sort_keys=True).encode())
    if layout.regions:  # (older stores stay good)
        found.update(region_digest(layout.regions))
    return found.hexdigest()[:32]


def _digest(row: dict, key: str, masks: list[dict]) -> str:
    found = hashlib.sha256(key.encode())
    for mask in masks:
        found.update(picture_digest(mask))
    names = [None if row.get(name) is None else str(row[name]) for name in IDENTIFIERS]
    found.update(json.dumps(names).encode())
    return found.hexdigest()


def picture_digest(picture: dict) -> bytes:
    """SHA-256 of the bytes of an undecoded picture, wherever they are."""
    stored = picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes()
    return hashlib.sha256(stored).digest()


def region_digest(regions: list) -> bytes:
    """SHA-256 that tells the regions of an undecoded row apart, boxes and masks, in their order."""
    parts = (
        json.dumps([float(value) for value in region]).encode() if is_box(region) else picture_digest(region)
        for region in regions
    )
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _segs(layout: Layout) -> int:
    return len(layout.phrases) if layout.messages is None else str(layout.messages).count(SEG_TOKEN)


class NumberedRows(torch.utils.data.Dataset):
    """
    The rows of a data set with their numbers, as the data loader gets them. (As a column of the data set, the numbers
    would have `datasets` write all rows of a selection anew.)

    Args:
        rows (`datasets.Dataset`): not changed.
        keys (`list[str]`, *optional*): from [`row_keys`], one a row, where features stand in for images.
        mask_keys (`list[str]`, *optional*): from [`~features.packed_masks.mask_keys`], where packed
            masks stand in for theirs.

    Returns:
        `dict`: the row, its `row_index` and, with `keys` and `mask_keys`, its `KEY` and `MASKS_KEY`.
    """

    def __init__(self, rows: Dataset, keys: list[str] | None = None, mask_keys: list[str] | None = None):
        self.rows = rows
        self.keys = {name: own for name, own in ((KEY, keys), (MASKS_KEY, mask_keys)) if own is not None}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict]:
        rows = self.rows.__getitems__(list(numbers))
        if len(rows) != len(numbers):
            raise DatasetError(
                f"The transform of a dataset has to keep all rows; of {len(numbers)} it made {len(rows)}."
            )
        return [
            {**row, "row_index": number, **{name: own[number] for name, own in self.keys.items()}}
            for number, row in zip(numbers, rows, strict=True)
        ]


@dataclass
class View:
    """
    One augmented view of a data set: what features of it are computed from.

    Args:
        dataset (`NumberedRows`): of the data set.
        collator (`SegCollator`): of training, with `views`.
        number (`int`): of the view.
    """

    dataset: NumberedRows
    collator: SegCollator
    number: int

    def __post_init__(self):
        self.collator = replace(self.collator, epoch=self.number)

    def __getitem__(self, index: int) -> dict:
        row = self.dataset[index]
        read = normalize_row(row)
        images, _, regions = self.collator.augment_with(row, read["images"], [], read[REGIONS])
        # (Masks play no part in features.)
        shown = {"image": images[0]} if row.get("image") is not None else {"images": images}
        return {**row, **shown, REGIONS: regions}


def view_key(key: str, collator: SegCollator, row_index: int) -> str:
    """
    What tells the views of rows apart, in place of the row's own key.

    Args:
        key (`str`): from [`row_keys`].
        collator (`SegCollator`): of training; its `view` counts.
        row_index (`int`): number of the row, which its view is drawn from.

    Returns:
        `str`; the row's own key where nothing is augmented.
    """
    if collator.augmentation is None:
        return key
    content = [key, repr(collator.augmentation), collator.seed, collator.view, int(row_index)]
    return json_digest(content)[:32]


def item_sizes(model: nn.Module) -> tuple[int, int]:
    """
    What [`feature_bytes`] takes of a model without autocast.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): not changed.

    Returns:
        Bytes of a number in the types of the VLM and of SAM 2.
    """
    return model.dtype.itemsize, model.grounding_encoder.dtype.itemsize


def feature_bytes(
    config: Sa2VAConfig, images: int, segs: int, itemsize: int, grounding_itemsize: int | None = None
) -> int:
    """
    Bytes that the features of one row take.

    Args:
        config (`Sa2VAConfig`): of the model.
        images, segs (`int`): images and `[SEG]`s of the row.
        itemsize (`int`): bytes of a number in the type that is computed in.
        grounding_itemsize (`int`, *optional*): in SAM 2, where that has a type of its own.

    Returns:
        `int`: exact, but for a few bytes of the line that describes them.
    """
    side = config.grounding_config.image_size
    fine, middle, coarse = ((side // stride) ** 2 for stride in (4, 8, 16))
    # The neck adds the coarse level up in float32, whatever it computes in.
    grounding_itemsize = grounding_itemsize or itemsize
    pyramid = config.grounding_config.hidden_dim * (grounding_itemsize * (fine + middle) + 4 * coarse)
    return images * pyramid + segs * config.text_config.hidden_size * itemsize
