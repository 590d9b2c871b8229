"""Tasks as the steps of another one: each run once, and taken up where it was ended."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from ..files import write_json
from ..mining.hardness import HARD_BELOW
from ..trainers.checkpoints_to_resume import resolve_checkpoint
from .commands import flags
from .config_files import step_config_file
from .locks import the_only_one
from .quiet import STEP, VERBOSE
from .screen import MARK, current, duration, say


class StepError(RuntimeError):
    """A step has failed: which, and what it said of it."""


# Of the column of names.
WIDTH = 22


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
            `ValueError`: the step was run with other options, or is at work already.
            `FileNotFoundError`: there is no such `config`.
            `StepError`: it failed.
        """
        folder, record = self.output / name, self.output / "steps" / f"{name.replace('/', '-')}.json"
        options = {**options, "output_dir": folder}
        if "config" in options:
            options["config"] = step_config_file(options["config"])
        line = [task, *flags(options)]
        config = options["config"].read_text() if "config" in options else ""
        found = {"line": line, "config": config, "done": False}
        busy = f"{folder}: this step is at work, for another call or for one that was killed and has left it behind."
        lock = the_only_one(record.with_suffix(".lock"), f"{busy} Wait for it, or give another output_dir.")
        with lock:
            if record.exists():
                found = json.loads(record.read_text())
            if (_comparable(found["line"]), _settings(found["config"])) != (_comparable(line), _settings(config)):
                raise ValueError(
                    f"{folder} was made with other options:\n  {' '.join(found['line'])}\nthan now:\n  "
                    f"{' '.join(line)}\n(or its YAML has changed). Give another output_dir, or delete what was made "
                    "from here on."
                )
            if found["done"]:
                say(f"{name:<{WIDTH}}done before")
                return folder
            write_json(record, found)
            if train:
                try:
                    resolve_checkpoint("latest", folder)
                    line = [*line, "--resume_from_checkpoint", "latest"]
                except ValueError:
                    pass  # there is none yet
            print(f"== {name}: sa2va-trl {' '.join(line)}", flush=True)  # the screen need not show it
            start = time.monotonic()
            launcher = self.launcher if train and self.launcher else [sys.executable]
            module = "--module" if Path(launcher[0]).name == "deepspeed" else "-m"
            start_line = [*launcher, module, "sa2va_trl.cli", *line]
            run = _run_plainly if current() is None else _run_quietly
            summary = run(name, start_line, lock.fileno())
            seconds = time.monotonic() - start
            write_json(record, {**found, "done": True, "seconds": round(seconds, 1)})
        say(f"{name:<{WIDTH}}{summary or 'done'}   {duration(seconds)}")
        return folder


def _run_plainly(name: str, line: list[str], lock: int) -> None:
    """A step that prints to the screen itself, and holds the lock."""
    try:
        subprocess.run([*line, VERBOSE], check=True, pass_fds=[lock])
    except subprocess.CalledProcessError as error:
        raise StepError(f"{name} ended with status {error.returncode}.") from error


def _run_quietly(name: str, line: list[str], lock: int) -> str | None:
    """
    A step whose output goes into the log of this task, but for the lines that are marked (see
    [`~scripts.screen.StepScreen`]). It holds the lock.

    Returns:
        `str`: what it did, in a line, if it said so.

    Raises:
        `StepError`: it failed.
    """
    screen, said = current(), {}
    kinds: dict[str, Callable[[str], None]] = {
        "progress": lambda text: screen.progress(f"{name:<{WIDTH}}{text}" if text else ""),
        "warning": lambda text: screen.line(f"{name:<{WIDTH}}{text}", "warning"),
        "foreign": screen.note,
    }
    environment = {**os.environ, STEP: screen.log or "its output"}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment, "pass_fds": [lock]}
    with subprocess.Popen(line, **given) as process:
        for raw in process.stdout:
            text = raw.decode(errors="replace")
            before, mark, marked = text.partition(MARK)
            print(before, end="\n" if before and mark else "", flush=True)
            if mark:
                kind, content = json.loads(marked)
                said[kind] = content
                kinds.get(kind, lambda text: None)(content)
    if process.returncode:
        reason = said.get("error", f"it ended with status {process.returncode}").removeprefix("sa2va-trl: error: ")
        task = line[line.index("sa2va_trl.cli") + 1]
        raise StepError(f"{name} (sa2va-trl {task}): {reason}" + (f" (more in {screen.log})" if screen.log else ""))
    return said.get("summary")


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
