import re

import numpy as np
from datasets import Dataset
from PIL import Image
from tasks import options, run_task


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
