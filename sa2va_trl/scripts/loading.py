"""Data and models that options name."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import BitsAndBytesConfig, TrainingArguments

from ..adapters.peft_model import adapter_prompt_options, add_adapter, can_join, is_adapter, load_adapter
from ..data.loading import load_dataset_dict
from ..evaluation.averaging import NO_ADAPTER, Member
from ..evaluation.routing import NOTHING, Router, make_router
from ..features.fingerprint import processor_settings
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor, tiny_sa2va
from ..models.checkpoints import ADAPTER_CONFIG, checkpoint_folder, read_config
from ..models.compiling import compile_sam2
from .arguments import PRETRAINED, TINY, DataArguments, ModelArguments, RouterArguments, SplitArguments


Model = Sa2VAForConditionalGeneration | PeftModel
# Of the option `torch_compile`.
COMPILING = "Compile SAM 2 when it is first called, which takes minutes; for long runs on GPUs."


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
        model.config.grounding_dtype = args.grounding_dtype
        cast(model, args.dtype)
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
            grounding_dtype=args.grounding_dtype,
            attn_implementation=args.attn_implementation,
            quantization_config=quantization_config(args.quantization, args.dtype),
            revision=args.model_revision,
        )
    if args.prompt_style is not None:
        processor.prompt_style = args.prompt_style
    if args.adapter is not None:
        model = _with_adapter(args, model, processor, merge)
    return model, processor


def cast(model: Sa2VAForConditionalGeneration, dtype: str) -> None:
    """
    Args:
        model (`Sa2VAForConditionalGeneration`): whose weights are cast, but not what its config keeps in float32.
        dtype (`str`): such as `"bfloat16"`.
    """
    (model if model.config.grounding_dtype is None else model.vlm).to(getattr(torch, dtype))


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


def load_members(
    names: list[str], model_args: ModelArguments, model: Model, processor: Sa2VAProcessor
) -> list[Member]:
    """
    The models of an ensemble. Adapters of the first model's base share that base in memory, and so take no more than
    their own weights (those that [`~adapters.peft_model.can_join`] turns away have a base of their own);
    whole models lie beside it.

    Args:
        names (`list[str]`): folders or Hub ids of further adapters and models.
        model_args (`ModelArguments`): of the first one; its type, sizes and quantisation hold for all.
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): the first one, on its device; not to be used by itself
            any more.
        processor (`Sa2VAProcessor`): of the first one.

    Returns:
        `list[Member]`, the first one in front.

    Raises:
        `ValueError`: as [`load_model`], or a model that asks or looks otherwise than the first.
    """
    members = [Member(model, processor)]
    base_options = getattr(model, "base_mask_options", members[0].options)
    for number, name in enumerate(names, start=1):
        if name not in TINY and is_adapter(name) and can_join(model, name):
            own = adapter_prompt_options(name)
            own = {key: value for key, value in own.items() if getattr(model_args, key, None) is None}
            _check_alike(name, own, {key: getattr(processor, key) for key in own})
            model, stored = add_adapter(model, name, f"member{number}")
            if members[0].model is not model:  # it was without an adapter till now
                members[0] = Member(model, processor, NO_ADAPTER, members[0].options)
            members.append(Member(model, processor, f"member{number}", {**base_options, **stored}))
            continue
        if name not in TINY and is_adapter(name):
            args = replace(model_args, adapter=name)
        else:
            args = replace(model_args, model_name_or_path=name, adapter=None, model_revision=None)
        other, own = load_model(args)
        _check_alike(name, processor_settings(own), processor_settings(processor))
        members.append(Member(other.eval().to(model.device), own))
    return members


def _check_alike(name: str, own: dict, first: dict) -> None:
    """Refuse a member that would be asked otherwise than the first, or shown other pixels."""
    if different := sorted(key for key in own.keys() | first.keys() if own.get(key) != first.get(key)):
        raise ValueError(
            f"ensemble: {name} differs from the first model in {', '.join(different)} of its processor, so the two "
            "would not be asked alike: evaluate them one by one."
        )


def compile_models(models: Iterable[Model]) -> None:
    """
    See [`~models.compiling.compile_sam2`].

    Args:
        models (iterable of `Sa2VAForConditionalGeneration` or `PeftModel`):
            On their devices, with all adapters that they will have; one may be there several times.
    """
    for sam2 in {id(sam2): sam2 for sam2 in (model.grounding_encoder.sam2_model for model in models)}.values():
        compile_sam2(sam2)


def quantization_config(quantization: str | None, dtype: str) -> BitsAndBytesConfig | None:
    """
    Args:
        quantization (`str`, *optional*): `"4bit"` or `"8bit"`.
        dtype (`str`): that 4-bit layers compute in.

    Returns:
        What `from_pretrained` takes.
    """
    if quantization is None:
        return None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
