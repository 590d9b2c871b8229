import numpy as np
import PIL.Image
import pytest
from annotated_folders import SQUARE, entry, write_image, write_json, write_metadata, write_pairs
from prepared import pixels, shown, write_runs

from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.preparing import items_of, look_at
from sa2va_trl.data.readers.entries import AnnotatedObject, Entry, Reading, Source
from sa2va_trl.data.workers import Workers
from sa2va_trl.data.writing import named
from sa2va_trl.errors import BadRow, DatasetError


def looked(folder, reading=None, form="auto"):
    reading = reading or Reading()
    sources = find_sources(folder, reading, form)
    items = items_of(sources)
    return items, *look_at(items, list(sources.values()), reading, Workers(1))


def test_every_picture_and_mask_is_looked_at_once(tmp_path):
    items, looks, thumbnails = looked(write_runs(tmp_path, patients=2, frames=2))
    assert [item.entry.name for item in items] == [
        f"P0{patient}_f{frame}.{'jpg' if frame == 0 else 'png'}" for patient in range(2) for frame in range(2)
    ]
    assert [look.size for look in looks] == [(40, 32)] * 4 and {look.phrases for look in looks} == {("blood vessel",)}
    assert looks[0].area == pytest.approx(4 * 9 / (40 * 32)) and looks[3].area == pytest.approx(5 * 10 / (40 * 32))
    assert len({look.digest for look in looks}) == len({look.masks_digest for look in looks}) == 4
    assert thumbnails.shape == (4, 1024) and np.allclose(np.linalg.norm(thumbnails, axis=1), 1, atol=1e-5)
    assert all(look.problem is None and look.thumbnail is None and look.objects == 1 for look in looks)


def test_all_that_cannot_be_used_is_reported_together(tmp_path):
    folder = write_runs(tmp_path, patients=1, frames=3)
    sources = find_sources(folder, Reading(), "auto")
    PIL.Image.fromarray(np.full((32, 40), 70_000, dtype=np.int32)).save(folder / "image" / "P00_f2.png", "TIFF")
    whole = (folder / "image" / "P00_f0.jpg").read_bytes()
    (folder / "image" / "P00_f0.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="2 of 3 images cannot be used") as error:
        look_at(items_of(sources), list(sources.values()), Reading(), Workers(1))
    first, second = error.value.problems
    assert (first.file, second.file) == ("P00_f0.jpg", "P00_f2.png")
    assert "Truncated" in first.reason and "more than 8 bits" in second.reason


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    folder = write_runs(tmp_path, patients=1, frames=2)
    with pytest.raises(DatasetError, match="too large: 40 x 32 pixels"):
        looked(folder, Reading(max_pixels=1000))


def test_problems_of_all_sources_come_before_anything_is_decoded():
    bad = (
        Source("a", [], problems=[BadRow(0, None, "x", "no")]),
        Source("b", [], problems=[BadRow(1, None, "y", "no")]),
    )
    with pytest.raises(DatasetError, match="2 of 2 images or annotations cannot be used") as error:
        items_of({"train": bad[0], "test": bad[1]})
    assert [problem.file for problem in error.value.problems] == ["x", "y"]
    with pytest.raises(DatasetError, match="holds no images"):
        items_of({"train": Source("a", [])})


def empty(size):
    return np.zeros(size[::-1], dtype=bool)


def test_an_image_without_an_object_is_one_without_each_class(tmp_path):
    picture = tmp_path / "a.png"
    shown(1).save(picture)
    source = Source(
        tmp_path, [Entry("a.png", picture), Entry("a.png", picture, (AnnotatedObject("x", empty),))], ("x", "y")
    )
    looks, _ = look_at(items_of({"train": source}), [source], Reading(), Workers(1))
    assert [(look.phrases, look.objects, look.area) for look in looks] == [(("x", "y"), 0, 0), (("x",), 0, 0)]


def test_a_picture_that_is_to_be_annotated_has_no_masks(tmp_path):
    picture = tmp_path / "a.png"
    shown(1).save(picture)
    entries = [Entry("a.png", picture), Entry("b.png", picture, (AnnotatedObject("x", empty),))]
    source = Source(tmp_path, entries, ("x", "y"), annotated=False)
    looks, _ = look_at(items_of({"train": source}), [source], Reading(), Workers(1))
    assert [(look.phrases, look.objects, look.area) for look in looks] == [((), 0, 0), (("x",), 0, 0)]


def folders(root):
    """A folder in each format that brings rows, some of them with splits."""
    yield "mask_folder", write_runs(root / "pairs")
    yield "mask_folder", write_pairs(root / "split" / "train", "a", "b").parent
    write_pairs(root / "split" / "test", "a", "c")
    two = entry("b.png", mask=[[SQUARE], [[0, 0, 3, 0, 3, 3]]], text=["left vessel", "stenosis"])
    yield "sa2va_json", write_json(root / "json", entry(), two)
    rows = [
        {
            "file_name": f"{name}.png",
            "mask_file_name": f"../masks/{name}.png",
            "phrase": "catheter",
            "patient_id": "P1",
        }
        for name in "ab"
    ]
    write_pairs(root / "metadata", "a", "b", names=("images", "masks"))
    write_metadata(root / "metadata" / "images", *rows)
    yield "image_metadata", root / "metadata"


def test_entries_say_what_the_readers_read(tmp_path):
    seen = set()
    for form, folder in folders(tmp_path):
        seen.add(form)
        read = load_dataset_dict(folder)
        items, looks, _ = looked(folder, form="auto" if form == "image_metadata" else form)
        names = named(items, None)
        rows = [row for split in read.values() for row in split]
        assert [own["sample_id"] for own in names] == [row["sample_id"] for row in rows], form
        assert [list(look.phrases) for look in looks] == [row["phrases"] for row in rows]
        assert [look.size for look in looks] == [row["image"].size for row in rows]
        areas = [np.any([np.asarray(mask) > 0 for mask in row["masks"]], axis=0).mean() for row in rows]
        assert [look.area for look in looks] == areas
        assert {own.get("patient_id") for own in names} == {row.get("patient_id") for row in rows}
        assert pixels(rows[0])
    assert seen == {"mask_folder", "sa2va_json", "image_metadata"}


def test_what_a_row_lacks_is_said_of_each(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    rows = [
        {"file_name": "a.png", "masks_file_names": ["a.png"], "phrases": phrases} for phrases in (["x", "y"], None)
    ]
    write_metadata(tmp_path / "images", *rows)
    with pytest.raises(DatasetError, match="2 images or annotations") as error:
        looked(tmp_path)
    assert [problem.reason.partition(":")[0] for problem in error.value.problems] == [
        "has 1 masks and 2 phrases",
        "has 1 masks and 0 phrases",
    ]
