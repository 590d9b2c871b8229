import io
import json
import pickle
import subprocess

import numpy as np
import PIL.Image
import pytest
from annotated_folders import arrays, write_pairs
from datasets import Dataset
from filelock import FileLock

from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.readers import prepared as module
from sa2va_trl.data.readers.entries import Reading, entry_image, rows_of
from sa2va_trl.data.readers.mask_folder import read_mask_folder
from sa2va_trl.data.readers.prepared import find_prepared, is_prepared
from sa2va_trl.errors import DatasetError


def embedded(tmp_path, **columns):
    """Two rows with their pictures in them, in two files; a mask of its own a row."""
    masks = []
    for number in range(2):
        pixels = np.zeros((8, 12), dtype=np.uint8)
        pixels[number : number + 3, 2:7] = 255
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "PNG")
        masks.append({"bytes": buffer.getvalue(), "path": None})
    rows = read_mask_folder(write_pairs(tmp_path / "source", "a", "b"))
    rows = Dataset.from_dict(
        {
            "image": [{"bytes": (tmp_path / "source/image" / f"{n}.png").read_bytes(), "path": None} for n in "ab"],
            "masks": [[masks[1], masks[number]] for number in range(2)],
            "phrases": [["LAD", "wire"]] * 2,
            "sample_id": ["1.2.17", "1.2.18"],
        },
        features=FEATURES,
    )
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    (tmp_path / "rows" / "data").mkdir(parents=True)
    for number in range(2):
        rows.select([number]).to_parquet(tmp_path / "rows" / "data" / f"train-{number:05d}-of-00002.parquet")
    return rows, tmp_path / "rows"


@pytest.mark.parametrize("saved", [False, True])
def test_rows_come_back(tmp_path, saved):
    rows, folder = embedded(tmp_path, patient_id=["p", "q"])
    if saved:
        folder = tmp_path / "saved"
        rows.save_to_disk(folder)
    assert is_prepared(folder)
    (source,) = find_sources(folder, Reading()).values()
    assert source.labels == ("LAD", "wire") and not source.problems
    found = rows_of(pickle.loads(pickle.dumps(source)), Reading(phrase=None, classes=["LAD", "wire"]))
    assert found["sample_id"][:] == ["1.2.17", "1.2.18"] and found["patient_id"][:] == ["p", "q"]
    assert found["phrases"][:] == [["lad", "wire"]] * 2
    for one, other in zip(arrays(rows), arrays(found), strict=True):
        assert np.array_equal(one, other)
    stored, size = entry_image(source.entries[1], Reading())
    assert size == (12, 8) and stored["bytes"] == (tmp_path / "source/image/b.png").read_bytes()


def test_phrase_for_rows_that_have_none(tmp_path):
    rows, _ = embedded(tmp_path)
    plain = rows.remove_columns(["phrases", "sample_id"])
    (tmp_path / "plain").mkdir()
    plain.to_parquet(tmp_path / "plain" / "rows.parquet")
    source = find_prepared(tmp_path / "plain", Reading())["train"]
    assert rows_of(source, Reading(phrase="Vessel."))["phrases"][:] == [["vessel"] * 2] * 2
    assert [entry.name for entry in source.entries] == ["000000.png", "000001.png"]


def test_names_made_with_a_key_are_noted(tmp_path):
    _, folder = embedded(tmp_path)
    assert not find_prepared(folder, Reading())["train"].entries[0].is_pseudonymous
    reports = {'{"names": "pseudonyms"}': True, '{"names": "keep"}': False, "[]": False, "{": False}
    for text, expected in reports.items():
        (folder / "dataset_report.json").write_text(text)
        assert find_prepared(folder, Reading())["train"].entries[0].is_pseudonymous is expected


