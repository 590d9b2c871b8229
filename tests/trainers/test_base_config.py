"""What the configs share: how options are explained, and what accelerate's launcher says of device and precision."""

import re
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from trl import DPOConfig, SFTConfig

from sa2va_trl import HardSampleConfig, SegDPOConfig, SegSFTConfig
from sa2va_trl.trainers.base_config import SegArguments, follow_launcher, follow_libraries


NAMES = ("MIXED_PRECISION", "USE_CPU", "USE_DEEPSPEED")


def follow(monkeypatch, gpu, environment, **options):
    """`use_cpu`, `bf16` and `fp16` that a launch leads to, on a machine with or without a GPU."""
    for name in (*(f"ACCELERATE_{name}" for name in NAMES), "DS_ACCELERATOR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    args = SimpleNamespace(**{"use_cpu": False, "deepspeed": None, "bf16": None, "fp16": False, **options})
    follow_launcher(args)
    return args.use_cpu, args.bf16, args.fp16


MULTI_GPU = {"ACCELERATE_MIXED_PRECISION": "bf16", "WORLD_SIZE": "4"}
ZERO3_CPU = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("gpu", "environment", "options", "expected"),
    [
        (True, {}, {}, (False, None, False)),
        (False, {}, {}, (False, None, False)),  # one process, where Trainer finds the CPU itself
        (True, {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}, {}, (True, None, False)),
        (True, {"ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "no"}, {}, (False, None, False)),
        (True, {**ZERO3_CPU, "DS_ACCELERATOR": "cpu"}, {}, (True, None, False)),
        (False, ZERO3_CPU, {}, (True, None, False)),
        (True, {"DS_ACCELERATOR": "cpu"}, {}, (False, None, False)),  # without DeepSpeed it says nothing
        (False, {"WORLD_SIZE": "2"}, {}, (True, None, False)),  # torchrun
        (True, {"WORLD_SIZE": "2"}, {}, (False, None, False)),
        (True, MULTI_GPU, {}, (False, True, False)),
        (True, MULTI_GPU, {"bf16": False}, (False, False, False)),
        (True, {**MULTI_GPU, "ACCELERATE_MIXED_PRECISION": "fp16"}, {}, (False, False, True)),
        (False, MULTI_GPU, {"use_cpu": True}, (True, True, False)),
    ],
)
def test_it_is_taken_over(monkeypatch, gpu, environment, options, expected):
    assert follow(monkeypatch, gpu, environment, **options) == expected


@pytest.mark.parametrize(
    "environment", [MULTI_GPU, {**ZERO3_CPU, **MULTI_GPU}, {"ACCELERATE_MIXED_PRECISION": "fp16"}]
)
def test_a_configuration_for_gpus_is_refused_without_one(monkeypatch, environment):
    with pytest.raises(ValueError, match="is for GPUs .* this machine has none: use accelerate launch --cpu"):
        follow(monkeypatch, False, environment)


def test_configs_take_it_over(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert SegSFTConfig(str(tmp_path)).use_cpu


@pytest.mark.parametrize(
    ("config", "parents"),
    [
        (SegArguments, ()),
        (SegSFTConfig, (SegArguments, SFTConfig)),
        (SegDPOConfig, (SegArguments, DPOConfig)),
        (HardSampleConfig, (SegSFTConfig,)),
    ],
)
def test_every_option_has_an_entry_and_a_help_text_of_its_own(config, parents):
    inherited = {entry.name for parent in parents for entry in fields(parent)}
    own = [entry for entry in fields(config) if entry.name in config.__annotations__]
    assert own
    for entry in own:
        text = entry.metadata["help"]
        assert text.endswith(".") and len(text.split()) > 3, entry.name  # a sentence that stands alone in --help
        if entry.name not in inherited:
            (kind,) = re.findall(rf"^        {entry.name} \(`(\w+)[^)]*\*optional\*", config.__doc__, re.MULTILINE)
            assert kind in ("bool", "int", "float", "str", "dict", "list"), entry.name


@pytest.mark.filterwarnings("error")
def test_libraries_have_nothing_to_warn_of(tmp_path):
    for given in ({}, {"gradient_checkpointing": False}, {"activation_checkpointing": False}):
        args = SegSFTConfig(str(tmp_path), **given)
        assert args.gradient_checkpointing == args.activation_checkpointing == (not given)
        assert args.dataloader_pin_memory == torch.accelerator.is_available()


@pytest.mark.parametrize("accelerator", [True, False])
def test_memory_is_pinned_beside_an_accelerator_where_it_was_not_refused(monkeypatch, accelerator):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    for wanted in (True, False):
        args = SimpleNamespace(dataloader_pin_memory=wanted)
        args.activation_checkpointing = args.activation_checkpointing_kwargs = False
        follow_libraries(args)
        assert args.dataloader_pin_memory == (wanted and accelerator)
