"""Data sets that consist of rows of another one."""

import json

import pytest
from annotated_folders import write_pairs
from datasets import Dataset, DatasetDict

from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.selections import SELECTION, select_rows, write_selection
from sa2va_trl.errors import DatasetError


@pytest.fixture
def source(tmp_path):
    """A folder of two splits whose files need prefixes to be told apart."""
    write_pairs(tmp_path / "source" / "train", "a", "b", "c")
    write_pairs(tmp_path / "source" / "val", "c", "d")
    return tmp_path / "source"


def test_chosen_rows_are_those_of_the_source(monkeypatch, tmp_path, source):
    whole = load_dataset_dict(source, phrase="Artery")
    monkeypatch.chdir(tmp_path)
    splits = {"train": ["validation_d", "train_a"], "test": ["train_c"], "validation": ["validation_c"]}
    write_selection(tmp_path / "chosen", "source", ["train", "validation"], splits)
    assert [path.name for path in (tmp_path / "chosen").iterdir()] == [SELECTION]
    monkeypatch.chdir(source)  # wherever it is read from
    chosen = load_dataset_dict(tmp_path / "chosen", phrase="Artery")
    names = {split: rows["sample_id"][:] for split, rows in chosen.items()}
    assert names == {"train": ["train_a", "validation_d"], "test": ["train_c"], "validation": ["validation_c"]}
    for split in chosen.values():
        for row in split:
            rows = whole[row["sample_id"].split("_")[0]]
            assert row == rows[rows["sample_id"][:].index(row["sample_id"])]
            assert row["phrases"] == ["artery"]


def test_rows_that_share_an_identifier_come_together():
    data = DatasetDict({"train": Dataset.from_dict({"sample_id": ["a", "b", "a"], "n": [0, 1, 2]})})
    assert select_rows(data, ["train"], {"one": ["a"]}, "pairs")["one"]["n"][:] == [0, 2]


def test_rows_that_are_gone_are_said(tmp_path, source):
    for of, ids, reason in (
        (["train"], ["validation_d"], "1 rows that were chosen are not there any more, the first 'validation_d'"),
        (["test"], ["train_a"], "there is no split test, only train, validation"),
    ):
        write_selection(tmp_path / "chosen", str(source), of, {"train": ids})
        with pytest.raises(DatasetError, match=f"{source.name} has changed: {reason}"):
            load_dataset_dict(tmp_path / "chosen")


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"dataset_name": "x"})])
def test_other_files_of_that_name_are_refused(tmp_path, content):
    (tmp_path / SELECTION).write_text(content)
    with pytest.raises(DatasetError, match="is no selection of rows"):
        load_dataset_dict(tmp_path)
