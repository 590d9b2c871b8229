"""Runs of the training recipes that must be one and the same: one process, DDP, ZeRO-3; killed and resumed."""

import json
import signal
import subprocess
import time

import launch
import pytest
import torch
from datasets import DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from launch import DDP, ENVIRONMENT, ONE, ZERO3

from sa2va_trl import build_preferences, tiny_sa2va
from sa2va_trl.adapters.peft_model import load_adapter
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.preferences.dataset import save_preferences


OPTIONS = {
    **launch.OPTIONS,
    "learning_rate": 1.0e-3,
    "weight_decay": 0.01,
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Rows with a mask and rows of text only, so that ranks meet batches of different kinds."""
    features = Features(
        {
            "image": ImageFeature(),
            "masks": List(ImageFeature(mode="L")),
            "phrases": List(Value("string")),
            "messages": List({"role": Value("string"), "content": Value("string")}),
            "sample_id": Value("string"),
        }
    )

    def split(first_video, text_rows):
        source = synthetic_dataset(num_videos=1, frames_per_video=8, size=64, first_video=first_video)

        def convert(row, index):
            if index in text_rows:
                chat = [
                    {"role": "user", "content": "Which side?"},
                    {"role": "assistant", "content": "Left " * (1 + index)},
                ]
                return {"image": None, "masks": [], "phrases": [], "messages": chat}
            return {"image": row["image"], "masks": [row["mask"]], "phrases": [row["phrase"]], "messages": None}

        drop = [name for name in source.column_names if name != "sample_id"]
        return source.map(convert, with_indices=True, remove_columns=drop, features=features)

    folder = tmp_path_factory.mktemp("mixed")
    DatasetDict(train=split(0, {0, 3, 5}), validation=split(2, {1})).save_to_disk(folder / "data")
    return str(folder / "data")


def command(launcher, folder, dataset, recipe="sft", from_yaml=True, **options):
    return launch.command(launcher, folder, recipe, {**OPTIONS, "dataset_name": dataset, **options}, from_yaml)


def run(launcher, folder, *args, **options):
    return launch.log_of(command(launcher, folder, *args, **options), folder)


NAMES = ("loss", "grad_norm", "lm_loss", "mask_loss", "dice_loss", "eval_loss", "eval_dice", "eval_iou")
DPO_NAMES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "masks/greedy_dice", "masks/dice_rejected")


def assert_same(expected, found, names=NAMES):
    launch.assert_same(expected, found, names)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["stage1", "full"])
def test_one_process_equals_ddp_equals_zero3(tmp_path, mixed, trainable):
    options = {"trainable": trainable}
    if trainable == "stage1":
        options |= {"lora_r": 4, "lora_dropout": 0.0}
    else:  # a model that is loaded, where the other is made, and losses on a grid of their own
        model, processor = tiny_sa2va(image_size=128)
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        options |= {"model_name_or_path": str(tmp_path / "model"), "grounding_image_size": None, "mask_size": 64}
    one = run(ONE, tmp_path / "one", mixed, per_device_train_batch_size=2, per_device_eval_batch_size=2, **options)
    for name, launcher in (("ddp", DDP), ("zero3", ZERO3)):
        two = run(
            launcher, tmp_path / name, mixed, per_device_train_batch_size=1, per_device_eval_batch_size=1, **options
        )
        assert_same(one, two)
    if trainable == "stage1":
        from safetensors.torch import load_file

        weights = [
            load_file(tmp_path / name / "out" / "adapter_model.safetensors") for name in ("one", "ddp", "zero3")
        ]
        assert weights[0].keys() == weights[1].keys() == weights[2].keys()
        assert all(weights[2][name].shape == tensor.shape for name, tensor in weights[0].items())


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
    [{"trainable": "head"}, {"pairs": "online"}, {"trainable": "stage1", "lora_r": 4, "lora_dropout": 0.0}],
)
def test_preferences_on_one_process_equal_ddp_equal_zero3(tmp_path, pairs, options):
    data, preferences = pairs
    options = {"preferences": preferences, "score": "region", "beta": 2.0, "sft_weight": 0.5, **options}
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    one = run(ONE, tmp_path / "one", data, "dpo", **sizes, **options)
    margins = [entry["rewards/margins"] for entry in one if "rewards/margins" in entry]
    assert margins[0] == pytest.approx(0, abs=1e-6) and margins[-1] != pytest.approx(0, abs=1e-4)
    sizes = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    launches = [("zero3", ZERO3, True)]
    if options.get("trainable") == "head":  # of the others, what DDP does is a part of what ZeRO-3 does
        launches.append(("ddp", DDP, False))
    for name, launcher, from_yaml in launches:
        two = run(launcher, tmp_path / name, data, "dpo", from_yaml, **sizes, **options)
        assert_same(one, two, (*NAMES, *DPO_NAMES))


@pytest.mark.slow
def test_features_are_computed_and_used_alike_on_one_process_ddp_and_zero3(tmp_path, mixed):
    options = {"trainable": "head", "lm_weight": 0.0, "max_steps": 6}
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    expected = run(ONE, tmp_path / "off", mixed, cache_features="off", **sizes, **options)
    sizes = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    stores = []
    for name, launcher in (("ddp", DDP), ("zero3", ZERO3)):
        cache = tmp_path / f"cache-{name}"
        # The second time from what the first has left.
        for turn in ("first",) if launcher is DDP else ("first", "second"):
            found = run(
                *(launcher, tmp_path / name / turn, mixed),
                **{"cache_features": "on", "cache_dir": str(cache), **sizes, **options},
            )
            for entry in expected:
                entry.pop("lm_loss", None)
            assert_same(expected, found)
            (store,) = cache.iterdir()
            # Each process has written its share, once.
            records = [file.read_text().splitlines() for file in store.glob("*.jsonl")]
            assert sorted(map(len, records)) == [8, 8]
        stores.append(store.name)
    assert stores[0] == stores[1]


EVALUATE_FIRST = """
import json, sys
from sa2va_trl import SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.processes import leave_process_group
from sa2va_trl.data import synthetic_dataset

data = [synthetic_dataset(num_videos=1, frames_per_video=4, size=64, first_video=first) for first in (0, 8)]
options = json.loads(sys.argv[1])
trainer = SegSFTTrainer(
    tiny_sa2va(image_size=128)[0], SegSFTConfig(**options), None, *data, tiny_sa2va(image_size=128)[1]
)
trainer.evaluate()
trainer.train()
trainer.save_state()
leave_process_group()
"""


@pytest.mark.slow
def test_gradients_are_averaged_after_an_evaluation(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(EVALUATE_FIRST)
    names = ("learning_rate", "logging_steps", "report_to", "disable_tqdm", "save_strategy", "num_points")
    options = {name: OPTIONS[name] for name in names}
    options |= {"trainable": "head", "lm_weight": 0.0, "cache_features": "off", "max_steps": 2}
    logs = []
    for launcher, size in ((ONE, 2), (DDP, 1)):
        options |= {"output_dir": str(tmp_path / f"out{size}"), "per_device_train_batch_size": size}
        line = [*launcher, str(script), json.dumps(options)]
        finished = subprocess.run(line, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-20000:]
        state = json.loads((tmp_path / f"out{size}" / "trainer_state.json").read_text())
        logs.append([(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "grad_norm" in entry])
    assert len(logs[0]) == 2
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=2e-4)


@pytest.mark.slow
def test_qwen_on_zero3_equals_one_process(tmp_path, mixed):
    """Whose vision tower also feeds the language model's layers (deepstack), with text only on one of the ranks."""
    options = {"model_name_or_path": "tiny-qwen3_vl", "trainable": "full", "eval_steps": 4}
    one = run(ONE, tmp_path / "one", mixed, per_device_train_batch_size=2, per_device_eval_batch_size=2, **options)
    two = run(ZERO3, tmp_path / "two", mixed, per_device_train_batch_size=1, per_device_eval_batch_size=1, **options)
    assert_same(one, two)


@pytest.mark.slow
def test_zero3_saves_the_adapter_that_one_process_saves(tmp_path, mixed):
    from safetensors.torch import load_file

    model, processor = tiny_sa2va(image_size=128)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    options = {
        # Loaded under ZeRO-3, so that its weights are shards when the base is recorded.
        "model_name_or_path": str(tmp_path / "model"),
        "grounding_image_size": None,
        "trainable": "stage1",
        "train_embeddings": "full",
        "lora_r": 4,
        "lora_dropout": 0.0,
        "max_steps": 2,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    run(ONE, tmp_path / "one", mixed, per_device_train_batch_size=2, **options)
    run(ZERO3, tmp_path / "zero3", mixed, per_device_train_batch_size=1, **options)
    one, zero3 = tmp_path / "one" / "out", tmp_path / "zero3" / "out"
    expected = load_file(one / "adapter_model.safetensors")
    kinds = ("lora_A", "lora_B", "text_hidden_fcs", "sam_mask_decoder", "projector", "embed_tokens", "lm_head")
    assert all(any(kind in name for name in expected) for kind in kinds)
    start = load_adapter(tiny_sa2va(image_size=128)[0], str(one))
    untrained = dict(start.get_base_model().named_parameters())
    for folder in (zero3, zero3 / "checkpoint-2"):
        found = load_file(folder / "adapter_model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].shape == tensor.shape and tensor.numel() > 0, name
            torch.testing.assert_close(found[name], tensor, rtol=2e-4, atol=2e-5, msg=name)
        for name in ("base_model.json", "adapter_config.json"):
            assert (folder / name).read_text() == (one / name).read_text()
        assert (folder / "README.md").is_file() and (folder / "processor_config.json").is_file()
        load_adapter(tiny_sa2va(image_size=128)[0], str(folder))
        with pytest.raises(ValueError, match="vision_tower"):
            load_adapter(tiny_sa2va(image_size=128, seed=1)[0], str(folder))
    # Trained copies are not those of the base.
    moved = expected["base_model.model.text_hidden_fcs.0.weight"]
    original = next(value for name, value in untrained.items() if name.endswith("fcs.original_module.0.weight"))
    assert not torch.equal(moved, original)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path, mixed):
    options = {
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
    whole = run(ONE, tmp_path / "whole", mixed, **options)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(ONE, killed, mixed, **options),
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
    resumed = run(ONE, killed, mixed, resume_from_checkpoint="latest", **options)
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
    options = {name: OPTIONS[name] for name in names}
    options |= {"learning_rate": 1e-3, "trainable": "head", "lm_weight": 0.0, "cache_features": "off"}
    options |= {"max_steps": 9, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 9}
    options |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": size}
    # (The loss of evaluation is a mean over batches, so those are of one row.)
    options |= {"per_device_eval_batch_size": 1, "output_dir": str(folder / "out")}
    line = [*launcher, str(folder / "script.py"), json.dumps(options), str(checkpoint)]
    log = launch.log_of(line, folder)
    parts = [
        [json.loads(text) for text in file.read_text().splitlines()]
        for file in sorted((folder / "out").glob("rows-*.jsonl"))
    ]
    rows = {}
    for batch in zip(*parts, strict=True):
        assert len({entry["step"] for entry in batch}) == 1
        rows.setdefault(batch[0]["step"], []).extend(sum((entry["rows"] for entry in batch), []))
    return log, rows


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
    fast += ["--save_total_limit", "9", "--synthetic", json.dumps(small)]

    def line(launcher, *options):
        return [*launcher, str(launch.ROOT / "recipes" / "sft.py"), "--config", config, *fast, *options]

    def log_of(folder, *options):
        folder.mkdir()
        return launch.log_of(line(ZERO3, "--output_dir", "out", *options), folder)

    expected = log_of(tmp_path / "whole")
    checkpoint = str(tmp_path / "whole" / "out" / "checkpoint-1")
    assert_same(expected[:-1], log_of(tmp_path / "two", "--resume_from_checkpoint", checkpoint)[:-1])
    finished = subprocess.run(
        line(ONE, "--output_dir", "out", "--resume_from_checkpoint", checkpoint),
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert finished.returncode and "saved with DeepSpeed, and this run is without" in finished.stderr
