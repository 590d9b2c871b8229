"""Tasks as the steps of another one: each run once, and taken up where it was ended."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import yaml

from ..files import write_json
from ..mining.hardness import HARD_BELOW
from ..trainers.checkpoints_to_resume import resolve_checkpoint
from .config_files import step_config_file


class Steps:
    """Runs tasks, each once, and remembers which are done."""

    def __init__(self, output: Path, launcher: str):
        self.output, self.launcher = output, shlex.split(launcher)

    def __call__(self, name: str, task: str, options: dict, train: bool = False) -> Path:
        """
        Args:
            name (`str`): of the step, and of the folder that it leaves.
            task (`str`): which task it is.
            options (`dict`): of the task; `config` as [`~scripts.config_files.step_config_file`] takes it.
            train (`bool`): start it with the launcher, and take it up at its last checkpoint.

        Returns:
            The folder.

        Raises:
            `ValueError`: the step was run with other options.
            `FileNotFoundError`: there is no such `config`.
            `subprocess.CalledProcessError`: it failed.
        """
        folder, record = self.output / name, self.output / "steps" / f"{name.replace('/', '-')}.json"
        options = {**options, "output_dir": folder}
        if "config" in options:
            options["config"] = step_config_file(options["config"])
        line = [task, *flags(options)]
        config = options["config"].read_text() if "config" in options else ""
        found = {"line": line, "config": config, "done": False}
        if record.exists():
            found = json.loads(record.read_text())
        if (_comparable(found["line"]), _settings(found["config"])) != (_comparable(line), _settings(config)):
            raise ValueError(
                f"{folder} was made with other options:\n  {' '.join(found['line'])}\nthan now:\n  {' '.join(line)}\n"
                "(or its YAML has changed). Give another output_dir, or delete what was made from here on."
            )
        if found["done"]:
            print(f"== {name}: done before")
            return folder
        write_json(record, found)
        if train:
            try:
                resolve_checkpoint("latest", folder)
                line = [*line, "--resume_from_checkpoint", "latest"]
            except ValueError:
                pass  # there is none yet
        print(f"== {name}: sa2va-trl {' '.join(line)}", flush=True)
        start = time.monotonic()
        launcher = self.launcher if train and self.launcher else [sys.executable]
        module = "--module" if Path(launcher[0]).name == "deepspeed" else "-m"
        subprocess.run([*launcher, module, "sa2va_trl.cli", *line], check=True)
        write_json(record, {**found, "done": True, "seconds": round(time.monotonic() - start, 1)})
        return folder


def _comparable(line: list[str]) -> list[str]:
    """
    A recorded line without what may differ between installations: where the YAML lies, whose content is compared, and
    the file name by which earlier versions called the task.
    """
    task, *others = line
    if "--config" in others:
        place = others.index("--config")
        others = others[:place] + others[place + 2 :]
    return [task.removesuffix(".py"), *others]


def _settings(config: str) -> dict:
    """
    What a YAML says. (In that of hard samples, earlier versions said that rows with a Dice below 0.75 are hard, which
    is what mining decides unless it is told otherwise.)
    """
    settings = yaml.safe_load(config) or {}
    if settings.get("threshold") == HARD_BELOW:
        del settings["threshold"]
    return settings


def flags(options: dict) -> list[str]:
    """Options as the command line takes them."""
    line = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}", *(json.dumps(part) if isinstance(part, dict) else str(part) for part in values)]
    return line
