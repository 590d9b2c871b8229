"""Splits and folds by group, and the check that two splits share nothing."""

import logging
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset

from ..errors import BadRow, DatasetError
from .columns import GROUP_COLUMNS
from .grouping import clusters_alike, joined, look_grouped_across
from .near_duplicates import ALIKE, crossings, equal_pictures
from .sightings import sights_of


logger = logging.getLogger(__name__)


def check_no_leakage(
    a: Dataset,
    b: Dataset,
    names: tuple[str, str] = ("train", "validation"),
    images: bool = True,
    accept_alike: bool = False,
    warn: bool = True,
) -> None:
    """
    Check that no patient, video, sample or image is in both of two splits, and no image that looks like one in the
    other.

    Compares the columns `patient_id`, `video_id` and `sample_id`, those that both have; None is no group; and images
    as [`check_pictures`]. An `IterableDataset` is not checked, since that would consume it.

    Args:
        a (`datasets.Dataset`):
            One split.
        b (`datasets.Dataset`):
            The other.
        names (`tuple[str, str]`, *optional*, defaults to `("train", "validation")`):
            What the message calls them.
        images (`bool`, *optional*, defaults to `True`):
            Compare images, too.
        accept_alike (`bool`, *optional*, defaults to `False`):
            As in [`check_pictures`].
        warn (`bool`, *optional*, defaults to `True`):
            As in [`check_pictures`].

    Raises:
        `DatasetError`: With every column whose values the two share, equal images, and examples; or as
            [`check_pictures`].
    """
    if isinstance(a, IterableDataset) or isinstance(b, IterableDataset):
        logger.warning("%s and %s are not checked for leakage: one is an IterableDataset.", *names)
        return
    columns = [column for column in GROUP_COLUMNS if column in a.column_names and column in b.column_names]
    if not columns:
        logger.warning("%s and %s share none of %s: leakage between them cannot be checked.", *names, GROUP_COLUMNS)
    if columns == ["sample_id"]:
        ids = [[str(name) for name in split.with_format(None)["sample_id"]] for split in (a, b)]
        if start := look_grouped_across(*ids):
            logger.warning(
                "%s and %s: names look like frames of the same patients or clips (%r in both): say who is in them "
                "(sa2va-trl prepare_data --patient_pattern).",
                *(*names, start),
            )
    found = []
    for column in columns:
        # (`Dataset.unique` would write a copy of all rows of a selection.)
        shared = set(a.with_format(None)[column]) & set(b.with_format(None)[column])
        shared = sorted(shared - {None, ""}, key=str)
        if shared:
            examples = ", ".join(map(repr, shared[:5])) + (", ..." if len(shared) > 5 else "")
            found.append(f"{len(shared)} {column} ({examples})")
    if found:
        raise DatasetError(
            f"{names[0]} and {names[1]} overlap: both have {'; '.join(found)}. "
            "Split by patient or video (`group_split`)."
        )
    if images:
        check_pictures({names[0]: a, names[1]: b}, accept_alike, warn=warn)


def check_pictures(
    splits: Mapping[str, Dataset], accept_alike: bool = False, num_proc: int | None = None, warn: bool = True
) -> None:
    """
    Check that no image is in two splits, and none that looks like one in another: thumbnails of 32 x 32 pixels that
    correlate by 0.98 or more. Images that show nothing, such as frames before the X-rays are on, do not count.

    Images that look alike are an error where nothing says that they are of two patients (`patient_id`): without a
    patient they are mostly frames of one run. Those of two known patients are named in the log, since standard views
    do look alike. Each image is decoded once in a process, see [`~data.sightings`]; those that
    [`~data.checks.check_dataset`] has seen are not decoded again.

    Args:
        splits (`Mapping[str, datasets.Dataset]`): by name; columns `image` or `images`, if there are any.
        accept_alike (`bool`, *optional*, defaults to `False`): name what looks alike in the log in any case.
        num_proc (`int`, *optional*): threads that decode; 1 by default.
        warn (`bool`, *optional*, defaults to `True`):
            Look for what is only named in the log, too; of several processes one does.

    Raises:
        `DatasetError`: with examples of what is shared.
    """
    names, labels, digests, thumbnails, known = [], [], [], [], []
    for split, rows in splits.items():
        sights = sights_of(rows, num_proc)
        plain, empty = rows.with_format(None), [None] * len(rows)
        ids = plain["sample_id"] if "sample_id" in rows.column_names else empty
        patients = plain["patient_id"] if "patient_id" in rows.column_names else empty
        names += [f"row {row} of {split}" + (f" ({ids[row]})" if ids[row] else "") for row in sights.rows]
        known += [bool(patients[row]) for row in sights.rows]
        labels += [split] * len(sights.rows)
        digests += sights.digests
        thumbnails.append(sights.thumbnails)
    equal, unknown, alike = crossings(digests, np.concatenate(thumbnails), labels, known, accept_alike, warn)
    title = " and ".join(splits)
    if equal:
        pairs = [(own[0], next(row for row in own if labels[row] != labels[own[0]])) for own in equal]
        raise DatasetError(
            f"{title} overlap: {len(equal)} images are in several of them ({_examples(pairs, names, 'is')}). Split by "
            "patient or video, or remove them."
        )
    if unknown and not accept_alike:
        raise DatasetError(
            f"{title}: {len(unknown)} or more pairs of images look alike (correlation of {ALIKE} or more; "
            f"{_examples(unknown, names, 'looks like')}), and nothing says that they are of two patients. Split anew, "
            "say who is in them (sa2va-trl prepare_data --splits, --patient_pattern), or look at them (sa2va-trl "
            "inspect) and accept them (accept_alike)."
        )
    if alike:
        logger.warning(
            "%s: %d or more pairs of images look alike (%s): sa2va-trl inspect shows them.",
            *(title, len(alike), _examples(alike[:1], names, "looks like")),
        )


def _examples(pairs: Sequence[tuple[int, int]], names: Sequence[str], are: str) -> str:
    shown = "; ".join(f"{names[one]} {are} {names[other]}" for one, other in pairs[:5])
    return shown + "; ..." * (len(pairs) > 5)


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


def groups_that_look_alike(dataset: Dataset, by: str, accept_alike: bool = False) -> list[Hashable]:
    """
    Groups to divide by, where no patient is known: videos or samples, made one where pictures of several are equal or
    look alike, as [`~data.dividing.groups_of`] does.

    Args:
        dataset (`datasets.Dataset`): the rows.
        by (`str`): a column of it. Groups of any but `video_id` and `sample_id` stay what they are.
        accept_alike (`bool`, *optional*, defaults to `False`): join groups with equal pictures alone.

    Returns:
        `list`: of each row its group, called as one of those that it is of.
    """
    plain = dataset.with_format(None)
    groups = list(plain[by])
    known = "patient_id" in dataset.column_names and any(plain["patient_id"])
    if by not in GROUP_COLUMNS[1:] or known or not all(groups):
        return groups
    sights = sights_of(dataset)
    together = equal_pictures(sights.digests, sights.thumbnails)
    if not accept_alike:
        together += clusters_alike(sights.thumbnails, ALIKE)
    numbers = joined(groups, ([sights.rows[place] for place in places] for places in together))
    first: dict[int, Hashable] = {}
    for number, group in zip(numbers, groups, strict=True):
        first[number] = min(first.get(number, group), group, key=str)
    return [first[number] for number in numbers]


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
