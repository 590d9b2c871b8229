"""Runs that go on where others ended: killed, on another number of processes, under ZeRO-3."""

import json
import signal
import subprocess
import time

import launch
import pytest
from launch import DDP, ENVIRONMENT, FOUR_STEPS, ONE, ZERO3, assert_same


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path, mixed):
    options = {
        **FOUR_STEPS,
        "dataset_name": mixed,
        "per_device_train_batch_size": 2,
        "max_steps": 8,
        "trainable": "stage1",
        "lora_r": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "lora_dropout": 0.1,
        "num_points": 128,
        "augmentation": {"flip": 0.5, "rotation": 10.0},
    }
    whole = launch.run(ONE, tmp_path / "whole", "sft", options)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*ONE.command, *launch.recipe_line(killed, "sft", options)],
        env=ENVIRONMENT,
        cwd=killed,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (killed / "out" / "checkpoint-4" / "trainer_state.json").exists():
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "out" / "trainer_state.json").exists()
    # What a kill in the middle of saving leaves behind is passed over.
    (killed / "out" / "checkpoint-99").mkdir()
    line = launch.recipe_line(killed, "sft", {**options, "resume_from_checkpoint": "latest"})
    resumed = launch.run_alone(ONE, line, killed)
    assert_same(whole, resumed)


GO_ON = """
import json, sys
import numpy as np
from sa2va_trl import SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.processes import leave_process_group
from sa2va_trl.data import synthetic_dataset

class Recorded(SegSFTTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        entry = {"step": self.state.global_step + 1, "rows": inputs.pop("numbers")}
        with open(f"{self.args.output_dir}/rows-{self.args.process_index}.jsonl", "a") as file:
            file.write(json.dumps(entry) + chr(10))
        return super().training_step(model, inputs, *args, **kwargs)

def areas(predicted, target):
    return {"target": target.mean(), "bright": predicted.mean() if target.mean() > 0.03 else np.nan}

options, checkpoint = json.loads(sys.argv[1]), sys.argv[2]
data = [synthetic_dataset(num_videos=1, frames_per_video=n, size=64, first_video=v) for n, v in ((10, 0), (3, 8))]
model, processor = tiny_sa2va(image_size=128)
trainer = Recorded(model, SegSFTConfig(**options), None, *data, processor, mask_metrics=areas)
collate = trainer.data_collator
trainer.data_collator = lambda rows: {**collate(rows), "numbers": [row["row_index"] for row in rows]}
trainer.train(resume_from_checkpoint=checkpoint or None)
trainer.save_state()
leave_process_group()
"""


def go_on(launcher, folder, size, checkpoint=""):
    """Log and rows of a run of nine steps; the rows of each step in their order, whoever had them."""
    folder.mkdir()
    (folder / "script.py").write_text(GO_ON)
    names = ("logging_steps", "report_to", "disable_tqdm", "num_points", "lr_scheduler_type")
    options = {name: FOUR_STEPS[name] for name in names}
    options |= {"learning_rate": 1e-3, "trainable": "head", "lm_weight": 0.0, "cache_features": "off"}
    options |= {"max_steps": 9, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 9}
    options |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": size}
    # (The loss of evaluation is a mean over batches, so those are of one row.)
    options |= {"per_device_eval_batch_size": 1, "output_dir": str(folder / "out")}
    launcher.run([str(folder / "script.py"), json.dumps(options), str(checkpoint)], folder)
    parts = [
        [json.loads(text) for text in file.read_text().splitlines()]
        for file in sorted((folder / "out").glob("rows-*.jsonl"))
    ]
    rows = {}
    for batch in zip(*parts, strict=True):
        assert len({entry["step"] for entry in batch}) == 1
        rows.setdefault(batch[0]["step"], []).extend(sum((entry["rows"] for entry in batch), []))
    return launch.log_of(folder), rows


@pytest.mark.slow
def test_two_processes_then_one_then_two_see_the_same_rows_in_the_same_order(tmp_path):
    """Gone on from the middle of the second epoch and of the third; with an evaluation of three rows on two ranks."""
    log, rows = go_on(DDP, tmp_path / "whole", 1)
    assert [len(step) for step in rows.values()] == [4, 4, 2] * 3
    assert len({tuple(rows[step]) for step in (1, 4, 7)}) == 3
    one_log, one = go_on(ONE, tmp_path / "one", 2, tmp_path / "whole" / "out" / "checkpoint-4")
    assert one == {step: numbers for step, numbers in rows.items() if step > 4}
    two_log, two = go_on(DDP, tmp_path / "two", 1, tmp_path / "one" / "out" / "checkpoint-8")
    assert two == {9: rows[9]}
    names = ("loss", "grad_norm", "mask_loss", "dice_loss", "eval_loss", "eval_dice", "eval_target", "eval_bright")
    for found in (one_log, two_log):
        assert_same(log[:-1], found[:-1], names)
    assert {"eval_target", "eval_bright"} <= log[-2].keys()


@pytest.mark.slow
def test_the_documented_launch_of_zero3_trains_and_goes_on_with_as_many_processes(tmp_path):
    config = str(launch.ROOT / "recipes" / "configs" / "tiny" / "sft.yaml")
    small = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 8, "size": 64}
    fast = ["--max_steps", "3", "--save_steps", "1", "--eval_steps", "1", "--logging_steps", "1"]
    # (A run that goes on would be evaluated at its start too, once more than one that is whole.)
    fast += ["--save_total_limit", "9", "--eval_on_start", "false", "--synthetic", json.dumps(small)]

    line = [str(launch.ROOT / "recipes" / "sft.py"), "--config", config, *fast, "--output_dir", "out"]

    # (The processes that stand ready were started in the same way.)
    for folder in (whole := tmp_path / "whole", two := tmp_path / "two"):
        folder.mkdir()
    ZERO3.run(line, whole)
    resume = ("--resume_from_checkpoint", str(whole / "out" / "checkpoint-1"))
    assert_same(launch.log_of(whole)[:-1], launch.run_alone(ZERO3, [*line, *resume], two)[:-1])
