"""Runs of supervised fine-tuning that must be one and the same: one process, DDP, ZeRO-3."""

import json

import launch
import pytest
import torch
from launch import DDP, FOUR_STEPS, ONE, ZERO3, assert_same
from safetensors.torch import load_file

from sa2va_trl import tiny_sa2va
from sa2va_trl.adapters.peft_model import load_adapter


def run(launcher, folder, dataset, **options):
    return launch.run(launcher, folder, "sft", {**FOUR_STEPS, "dataset_name": dataset, **options})


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["stage1", "full"])
def test_one_process_equals_ddp_equals_zero3(tmp_path, mixed_regions, trainable):
    options = {"trainable": trainable}
    if trainable == "stage1":
        options |= {"lora_r": 4, "lora_dropout": 0.0}
    else:  # a model that is loaded, where the other is made, and losses on a grid of their own
        model, processor = tiny_sa2va(image_size=128)
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        options |= {"model_name_or_path": str(tmp_path / "model"), "grounding_image_size": None, "mask_size": 64}
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    one = run(ONE, tmp_path / "one", mixed_regions, **sizes, **options)
    for name, launcher in (("ddp", DDP), ("zero3", ZERO3)):
        options |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
        two = run(launcher, tmp_path / name, mixed_regions, **options)
        assert_same(one, two)
    if trainable == "stage1":
        weights = [
            load_file(tmp_path / name / "out" / "adapter_model.safetensors") for name in ("one", "ddp", "zero3")
        ]
        assert weights[0].keys() == weights[1].keys() == weights[2].keys()
        assert all(weights[2][name].shape == tensor.shape for name, tensor in weights[0].items())


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
    options = {name: FOUR_STEPS[name] for name in names}
    options |= {"trainable": "head", "lm_weight": 0.0, "cache_features": "off", "max_steps": 2}
    logs = []
    for launcher, size in ((ONE, 2), (DDP, 1)):
        folder = tmp_path / f"rows{size}"
        folder.mkdir()
        options |= {"output_dir": str(folder / "out"), "per_device_train_batch_size": size}
        launcher.run([str(script), json.dumps(options)], folder)
        log = launch.log_of(folder)
        logs.append([(entry["loss"], entry["grad_norm"]) for entry in log if "grad_norm" in entry])
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
