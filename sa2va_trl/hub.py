"""What is pushed to the Hub: by a list of what may go."""

import json
import os
import re
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS

from .adapters.base_model import BASE_RECORD, PURE, SAMPLES, base_fingerprint, base_record, check_base  # noqa: F401  (defined here once)
from .adapters.mask_options import MASK_OPTIONS
from .adapters.peft_model import SegPeftModel, adapter_prompt_options, load_adapter, merge_adapter  # noqa: F401  (defined here once)
from .model_card import CARD, model_card, public_name, write_card  # noqa: F401  (defined here once)
from .models import Sa2VAProcessor
from .models.checkpoints import ADAPTER_CONFIG


# What a run can be resumed from, other than the weights. A pickle of `TrainingArguments` is not among them.
_RESUME = re.compile(r"(optimizer|scheduler|scaler|actor_critic)\.pt|rng_state(_\d+)?\.pth|resume\.json")


def weight_files(folder: str | os.PathLike, is_adapter: bool) -> list[str]:
    """
    Args:
        folder (`str` or `os.PathLike`): where a trainer has saved.
        is_adapter (`bool`): whether an adapter or a whole model.

    Returns:
        `list[str]`: names of the files that make the model, nothing else that may lie beside them.
    """
    names = ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"]
    if is_adapter:
        names = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD, MASK_OPTIONS]
    index = Path(folder) / "model.safetensors.index.json"
    if not is_adapter and index.is_file():
        names += sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [name for name in names if (Path(folder) / name).is_file()]


def commit_operations(
    folder: str | os.PathLike, is_adapter: bool, processor: Sa2VAProcessor | None = None, path_in_repo: str = ""
) -> list[CommitOperationAdd]:
    """
    What of a trainer's folder is pushed: the model, its card and its processor.

    Everything else stays, by a list of what may go rather than of what may not: such a folder also holds a pickle of
    the training arguments with local paths, logs, and whatever evaluations and pictures a user has put there.

    Args:
        folder (`str` or `os.PathLike`): with the model and its `README.md`.
        is_adapter (`bool`): whether an adapter or a whole model.
        processor (`ProcessorMixin`, *optional*): pushed as it would be saved now.
        path_in_repo (`str`, *optional*, defaults to `""`): folder in the repository.

    Returns:
        `list[CommitOperationAdd]`.
    """
    folder = Path(folder)
    prefix = f"{path_in_repo}/" if path_in_repo else ""
    names = weight_files(folder, is_adapter) + ["README.md"] * (folder / "README.md").is_file()
    operations = [CommitOperationAdd(f"{prefix}{name}", folder / name) for name in names]
    if processor is not None:
        with tempfile.TemporaryDirectory() as temporary:
            processor.save_pretrained(temporary)
            files = sorted(file for file in Path(temporary).rglob("*") if file.is_file())
            operations += [
                CommitOperationAdd(f"{prefix}{file.relative_to(temporary).as_posix()}", file.read_bytes())
                for file in files
            ]
    return operations


def resume_operations(
    folder: str | os.PathLike, path_in_repo: str, evaluation_names: list[str]
) -> list[CommitOperationAdd]:
    """
    What a checkpoint needs beside its model so that training can be resumed from it elsewhere.

    Args:
        folder (`str` or `os.PathLike`): a checkpoint.
        path_in_repo (`str`): folder in the repository.
        evaluation_names (`list[str]`): names that a user gave to evaluation sets, which stay private.

    Returns:
        `list[CommitOperationAdd]`: optimizer, scheduler and random states, and a `trainer_state.json` without local
        paths, names of trials and what is logged or kept under `evaluation_names`.
    """
    folder = Path(folder)
    names = sorted(file.name for file in folder.iterdir() if _RESUME.fullmatch(file.name))
    operations = [CommitOperationAdd(f"{path_in_repo}/{name}", folder / name) for name in names]
    state = json.loads((folder / "trainer_state.json").read_text())
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    state["trial_name"] = state["trial_params"] = None
    private = tuple(f"eval_{name}_" for name in evaluation_names)
    state["log_history"] = [
        {key: value for key, value in entry.items() if not key.startswith(private)} for entry in state["log_history"]
    ]
    for kept in state.get("stateful_callbacks", {}).values():
        for own in kept if isinstance(kept, list) else [kept]:
            start = own.get("attributes", {}).get("start")  # Dice by evaluation set, of training on hard samples
            for name in [f"eval_{name}" for name in evaluation_names] if isinstance(start, dict) else ():
                start.pop(name, None)
    content = (json.dumps(state, indent=2) + "\n").encode()
    return [*operations, CommitOperationAdd(f"{path_in_repo}/trainer_state.json", content)]
