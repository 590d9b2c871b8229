"""Command lines: of the steps of a task, and of what can be done next."""

import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:  # what is only named here takes seconds to import
    from .arguments import DataArguments, ModelArguments


def flags(options: dict) -> list[str]:
    """Options as the command line takes them."""
    line = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}", *(json.dumps(part) if isinstance(part, dict) else str(part) for part in values)]
    return line


def command(task: str, **options: object) -> str:
    """
    A line to copy into a shell.

    Args:
        task (`str`): which task.
        options: of it; those that are `None` or an empty `dict` are left out.

    Returns:
        `str`.
    """
    given = {name: value for name, value in options.items() if value not in (None, {})}
    return shlex.join(["sa2va-trl", task, *flags(given)])


def changed(args: "DataArguments | ModelArguments") -> dict:
    """The options that are not what they are by default."""
    return {entry.name: value for entry in fields(args) if (value := getattr(args, entry.name)) != entry.default}


def of_model(args: "ModelArguments") -> dict:
    """The options that load a model again; its name even where it is the default."""
    return {"model_name_or_path": args.model_name_or_path, **changed(args)}


def of_data(args: "DataArguments") -> dict:
    """The options that load data again; their name even where it is the default."""
    own = {name: value for name, value in changed(args).items() if name != "accept_alike"}  # (of two splits)
    return {"dataset_name": args.dataset_name, **own}


def scoring(output: str, is_adapter: bool, model_args: "ModelArguments", data_args: "DataArguments") -> str:
    """
    What scores what a training task has left.

    Args:
        output (`str`): its folder.
        is_adapter (`bool`): whether it is an adapter, and not a model of its own.
        model_args (`ModelArguments`): of the model that training began with.
        data_args (`DataArguments`): of the data to score on.

    Returns:
        `str`: a command; two, where the adapter's base has to be made first.
    """
    model, before = {"model_name_or_path": output}, ""
    if is_adapter:
        model = {**of_model(model_args), "adapter": output}
        if model_args.adapter is not None:  # which was merged before training
            base = f"{output}_base"
            first = {"model_name_or_path": model_args.model_name_or_path, "adapter": model_args.adapter}
            before = command("merge", **first, output_dir=base) + " && "
            model["model_name_or_path"] = base
    return before + command("evaluate", **model, **of_data(data_args), output_dir=str(Path(output) / "evaluation"))
