import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tasks import run_task

from sa2va_trl.data import load_dataset_dict
from sa2va_trl.evaluation.gallery import make_picture, save_picture
from sa2va_trl.evaluation.page import Section, Words
from sa2va_trl.scripts.reporting import (
    KEPT_AT,
    SAMPLES,
    about,
    changed_pictures,
    check_report_pictures,
    hard_runs,
    kept_at,
    logs_of,
    move_pictures,
    remove_report,
    save_report,
)


@dataclass
class Options:
    a: int = 1
    b: str | None = None


def frames(dice, **columns):
    return pd.DataFrame({"sample_id": [str(place) for place in range(len(dice))], "dice": dice, **columns})


def test_runs_of_hard_frames_are_named_by_their_first_and_last_index():
    table = frames([0.9, 0.5, 0.6, 0.75, 0.1, 0.2], video_id="v", frame_index=[0, 10, 20, 30, 40, 50])
    assert hard_runs(table.sample(frac=1, random_state=0)) == {"v": [(10, 20), (40, 50)]}


@pytest.mark.parametrize("columns", [{}, {"video_id": "v"}, {"video_id": "v", "frame_index": [1, 1]}])
def test_frames_without_a_place_in_a_clip_have_no_runs(columns):
    assert hard_runs(frames([0.1, 0.2], **columns)) == {}
    assert hard_runs(pd.DataFrame({"sample_id": ["a"], "hd95": [1.0]})) == {}


def test_options_versions_and_digests_are_told(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    found = about([Options()], [tmp_path / "a.bin", tmp_path / "none"], {"data": "x"})
    assert found["Options"] == {"a": 1}
    assert found["Versions"]["numpy"] == np.__version__
    assert found["Digests"] == {"data": "x", "a.bin (SHA-256)": hashlib.sha256(b"abc").hexdigest()}


def test_a_report_is_there_with_all_that_belongs_to_it_or_not_at_all(tmp_path):
    (tmp_path / "run").mkdir()
    log = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    logs = logs_of({"run": tmp_path / "run", "none": tmp_path / "none", "nothing": None})
    assert logs == {"run": log}
    folder = tmp_path / "out"
    report = [Section("One", [Words("text")])], {"metrics_distribution.png": b"1"}
    save_report(folder, "Title", "below", report, about([Options()]), logs)
    names = {"report.html", "metrics_distribution.png", "training_curves.png"}
    assert {file.name for file in folder.iterdir()} == names
    page = (folder / "report.html").read_text()
    assert [part in page for part in (">Training<", ">Configuration<", "below")] == [True] * 3
    (folder / "mine.txt").write_text("kept")
    (folder / "report_pictures").mkdir()
    (folder / "report_pictures" / "0000.png").write_bytes(b"1")
    remove_report(folder)
    assert [file.name for file in folder.iterdir()] == ["mine.txt"]
    remove_report(tmp_path / "none")


def test_pictures_are_embedded_or_beside():
    check_report_pictures("beside")
    with pytest.raises(ValueError, match="report_pictures must be embedded or beside, got 'none'"):
        check_report_pictures("none")


def picture(name, value):
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4] = 255
    row = {"sample_id": name, "image": Image.new("L", (8, 8), 50), "mask": Image.fromarray(mask), "phrase": "x"}
    return make_picture(row, [np.full((1, 8, 8), value, dtype=np.float32)], {})


def test_what_changed_most_is_shown_of_evaluations_that_have_kept_pictures(tmp_path, capsys):
    before = pd.Series({"a": 0.1, "b": 0.5, "c": 0.6, "d": 0.7})
    after = pd.Series({"d": 0.2, "c": 0.6, "b": 0.6, "a": 0.9})
    folders = (tmp_path / "one", tmp_path / "two")
    assert changed_pictures(folders, ("one", "two"), before, after) == ({}, 0.5, False)
    for folder, value in zip(folders, (0.3, 0.8), strict=True):
        pictures = tmp_path / "new"
        pictures.mkdir()
        for name in "abcd":
            save_picture(pictures, picture(name, value))
        move_pictures(folder, pictures, 0.4, {})
    found, threshold, is_raw = changed_pictures(folders, ("one", "two"), before, after)
    assert threshold == 0.4 and not is_raw and [own.name for own in found["Most improved"]] == ["a", "b"]
    assert [(own.name, own.facts) for own in found["Most worsened"]] == [("d", {"one": 0.7, "two": 0.2})]
    found, *_ = changed_pictures(folders, ("one", "two"), before, after, lower=True)
    assert [own.name for own in found["Most improved"]] == ["d"]
    for folder in folders:  # either of them
        kept = (folder / SAMPLES / KEPT_AT).read_text()
        (folder / SAMPLES / KEPT_AT).write_text(json.dumps({"threshold": 0.4, "postprocessing": {"min_size": 5}}))
        assert changed_pictures(folders, ("one", "two"), before, after)[1:] == (0.4, True)
        (folder / SAMPLES / KEPT_AT).write_text(kept)
    pictures.mkdir()
    move_pictures(folders[1], pictures, 0.5, {"min_size": 5})
    assert kept_at(folders[1] / SAMPLES) == (0.5, True)
    assert changed_pictures(folders, ("one", "two"), before, after) == ({}, 0.5, False)
    assert "one and two were evaluated at thresholds [0.4, 0.5]" in capsys.readouterr().out


def test_a_threshold_that_an_earlier_version_has_written_is_read(tmp_path):
    (tmp_path / KEPT_AT).write_text("0.25")
    assert kept_at(tmp_path) == (0.25, False)


def test_evaluate_says_how_the_masks_of_its_pictures_are_scored(tmp_path):
    (tmp_path / "masks").mkdir()
    data = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 2, "size": 64}
    for row in load_dataset_dict("synthetic", **data)["test"]:
        row["mask"].save(tmp_path / "masks" / f"{row['sample_id']}.png")
    line = ["--predictions_dir", tmp_path / "masks", "--synthetic", json.dumps(data), "--report", "false"]
    for processed, option in enumerate(("none", '{"min_size": 5}')):
        more = ["--keep_pictures", "true", "--threshold", 0.4, "--postprocessing", option]
        run_task("evaluate", *line, *more, "--output_dir", tmp_path / option[:4])
        assert kept_at(tmp_path / option[:4] / SAMPLES) == (0.4, bool(processed))
