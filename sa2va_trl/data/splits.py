"""Splits and folds by group, and the check that two splits share nothing."""

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image, IterableDataset

from ..errors import BadRow, DatasetError
from ..media.pictures import decode_image, quiet_pillow
from .columns import GROUP_COLUMNS


logger = logging.getLogger(__name__)


def check_no_leakage(
    a: Dataset, b: Dataset, names: tuple[str, str] = ("train", "validation"), images: bool = False
) -> None:
    """
    Check that no patient, video, sample or, on request, image is in both of two splits.

    Compares the columns `patient_id`, `video_id` and `sample_id`, those that both have; None is no group. With
    `images`, these are compared by the bytes of their files, but for those that show nothing, such as frames before
    the X-rays are on. An `IterableDataset` is not checked, since that would consume it.

    Args:
        a (`datasets.Dataset`):
            One split.
        b (`datasets.Dataset`):
            The other.
        names (`tuple[str, str]`, *optional*, defaults to `("train", "validation")`):
            What the message calls them.
        images (`bool`, *optional*, defaults to `False`):
            Compare images (`image`), too.

    Raises:
        `DatasetError`: With every column whose values the two share, equal images, and examples.
    """
    if isinstance(a, IterableDataset) or isinstance(b, IterableDataset):
        logger.warning("%s and %s are not checked for leakage: one is an IterableDataset.", *names)
        return
    columns = [column for column in GROUP_COLUMNS if column in a.column_names and column in b.column_names]
    if not columns:
        logger.warning("%s and %s share none of %s: leakage between them cannot be checked.", *names, GROUP_COLUMNS)
    found = []
    for column in columns:
        # (`Dataset.unique` would write a copy of all rows of a selection.)
        shared = set(a.with_format(None)[column]) & set(b.with_format(None)[column])
        shared = sorted(shared - {None, ""}, key=str)
        if shared:
            examples = ", ".join(map(repr, shared[:5])) + (", ..." if len(shared) > 5 else "")
            found.append(f"{len(shared)} {column} ({examples})")
    if images and (shared := _shared_images(a, b)):
        ids = [f"row {one} is row {other}" for one, other in shared[:5]]
        found.append(f"{len(shared)} images ({', '.join(ids)}{', ...' * (len(shared) > 5)})")
    if found:
        raise DatasetError(
            f"{names[0]} and {names[1]} overlap: both have {'; '.join(found)}. "
            "Split by patient or video (`group_split`)."
        )


def _shared_images(a: Dataset, b: Dataset) -> list[tuple[int, int]]:
    """Rows of two datasets whose images have the same bytes. Only those of one length are read."""
    if not all(isinstance(dataset.features.get("image"), Image) for dataset in (a, b)):
        return []
    lengths = _image_lengths(a), _image_lengths(b)
    common = np.intersect1d(*lengths)
    rows = [np.flatnonzero(np.isin(own, common[common > 0])).tolist() for own in lengths]
    first = {key: row for row, key in _image_keys(a, rows[0])}
    found = [(first[key], row) for row, key in _image_keys(b, rows[1]) if key in first]
    return [pair for pair in found if _shows_something(a, pair[0])]


def _image_lengths(dataset: Dataset) -> np.ndarray:
    """Bytes of each row's image; -1 where nothing tells without reading."""
    found = [np.empty(0, dtype=np.int64)]
    for table in dataset.select_columns("image").with_format("arrow").iter(100):
        for chunk in table["image"].chunks:
            own = pc.binary_length(pc.struct_field(chunk, "bytes")).fill_null(-1).to_numpy(zero_copy_only=False)
            own = own.astype(np.int64)
            for row in np.flatnonzero(own < 0):
                path = chunk[int(row)]["path"].as_py()
                own[row] = os.stat(path).st_size if path and os.path.isfile(path) else -1
            found.append(own)
    return np.concatenate(found)


def _image_bytes(dataset: Dataset, row: int) -> bytes:
    cell = dataset.with_format("arrow")[row]["image"][0].as_py()
    return Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]


def _image_keys(dataset: Dataset, rows: list[int]) -> Iterator[tuple[int, bytes]]:
    plain = dataset.select_columns("image")
    for row in rows:
        yield row, hashlib.blake2b(_image_bytes(plain, row), digest_size=16).digest()


def _shows_something(dataset: Dataset, row: int) -> bool:
    try:
        with quiet_pillow():
            image = decode_image({"bytes": _image_bytes(dataset.select_columns("image"), row), "path": None})
    except DatasetError:  # which the check of rows reports
        return False
    low, high = image.convert("L").getextrema()
    return low < high


