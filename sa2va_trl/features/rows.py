"""Rows as features see them: what tells them apart, their numbers and their augmented views."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset

from ..data.collator import SegCollator
from ..data.columns import _layout, iter_undecoded, normalize_row
from ..data.prompts import conversation
from ..errors import DatasetError
from ..models.processing import SEG_TOKEN
from .fingerprint import json_digest


# Column of a data set whose rows may be read from a store.
KEY = "features_key"


def row_keys(dataset: Dataset, question: str, answer: str) -> list[str]:
    """
    What tells rows apart, from what is stored: nothing is decoded. Rows with the same images and the same text have
    one key; their masks and identifiers play no part.

    Args:
        dataset (`datasets.Dataset`): checked rows.
        question, answer (`str`): templates for rows with phrases.

    Returns:
        `list[str]`: one a row.
    """
    keys = []
    for rows in iter_undecoded(dataset):
        for row in rows:
            layout, found = _layout(row), hashlib.sha256()
            for image in layout.images:
                stored = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
                found.update(hashlib.sha256(stored).digest())
            chat = layout.messages
            if chat is None:
                number = len(layout.phrases)
                chat = conversation(layout.phrases, [question] * number, [answer] * number)
            found.update(json.dumps(chat, sort_keys=True).encode())
            keys.append(found.hexdigest()[:32])
    return keys


class NumberedRows(torch.utils.data.Dataset):
    """
    The rows of a data set with their numbers, as the data loader gets them. (As a column of the data set, the numbers
    would have `datasets` write all rows of a selection anew.)

    Args:
        rows (`datasets.Dataset`): not changed.
        keys (`list[str]`, *optional*): from [`row_keys`], one a row, where features stand in for images.

    Returns:
        `dict`: the row, its `row_index` and, with `keys`, its `KEY`.
    """

    def __init__(self, rows: Dataset, keys: list[str] | None = None):
        self.rows, self.keys = rows, keys

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
        rows = [{**row, "row_index": number} for number, row in zip(numbers, rows, strict=True)]
        if self.keys is not None:
            for row in rows:
                row[KEY] = self.keys[row["row_index"]]
        return rows


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
        images, _ = self.collator.augment(row, normalize_row(row)["images"], [])
        # (Masks play no part in features.)
        return {**row, **({"image": images[0]} if row.get("image") is not None else {"images": images})}


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


def row_sizes(dataset: Dataset) -> list[tuple[int, int]]:
    """Images and `[SEG]`s of every row."""
    sizes = []
    for rows in iter_undecoded(dataset):
        for row in rows:
            layout = _layout(row)
            segs = len(layout.phrases) if layout.messages is None else str(layout.messages).count(SEG_TOKEN)
            sizes.append((len(layout.images), segs))
    return sizes


def feature_bytes(config, images: int, segs: int, itemsize: int) -> int:
    """
    Bytes that the features of one row take.

    Args:
        config (`Sa2VAConfig`): of the model.
        images, segs (`int`): images and `[SEG]`s of the row.
        itemsize (`int`): bytes of a number in the type that is computed in.

    Returns:
        `int`: exact, but for a few bytes of the line that describes them.
    """
    side = config.grounding_config.image_size
    fine, middle, coarse = ((side // stride) ** 2 for stride in (4, 8, 16))
    # The neck adds the coarse level up in float32, whatever it computes in.
    pyramid = config.grounding_config.hidden_dim * (itemsize * (fine + middle) + 4 * coarse)
    return images * pyramid + segs * config.text_config.hidden_size * itemsize
