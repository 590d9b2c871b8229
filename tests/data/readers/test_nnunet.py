"""nnU-Net's raw data sets."""

import json
import logging

import nibabel
import numpy as np
import PIL.Image
import pytest

from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.readers.entries import Reading, rows_of
from sa2va_trl.data.readers.nnunet import find_nnunet, is_nnunet
from sa2va_trl.errors import DatasetError


SIZE = (12, 8)


def labels(**boxes):
    pixels = np.zeros(SIZE[::-1], dtype=np.uint8)
    for number, (left, right) in boxes.items():
        pixels[2:5, left:right] = int(number.removeprefix("n"))
    return pixels


ONE, TWO, NONE = labels(n1=(1, 4)), labels(n1=(1, 4), n2=(6, 8)), labels()


def write(folder, cases, part="Tr", ending=".png", **stated):
    """A data set of cases and their label maps; `None` for one without."""
    stated = {"channel_names": {"0": "XR"}, "labels": {"background": 0, "vessel": 1, "catheter": 2}} | stated
    for case, own in cases.items():
        for place, name, pixels in (
            ("images", f"{case}_0000", np.full(SIZE[::-1], 90, np.uint8)),
            ("labels", case, own),
        ):
            path = folder / f"{place}{part}" / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if pixels is None:
                continue
            if ending == ".nii.gz":
                nibabel.save(nibabel.Nifti1Image(pixels.T[..., None], np.diag([-1.0, -1, 1, 1])), path)
            else:
                PIL.Image.fromarray(pixels).save(path)
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ending, "numTraining": len(cases), **stated}))
    return folder


def read(folder, **options):
    reading = Reading(**options)
    return {split: rows_of(source, reading) for split, source in find_nnunet(folder, reading).items()}


def areas(rows):
    return [[int((np.asarray(mask) > 0).sum()) for mask in masks] for masks in rows["masks"]]


@pytest.mark.parametrize("ending", [".png", ".tif", ".nii.gz"])
def test_labels_have_the_names_that_dataset_json_gives(tmp_path, ending):
    rows = read(write(tmp_path, {"b": TWO, "a": ONE, "c": NONE}, ending=ending))["train"]
    assert rows["sample_id"][:] == ["a", "b", "c"]
    assert rows["phrases"][:] == [["vessel"], ["vessel", "catheter"], ["vessel", "catheter"]]
    assert areas(rows) == [[9], [9, 6], [0, 0]]
    np.testing.assert_array_equal(np.asarray(rows[1]["masks"][1]) > 0, TWO == 2)
    assert np.asarray(rows[0]["image"]).min() == 90


def test_classes_may_be_chosen_and_joined(tmp_path):
    write(tmp_path, {"a": ONE, "b": TWO})
    assert areas(read(tmp_path, classes={"catheter": "tube"})["train"]) == [[0], [6]]
    assert areas(read(tmp_path, phrase="structure")["train"]) == [[9], [15]]


def test_regions_and_names_of_the_first_version(tmp_path):
    regions = {"background": 0, "all": [1, 2], "catheter": [2]}
    rows = read(write(tmp_path / "new", {"a": ONE, "b": TWO}, labels=regions))["train"]
    assert rows["phrases"][:] == [["all"], ["all", "catheter"]] and areas(rows) == [[9], [15, 6]]
    old = {"0": "background", "1": "vessel", "2": "catheter"}
    rows = read(write(tmp_path / "old", {"b": TWO}, labels=old, modality={"0": "XR"}))["train"]
    assert rows["phrases"][:] == [["vessel", "catheter"]]