def test_names_stay_in_no_cache_and_other_processes_read_the_rows(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    rows, folder = embedded(tmp_path, patient_id=["p", "q"])
    folder = folder.rename(tmp_path / "DOE^JOHN_1950")
    left, held = (cache / f"sa2va_trl-passing-{name}" for name in ("left", "held"))
    for place in (left, held):
        (place / "doe^john_1950").mkdir(parents=True)
        place.with_name(f"{place.name}.lock").touch()
    with FileLock(f"{held}.lock"):  # of another process, which is at work
        source = find_prepared(folder, Reading())["train"]
        assert {path.name for path in cache.iterdir()} == {held.name, f"{held.name}.lock"}
    (folder / "dataset_report.json").write_text("{}")
    for one, other in zip(arrays(rows), arrays(rows_of(source, Reading())), strict=True):
        assert np.array_equal(one, other)
    file, picture = source.entries[0].embedded.args[0], source.entries[0].embedded()
    assert picture in subprocess.run(["cat", file], capture_output=True, check=True).stdout
    find_prepared(folder, Reading())
    assert list(cache.iterdir()) == []


def test_bad_rows_and_other_rows(tmp_path):
    rows, _ = embedded(tmp_path)
    (tmp_path / "bad").mkdir()
    broken = Dataset.from_dict({**rows.with_format("arrow")[:].to_pydict(), "phrases": [["a"], []]}, features=FEATURES)
    broken.to_parquet(tmp_path / "bad" / "rows.parquet")
    problems = find_prepared(tmp_path / "bad", Reading())["train"].problems
    assert [problem.row for problem in problems] == [0, 1] and "has 2 masks and 1 phrases" in problems[0].reason
    (tmp_path / "talk").mkdir()
    Dataset.from_dict({"messages": ["x"], "sample_id": ["a"]}).to_parquet(tmp_path / "talk" / "rows.parquet")
    with pytest.raises(DatasetError, match="rows have messages, sample_id; .* Train on the folder as it is"):
        find_prepared(tmp_path / "talk", Reading())
    (tmp_path / "regions").mkdir()
    rows.add_column("regions", [[[0, 0, 2, 2]]] * len(rows)).to_parquet(tmp_path / "regions" / "rows.parquet")
    with pytest.raises(DatasetError, match="rows have regions, .* Train on the folder as it is"):
        find_prepared(tmp_path / "regions", Reading())


def test_folders_of_splits_with_pictures_in_their_rows(tmp_path):
    rows, _ = embedded(tmp_path)
    for split in ("train", "test"):
        (tmp_path / "own" / split).mkdir(parents=True)
        rows.to_parquet(tmp_path / "own" / split / "rows.parquet")
    assert {split: len(own.entries) for split, own in find_sources(tmp_path / "own", Reading()).items()} == {
        "train": 2,
        "test": 2,
    }


def test_layout(tmp_path):
    for name in ("train", "test"):
        write_pairs(tmp_path / name, "a", names=("images", "masks"))
    row = {"file_name": "images/a.png", "masks_file_names": ["masks/a.png"], "phrases": ["vessel"], "sample_id": "x"}
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps(row))
    assert not is_prepared(tmp_path), "test/ is something else"
    (tmp_path / "test" / "metadata.jsonl").write_text(json.dumps({**row, "sample_id": "y"}))
    assert is_prepared(tmp_path)
    sources = find_sources(tmp_path, Reading())
    assert {split: source.entries[0].name for split, source in sources.items()} == {"train": "x.png", "test": "y.png"}
    assert list(load_dataset_dict(tmp_path)) == ["train", "test"]


def test_what_is_no_picture_and_what_is_damaged_is_refused(tmp_path, monkeypatch):
    _, folder = embedded(tmp_path)
    (tmp_path / "words").mkdir()
    Dataset.from_dict({"image": ["a.png"], "mask": ["b.png"]}).to_parquet(tmp_path / "words" / "a.parquet")
    with pytest.raises(DatasetError, match="train: the column image holds no pictures, but Value"):
        find_prepared(tmp_path / "words", Reading())
    saved = tmp_path / "saved"
    Dataset.from_parquet([str(path) for path in sorted(folder.rglob("*.parquet"))]).save_to_disk(saved)
    (file,) = saved.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DatasetError, match="saved: datasets.load_from_disk failed: "):
        find_prepared(saved, Reading())

    def broken(rows):  # as pyarrow does with a length that is negative
        yield [rows.with_format("arrow")[:1].to_pylist()[0]]
        raise SystemError("Negative size")

    monkeypatch.setattr(module, "iter_undecoded", broken)
    with pytest.raises(DatasetError, match=r"train: its rows are damaged: Negative size"):
        find_prepared(folder, Reading())
