"""Runs of training recipes in processes of their own: one, two with DDP, two with ZeRO-3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
# On the CPU, whatever the machine has.
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
ENVIRONMENT |= {"CUDA_VISIBLE_DEVICES": ""}
ONE = [sys.executable]
# (Standalone: on a port that is free.)
DDP = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ZERO3 = [sys.executable, "-m", "accelerate.commands.launch"]
ZERO3 += ["--config_file", str(ROOT / "accelerate_configs" / "zero3_cpu.yaml")]
# Of every run.
OPTIONS = {
    "model_name_or_path": "tiny",
    "grounding_image_size": 128,
    "lr_scheduler_type": "constant",
    "gradient_accumulation_steps": 2,
    "num_points": 0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def command(launcher, folder, recipe, options, from_yaml=True):
    """The command line of a recipe that writes to `folder / "out"`; its options in a YAML, or on the line."""
    folder.mkdir(parents=True, exist_ok=True)
    if from_yaml:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(options))
        given = ["--config", str(folder / "recipe.yaml")]
    else:
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*launcher, str(ROOT / "recipes" / f"{recipe}.py"), *given, "--output_dir", str(folder / "out")]


def log_of(line, folder):
    """Run a command from [`command`]; what it has logged."""
    finished = subprocess.run(line, env=ENVIRONMENT, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-20000:]
    return json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]


def assert_same(expected, found, names):
    """Two logs have the same of these at the same steps, with equal values."""
    assert len(expected) == len(found)
    compared = 0
    for one, other in zip(expected, found, strict=True):
        assert one["step"] == other["step"] and (set(names) & set(one)) == (set(names) & set(other))
        for name in names:
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=2e-4, abs=1e-6), (one["step"], name)
                compared += 1
    assert compared > 20
