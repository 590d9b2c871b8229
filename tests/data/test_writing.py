import csv
import multiprocessing
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from datasets import load_dataset
from prepared import contents, pixels, shown, write_runs
from segmentations import SIZE, write_run

from sa2va_trl.data import writing
from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.dicom_seg import write_dicom_seg
from sa2va_trl.data.finished import dataset_card, put_in_place
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.preparing import Plan, items_of, look_at
from sa2va_trl.data.privacy import Pseudonyms
from sa2va_trl.data.readers.entries import AnnotatedObject, Entry, Reading, Source
from sa2va_trl.data.workers import Workers
from sa2va_trl.data.writing import names_table, refuse_names, source_names, write_names, write_rows
from sa2va_trl.errors import DatasetError


KEY = bytes(range(32))


def prepare(folder, output, plan=None, workers=1, splits=None, rows=3):
    """What the task does, with few rows a file."""
    plan = plan or Plan(key=KEY)
    before, writing._ROWS = writing._ROWS, rows
    try:
        sources = find_sources(folder, plan.reading)
        items, kept = items_of(sources), list(sources.values())
        with Workers(workers) as pool:
            looks, _ = look_at(items, kept, plan.reading, pool)
            own = [item.split or "train" for item in items] if splits is None else splits(items)
            part = write_rows(items, looks, own, kept, folder, plan, output, pool)
        card = dataset_card(sorted(set(own)), plan.key is not None, plan.output_format)
        put_in_place(part, output, {}, card)
    finally:
        writing._ROWS = before
    return output


def halves(items):
    return ["test" if number % 3 == 0 else "train" for number in range(len(items))]


