import json
import pickle

import numpy as np
import pytest
from annotated_folders import HEIGHT, SQUARE, WIDTH, write_image
from annotation_formats import OTHER, OTHER_MASK, SQUARE_MASK, coco, read, runs, same, write
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from pycocotools import mask as pycocotools

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.readers.coco import find_coco, is_coco
from sa2va_trl.data.readers.entries import Reading, objects_of
from sa2va_trl.data.readers.sa2va_json import is_sa2va_json
from sa2va_trl.errors import DatasetError


NONE = np.zeros((HEIGHT, WIDTH), dtype=bool)


def encoded(mask):
    """What pycocotools writes into JSON."""
    rle = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [*mask.shape], "counts": rle["counts"].decode()}


def faults(folder):
    """What is refused, in one text."""
    with pytest.raises(DatasetError) as caught:
        read(find_coco, folder)
    return str(caught.value)


RLE = {"size": [HEIGHT, WIDTH], "counts": runs(SQUARE_MASK.T.ravel())}
BYTES = {**RLE, "counts": str(encoded(SQUARE_MASK)["counts"].encode())}


@pytest.mark.parametrize(
    "segmentation",
    [[SQUARE], SQUARE, RLE, encoded(SQUARE_MASK), BYTES],
    ids=["polygon", "bare", "list", "str", "bytes"],
)
def test_forms_of_a_mask(tmp_path, segmentation):
    write(tmp_path, "annotations.json", coco((1, 10, segmentation)))
    assert is_coco(tmp_path) and not is_sa2va_json(tmp_path)
    found = read(find_coco, tmp_path)
    assert same(found["train"]["a"], {"vessel": SQUARE_MASK})


@settings(max_examples=25, deadline=None)
@given(mask=arrays(bool, (HEIGHT, WIDTH)))
def test_what_pycocotools_writes_is_what_is_read(tmp_path_factory, mask):
    folder = tmp_path_factory.mktemp("coco")
    listed = {"size": [HEIGHT, WIDTH], "counts": runs(mask.T.ravel())}
    write(folder, "a.json", coco((1, 10, encoded(mask)), (1, 70, listed)))
    assert same(read(find_coco, folder)["train"]["a"], {"vessel": mask, "catheter": mask})


@pytest.mark.parametrize("box", [(2, 1, 6, 4), (0, 0, 12, 8), (0, 0, 1, 1), (11, 7, 12, 8)])
def test_boxes_of_whole_pixels_are_pycocotools_own(tmp_path, box):
    x1, y1, x2, y2 = box
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    theirs = pycocotools.decode(pycocotools.frPyObjects([polygon], HEIGHT, WIDTH))[:, :, 0] > 0
    write(tmp_path, "a.json", coco((1, 10, [polygon]), (1, 70, [SQUARE])))
    assert same(read(find_coco, tmp_path)["train"]["a"], {"vessel": theirs, "catheter": SQUARE_MASK})


def test_a_data_set(tmp_path, caplog):
    data = coco(
        (1, 10, [SQUARE]),
        (1, 70, [OTHER]),
        (1, 10, [OTHER]),
        ("2", 10, {**RLE, "counts": runs(OTHER_MASK.T.ravel())}),
        (9, 10, [SQUARE]),
        images=("images/a.png", "sub\\b.png", "c.png"),
    )
    data["annotations"][3]["iscrowd"] = 1
    data["images"][2]["id"] = "c"
    write(
        tmp_path, "annotations.json", data, images=("images/a.png", "images/sub/b.png", "images/c.png", "images/d.png")
    )
    found = read(find_coco, tmp_path)["train"]
    assert same(found["a"], {"vessel": SQUARE_MASK | OTHER_MASK, "catheter": OTHER_MASK})
    assert same(found["b"], {"vessel": OTHER_MASK})
    assert same(found["c"], {"vessel": NONE, "catheter": NONE})
    assert "annotations without an image: 1 x image_id 9" in caplog.text and "images/d.png" in caplog.text
    check_dataset(load_dataset_dict(tmp_path)["train"])


