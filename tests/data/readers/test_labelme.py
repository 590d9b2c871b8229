import base64
import json
import pickle

import numpy as np
import PIL.Image
import pytest
from annotated_folders import HEIGHT, SQUARE, WIDTH, write_image
from annotation_formats import OTHER, OTHER_MASK, SQUARE_MASK, labelme, pairs, png, read, same, write
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.readers.entries import Reading, objects_of, rows_of
from sa2va_trl.data.readers.labelme import find_labelme, is_labelme
from sa2va_trl.errors import DatasetError


NONE = np.zeros((HEIGHT, WIDTH), dtype=bool)
BYTES = base64.b64decode(png(np.full((HEIGHT, WIDTH), 7, dtype=np.uint8)))


def shape(kind, points, label="vessel", **changes):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **changes}


def faults(folder):
    with pytest.raises(DatasetError) as caught:
        read(find_labelme, folder)
    return str(caught.value)


def test_a_data_set(tmp_path, caplog):
    point = shape("point", [[1, 1]])
    write(tmp_path, "a.json", labelme(("vessel", SQUARE), ("catheter", OTHER), point), images=("a.png", "e.png"))
    write(tmp_path, "b.json", labelme(name="b.png"), images=("b.png",))
    write(tmp_path, "c.json", labelme(point, name="c.png"), images=("c.png",))
    (tmp_path / "notes.json").write_text("{}")
    assert is_labelme(tmp_path)
    found = read(find_labelme, tmp_path)["train"]
    assert [*found] == ["a", "b"]
    assert same(found["a"], {"vessel": SQUARE_MASK, "catheter": OTHER_MASK})
    assert same(found["b"], {"vessel": NONE, "catheter": NONE})
    for text in ("2 x point", "no shape has a mask: c.json", "without LabelMe's shapes: notes.json", "e.png"):
        assert text in caplog.text


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (shape("rectangle", [[6, 4], [2, 1]]), SQUARE_MASK),
        (shape("oriented_rectangle", pairs(SQUARE)), SQUARE_MASK),
        ({"label": "vessel", "points": pairs(SQUARE)}, SQUARE_MASK),
        (shape("mask", [[7, 4], [10, 6]], mask=png(np.ones((3, 4), dtype=np.uint8))), OTHER_MASK),
        (shape("mask", [[7.0, 4.0], [10.0, 6.0]], mask=png(np.full((3, 4), 255, dtype=np.uint8))), OTHER_MASK),
        (shape("mask", [[7, 4], [10, 6]], mask=png(np.ones((3, 4), dtype=bool))), OTHER_MASK),
    ],
    ids=["rectangle", "oriented", "no type", "mask of 1", "mask of 255", "mask of bits"],
)
def test_shapes(tmp_path, own, expected):
    write(tmp_path, "a.json", labelme(own))
    assert same(read(find_labelme, tmp_path)["train"]["a"], {"vessel": expected})


def test_a_circle(tmp_path):
    write(tmp_path, "a.json", labelme(shape("circle", [[6, 4], [6, 6.5]])))
    found = read(find_labelme, tmp_path)["train"]["a"]["vessel"]
    rows, columns = np.indices(found.shape)
    assert (found == ((columns + 0.5 - 6) ** 2 + (rows + 0.5 - 4) ** 2 <= 2.5**2)).all() and found.sum() == 16


@settings(max_examples=15, deadline=None)
@given(mask=arrays(bool, (3, 4)))
def test_masks(tmp_path_factory, mask):
    folder = tmp_path_factory.mktemp("labelme")
    write(folder, "a.json", labelme(shape("mask", [[7, 4], [10, 6]], mask=png(mask.astype(np.uint8)))))
    expected = NONE.copy()
    expected[4:7, 7:11] = mask
    assert same(read(find_labelme, folder)["train"]["a"], {"vessel": expected})


def test_parts_of_a_group_are_one_object(tmp_path):
    shapes = [
        shape("polygon", pairs(SQUARE), group_id=1),
        shape("rectangle", [[7, 4], [11, 7]], group_id=1),
        shape("polygon", pairs(OTHER), label="catheter", group_id=1),
        shape("polygon", pairs(OTHER)),
        shape("polygon", pairs(SQUARE)),
    ]
    write(tmp_path, "a.json", labelme(*shapes))
    entry = pickle.loads(pickle.dumps(find_labelme(tmp_path, Reading())["train"].entries[0]))
    row = objects_of(entry, (), Reading(instances="separate"), (WIDTH, HEIGHT))
    assert row["phrases"] == ["vessel", "catheter", "vessel", "vessel"]
    assert (row["masks"][0] == SQUARE_MASK | OTHER_MASK).all()


@pytest.mark.parametrize(
    ("file", "name", "image"),
    [
        ("json/a.json", "..\\images\\a.png", "images/a.png"),
        ("json/a.json", "../images/a.png", "images/a.png"),
        ("a.json", "C:\\Users\\me\\a.png", "a.png"),
        ("json/a.json", "/home/me/a.png", "json/a.png"),
        ("a.json", "images/a.png", "a.png"),
    ],
)
def test_where_the_image_is(tmp_path, file, name, image):
    write(tmp_path, file, labelme(("vessel", SQUARE), name=name), images=(image,))
    source = find_labelme(tmp_path, Reading())["train"]
    assert [entry.image.relative_to(tmp_path.resolve()).as_posix() for entry in source.entries] == [image]
    assert len(load_dataset_dict(tmp_path)["train"]) == 1


