import pickle
from pathlib import Path

import numpy as np
import pytest
from annotated_folders import HEIGHT, SQUARE, WIDTH, write_image
from annotation_formats import OTHER, OTHER_MASK, SIZE, SQUARE_MASK, read, same

from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.masks import polygons_to_mask
from sa2va_trl.data.readers.entries import Reading, objects_of
from sa2va_trl.data.readers.yolo import draw_ring, find_yolo, is_yolo
from sa2va_trl.errors import DatasetError


NONE = np.zeros((HEIGHT, WIDTH), dtype=bool)
DATA = "path: .\ntrain: images/train\nnames:\n  0: vessel\n  1: catheter\n"


def line(key, polygon):
    shares = np.reshape(polygon, (-1, 2)) / SIZE
    return f"{key} " + " ".join(f"{value:.6f}" for value in shares.ravel()) + "\n"


def write_yolo(folder, labels, data=DATA, place="{}/train"):
    """`data.yaml`, and an image for each label file; none is written where it is `None`."""
    folder.mkdir(parents=True, exist_ok=True)
    if data is not None:
        (folder / "data.yaml").write_text(data)
    for name, text in labels.items():
        write_image(folder / place.format("images") / f"{name}.png")
        file = folder / place.format("labels") / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            file.write_text(text)
    return folder


def faults(folder):
    with pytest.raises(DatasetError) as caught:
        read(find_yolo, folder)
    return str(caught.value)


def test_a_data_set(tmp_path):
    labels = {"a": line(0, SQUARE) + "\n" + line(1, OTHER) + line("1.0", SQUARE), "b": "", "c": None}
    write_yolo(tmp_path, labels)
    assert is_yolo(tmp_path) and not is_yolo(tmp_path / "images")
    found = read(find_yolo, tmp_path)["train"]
    assert same(found["a"], {"vessel": SQUARE_MASK, "catheter": SQUARE_MASK | OTHER_MASK})
    for name in "bc":
        assert same(found[name], {"vessel": NONE, "catheter": NONE})
    entry = pickle.loads(pickle.dumps(find_yolo(tmp_path, Reading())["train"].entries[0]))
    masks = objects_of(entry, (), Reading(instances="separate"), SIZE)["masks"]
    assert [mask.sum() for mask in masks] == [12, 12, 12]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['vessel', 'catheter']\n", "{split}/{kind}"),
        ("path: ../set\ntrain: images/train\nval: images/valid\nnames: [vessel, catheter]\n", "{kind}/{split}"),
        ("path: set\ntrain: [images/train]\nval: images\\valid\nnames: {0: vessel, 1: catheter}\n", "{kind}/{split}"),
        ("train: train.txt\nval: valid.txt\nnames: [vessel, catheter]\n", "{kind}/{split}"),
        ("train: pictures/train\nval: pictures/valid\nnames: [vessel, catheter]\n", "pictures/{split}"),
    ],
)
def test_where_images_lie(tmp_path, data, place):
    folder = tmp_path / "set"
    for split, polygon in (("train", SQUARE), ("valid", OTHER)):
        own = place.replace("{split}", split)
        write_yolo(folder, {"a": line(0, polygon)}, data, own.replace("{kind}", "{}"))
        (folder / f"{split}.txt").write_text(f"./images/{split}/a.png\n\n")
    found = load_dataset_dict(folder)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "validation": 1}
    masks = {split: np.asarray(rows[0]["masks"][0]) > 0 for split, rows in found.items()}
    assert same(masks, {"train": SQUARE_MASK, "validation": OTHER_MASK})


def test_classes_in_a_text_file(tmp_path):
    write_yolo(tmp_path, {"a": line(1, SQUARE)}, data=None, place="{}")
    assert not is_yolo(tmp_path)
    (tmp_path / "classes.txt").write_text("vessel\ncatheter\n")
    assert is_yolo(tmp_path)
    assert same(read(find_yolo, tmp_path)["train"]["a"], {"catheter": SQUARE_MASK})


A, B, C = [1, 1, 3, 1, 3, 3, 1, 3], [5, 1, 7, 1, 7, 3, 5, 3], [9, 1, 11, 1, 11, 5, 9, 5]
# merge_multi_segment of Ultralytics 8.4 of A, B and C, in one row
JOINED = [3, 1, 3, 3, 1, 3, 1, 1, 3, 1, 5, 1, 7, 1, 9, 1, 11, 1, 11, 5, 9, 5, 9, 1, 7, 1, 7, 3, 5, 3, 5, 1]
SQUARES = [2, 1, 6, 1, 6, 4, 2, 4, 2, 1, 4, 2, 9, 2, 9, 6, 4, 6, 4, 2]  # two that overlap, each closed


@pytest.mark.parametrize(
    ("ring", "parts"),
    [
        (JOINED, [A, B, C]),
        (SQUARES, [SQUARE, [4, 2, 9, 2, 9, 6, 4, 6]]),
        ([*SQUARE, *SQUARE[:2]], [SQUARE]),  # closed
        ([2, 1, 6, 1, 6, 4, 6, 4, 2, 4], [SQUARE]),  # a point twice
        ([0, 0, 4, 0, 4, 4, 8, 4, 8, 8, 4, 8, 4, 4, 0, 4], [[0, 0, 4, 0, 4, 4, 0, 4], [4, 4, 8, 4, 8, 8, 4, 8]]),
    ],
    ids=["three", "overlapping", "closed", "doubled", "corner"],
)
def test_rings_that_are_several_parts(tmp_path, ring, parts):
    expected = polygons_to_mask(parts, SIZE)
    assert expected.any() and (draw_ring(np.reshape(ring, (-1, 2)) / SIZE, SIZE) == expected).all()
    write_yolo(tmp_path, {"a": line(0, ring)})
    assert same(read(find_yolo, tmp_path)["train"]["a"], {"vessel": expected})


