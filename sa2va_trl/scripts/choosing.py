"""What tasks share that choose something on one split and report on another what it gains."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..adapters.mask_options import DEFAULTS, check_storable, mask_options
from ..data.checks import check_dataset
from ..data.splits import check_no_leakage
from ..evaluation import predict_probabilities, stored_features
from ..evaluation.predictions import read_probabilities
from .arguments import TINY, ComparedDataArguments, ModelArguments
from .loading import Model, get_split, load_data, load_model


def check_maps(predictions_dir: str | None) -> None:
    """
    Raises:
        `ValueError`: the folder of probability maps is not there.
    """
    if predictions_dir is not None and not Path(predictions_dir).is_dir():
        raise ValueError(f"predictions_dir={predictions_dir!r} is not there: give a folder of probability maps.")


def place_to_store(model_args: ModelArguments) -> str:
    """
    The folder that an option of this model is stored in.

    Raises:
        `ValueError`: there is none, or it has no place for one.
    """
    if model_args.adapter is None and model_args.model_name_or_path in TINY:
        raise ValueError(
            f"store: {model_args.model_name_or_path} is no folder: give one with a model or an adapter, or leave out "
            "--store."
        )
    folder = model_args.adapter or model_args.model_name_or_path
    check_storable(folder)
    return folder


def chosen_and_reported(
    data_args: ComparedDataArguments, choose_split: str, dataset_split: str
) -> tuple[Dataset, Dataset]:
    """
    The rows to choose on and those to report on, checked.

    Raises:
        `DatasetError`: bad rows, or rows that share patients, videos, samples or images.
        `ValueError`: a split that is not there.
    """
    data = load_data(data_args)
    rows = get_split(data, choose_split, "choose_split"), get_split(data, dataset_split, "dataset_split")
    for own, name in zip(rows, (choose_split, dataset_split), strict=True):
        check_dataset(own, name=name)
    check_no_leakage(*rows, names=(choose_split, dataset_split), accept_alike=data_args.accept_alike)
    return rows


def on_device(model: Model) -> Model:
    """A model where it runs."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def maps_of(
    args: Any, model_args: ModelArguments, splits: tuple[Dataset, Dataset]
) -> tuple[dict[str, Any], Callable[[Dataset], Iterator[tuple[dict, np.ndarray]]]]:
    """
    Probability maps of a model, or of another tool's folder.

    Args:
        args: options of the task: `predictions_dir`, `cache_features`, `cache_dir` and `batch_size`.
        model_args (`ModelArguments`): not looked at with a `predictions_dir`.
        splits (`tuple`): both sets of rows, whose maps lie in one folder.

    Returns:
        How the model draws (see [`~adapters.mask_options.mask_options`]), and what goes from rows to their maps.
    """
    if args.predictions_dir is not None:
        return dict(DEFAULTS), lambda rows: read_probabilities(args.predictions_dir, rows, beside=splits)
    model, processor = load_model(model_args)
    model = on_device(model)

    def predictions(rows: Dataset) -> Iterator[tuple[dict, np.ndarray]]:
        features = stored_features(model, processor, rows, args.cache_features, args.cache_dir, args.batch_size)
        return predict_probabilities(model, processor, rows, args.batch_size, features=features)

    return mask_options(model.config), predictions


def gain_in_short(gain: dict | None) -> str:
    """A gain with its interval, if it has one; nothing where there is none."""
    if gain is None:
        return ""
    low, high = gain["ci95"]
    return f"{gain['mean']:+.4f}" + ("" if low is None else f" [{low:+.4f}, {high:+.4f}]")


def gain_in_words(gain: dict) -> str:
    """A gain with its interval, and whether that is one."""
    low, high = gain["ci95"]
    if low is None:
        return f"{gain['mean']:+.4f} (of one patient, from which no interval can be told)"
    verdict = "a gain" if low > 0 else "a loss" if high < 0 else "no difference that these images can tell"
    return f"{gain_in_short(gain)}: {verdict}"
