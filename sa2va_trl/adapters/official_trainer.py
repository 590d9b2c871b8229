"""What the official trainer saves (`iter_N.pth`): changes to a base model, as an adapter of this package."""

import pickle
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES

from ..errors import CheckpointError
from ..models import Sa2VAForConditionalGeneration
from ..models.published import Part, published_parts
from .presets import LANGUAGE_MODEL_LINEARS


# The trainer wraps the published model once more, PEFT wraps the language model (or, for Qwen-VL, the whole VLM).
_LORA = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
_COPY = re.compile(r"(.+)\.modules_to_save(?:\.default)?\.(weight|bias)")
_HEADS = ("language_model.lm_head.weight", "language_model.output.weight", "model.lm_head.weight")


class _Logged:
    """Stands in for the logged scalars that mmengine saves beside the weights: they are read over."""

    def __setstate__(self, state):
        pass


_BESIDE_THE_WEIGHTS = [
    (_Logged, "mmengine.logging.history_buffer.HistoryBuffer"),
    # What NumPy arrays are made of: names and bytes.
    (np.ndarray, "numpy.ndarray"),
    (np.dtype, "numpy.dtype"),
    (type(np.dtype(np.float64)), "numpy.dtypes.Float64DType"),
    (type(np.dtype(np.int64)), "numpy.dtypes.Int64DType"),
    *((np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_delta(file: str | Path) -> dict[str, torch.Tensor]:
    """
    Args:
        file (`str` or `Path`): what the official trainer has saved, by iteration.

    Returns:
        `dict[str, torch.Tensor]` by the trainer's own names.

    Raises:
        `CheckpointError`: not such a file, or one that holds anything but tensors and plain values.
    """
    file = Path(file)
    if file.is_dir():
        raise CheckpointError(
            f"{file} is a folder, as DeepSpeed leaves it: give the file inside it that holds the model's states "
            "(mp_rank_00_model_states.pt)."
        )
    try:
        with torch.serialization.safe_globals(_BESIDE_THE_WEIGHTS):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors and plain values, which could run code: not loaded. Where you trust "
            "it, save its 'state_dict' alone (torch.save) and give that file."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    for name in ("state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(value) for value in content.values()):
        raise CheckpointError(f"{file} holds no weights: neither a 'state_dict' nor tensors by name.")
    return content


def apply_delta(
    model: Sa2VAForConditionalGeneration, delta: dict[str, torch.Tensor], lora_alpha: float | None = None
) -> PeftModel:
    """
    Put a delta of the official trainer on the base that it was trained on, as an adapter.

    LoRA on InternLM2's fused query, key and value rows becomes one LoRA each with the same `A` and their rows of `B`,
    which is the same function. Where the head was trained both whole and through LoRA (as InternLM2's), the sum of
    both is its trained copy.

    Args:
        model (`Sa2VAForConditionalGeneration`): the base; changed in place.
        delta (`dict[str, torch.Tensor]`): from [`read_delta`].
        lora_alpha (`float`, *optional*, defaults to twice the rank, as in every official config):
            Scale of the LoRA, which the file does not hold.

    Returns:
        `PeftModel` with the adapter.

    Raises:
        `CheckpointError`: tensors that are missing, unexpected or misshapen, all of them named.
    """
    state = model.state_dict()
    natives = defaultdict(dict)
    for name, part in published_parts(list(state), model.config).items():
        natives[part.name][name] = part

    lora, copies, faults = defaultdict(dict), {}, []
    for key, value in delta.items():
        name = _published_name(key)
        if ".original_module." in name:  # the base's own weights, beside the trained copy
            continue
        if match := _LORA.fullmatch(name):
            lora[f"{match.group(1)}.weight"][match.group(2)] = value
        elif match := _COPY.fullmatch(name):
            copies[f"{match.group(1)}.{match.group(2)}"] = value
        else:
            copies[name.replace(".base_layer.", ".")] = value
    faults += [f"unexpected: {name}" for name in [*lora, *copies] if name not in natives]
    faults += [f"missing: one of the two LoRA matrices of {name}" for name in lora if len(lora[name]) < 2]
    ranks = sorted({pair["A"].shape[0] for pair in lora.values() if "A" in pair})
    if len(ranks) > 1:
        faults.append(f"misshapen: LoRA of different ranks {ranks}")
    if faults:
        _refuse(faults)

    scale = (lora_alpha if lora_alpha is not None else 2 * ranks[0]) / ranks[0] if ranks else None
    for name in _HEADS:
        if name in lora and name in copies:
            pair = lora.pop(name)
            copies[name] = copies[name].float() + scale * (pair["B"].float() @ pair["A"].float())

    tensors, modules = {}, set()
    for name, value in copies.items():
        for native, part in natives[name].items():
            if part.shape(state[native].shape) != tuple(value.shape):
                faults.append(f"misshapen: {name} has {tuple(value.shape)}, the model {tuple(state[native].shape)}")
                continue
            tensors[f"base_model.model.{native}"] = part.take(value)
            modules.add(_module_to_save(native))
    for name, pair in lora.items():
        for native, part in natives[name].items():
            module = native.removesuffix(".weight")
            tensors[f"base_model.model.{module}.lora_A.weight"] = pair["A"]
            tensors[f"base_model.model.{module}.lora_B.weight"] = _rows(part, pair["B"], name, faults)
    if faults:
        _refuse(faults)
    head = any(name in lora for name in _HEADS)
    config = LoraConfig(
        r=ranks[0] if ranks else 8,
        lora_alpha=scale * ranks[0] if ranks else 8,
        target_modules=(LANGUAGE_MODEL_LINEARS + (r"|.*\.lm_head" if head else "")) if ranks else DUMMY_TARGET_MODULES,
        modules_to_save=sorted(modules) or None,
    )
    adapted = get_peft_model(model, config)
    # (PEFT would count a head's own weights to its LoRA.)
    state_dict = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wanted = {name: tuple(value.shape) for name, value in state_dict.items()}
    faults += [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in tensors]
    faults += [f"unexpected: {name}" for name in tensors if name not in wanted]
    faults += [
        f"misshapen: {name} has {tuple(value.shape)}, the model {wanted[name]}"
        for name, value in tensors.items()
        if name in wanted and tuple(value.shape) != wanted[name]
    ]
    if faults:
        adapted.unload()
        _refuse(faults)
    set_peft_model_state_dict(adapted, tensors)
    return adapted


def _published_name(key: str) -> str:
    name = key.replace(".base_model.model.", ".", 1)
    # The published names of Qwen-VL keep the attribute that holds the VLM.
    if name.startswith("mllm.model.") and name.split(".")[2] in ("language_model", "vision_model", "mlp1"):
        return name.removeprefix("mllm.model.")
    return name.removeprefix("mllm.")


def _module_to_save(native: str) -> str:
    for module in ("text_hidden_fcs", "sam_mask_decoder", "multi_modal_projector", "embed_tokens", "lm_head"):
        if f".{module}." in f".{native}":
            return module
    return native.rsplit(".", 1)[0]


def _rows(part: Part, matrix: torch.Tensor, name: str, faults: list[str]) -> torch.Tensor:
    if matrix.shape[0] % (part.groups * part.size):
        faults.append(f"misshapen: the second LoRA matrix of {name} has {matrix.shape[0]} rows")
        return matrix
    return part.take(matrix)


def _refuse(faults: list[str]) -> None:
    raise CheckpointError("The delta does not fit the model:\n  " + "\n  ".join(sorted(faults)))
