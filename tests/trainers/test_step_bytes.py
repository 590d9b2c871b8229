"""What is counted of a step, held against torch's allocator in a real one."""

from dataclasses import replace

import pytest
import torch
from counted_once import key_of
from measured_steps import asked, counted, trainer_of
from torch.utils.flop_counter import FlopCounterMode

from sa2va_trl.trainers.step_bytes import CPU_ATTENTION, step_flops


# What has been counted here, by what other tests take a count of again.
COUNTS = {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rows": 4, "gradient_checkpointing": True, "size": 300},
        {"cldice_weight": 1.0, "skeleton_recall_weight": 1.0},
        {"trainable": "head"},
        {"trainable": "head", "lm_weight": 0.0, "cache_features": "on"},
        {"trainable": "full", "bf16": True, "gradient_checkpointing": True},
        {"family": "qwen2_5_vl", "size": 256},
        {"family": "qwen3_vl", "size": 256, "trainable": "full"},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()) or "LoRA",
)
def test_the_count_is_what_the_allocator_gives(tmp_path, monkeypatch, options):
    if options.get("cache_features"):
        options = {**options, "cache_dir": str(tmp_path / "features")}
    trainer = trainer_of(tmp_path, **options)
    monkeypatch.setattr(trainer, "tell_needs", lambda: None)  # which counts too
    trainer.train()
    count = counted(trainer)
    assert count == pytest.approx(trainer.measured, rel=0.08)
    args, options = asked(trainer)
    assert COUNTS.setdefault(key_of(*args, **options), count) == count


def test_counting_leaves_the_model_alone(tmp_path):
    trainer = trainer_of(tmp_path, layers=2, width=64, gradient_checkpointing=True)
    before = {name: (value.clone(), value.grad) for name, value in trainer.model.named_parameters()}
    mode, state = trainer.model.training, torch.get_rng_state()
    counted(trainer)
    assert trainer.model.training == mode and torch.equal(torch.get_rng_state(), state)
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name][0]) and value.grad is None, name


def test_more_layers_are_reckoned_from_three(tmp_path):
    """As if all of them were run: what three layers need, and what each further one adds."""
    few, more, most = (counted(trainer_of(tmp_path, layers=layers)) for layers in (3, 4, 7))
    assert most - more == 3 * (more - few) > 0


@pytest.mark.parametrize("options", [{"layers": 4}, {"trainable": "head"}], ids=str)
def test_operations_are_those_of_a_real_step(tmp_path, options):
    options = {"layers": 2, "width": 64, **options}
    trainer = trainer_of(tmp_path, **options)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as real:
        trainer.compute_loss(trainer.model, inputs).backward()
    model = getattr(trainer.model, "get_base_model", lambda: trainer.model)()
    answered = int((inputs["labels"] != -100).any(0).sum())
    batch = replace(trainer.batch_sizes(), answers=answered)
    flops = step_flops(model, batch, mask_options=trainer.mask_loss_options)
    assert flops == pytest.approx(real.get_total_flops(), rel=0.03)
