"""The threshold and temperature that a model or an adapter draws its masks with, stored in its folder."""

import json
import os
from pathlib import Path

from transformers import PreTrainedConfig

from ..files import write_json
from ..models import Sa2VAConfig
from ..models.checkpoints import ADAPTER_CONFIG, is_published


#: Beside an adapter: those of its options that are the adapter's own, and not its base's.
MASK_OPTIONS = "mask_options.json"
#: Names of the config, and what they are by default.
DEFAULTS = {"mask_threshold": 0.5, "mask_temperature": 1.0}


def mask_options(config: PreTrainedConfig) -> dict[str, float]:
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
            f"A threshold can be stored in a folder of this machine with a model or an adapter; {folder} is none. "
            "Give the folder, or leave out --store and give --threshold wherever the model is used."
        )
    content = json.loads(file.read_text())
    if is_published(content) or content.get("model_type") != Sa2VAConfig.model_type:
        raise ValueError(
            f"{file} is in the layout that Sa2VA publishes, which has no place for a threshold: make a native folder "
            "of it with sa2va-trl convert first."
        )


def store_mask_options(folder: str | os.PathLike, mask_threshold: float, mask_temperature: float = 1.0) -> Path:
    """
    Store them where loading finds them: of a model in its `config.json`, of an adapter in `MASK_OPTIONS` beside it, so
    that its base and the base's other adapters keep their own.

    Args:
        folder (`str` or `os.PathLike`): of a native model or an adapter.
        mask_threshold (`float`): in (0, 1), of the probabilities at this temperature.
        mask_temperature (`float`, *optional*, defaults to 1.0): above 0.

    Returns:
        `Path`: the file.

    Raises:
        `ValueError`: as [`check_storable`], or a value out of its range.
    """
    check_storable(folder)
    options = {"mask_threshold": float(mask_threshold), "mask_temperature": float(mask_temperature)}
    check_options(options, folder)
    if (Path(folder) / ADAPTER_CONFIG).is_file():
        file, content = Path(folder) / MASK_OPTIONS, options
    else:
        file = Path(folder) / "config.json"
        content = {**json.loads(file.read_text()), **options}
    write_json(file, content)
    return file


def read_mask_options(folder: str | os.PathLike) -> dict[str, float]:
    """
    Args:
        folder (`str` or `os.PathLike`): of an adapter.

    Returns:
        `dict[str, float]`: what is stored beside it; empty where nothing is.

    Raises:
        `ValueError`: the file holds something else.
    """
    file = Path(folder) / MASK_OPTIONS
    if not file.is_file():
        return {}
    try:
        options = {name: float(value) for name, value in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not hold a mask_threshold and a mask_temperature: {error!r}.") from error
    check_options(options, file)
    return options


def check_options(options: dict[str, float], where: str | os.PathLike) -> None:
    """
    Args:
        options (`dict[str, float]`): to check.
        where (`str` or `os.PathLike`): what the message names.

    Raises:
        `ValueError`: another name than those of `DEFAULTS`, or a value out of its range.
    """
    if unknown := sorted(options.keys() - DEFAULTS.keys()):
        raise ValueError(f"{where}: there is no option {', '.join(unknown)}, only {', '.join(DEFAULTS)}.")
    options = {**DEFAULTS, **options}
    if not 0 < options["mask_threshold"] < 1:
        raise ValueError(f"{where}: mask_threshold must lie between 0 and 1, got {options['mask_threshold']}.")
    if not 0 < options["mask_temperature"] < float("inf"):
        raise ValueError(f"{where}: mask_temperature must be a number above 0, got {options['mask_temperature']}.")
