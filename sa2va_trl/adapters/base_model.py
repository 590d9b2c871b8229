"""Which base an adapter belongs to: the record beside it, and its check."""

import hashlib
import json
import logging
import os
import re
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name
from peft import PeftModel
from torch import nn

from ..model_card import public_name


logger = logging.getLogger(__name__)


BASE_RECORD = "base_model.json"
# Values looked at of every tensor; a change of a whole matrix cannot hide between them.
SAMPLES = 1024
# Ways to start a LoRA that leave the base as it is; others (PiSSA, OLoRA) move a part of its weights into the adapter.
PURE = (True, False, "gaussian", "orthogonal", "eva")
# Names that PEFT's wrappers put between a parameter and its place in the base, and parameters that are PEFT's own.
_WRAPPERS = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")
_ADDED = re.compile(r"\.(lora_\w+|modules_to_save|trainable_tokens_\w+)(\.|$)")


def is_packed(parameter: torch.Tensor) -> bool:
    """Whether a quantised tensor, whose values cannot be compared with those of the weights it stands for."""
    return not parameter.is_floating_point() or type(parameter).__module__.startswith("bitsandbytes")


def is_sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 has shared the weights out."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _part(name: str, is_linear: bool) -> str:
    """Parts are told apart in messages; linear layers are parts of their own, since they are what is quantised."""
    pieces = name.split(".")
    depth = 3 if pieces[:2] == ["vlm", "model"] or pieces[0] == "grounding_encoder" else 2 if pieces[0] == "vlm" else 1
    part = ".".join(pieces[: min(depth, len(pieces) - 1)])
    return f"{part} (linear layers)" if is_linear and pieces[0] == "vlm" else part


def base_fingerprint(model: nn.Module) -> dict[str, dict[str, str] | None]:
    """
    Which weights a model has, whatever they were loaded as: from names, shapes and a sample of every tensor.

    It is the same in float32, bfloat16 and (for weights that are published in bfloat16) float16, on any device,
    sharded or whole, and with adapters around the weights or without. Under ZeRO-3 all processes have to call it
    together.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.

    Returns:
        `dict[str, dict[str, str] | None]`: for each part of the model the digests `"structure"` (names and shapes) and
        `"bfloat16"` and `"float16"` (values cast to these). Parts that hold quantised tensors are left out.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    linear = {
        id(module.weight) for module in base.modules() if isinstance(module, nn.Linear) and hasattr(module, "weight")
    }
    parts, packed = defaultdict(list), set()
    # Tied tensors come once, under the first of their names.
    for name, parameter in base.named_parameters():
        if _ADDED.search(name):
            continue
        name = _WRAPPERS.sub("", name)
        part = _part(name, id(parameter) in linear)
        if is_packed(parameter):
            packed.add(part)
        else:
            parts[part].append((name, parameter))
    fingerprint = {}
    for part in sorted(parts.keys() | packed):
        if part in packed:
            fingerprint[part] = None
            continue
        digests = {name: hashlib.sha256() for name in ("structure", "bfloat16", "float16")}
        for name, parameter in sorted(parts[part], key=lambda entry: entry[0]):
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            digests["structure"].update(f"{name}{shape}".encode())
            values = _sample(parameter)
            for dtype in ("bfloat16", "float16"):
                # Copied bit by bit: NumPy knows no bfloat16.
                digests[dtype].update(values.to(getattr(torch, dtype)).view(torch.int16).numpy().tobytes())
        fingerprint[part] = {name: digest.hexdigest()[:16] for name, digest in digests.items()}
    return fingerprint


def _sample(parameter: nn.Parameter) -> torch.Tensor:
    gathered = nullcontext()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter])
    with gathered, torch.no_grad():
        values = parameter.detach().flatten()
        if values.numel() > SAMPLES:
            # Steps of a large prime, so that the sample is not one column of a matrix.
            index = torch.arange(SAMPLES, dtype=torch.int64) * 2_654_435_761 % values.numel()
            values = values[index.to(values.device)]
        return values.cpu()


def base_record(model: nn.Module) -> dict:
    """
    What is written beside an adapter about its base.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.

    Returns:
        `dict`: `base_model_name_or_path` (a Hub id, `None` for a local folder), `revision` (a commit, if it is known),
        `seg_state` of its config and `fingerprint` (see [`base_fingerprint`]; `None` where PEFT has changed the base
        to start the adapter).
    """
    config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    name = public_name(config._name_or_path)
    return {
        "base_model_name_or_path": name,
        "revision": (getattr(config, "_commit_hash", None) or _commit(name)) if name else None,
        "seg_state": config.seg_state,
        "fingerprint": base_fingerprint(model),
    }


def _commit(name: str) -> str | None:
    # transformers does not keep the commit that it has loaded. With one snapshot in the cache there is no doubt.
    snapshots = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
    commits = [folder.name for folder in snapshots.iterdir()] if snapshots.is_dir() else []
    return commits[0] if len(commits) == 1 else None


def check_base(model: nn.Module, record: dict, folder: str | os.PathLike, adapter: str | None = None) -> None:
    """
    Refuse an adapter that was trained on other weights, or on another state of the `[SEG]` tokens.

    Args:
        model (`nn.Module`): the base at hand, for its name.
        record (`dict`): of it, from [`base_record`].
        folder (`str` or `os.PathLike`): with the adapter. Without a record in it, only a warning is given.
        adapter (`str`, *optional*): what to call the adapter in the message.

    Raises:
        `ValueError`: the bases differ; the message names both bases and in what.
    """
    file = Path(folder) / BASE_RECORD
    if not file.is_file():
        logger.warning("%s has no %s: its base model cannot be checked.", adapter or folder, BASE_RECORD)
        return
    try:
        expected = json.loads(file.read_text())
        wanted = expected["fingerprint"]
        if wanted is not None:
            wanted = {part: digests and dict(digests) for part, digests in wanted.items()}
        # (Before the record had it, all states were normed.)
        seg_state = expected.get("seg_state", "normed")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a record of a base model: {error!r}.") from error
    found = record["fingerprint"]
    if wanted is None or found is None:
        logger.warning("PEFT changes the base of %s at its start: it cannot be checked.", adapter or folder)
    else:
        # A part that is quantised on either side cannot be compared.
        both = [part for part in sorted(wanted.keys() & found.keys()) if wanted[part] and found[part]]
        different = [part for part in both if not _same(wanted[part], found[part])]
        different += sorted(wanted.keys() ^ found.keys())
        if different or not both:
            name = expected.get("base_model_name_or_path") or "a local model"
            revision = f" (revision {expected['revision']})" if expected.get("revision") else ""
            config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
            raise ValueError(
                f"{adapter or folder} was trained on {name}{revision}, whose weights differ from those of "
                f"{config._name_or_path or 'the model at hand'} in {', '.join(different) or 'everything'}: load the "
                "base that it was trained on."
            )
    if seg_state != record["seg_state"]:
        raise ValueError(
            f"{adapter or folder} was trained on masks from seg_state={seg_state}, but the model at hand draws them "
            f'from seg_state={record["seg_state"]}: load the base with "seg_state": "{seg_state}" in its config.json.'
        )


def _same(one: dict[str, str], other: dict[str, str]) -> bool:
    return one["structure"] == other["structure"] and any(one[d] == other[d] for d in ("bfloat16", "float16"))
