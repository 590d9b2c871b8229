"""What features depend on but the row: weights, sizes, processor, numbers' format and versions."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..models import Sa2VAProcessor


# Of the files and of how rows are told apart: raise it when either changes.
FEATURES_FORMAT = 1
BEFORE_THE_CUT = ("vlm.model.", "grounding_encoder.sam2_model.image_encoder.")


def before_the_cut(model: nn.Module, parts: tuple[str, ...] = BEFORE_THE_CUT) -> Iterator[tuple[str, nn.Parameter]]:
    """
    The parameters that `encode` uses, adapters' and trained copies' among them.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        parts (`tuple[str, ...]`, *optional*): beginnings of names, in place of those that `encode` uses.

    Yields:
        Names (without PEFT's prefix) and parameters.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, parameter in base.named_parameters():
        if name.startswith(parts):
            yield name, parameter


def random_before_the_cut(model: nn.Module) -> list[str]:
    """Names of the dropout layers that `encode` would go through in training, hence with another result each time."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return [
        name
        for name, module in base.named_modules()
        if name.startswith(BEFORE_THE_CUT) and isinstance(module, nn.Dropout) and module.p > 0
    ]


def weights_digest(model: nn.Module, dtype: torch.dtype | None = None, parts: tuple[str, ...] = BEFORE_THE_CUT) -> str:
    """
    SHA-256 over every byte of every weight before the cut. (Not over a sample, as in
    [`~adapters.base_model.base_fingerprint`], which is meant for telling models apart: a short training could hide
    from it.) LoRA's scales and switches are in it too.

    Under ZeRO-3 all processes have to call it together.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        dtype (`torch.dtype`, *optional*): what DeepSpeed will cast the weights to.
        parts (`tuple[str, ...]`, *optional*): beginnings of names; `("",)` for every weight.

    Returns:
        `str`: hexadecimal.
    """

    def digest(tensors: list[torch.Tensor]) -> bytes:
        found = hashlib.sha256()
        for tensor in tensors:
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(flat_bytes(tensor))
        return found.digest()

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    whole = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets go of the interpreter's lock
        pending = []
        for name, parameter in before_the_cut(model, parts):
            if hasattr(parameter, "ds_id"):
                import deepspeed

                gathered = deepspeed.zero.GatheredParameters([parameter])
            else:
                gathered = nullcontext()
            with gathered, torch.no_grad():
                values = parameter.detach()
                if dtype is not None and values.is_floating_point():
                    values = values.to(dtype)
                # A gathered weight is let go of at the end of the block.
                values = values.clone() if hasattr(parameter, "ds_id") else values
                # What bitsandbytes scales its integers with.
                state = getattr(parameter, "quant_state", None)
                scales = [] if state is None else [part for part in state.as_dict().values()]
                scales.append(getattr(parameter, "SCB", None))
                tensors = [values, *(part.detach() for part in scales if isinstance(part, torch.Tensor))]
                pending.append((name, pool.submit(digest, [tensor.cpu() for tensor in tensors])))
            if len(pending) > 64:
                name, first = pending.pop(0)
                whole.update(name.encode() + first.result())
        for name, rest in pending:
            whole.update(name.encode() + rest.result())
    for name, module in base.named_modules():
        if name.startswith(parts) and isinstance(module, BaseTunerLayer):
            state = (name, module.active_adapters, module.disable_adapters, module.merged_adapters)
            whole.update(repr((*state, getattr(module, "scaling", None))).encode())
    return whole.hexdigest()


def fingerprint(
    model: nn.Module,
    processor: Sa2VAProcessor,
    dtype: torch.dtype | None = None,
    autocast: str | None = None,
    parts: tuple[str, ...] = BEFORE_THE_CUT,
) -> dict:
    """
    Everything but the row that features depend on: weights before the cut, sizes, the state that is taken, processor,
    numbers' format and the packages that compute.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        processor (`Sa2VAProcessor`): of the model.
        dtype (`torch.dtype`, *optional*): what DeepSpeed will cast the weights to.
        autocast (`str`, *optional*): the type that mixed precision computes in.
        parts (`tuple[str, ...]`, *optional*): see [`weights_digest`].

    Returns:
        `dict` of strings and numbers, which JSON can hold.
    """
    config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    settings = processor_settings(processor)
    # (Added only where it is not what it always was before: older stores stay good.)
    state = [] if config.seg_state == "normed" else [config.seg_state]
    parts_of_config = [_sizes(part.to_dict()) for part in (config.vlm_config, config.grounding_config)]
    return {
        "format": FEATURES_FORMAT,
        "weights": weights_digest(model, dtype, parts),
        "config": json_digest([*parts_of_config, *state]),
        "processor": json_digest(settings),
        "dtype": str(dtype or next(before_the_cut(model))[1].dtype),
        "autocast": autocast,
        **{name: version(name) for name in ("torch", "transformers", "sam2", "pillow")},
    }


def processor_settings(processor: Sa2VAProcessor) -> dict:
    """
    How a processor makes text and pixels of a row.

    Args:
        processor (`Sa2VAProcessor`): not changed.

    Returns:
        `dict`: equal for two processors that make the same.
    """
    tokenizer = processor.tokenizer
    text = {"class": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab().items())}
    if getattr(tokenizer, "is_fast", False):
        # Padding and truncation are what the last call asked for.
        text["backend"] = {
            name: part
            for name, part in json.loads(tokenizer.backend_tokenizer.to_str()).items()
            if name not in ("padding", "truncation")
        }
    settings = {
        "image_processor": processor.image_processor.to_dict(),
        "tokenizer": text,
        **{
            name: getattr(processor, name)
            for name in ("grounding_image_size", "image_seq_length", "prompt_template", "clip_size")
        },
    }
    # (Added only where it is not what it always was before: older stores stay good.)
    if processor.is_official:
        settings["official"] = processor.official_opening
    return settings


def _sizes(content: dict) -> dict:
    """A config without what says where it came from, and without what Trainer changes when it starts."""
    drop = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    drop += ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        name: _sizes(value) if isinstance(value, dict) else value
        for name, value in content.items()
        if name not in drop
    }


def json_digest(content: Any) -> str:
    """
    SHA-256 of what JSON makes of a content, names in order.

    Args:
        content: lists, `dict`s, strings and numbers; of anything else, what `str` makes of it.

    Returns:
        `str`: hexadecimal.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def flat_bytes(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor on the CPU, flat; a view where it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()