def test_a_picture_within_the_file(tmp_path):
    data = labelme(("vessel", SQUARE), name="../none.png", imageData=base64.b64encode(BYTES).decode())
    write(tmp_path, "a.json", data, images=())
    source = pickle.loads(pickle.dumps(find_labelme(tmp_path, Reading())["train"]))
    row = rows_of(source, Reading())[0]
    assert row["image"].size == (WIDTH, HEIGHT) and np.asarray(row["image"]).max() == 7
    assert row["sample_id"] == "none" and ((np.asarray(row["masks"][0]) > 0) == SQUARE_MASK).all()
    write_image(tmp_path / "none.png", value=90)
    assert np.asarray(load_dataset_dict(tmp_path)["train"][0]["image"]).max() == 90, "the file comes first"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("x" * 10, "no base64"),
        ("!!!!", "no base64"),
        (7, "must be a picture in base64"),
        (base64.b64encode(b"text").decode(), "not an image format"),
        (base64.b64encode(BYTES[:40]).decode(), "image is unreadable"),
        (png(np.zeros((4, 4), dtype=np.uint8)), "is 4 x 4 (width x height), its annotations are made for 12 x 8"),
    ],
)
def test_pictures_within_the_file_that_cannot_be_used(tmp_path, data, reason):
    write(tmp_path, "a.json", labelme(("vessel", SQUARE), name="none.png", imageData=data), images=())
    assert reason in faults(tmp_path)


def test_a_picture_within_the_file_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("sa2va_trl.data.readers.labelme._LONGEST", 100)
    write(tmp_path, "a.json", labelme(name="none.png", imageData="A" * 101), images=())
    assert "has 101 characters, the limit is 100" in faults(tmp_path)


def test_folders_are_splits(tmp_path):
    for split, label in (("train", "vessel"), ("val", "catheter")):
        write(tmp_path / split, "a.json", labelme((label, SQUARE)))
        write(tmp_path / split, "b.json", labelme(name="b.png"), images=("b.png",))
    found = read(find_labelme, tmp_path)
    assert [*found] == ["train", "validation"]
    for split in found:
        assert same(found[split]["b"], {"vessel": NONE, "catheter": NONE}), "classes of all splits"


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (shape("polygon", [[1, 1], [2, 2]]), "shape 1: polygon 0 has 2 point"),
        (shape("polygon", [[1, 1], [2]]), "must be a list of [x, y]"),
        (shape("polygon", [[1, 1], [2, "3"], [4, 4]]), "'3', which is not a number"),
        (shape("polygon", [[1, 1], [2, 30], [4, 4]]), "leaves the image: y from 1 to 30"),
        (shape("circle", [[1, 1]]), "a circle has two points"),
        (shape("circle", [[1, 1], [10**400, 1]]), "not finite"),
        (shape("circle", [[-5, 1], [1, 1]]), "leaves the image of 12 x 8"),
        (shape("ellipse", [[1, 1], [2, 2]]), "has the shape_type 'ellipse', which is not known"),
        (shape("rectangle", [[1, 1], [2, 2], [3, 3]]), "a rectangle has two points"),
        (shape("polygon", pairs(SQUARE), group_id="a"), "`group_id` must be"),
        (shape("polygon", pairs(SQUARE), label=" "), "`label` must be a text"),
        (shape("mask", [[1, 1], [2, 2]]), "`mask` must be a picture in base64"),
        (shape("mask", [[1, 1], [2, 2]], mask="????"), "`mask` is no base64"),
        (shape("mask", [[1, 1], [2, 2]], mask=png(np.ones((3, 3), dtype=np.uint8))), "mask is too large: 3 x 3"),
        (shape("mask", [[1, 1], [2, 2]], mask=png(np.ones((1, 2), dtype=np.uint8))), "mask is 2 x 1"),
        (shape("mask", [[1, 1], [1, 2]], mask=png(np.array([[3], [9]], dtype=np.uint8))), "mask is not binary"),
        (shape("mask", [[1, 1], [30, 2]], mask=png(np.ones((2, 30), dtype=np.uint8))), "leaves the image of 12 x 8"),
    ],
)
def test_shapes_that_cannot_be_used(tmp_path, own, reason):
    write(tmp_path, "a.json", labelme(("vessel", SQUARE), own))
    found = faults(tmp_path)
    assert reason in found and "a." in found


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (labelme(name="none.png"), "a.json: image: file is missing"),
        (labelme(name=""), "`imagePath` must be a text"),
        (labelme(name=3), "`imagePath` must be a text"),
        (labelme(name="../a.png"), "leaves the dataset folder"),
        (labelme(imageWidth=24), "annotations are made for 24 x 8"),
        (labelme(imageWidth="a"), "must be whole numbers"),
        ({**labelme(), "shapes": {}}, "`shapes` must be a list"),
        ('{"shapes": [', "invalid JSON"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, data, reason):
    folder = tmp_path / "set"
    write(folder, "b.json", labelme(name="b.png"), images=("b.png",))
    write(folder, "a.json", data, images=() if reason.startswith("leaves") else ("a.png",))
    assert reason in faults(folder)


def test_two_files_of_one_image(tmp_path):
    write(tmp_path, "a.json", labelme(("vessel", SQUARE)))
    write(tmp_path, "b.json", labelme(("vessel", OTHER)))
    assert "is the same file as 'a.png', which is listed before it" in faults(tmp_path)


def test_a_turned_photograph(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.json").write_text(json.dumps(labelme(("vessel", SQUARE), name="a.jpg")))
    assert same(read(find_labelme, tmp_path)["train"]["a"], {"vessel": SQUARE_MASK})
