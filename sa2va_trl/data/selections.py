"""A folder that says which rows of another data set it consists of, and holds none of them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import DatasetDict, concatenate_datasets

from ..errors import DatasetError
from ..files import write_json


SELECTION = "selection.json"


def write_selection(
    folder: str | os.PathLike, dataset_name: str, of: Sequence[str], splits: Mapping[str, Sequence[str]]
) -> None:
    """
    Make a folder that [`~data.load_dataset_dict`] opens as splits of rows of another data set. No picture is copied.

    Args:
        folder (`str` or `os.PathLike`): made if it is not there.
        dataset_name (`str`): the other data set, a folder or a Hub id.
        of (`Sequence[str]`): its splits to choose from.
        splits (`Mapping[str, Sequence[str]]`): of each split the `sample_id` of its rows.
    """
    place = Path(dataset_name).expanduser()
    name = str(place.resolve()) if place.is_dir() else dataset_name  # wherever it will be read from
    content = {"dataset_name": name, "of": list(of), "splits": {split: list(ids) for split, ids in splits.items()}}
    write_json(Path(folder) / SELECTION, content)


def read_selection(folder: str | os.PathLike) -> tuple[str, list[str], dict[str, list[str]]]:
    """
    Args:
        folder (`str` or `os.PathLike`): with what [`write_selection`] has written.

    Returns:
        Its `dataset_name`, `of` and `splits`.

    Raises:
        `DatasetError`: it says something else.
    """
    file = Path(folder) / SELECTION
    try:
        content = json.loads(file.read_text())
        return content["dataset_name"], content["of"], content["splits"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} is no selection of rows: {error}") from error


def select_rows(data: DatasetDict, of: Sequence[str], splits: Mapping[str, Sequence[str]], name: str) -> DatasetDict:
    """
    Args:
        data (`datasets.DatasetDict`): to choose from.
        of (`Sequence[str]`): its splits that are meant.
        splits (`Mapping[str, Sequence[str]]`): of each split to make, the `sample_id` of its rows.
        name (`str`): of the data set, for the message.

    Returns:
        `datasets.DatasetDict`: the splits, their rows in the order of `data`; of several rows with one `sample_id`
        all.

    Raises:
        `DatasetError`: splits or rows are not there.
    """
    if lacking := [split for split in of if split not in data]:
        raise DatasetError(f"{name} has changed: there is no split {', '.join(lacking)}, only {', '.join(data)}.")
    rows = concatenate_datasets([data[split].with_format(None) for split in of])
    places: dict[str, list[int]] = {}
    for place, sample_id in enumerate(rows["sample_id"]):
        places.setdefault(sample_id, []).append(place)
    missing = [sample_id for ids in splits.values() for sample_id in ids if sample_id not in places]
    if missing:
        raise DatasetError(
            f"{name} has changed: {len(missing)} rows that were chosen are not there any more, the first "
            f"{missing[0]!r}."
        )
    return DatasetDict(
        {split: rows.select(sorted(place for own in ids for place in places[own])) for split, ids in splits.items()}
    )
