"""The configurations that a cross-validation trains: their YAMLs, read as the training tasks read them."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from ..evaluation.curves import STATE
from . import dpo, hard_sample, sft
from .arguments import DataArguments, ModelArguments, SplitArguments
from .commands import flags, of_model
from .config_files import config_file


TRAININGS = {"sft": sft, "dpo": dpo, "hard_sample": hard_sample}
# Options of a training task that have no meaning in folds, and why.
HELD_BY_FOLDS = {
    "resume_from_checkpoint": "a step that was ended is taken up by itself",
    "push_to_hub": "every fold would push to the same place",
    "scores": "each fold scores the rows that it trains on",
    "adapter": "training starts from a whole model as it is (sa2va-trl merge makes one)",
}
Given = Mapping[str, str | list[str]]


@dataclass(frozen=True)
class Training:
    """A configuration that is cross-validated: its name, task and YAML, what the line adds, and what all that says."""

    name: str
    task: str
    config: str
    given: Given
    options: tuple

    def part(self, kind: type) -> Any:
        """The options of a kind."""
        return next(entry for entry in self.options if isinstance(entry, kind))

    @property
    def preferences(self) -> str | None:
        """Where pairs to learn from are."""
        return next((entry.preferences for entry in self.options if isinstance(entry, dpo.PreferenceArguments)), None)

    @property
    def chooses(self) -> bool:
        """Whether it looks at a validation split."""
        return self.part(TrainingArguments).eval_strategy != "no"


def read_line(line: Sequence[str]) -> Given:
    """
    Options of another task, as they are given.

    Args:
        line (`Sequence[str]`): a part of a command line.

    Returns:
        `dict`: by name, a text or several.

    Raises:
        `ValueError`: it begins with something else.

    Example:

        ```python
        >>> from sa2va_trl.scripts.configurations import read_line

        >>> read_line(["--max-steps", "20", "--bf16", "--dataset_name=DIR"])
        {'max_steps': '20', 'bf16': [], 'dataset_name': 'DIR'}

        ```
    """
    found: dict[str, list[str]] = {}
    for part in line:
        if part.startswith("--"):
            name, equals, value = part[2:].partition("=")
            found[name := name.replace("-", "_")] = [value] if equals else []
        elif not found:
            raise ValueError(f"{part!r} is no option. Several YAMLs are given as --configs A B.")
        else:
            found[name].append(part)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def names_of(files: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """What configurations are called: given, or after their files, with the folder in front where these are equal."""
    if names is None:
        names = [file.stem for file in files]
        if len(set(names)) < len(names):
            names = [f"{file.resolve().parent.name}-{file.stem}" for file in files]
    if len(names) != len(files):
        raise ValueError(f"names: {len(names)} names for {len(files)} configs.")
    if len(set(names)) < len(names):
        raise ValueError(f"Each config needs a name of its own, got {', '.join(names)}: give some with --names.")
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith(".") or name in ("data", "pairs"):
            raise ValueError(
                f"names: {name!r} cannot be the name of a config's folder, give another one with --names."
            )
    return list(names)


def read_trainings(
    configs: Sequence[str],
    names: Sequence[str] | None,
    task: str | None,
    given: Given,
    output_dir: str,
) -> list[Training]:
    """
    What is trained, from the YAMLs and the line as the training task itself reads them.

    Args:
        configs (`Sequence[str]`): YAMLs of training tasks, files or short names.
        names (`Sequence[str]`, *optional*): see [`names_of`].
        task (`str`, *optional*): which task they are of; by default the one that a YAML is called after, or sft.
        given (`Mapping`): options of that task that hold for all, from [`read_line`].
        output_dir (`str`): of the cross-validation.

    Returns:
        `list[Training]`, in their order.

    Raises:
        `ValueError`: there is none, one is given twice, sets what the folds decide, or they name different data.
        `FileNotFoundError`: there is no such YAML.
        `SystemExit`: a training task does not take an option, which has been said.
    """
    if not configs:
        raise ValueError("Say what to train: --config with the YAML of a training task, or a name such as tiny/sft.")
    files = [config_file(name) for name in configs]
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError(f"configs: {', '.join(configs)} names a YAML twice.")
    trainings = []
    for file, name in zip(files, names_of(files, names), strict=True):
        own = task or (file.stem if file.stem in TRAININGS else "sft")
        if "seed" in (yaml.safe_load(file.read_text()) or {}):
            raise ValueError(f"{file}: seed cannot be set there, cross_validate decides it (--seed).")
        line = ["--config", str(file), *flags({**given, "output_dir": output_dir})]
        with _same_environment():
            options = TRAININGS[own].make_parser().parse_args_and_config(line)
        for option, reason in HELD_BY_FOLDS.items():
            if any(getattr(entry, option, None) for entry in options):
                raise ValueError(f"{option} cannot be set for cross_validate: {reason}.")
        trainings.append(Training(name, own, str(file), given, options))
    first, *others = trainings
    for other in others:
        for kind, what in ((DataArguments, "data"), (SplitArguments, "splits")):
            if other.part(kind) != first.part(kind):
                raise ValueError(
                    f"{first.name} and {other.name} name different {what} ({first.part(kind)}, {other.part(kind)}): "
                    "say on the command line which both have."
                )
    return trainings


@contextmanager
def _same_environment() -> Iterator[None]:
    """Training arguments leave words for their own process in the environment, which steps would inherit."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def of_trained(training: Training, folder: Path) -> dict:
    """The options that load what a training has left."""
    model_args = training.part(ModelArguments)
    if (folder / "adapter_config.json").exists():
        return {**of_model(model_args), "adapter": str(folder)}
    names = ("dtype", "grounding_dtype", "attn_implementation", "prompt_style")
    options = {name: getattr(model_args, name) for name in names}
    return {"model_name_or_path": str(folder), **{name: own for name, own in options.items() if own is not None}}


def cautions(trainings: Sequence[Training]) -> list[str]:
    """What the models that training starts from may have seen."""
    found = []
    for training in trainings:
        name = training.part(ModelArguments).model_name_or_path
        if any((place / STATE).is_file() for place in (Path(name), Path(name).parent)):  # itself, or what was merged
            found.append(
                f"{training.name} starts from {name}, which was itself trained: if on rows that are held out here, "
                "the result is too good."
            )
    return found
