"""Runs of reinforcement learning that must be one and the same: one process, DDP, ZeRO-3; killed and gone on."""

import signal
import subprocess
import time

import launch
import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict, concatenate_datasets, load_from_disk
from launch import DDP, ENVIRONMENT, FOUR_STEPS, ONE, ZERO3, assert_same
from PIL import Image
from rows import every_kind, make, noise

from sa2va_trl import mining, tiny_sa2va
from sa2va_trl.data import synthetic_dataset


# (At a higher rate the masks of an untrained model are soon empty, and no reward says anything.)
OPTIONS = {**FOUR_STEPS, "learning_rate": 5.0e-5, "trainable": "head", "num_generations": 4, "cache_features": "off"}
NAMES = (
    *("loss", "grad_norm", "reward", "reward_std", "rewards/greedy", "frac_reward_zero_std", "rewards/dice/mean"),
    *("policy_loss", "decoder_loss", "mask_loss", "dice_loss", "kl", "clip_ratio/region_mean"),
    *("value_loss", "embedding_noise", "reward_weights/cldice"),
    *("eval_loss", "eval_dice", "eval_iou"),
)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """
    Rows of every kind: one object, several, a clip, none, text alone; and two whose masks are empty, of which no drawn
    mask is better than another, so that their groups are skipped.
    """
    empty = Image.new("L", (48, 40))
    rows = [every_kind()[number] for number in range(6)]
    rows += [
        {"image": noise(20 + n), "masks": [empty], "phrases": ["vessel"], "sample_id": f"empty mask {n}"}
        for n in range(2)
    ]
    held_out = synthetic_dataset(num_videos=1, frames_per_video=3, size=64, first_video=8)
    folder = tmp_path_factory.mktemp("kinds") / "data"
    DatasetDict(train=make(rows), validation=held_out).save_to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """Thin vessels and medium ones, and scores by whose spread rows are drawn."""
    folder = tmp_path_factory.mktemp("sizes")
    parts = [synthetic_dataset(num_videos=1, frames_per_video=4, size=size) for size in (64, 256)]
    parts[1] = parts[1].map(lambda row: {"sample_id": f"large {row['sample_id']}"})
    train = concatenate_datasets([part.remove_columns(["frame_index", "video_id"]) for part in parts])
    held_out = synthetic_dataset(num_videos=1, frames_per_video=3, size=64, first_video=8)
    DatasetDict(train=train, validation=held_out).save_to_disk(folder / "data")
    train = load_from_disk(folder / "data")["train"]
    model, processor = tiny_sa2va(image_size=OPTIONS["grounding_image_size"])
    spread = [0.1, 0.2, 0.0, 0.4, 0.3, 0.1, 0.2, 0.4]
    scores = pd.DataFrame({"sample_id": train["sample_id"], "dice": 0.5, "reward_spread": spread})
    path = folder / "scores.parquet"
    mining.save_scores(scores, path, mining.fingerprint_of(model, processor, train))
    return {"dataset_name": str(folder / "data"), "scores": str(path), "sample_by": "spread"}


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five rows, which two processes cannot share out evenly, and an evaluation set."""
    folder = tmp_path_factory.mktemp("five") / "data"
    train, held_out = (
        synthetic_dataset(num_videos=1, frames_per_video=count, size=64, first_video=first)
        for count, first in ((5, 0), (3, 8))
    )
    DatasetDict(train=train, validation=held_out).save_to_disk(folder)
    return str(folder)


def run(launcher, folder, dataset, size, **options):
    sizes = {"per_device_train_batch_size": size, "per_device_eval_batch_size": 1}
    return launch.run(launcher, folder, "grpo", {**OPTIONS, "dataset_name": dataset, **sizes, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {
            **{"policy": "both", "beta": 0.1, "num_iterations": 2, "epsilon": 0.01, "rank_history": 32},
            **{"advantage": "value", "learn_noise": True},
        },
    ],
)
def test_one_process_equals_ddp_equals_zero3_with_rows_of_every_kind(tmp_path, kinds, options):
    one = run(ONE, tmp_path / "one", kinds, 2, **options)
    drawn = [entry for entry in one if "reward" in entry]
    assert drawn[-1]["reward_std"] > 0
    assert any(0 < entry["frac_reward_zero_std"] for entry in drawn)
    for name, launcher in (("ddp", DDP), ("zero3", ZERO3)):
        assert_same(one, run(launcher, tmp_path / name, kinds, 1, **options), NAMES)


@pytest.mark.slow
def test_five_rows_on_two_processes(tmp_path, five):
    """
    The last micro-batch of an epoch has a row for one process only; the other is given the epoch's first once more, by
    accelerate, which one process alone does not see.
    """
    options = {"policy": "field", "max_steps": 6, "eval_steps": 3}
    one = run(ONE, tmp_path / "one", five, 2, **options)
    two = run(DDP, tmp_path / "ddp", five, 1, **options)
    drawn = [[entry for entry in log if "reward" in entry] for log in (one, two)]
    for name in set(NAMES) & set(drawn[0][0]):
        assert drawn[0][0][name] == pytest.approx(drawn[1][0][name], rel=2e-4, abs=1e-6), name
    assert [entry["step"] for entry in drawn[1]] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(entry[name]) for entry in drawn[1] for name in ("loss", "grad_norm", "reward"))


# Rows by their scores, thick vessels first, and a weight that follows its part of the reward.
ADAPTED = {
    "curriculum": "thickness",
    "adaptive_weights": [
        {"component": "cldice", "below": 0.9, "weight": 0.8, "otherwise": 0.4, "patience": 1, "decay": 0.5}
    ],
}


@pytest.mark.slow
def test_killed_on_two_processes_and_resumed_equals_uninterrupted(tmp_path, sizes):
    """
    The one that is not killed is on one process; drawn by scores, in the stages of a curriculum, with weights that
    change, both see the same rows and masks.
    """
    options = {
        **OPTIONS,
        **sizes,
        **ADAPTED,
        "per_device_train_batch_size": 1,
        "max_steps": 8,
        "num_iterations": 2,
        "noise_end": 0.5,
        "rank_history": 32,
        "advantage": "value",
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "no",
    }
    alone = {**options, "per_device_train_batch_size": 2}
    whole = launch.run(ONE, tmp_path / "whole", "grpo", alone)
    assert [entry for entry in whole if "reward" in entry][-1]["reward_std"] > 0
    assert [entry["reward_weights/cldice"] for entry in whole[:-1]] == 2 * [0.4] + 6 * [0.8]
    killed = tmp_path / "killed"
    line = launch.recipe_line(killed, "grpo", options)
    with subprocess.Popen(
        [*DDP.command, *line],
        env=ENVIRONMENT,
        cwd=killed,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while not (killed / "out" / "checkpoint-4" / "trainer_state.json").exists():
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        # (With those that the launcher has started, which would go on.)
        subprocess.run(["pkill", "-KILL", "-f", str(killed)], check=True)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "out" / "trainer_state.json").exists()
    assert not (killed / "out" / "checkpoint-8").exists()
    line = launch.recipe_line(killed, "grpo", {**options, "resume_from_checkpoint": "latest"})
    DDP.run(line, killed)
    resumed = launch.log_of(killed)
    assert_same(whole, resumed, NAMES)
