"""
What a model or an adapter is asked, and how it draws its masks (threshold, temperature, post-processing), stored in
its folder.
"""

import json
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..files import write_json
from ..models import Sa2VAConfig
from ..models.checkpoints import ADAPTER_CONFIG, is_published
from ..postprocessing import Postprocessing
from ..questions import check_question


#: Beside an adapter: those of its options that are the adapter's own, and not its base's.
MASK_OPTIONS = "mask_options.json"
#: Names of the config, and what they are by default.
DEFAULTS = {"mask_threshold": 0.5, "mask_temperature": 1.0, "mask_postprocessing": {}, "default_question": None}


def mask_options(config: PreTrainedConfig) -> dict[str, Any]:
    """What a config says of `DEFAULTS`."""
    return {name: getattr(config, name) for name in DEFAULTS}


def check_storable(folder: str | os.PathLike) -> None:
    """
    Args:
        folder (`str` or `os.PathLike`): of a model or an adapter.

    Raises:
        `ValueError`: it is none, or holds a model in the published layout, whose config has no place for them.
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        return
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(
            f"A threshold or question can be stored in a folder of this machine with a model or an adapter; {folder} "
            "is none. Give the folder, or leave out --store and give --threshold or --question wherever the model is "
            "used."
        )
    content = json.loads(file.read_text())
    if is_published(content) or content.get("model_type") != Sa2VAConfig.model_type:
        raise ValueError(
            f"{file} is in the layout that Sa2VA publishes, which has no place for a threshold or "
            "question: make a native folder of it with sa2va-trl convert first."
        )


def store_mask_options(folder: str | os.PathLike, **options: Any) -> Path:
    """
    Store them where loading finds them: of a model in its `config.json`, of an adapter in `MASK_OPTIONS` beside it, so
    that its base and the base's other adapters keep their own. Those that are not given stay as they are.

    Args:
        folder (`str` or `os.PathLike`): of a native model or an adapter.
        options: names of `DEFAULTS`. `mask_threshold` (in (0, 1)) is of the probabilities at `mask_temperature` (above
            0); `mask_postprocessing` ([`~postprocessing.Postprocessing`], as a `dict`) is chosen for a threshold, so
            that one without it takes away what was chosen for another; `default_question` is a template, or None for
            the package's own.

    Returns:
        `Path`: the file.

    Raises:
        `ValueError`: as [`check_storable`] and [`check_options`].
    """
    check_storable(folder)
    if "mask_threshold" in options:
        options = {"mask_postprocessing": {}, **options}
    check_options(options, folder)
    if (Path(folder) / ADAPTER_CONFIG).is_file():
        file, content = Path(folder) / MASK_OPTIONS, {**read_mask_options(folder), **options}
    else:
        file = Path(folder) / "config.json"
        content = {**json.loads(file.read_text()), **options}
    write_json(file, content)
    return file


def read_mask_options(folder: str | os.PathLike) -> dict[str, Any]:
    """
    Args:
        folder (`str` or `os.PathLike`): of an adapter.

    Returns:
        `dict`: what is stored beside it; empty where nothing is.

    Raises:
        `ValueError`: the file holds something else.
    """
    file = Path(folder) / MASK_OPTIONS
    if not file.is_file():
        return {}
    try:
        options = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} does not hold names and values of {', '.join(DEFAULTS)}: {error!r}.") from error
    check_options(options, file)
    return options


def check_options(options: dict[str, Any], where: str | os.PathLike) -> None:
    """
    Args:
        options (`dict`): to check.
        where (`str` or `os.PathLike`): what the message names.

    Raises:
        `ValueError`: another name than those of `DEFAULTS`, or a value out of its range.
    """
    if unknown := sorted(options.keys() - DEFAULTS.keys()):
        raise ValueError(f"{where}: there is no option {', '.join(unknown)}, only {', '.join(DEFAULTS)}.")
    options = {**DEFAULTS, **options}
    numbers = [name for name, value in DEFAULTS.items() if isinstance(value, float)]
    if wrong := [name for name in numbers if not isinstance(options[name], (int, float))]:
        raise ValueError(f"{where}: {wrong[0]} must be a number, got {options[wrong[0]]!r}.")
    if not 0 < options["mask_threshold"] < 1:
        raise ValueError(f"{where}: mask_threshold must lie between 0 and 1, got {options['mask_threshold']}.")
    if not 0 < options["mask_temperature"] < float("inf"):
        raise ValueError(f"{where}: mask_temperature must be a number above 0, got {options['mask_temperature']}.")
    if options["default_question"] is not None:
        check_question(options["default_question"], f"{where}: default_question")
    try:
        Postprocessing.from_dict(options["mask_postprocessing"])
    except ValueError as error:
        raise ValueError(f"{where}: mask_postprocessing: {error}") from error