def test_parts_of_an_annotation_are_joined_and_annotations_kept_apart_on_request(tmp_path):
    write(tmp_path, "a.json", coco((1, 10, [SQUARE, OTHER]), (1, 10, [SQUARE])))
    reading = Reading(instances="separate")
    source = find_coco(tmp_path, reading)["train"]
    row = objects_of(pickle.loads(pickle.dumps(source.entries[0])), source.labels, reading, (WIDTH, HEIGHT))
    assert row["phrases"] == ["vessel", "vessel"]
    assert (row["masks"][0] == SQUARE_MASK | OTHER_MASK).all() and (row["masks"][1] == SQUARE_MASK).all()


def test_classes_become_phrases(tmp_path, caplog):
    write(tmp_path, "a.json", coco((1, 10, [SQUARE]), (1, 70, [OTHER])))
    assert same(read(find_coco, tmp_path, phrase="All.")["train"]["a"], {"all": SQUARE_MASK | OTHER_MASK})
    assert same(read(find_coco, tmp_path, classes=["catheter"])["train"]["a"], {"catheter": OTHER_MASK})
    assert "not asked for: Vessel" in caplog.text


@pytest.mark.parametrize(
    ("files", "images"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ("train2017/", "val2017/")),
        (("annotations/instances_Train.json", "annotations/instances_val.json"), ("images/train/", "images/val/")),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train/", "valid/")),
        (("train.json", "val.json"), ("images/train/", "images/val/")),
    ],
)
def test_splits(tmp_path, files, images):
    for file, folder, polygon in zip(files, images, (SQUARE, OTHER), strict=True):
        write(tmp_path, file, coco((1, 10, [polygon])), images=(f"{folder}a.png",))
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps({"images": [], "annotations": []}))
    if not files[0].startswith("annotations"):
        (tmp_path / "annotations" / "captions_val2017.json").unlink()
    found = load_dataset_dict(tmp_path)
    assert [*found] == ["train", "validation"]
    masks = {split: np.asarray(rows[0]["masks"][0]) > 0 for split, rows in found.items()}
    assert same(masks, {"train": SQUARE_MASK, "validation": OTHER_MASK})
    assert found["train"][0]["sample_id"] == "train_a"
    assert found["validation"][0]["image"].filename.endswith(f"{images[1]}a.png")


def test_two_files_for_a_split_are_refused(tmp_path):
    write(tmp_path, "first.json", coco())
    write(tmp_path, "second.json", coco())
    assert "two annotation files for the split 'train', first.json, second.json" in faults(tmp_path)


def test_roboflows_first_category_is_no_class(tmp_path):
    data = coco((1, 10, [SQUARE]), images=("a.png", "b.png"))
    data["categories"] = [{"id": 0, "name": "project", "supercategory": "none"}] + [
        {**category, "supercategory": "project"} for category in data["categories"]
    ]
    write(tmp_path, "_annotations.coco.json", data, images=("a.png", "b.png"))
    assert find_coco(tmp_path, Reading())["train"].labels == ("Vessel", "catheter")


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "has a box and no mask"),
        (None, "has a box and no mask"),
        ([[1, 1, 2, 2]], "has 2 point"),
        ([[1, 1, 2, 2, 3]], "is ragged"),
        ([[1, 1, 2, 2, 3, "4"]], "'4', which is not a number"),
        ([[1, 1, 2, 2, 3, 10**400]], "not finite"),
        ([[1, 1, 20, 1, 20, 4]], "leaves the image: x from 1 to 20"),
        ({**RLE, "size": [WIDTH, HEIGHT]}, "RLE is for 8 x 12, the image is 12 x 8"),
        ({**RLE, "size": None}, "needs its size"),
        ({**RLE, "counts": [1, 2]}, "RLE has 3 pixels"),
        ({**RLE, "counts": [1, -2]}, "RLE needs `counts`"),
        ({**RLE, "counts": "5~"}, "RLE is damaged"),
        ({**RLE, "counts": "5\ud800"}, "RLE is damaged"),
        ({**RLE, "counts": None}, "RLE needs `counts`"),
    ],
)
def test_masks_that_cannot_be_used(tmp_path, segmentation, reason):
    write(tmp_path, "a.json", coco((1, 10, segmentation)))
    found = faults(tmp_path)
    assert reason in found and "a.png" in found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": [{"id": 1, "file_name": "none.png"}]}, "none.png: image: file is missing: looked for"),
        ({"images": [{"id": 1, "file_name": "/a.png"}]}, "is absolute"),
        ({"images": [{"id": 1, "file_name": "C:\\a.png"}]}, "is absolute"),
        ({"images": [{"id": 1, "file_name": "../a.png"}]}, "leaves the dataset folder"),
        ({"images": [{"id": 1}]}, "`file_name` must be a text"),
        ({"images": [{"file_name": "a.png"}]}, "`id` must be a number or a text"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 24, "height": 16}]}, "annotations are made for 24 x 16"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": "x", "height": 16}]}, "must be whole numbers"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "the id 1 is that of another image"),
        ({"images": [{"id": n, "file_name": "a.png"} for n in (1, 2)]}, "same file as 'a.png'"),
        ({"images": "none"}, "`images` must be a list"),
        ({"categories": [{"id": 10}]}, "category 0: `name` must be a text"),
        ({"categories": [{"id": 10, "name": "a"}, {"id": 10, "name": "b"}]}, "that of 'a' as well as of 'b'"),
        ({"categories": [{"id": 11, "name": "a"}]}, "there is no category '10'"),
        ({"annotations": [1]}, "holds 1, which is not an object"),
        ({"annotations": [{"id": 3, "category_id": 10, "image_id": None}]}, "annotation (id 3): `image_id` must"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, change, reason):
    write(tmp_path, "a.json", {**coco((1, 10, [SQUARE])), **change})
    found = faults(tmp_path)
    assert reason in found and str(tmp_path) in found


