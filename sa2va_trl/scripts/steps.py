"""Tasks as the steps of another one: each run once, and taken up where it was ended."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from ..files import write_json
from ..trainers.resuming import resolve_checkpoint


RECIPES = Path(__file__).parents[2] / "recipes"


class Steps:
    """Runs recipes, each once, and remembers which are done."""

    def __init__(self, output: Path, launcher: str):
        self.output, self.launcher = output, shlex.split(launcher)

    def __call__(self, name: str, recipe: str, options: dict, train: bool = False) -> Path:
        """
        Args:
            name (`str`): of the step, and of the folder that it leaves.
            recipe (`str`): file name.
            options (`dict`): of the recipe; `config` is relative to recipes/.
            train (`bool`): start it with the launcher, and take it up at its last checkpoint.

        Returns:
            The folder.
        """
        folder, record = self.output / name, self.output / "steps" / f"{name.replace('/', '-')}.json"
        line = [recipe, *flags({**options, "output_dir": folder})]
        config = (RECIPES / options["config"]).read_text() if "config" in options else ""
        found = {"line": line, "config": config, "done": False}
        if record.exists():
            found = json.loads(record.read_text())
        if (found["line"], found["config"]) != (line, config):
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
        print(f"== {name}: {' '.join(line)}", flush=True)
        start = time.monotonic()
        launcher = self.launcher if train and self.launcher else [sys.executable]
        subprocess.run([*launcher, str(RECIPES / line[0]), *line[1:]], check=True)
        write_json(record, {**found, "done": True, "seconds": round(time.monotonic() - start, 1)})
        return folder


def flags(options: dict) -> list[str]:
    """Options as the command line takes them."""
    line = []
    for name, value in options.items():
        if name == "config":
            value = RECIPES / value
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}", *(json.dumps(part) if isinstance(part, dict) else str(part) for part in values)]
    return line
