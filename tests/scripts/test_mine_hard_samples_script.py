import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from prepared import write_runs
from segmentations import SIZE, write_run, write_series
from tasks import run_task

from sa2va_trl.data import synthetic_dataset, synthetic_splits
from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.dicom_seg import write_dicom_seg
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.errors import DatasetError, MiningError
from sa2va_trl.mining.score_files import read_scores


DATA = {"train_videos": 1, "validation_videos": 1, "test_videos": 2, "frames_per_video": 6, "size": 64}
COMMON = ["--model_name_or_path", "tiny-random", "--grounding_image_size", "128", "--dataset_split", "test"]
COMMON += ["--synthetic", json.dumps(DATA)]


def mine(output, *options):
    run_task("mine_hard_samples", *COMMON, "--output_dir", output, *options)


def test_what_mining_leaves(tmp_path, capsys):
    output = tmp_path / "hard"
    (output / "clusters").mkdir(parents=True)
    (output / "clusters" / "of_an_earlier_call.png").touch()
    mine(output, "--worst", 0.5)
    assert {file.name for file in output.iterdir()} == {"scores.parquet", "hard_samples.json", "clusters"}
    found = json.loads((output / "hard_samples.json").read_text())
    scores = read_scores(output / "scores.parquet", found["fingerprint"])
    assert len(scores) == found["samples"] == 12
    assert scores["sample_id"][scores["hard"]].tolist() == found["hard"] and len(found["hard"]) == 6
    assert sum(bucket["count"] for bucket in found["buckets"]) == 12
    assert [entry["sample_id"] for entry in found["review"]] == scores["sample_id"][scores["review"]].tolist()
    by_cluster = scores.dropna(subset=["cluster"]).groupby("cluster")["sample_id"].apply(list).to_dict()
    assert {cluster["cluster"]: cluster["sample_ids"] for cluster in found["clusters"]} == by_cluster

    sheets = sorted((output / "clusters").iterdir())
    assert len(sheets) == len(found["clusters"]) > 0
    for sheet, cluster in zip(sheets, found["clusters"], strict=True):
        first, last = max(cluster["first_frame"] - 1, 0), min(cluster["last_frame"] + 1, 5)
        assert Image.open(sheet).size == (192 * (last - first + 1), 20 + 2 * 192)
    assert "6 of 12 samples are hard" in capsys.readouterr().out


def test_a_threshold_that_selects_all_says_what_would_and_scores_nothing_twice(monkeypatch, tmp_path):
    with pytest.raises(MiningError, match=r"hard_below=1.5 selects all of 12 samples.*A limit of 0\.\d+ selects"):
        mine(tmp_path, "--threshold", 1.5)
    assert [file.name for file in tmp_path.iterdir()] == [".partial"]

    def never(*args):
        raise AssertionError("scored again")

    with monkeypatch.context() as again:
        again.setattr("sa2va_trl.mining.scoring._Scorer.__call__", never)
        mine(tmp_path, "--worst", 0.5, "--num_sheets", 0)
    assert not (tmp_path / ".partial").exists() and (tmp_path / "scores.parquet").exists()


def test_without_labels(tmp_path):
    mine(tmp_path, "--labels", "false", "--worst", 0.5, "--method", "neighbours", "--min_length", 1)
    found = json.loads((tmp_path / "hard_samples.json").read_text())
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert found["by"] == "consistency" and "dice" not in scores and not scores["review"].any()
    assert len(list((tmp_path / "clusters").iterdir())) == len(found["clusters"]) > 0