def test_all_faults_are_named_together(tmp_path):
    data = coco((1, 10, []), (1, 11, [SQUARE]), (2, 10, [SQUARE]), images=("a.png", "none.png"))
    write(tmp_path, "a.json", data)
    found = faults(tmp_path)
    assert found.count("annotation (id") == 2 and "none.png: image" in found and "row 0" in found


def test_shares_are_refused_and_one_pixel_in_the_corner_is_not(tmp_path):
    corner = [0, 0, 1, 0, 1, 1, 0, 1]
    write(tmp_path, "a.json", coco((1, 10, [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]), (1, 10, [corner])))
    assert "shares of the image" in faults(tmp_path)
    write(tmp_path, "a.json", coco((1, 10, [corner]), (1, 70, [SQUARE])))
    assert read(find_coco, tmp_path)["train"]["a"]["vessel"].sum() == 1


def test_a_name_in_two_folders(tmp_path):
    write(tmp_path, "a.json", coco(), images=("a.png", "images/a.png"))
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        assert "two files of this name, a.png, images/a.png" in faults(folder)


@pytest.mark.parametrize(
    "text", ['{"images": [', '{"images": [\xff', '{"images": [' + "[" * 100_000, '{"images": [' + "9" * 5000]
)
def test_json_itself(tmp_path, text):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match="a.json: "):
        load_dataset_dict(tmp_path)


def test_is_coco(tmp_path):
    write(tmp_path, "a.json", [{"image": "a.png", "mask": [], "text": []}])
    assert not is_coco(tmp_path)
    write(tmp_path, "b.json", {"info": {}, "categories": []})
    assert is_coco(tmp_path)


@pytest.mark.parametrize("name", ["", " ", "[SEG]", ".", "\ud800", "a\0b", 7, None, ["a"], "x" * 5000, "a\nb", "血管"])
def test_odd_names_of_classes_and_files(tmp_path, name):
    write(tmp_path, "a.json", coco((1, 10, [SQUARE]), categories=[{"id": 10, "name": name}]))
    if name in ("x" * 5000, "a\nb", "血管"):
        assert same(read(find_coco, tmp_path)["train"]["a"], {name: SQUARE_MASK})
    else:
        assert "name" in faults(tmp_path) or "phrase" in faults(tmp_path)
    write(tmp_path, "a.json", coco((1, 10, [SQUARE]), images=(name,)), images=())
    assert "row 0" in faults(tmp_path) and "image: " in faults(tmp_path)
