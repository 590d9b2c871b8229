"""The option of tasks that draw masks: which post-processing."""

import json
from collections.abc import Mapping

from datasets import Dataset

from ..postprocessing import Postprocessing
from .loading import Model


#: What `--postprocessing` says of itself.
HELP = (
    "Of masks, beside the threshold: stored (the model's own), none, or JSON such as "
    '\'{"min_size": 50, "closing_radius": 2}\'.'
)


def given_postprocessing(option: str | Mapping) -> Postprocessing | None:
    """
    Args:
        option (`str` or `Mapping`): `"stored"`, `"none"`, or settings as JSON or, of a YAML, as they are.

    Returns:
        [`~postprocessing.Postprocessing`]; `None` of `"stored"`.

    Raises:
        `ValueError`: something else.
    """
    if option == "stored":
        return None
    if option == "none":
        return Postprocessing()
    try:
        return Postprocessing.from_dict(json.loads(option) if isinstance(option, str) else option)
    except ValueError as error:
        raise ValueError(f"postprocessing must be stored, none or JSON, got {option!r}: {error}") from error


def own_postprocessing(option: str | Mapping, *models: Model) -> Postprocessing:
    """
    Args:
        option (`str` or `Mapping`): as [`given_postprocessing`].
        models (`Sa2VAForConditionalGeneration` or `PeftModel`): that draw; none for masks of another tool.

    Returns:
        [`~postprocessing.Postprocessing`]: that of the option, else the models' own, else none.

    Raises:
        `ValueError`: the models' own is to be used, and they have different ones.
    """
    given = given_postprocessing(option)
    own = [Postprocessing.from_dict(model.config.mask_postprocessing) for model in models] or [Postprocessing()]
    if given is None and len(set(own)) > 1:
        raise ValueError(
            f"The two models have different post-processing of their own, {own[0]} and {own[1]}: give "
            "--postprocessing."
        )
    return own[0] if given is None else given


def has_clips(dataset: Dataset) -> bool:
    """Whether rows of a dataset can have several frames."""
    return "images" in dataset.column_names


def check_clips(option: str | Mapping, dataset: Dataset) -> None:
    """
    Raises:
        `ValueError`: the option smooths clips, and the dataset has none.
    """
    given = given_postprocessing(option)
    if given is not None and given.is_temporal and not has_clips(dataset):
        raise ValueError(f"postprocessing={given} smooths clips, and the dataset has rows of one image: leave it out.")
