"""What a run writes about itself into a checkpoint; what a run that goes on makes of it is in test_resuming.py."""

import json

import pytest
from datasets import Dataset

from sa2va_trl import SegSFTConfig
from sa2va_trl.data import DatasetError
from sa2va_trl.trainers.run_record import (
    check_record,
    check_same_rows,
    read_record,
    record_of,
    rows_digest,
    write_record,
)


ROWS = Dataset.from_dict({"sample_id": ["a", "b", "c"]})


def record(rows=ROWS, batch=2, **options):
    args = SegSFTConfig("out", use_cpu=True, report_to="none", **options)
    return record_of(args, batch, rows_digest(rows))


def test_a_record_comes_back_as_it_was_written_and_fits_itself(tmp_path):
    folder, own = tmp_path / "checkpoint-1", record()
    write_record(folder, own)
    assert read_record(folder) == {**own, "processes": 1}
    assert json.loads((folder / "resume.json").read_text()) == own
    assert own["batch"]["per_device_train_batch_size"] == 2 and own["options"]["optim"] == "adamw_torch_fused"
    check_record(str(folder), own, optimizer=True, order=True)


def test_only_what_is_gone_on_with_has_to_be_the_same(tmp_path):
    write_record(tmp_path, record())
    rate, order = record(learning_rate=0.5), record(ROWS.select([1, 0, 2]), seed=3)
    check_record(str(tmp_path), rate, optimizer=False, order=True)
    check_record(str(tmp_path), order, optimizer=True, order=False)
    with pytest.raises(ValueError, match="begun with learning_rate=.*, and this run has learning_rate=0.5"):
        check_record(str(tmp_path), rate, optimizer=True, order=False)
    with pytest.raises(ValueError, match="begun with seed=42, and this run has seed=3"):
        check_record(str(tmp_path), order, optimizer=False, order=True)


def test_a_checkpoint_of_an_older_version_says_nothing_and_a_damaged_record_is_named(tmp_path):
    assert read_record(tmp_path) == {}
    check_record(str(tmp_path), record(), optimizer=True, order=True)
    for content in ("{", "[]", '{"rows": 1}'):
        (tmp_path / "resume.json").write_text(content)
        with pytest.raises(ValueError, match="resume.json is damaged"):
            read_record(tmp_path)


def test_rows_are_told_apart_by_number_names_and_order():
    digests = [rows_digest(rows) for rows in (ROWS, ROWS.select([0, 1]), ROWS.select([1, 0, 2]))]
    assert [digest["count"] for digest in digests] == [3, 2, 3] and len({digest["digest"] for digest in digests}) == 3
    assert rows_digest(ROWS.with_format("numpy")) == digests[0]
    assert rows_digest(ROWS.rename_column("sample_id", "name")) == {"count": 3, "digest": None}
    assert rows_digest(ROWS.to_iterable_dataset()) == {"count": None, "digest": None}
    check_same_rows("x", digests[0], digests[0])
    with pytest.raises(DatasetError, match=r"x was trained on 2 rows than train_dataset has \(3\): .* data, or not"):
        check_same_rows("x", digests[1], digests[0], ", or not")
    with pytest.raises(DatasetError, match="other rows, or in another order, than train_dataset"):
        check_same_rows("x", digests[2], digests[0])
