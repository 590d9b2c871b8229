"""Runs of `recipes/hard_sample.py` that must be one and the same: one process, DDP, ZeRO-3; resumed."""

import launch
import pytest
from datasets import DatasetDict, load_from_disk
from launch import DDP, ONE, ZERO3

from sa2va_trl import mining, tiny_sa2va
from sa2va_trl.data import synthetic_dataset


OPTIONS = {
    **launch.OPTIONS,
    "learning_rate": 2.0e-4,
    "num_train_epochs": 2,
    "worst": 0.3,
    "include_review": True,  # no candidate of the tiny model explains any mask
    "curriculum": "difficulty",
    "difficulty": "dice",
    "augmentation": {"flip": 0.5, "rotation": 10.0, "motion_blur": 0.05},
    "remine_every": 1,
    "eval_strategy": "epoch",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine rows, which fill no whole number of updates, and an evaluation set."""
    folder = tmp_path_factory.mktemp("data") / "data"
    train = synthetic_dataset(num_videos=1, frames_per_video=9, size=64)
    DatasetDict(
        train=train, validation=synthetic_dataset(num_videos=1, frames_per_video=3, size=64, first_video=2)
    ).save_to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scores(data, tmp_path_factory):
    """What a run without scores finds out itself, which it cannot where DeepSpeed holds the weights."""
    path = tmp_path_factory.mktemp("scores") / "scores.parquet"
    rows = load_from_disk(data)["train"]
    model, processor = tiny_sa2va(image_size=OPTIONS["grounding_image_size"])
    found = mining.mine(mining.score_dataset(model, processor, rows, progress=False), worst=OPTIONS["worst"])
    mining.save_scores(found, path, mining.fingerprint_of(model, processor, rows))
    return str(path)


def run(launcher, folder, dataset, **options):
    return launch.run(launcher, folder, "hard_sample", {**OPTIONS, "dataset_name": dataset, **options})


NAMES = ("loss", "grad_norm", "mask_loss", "dice_loss", "masks/dice_hard", "masks/dice_easy")
NAMES += ("eval_loss", "eval_dice", "eval_dice_hard", "eval_dice_easy")


def assert_same(expected, found):
    launch.assert_same(expected, found, NAMES)


@pytest.mark.slow
def test_one_process_equals_ddp_equals_zero3_equals_resumed(tmp_path, data, scores):
    one = run(ONE, tmp_path / "one", data, per_device_train_batch_size=2, per_device_eval_batch_size=2)
    sizes = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    two = run(DDP, tmp_path / "ddp", data, save_strategy="steps", save_steps=1, **sizes)
    assert_same(one, two)
    assert_same(one, run(ZERO3, tmp_path / "zero3", data, scores=scores, **sizes))
    # In the middle of the second epoch, whose rows have been scored anew.
    steps = one[-1]["step"]
    assert steps % 2 == 0 and steps > 2
    checkpoint = str(tmp_path / "ddp" / "out" / f"checkpoint-{steps // 2 + 1}")
    assert_same(one, run(DDP, tmp_path / "resumed", data, resume_from_checkpoint=checkpoint, **sizes))
