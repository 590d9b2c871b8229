"""Frozen features: computed, shared and used by one process, DDP and ZeRO-3 alike."""

import json

import launch
import pytest
from launch import DDP, FOUR_STEPS, ONE, ZERO3, assert_same


@pytest.mark.slow
def test_features_are_computed_and_used_alike_on_one_process_ddp_and_zero3(tmp_path, mixed):
    options = {**FOUR_STEPS, "dataset_name": mixed, "trainable": "head", "lm_weight": 0.0, "max_steps": 6}
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    expected = launch.run(ONE, tmp_path / "off", "sft", {"cache_features": "off", **sizes, **options})
    sizes = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    stores = []
    for name, launcher in (("ddp", DDP), ("zero3", ZERO3)):
        cache = tmp_path / f"cache-{name}"
        # The second time from what the first has left.
        for turn in ("first",) if launcher is DDP else ("first", "second"):
            cached = {"cache_features": "on", "cache_dir": str(cache)}
            found = launch.run(launcher, tmp_path / name / turn, "sft", {**cached, **sizes, **options})
            for entry in expected:
                entry.pop("lm_loss", None)
            assert_same(expected, found)
            prints = {folder: json.loads((folder / "fingerprint.json").read_text()) for folder in cache.iterdir()}
            (packed,) = [folder for folder in prints if prints[folder].get("what") == "masks"]
            (store,) = prints.keys() - {packed}
            # Each process has written its share, once.
            records = [file.read_text().splitlines() for file in store.glob("*.jsonl")]
            assert sorted(map(len, records)) == [8, 8]
            records = [file.read_text().splitlines() for file in packed.glob("*.jsonl")]
            keys = [json.loads(line)["key"] for lines in records for line in lines]
            assert len(records) > 1 and len(set(keys)) == len(keys) > 8
        stores.append(store.name)
    assert stores[0] == stores[1]
