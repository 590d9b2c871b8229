"""What is exported is read again: the same masks, by what finds out the format of a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.folder import WRITERS, Images
from sa2va_trl.data.loading import FORMATS, load_dataset_dict
from sa2va_trl.data.readers.entries import Reading, objects_of
from sa2va_trl.media.clips import Picture


HEIGHT, WIDTH = 12, 17
PICTURES = [format for format in WRITERS if format != "dicom_seg"]  # of any picture; that one is of DICOM files alone
LABELS = ("vessel", "Führungsdraht & <Katheter>")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A new folder for each example of hypothesis."""
    return lambda: tmp_path_factory.mktemp("export")


def export(folder, format, pictures):
    """`pictures`: (name, objects); the second is a frame of a clip."""
    images, kept = [], Images(folder, format)
    for number, (name, objects) in enumerate(pictures):
        image = Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0))
        file = folder.parent / f"{name}.png"
        image.save(file)
        where = (f"{name}_f00003", Path("clip.mp4"), 3) if number else (name, file, None)
        images.append(Annotated(kept.keep(Picture(*where, image)), image.size, tuple(objects)))
    WRITERS[format](folder, iter(images))
    return images


def accept(folder):
    """What Label Studio exports once an annotator has taken over the predictions."""
    tasks = json.loads((folder / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        (prediction,) = task.pop("predictions")
        task |= {"id": number, "annotations": [{"id": number, "result": prediction["result"]}]}
    (folder / "tasks.json").unlink()
    (folder / "project.json").write_text(json.dumps(tasks))


def entries(folder, format):
    if format == "label_studio":
        accept(folder)
    assert [name for name, own in FORMATS.items() if own.fits(folder)] == [format]
    source = FORMATS[format].find(folder, Reading())["train"]
    assert not source.problems
    return source


@pytest.mark.parametrize("format", PICTURES)
@given(arrays(bool, (3, HEIGHT, WIDTH), elements=st.booleans(), fill=st.booleans()))
@settings(max_examples=20, deadline=None)
def test_masks_come_back(place, format, masks):
    folder = place()
    objects = [Found(LABELS[number % 2], mask, 0.5) for number, mask in enumerate(masks)]
    images = export(folder, format, [("one", objects), ("two", objects[:0])])
    source = entries(folder, format)
    found = {Path(entry.image).name: entry for entry in source.entries}
    assert [*found] == [Path(image.image).name for image in images] == ["one.png", "two_f00003.png"]
    drawn = [(label, mask.tolist()) for label, mask, _ in objects if mask.any()]
    size = (WIDTH, HEIGHT)
    assert [(one.label, one.draw(size).tolist()) for one in found["one.png"].objects] == drawn
    assert found["two_f00003.png"].objects == ()


@pytest.mark.parametrize("format", PICTURES)
def test_a_folder_is_a_data_set(place, format):
    folder, mask = place(), np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:9, 3:12] = True
    mask[4:6, 5:8] = False
    export(folder, format, [("P1 (a) é", [Found("Vessel", mask, 0.25), Found("wire", ~mask)]), ("b", [])])
    source = entries(folder, format)
    assert source.labels == ("Vessel", "wire")
    rows = load_dataset_dict(str(folder))["train"]
    assert [np.array(drawn).astype(bool).tolist() for drawn in rows[0]["masks"]] == [mask.tolist(), (~mask).tolist()]
    assert rows[0]["phrases"] == rows[1]["phrases"] == ["vessel", "wire"]
    assert not np.any(rows[1]["masks"]) and [row["image"].getpixel((0, 0))[0] for row in rows] == [0, 1]


@pytest.mark.parametrize("format", ["coco", "cvat", "yolo"])
def test_an_object_that_is_nowhere_leaves_its_class(place, format):
    folder = place()
    export(folder, format, [("a", [Found("vessel", np.zeros((HEIGHT, WIDTH), dtype=bool))])])
    source = entries(folder, format)
    assert source.labels == ("vessel",) and source.entries[0].objects == ()


@pytest.mark.parametrize("format", PICTURES)
def test_an_export_without_any_object_is_of_images_without_objects(place, format):
    folder = place()
    export(folder, format, [("a", []), ("b", [])])
    source = entries(folder, format)
    assert source.labels == () and [entry.objects for entry in source.entries] == [(), ()]
    rows = load_dataset_dict(str(folder))["train"]
    assert len(rows) == 2 and not np.any(rows["masks"][:])


def test_one_pixel_in_the_corner_is_not_taken_for_shares(place):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[0, 0] = True
    for format in PICTURES:
        folder = place()
        export(folder, format, [("a", [Found("vessel", mask)])])
        (entry,) = entries(folder, format).entries
        assert np.array_equal(entry.objects[0].draw((WIDTH, HEIGHT)), mask)
        assert "vessel" in objects_of(entry, ("vessel",), Reading(), (WIDTH, HEIGHT))["phrases"]


@pytest.mark.parametrize("format", ["labelme", "yolo"])
def test_images_that_differ_in_their_suffixes_are_apart(place, format):
    folder, mask = place(), np.ones((HEIGHT, WIDTH), dtype=bool)
    files = [folder.parent / "a.png", folder.parent / "a.bmp"]
    images, kept = [], Images(folder, format)
    for number, file in enumerate(files):
        image = Image.new("RGB", (WIDTH, HEIGHT))
        image.save(file)
        name = kept.keep(Picture(file.name, file, None, image))
        images.append(Annotated(name, image.size, (Found("vessel", mask),) * number))
    WRITERS[format](folder, images)
    found = {entry.image.name: len(entry.objects) for entry in entries(folder, format).entries}
    assert found == {"a.png.png": 0, "a.bmp.bmp": 1}


def test_label_studio_shows_predictions(place):
    folder, mask = place(), np.ones((HEIGHT, WIDTH), dtype=bool)
    objects = [Found("vessel", mask, 0.25), Found("wire", mask, 0.75)]
    export(folder, "label_studio", [("a b", objects), ("c", [])])
    first, second = json.loads((folder / "tasks.json").read_text())
    assert first["data"] == {"image": "/data/local-files/?d=images/a%20b.png"}
    (prediction,) = first["predictions"]
    assert prediction["score"] == 0.5 and [one["score"] for one in prediction["result"]] == [0.25, 0.75]
    assert second["predictions"] == [{"model_version": "sa2va_trl", "result": []}]
    assert '<Label value="wire" />' in (folder / "labels.xml").read_text()