@contextmanager
def killed_at(path):
    """A file that the process is killed over, half written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
    yield temporary


def prepare_and_be_killed(folder, output, output_format):
    whole, count = writing.whole_file, iter(range(100))
    last = 2 if output_format == "parquet" else 12
    writing.whole_file = lambda path: killed_at(path) if next(count) == last else whole(path)
    prepare(folder, output, Plan(key=KEY, output_format=output_format), splits=halves)


@pytest.mark.parametrize("output_format", writing.OUTPUT_FORMATS)
def test_what_was_killed_and_taken_up_is_as_if_nothing_had_been(tmp_path, output_format):
    source, plan = write_runs(tmp_path / "source"), Plan(key=KEY, output_format=output_format)
    whole = prepare(source, tmp_path / "whole", plan, splits=halves)
    job = source, tmp_path / "again", output_format
    process = multiprocessing.get_context("spawn").Process(target=prepare_and_be_killed, args=job)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "again").exists()
    (part,) = [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    finished = [path for path in part.rglob("*-of-*") if not path.name.startswith(".")]
    assert finished and any(path.suffix == ".tmp" for path in part.rglob(".*"))
    kept = {path: path.stat().st_mtime_ns for path in finished}
    told, write = [], writing._write
    try:  # what was finished is not made again
        writing._write = lambda jobs, place, **given: told.append(place) or write(jobs, place, **given)
        again = prepare(source, tmp_path / "again", plan, splits=halves)
    finally:
        writing._write = write
    assert told and not set(told) & set(kept)
    assert contents(again) == contents(whole)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_processes_write_what_one_does(tmp_path):
    source = write_runs(tmp_path / "source")
    one, two = (prepare(source, tmp_path / str(count), workers=count, splits=halves) for count in (1, 2))
    assert contents(one) == contents(two) and len(contents(one)) == 2 + 2 + 3


def test_other_options_start_anew(tmp_path):
    source = write_runs(tmp_path / "source", patients=1)
    stale = tmp_path / ".out.0123456789abcdef.part"
    (stale / "data").mkdir(parents=True)
    (stale / "data" / "train-00000-of-00002.parquet").write_bytes(b"of another job")
    foreign = tmp_path / ".out.v2.0123456789abcdef.part"  # of a data set that is called out.v2
    foreign.mkdir()
    prepare(source, tmp_path / "out")
    assert (
        foreign.exists()
        and not stale.exists()
        and contents(tmp_path / "out") == contents(prepare(source, tmp_path / "same"))
    )
    other = prepare(source, tmp_path / "other", Plan(Reading(phrase="catheter"), KEY))
    assert contents(other) != contents(tmp_path / "out")
    items = items_of(find_sources(source, Reading()))
    looks, _ = look_at(items, list(find_sources(source, Reading()).values()), Reading(), Workers(1))
    own, splits = Plan(key=KEY), ["train"] * len(items)
    found = {writing.fingerprint(items, looks, splits, own)}
    found.add(writing.fingerprint(items, looks, ["test", *splits[1:]], own))
    found.add(writing.fingerprint(items, [looks[0]._replace(masks_digest="x"), *looks[1:]], splits, own))
    found.add(writing.fingerprint(items, [looks[0]._replace(digest="x"), *looks[1:]], splits, own))
    found |= {
        writing.fingerprint(items, looks, splits, plan)
        for plan in (Plan(), Plan(key=bytes(32)), Plan(Reading(templates=("the {phrase}",)), KEY))
    }
    assert len(found) == 7


@pytest.mark.parametrize("output_format", writing.OUTPUT_FORMATS)
def test_a_data_set_is_what_its_source_is(tmp_path, output_format, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = write_runs(tmp_path / "source" / "train", patients=1).parent
    write_runs(source / "test", patients=2)
    out = prepare(source, tmp_path / "out", Plan(key=KEY, output_format=output_format))
    read = load_dataset_dict(source)
    for found in (load_dataset_dict(out), load_dataset(str(out), cache_dir=str(tmp_path / "other"))):
        assert {split: len(rows) for split, rows in found.items()} == {"train": 4, "test": 8}
        for split, rows in found.items():
            assert [pixels(row) for row in rows] == [pixels(row) for row in read[split]]
    # JPEG files are as they were compressed.
    kinds = {row["image"].format for row in found["test"]}
    assert kinds == {"JPEG", "PNG"}
    ids = [row["sample_id"] for rows in found.values() for row in rows]
    assert len(set(ids)) == 12 and all(name.startswith("image-") for name in ids)


def test_names_are_kept_where_that_is_asked_for(tmp_path):
    source = write_runs(tmp_path / "source", patients=1)
    table = pyarrow.parquet.read_table(prepare(source, tmp_path / "out", Plan(), rows=9) / "data")
    assert table["sample_id"].to_pylist() == [f"P00_f{frame}" for frame in range(4)]


def framed(folder, *facts):
    picture = folder / "run.png"
    shown(1).save(picture)
    entries = [Entry("DOE^JOHN/run.png", picture, (), number, facts=own) for number, own in enumerate(facts)]
    return Source(folder, entries, ("vessel",))


def test_frames_of_a_clip_are_called_after_it(tmp_path):
    source = framed(tmp_path, {"video_id": "run 7", "patient_id": "DOE^JOHN"}, {"video_id": "run 7"}, {})
    items, give = items_of({"train": source}), Pseudonyms(KEY)
    names = writing.named(items, KEY)
    video = give("video", "run 7")
    assert [own["sample_id"] for own in names] == [
        f"{video}_f00000",
        f"{video}_f00001",
        f"{give('video', 'DOE^JOHN/run.png')}_f00002",
    ]
    assert names[0] == {"sample_id": f"{video}_f00000", "video_id": video, "patient_id": give("patient", "DOE^JOHN")}


def test_rows_find_their_source_by_a_table(tmp_path):
    items = items_of({"train": framed(tmp_path, {"video_id": "v", "patient_id": "DOE^JOHN"}, {"video_id": "v"})})
    write_names(tmp_path / "names.csv", names_table(items, KEY))
    rows = list(csv.DictReader((tmp_path / "names.csv").open(encoding="utf-8")))
    assert [row["sample_id"] for row in rows] == [own["sample_id"] for own in writing.named(items, KEY)]
    assert rows[0]["patient_id_at_source"] == "DOE^JOHN" and rows[0]["image"] == str(tmp_path / "run.png")
    assert (tmp_path / "names.csv").stat().st_mode & 0o777 == 0o600


def test_a_table_has_names_of_files_as_they_are(tmp_path):
    picture = tmp_path / os.fsdecode(b"M\xfcller, J.png")
    shown(1).save(picture)
    items = items_of({"train": Source(tmp_path, [Entry(picture.name, picture, facts={"patient_id": "\ud800x"})])})
    table = tmp_path / "names.csv"
    write_names(table, names_table(items, KEY))
    (row,) = csv.DictReader(table.open(encoding="utf-8", errors="surrogateescape", newline=""))
    assert Path(row["image"]).read_bytes() == picture.read_bytes() and picture.name in row["image"]
    (own,) = writing.named(items, None)
    assert own == {"sample_id": "M\\xfcller, J", "patient_id": "\\xed\\xa0\\x80x"}


def look_of(source, plan):
    items = items_of({"train": source})
    return items, look_at(items, [source], plan.reading, Workers(1))[0], ["train"], source.place, plan


def square(size):
    mask = np.zeros(size[::-1], dtype=bool)
    mask[:4, :4] = True
    return mask


@pytest.mark.parametrize("facts", [{}, {"burned_in_text": "John Doe"}])
def test_a_name_of_the_source_in_words_is_refused(tmp_path, facts):
    picture = tmp_path / "a.png"
    shown(1).save(picture)
    label = "vessel" if facts else "artery of John"
    entry = Entry("DOE^JOHN_1950/IM1.png", picture, (AnnotatedObject(label, square),), facts=facts)
    source = Source(tmp_path, [entry], (label,))
    with pytest.raises(DatasetError, match="names of the source would be written") as error:
        refuse_names(*look_of(source, Plan(key=KEY)))
    assert "holds 'john'" in error.value.problems[0].reason
    refuse_names(*look_of(source, Plan(key=KEY, harmless_names=("John",))))
    if not facts:  # what the user says is the user's
        refuse_names(*look_of(source, Plan(Reading(classes={label: "John's artery"}), KEY)))
        refuse_names(*look_of(source, Plan(Reading(phrase="artery of john"), KEY)))
        refuse_names(*look_of(source, Plan(Reading(classes=[label]), KEY)))


@pytest.mark.parametrize("label", ["Vessel DOE^JOHN", "Vessel of John Doe", "Vessel of 123456"])
def test_a_name_that_a_dicom_file_states_is_looked_for(tmp_path, label):
    (tmp_path / "images").mkdir()
    write_run(tmp_path / "images" / "run", frames=2, PatientID="123456", PatientName="DOE^JOHN")
    found = Found(label, square(SIZE))
    write_dicom_seg(tmp_path, [Annotated("images/run", SIZE, (found,), frame) for frame in range(2)])
    sources = find_sources(tmp_path, Reading())
    items = items_of(sources)
    looks = look_at(items, list(sources.values()), Reading(), Workers(1))[0]
    with pytest.raises(DatasetError, match="names of the source would be written"):
        refuse_names(items, looks, ["train"], tmp_path, Plan(key=KEY))
    assert {"doe^john", "john", "123456"} <= source_names(items, tmp_path, Plan(key=KEY))


def test_a_name_in_the_bytes_of_a_picture_is_refused(tmp_path, monkeypatch):
    source = write_runs(tmp_path / "DOE^JOHN_1950", patients=1, names=("image", "mask"))
    (source / "image" / "P00_f0.jpg").rename(source / "image" / "SMITHSON_ANNA.jpg")
    (source / "mask" / "P00_f0.png").rename(source / "mask" / "SMITHSON_ANNA.png")
    prepare(source, tmp_path / "clean")
    clean = writing.clean_picture
    monkeypatch.setattr(writing, "clean_picture", lambda stored: clean(stored) + "Smithson_Anna".encode("utf-16"))
    with pytest.raises(DatasetError, match="SMITHSON_ANNA.jpg: holds 'smithson_anna', a name of the source"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    source = write_runs(tmp_path / "source", patients=1)

    def rows(*given, own=writing._rows):
        shown(77).save(source / "image" / "P00_f0.jpg")
        return own(*given)

    monkeypatch.setattr(writing, "_rows", rows)
    with pytest.raises(DatasetError, match="P00_f0.jpg: has changed since it was looked at"):
        prepare(source, tmp_path / "out")


def test_files_hold_a_bounded_number_of_rows_and_pixels(monkeypatch):
    monkeypatch.setattr(writing, "_PIXELS", 100)
    looks = [writing.Look(None, size) for size in ((10, 5), (10, 5), (10, 5), (30, 30), (1, 1))]
    assert writing._parts(range(5), looks) == [[0, 1], [2], [3], [4]]
    monkeypatch.setattr(writing, "_ROWS", 1)
    assert writing._parts(range(5), looks) == [[0], [1], [2], [3], [4]]