def test_rows_to_review_go_to_the_annotation_tool(tmp_path, capsys):
    output = tmp_path / "hard"
    mine(output, "--worst", 0.5, "--tau_low", 1, "--num_sheets", 0, "--export", "cvat", "--mask_threshold", 0.3)
    found = json.loads((output / "hard_samples.json").read_text())
    names = [entry["sample_id"] for entry in found["review"]]
    assert names and f"annotation tool in {output / 'export'}" in capsys.readouterr().out
    rows = load_dataset_dict(str(output / "export"))["train"]
    assert [Path(row["image"]["path"]).stem for row in rows.cast_column("image", ImageFeature(decode=False))] == names
    splits = synthetic_splits(**DATA)["test"]
    own = {row["sample_id"]: row for row in splits}
    drawn = 0
    for name, row in zip(names, rows, strict=True):
        assert row["image"].convert("RGB").tobytes() == own[name]["image"].convert("RGB").tobytes()
        assert row["phrases"] == ["blood vessel"]
        drawn += sum(np.asarray(mask).any() for mask in row["masks"])
    assert drawn

    # What an annotator has changed is kept; a call without an export takes its own away.
    with open(output / "export" / "annotations.xml", "a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=r"replaced: export/annotations.xml \(changed since\). Give another"):
        mine(output, "--worst", 0.5)
    (output / "export" / "annotations.xml").unlink()
    mine(output, "--worst", 0.5, "--num_sheets", 0)
    assert not (output / "export").exists()


def dicom_options(folder):
    options = ["--dataset_name", folder, "--dataset_split", "train", "--num_sheets", 0, "--mask_threshold", 0.3]
    return [*COMMON[:4], *options]


def test_rows_of_dicom_files_go_back_as_segmentations_of_those(tmp_path):
    folder, output = tmp_path / "data", tmp_path / "hard"
    (folder / "images").mkdir(parents=True)
    write_run(folder / "images" / "run", frames=4)
    write_series(folder / "images", ["a.dcm", "b.dcm"])
    own = [("run", 0), ("run", 1), ("run", 2), ("a.dcm", None), ("b.dcm", None)]
    images = []
    for number, (name, frame) in enumerate(own):
        mask = np.zeros(SIZE[::-1], dtype=bool)
        mask[2 : 6 + number, 3 : 5 + number] = True
        images.append(Annotated(f"images/{name}", SIZE, (Found("vessel", mask),), frame))
    write_dicom_seg(folder, images)
    options = ["--worst", 0.5, "--tau_low", 1, "--export", "dicom_seg", "--output_dir", output]
    run_task("mine_hard_samples", *dicom_options(folder), *options)
    review = [entry["sample_id"] for entry in json.loads((output / "hard_samples.json").read_text())["review"]]
    rows = load_dataset_dict(str(output / "export"))["train"]
    assert review and sorted(rows["sample_id"]) == sorted(review)
    pictures = {row["sample_id"]: row["image"].tobytes() for row in load_dataset_dict(str(folder))["train"]}
    assert all(row["image"].tobytes() == pictures[row["sample_id"]] for row in rows)
    assert any(np.asarray(drawn).any() for row in rows for drawn in row["masks"])


def test_rows_without_dicom_files_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("sa2va_trl.scripts.mine_hard_samples.load_model", None)
    with pytest.raises(DatasetError, match="is for rows of a folder with DICOM files and their masks; 'synthetic' is"):
        mine(tmp_path / "hard", "--export", "dicom_seg")
    folder = write_runs(tmp_path / "data", patients=1, frames=2)
    with pytest.raises(DatasetError, match="2 of 2 files cannot be exported as dicom_seg"):
        run_task("mine_hard_samples", *dicom_options(folder), "--export", "dicom_seg", "--output_dir", tmp_path)


def test_clips_are_drawn_by_their_first_frames(tmp_path):
    frames = [dict(row) for row in synthetic_dataset(1, 6, 64)]
    kinds = {"images": List(ImageFeature()), "masks": List(ImageFeature(mode="L")), "phrases": List(Value("string"))}
    names = {"sample_id": Value("string"), "video_id": Value("string"), "frame_index": Value("int64")}
    clips = [
        {
            "images": [row["image"] for row in frames[start : start + 2]],
            "masks": [row["mask"] for row in frames[start : start + 2]],
            **{"phrases": ["vessel"], "sample_id": f"clip{start}", "video_id": "a", "frame_index": start},
        }
        for start in (0, 2, 4)
    ]
    DatasetDict(test=Dataset.from_list(clips, Features(kinds | names))).save_to_disk(tmp_path / "data")
    options = ["--grounding_image_size", 64, "--dataset_split", "test", "--dataset_name", tmp_path / "data"]
    options += ["--output_dir", tmp_path / "hard", "--worst", 0.4, "--min_length", 1]
    run_task("mine_hard_samples", *options)
    (sheet,) = (tmp_path / "hard" / "clusters").iterdir()
    assert Image.open(sheet).size in [(2 * 192, 20 + 2 * 192), (3 * 192, 20 + 2 * 192)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", 0.7, "--worst", 0.2], "give one"),
        (["--smoothing", 2], "odd"),
        (["--method", "tracking"], "method has no effect"),
        (["--labels", "false", "--cache_features", "on"], "cache_features='on': labels=false has no use"),
        (["--labels", "false", "--tau_low", 0.1], "tau_low=0.1: labels=false has no use"),
        (["--labels", "false", "--export", "coco"], "export='coco': labels=false has no use"),
        (["--export", "csv"], "export must be one of"),
        (["--worst", 1.5], "worst is the share"),
        (["--threshold", "nan"], "nan"),
        (["--tau_low", 3], "tau_low"),
        (["--num_sheets", -1], "num_sheets"),
        (["--sampler", '{"field": -1}'], "field"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_scored(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        mine(tmp_path, *options)
    assert not any(tmp_path.iterdir())
