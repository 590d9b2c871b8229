"""How the options of a task are read: from the command line and YAML, by names that are checked."""

import sys
from argparse import SUPPRESS
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from . import TASKS
from .config_files import CONFIGS, config_file, shortest_name
from .help_pages import help_page, usage
from .output import check_output_dir, is_there
from .quiet import VERBOSE
from .screen import log_into, say, show_log


# Options that name what another task may have made.
INPUTS = ("model_name_or_path", "adapter", "preferences", "dataset_name")
# Options that belong to the data that a YAML names, and to no others, and what they are there.
OF_THE_DATA = {"synthetic": (dict, str), "preferences": str}


class RecipeParser(TrlParser):
    """
    `TrlParser` for tasks: a YAML may go by its short name, what the command line says of the data also sets aside what
    the YAML says of generated ones, and where the YAML asks for what another YAML makes, the command for that is all
    that is printed. What the library logs is on the screen from then on.

    Args:
        dataclass_types (iterable of dataclasses): what the options are made of.
        **kwargs: of `argparse.ArgumentParser`; `prog` is the command, `description` the task's own words.
    """

    def __init__(self, dataclass_types: Iterable[type], **kwargs: Any):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)  # half an option is a mistake

    def format_usage(self) -> str:
        """The line of the usage, of the command and not of the file that argparse has been called from."""
        return f"usage: {usage(self)}\n"

    def format_help(self) -> str:
        """The page of `--help`, with the task's own options first."""
        return help_page(self, self.dataclass_types)

    def error(self, message: str) -> NoReturn:
        """A mistake in the options, in a line."""
        say(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)

    def parse_args_and_config(self, args: Iterable[str] | None = None, **kwargs: Any) -> tuple:
        """
        As in `TrlParser`. `output_dir` is checked, and takes the log of the task from then on.

        Raises:
            `ValueError`: options that contradict each other or are out of range, or an `output_dir` of no use.
            `FileNotFoundError`: there is no such `config`.
            `SystemExit`: options that cannot be read, which has been said.
        """
        show_log()
        line = [part for part in (sys.argv[1:] if args is None else args) if part != VERBOSE]
        line = [part for entry in line for part in (entry.split("=", 1) if entry[:9] == "--config=" else [entry])]
        if "--config" in line[:-1]:
            place = line.index("--config") + 1
            line[place] = str(config_file(line[place]))
        self._is_strict = kwargs.get("fail_with_unknown_args", True) and not kwargs.get("return_remaining_strings")
        self._given = self._on_the_line(line)
        parsed = super().parse_args_and_config(line, **kwargs)
        folders = [entry.output_dir for entry in parsed if getattr(entry, "output_dir", None) is not None]
        for folder in folders[:1]:
            check_output_dir(folder)
            if not any(getattr(entry, "names_people", False) for entry in parsed):  # a log would, too
                log_into(folder)
        return parsed

    def _on_the_line(self, line: list[str]) -> dict:
        """
        The options of a command line, without any default.

        Raises:
            `SystemExit`: there is no such option, which has been said with the nearest one.
        """
        other = TrlParser(self.dataclass_types, add_help=False, allow_abbrev=False)  # (its help is without defaults)
        other.add_argument("--config")
        other.error = self.error
        for action in other._actions:
            action.default, action.required = SUPPRESS, False
        found, unknown = other.parse_known_args(line)
        own = [name for action in self._actions for name in action.option_strings]  # --help, and those of one task
        unknown = [part.partition("=")[0] for part in unknown if part.startswith("--")]
        unknown = [name for name in unknown if name not in own]
        if unknown and self._is_strict:
            self.error(self._there_is_no(unknown))
        return vars(found)

    def _there_is_no(self, options: list[str]) -> str:
        """What to say of names that no option has: each with the nearest that there is."""
        known = [action.dest for action in self._actions]
        lines = []
        for option in options:
            nearest = get_close_matches(option.strip("-").replace("-", "_"), known, n=1)
            dashes = "--" if option.startswith("--") else ""
            lines.append(f"there is no option {option}" + (f", did you mean {dashes}{nearest[0]}?" if nearest else ""))
        return "; ".join(lines)

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        name = self._given.get("dataset_name", "synthetic")
        if name != "synthetic" and config.get("dataset_name", "synthetic") == "synthetic":
            own = [entry for entry, kind in OF_THE_DATA.items() if isinstance(config.get(entry), kind)]
            aside = [entry for entry in own if entry not in self._given]
            config = {entry: value for entry, value in config.items() if entry not in aside}
            if aside:
                say(f"dataset_name={name} is given: {' and '.join(aside)} of the YAML, of other data, is set aside.")
        self._point_to_sibling(Path(self._given["config"]), {**config, **self._given}, name)
        known = {action.dest for action in self._actions}
        unknown = [name for name in config if name not in known]
        if unknown and self._is_strict:
            raise ValueError(f"{self._given['config']}: {self._there_is_no(unknown)}")
        return super().set_defaults_with_config(**config)

    @staticmethod
    def _point_to_sibling(config: Path, options: dict, dataset_name: str) -> None:
        files = [*sorted(config.parent.glob("*.yaml")), *sorted(CONFIGS.glob("*/*.yaml"))]
        makers = {str(_content(file).get("output_dir")): file for file in reversed(files) if _task_of(file)}
        for name, path in _missing(options).items():
            if path in makers:
                own = name != "dataset_name" and dataset_name != "synthetic"
                commands = _commands_for(path, makers, f" --dataset_name {dataset_name}" if own else "")
                say(f"{name}={path} is not there; make it with: {', then: '.join(commands)}", file=sys.stderr)
                raise SystemExit(1)


def _missing(options: dict) -> dict[str, str]:
    """The inputs among options that are not there."""
    paths = {name: options[name] for name in INPUTS if isinstance(options.get(name), str)}
    return {name: path for name, path in paths.items() if not is_there(path)}


def _commands_for(path: str, makers: dict[str, Path], data: str) -> list[str]:
    """What makes a folder: the task of a YAML, and before it those that make what it needs."""
    maker, others = makers[path], {name: file for name, file in makers.items() if name != path}
    commands = []
    for needed in _missing(_content(maker)).values():
        if needed in others:
            commands += _commands_for(needed, others, data)
    own = "" if maker.stem == "merge" else data  # which needs none
    return [*dict.fromkeys([*commands, f"sa2va-trl {_task_of(maker)} --config {shortest_name(maker)}{own}"])]


def _task_of(file: Path) -> str | None:
    """The task that a YAML is for: the one it is called after; the package's others are sft's."""
    if file.stem in TASKS:
        return file.stem
    return "sft" if CONFIGS in file.parents else None


def _content(file: Path) -> dict:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    return content if isinstance(content, dict) else {}  # whatever it is, it makes no folder
