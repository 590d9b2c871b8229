import json
import re

import pytest
from tasks import options, run_task

from sa2va_trl.scripts import reporting


SYNTHETIC = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 3, "size": 64}


def test_inspect_leaves_a_page_and_figures(tmp_path, capsys):
    output = tmp_path / "out"
    line = ["--output_dir", output, "--num_pictures", 6, "--grounding_image_size", 64]
    run_task("inspect", *options(tmp_path, synthetic=SYNTHETIC, augmentation={"rotation": 20}), *line)
    report = json.loads((output / "dataset_report.json").read_text())
    assert {split: own["rows"] for split, own in report["splits"].items()} == {"train": 3, "validation": 3, "test": 3}
    assert report["shared"] == [] and report["splits"]["train"]["sizes"] == {"64 x 64": 3}
    page = (output / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/jpeg', page)) == 6
    assert "rows of train after {" in page and "rotation" in page
    said = capsys.readouterr().out
    assert "train: 3 rows" in said and "report.html" in said
    assert not list(output.glob(".*"))


def test_without_matplotlib_there_are_figures_and_a_word_on_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "find_spec", lambda name: None)
    (tmp_path / "report.html").write_text("of an earlier call")
    run_task("inspect", *options(tmp_path, synthetic=SYNTHETIC), "--output_dir", tmp_path)
    said = capsys.readouterr().out
    assert "No report.html is written: it needs matplotlib, pip install 'sa2va_trl[report]'." in said
    assert (tmp_path / "dataset_report.json").is_file() and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_pictures", -1, "num_pictures must not be negative"),
        ("grounding_image_size", 0, "grounding_image_size must be positive"),
        ("near_duplicates", 1.5, r"near_duplicates must lie in \(0, 1\]"),
        ("report_pictures", "none", "embedded or beside, got 'none'"),
        ("augmentation", '{"rotation": -1}', "augmentation.rotation must lie in"),
        ("augmentation", '{"turn": 1}', "augmentation takes flip, .*; got"),
    ],
)
def test_bad_options_are_refused(tmp_path, option, value, message):
    with pytest.raises(ValueError, match=message):
        run_task("inspect", f"--{option}", value, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out" / "dataset_report.json").exists()
