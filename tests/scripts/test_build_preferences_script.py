import re

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from prepared import write_runs
from tasks import options, run_task

from sa2va_trl.data.selections import write_selection


SYNTHETIC = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 3, "size": 64}


def test_build_preferences_writes_pairs_and_a_contact_sheet(tmp_path, trained, capsys):
    from datasets import load_dataset

    output = tmp_path / "preferences"
    run_task(
        "build_preferences",
        *options(
            tmp_path, synthetic=SYNTHETIC, chosen=["ground_truth", "stitched"], reward='{"dice": 3, "cldice": 1}'
        ),
        *("--model_name_or_path", trained, "--output_dir", output, "--rejected", "greedy", "worst"),
        *("--dataset_split", "validation", "--min_gap", 0.1, "--num_pictures", 3),
    )
    pairs = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))["validation"]
    gaps = np.array(pairs["chosen_reward"]) - np.array(pairs["rejected_reward"])
    assert len(pairs) and (gaps >= 0.1).all()
    printed = capsys.readouterr().out
    for kind in set(pairs["pair_kind"]):
        assert re.search(rf"{kind} +{list(pairs['pair_kind']).count(kind)} ", printed)
    assert len(set(pairs["pair_kind"])) == 4
    assert Image.open(output / "pairs.png").size == (768, 3 * 256)


def test_pairs_of_a_raw_folder_are_not_pushed(tmp_path):
    line = ["--push_to_hub", "true", "--hub_dataset_id", "me/pairs", "--output_dir", tmp_path / "out"]
    raw = write_runs(tmp_path / "DOE^JOHN", patients=1)
    write_selection(tmp_path / "chosen", str(raw), ["train"], {"train": ["P00_f0"]})
    for folder in (raw, tmp_path / "chosen"):
        with pytest.raises(ValueError, match="make a data set of it with prepare_data first"):
            run_task("build_preferences", "--dataset_name", folder, *line)


def test_build_preferences_pushes(monkeypatch, tmp_path, trained):
    pushed = {}

    def push(self, repo_id, **kwargs):
        pushed.update(kwargs, repo_id=repo_id, rows=len(self))

    monkeypatch.setattr(Dataset, "push_to_hub", push)
    run_task(
        "build_preferences",
        *options(tmp_path, synthetic=SYNTHETIC, output_dir=str(tmp_path / "out"), min_gap=0),
        *("--model_name_or_path", trained, "--push_to_hub", "true", "--hub_dataset_id", "me/pairs"),
    )
    assert pushed == {"repo_id": "me/pairs", "split": "train", "private": True, "rows": 3}
