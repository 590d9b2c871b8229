import json
import pickle

import numpy as np
import pytest
from referring_sets import moving, standing, write_refcoco

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.loading import find_sources, formats_in, load_dataset_dict
from sa2va_trl.data.readers.entries import Reading
from sa2va_trl.data.readers.refcoco import is_refcoco
from sa2va_trl.errors import DatasetError


def change(folder, edit, name="refs.json"):
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def masks_of(rows):
    return {row["phrases"][0]: np.asarray(row["masks"][0]) > 0 for row in rows}


def test_a_row_an_expression(tmp_path):
    folder = write_refcoco(tmp_path / "refcoco")
    assert is_refcoco(folder) and formats_in(folder) == {"": (folder, "refcoco")}
    data = load_dataset_dict(folder)
    assert {split: len(rows) for split, rows in data.items()} == {"testA": 4, "validation": 4}
    for split, number in (("testA", 0), ("validation", 1)):
        check_dataset(data[split])
        assert len(set(data[split]["sample_id"])) == 4
        found = masks_of(data[split])
        assert (found["box 0"] == moving(number)).all() and (found["box 1"] == standing(number)).all()
    entries = find_sources(folder, Reading())["testA"].entries
    assert len(pickle.loads(pickle.dumps(entries))) == 4


def test_expressions_of_several_objects_and_of_none(tmp_path):
    rows = load_dataset_dict(write_refcoco(tmp_path / "grefcoco", "grefs(unc).json", none=True))["testA"]
    found = masks_of(rows)
    assert (found["of [0, 1]"] == moving(0) | standing(0)).all() and not found["of [-1]"].any()


def test_captions_of_a_converted_set(tmp_path):
    folder = write_refcoco(tmp_path / "refcoco")
    content = json.loads((folder / "instances.json").read_text())
    images, annotations = [], []
    for number, (image, key) in enumerate((image, key) for image in content["images"] for key in range(2)):
        own = {**content["annotations"][2 * image["id"] + key], "image_id": number, "id": number}
        annotations.append(own)
        images.append({**image, "id": number, "original_id": image["id"], "caption": f"the box {key}"})
    annotations.append({**annotations[0], "image_id": 77})
    for name in ("instances.json", "refs.json"):
        (folder / name).unlink()
    text = json.dumps({"images": images, "annotations": annotations, "categories": []})
    (folder / "instances_refcoco_val.json").write_text(text)
    assert formats_in(folder) == {"": (folder, "refcoco")}
    rows = load_dataset_dict(folder)["validation"]
    assert rows["phrases"] == [["the box 0"], ["the box 1"]] * 2
    assert (np.asarray(rows[3]["masks"][0]) > 0).tolist() == standing(1).tolist()
    (folder / "other_val.json").write_text(text)
    with pytest.raises(DatasetError, match="two annotation files for the split 'validation'"):
        load_dataset_dict(folder)


def test_a_pickle_is_not_read(tmp_path):
    folder = write_refcoco(tmp_path / "refcoco")
    (folder / "refs.json").unlink()
    (folder / "refs(unc).p").write_bytes(pickle.dumps([]))
    assert not is_refcoco(folder)


@pytest.mark.parametrize(
    ("edit", "name", "words"),
    [
        (lambda m: m[0].update(ann_id=99), "refs.json", "ref_id 0: ann_id 99 is not in instances.json"),
        (lambda m: m[3].update(image_id=9), "refs.json", "ref_id 11: image_id 9 is not in instances.json"),
        (lambda m: m[1]["sentences"][0].update(sent=""), "refs.json", "ref_id 1: `sent` must be a text"),
        (lambda m: m[1].update(sentences="box"), "refs.json", "`sentences` must be a list"),
        (lambda m: m[1].pop("split"), "refs.json", "`split` must be a text"),
        (lambda m: m.clear(), "refs.json", "expected a list of expressions"),
        (lambda m: m["images"][0].update(file_name="x.jpg"), "instances.json", "ref_id 0: file is missing"),
        (
            lambda m: m["annotations"][0].update(segmentation=[]),
            "instances.json",
            "annotation 0: has a box and no",
        ),
        (lambda m: m["images"][0].update(width=9), "instances.json", "is 64 x 48"),
    ],
)
def test_what_is_wrong_is_said_at_once(tmp_path, edit, name, words):
    folder = write_refcoco(tmp_path / "refcoco")
    change(folder, edit, name)
    with pytest.raises(DatasetError, match=words):
        load_dataset_dict(folder)
