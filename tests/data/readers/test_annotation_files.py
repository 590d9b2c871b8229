import json
import os
from pathlib import Path

import numpy as np
import pytest
from annotation_formats import read, same

from sa2va_trl.data.loading import FORMATS
from sa2va_trl.data.readers.annotation_files import image_file, load_json, split_of, stated_size
from sa2va_trl.errors import DatasetError


SHARED = os.environ.get("SA2VA_TRL_SHARED")


@pytest.mark.skipif(SHARED is None, reason="SA2VA_TRL_SHARED does not say where the small odd files are")
@pytest.mark.parametrize("name", ["coco", "yolo", "cvat", "labelme", "label_studio"])
def test_small_odd_files(name):
    formats = Path(SHARED) / "data" / "formats"
    truth = json.loads((formats / "truth.json").read_text())
    masks = {key: np.array([[*row] for row in truth[key]]) == "#" for key in ("mask", "second")}
    assert [own for own, form in FORMATS.items() if form.fits(formats / name)] == [name]
    rows = read(FORMATS[name].find, formats / name)["train"]
    expected = truth["files"][name]
    assert len(rows) == expected["rows"]
    phrases = {"mask": "vessel", "second": "catheter"}
    for image, objects in expected["by_image"].items():
        drawn = {phrase: mask for phrase, mask in rows[image].items() if mask.any()}
        assert same(drawn, {phrases[key]: masks[key] for key in objects})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_train2017", "train"),
        ("val", "validation"),
        ("Test", "test"),
        ("_annotations.coco", None),
        ("trainval", None),
        ("train_val", None),
        ("valid_1", "validation"),
    ],
)
def test_splits_of_names(name, split):
    assert split_of(name) == split


def test_images_in_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_text("")
    root = tmp_path / "set"
    root.mkdir()
    (root / "images").symlink_to(tmp_path / "elsewhere")
    (root / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert image_file(root, [root / "images"], "a.png").samefile(tmp_path / "elsewhere" / "a.png")
    with pytest.raises(DatasetError, match="it is a link to"):
        image_file(root, [root], "b.png")
    with pytest.raises(DatasetError, match="leaves the dataset folder"):
        image_file(root, [root / "images"], "../../set/../elsewhere/a.png")


@pytest.mark.parametrize("size", [(0, 1), (1.5, 1), (True, 1), (1, None), ("1", 1), (float("nan"), 1), (10**400, 1)])
def test_sizes_that_are_none(size):
    with pytest.raises(DatasetError, match="whole numbers above 0"):
        stated_size(*size)


def test_sizes():
    assert stated_size(12.0, 8) == (12, 8) and stated_size(None, None) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[", "invalid JSON at line 1"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "invalid JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, data, reason):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DatasetError, match=reason):
        load_json(tmp_path / "a.json")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_json(tmp_path)
