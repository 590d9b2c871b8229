"""Rows as they are stored: without the format of their dataset, undecoded; those of a stream judged as they come."""

import copy
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import PIL.Image
from datasets import Dataset, Features, Image, IterableDataset, List

from ..errors import DatasetError
from ..media.masks import binary_mask
from ..media.pictures import file_of, loses_depth
from .columns import PAIR_COLUMNS, REGIONS, is_image_list
from .masks import LOST, conversion_fault


def plain_rows(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    A dataset whose rows come as they are stored: a format (`torch`, `numpy`, `arrow`, `pandas` ...) would hand out
    arrays in their place, or some of the columns alone. Nothing is copied or written. A `with_transform` stays, for it
    is part of the data.

    The rows of a stream come undecoded, where its features are known, so that what is checked is what is stored. Steps
    (`map`, `filter`) get them decoded: masks are judged there, before any conversion.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): not changed.

    Returns:
        The same type; `dataset` itself where it is so already.
    """
    if isinstance(dataset, IterableDataset):
        dataset = dataset.with_format(None)
        dataset = dataset.decode(False) if dataset.features else dataset
        dataset._ex_iterable = _judging_steps(dataset._ex_iterable)  # (`with_format` has made a new one)
        return dataset
    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        if dataset.format["type"] is not None or set(dataset.format["columns"]) != set(dataset.column_names):
            return dataset.with_format(None)
    return dataset


class _JudgedImage(Image):
    """
    A `datasets.Image` that tells what its decoding takes away from a mask, since a decoded one no longer says so: it
    raises in a column of masks, and notes it in the picture's `info` elsewhere (a step's function may move it there).
    """

    in_masks = False

    def decode_example(self, value, token_per_repo_id=None):
        image = Image().decode_example(value, token_per_repo_id)
        if image is value:  # decoded by a step before
            return value
        shown = image if self.mode in (None, image.mode) else image.convert(self.mode)
        value = {"path": value, "bytes": None} if isinstance(value, str) else value
        if fault := self._fault(value, image):
            if self.in_masks:
                raise DatasetError(f"a mask of the stream{f' ({file_of(value)})' if file_of(value) else ''} {fault}")
            shown.info[LOST] = fault
        return shown

    def _fault(self, value: dict, image: PIL.Image.Image) -> str | None:
        if value["bytes"] is not None or "://" not in value["path"]:  # a remote file is not fetched a second time
            with PIL.Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as file:
                if fault := loses_depth(file):
                    return fault
        if self.mode in (None, image.mode):
            return None
        try:
            mask = binary_mask(image)
        except ValueError:
            mask = None
        fault = conversion_fault(image, mask, self.mode)
        return fault and f"{fault}, before `map` and `filter`"


def _judging_steps(steps: Any, masks: frozenset[str] = frozenset({"mask", "masks", REGIONS, *PAIR_COLUMNS})) -> Any:
    """
    A copy of a stream's steps (`datasets` has no public way to them) that decodes pictures by [`_JudgedImage`].
    `masks` are the columns of masks as they are called behind the steps.
    """
    steps = copy.copy(steps)
    if renamed := getattr(getattr(steps, "function", None), "keywords", {}).get("column_mapping"):
        masks = masks - {*renamed.values()} | {old for old, new in renamed.items() if new in masks}
    if getattr(steps, "_features", None) is not None:
        steps._features = _judged(steps._features, masks)
        if getattr(steps, "decoding_pool", None) is not None:  # decoded in threads: by a function, not by features
            run, (pool, decode) = steps.function.func, steps.function.args
            steps.function = partial(run, pool, partial(steps._features.decode_example, **decode.keywords))
    if hasattr(steps, "ex_iterable"):
        steps.ex_iterable = _judging_steps(steps.ex_iterable, masks)
    if hasattr(steps, "ex_iterables"):
        steps.ex_iterables = [_judging_steps(inner, masks) for inner in steps.ex_iterables]
    return steps


def _judged(features: Features, masks: frozenset[str]) -> Features:
    judged = features.copy()
    for column, feature in features.items():
        inner = feature.feature if is_image_list(feature) else feature
        if isinstance(inner, Image):
            inner = _JudgedImage(mode=inner.mode, decode=inner.decode)
            inner.in_masks = column in masks
            judged[column] = type(feature)(inner) if is_image_list(feature) else inner
    return judged


def iter_undecoded(dataset: Dataset, batch_size: int = 64) -> Iterator[list[dict[str, Any]]]:
    """
    Iterate over the rows in batches, with images as `{"bytes", "path"}` and without any format or transform of the
    dataset.

    `cast_column(..., List(Image(decode=False)))` would say the same, but writes a copy of the whole dataset to do so.

    Args:
        dataset (`datasets.Dataset`): not changed.
        batch_size (`int`, *optional*, defaults to 64): rows that are in memory together.

    Yields:
        `list[dict]`: the rows of a batch.
    """
    features = dataset.features.copy()
    for column, feature in dataset.features.items():
        if isinstance(feature, Image):
            features[column] = Image(decode=False)
        elif is_image_list(feature):
            features[column] = List(Image(decode=False))
    for table in dataset.with_format("arrow").iter(batch_size):
        yield [features.decode_example(row) for row in table.to_pylist()]
