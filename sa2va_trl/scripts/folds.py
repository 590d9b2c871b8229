"""The folds of a cross-validation: who is held out in which, written down, and as data sets that tasks open."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from ..data import check_no_leakage, group_folds, group_split
from ..data.columns import PAIR_COLUMNS
from ..data.grouping import looks_grouped
from ..data.layout import row_layout
from ..data.prompts import ANSWERS
from ..data.selections import write_selection
from ..data.splits import check_pictures, group_column, groups_that_look_alike
from ..data.stored import iter_undecoded
from ..errors import DatasetError
from ..features.rows import picture_digest, row_facts
from ..files import write_json
from ..questions import QUESTIONS
from .screen import say


# What groups are called, a word for each of GROUP_COLUMNS.
GROUPS = {"patient_id": "patients", "video_id": "videos", "sample_id": "images"}


@dataclass(frozen=True)
class Folds:
    """
    Args:
        by (`str`): the column that rows were divided by.
        splits (`list[DatasetDict]`): of each fold `train`, perhaps `validation`, and `test`: those held out.
        scored (`list[list[str]]`): of each fold the `sample_id` of those held out that have masks to be scored by.
    """

    by: str
    splits: list[DatasetDict]
    scored: list[list[str]]

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


def with_masks(rows: Dataset) -> list[str]:
    """The `sample_id` of the rows that have masks; others, such as questions answered in words, are not scored."""
    return [row["sample_id"] for batch in iter_undecoded(rows) for row in batch if row_layout(row).masks]


def digest_of(rows: Dataset) -> str:
    """
    What tells rows apart from others with the same identifiers.

    Args:
        rows (`datasets.Dataset`): checked, or of preference pairs.

    Returns:
        `str`: SHA-256 of their images, masks, texts and identifiers, and of the masks and rewards of pairs, in order.
    """
    found = hashlib.sha256()
    for facts in row_facts(rows, QUESTIONS[0], ANSWERS[0], digests=True):
        found.update(facts.digest.encode())
    if set(PAIR_COLUMNS) & set(rows.column_names):
        for row in (row for batch in iter_undecoded(rows) for row in batch):
            for name in PAIR_COLUMNS:
                found.update(b"none" if row.get(name) is None else picture_digest(row[name]))
            found.update(json.dumps([row.get(name) for name in ("chosen_reward", "rejected_reward")]).encode())
    return found.hexdigest()


def make_folds(
    rows: Dataset,
    folds: int,
    by: str | None,
    validation_share: float | None,
    seed: int,
    accept_alike: bool = False,
) -> Folds:
    """
    Args:
        rows (`datasets.Dataset`): to be divided, see [`pooled_rows`].
        folds (`int`): how many.
        by (`str`, *optional*):
            Column that names the groups; see [`~data.splits.group_column`] by default. Where no patient is known,
            those that look alike are one, see [`~data.splits.groups_that_look_alike`].
        validation_share (`float`, *optional*):
            Of the rows that a fold may learn from, those to choose the checkpoint by, of groups of their own.
        seed (`int`): of both.
        accept_alike (`bool`, *optional*, defaults to `False`): as in [`~data.splits.check_pictures`].

    Returns:
        [`Folds`], of which no split shares patients, videos, samples or images with another one of its fold.

    Raises:
        `DatasetError`: groups are missing or too few, the splits would share patients or videos, or a fold would hold
            out no row with a mask.
    """
    by = by or group_column(rows)
    if by == "sample_id" and (start := looks_grouped(list(map(str, rows.with_format(None)[by])))):
        say(
            f"WARNING: names look like frames of patients or clips (many begin with {start!r}), which may come into "
            "several folds: sa2va-trl prepare_data --patient_pattern says who is in them"
        )
    keys = rows
    if by in rows.column_names:
        groups = groups_that_look_alike(rows, by, accept_alike)
        if fewer := len(set(rows.with_format(None)[by])) - len(set(groups)):
            of = f"{len(set(groups)) + fewer} {GROUPS[by]}"
            say(f"{of}, of which some look alike: these stay together, {len(set(groups))} groups")
        keys = Dataset.from_dict({by: groups, "_row": range(len(rows))})
    try:
        held_out = group_folds(keys, folds, by, seed)
    except DatasetError as error:
        error.args = (f"{error}\nAnother column to divide by is --by, another number of folds --folds (2 or more).",)
        raise
    found, scored, masked = [], [], set(with_masks(rows))
    for number, own in enumerate(held_out):
        others = rows.select(sorted(set(range(len(rows))) - set(own)))
        splits = {"train": others, "test": rows.select(own)}
        scored.append([name for name in splits["test"]["sample_id"] if name in masked])
        if not scored[-1]:
            raise DatasetError(
                f"None of the {len(own)} rows that fold{number} holds out has a mask to be scored by: give fewer "
                "--folds, or divide by another column with --by."
            )
        if validation_share is not None:
            others = keys.select(sorted(set(range(len(rows))) - set(own)))
            if len(set(others[by])) < 2:
                raise DatasetError(
                    f"fold{number} leaves one of the {GROUPS.get(by, by)} to learn from, and none to choose the "
                    "checkpoint by: give more data, or train without that (--eval_strategy no)."
                )
            shares = {"train": 1 - validation_share, "validation": validation_share}
            chosen = group_split(others, shares, by, seed)
            splits = {split: rows.select(part["_row"]) for split, part in chosen.items()} | {"test": splits["test"]}
        for one, other in combinations(splits, 2):
            names = (f"{one} of fold{number}", f"{other} of fold{number}")
            check_no_leakage(splits[one], splits[other], names=names, images=False)
        check_pictures({f"{split} of fold{number}": own for split, own in splits.items()}, accept_alike)
        found.append(DatasetDict(splits))
    return Folds(by, found, scored)


def in_words(folds: Folds, splits: Sequence[str], validation_share: float | None) -> list[str]:
    """How the folds were made, a sentence or two a line."""
    numbers = range(len(folds.splits))
    sizes = [len(folds.splits[number]["test"]) for number in numbers]
    without = sum(sizes) - sum(map(len, folds.scored))
    parts = [folds.count(number, "test") for number in numbers]
    of_groups = "" if folds.by == "sample_id" else f" of {sum(parts)} {folds.groups}"
    span = " to ".join(map(str, dict.fromkeys((min(sizes), max(sizes)))))
    text = (
        f"{sum(sizes)} images{of_groups} ({' and '.join(splits)}) in {len(sizes)} folds by "
        f"{folds.by}: {span} images are held out in each."
    )
    if validation_share is None:
        text += " All others are learned from; nothing is chosen on the way."
    else:
        text += (
            f" Of the others about {validation_share:.0%} choose the checkpoint, as nearly as whole {folds.groups} "
            "allow; the rest is learned from."
        )
    lines = [text]
    if without:
        lines.append(f"{without} of the {sum(sizes)} images have no mask to be scored by, and are in no result.")
    if folds.by in ("video_id", "sample_id"):
        lines.append(
            f"Patients are not known, so that {folds.groups} are divided: if a patient has several, they may be on "
            "both sides, which flatters the result."
        )
    return lines


def record_folds(
    file: Path,
    folds: Folds,
    dataset_name: str,
    synthetic: dict | None,
    rows: str,
    pairs: Mapping[str, str] | None = None,
) -> None:
    """
    Write down who is held out in which fold, and of which data, or see that it is what an earlier call has written.

    Args:
        file (`Path`): to write, or read.
        folds (`Folds`): as they are now.
        dataset_name (`str`), synthetic (`dict`, *optional*): what they are made of.
        rows (`str`): [`digest_of`] all rows that were divided.
        pairs (`Mapping[str, str]`, *optional*): likewise of preference pairs, by the name of their data set.

    Raises:
        `ValueError`: folds were others, or rows or pairs have changed.
    """
    content = {
        "dataset_name": dataset_name,
        "synthetic": synthetic or {},
        "by": folds.by,
        "folds": [folds.ids(number) for number in range(len(folds.splits))],
    }
    digests = {"rows": rows, "pairs": dict(pairs or {})}
    if file.exists():
        earlier = json.loads(file.read_text())
        if {name: earlier.get(name) for name in content} != content:
            raise ValueError(
                f"{file.parent} was begun with other data or folds ({file.name}): a patient held out now may have "
                "been trained on. Give another output_dir."
            )
        before = {dataset_name: earlier.get("rows"), **earlier.get("pairs", {})}
        now = {dataset_name: rows, **digests["pairs"]}
        if other := [name for name, digest in now.items() if before.get(name, digest) != digest]:
            raise ValueError(
                f"{' and '.join(other)} changed since {file.parent} was begun ({file.name}): the samples are called "
                "the same, but their images, masks or texts are others. Give another output_dir."
            )
        digests["pairs"] = {**earlier.get("pairs", {}), **digests["pairs"]}  # a configuration may be added later
    write_json(file, {**content, **digests})


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
    origins = _origins if folds.by == "sample_id" else lambda group: []
    places = [place for place, group in enumerate(rows[folds.by]) if may & {group, *origins(group)}]
    if not places:
        raise DatasetError(f"{name} has no pair of the rows that fold{number} trains on.")
    chosen = rows.select(places)
    for other in own.keys() - {"train"}:
        names = f"pairs of fold{number}", f"{other} of fold{number}"
        check_no_leakage(chosen, own[other], names=names, images=False)  # (of the pictures that have been compared)
    write_selection(folder, name, [split], {"train": list(dict.fromkeys(chosen["sample_id"]))})
    return str(folder)


def _origins(sample_id: str) -> list[str]:
    """What the row of a pair may be called: `"a#1:greedy"` may be of `"a#1"` or `"a"`."""
    without_kind = sample_id.rpartition(":")[0]
    return [without_kind, without_kind.rpartition("#")[0], sample_id.rpartition("#")[0]]
