import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from annotated_folders import SQUARE, entry, write_image, write_json, write_metadata, write_pairs
from prepared import pixels, shown, write_runs

from sa2va_trl.data import preparing
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.preparing import items_of, look_at, with_burned_in
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


def clip(folder, video, frames, text=None, **facts):
    """Entries of the frames of a clip, with a text that stands still."""
    entries = []
    for number in range(frames):
        picture = shown(100 * len(video) + number, (160, 120)).point(lambda value: value * 2 // 3)
        if text:
            font = PIL.ImageFont.load_default(12)
            PIL.ImageDraw.Draw(picture).text((10, 90), text, fill=255, font=font)
        file = folder / f"{video}_{number}.png"
        picture.save(file)
        entries.append(Entry(file.name, file, facts={"video_id": video, **facts}))
    return entries


@pytest.mark.parametrize("batch", [3, 50])
def test_text_that_stands_still_over_a_clip_is_suspected(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(preparing, "_BATCH", batch)
    clips = {
        "plain": clip(tmp_path, "plain", 11),
        "written": clip(tmp_path, "written", 11, "ROE^JANE 1950"),
        "short": clip(tmp_path, "short", 1, "ROE^JANE 1950"),
        "said": clip(tmp_path, "said", 2, "ROE^JANE 1950", burned_in_text="no"),
        "unsaid": clip(tmp_path, "unsaid", 3, "ROE^JANE 1950", burned_in_text="unknown"),
        "yes": clip(tmp_path, "yes", 2, burned_in_text="yes"),
    }
    entries = [entry for own in clips.values() for entry in own]
    entries = [*entries[::2], *entries[1::2], Entry("still.png", entries[0].image)]  # clips by turns
    source = Source(tmp_path, entries, ("vessel",))
    items = items_of({"train": source})
    looks, _ = look_at(items, [source], Reading(), Workers(1))
    found = {}
    for item in with_burned_in(items, looks):
        found.setdefault(item.entry.facts.get("video_id"), set()).add(item.entry.facts["burned_in_text"])
    assert found == {
        "plain": {"unknown"},
        "written": {"suspected"},
        "short": {"unknown"},
        "said": {"no"},
        "unsaid": {"suspected"},
        "yes": {"yes"},
        None: {"unknown"},
    }
    alone = [item for item in items if not item.entry.facts]
    assert with_burned_in(alone, looks[-1:]) == alone


def test_few_frames_of_a_clip_are_searched_for_text(tmp_path, monkeypatch):
    source = Source(tmp_path, clip(tmp_path, "long", 40), ("vessel",))
    searched, extent = [], preparing.extent_of
    monkeypatch.setattr(preparing, "extent_of", lambda image: searched.append(image) or extent(image))
    look_at(items_of({"train": source}), [source], Reading(), Workers(1))
    assert len(searched) == 8
