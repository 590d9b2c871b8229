"""Runs of `recipes/evaluate.py` that must be one and the same: one process, two; killed and taken up."""

import json
import signal
import subprocess
import time

import launch
import pandas as pd
import pytest
from launch import DDP, ENVIRONMENT, ONE
from PIL import Image


OPTIONS = {
    "model_name_or_path": "tiny-random",
    "grounding_image_size": 128,
    "dataset_name": "synthetic",
    "synthetic": {
        "train_videos": 1,
        "validation_videos": 1,
        "test_videos": 4,
        "frames_per_video": 5,
        "size": 64,
    },
    "batch_size": 3,
    "num_overlays": 4,
    "num_pictures": 2,
    "keep_pictures": True,
    "metrics": "all",
}


def results(folder):
    """All that an evaluation leaves, but for the page, which names its folder."""
    output = folder / "out"
    assert (output / "report.html").is_file() and not list(output.glob(".*"))
    drawn = {str(file.relative_to(output)): Image.open(file).tobytes() for file in sorted(output.rglob("*/*.png"))}
    table = pd.read_parquet(output / "per_sample.parquet")
    return table, json.loads((output / "metrics.json").read_text()), drawn


def assert_same(expected, found):
    pd.testing.assert_frame_equal(expected[0], found[0], check_exact=True)
    assert expected[1] == found[1]
    assert len(expected[2]) == 4 + 20 and expected[2] == found[2]


@pytest.mark.slow
def test_one_process_equals_two_equals_killed_and_taken_up(tmp_path):
    def line(name):
        return launch.recipe_line(tmp_path / name, "evaluate", OPTIONS)

    ONE.run(line("one"), tmp_path)
    expected = results(tmp_path / "one")
    assert len(expected[0]) == 20
    DDP.run(line("two"), tmp_path)
    assert_same(expected, results(tmp_path / "two"))

    partial = tmp_path / "killed" / "out" / ".partial"
    # (Of a process alone: the launcher of several leaves them running where it is killed.)
    with subprocess.Popen([*ONE.command, *line("killed")], env=ENVIRONMENT) as process:
        while not list(partial.glob("*/*.json")):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "out" / "metrics.json").exists()
    assert 0 < len(list(partial.glob("*/*.json"))) < 7
    ONE.run(line("killed"), tmp_path)
    assert_same(expected, results(tmp_path / "killed"))
