"""
Whatever stands in an annotation file: a clear error, or rows that are right. `SA2VA_TRL_EXAMPLES=1000` looks longer.
"""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from annotated_folders import HEIGHT, SQUARE, WIDTH, write_image
from annotation_formats import (
    OTHER,
    OTHER_MASK,
    SQUARE_MASK,
    coco,
    cvat,
    cvat_image,
    cvat_mask,
    cvat_polygon,
    damaged,
    labelme,
    mutated,
    pairs,
    png,
    region,
    runs,
    task,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycocotools

from sa2va_trl.data.readers.coco import find_coco
from sa2va_trl.data.readers.cvat import find_cvat
from sa2va_trl.data.readers.entries import Reading, rows_of
from sa2va_trl.data.readers.label_studio import find_label_studio
from sa2va_trl.data.readers.labelme import find_labelme
from sa2va_trl.data.readers.yolo import find_yolo
from sa2va_trl.errors import DatasetError


EXAMPLES = int(os.environ.get("SA2VA_TRL_EXAMPLES", 15))
RLE = {"size": [HEIGHT, WIDTH], "counts": runs(SQUARE_MASK.T.ravel())}
COMPRESSED = pycocotools.encode(np.asfortranarray(SQUARE_MASK.astype(np.uint8)))["counts"].decode()
PART = {"label": "vessel", "group_id": 1, "flags": {}}
JSON = {
    "coco": (
        find_coco,
        "annotations.json",
        coco(
            (1, 10, [SQUARE]),
            (1, 70, RLE),
            (2, 10, {**RLE, "counts": COMPRESSED}),
            images=("a.png", "b.png", "c.png"),
        ),
    ),
    "labelme": (
        find_labelme,
        "a.json",
        labelme(
            ("vessel", SQUARE),
            {**PART, "shape_type": "rectangle", "points": [[1, 1], [3, 3]]},
            {**PART, "shape_type": "circle", "points": [[6, 4], [7, 4]]},
            {**PART, "shape_type": "mask", "points": [[1, 1], [2, 2]], "mask": png(np.eye(2, dtype=np.uint8))},
            {**PART, "shape_type": "point", "points": pairs([1, 2])},
            imageData=png(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)),
        ),
    ),
    "label_studio": (
        find_label_studio,
        "export.json",
        [
            task(region("vessel", SQUARE), region("catheter", mask=OTHER_MASK), predictions=[]),
            task(region("vessel", OTHER), image="/data/upload/1/0123abcd-b.png", number=2),
            task(image="c.png", number=3),
        ],
    ),
}
TEXT = {
    "yolo": (
        find_yolo,
        "labels/a.txt",
        "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 .2 .2 .4 .2 .4 .4 .2 .2 .6 .6 .8 .6 .8 .8 .6 .6\n",
    ),
    "yolo data": (find_yolo, "data.yaml", "path: .\ntrain: images\nnames:\n  0: vessel\n  1: 'catheter'\n"),
    "cvat": (
        find_cvat,
        "annotations.xml",
        cvat(
            cvat_image(cvat_polygon("vessel", SQUARE), cvat_mask("catheter", OTHER_MASK)),
            cvat_image(cvat_polygon("vessel", OTHER, 'group_id="1"'), name="b.png", number=1, extra='subset="Train"'),
        ),
    ),
} | {name: (find, file, json.dumps(value)) for name, (find, file, value) in JSON.items()}
ODD_TEXT = {**TEXT, "coco pretty": (find_coco, "annotations.json", json.dumps(JSON["coco"][2], indent=1))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with images for each format; what annotations there are is written anew each time."""
    found = {}
    for name in ODD_TEXT:
        folder = found[name] = tmp_path_factory.mktemp("damaged")
        for image in ("a.png", "b.png", "c.png"):
            write_image(folder / ("images" if name.startswith("yolo") else ".") / image)
        if name.startswith("yolo"):
            (folder / "labels").mkdir()
            for own in ("yolo", "yolo data"):
                (folder / ODD_TEXT[own][1]).write_text(ODD_TEXT[own][2])
    return found


def judge(find, folder):
    """Refused with a reason, or rows whose masks are of their images; whether there are rows."""
    reading = Reading()
    try:
        splits = [rows_of(source, reading) for source in find(folder, reading).values()]
    except DatasetError as error:
        assert str(folder) in str(error) and len(str(error)) > len(str(folder)) + 10
        return False
    for rows in splits:
        for row in rows:
            assert len(row["masks"]) == len(row["phrases"]) and row["image"].size == (WIDTH, HEIGHT)
            assert all(mask.size == (WIDTH, HEIGHT) and {*np.unique(mask)} <= {0, 255} for mask in row["masks"])
    return bool(splits)


@pytest.mark.parametrize("name", JSON)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_places_of_json_that_are_odd(folders, name, seed):
    find, file, value = JSON[name]
    (folders[name] / file).write_text(json.dumps(mutated(value, random.Random(seed))))
    judge(find, folders[name])


@pytest.mark.parametrize("name", ODD_TEXT)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_files_that_are_cut_off_or_have_turned_bits(folders, name, seed):
    find, file, text = ODD_TEXT[name]
    (folders[name] / file).write_bytes(damaged(text.encode(), random.Random(seed)))
    judge(find, folders[name])


@pytest.mark.parametrize("name", ODD_TEXT)
def test_folders_by_any_of_their_names(folders, name, monkeypatch, tmp_path):
    find, file, text = ODD_TEXT[name]
    (folders[name] / file).write_text(text)
    (tmp_path / "link").symlink_to(folders[name])
    monkeypatch.chdir(folders[name])
    for path in (".", f"../{folders[name].name}", tmp_path / "link"):
        assert judge(find, Path(path))


@pytest.mark.parametrize("name", ODD_TEXT)
def test_what_is_not_damaged_is_read(folders, name):
    find, file, text = ODD_TEXT[name]
    (folders[name] / file).write_text(text)
    assert judge(find, folders[name])
