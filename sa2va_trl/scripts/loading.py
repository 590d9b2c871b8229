"""Data and models that options name."""

from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import BitsAndBytesConfig, TrainingArguments

from ..adapters.peft_model import adapter_prompt_options, load_adapter
from ..data.loading import load_dataset_dict
from ..evaluation.routing import NOTHING, Router, make_router
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor, tiny_sa2va
from ..models.checkpoints import ADAPTER_CONFIG, checkpoint_folder, read_config
from .arguments import PRETRAINED, TINY, DataArguments, ModelArguments, RouterArguments, SplitArguments


Model = Sa2VAForConditionalGeneration | PeftModel


def load_data(args: DataArguments) -> DatasetDict:
    """
    Args:
        args (`DataArguments`): which data.

    Returns:
        `datasets.DatasetDict`.
    """
    return load_dataset_dict(args.dataset_name, phrase=args.phrase, **(args.synthetic or {}))


def get_split(data: DatasetDict, split: str, option: str) -> Dataset:
    """
    Raises:
        `ValueError`: there is no such split; the message names the option and the splits there are.
    """
    if split not in data:
        without = ", or train without one with --eval_strategy no" if option == "dataset_eval_split" else ""
        raise ValueError(
            f"{option}={split!r}: the dataset has no such split, only {', '.join(data)}. Name one of these with "
            f"--{option}{without}."
        )
    return data[split]


def get_training_splits(
    data: DatasetDict, split_args: SplitArguments, training_args: TrainingArguments
) -> tuple[Dataset, Dataset | None]:
    """
    Returns:
        The rows to learn from, and those to choose by, or `None` where `eval_strategy` is `"no"`.

    Raises:
        `ValueError`: there is no such split.
    """
    train_dataset = get_split(data, split_args.dataset_train_split, "dataset_train_split")
    if training_args.eval_strategy == "no":
        return train_dataset, None
    return train_dataset, get_split(data, split_args.dataset_eval_split, "dataset_eval_split")


def load_model(args: ModelArguments, merge: bool = False) -> tuple[Model, Sa2VAProcessor]:
    """
    Args:
        args (`ModelArguments`): which model.
        merge (`bool`, *optional*, defaults to `False`): fold an adapter into the weights, to train on top of it.

    Returns:
        The model (a `PeftModel` with an adapter that was not merged) and its processor.

    Raises:
        `ValueError`: the folder holds an adapter or another kind of model, weights that cannot be used, or an adapter
            that was trained on another base.
    """
    if args.model_name_or_path in TINY:
        own = {"family": TINY[args.model_name_or_path], "pretrained": args.model_name_or_path == PRETRAINED}
        model, processor = tiny_sa2va(image_size=args.grounding_image_size or 256, **own)
        model = model.to(getattr(torch, args.dtype))
        model.set_attn_implementation(args.attn_implementation)
    else:
        if (Path(args.model_name_or_path) / ADAPTER_CONFIG).is_file():
            raise ValueError(
                f"model_name_or_path={args.model_name_or_path!r} is an adapter: give its base model there, and this "
                "folder as --adapter."
            )
        config = read_config(checkpoint_folder(args.model_name_or_path, revision=args.model_revision)[0])
        processor = Sa2VAProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
        if args.grounding_image_size is not None:
            config.grounding_config.image_size = processor.grounding_image_size = args.grounding_image_size
        model = Sa2VAForConditionalGeneration.from_pretrained(
            args.model_name_or_path,
            config=config,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            quantization_config=_quantization_config(args),
            revision=args.model_revision,
        )
    if args.prompt_style is not None:
        processor.prompt_style = args.prompt_style
    if args.adapter is not None:
        model = _with_adapter(args, model, processor, merge)
    return model, processor


def _with_adapter(args: ModelArguments, model: Model, processor: Sa2VAProcessor, merge: bool = False) -> Model:
    """The model with `args.adapter`, asked as that was trained where the options do not say otherwise."""
    model = load_adapter(model, args.adapter, merge=merge)
    for name, value in adapter_prompt_options(args.adapter).items():
        if getattr(args, name, None) is None:
            setattr(processor, name, value)
    return model


def load_second(name: str | None, adapter: str | None, model_args: ModelArguments) -> tuple[Model, Sa2VAProcessor]:
    """
    A model beside the first one.

    Args:
        name (`str`, *optional*): a folder or a Hub id; the first model's base by default.
        adapter (`str`, *optional*):
            Folder or Hub id of an adapter. Without `name` it was trained on the first model's base, or on that base
            merged with the first model's adapter: whichever it fits.
        model_args (`ModelArguments`): of the first one; its type, sizes and quantisation hold for both.

    Returns:
        The model and its processor.

    Raises:
        `ValueError`: as [`load_model`].
    """
    own = replace(model_args, adapter=adapter)
    if name is not None:
        revision = model_args.model_revision if name == model_args.model_name_or_path else None
        return load_model(replace(own, model_name_or_path=name, model_revision=revision))
    try:
        return load_model(own)
    except ValueError:
        if model_args.adapter is None:
            raise
        model, processor = load_model(model_args, merge=True)
        return _with_adapter(own, model, processor), processor


def load_router(args: RouterArguments, model_args: ModelArguments, model: Model, processor: Sa2VAProcessor) -> Router:
    """
    Args:
        args (`RouterArguments`): which second model.
        model_args (`ModelArguments`): of the first one; its type, sizes and quantisation hold for both.
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): the first one, on its device.
        processor (`Sa2VAProcessor`): of the first one.

    Returns:
        `Router`, with a threshold that sends nothing where `route_threshold` is not given.

    Raises:
        `ValueError`: as [`load_model`], or both models are the same.
    """
    name = args.router_model or model_args.model_name_or_path
    if (name, args.router_adapter) == (model_args.model_name_or_path, model_args.adapter):
        raise ValueError("router_model and router_adapter name the first model, so a router could not take effect.")
    second, other = load_second(args.router_model, args.router_adapter, model_args)
    threshold = NOTHING[args.route_by] if args.route_threshold is None else args.route_threshold
    return make_router(model, processor, second, other, by=args.route_by, threshold=threshold)


def _quantization_config(args: ModelArguments) -> BitsAndBytesConfig | None:
    if args.quantization is None:
        return None
    if args.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, args.dtype),
    )
