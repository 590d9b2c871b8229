import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from sa2va_trl.data.inspection import data_report, inspect_rows, suspicious


def masked(*boxes, size=(80, 64)):
    """A mask with boxes (left, top, right, bottom)."""
    mask = np.zeros(size[::-1], dtype=np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


def rows_of(masks, split="train", patients=None, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {
            "sample_id": f"s{number}",
            "patient_id": patients[number] if patients else None,
            "image": Image.fromarray(rng.integers(0, 255, mask.size[::-1], dtype=np.uint8)),
            "mask": mask,
            "phrase": "vessel",
        }
        for number, mask in enumerate(masks)
    ]
    texts = dict.fromkeys(("sample_id", "patient_id", "phrase"), Value("string"))
    features = {**texts, "image": ImageFeature(), "mask": ImageFeature(mode="L")}
    return Dataset.from_list(rows, features=Features(features)), split


def found(*splits):
    pairs = [pair for dataset, split in splits for pair in inspect_rows(dataset, split)]
    return pd.DataFrame([facts for facts, _ in pairs]), np.stack([small for _, small in pairs])


def test_rows_are_measured():
    dataset, split = rows_of([masked((10, 10, 50, 20), (60, 40, 62, 42)), masked()])
    rows, small = found((dataset, split))
    first, second = rows.to_dict("records")
    assert (first["width"], first["height"], first["frames"], first["objects"]) == (80, 64, 1, 1)
    assert first["area"] == pytest.approx(404 / (80 * 64)) and first["components"] == 2 and first["smallest"] == 4
    assert first["phrases"] == ["vessel"] and first["split"] == "train" and "patient_id" not in first
    assert second["area"] == 0 and second["components"] == 0 and np.isnan(second["thickness"])
    assert small.shape == (2, 1024)


def test_a_clip_is_measured_over_its_frames():
    images = [Image.new("L", (80, 64), value) for value in (10, 20)]
    masks = [masked((0, 0, 40, 64)), masked()]
    row = {"sample_id": "c", "images": images, "masks": masks, "phrases": ["x"]}
    features = {"sample_id": Value("string"), "images": List(ImageFeature()), "masks": List(ImageFeature(mode="L"))}
    dataset = Dataset.from_list([row], features=Features({**features, "phrases": List(Value("string"))}))
    (facts,) = found((dataset, "train"))[0].to_dict("records")
    assert (facts["frames"], facts["objects"], facts["area"]) == (2, 1, 0.25)


ORDINARY = {"width": 512, "height": 512, "area": 0.1, "components": 3, "smallest": 40}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, None),
        ({"area": 0.0, "components": 0, "smallest": None}, "the mask is empty"),
        ({"area": 0.95, "components": 1}, "covers 95%"),
        ({"smallest": 9}, "a component of 9 pixels, of 3"),
        ({"smallest": 9, "components": 1}, None),  # a small structure, not debris
        ({"width": 63}, "only 63 x 512"),
        ({"width": 1600}, "3.1 times as long"),
        ({"area": None, "components": None, "smallest": None}, None),  # a row that only has words
        ({"burned_in_text": "yes"}, "text is burned into it"),
        ({"burned_in_text": "suspected"}, "bright text seems to stand still"),
        ({"burned_in_text": "unknown"}, None),
    ],
)
def test_odd_rows_have_a_reason(facts, reason):
    reasons = suspicious({**ORDINARY, **facts})
    assert len(reasons) == (reason is not None) or reason.startswith("only")
    assert reason is None or any(reason in text for text in reasons)


def test_what_splits_share_and_what_is_there_twice_is_listed():
    mask = masked((10, 10, 50, 20))
    train = rows_of([mask, mask, mask], patients=["p", "q", None])
    test = rows_of([mask, mask], "test", patients=["p", None])  # the same pictures, by the seed
    rows, small = found(train, test)
    report = data_report(rows, small, 0.98)
    assert json.loads(json.dumps(report)) == report
    assert report["splits"]["train"] == {"rows": 3, "patients": 2, "sizes": {"80 x 64": 3}, "phrases": {"vessel": 3}}
    assert report["shared"] == [
        {"splits": ["train", "test"], "column": "patient_id", "values": ["p"]},
        {"splits": ["train", "test"], "column": "sample_id", "values": ["s0", "s1"]},
    ]
    assert [(entry["rows"], entry["over_splits"]) for entry in report["duplicates"]] == [
        (["train/s0", "test/s0"], True),
        (["train/s1", "test/s1"], True),
    ]
    assert report["near_duplicates"] == [] == report["suspicious"]  # duplicates are not listed twice


def test_images_that_look_alike_over_splits_are_listed():
    coarse = Image.fromarray(np.random.default_rng(3).integers(0, 255, (8, 10), dtype=np.uint8))
    splits = []
    for split, size in (("train", (80, 64)), ("test", (160, 128))):
        dataset, _ = rows_of([masked((5, 5, 30, 30), size=size)], split)
        image = coarse.resize(size, Image.Resampling.BICUBIC)
        splits.append((dataset.map(lambda row, image=image: {"image": image}), split))
    rows, small = found(*splits)
    (pair,) = data_report(rows, small, 0.98)["near_duplicates"]
    assert pair["rows"] == ["train/s0", "test/s0"] and pair["correlation"] > 0.98