def group_split(dataset: Dataset, fractions: dict[str, float], by: str = "patient_id", seed: int = 0) -> DatasetDict:
    """
    Split a dataset so that every group is in exactly one split.

    The groups are shuffled; the first ones go one to each split, so that none is empty, and every further one to the
    split that lacks most rows. Which group goes where depends on the groups, their sizes and `seed`, not on the order
    of the rows.

    Args:
        dataset (`datasets.Dataset`):
            The rows.
        fractions (`dict[str, float]`):
            The share of the rows that each split aims at, above 0 and 1 in sum. It is met as nearly as whole groups
            allow.
        by (`str`, *optional*, defaults to `"patient_id"`):
            The column that names the group.
        seed (`int`, *optional*, defaults to `0`):
            Of the shuffle.

    Returns:
        `datasets.DatasetDict`: The splits in the order of `fractions`, their rows in the order of `dataset`.

    Raises:
        `DatasetError`: If the column is missing, rows have no group, or there are fewer groups than splits.
        `ValueError`: If a fraction is not above 0, or they do not sum to 1.
    """
    if not fractions or not all(fraction > 0 for fraction in fractions.values()):
        raise ValueError(f"fractions must be above 0, got {fractions}")
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"fractions must sum to 1, got {sum(fractions.values()):g} from {fractions}")
    rows_of = _rows_of(dataset, by)
    if len(rows_of) < len(fractions):
        raise DatasetError(
            f"{len(rows_of)} groups in {by!r} are too few for {len(fractions)} splits ({', '.join(fractions)})"
        )

    groups = sorted(rows_of, key=str)
    groups = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    lacking = {name: fraction * len(dataset) for name, fraction in fractions.items()}
    rows: dict[str, list[int]] = {name: [] for name in fractions}
    for number, group in enumerate(groups):
        name = list(fractions)[number] if number < len(fractions) else max(lacking, key=lacking.get)
        lacking[name] -= len(rows_of[group])
        rows[name] += rows_of[group]
    return DatasetDict({name: dataset.select(sorted(indices)) for name, indices in rows.items()})


def group_folds(dataset: Dataset, folds: int, by: str = "patient_id", seed: int = 0) -> list[list[int]]:
    """
    Divide a dataset into folds of about as many rows, every group in exactly one of them.

    The groups go one by one to the fold with the fewest rows, larger ones first (by powers of two: among those of
    about a size the seed decides), so that two folds differ by no more rows than the largest group has. Which group
    goes where depends on the groups, their sizes and `seed`, not on the order of the rows.

    Args:
        dataset (`datasets.Dataset`):
            The rows.
        folds (`int`):
            How many, at least 2.
        by (`str`, *optional*, defaults to `"patient_id"`):
            The column that names the group, see [`group_column`].
        seed (`int`, *optional*, defaults to `0`):
            Of the order among groups of about a size.

    Returns:
        `list[list[int]]`: of each fold its rows, by their places in `dataset`, in order. None is empty.

    Raises:
        `DatasetError`: the column is missing, rows have no group, or there are fewer groups than folds.
        `ValueError`: there are fewer than two folds.

    Example:

        ```python
        >>> from datasets import Dataset
        >>> from sa2va_trl.data import group_folds

        >>> rows = Dataset.from_dict({"patient_id": ["a", "b", "a", "a", "c", "b"]})
        >>> sorted(group_folds(rows, 2))
        [[0, 2, 3], [1, 4, 5]]

        ```
    """
    if folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}.")
    rows_of = _rows_of(dataset, by)
    if len(rows_of) < folds:
        raise DatasetError(f"{len(rows_of)} groups in {by!r} are too few for {folds} folds: each needs one or more.")
    groups = sorted(rows_of, key=str)
    groups = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    groups.sort(key=lambda group: -len(rows_of[group]).bit_length())
    found: list[list[int]] = [[] for _ in range(folds)]
    for group in groups:
        min(found, key=len).extend(rows_of[group])
    return [sorted(rows) for rows in found]


def group_column(dataset: Dataset) -> str:
    """
    What the rows of a dataset are to be divided by: patients where these are named, or else videos, or else samples.

    Args:
        dataset (`datasets.Dataset`): the rows.

    Returns:
        `str`: the first of `GROUP_COLUMNS` in which any row has an entry.

    Raises:
        `DatasetError`: there is none.
    """
    for column in GROUP_COLUMNS:
        # (a row without a patient among others that have one is a fault, which those who divide them say)
        if column in dataset.column_names and set(dataset.with_format(None)[column]) - {None, ""}:
            return column
    raise DatasetError(f"nothing to group by: the dataset has none of {', '.join(GROUP_COLUMNS)}.")


def _rows_of(dataset: Dataset, by: str) -> dict[object, list[int]]:
    """The places of the rows of each group."""
    if by not in dataset.column_names:
        raise DatasetError(f"no column {by!r} to group by; the dataset has: {', '.join(dataset.column_names)}")
    rows_of: dict[object, list[int]] = {}
    for row, group in enumerate(dataset.with_format(None)[by]):
        rows_of.setdefault(group, []).append(row)
    nameless = [row for group in (None, "") for row in rows_of.get(group, [])]
    if nameless:
        problems = [BadRow(row, None, None, f"{by} is missing or empty") for row in sorted(nameless)]
        raise DatasetError(f"{len(nameless)} rows have no group:", problems)
    return rows_of
