"""Masks of rows as losses and metrics take them: drawn once, packed beside the features, read in place of pictures."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset

from ..data.collator import SegCollator, stack_masks
from ..data.columns import IMAGE_COLUMNS, PAIR_COLUMNS, REGIONS, mask_mode
from ..data.layout import read_masks
from ..data.stored import iter_undecoded
from ..losses import tubed_skeleton
from .rows import NumberedRows, picture_digest, region_digest, view_key
from .store import RowStore


# Of the files and of how masks are drawn: raise it when either changes.
MASKS_FORMAT = 1
MASK_COLUMNS = ("mask", "masks", *PAIR_COLUMNS)


class DrawnMasks(NamedTuple):
    """
    What a batch holds of the masks of one row, uint8 {0, 1}.

    Args:
        original (`torch.Tensor` of shape `(masks, H, W)`): at the size of the row's images.
        masks (`torch.Tensor` of shape `(masks, mask_size, mask_size)`): on the grid of the losses.
        pair (`torch.Tensor` of shape `(2, mask_size, mask_size)`): the preferred and the rejected mask; empty without.
        skeletons (`torch.Tensor` of shape `(masks, mask_size, mask_size)`): of `masks`; empty where not asked for.
    """

    original: torch.Tensor
    masks: torch.Tensor
    pair: torch.Tensor
    skeletons: torch.Tensor


def draw_masks(collator: SegCollator, row: dict) -> DrawnMasks:
    """
    The masks of a row whose images need not be there.

    Args:
        collator (`SegCollator`): says how they are drawn, and which view of the row.
        row (`dict`): as in [`~data.layout.normalize_row`].

    Returns:
        [`DrawnMasks`].

    Raises:
        `DatasetError`: naming the row, whose masks or pair cannot be used.
    """
    own = read_masks(row)
    pair = collator.pair(row, own)
    _, changed = collator.augment(row, [], [*own, *pair])
    masks, pair = changed[: len(own)], changed[len(own) :]
    drawn = stack_masks(masks, collator.mask_size)
    skeletons = tubed_skeleton(drawn) if collator.with_skeletons else drawn[:0]
    return DrawnMasks(stack_masks(masks, size=None), drawn, stack_masks(pair, collator.mask_size), skeletons)


def mask_keys(dataset: Dataset) -> list[str]:
    """
    What tells the masks of rows apart: their pictures, those of a pair among them, how these are converted, and the
    regions of the row, which augmentation keeps in sight.

    Args:
        dataset (`datasets.Dataset`): checked rows.

    Returns:
        `list[str]`: one a row.
    """
    columns = [name for name in MASK_COLUMNS if name in dataset.column_names]
    modes = {name: mask_mode(dataset.features, name) for name in columns}

    def key(row: dict) -> str:
        found = hashlib.sha256()
        for name in columns:
            if row[name] is not None:
                pictures = row[name] if isinstance(row[name], list) else [row[name]]
                found.update(json.dumps([name, modes[name], len(pictures)]).encode())
                for picture in pictures:
                    found.update(b"none" if picture is None else picture_digest(picture))
        if row.get(REGIONS):
            found.update(region_digest(row[REGIONS]))
        return found.hexdigest()[:32]

    read = [*columns, *({REGIONS} & {*dataset.column_names})]
    if not read:
        return [key({})] * len(dataset)
    return [key(row) for rows in iter_undecoded(dataset.select_columns(read)) for row in rows]


class PackedMasks(RowStore):
    """
    Masks of rows on disk, eight pixels a byte. They do not depend on a model: a store is of one way to draw them.

    Args:
        root (`str` or `Path`): folder of all stores.
        prints (`dict`): from [`mask_prints`].
    """

    what = "masks"

    def read(self, keys: list[str]) -> list[DrawnMasks]:
        """
        Masks of a batch, as [`draw_masks`] would make them of these rows.

        Args:
            keys (`list[str]`): of the rows, in their order.

        Returns:
            `list[DrawnMasks]`.

        Raises:
            `FeatureError`: a row is not there.
        """
        found = []
        for record in self.find(keys):
            stored, parts, start = self.stored(record), [], 0
            for _, shape in record.tensors:
                end = start + int(np.prod(shape))
                parts.append(stored[start:end].reshape(shape))
                start = end
            width = int(parts.pop().view("<i4")[0])
            widths = (width, *(self.prints["mask_size"],) * (len(parts) - 1))
            planes = (np.unpackbits(part, axis=-1, count=count) for part, count in zip(parts, widths, strict=True))
            found.append(DrawnMasks(*map(torch.from_numpy, planes)))
        return found

    def by_row(self, made: list[DrawnMasks]) -> Iterator[list[torch.Tensor]]:
        for drawn in made:
            width = np.array([drawn.original.shape[-1]], "<i4").view(np.uint8)
            yield [torch.from_numpy(part) for part in (*(np.packbits(part.numpy(), -1) for part in drawn), width)]


def mask_prints(collator: SegCollator) -> dict:
    """
    Everything but the row and its view that [`draw_masks`] depends on.

    Args:
        collator (`SegCollator`): says how masks are drawn.

    Returns:
        `dict` of strings and numbers, which JSON can hold.
    """
    return {
        "format": MASKS_FORMAT,
        "what": "masks",
        **{name: getattr(collator, name) for name in ("mask_size", "with_skeletons", "with_pairs", "allow_worse")},
        **{name: version(name) for name in ("pillow", "scikit-image")},
    }


@dataclass
class _Viewed:
    """Rows that say which view of them is meant."""

    rows: NumberedRows
    view: int

    def __getitem__(self, index: int) -> tuple[dict, int]:
        return self.rows[index], self.view


def pack_masks(
    packed: PackedMasks, collator: SegCollator, parts: Iterable[tuple[Dataset, list[str]]], progress: bool = True
) -> list[str]:
    """
    Draw and store the masks that are missing. All processes have to call it together.

    Args:
        packed (`PackedMasks`): of the collator's [`mask_prints`].
        collator (`SegCollator`): draws the masks, of all its views where it augments.
        parts (`Iterable`): data sets and their [`mask_keys`].
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Returns:
        `list[str]`: the keys of all these rows in the store.

    Raises:
        `FeatureError`: see [`~features.store.RowStore.build`].
        `DatasetError`: naming a row whose masks cannot be used.
    """
    rows: dict[str, tuple[_Viewed, int]] = {}
    for dataset, keys in parts:
        numbered = NumberedRows(dataset.remove_columns([name for name in IMAGE_COLUMNS if name in dataset.features]))
        for view in range(1 if collator.augmentation is None else collator.views):
            shown = replace(collator, epoch=view)
            for index, key in enumerate(keys):
                rows.setdefault(view_key(key, shown, index), (_Viewed(numbered, view), index))
    packed.build(rows, _drawer(collator), batch_size=8, progress=progress)
    return list(rows)


def _drawer(collator: SegCollator) -> Callable[[list[tuple[dict, int]]], list[DrawnMasks]]:
    return lambda rows: [draw_masks(replace(collator, epoch=view), row) for row, view in rows]