def test_a_ring_round_a_hole_keeps_it():
    outer, hole = [1, 0, 11, 0, 11, 8, 1, 8, 1, 0], [3, 2, 3, 5, 8, 5, 8, 2, 3, 2]  # one this way, one the other
    expected = polygons_to_mask([outer], SIZE) & ~polygons_to_mask([hole], SIZE)
    assert (draw_ring(np.reshape([*outer, *hole], (-1, 2)) / SIZE, SIZE) == expected).all()


def test_what_reaches_over_the_edge_is_cut_off(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 -0.05 1.05 -0.05 1.05 0.5 0.5 0.5\n"})
    found = read(find_yolo, tmp_path)["train"]["a"]["vessel"]
    assert found[:4, 6:].all() and found.sum() == 24


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 0.5 0.5 0.2 0.2", "is a box (class, x, y, width, height), not a polygon: export segmentation labels"),
        ("0 0.1 0.1 0.2 0.1 0.2", "has 5 coordinates"),
        ("0", "has 0 coordinates"),
        ("2 0.1 0.1 0.2 0.1 0.2 0.2", "no class 2; it has 0 to 1"),
        ("0.5 0.1 0.1 0.2 0.1 0.2 0.2", "no class 0.5"),
        ("vessel 0.1 0.1 0.2 0.1 0.2 0.2", "not a number"),
        ("0 0.1 0.1 nan 0.1 0.2 0.2", "not finite"),
        ("0 1 1 6 1 6 4", "must be shares of the image"),
        ("0 -0.2 0.1 0.2 0.1 0.2 0.2", "must be shares of the image"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, text, reason):
    write_yolo(tmp_path, {"a": line(0, SQUARE) + text, "b": text})
    found = faults(tmp_path)
    assert found.count(reason) == 2 and "labels/train/a.txt: line 2: " in found and "b.txt: line 1: " in found


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("train: images/none\nnames: [a]\n", "`train: images/none` is no folder"),
        ("train: ../../images\nnames: [a]\n", None),
        ("train: /etc\nnames: [a]\n", "`train: /etc` is no folder"),
        ("train: 3\nnames: [a]\n", "`train` must be a text"),
        ("nc: 1\nnames: [a]\n", "names no images"),
        ("train: images\nnames: 3\n", "`names` must be a list"),
        ("train: images\nnames: [no]\n", "the name of class 0 (in quotes)"),
        ("train: images\nnames: {a: b}\n", "`names`: 'a' is not the number of a class"),
        ("train: images\nnames: [a\n", "invalid YAML"),
        ("train: images\nnames: 2020-99-99\n", "invalid YAML"),
        ("train: images\nkpt_shape: [17, 3]\nnames: [a]\n", "has keypoints"),
        ("train: images\nnames: !!python/object/apply:os.system [ls]\n", "invalid YAML"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, data, reason):
    write_yolo(tmp_path, {"a": ""}, data)
    if reason is None:  # as Roboflow writes it
        assert len(read(find_yolo, tmp_path)["train"]) == 1
    else:
        assert f"data.yaml: {reason}" in faults(tmp_path)


def test_without_classes_there_are_no_objects(tmp_path):
    write_yolo(tmp_path, {"a": "", "b": line(0, SQUARE)}, "train: images/train\nnames: {}\n")
    assert "b.txt: line 1: data has no class 0; it has none" in faults(tmp_path)


def test_other_folders_are_not_read(tmp_path, monkeypatch):
    write_yolo(tmp_path / "set", {"a": ""}, "train: ../other\nnames: [a]\n")
    write_image(tmp_path / "other" / "b.png")
    monkeypatch.chdir(tmp_path / "set")
    for folder in (Path("."), tmp_path / "set"):
        assert "`train: ../other` is no folder" in faults(folder)


@pytest.mark.timeout(60)
def test_aliases_of_aliases_are_refused(tmp_path):
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 30))
    write_yolo(tmp_path, {"a": ""}, f"train: images\nl0: &l0 [x]\n{levels}names: *l29\n")
    assert "data.yaml: invalid YAML (it has aliases" in faults(tmp_path)


def test_two_images_of_one_label_file(tmp_path):
    write_yolo(tmp_path, {"a": line(0, SQUARE)})
    write_image(tmp_path / "images" / "train" / "a.bmp")
    assert faults(tmp_path).count("2 images have the labels labels/train/a.txt: keep one of them") == 2


def test_labels_without_an_image_are_named(tmp_path, caplog):
    write_yolo(tmp_path, {"a": line(0, SQUARE)})
    (tmp_path / "labels" / "train" / "b.txt").write_text("")
    write_image(tmp_path / "images" / "test" / "c.png")
    read(find_yolo, tmp_path)
    assert "labels without an image: labels/train/b.txt" in caplog.text
    assert "images that no annotation names: images/test/c.png" in caplog.text


def test_labels_that_are_no_text(tmp_path):
    write_yolo(tmp_path, {"a": ""})
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe0")
    assert "labels/train/a.txt: not UTF-8 text" in faults(tmp_path)


def test_labels_that_lie_elsewhere_make_no_negatives(tmp_path):
    write_yolo(tmp_path, {"1": line(0, SQUARE)})
    (tmp_path / "labels").rename(tmp_path / "label")
    assert "no image has a file of labels" in faults(tmp_path)
