"""Runs of training recipes in processes of their own: one, two with DDP, two with ZeRO-3."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
# On the CPU, whatever the machine has.
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
ENVIRONMENT |= {"CUDA_VISIBLE_DEVICES": ""}
# Of every run.
OPTIONS = {
    "model_name_or_path": "tiny-random",
    "grounding_image_size": 128,
    "lr_scheduler_type": "constant",
    "gradient_accumulation_steps": 2,
    "num_points": 0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
# Of most.
FOUR_STEPS = {
    **OPTIONS,
    "learning_rate": 1.0e-3,
    "weight_decay": 0.01,
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
}
# What every trainer logs.
LOGGED = ("loss", "grad_norm", "lm_loss", "mask_loss", "dice_loss", "eval_loss", "eval_dice", "eval_iou")


class Launch:
    """
    A way to start a script: on one process, or on several that are started together. What is run in it again and again
    ([`run`]) shares one start, which imports the libraries and builds the group of processes; `command` is the start
    of a command line for a run that wants processes of its own.
    """

    def __init__(self, *command, processes=1):
        self.command = [sys.executable, *command]
        self.processes = processes
        self.started = None

    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "giver").write_text(str(os.getpid()))
        self.jobs = 0
        self.output = open(self.folder / "output.txt", "w")
        line = [*self.command, str(ROOT / "tests" / "launched.py"), str(self.folder)]
        self.started = subprocess.Popen(line, env=ENVIRONMENT, stdout=self.output, stderr=subprocess.STDOUT)

    def run(self, line, folder):
        """Run a script with its arguments in a folder, on all processes; raises if any of them does."""
        if self.started is None:
            self.start()
        number, self.jobs = self.jobs, self.jobs + 1
        written = (self.folder / "output.txt").stat().st_size
        job = self.folder / f"{number}.json"
        job.with_suffix(".part").write_text(json.dumps({"line": line, "folder": str(folder)}))
        job.with_suffix(".part").rename(job)
        while len(list(self.folder.glob(f"{number}-*.done"))) < self.processes:
            if self.started.poll() is not None or list(self.folder.glob(f"{number}-*.failed")):
                said = (self.folder / "output.txt").read_text()[written:][-20000:]
                reasons = [path.read_text() for path in self.folder.glob(f"{number}-*.failed")]
                self.stop()
                pytest.fail("\n".join((*reasons, said)))
            time.sleep(0.02)

    def dismiss(self):
        """No further run: the processes, if there are any, end by themselves."""
        if self.started is not None:
            (self.folder / f"{self.jobs}.json").write_text("null")

    def stop(self):
        """End the processes, if they run. The next run starts others."""
        if self.started is None:
            return
        self.dismiss()
        try:
            self.started.wait(timeout=60)
        except subprocess.TimeoutExpired:  # one of them has failed and the others wait for it
            self.started.terminate()
            self.started.wait()
        self.started = None
        self.output.close()
        shutil.rmtree(self.folder)


ONE = Launch()
# (Standalone: on a port that is free.)
DDP = Launch("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", processes=2)
ZERO3_CONFIG = str(ROOT / "accelerate_configs" / "zero3_cpu.yaml")
ZERO3_LINE = ("-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", ZERO3_CONFIG)
ZERO3 = Launch(*ZERO3_LINE, processes=2)


def recipe_line(folder, recipe, options, from_yaml=True):
    """The command line of a recipe that writes to `folder / "out"`; its options in a YAML, or on the line."""
    folder.mkdir(parents=True, exist_ok=True)
    if from_yaml:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(options))
        given = ["--config", str(folder / "recipe.yaml")]
    else:
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [str(ROOT / "recipes" / f"{recipe}.py"), *given, "--output_dir", str(folder / "out")]


def log_of(folder):
    """What a run that wrote to `folder / "out"` has logged."""
    return json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]


def run(launcher, folder, recipe, options, from_yaml=True):
    """Run a recipe in processes that stand ready; what it has logged."""
    launcher.run(recipe_line(folder, recipe, options, from_yaml), folder)
    return log_of(folder)


def start_alone(launcher, line, folder):
    """A script with its arguments run in processes of its own, which have ended: their exit status and output."""
    return subprocess.run([*launcher.command, *line], env=ENVIRONMENT, cwd=folder, capture_output=True, text=True)


def run_alone(launcher, line, folder):
    """The same of a run that succeeds; what it has logged."""
    finished = start_alone(launcher, line, folder)
    assert finished.returncode == 0, finished.stderr[-20000:]
    return log_of(folder)


def assert_same(expected, found, names=LOGGED):
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
