import pickle

import numpy as np
import pytest
from annotated_folders import HEIGHT, SQUARE, WIDTH
from annotation_formats import OTHER, OTHER_MASK, SQUARE_MASK, read, region, same, task, write
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.readers.entries import Reading, objects_of
from sa2va_trl.data.readers.label_studio import find_label_studio, is_label_studio
from sa2va_trl.data.readers.sa2va_json import is_sa2va_json
from sa2va_trl.errors import DatasetError


NONE = np.zeros((HEIGHT, WIDTH), dtype=bool)
BOX = {"id": "x", "type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 5, "height": 5, "rotation": 20}}
CHOICE = {"id": "y", "type": "choices", "value": {"choices": ["good"]}}


def faults(folder):
    with pytest.raises(DatasetError) as caught:
        read(find_label_studio, folder)
    return str(caught.value)


def changed(key, value, of="value", own=None):
    """A region of which one thing is changed."""
    own = region("vessel", SQUARE) if own is None else own
    return {**own, of: {**own["value"], key: value}} if of else {**own, key: value}


def test_a_data_set(tmp_path, caplog):
    second = {"id": 2, "result": [region("vessel", OTHER)], "was_cancelled": False}
    several = task(
        region("vessel", SQUARE), region("catheter", mask=OTHER_MASK), BOX, CHOICE, predictions=[{"result": []}]
    )
    several["annotations"].append(second)
    cancelled = task(region("vessel", SQUARE), image="b.png", number=2)
    cancelled["annotations"][0]["was_cancelled"] = True
    cancelled["annotations"].append(second)
    tasks = [
        several,
        cancelled,
        task(image="c.png", number=3),
        {"id": 4, "annotations": [], "data": {"image": "d.png"}},
        task(BOX, image="e.png", number=5),
    ]
    write(tmp_path, "annotations.json", tasks, images=[f"{name}.png" for name in "abcde"])
    assert is_label_studio(tmp_path) and not is_sa2va_json(tmp_path)
    found = read(find_label_studio, tmp_path)["train"]
    assert [*found] == ["a", "b", "c"]
    assert same(found["a"], {"vessel": SQUARE_MASK, "catheter": OTHER_MASK})
    assert same(found["b"], {"vessel": OTHER_MASK})
    assert same(found["c"], {"vessel": NONE, "catheter": NONE})
    for text in (
        "1 tasks have several annotations, of which the first is read",
        "the predictions of 1 tasks are not read",
        "tasks without an annotation: 4",
        "2 x rectanglelabels",
        "no region has a mask: e.png",
    ):
        assert text in caplog.text
    assert "choices" not in caplog.text
    assert len(load_dataset_dict(tmp_path)["train"]) == 3


@settings(max_examples=15, deadline=None)
@given(mask=arrays(bool, (HEIGHT, WIDTH)))
def test_brushes(tmp_path_factory, mask):
    folder = tmp_path_factory.mktemp("label_studio")
    write(folder, "export.json", [task(region("vessel", mask=mask))])
    assert same(read(find_label_studio, folder)["train"]["a"], {"vessel": mask})


def test_regions_are_objects_and_go_to_other_processes(tmp_path):
    write(tmp_path, "export.json", [task(region("vessel", SQUARE), region("vessel", mask=OTHER_MASK))])
    entry = pickle.loads(pickle.dumps(find_label_studio(tmp_path, Reading())["train"].entries[0]))
    row = objects_of(entry, (), Reading(instances="separate"), (WIDTH, HEIGHT))
    assert row["phrases"] == ["vessel"] * 2 and (row["masks"][1] == OTHER_MASK).all()


def test_labels_beside_their_region(tmp_path):
    own = {**region("", SQUARE), "type": "polygon", "id": "7"}
    del own["value"]["polygonlabels"]
    named = {"id": "7", "type": "labels", "value": {"labels": ["vessel", "catheter"]}}
    write(tmp_path, "export.json", [task(own, named)])
    assert same(read(find_label_studio, tmp_path)["train"]["a"], {"vessel": SQUARE_MASK, "catheter": SQUARE_MASK})


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("/data/local-files/?d=a.png", "a.png"),
        ("/data/local-files/?d=projects/one/images/a.png", "images/a.png"),
        ("/data/local-files/?d=one%2Fb%20c%26.png", "one/b c&.png"),
        ("/data/upload/3/8a7b6c5d-a.png", "a.png"),
        ("/data/upload/3/8a7b6c5d-a.png", "8a7b6c5d-a.png"),
        ("/data/upload/8a7b6c5d-a.png", "images/a.png"),
        ("upload/3/8a7b6c5d-a.png", "images/a.png"),
        ("http://localhost:8080/data/upload/3/8a7b6c5d-a.png", "a.png"),
        ("s3://bucket/some/a.png", "some/a.png"),
        ("https://host/some/a.png?X-Amz-Signature=1", "a.png"),
        ("a.png", "a.png"),
        ("a 100%25.png", "a 100%25.png"),
        ("C:\\data\\one\\a.png", "one/a.png"),
        ("/home/me/a.png", "a.png"),
    ],
)
def test_what_a_picture_is_called(tmp_path, image, file):
    write(tmp_path, "export.json", [task(region("vessel", SQUARE), image=image)], images=(file,))
    entries = find_label_studio(tmp_path, Reading())["train"].entries
    assert [entry.name for entry in entries] == [file]


