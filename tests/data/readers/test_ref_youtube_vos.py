import json
import logging
import pickle
import shutil

import numpy as np
import PIL.Image
import pytest
from referring_sets import FRAMES, moving, standing, write_ref_youtube_vos

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.loading import find_sources, formats_in, load_dataset_dict
from sa2va_trl.data.readers.entries import Reading, objects_of
from sa2va_trl.data.readers.ref_youtube_vos import is_ref_youtube_vos
from sa2va_trl.errors import DatasetError


def truth(key, frame):
    """The first two expressions are of object 1, which lies behind object 2."""
    return standing(frame) if int(key) // 2 else moving(frame) & ~standing(frame)


def test_clips_are_a_row_an_expression(tmp_path):
    folder = write_ref_youtube_vos(tmp_path / "rvos")
    assert is_ref_youtube_vos(folder) and not is_ref_youtube_vos(folder / "valid")
    assert formats_in(folder) == {"": (folder, "ref_youtube_vos")}
    rows = load_dataset_dict(folder)["validation"]
    check_dataset(rows)
    assert len(rows) == 8 and rows["exp_id"] == ["0", "1", "2", "3"] * 2
    for row in rows:
        for frame, mask in enumerate(row["masks"]):
            assert ((np.asarray(mask) > 0) == truth(row["exp_id"], frame)).all()


def test_frames_are_prepared_with_an_object_an_expression(tmp_path):
    source = find_sources(write_ref_youtube_vos(tmp_path / "rvos"), Reading())["validation"]
    assert len(source.entries) == 8
    for entry in pickle.loads(pickle.dumps(source.entries)):
        found = objects_of(entry, (), Reading(), (64, 48), source.joins)
        assert np.array_equal(found["masks"], [truth(key, entry.facts["frame_index"]) for key in range(4)])


def test_frames_without_a_mask_are_left_out_and_counted(tmp_path, caplog):
    folder = write_ref_youtube_vos(tmp_path / "rvos", annotated=FRAMES[::2])
    with caplog.at_level(logging.WARNING):
        rows = load_dataset_dict(folder)["validation"]
    assert "left out, 4 frames without a mask" in caplog.text
    assert rows[0]["frames"] == list(FRAMES[::2]) and len(rows[0]["masks"]) == 2
    assert ((np.asarray(rows[2]["masks"][1]) > 0) == standing(2)).all()


def test_videos_of_test_are_left_out_of_valid(tmp_path):
    # As distributed: the list of `valid` names those of `test` too, whose frames need not be there.
    folder = write_ref_youtube_vos(tmp_path / "rvos", ("v0", "v1", "v2"), masks=False)
    listed = folder / "meta_expressions" / "test" / "meta_expressions.json"
    videos = json.loads((folder / "meta_expressions" / "valid" / "meta_expressions.json").read_text())["videos"]
    listed.parent.mkdir()
    listed.write_text(json.dumps({"videos": {name: videos[name] for name in ("v0", "v2")}}))
    shutil.rmtree(folder / "valid" / "JPEGImages" / "v2")
    rows = load_dataset_dict(folder)
    assert set(rows) == {"validation"} and set(rows["validation"]["video_id"]) == {"v1"}
    # What the files say changes with `test`, and the rows that are kept do.
    listed.write_text(json.dumps({"videos": {"v2": videos["v2"]}}))
    assert set(load_dataset_dict(folder)["validation"]["video_id"]) == {"v0", "v1"}
    write_ref_youtube_vos(folder, ("v0", "v2"), masks=False, split="test")
    rows = load_dataset_dict(folder)
    assert set(rows["validation"]["video_id"]) == {"v1"} and set(rows["test"]["video_id"]) == {"v0", "v2"}


def test_without_masks_there_are_clips_to_predict(tmp_path):
    rows = load_dataset_dict(write_ref_youtube_vos(tmp_path / "rvos", masks=False))["validation"]
    assert rows["masks"] == [[]] * 8 and rows[0]["frames"] == list(FRAMES)


@pytest.mark.parametrize("own", [None, "0", "256", -1, True, "one"])
def test_what_is_no_id_is_refused(tmp_path, own):
    folder = write_ref_youtube_vos(tmp_path / "rvos")
    file = folder / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(file.read_text())
    content["videos"]["v1"]["expressions"]["2"]["obj_id"] = own
    file.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="v1: expression 2: `obj_id` must be a number from 1 to 255"):
        load_dataset_dict(folder)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (PIL.Image.new("RGB", (64, 48)), "mask 00005.png is a picture of mode RGB, not of ids"),
        (PIL.Image.new("P", (32, 48)), "mask 00005.png is 32 x 48, its image 64 x 48"),
        (None, "mask 00005.png is unreadable"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, picture, words):
    folder = write_ref_youtube_vos(tmp_path / "rvos")
    file = folder / "valid" / "Annotations" / "v0" / "00005.png"
    picture.save(file) if picture else file.write_bytes(b"none")
    with pytest.raises(DatasetError, match=words):
        load_dataset_dict(folder)
