import json
import pickle

import numpy as np
import pytest
from PIL import Image
from referring_sets import FRAMES, moving, standing, write_mevis

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.loading import find_sources, formats_in, load_dataset_dict
from sa2va_trl.data.readers.entries import Reading, objects_of
from sa2va_trl.data.readers.mevis import is_mevis
from sa2va_trl.errors import DatasetError


EXPECTED = {
    "The box moving right": moving,
    "what stands still?": standing,
    "all boxes": lambda frame: moving(frame) | standing(frame),
}


def change(folder, edit, name="meta_expressions.json"):
    file = folder / "valid_u" / name
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_clips_are_a_row_an_expression(tmp_path):
    folder = write_mevis(tmp_path / "mevis")
    assert is_mevis(folder) and is_mevis(folder / "valid_u") and not is_mevis(folder / "valid_u" / "JPEGImages")
    assert formats_in(folder) == {"": (folder, "mevis")}
    rows = load_dataset_dict(folder)["valid_u"]
    check_dataset(rows)  # they train like any clips
    assert rows["sample_id"] == ["v0_0", "v0_1", "v0_2", "v1_0", "v1_1", "v1_2"] and set(rows["video_id"]) == {
        "v0",
        "v1",
    }
    for row in rows:
        (phrase,) = row["phrases"]
        assert row["frames"] == list(FRAMES) and len(row["images"]) == len(row["masks"]) == 4
        for frame, mask in enumerate(row["masks"]):
            assert (np.asarray(mask) > 0).tolist() == EXPECTED[phrase](frame).tolist()
    assert load_dataset_dict(folder / "valid_u")["train"]["sample_id"] == rows["sample_id"]  # named by itself


def test_rows_are_kept_and_read_anew_where_the_folder_has_changed(tmp_path):
    folder = write_mevis(tmp_path / "mevis")
    first, again = load_dataset_dict(folder)["valid_u"], load_dataset_dict(folder)["valid_u"]
    assert first.cache_files == again.cache_files and first.cache_files
    change(folder, lambda meta: meta["videos"]["v0"]["expressions"]["0"].update(exp="another text"))
    assert load_dataset_dict(folder)["valid_u"][0]["phrases"] == ["another text"]


def test_frames_are_prepared_with_an_object_an_expression(tmp_path):
    folder = write_mevis(tmp_path / "mevis")
    source = find_sources(folder, Reading())["valid_u"]
    assert [entry.facts["frame_index"] for entry in source.entries] == [0, 1, 2, 3] * 2
    for entry in pickle.loads(pickle.dumps(source.entries)):
        found = objects_of(entry, source.labels, Reading(), (64, 48), source.joins)
        assert found["phrases"] == ["the box moving right", "what stands still?", "all boxes"]
        masks = [EXPECTED[own](entry.facts["frame_index"]) for own in EXPECTED]
        assert np.array_equal(found["masks"], masks)


def test_without_masks_there_are_clips_to_predict(tmp_path):
    folder = write_mevis(tmp_path / "mevis", masks=False, split="valid")
    rows = load_dataset_dict(folder)["validation"]
    assert rows["masks"] == [[]] * 6
    assert not find_sources(folder, Reading())["validation"].annotated
    with pytest.raises(DatasetError, match="fewer masks than phrases"):
        check_dataset(rows)


def test_splits_lie_side_by_side(tmp_path):
    folder = write_mevis(write_mevis(tmp_path / "mevis"), ("t0",), split="train")
    data = load_dataset_dict(folder)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 3, "valid_u": 6}


@pytest.mark.parametrize(
    ("edit", "name", "words"),
    [
        (
            lambda m: m["videos"]["v1"]["expressions"]["2"].update(anno_id=[9]),
            None,
            "v1: expression 2: anno_id 9 is",
        ),
        (lambda m: m["videos"]["v0"]["expressions"]["1"].update(exp=" "), None, "v0: expression 1: `exp` must be a t"),
        (lambda m: m["videos"]["v0"]["expressions"]["1"].pop("anno_id"), None, "`anno_id` must be a list of numbers"),
        (lambda m: m["videos"]["v0"]["frames"].append("00099"), None, "1 of 5 frames are missing, the first '00099'"),
        (lambda m: m["videos"]["v0"].update(frames=[]), None, "v0: video: `frames` must be a list"),
        (lambda m: m["videos"]["v0"].update(expressions={}), None, "`expressions` must be an object"),
        (lambda m: m["videos"].update({"../v0": m["videos"]["v0"]}), None, "there is no folder JPEGImages/../v0"),
        (lambda m: m.update(videos=[]), None, "expected an object with `videos`"),
        (lambda m: m["3"].pop(), "mask_dict.json", "anno_id 3 has masks of 3 frames, the video 4"),
        (lambda m: m["1"].insert(0, 7), "mask_dict.json", "annotation 1: frame 0: must be null, or RLE"),
        (lambda m: m["1"][0].update(size=[9, 9]), "mask_dict.json", "v0: expression 1: frame 0: RLE is for 9 x 9"),
        (lambda m: m["1"][0].update(counts="zz"), "mask_dict.json", "expression 1: RLE is damaged|RLE ends"),
    ],
)
def test_what_is_wrong_is_said_at_once(tmp_path, edit, name, words):
    folder = write_mevis(tmp_path / "mevis")
    change(folder, edit, name or "meta_expressions.json")
    with pytest.raises(DatasetError, match=words):
        load_dataset_dict(folder)


def test_all_faults_are_in_one_error(tmp_path):
    folder = write_mevis(tmp_path / "mevis")
    change(folder, lambda m: m["0"][0].update(size=[9, 9]), "mask_dict.json")
    change(folder, lambda m: m["3"][1].update(size=[9, 9]), "mask_dict.json")
    with pytest.raises(DatasetError) as caught:
        load_dataset_dict(folder)
    assert len(caught.value.problems) == 4  # each of them in two expressions
    with pytest.raises(DatasetError, match="`phrase` has no effect"):
        load_dataset_dict(folder, phrase="vessel")


def test_frames_of_two_sizes_are_refused(tmp_path):
    folder = write_mevis(tmp_path / "mevis")
    Image.new("RGB", (32, 32)).save(folder / "valid_u" / "JPEGImages" / "v0" / "00005.jpg")
    with pytest.raises(DatasetError, match="v0: video: has frames of 2 sizes"):
        load_dataset_dict(folder)
