import json

import numpy as np
import pandas as pd
import pytest
from tasks import run_task

from sa2va_trl.evaluation import compare, comparison_table
from sa2va_trl.evaluation.results import aggregate
from sa2va_trl.metrics import METRICS


@pytest.fixture
def folders(tmp_path):
    """Evaluations of twelve frames of four patients by three models, each table in an order of its own."""
    rng = np.random.default_rng(0)
    patients = np.repeat(["a", "b", "c", "d"], 3)
    videos = np.tile(["v1", "v2", "v3"], 4)
    for seed, name in enumerate(("stage1", "stage2", "stage3")):
        table = pd.DataFrame({"sample_id": [f"frame{index}" for index in range(12)], "patient_id": patients})
        table = table.assign(video_id=videos, frame_index=range(12), **{metric: rng.random(12) for metric in METRICS})
        (tmp_path / name).mkdir()
        table.sample(frac=1, random_state=seed).to_parquet(tmp_path / name / "per_sample.parquet")
    return [tmp_path / name for name in ("stage1", "stage2", "stage3")]


def read(folder):
    return pd.read_parquet(folder / "per_sample.parquet")


def test_comparison_is_written_and_printed(tmp_path, folders, capsys):
    output = tmp_path / "output"
    run_task("compare", *folders, "--output_dir", output)
    found = json.loads((output / "comparison.json").read_text())
    assert found == compare({folder.name: read(folder) for folder in folders})
    assert comparison_table(found) in capsys.readouterr().out
    assert [path.name for path in output.iterdir()] == ["comparison.json"]
    for folder in folders:  # resampled as the evaluation itself is
        ordered = read(folder).set_index("sample_id").loc[read(folders[0])["sample_id"]].reset_index()
        assert found["runs"][folder.name] == aggregate(ordered)["dice"]
    assert [(entry["before"], entry["after"]) for entry in found["differences"]] == [
        ("stage1", "stage2"),
        ("stage2", "stage3"),
    ]
    assert all(entry["clusters"] == 4 for entry in found["differences"])


def test_metric_names_and_reference(tmp_path, folders):
    output = tmp_path / "output"
    names = ["control", "two", "three"]
    options = ("--metric", "iou", "--reference", "control", "--output_dir", output)
    run_task("compare", *folders, "--names", *names, *options)
    found = json.loads((output / "comparison.json").read_text())
    assert found["metric"] == "iou"
    assert found["runs"]["two"]["mean"] == pytest.approx(read(folders[1])["iou"].mean())
    assert [(entry["before"], entry["after"]) for entry in found["differences"]] == [
        ("control", "two"),
        ("control", "three"),
    ]
    assert found["differences"][1]["mean"] == pytest.approx(
        read(folders[2])["iou"].mean() - read(folders[0])["iou"].mean()
    )


def test_folders_of_one_name_go_by_their_paths(tmp_path, folders):
    for folder in folders[:2]:
        (folder / "evaluation").mkdir()
        (folder / "per_sample.parquet").rename(folder / "evaluation" / "per_sample.parquet")
    paths = [folder / "evaluation" for folder in folders[:2]]
    run_task("compare", *paths, "--output_dir", tmp_path / "output")
    found = json.loads((tmp_path / "output" / "comparison.json").read_text())
    assert list(found["runs"]) == list(map(str, paths))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("stage1",), "two or more evaluation folders, got only"),
        (("stage1", "none"), "No per_sample.parquet in .*none: run sa2va-trl evaluate"),
        (("stage1", "other"), "different samples: only 'stage1' has frame0"),
        (("stage1", "stage1"), "a name of its own"),
        (("stage1", "stage2", "--names", "a"), "1 names for 2 folders"),
        (("stage1", "stage2", "--names", "a", "a"), "a name of its own"),
        (("stage1", "stage2", "--metric", "cldice"), "has no column cldice, only"),
        (("stage1", "stage2", "--metric", "video_id"), "video_id holds no numbers"),
        (("stage1", "stage2", "--reference", "stage3"), "none of the runs stage1, stage2"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(monkeypatch, tmp_path, folders, options, message):
    (tmp_path / "other").mkdir()
    read(folders[1]).query("sample_id != 'frame0'").to_parquet(tmp_path / "other" / "per_sample.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_task("compare", *options, "--output_dir", tmp_path / "output")
    assert not (tmp_path / "output").exists()
