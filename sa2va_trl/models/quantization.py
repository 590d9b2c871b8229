"""Which layers are quantised, and what of them lies in a checkpoint."""

import copy

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from ..errors import CheckpointError


# Modules that quantised loading leaves alone: all but the layers of the language model.
UNQUANTISED = (
    "vlm.lm_head",
    "vlm.model.vision_tower",
    "vlm.model.visual",
    "vlm.model.multi_modal_projector",
    "text_hidden_fcs",
    "grounding_encoder",
)
_LANGUAGE_MODEL = "vlm.model.language_model."
# Numbers that share a scale, and scales that share one where they are quantised too: bitsandbytes' own.
_BLOCK, _SCALES = 64, 256
# Rows of its packed kernel for CPUs with AVX512-BF16.
_ROWS = 32


def of_language_model_only(config: BitsAndBytesConfig | dict) -> BitsAndBytesConfig:
    """
    Keep quantisation off the vision tower, the heads and SAM 2: they are small, and masks feel every bit.

    Args:
        config (`BitsAndBytesConfig` or `dict`): as a user gives it.

    Returns:
        `BitsAndBytesConfig`: with `UNQUANTISED` among the modules to skip.

    Raises:
        `ValueError`: another method than bitsandbytes.
    """
    config = _bitsandbytes(config)
    config.llm_int8_skip_modules = [*(config.llm_int8_skip_modules or []), *UNQUANTISED]
    return config


def _bitsandbytes(config: BitsAndBytesConfig | dict) -> BitsAndBytesConfig:
    method = config.get("quant_method", "bitsandbytes") if isinstance(config, dict) else config.quant_method
    if method != "bitsandbytes":
        raise ValueError(f"quantization_config: only bitsandbytes (4 or 8 bit) is supported, got {method!r}.")
    return BitsAndBytesConfig.from_dict(config) if isinstance(config, dict) else copy.deepcopy(config)


def stored_tensors(config: BitsAndBytesConfig | dict, model: nn.Module) -> dict[str, tuple[tuple | None, str]]:
    """
    What a checkpoint with quantised layers holds of them, in place of their weights.

    Args:
        config (`BitsAndBytesConfig` or `dict`): the `quantization_config` in its `config.json`.
        model (`nn.Module`): without quantised layers; on the meta device is enough.

    Returns:
        `dict` from a tensor's name to its shape (`None` where any will do) and its type in safetensors.

    Raises:
        `ValueError`: another method than bitsandbytes.
        `CheckpointError`: layers outside the language model are quantised, or in a form that this package does not
            write.
    """
    config = _bitsandbytes(config)
    if config.bnb_4bit_quant_storage != torch.uint8 or config.llm_int8_has_fp16_weight:
        raise CheckpointError("quantization_config: only weights that are stored as int8 or uint8 are supported.")
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and should_convert_module(name, config.llm_int8_skip_modules or [])
    }
    if others := sorted(name for name in layers if not name.startswith(_LANGUAGE_MODEL)):
        raise CheckpointError(
            f"quantization_config quantises {others[0]} (and {len(others) - 1} more) outside the language model's "
            f"layers: llm_int8_skip_modules must hold {', '.join(UNQUANTISED)}."
        )
    tensors: dict[str, tuple[tuple | None, str]] = {}
    for name, layer in layers.items():
        rows, columns = layer.weight.shape
        weight = f"{name}.weight"
        if config.load_in_8bit:
            tensors |= {
                weight: ((rows, columns), "I8"),
                f"{name}.SCB": ((rows,), "F32"),
                f"{name}.weight_format": ((), "U8"),
            }
            continue
        blocks = -(-rows * columns // _BLOCK)
        tensors[weight] = ((-(-rows * columns // 2), 1), "U8")
        tensors[f"{weight}.quant_map"] = ((16,), "F32")
        tensors[f"{weight}.quant_state.bitsandbytes__{config.bnb_4bit_quant_type}"] = (None, "U8")
        if config.bnb_4bit_use_double_quant:
            tensors[f"{weight}.absmax"] = ((blocks,), "U8")
            tensors[f"{weight}.nested_absmax"] = ((-(-blocks // _SCALES),), "F32")
            tensors[f"{weight}.nested_quant_map"] = ((256,), "F32")
        else:
            tensors[f"{weight}.absmax"] = ((blocks,), "F32")
    return tensors


def quantised_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a loaded model that bitsandbytes computes, by name."""
    return {
        name: layer for name, layer in model.named_modules() if type(layer).__module__ == "bitsandbytes.nn.modules"
    }


def finish_loading(model: nn.Module) -> None:
    """
    Check what the 4-bit layers say of themselves, and let each compute where it is.

    Args:
        model (`nn.Module`): loaded.

    Raises:
        `CheckpointError`: a layer's stored description is not of its own weight.
    """
    for name, layer in quantised_layers(model).items():
        state = getattr(layer.weight, "quant_state", None)
        if state is None:  # 8 bits
            continue
        shape = (layer.out_features, layer.in_features)
        if tuple(state.shape) != shape or state.blocksize != _BLOCK:
            raise CheckpointError(
                f"{name}: what is stored is of shape {tuple(state.shape)} in blocks of {state.blocksize}, the model's "
                f"layer is of {shape} in blocks of {_BLOCK}."
            )
        if layer.in_features % _BLOCK or layer.out_features % _ROWS:
            # bitsandbytes takes its packed kernel on every CPU that has it, and it fails for such a layer.
            layer.support_avx512bf16_for_cpu = False
