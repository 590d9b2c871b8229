import json

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict
from PIL import Image
from tasks import run_task

from sa2va_trl.data.synthetic import synthetic_dataset
from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation import compare, comparison_table
from sa2va_trl.evaluation.gallery import make_picture, save_picture
from sa2va_trl.evaluation.results import aggregate
from sa2va_trl.metrics import METRICS
from sa2va_trl.scripts.reporting import move_pictures


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
    said = capsys.readouterr().out
    assert comparison_table(found) in said
    assert f"another metric: sa2va-trl compare {' '.join(map(str, folders))} --metric iou --output_dir" in said
    files = {"comparison.json", "report.html", "metrics_distribution.png"}
    assert {path.name for path in output.iterdir()} == files
    page = (output / "report.html").read_text()
    assert "stage3 − stage2" in page and "stage2 against stage1" in page
    run_task("compare", *folders, "--output_dir", output, "--report", "false")  # which leaves no page of another call
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


def test_folders_that_share_a_name_are_seeds_of_one_run(tmp_path, folders):
    output = tmp_path / "output"
    run_task("compare", *folders, "--names", "sft", "sft", "dpo", "--output_dir", output)
    found = json.loads((output / "comparison.json").read_text())
    one, two, three = (read(folder) for folder in folders)
    assert found == compare({"sft": [one, two], "dpo": [three]})
    assert found["runs"]["sft"]["seeds"]["means"] == pytest.approx([one["dice"].mean(), two["dice"].mean()])
    assert found["differences"][0]["clusters"] == 4


def test_a_metric_that_improves_downwards(tmp_path, folders):
    output = tmp_path / "output"
    run_task("compare", *folders[:2], "--lower_is_better", "true", "--output_dir", output)
    turned = json.loads((output / "comparison.json").read_text())
    run_task("compare", *folders[:2], "--output_dir", output)
    found = json.loads((output / "comparison.json").read_text())
    assert turned["differences"][0]["improved"] == pytest.approx(1 - found["differences"][0]["improved"])


@pytest.fixture
def masks(tmp_path):
    """Masks of generated data by two other tools, of which one moves them by two pixels; the data are in `data`."""
    truth = synthetic_dataset(num_videos=4, frames_per_video=2, size=64)
    DatasetDict(test=truth).save_to_disk(tmp_path / "data")
    for name, shift in (("exact", 0), ("moved", 2)):
        (tmp_path / name).mkdir()
        for row in truth:
            mask = np.roll(np.asarray(row["mask"]), shift, axis=1)
            Image.fromarray(mask).save(tmp_path / name / f"{row['sample_id']}.png")
    return tmp_path / "moved", tmp_path / "exact"


def test_masks_of_other_tools_are_scored_on_the_data(tmp_path, masks, capsys):
    output = tmp_path / "output"
    run_task("compare", *masks, "--dataset_name", tmp_path / "data", "--output_dir", output)
    found = json.loads((output / "comparison.json").read_text())
    assert found["runs"]["exact"]["mean"] == 1 and 0.2 < found["runs"]["moved"]["mean"] < 0.95
    assert found["differences"][0]["improved"] == 1
    said = capsys.readouterr().out
    assert f"--dataset_name {tmp_path / 'data'} --metric iou" in said

    # Beside an evaluation of the same split, with files of other samples; and where masks do not fit it.
    evaluation = tmp_path / "evaluation"
    options = ("--dataset_name", tmp_path / "data", "--output_dir")
    run_task("evaluate", "--predictions_dir", masks[0], *options, evaluation, "--num_overlays", 0)
    first, second, *_ = sorted(masks[1].iterdir())
    Image.new("L", (8, 8)).save(masks[1] / "stray.png")
    run_task("compare", evaluation, masks[1], *options, output)
    again = json.loads((output / "comparison.json").read_text())
    assert again["differences"][0]["mean"] == found["differences"][0]["mean"]
    assert "holds 1 files of no sample, which are left out: stray.png" in capsys.readouterr().out
    for file in (first, second):
        Image.new("L", (8, 8)).save(file)
    with pytest.raises(DatasetError, match=f"(?s){first.name}.*{second.name}"):
        run_task("compare", evaluation, masks[1], *options, output)
    first.unlink()
    with pytest.raises(DatasetError, match=f"lacks 1 of .*: {first.name}"):
        run_task("compare", evaluation, masks[1], *options, output)


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
        (("stage1", "stage1"), "stage1 is given more than once"),
        (("stage1", "./stage1/", "--names", "a", "b"), "stage1 is given more than once"),
        (("stage1", "stage2", "--names", "a"), "1 names for 2 folders"),
        (("stage1", "stage2", "--names", "a", "a"), "seeds of one run, a: a comparison needs names of two"),
        (("stage1", "masks"), "masks: no per_sample.parquet, but mask PNGs. Say which data"),
        (
            ("stage1", "stage2", "--dataset_name", "synthetic"),
            "dataset_name has no effect: all folders are evaluations",
        ),
        (("stage1", "masks", "--dataset_split", "test"), "dataset_split has no meaning without dataset_name"),
        (("stage1", "stage2", "--metric", "cldice"), "has no column cldice, only"),
        (("stage1", "stage2", "--metric", "video_id"), "video_id holds no numbers"),
        (("stage1", "stage2", "--reference", "stage3"), "none of the runs stage1, stage2"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(monkeypatch, tmp_path, folders, options, message):
    (tmp_path / "masks").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "masks" / "frame0.png")
    (tmp_path / "other").mkdir()
    read(folders[1]).query("sample_id != 'frame0'").to_parquet(tmp_path / "other" / "per_sample.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_task("compare", *options, "--output_dir", tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("processed", [0, 1, None])
def test_the_page_says_that_pictures_are_not_post_processed(tmp_path, folders, processed):
    for number, folder in enumerate(folders[:2]):
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for row in synthetic_dataset(num_videos=3, frames_per_video=4, size=64, seed=0).add_column(
            "place", list(range(12))
        ):
            row["sample_id"] = f"frame{row['place']}"
            save_picture(pictures, make_picture(row, [np.full((1, 64, 64), 0.4, dtype=np.float32)], {}))
        move_pictures(folder, pictures, 0.5, {"min_size": 5} if number == processed else {})
    run_task("compare", *folders[:2], "--output_dir", tmp_path / "output")
    page = (tmp_path / "output" / "report.html").read_text()
    assert 'class="picture"' in page
    assert ("masks as they are before post-processing" in page) == (processed is not None)