def test_the_picture_by_any_key(tmp_path):
    data = {"text": "note", "angiogram": "a.png"}
    write(tmp_path, "export.json", [task(region("vessel", SQUARE), data=data)])
    assert len(read(find_label_studio, tmp_path)["train"]) == 1


def test_files_are_splits(tmp_path):
    write(tmp_path, "train.json", [task(region("vessel", SQUARE))])
    write(tmp_path, "val.json", [task(region("catheter", SQUARE), image="b.png")], images=("b.png",))
    found = find_label_studio(tmp_path, Reading())
    assert {split: source.labels for split, source in found.items()} == dict.fromkeys(
        ("train", "validation"), ("vessel", "catheter")
    )


BRUSH = region("vessel", mask=SQUARE_MASK)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (changed("image_rotation", 90, of=None), "is drawn in a picture that is rotated by 90 degrees"),
        (changed("rotation", 5), "rotated by 5 degrees"),
        (changed("polygonlabels", []), "has no label"),
        (changed("polygonlabels", [3]), "a label must be a text"),
        (changed("closed", False), "was not closed"),
        (changed("points", [[1, 1], [2, 2]]), "has 2 point"),
        (changed("points", [[1, 1], [2, 2], [3]]), "must be a list of [x, y]"),
        (changed("points", [[1, 1], [2, 2], [10**400, 1]]), "not finite"),
        (changed("points", [[1, 1], [2, 2], [150, 1]]), "leaves the image: x from 0.12 to 18"),
        (changed("original_width", 24, of=None), "annotations are made for 24 x 8"),
        (changed("original_width", None, of=None), "must be whole numbers"),
        (changed("item_index", 1, of=None), "several pictures"),
        (changed("type", None, of=None), "region without a `type`"),
        (changed("value", None, of=None), "region without a `value`"),
        (changed("rle", None, own=BRUSH), "brush RLE ends too early"),
        (changed("rle", [1, 2, 300], own=BRUSH), "`rle` must be whole numbers from 0 to 255"),
        (changed("rle", BRUSH["value"]["rle"][:-4], own=BRUSH), "cut off"),
        (changed("format", "png", own=BRUSH), "`format` must be 'rle'"),
    ],
)
def test_regions_that_cannot_be_used(tmp_path, own, reason):
    write(
        tmp_path, "export.json", [task(own), task(region("vessel", SQUARE), image="b.png")], images=("a.png", "b.png")
    )
    found = faults(tmp_path)
    assert reason in found and "a.png" in found and "b.png" not in found


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ([task(image="none.png")], "image: file is missing: nothing of 'none.png' leads to a file"),
        ([task(image="../a.png/..")], "image: file is missing"),
        ([task(image="http://[a.png")], "image: file is missing"),
        ([task(data={"text": "note"})], "`data` must name one picture; its texts are text"),
        ([task(data={"a": "a.png", "b": "b.png"})], "`data` must name one picture"),
        ([task(data=None)], "`data` must be an object"),
        ([task(annotations={})], "`annotations` must be a list"),
        ([task(annotations=[{"result": {}}])], "`result` must be a list"),
        ([task(), task(image="/other/a.png", number=2)], "is the same file as 'a.png'"),
        ([task(region("vessel", SQUARE), changed("original_width", 24, of=None))], "pictures of several sizes"),
        ([{"image": "a.png", "annotation_id": 3, "label": []}], "is JSON-MIN"),
        ([1, {"annotations": []}], "expected a list of tasks"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, tasks, reason):
    write(tmp_path, "export.json", tasks)
    assert reason in faults(tmp_path)
