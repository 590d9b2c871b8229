"""Runs of preference optimisation that must be one and the same: one process, DDP, ZeRO-3."""

import launch
import pytest
from datasets import DatasetDict
from launch import DDP, FOUR_STEPS, LOGGED, ONE, ZERO3, assert_same

from sa2va_trl import build_preferences, tiny_sa2va
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.preferences.dataset import save_preferences


DPO_NAMES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "masks/greedy_dice", "masks/dice_rejected")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Preference pairs of generated frames, and frames of other videos to choose by."""
    model, processor = tiny_sa2va(image_size=128)
    folder = tmp_path_factory.mktemp("pairs")
    frames = synthetic_dataset(num_videos=1, frames_per_video=8, size=64)
    made = build_preferences(frames, model, processor, rejected=["dilated", "broken_branch"], min_gap=0.0)
    save_preferences(made, folder / "pairs")
    held_out = synthetic_dataset(num_videos=1, frames_per_video=4, size=64, first_video=8)
    DatasetDict(validation=held_out).save_to_disk(folder / "data")
    return str(folder / "data"), str(folder / "pairs")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    # (What DDP does with LoRA and with mined pairs is what it does with the head.)
    [
        {"trainable": "head"},
        {"pairs": "online", "trainable": "stage1", "lora_r": 4, "lora_dropout": 0.0, "max_steps": 3},
    ],
)
def test_preferences_on_one_process_equal_ddp_equal_zero3(tmp_path, pairs, options):
    data, preferences = pairs
    options = {
        **FOUR_STEPS,
        "dataset_name": data,
        "preferences": preferences,
        "score": "region",
        "beta": 2.0,
        "sft_weight": 0.5,
        **options,
    }
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    one = launch.run(ONE, tmp_path / "one", "dpo", {**sizes, **options})
    margins = [entry["rewards/margins"] for entry in one if "rewards/margins" in entry]
    assert margins[0] == pytest.approx(0, abs=1e-6) and margins[-1] != pytest.approx(0, abs=1e-4)
    sizes = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    launches = [("zero3", ZERO3, True)]
    if options.get("trainable") == "head":  # of the others, what DDP does is a part of what ZeRO-3 does
        launches.append(("ddp", DDP, False))
    for name, launcher, from_yaml in launches:
        two = launch.run(launcher, tmp_path / name, "dpo", {**sizes, **options}, from_yaml)
        assert_same(one, two, (*LOGGED, *DPO_NAMES))
