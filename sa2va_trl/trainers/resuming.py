"""Going on from a checkpoint: what fits is gone on from, what is finished is left alone, what differs is named."""

import filecmp
import hashlib
import json
import os
import warnings
import zipfile
from enum import Enum
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError, safe_open
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from ..adapters.presets import LANGUAGE_MODEL_LINEARS
from ..errors import DatasetError
from ..models.checkpoints import ADAPTER_CONFIG
from ..processes import raise_first


# What a run writes about itself into each checkpoint, beside what Trainer writes.
RECORD = "resume.json"
# They are the optimizer's, which is loaded with its own: what the config says of them would have no effect.
OPTIMIZER_OPTIONS = ("optim", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
# They decide which rows come in which order.
ORDER_OPTIONS = ("dataset_repeats", "train_sampling_strategy", "dataloader_drop_last")
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
        A folder, or `None` where none was asked for.

    Raises:
        `ValueError`: the folder is no complete checkpoint, or there is none in `output_dir`.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is not True and wanted != "latest":
        if not _is_complete(Path(wanted)):
            raise ValueError(f"resume_from_checkpoint={str(wanted)!r} is not a complete checkpoint folder.")
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


def check_trained(checkpoint: str, model) -> None:
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
    for file in _weights(folder):
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
    saved_on = _record(folder).get("processes") or len(list(folder.glob("rng_state_*.pth"))) or 1
    if saved_on == processes:
        needed.append(folder / ("rng_state.pth" if processes == 1 else f"rng_state_{index}.pth"))
    states = [folder / "scaler.pt"] if (folder / "scaler.pt").exists() else []
    for file in [*needed, *states, *shards]:
        if not file.exists():
            raise ValueError(f"{checkpoint} lacks {file.name}: resume from another checkpoint.")
        # What torch saves is an archive with its table of contents at the end.
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{file} is damaged or cut off: resume from another checkpoint.")


def _weights(folder: Path) -> list[Path]:
    """The model's files; adapters by other names than `default` have folders of their own."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")])


def check_record(checkpoint: str, own: dict, optimizer: bool, order: bool) -> None:
    """
    Refuse a checkpoint of a run that learned from other rows, in another order or in other batches, or with an
    optimizer that this one has other options for. Of older checkpoints, which have no record, nothing is known.

    Args:
        checkpoint (`str`): a folder.
        own (`dict`): the record of the run that goes on, see [`ResumingMixin.run_record`].
        optimizer (`bool`): whether the optimizer is gone on with.
        order (`bool`): whether rows that were seen are skipped.

    Raises:
        `ValueError`: naming the options that differ, with both values.
    """
    saved = _record(Path(checkpoint))
    if not saved:
        return
    names = [*(OPTIMIZER_OPTIONS if optimizer else ()), *(ORDER_OPTIONS if order else ())]
    changed = [name for name in names if saved["options"].get(name) != own["options"][name]]
    if order and saved["seed"] != own["seed"]:
        changed.append("seed")
        saved, own = ({**part, "options": {**part["options"], "seed": part["seed"]}} for part in (saved, own))
    if changed:
        there = ", ".join(f"{name}={saved['options'].get(name)}" for name in changed)
        here = ", ".join(f"{name}={own['options'][name]}" for name in changed)
        raise ValueError(f"{checkpoint} was begun with {there}, and this run has {here}: resume it with the same.")
    if not order:
        return
    check_rows(
        checkpoint,
        saved["rows"],
        own["rows"],
        ", or, to go on with others from the beginning of an epoch, with ignore_data_skip=True",
    )
    if own["rows"]["count"] is None:
        same = saved["batch"] == own["batch"]  # a stream is divided in another way
    else:
        same = _rows_of(saved) == _rows_of(own)
    if not same:
        raise ValueError(
            f"{checkpoint} was trained with {_batch(saved)}, and this run has {_batch(own)}: resume it with as many, "
            "so that it learns from the same rows in the same order (gradient_accumulation_steps makes up for "
            "processes)."
        )


def rows_digest(dataset) -> dict:
    """
    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): training rows.

    Returns:
        `dict`: their number and a digest of their `sample_id` in order, `None` where there are none.
    """
    if not isinstance(dataset, Dataset):
        return {"count": None, "digest": None}
    digest, rows = None, dataset.with_format(None)
    if "sample_id" in rows.column_names:
        digest = hashlib.sha256("\n".join(map(str, rows["sample_id"])).encode()).hexdigest()[:32]
    return {"count": len(rows), "digest": digest}


def check_rows(checkpoint: str, saved: dict, own: dict, otherwise: str = "") -> None:
    """
    Refuse a checkpoint of other rows.

    Args:
        checkpoint (`str`): a folder.
        saved, own (`dict`): of the checkpoint and of the run that goes on, from [`rows_digest`].
        otherwise (`str`, *optional*): what else could be done than taking the same data.

    Raises:
        `DatasetError`: they differ.
    """
    if saved != own:
        what = "other rows, or in another order," if saved["count"] == own["count"] else f"{saved['count']} rows"
        raise DatasetError(
            f"{checkpoint} was trained on {what} than train_dataset has ({own['count']}): resume it with the same "
            f"data{otherwise}."
        )


def _rows_of(record: dict) -> tuple:
    """Rows of a step, and where incomplete batches are dropped, those of a batch of all processes."""
    batch = record["batch"]
    rows = batch["per_device_train_batch_size"] * batch["processes"]
    dropped = rows if record["options"]["dataloader_drop_last"] else None
    return rows * batch["gradient_accumulation_steps"], dropped


def _batch(record: dict) -> str:
    batch = record["batch"]
    return (
        f"{_rows_of(record)[0]} rows a step (per_device_train_batch_size={batch['per_device_train_batch_size']} on "
        f"{batch['processes']} process{'es' * (batch['processes'] > 1)}, "
        f"gradient_accumulation_steps={batch['gradient_accumulation_steps']})"
    )


def _record(folder: Path) -> dict:
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text())
        return {**record, "processes": record["batch"]["processes"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): resume from another checkpoint.") from error


class ResumingMixin:
    """How a mask trainer goes on from a checkpoint."""

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """
        As in `Trainer`, but a run that is finished is left alone, and a checkpoint that it cannot go on from as if it
        had never stopped is refused.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint folder; `True` or `"latest"` for the newest in `output_dir`. Other numbers of processes
                are welcome where a step has as many rows.
            trial, ignore_keys_for_eval: as in `Trainer`.

        Returns:
            `TrainOutput`; of a run that is finished its number of steps and no loss (NaN).

        Raises:
            `ValueError`: no such checkpoint, or one that lacks its optimizer's state (see `allow_new_optimizer`), that
                is damaged, or that was trained with other options, rows or batches; the message names them.
        """
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is None:
            if self.args.allow_new_optimizer:
                raise ValueError("allow_new_optimizer=True has no effect without resume_from_checkpoint.")
        else:
            reason = failure = None
            try:
                reason = self.finished(checkpoint)
                if reason is None:
                    self._check_checkpoint(checkpoint)
            except ValueError as error:
                failure = error
            raise_first(failure)  # files of one process may be missing: the others must not go on without it
            if reason is not None:
                return self._leave_alone(checkpoint, reason)
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            # An evaluation leaves the bare model marked as prepared. It would then not be wrapped for training, and
            # every process would train on its own gradients.
            vars(self.model).pop("_is_accelerate_prepared", None)
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def finished(self, checkpoint: str) -> str | None:
        """
        Args:
            checkpoint (`str`): a folder.

        Returns:
            `str`: why there is nothing left to train after it, or `None`.

        Raises:
            `ValueError`: it is of another run: of other options, rows or batches; the message names them.
        """
        args, state = self.args, _state(checkpoint)
        if args.auto_find_batch_size and state.train_batch_size is not None:
            self._train_batch_size = state.train_batch_size  # as Trainer does
        max_steps = self.set_initial_training_values(args, self.get_train_dataloader())[-1]
        if state.global_step > max_steps and not _record(Path(checkpoint)):
            raise ValueError(
                f"{checkpoint} has {state.global_step} steps and this run {max_steps}: it is of other data, batches "
                "or options, which it does not tell. Begin another run."
            )
        waited, patience = _waited(state), args.early_stopping_patience
        if state.global_step >= max_steps:
            reason = f"{state.global_step} of {max_steps} steps are done"
        elif patience is not None and waited >= patience:
            reason = f"{waited} evaluations without a better metric, early_stopping_patience={patience}"
        else:
            return None
        self._check_record(checkpoint)  # of what goes on it is checked after its files
        return reason

    def _check_record(self, checkpoint: str) -> None:
        args = self.args
        check_record(checkpoint, self.run_record(), not args.allow_new_optimizer, not args.ignore_data_skip)

    def left_by(self, checkpoint: str) -> str:
        """
        Args:
            checkpoint (`str`): the last one of a finished run.

        Returns:
            `str`: the checkpoint that holds the run's model, with `load_best_model_at_end` the best one.

        Raises:
            `ValueError`: that is not there any more.
        """
        best = _state(checkpoint).best_model_checkpoint
        if not self.args.load_best_model_at_end or best is None:
            return checkpoint
        best = Path(checkpoint).with_name(Path(best).name)
        if not best.is_dir():
            raise ValueError(f"{checkpoint}: the run is finished, but its best checkpoint, {best}, is not there.")
        return str(best)

    def saved(self, checkpoint: str) -> bool:
        """
        Args:
            checkpoint (`str`): the last one of a finished run.

        Returns:
            `bool`: whether `output_dir` holds the model and the state of that run, and not of another.
        """
        output, left = Path(self.args.output_dir), Path(self.left_by(checkpoint))
        if not (output / TRAINER_STATE_NAME).is_file():
            return False
        state, ended = _state(checkpoint), _state(output)
        if ended.global_step != state.global_step:
            return False
        # (An end adds its summary.) What was logged is the run's own, but it may be nothing; its weights are, but FSDP
        # has them in another form.
        if ended.log_history[: len(state.log_history)] != state.log_history:
            return False
        files = [(file, output / file.relative_to(left)) for file in _weights(left)]
        return all(own.is_file() and filecmp.cmp(file, own, shallow=False) for file, own in files)

    def _leave_alone(self, checkpoint: str, reason: str) -> TrainOutput:
        if self._state_kind is not None:
            # The engine that holds the weights is made by training only: what was saved now would be untrained.
            accumulation = self.args.gradient_accumulation_steps * self.args.world_size
            raise ValueError(
                f"{checkpoint}: the run is finished ({reason}), and its model cannot be loaded, saved or pushed under "
                f"{self._state_kind} without training: start the same command once more with python, on one process "
                f"(gradient_accumulation_steps={accumulation}), which does that."
            )
        self.state = state = _state(checkpoint)
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        left = self.left_by(checkpoint)
        check_trained(left, self.model)
        self._load_from_checkpoint(left)
        self._tell(f"{checkpoint}: the run is finished ({reason}); nothing is trained, and {left} is its model.")
        return TrainOutput(state.global_step, float("nan"), {})

    @property
    def _state_kind(self) -> str | None:
        return "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else None

    def _check_checkpoint(self, checkpoint: str) -> None:
        args = self.args
        check_trained(checkpoint, self.model)
        check_files(checkpoint, self._state_kind, args.world_size, args.process_index, args.allow_new_optimizer)
        self._check_record(checkpoint)
        state = _state(checkpoint)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = _waited(state)

    def run_record(self) -> dict:
        """What a run that goes on from a checkpoint of this one has to share with it."""
        args = self.args
        return {
            "batch": {
                "per_device_train_batch_size": self._train_batch_size,
                "processes": args.world_size,
                "gradient_accumulation_steps": args.gradient_accumulation_steps,
            },
            "rows": self._rows_digest(),
            "seed": args.data_seed,
            "options": {
                name: value.value if isinstance(value, Enum) else value
                for name, value in ((name, getattr(args, name)) for name in (*OPTIMIZER_OPTIONS, *ORDER_OPTIONS))
            },
        }

    _digest: dict | None = None

    def _rows_digest(self) -> dict:
        self._digest = self._digest or rows_digest(self.train_dataset)
        return self._digest

    def _save_checkpoint(self, model, trial):
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECORD).write_text(json.dumps(self.run_record(), indent=2) + "\n")
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except torch.OutOfMemoryError:
            raise
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{resume_from_checkpoint} does not fit this model: {error}") from error

    def _load_optimizer_and_scheduler(self, checkpoint):
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{checkpoint}: its optimizer does not fit what trains here: {error}") from error
        if checkpoint is None or not self.args.allow_new_optimizer:
            return
        step = self.state.global_step
        again = isinstance(self.lr_scheduler, LambdaLR)
        if again:
            with warnings.catch_warnings():  # that no step of the optimizer came before
                warnings.simplefilter("ignore")
                self.lr_scheduler.last_epoch = step - 1
                self.lr_scheduler.step()
        self._tell(
            f"allow_new_optimizer: a new optimizer begins at step {step}"
            + ("; the learning rate is that of this step." if again else ", and with it the learning rate.")
        )


def _state(folder: str | Path) -> TrainerState:
    return TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))


def _waited(state: TrainerState) -> int:
    """Evaluations without a better metric so far."""
    saved = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    return saved["attributes"]["early_stopping_patience_counter"] if isinstance(saved, dict) else 0