def test_what_is_left_out_is_named(tmp_path, caplog):
    stated = {"labels": {"background": 0, "vessel": 1, "ignore": 2}, "channel_names": {"0": "XR", "1": "XR inverted"}}
    write(tmp_path, {"a": ONE, "b": TWO}, **stated)
    write(tmp_path, {"t": None}, part="Ts", **stated)
    (tmp_path / "labelsTs").rmdir()
    for name in ("a_0001.png", "notes.txt", "a.png"):
        (tmp_path / "imagesTr" / name).write_bytes((tmp_path / "imagesTr" / "a_0000.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        rows = read(tmp_path)
    assert list(rows) == ["train"] and rows["train"]["sample_id"][:] == ["a"]
    for text in (
        "left out, 1 images without labels: t.",
        "left out, cases with pixels labelled 'ignore', of which nobody has said what they are: b.",
        "left out, channels beside _0000 (XR): _0001 (XR inverted).",
        "left out, not named CASE_0000.png: a.png, notes.txt.",
    ):
        assert text in caplog.text


def test_labels_of_the_test_are_a_split(tmp_path):
    write(tmp_path, {"t": ONE}, part="Ts")
    write(tmp_path, {"a": TWO})
    data = load_dataset_dict(tmp_path)
    assert {split: rows["sample_id"][:] for split, rows in data.items()} == {"train": ["a"], "test": ["t"]}


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    write(tmp_path, {"a": ONE, "no_label": None, "unknown": labels(n7=(2, 4)), "soft": labels(n1=(1, 3), n200=(3, 6))})
    PIL.Image.fromarray(ONE[:-1]).save(tmp_path / "labelsTr" / "a.png")
    PIL.Image.fromarray(ONE).save(tmp_path / "labelsTr" / "no_image.png")
    with pytest.raises(DatasetError) as caught:
        read(tmp_path)
    found = {problem.file: problem.reason for problem in caught.value.problems}
    expected = {
        "imagesTr/a_0000.png": "mask a.png is 12 x 7, its image 12 x 8",
        "imagesTr/no_label_0000.png": "has no label: expected labelsTr/no_label.png",
        "imagesTr/unknown_0000.png": "label unknown.png holds 7, which dataset.json does not name",
        "imagesTr/soft_0000.png": "mask soft.png is not binary: values 0, 1, 200",
        "labelsTr/no_image.png": "has no image: expected imagesTr/no_image_0000.png",
    }
    assert found.keys() == expected.keys()
    for file, reason in expected.items():
        assert reason in found[file]


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({"labels": ["vessel"]}, "must hold labels"),
        ({"labels": {"background": 0}}, "no label but the background"),
        ({"labels": {"background": 0, "vessel": "one"}}, "'vessel' must be a whole number"),
        ({"labels": {"background": 0, "vessel": [0, 1]}}, "holds 0, the background"),
        ({"labels": {"vessel": True}}, "must be a whole number"),
        ({"file_ending": ".mha"}, "file_ending '.mha' is of a kind that is not read"),
        ({"file_ending": "/../../x.png"}, "of a kind that is not read"),
    ],
)
def test_a_description_that_is_none(tmp_path, stated, reason):
    write(tmp_path, {"a": ONE})
    content = json.loads((tmp_path / "dataset.json").read_text()) | stated
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=f"dataset.json: .*{reason}"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe", b"[]", b"1"])
def test_a_description_that_is_no_json(tmp_path, content):
    write(tmp_path, {"a": ONE})
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"dataset\.json: (is no JSON|must hold labels)"):
        read(tmp_path)


def test_layout(tmp_path):
    assert not is_nnunet(tmp_path)
    write(tmp_path / "Dataset001_A", {"a": ONE})
    assert is_nnunet(tmp_path) and is_nnunet(tmp_path / "Dataset001_A")
    assert len(find_sources(tmp_path, Reading())["train"].entries) == 1
    write(tmp_path / "Dataset002_B", {"a": ONE})
    with pytest.raises(DatasetError, match="holds 2 data sets of nnU-Net, give one: Dataset001_A, Dataset002_B"):
        find_nnunet(tmp_path, Reading())
    with pytest.raises(ValueError, match="mask_threshold has no effect on the format nnunet"):
        find_sources(tmp_path / "Dataset001_A", Reading(mask_threshold=1))


def test_an_example_of_other_programs(shared):
    folder = shared / "data" / "formats"
    truth = json.loads((folder / "truth.json").read_text())
    wanted = truth["files"]["nnunet"]
    (row,) = load_dataset_dict(folder / "nnunet")["train"]
    assert row["phrases"] == wanted["phrases"]
    for mask, name in zip(row["masks"], wanted["objects"], strict=True):
        np.testing.assert_array_equal(np.asarray(mask) > 0, [[cell == "#" for cell in line] for line in truth[name]])
