"""The folds of a cross-validation: who is held out in which, written down, and as data sets that tasks open."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from ..data import check_no_leakage, group_folds, group_split
from ..data.selections import write_selection
from ..data.splits import group_column
from ..errors import DatasetError
from ..files import write_json


# What groups are called, a word for each of GROUP_COLUMNS.
GROUPS = {"patient_id": "patients", "video_id": "videos", "sample_id": "images"}


@dataclass(frozen=True)
class Folds:
    """
    Args:
        by (`str`): the column that rows were divided by.
        splits (`list[DatasetDict]`): of each fold `train`, perhaps `validation`, and `test`: those held out.
    """

    by: str
    splits: list[DatasetDict]

    @property
    def groups(self) -> str:
        """What is held out, in a word."""
        return GROUPS.get(self.by, f"groups of {self.by}")

    def ids(self, fold: int) -> dict[str, list[str]]:
        """The `sample_id` of the rows of each split of a fold."""
        return {split: list(rows["sample_id"]) for split, rows in self.splits[fold].items()}

    def count(self, fold: int, split: str) -> int:
        """How many groups a split of a fold has."""
        return len(set(self.splits[fold][split][self.by]))


def pooled_rows(data: DatasetDict) -> Dataset:
    """
    The rows of several splits in one, each with a `sample_id` of its own.

    Args:
        data (`datasets.DatasetDict`): the splits.

    Returns:
        `datasets.Dataset`.

    Raises:
        `DatasetError`: rows share a `sample_id`.
    """
    rows = concatenate_datasets([split.with_format(None) for split in data.values()])
    seen: set[str] = set()
    twice = [name for name in rows["sample_id"] if name in seen or seen.add(name)]
    if twice:
        examples = ", ".join(map(repr, twice[:3])) + (", ..." if len(twice) > 3 else "")
        raise DatasetError(
            f"{len(twice)} rows of {' and '.join(data)} have the sample_id of another one ({examples}): each row "
            "needs one of its own."
        )
    return rows


def make_folds(rows: Dataset, folds: int, by: str | None, validation_share: float | None, seed: int) -> Folds:
    """
    Args:
        rows (`datasets.Dataset`): to be divided, see [`pooled_rows`].
        folds (`int`): how many.
        by (`str`, *optional*): column that names the groups; see [`~data.splits.group_column`] by default.
        validation_share (`float`, *optional*):
            Of the rows that a fold may learn from, those to choose the checkpoint by, of groups of their own.
        seed (`int`): of both.

    Returns:
        [`Folds`], of which no split shares patients, videos or samples with another one of its fold.

    Raises:
        `DatasetError`: groups are missing or too few, or the splits would share patients or videos.
    """
    by = by or group_column(rows)
    try:
        held_out = group_folds(rows, folds, by, seed)
    except DatasetError as error:
        error.args = (f"{error}\nDivide by another column with --by, or give fewer --folds.",)
        raise
    found = []
    for number, own in enumerate(held_out):
        others = rows.select(sorted(set(range(len(rows))) - set(own)))
        splits = {"train": others, "test": rows.select(own)}
        if validation_share is not None:
            if len(set(others[by])) < 2:
                raise DatasetError(
                    f"fold{number} leaves one of the {GROUPS.get(by, by)} to learn from, and none to choose the "
                    "checkpoint by: give more data, or train without that (--eval_strategy no)."
                )
            shares = {"train": 1 - validation_share, "validation": validation_share}
            splits = {**group_split(others, shares, by, seed), "test": splits["test"]}
        for one, other in combinations(splits, 2):
            names = (f"{one} of fold{number}", f"{other} of fold{number}")
            check_no_leakage(splits[one], splits[other], names=names)
        found.append(DatasetDict(splits))
    return Folds(by, found)


def record_folds(file: Path, folds: Folds, dataset_name: str, synthetic: dict | None) -> None:
    """
    Write down who is held out in which fold, or see that it is what an earlier call has written.

    Args:
        file (`Path`): to write, or read.
        folds (`Folds`): as they are now.
        dataset_name (`str`), synthetic (`dict`, *optional*): what they are made of.

    Raises:
        `ValueError`: folds were others.
    """
    content = {
        "dataset_name": dataset_name,
        "synthetic": synthetic or {},
        "by": folds.by,
        "folds": [folds.ids(number) for number in range(len(folds.splits))],
    }
    if file.exists() and json.loads(file.read_text()) != content:
        raise ValueError(
            f"{file.parent} was begun with other data or folds ({file.name}): a patient held out now may have been "
            "trained on. Give another output_dir."
        )
    write_json(file, content)


def write_folds(output: Path, folds: Folds, dataset_name: str, of: Sequence[str]) -> None:
    """
    Leave `fold0/data` and so on, which tasks open as data sets.

    Args:
        output (`Path`): in which they are.
        folds (`Folds`): to be written.
        dataset_name (`str`): where their rows are.
        of (`Sequence[str]`): in which of its splits.
    """
    for number in range(len(folds.splits)):
        write_selection(output / f"fold{number}" / "data", dataset_name, of, folds.ids(number))


def write_pairs(folder: Path, pairs: DatasetDict, name: str, split: str, folds: Folds, number: int) -> str:
    """
    The preference pairs that a fold may learn from: those of its own training rows.

    Args:
        folder (`Path`): to leave, which opens as a data set.
        pairs (`datasets.DatasetDict`): of all rows.
        name (`str`): of that data set.
        split (`str`): its split to learn from.
        folds (`Folds`): all of them.
        number (`int`): of the fold.

    Returns:
        `str`: the folder.

    Raises:
        `DatasetError`: the pairs do not say what they are of, or there are none of the fold's.
    """
    rows = pairs[split].with_format(None)
    if folds.by not in rows.column_names:
        raise DatasetError(f"{name} does not say which of the {folds.groups} its pairs are of: no column {folds.by}.")
    own = folds.splits[number]
    may = set(own["train"][folds.by])
    # (A pair's sample_id may have the object and the kind of the pair behind that of the row.)
    places = [place for place, group in enumerate(rows[folds.by]) if may & {group, *_origins(group)}]
    if not places:
        raise DatasetError(f"{name} has no pair of the rows that fold{number} trains on.")
    chosen = rows.select(places)
    for other in own.keys() - {"train"}:
        check_no_leakage(chosen, own[other], names=(f"pairs of fold{number}", f"{other} of fold{number}"))
    write_selection(folder, name, [split], {"train": list(dict.fromkeys(chosen["sample_id"]))})
    return str(folder)


def _origins(sample_id: str) -> list[str]:
    """What the row of a pair may be called: `"a#1:greedy"` may be of `"a#1"` or `"a"`."""
    without_kind = sample_id.rpartition(":")[0]
    return [without_kind, without_kind.rpartition("#")[0], sample_id.rpartition("#")[0]]
