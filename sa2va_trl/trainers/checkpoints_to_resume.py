"""Checkpoints that a run goes on from: which one is meant, whether it is whole, and whether the same trains in it."""

import json
import os
import zipfile
from enum import Enum
from pathlib import Path

from peft import PeftModel
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..adapters.presets import EARLIER_LINEARS, LANGUAGE_MODEL_LINEARS
from ..models.checkpoints import ADAPTER_CONFIG
from .run_record import read_record


# What has to be the same in two adapters for one's weights to be the other's.
ADAPTER_FIELDS = ("peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "trainable_token_indices")
ADAPTER_FIELDS += ("rank_pattern", "alpha_pattern", "bias", "use_dora", "use_rslora")


def resolve_checkpoint(wanted: str | bool | None, output_dir: str | os.PathLike) -> str | None:
    """
    The checkpoint that `resume_from_checkpoint` means.

    A run that was killed may leave a checkpoint without its last file; such a one is passed over.

    Args:
        wanted (`str` or `bool`, *optional*): a folder, or `"latest"` or `True` for the newest in `output_dir`.
        output_dir (`str` or `os.PathLike`): of the run.

    Returns:
        `str`: a folder, or `None` where none was asked for.

    Raises:
        `ValueError`: the folder is no complete checkpoint, or there is none in `output_dir`.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is not True and wanted != "latest":
        if not _is_complete(Path(wanted)):
            why = "" if Path(wanted).exists() else ": there is no such folder"
            raise ValueError(f"resume_from_checkpoint={str(wanted)!r} is not a complete checkpoint folder{why}.")
        return str(wanted)
    numbered = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        if (number := folder.name.removeprefix("checkpoint-")).isdigit() and _is_complete(folder):
            numbered[int(number)] = folder
    if not numbered:
        raise ValueError(f"resume_from_checkpoint={wanted}: {output_dir} holds no complete checkpoint.")
    return str(numbered[max(numbered)])


def _is_complete(folder: Path) -> bool:
    # Trainer writes this file last.
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return True


def read_state(folder: str | Path) -> TrainerState:
    """The state of a run as it is in `folder`."""
    return TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))


def evaluations_waited(state: TrainerState) -> int:
    """Evaluations without a better metric so far."""
    saved = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    return saved["attributes"]["early_stopping_patience_counter"] if isinstance(saved, dict) else 0


def weights_of(folder: Path) -> list[Path]:
    """The model's files; adapters by other names than `default` have folders of their own."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")])


def check_trained(checkpoint: str, model: nn.Module) -> None:
    """
    Refuse a checkpoint in which something else trains than in the model.

    Args:
        checkpoint (`str`): a folder.
        model (`nn.Module`): a Sa2VA model or a `PeftModel` around one.

    Raises:
        `ValueError`: naming the options that differ, with both values.
    """
    file, own = Path(checkpoint) / ADAPTER_CONFIG, None
    if isinstance(model, PeftModel):
        name = "default" if "default" in model.peft_config else model.active_adapter
        own = model.peft_config[name].to_dict()
        if name != "default" and not file.is_file():  # where PEFT saves one by another name
            file = file.parent / name / file.name
    saved = json.loads(file.read_text()) if file.is_file() else None
    if saved is not None and saved.get("target_modules") == EARLIER_LINEARS:
        saved["target_modules"] = LANGUAGE_MODEL_LINEARS
    differences = {}
    if _preset(saved) != _preset(own):
        differences["trainable"] = (_preset(saved), _preset(own))
    elif own is not None:
        for field in ADAPTER_FIELDS:
            values = (_plain(saved.get(field)), _plain(own.get(field)))
            if values[0] != values[1]:
                differences["lora_r" if field == "r" else field] = values
        if _preset(own) == "stage1" and _embeddings(saved) != _embeddings(own):
            for field in ("modules_to_save", "trainable_token_indices"):
                differences.pop(field, None)
            differences["train_embeddings"] = (_embeddings(saved), _embeddings(own))
    if differences:
        there = ", ".join(f"{name}={values[0]!r}" for name, values in differences.items())
        here = ", ".join(f"{name}={values[1]!r}" for name, values in differences.items())
        raise ValueError(
            f"{checkpoint} was trained with {there}, and this run has {here}: resume it with the same options, or "
            "begin another run."
        )


def _preset(config: dict | None) -> str:
    if config is None:
        return "full"
    modules = _plain(config.get("target_modules"))
    if modules in (DUMMY_TARGET_MODULES, [DUMMY_TARGET_MODULES]):
        return "head"
    return "stage1" if modules == LANGUAGE_MODEL_LINEARS else "an adapter of your own"


def _embeddings(config: dict) -> str:
    if config.get("trainable_token_indices"):
        return "seg"
    return "full" if "embed_tokens" in (config.get("modules_to_save") or []) else "none"


def _plain(value):
    """As JSON has it, whatever the order of names."""
    if isinstance(value, (set, frozenset, list, tuple)):
        return sorted(value, key=str)
    return value.value if isinstance(value, Enum) else value or None


def check_files(checkpoint: str, kind: str | None, processes: int, index: int, new_optimizer: bool) -> None:
    """
    Refuse a checkpoint that lacks something of what a run goes on from, or whose files are damaged.

    Args:
        checkpoint (`str`): a folder.
        kind (`str`, *optional*): `"DeepSpeed"` or `"FSDP"` where one of them holds weights and optimizer.
        processes (`int`): of the run that goes on.
        index (`int`): which of them this is.
        new_optimizer (`bool`): begin a new optimizer where there is none.

    Raises:
        `ValueError`: naming the file and what to do.
    """
    folder = Path(checkpoint)
    for file in weights_of(folder):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}): resume from an earlier checkpoint.") from error
    shards = sorted(folder.glob("global_step*/*.pt"))
    if shards:
        found = "DeepSpeed"
    elif (folder / "optimizer.bin").exists() or any(folder.glob("optimizer_*/")):
        found = "FSDP"
    else:
        found = None
    has_optimizer = found is not None or (folder / "optimizer.pt").exists()
    if not has_optimizer or found != kind:
        why = "no optimizer state (save_only_model leaves it out)"
        if has_optimizer:
            names = {None: "without DeepSpeed and FSDP", "DeepSpeed": "with DeepSpeed", "FSDP": "with FSDP"}
            why = f"an optimizer state that was saved {names[found]}, and this run is {names[kind]}"
        if kind is not None:
            raise ValueError(
                f"{checkpoint} has {why}, so it cannot be gone on from: begin a new run with its weights (--adapter, "
                "or model_name_or_path for a whole model)."
            )
        if not new_optimizer:
            raise ValueError(
                f"{checkpoint} has {why}: resume from another checkpoint, or go on with a new optimizer, which makes "
                "it another run, with allow_new_optimizer=True (--allow_new_optimizer)."
            )
        return
    if new_optimizer:
        raise ValueError(
            f"allow_new_optimizer=True has no effect: {checkpoint} has the state of its optimizer, which is gone on "
            "with. Leave the option out."
        )
    if kind == "DeepSpeed":
        ranks = len({file.name for file in shards if file.name.endswith("_optim_states.pt")})
        if ranks and ranks != processes:
            raise ValueError(
                f"{checkpoint} was saved by DeepSpeed on {ranks} processes, among which it divided the optimizer's "
                f"state, and this run has {processes}: resume it on {ranks}."
            )
    needed = [folder / "scheduler.pt"]
    if kind is None:
        needed.append(folder / "optimizer.pt")
    saved_on = read_record(folder).get("processes") or len(list(folder.glob("rng_state_*.pth"))) or 1
    if saved_on == processes:
        needed.append(folder / ("rng_state.pth" if processes == 1 else f"rng_state_{index}.pth"))
    states = [folder / "scaler.pt"] if (folder / "scaler.pt").exists() else []
    for file in [*needed, *states, *shards]:
        if not file.exists():
            raise ValueError(f"{checkpoint} lacks {file.name}: resume from another checkpoint.")
        # What torch saves is an archive with its table of contents at the end.
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{file} is damaged or cut off: resume from another checkpoint.")
