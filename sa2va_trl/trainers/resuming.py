"""Going on from a checkpoint: what fits is gone on from, what is finished is left alone, what differs is named."""

import filecmp
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from ..processes import raise_first
from .adaptive_weights import WeightState
from .callbacks import RankHistory
from .checkpoints_to_resume import (
    check_files,
    check_trained,
    evaluations_waited,
    read_state,
    resolve_checkpoint,
    weights_of,
)
from .run_record import check_record, read_record, record_of, rows_digest, write_record


# These were defined here once.
from .run_record import OPTIMIZER_OPTIONS, ORDER_OPTIONS, RECORD, check_same_rows as check_rows  # noqa: F401  # isort: skip
from .checkpoints_to_resume import ADAPTER_FIELDS  # noqa: F401  # isort: skip


# Callbacks with something that a run goes on with, and the option that asks for each.
STATES = {RankHistory: "rank_history", WeightState: "adaptive_weights"}

if TYPE_CHECKING:
    import optuna


class ResumingMixin:
    """
    How a mask trainer goes on from a checkpoint.

    Of the trainer it needs what `Trainer` has, a config with `allow_new_optimizer` and the options that
    [`record_of`] writes down, and `_tell`.
    """

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: "optuna.Trial | dict[str, Any] | None" = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
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
        Whether a checkpoint is the last of its run.

        Args:
            checkpoint (`str`): a folder.

        Returns:
            `str`: why there is nothing left to train after it, or `None`.

        Raises:
            `ValueError`: it is of another run: of other options, rows or batches; the message names them.
        """
        args, state = self.args, read_state(checkpoint)
        if args.auto_find_batch_size and state.train_batch_size is not None:
            self._train_batch_size = state.train_batch_size  # as Trainer does
        max_steps = self.set_initial_training_values(args, self.get_train_dataloader())[-1]
        if state.global_step > max_steps and not read_record(Path(checkpoint)):
            raise ValueError(
                f"{checkpoint} has {state.global_step} steps and this run {max_steps}: it is of other data, batches "
                "or options, which it does not tell. Begin another run."
            )
        waited, patience = evaluations_waited(state), args.early_stopping_patience
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
        Where the model of a finished run is.

        Args:
            checkpoint (`str`): the last one of a finished run.

        Returns:
            `str`: the checkpoint that holds the run's model, with `load_best_model_at_end` the best one.

        Raises:
            `ValueError`: that is not there any more.
        """
        best = read_state(checkpoint).best_model_checkpoint
        if not self.args.load_best_model_at_end or best is None:
            return checkpoint
        best = Path(checkpoint).with_name(Path(best).name)
        if not best.is_dir():
            raise ValueError(f"{checkpoint}: the run is finished, but its best checkpoint, {best}, is not there.")
        return str(best)

    def saved(self, checkpoint: str) -> bool:
        """
        Whether a finished run has been saved as what it is.

        Args:
            checkpoint (`str`): the last one of a finished run.

        Returns:
            `bool`: whether `output_dir` holds the model and the state of that run, and not of another.
        """
        output, left = Path(self.args.output_dir), Path(self.left_by(checkpoint))
        if not (output / TRAINER_STATE_NAME).is_file():
            return False
        state, ended = read_state(checkpoint), read_state(output)
        if ended.global_step != state.global_step:
            return False
        # (An end adds its summary.) What was logged is the run's own, but it may be nothing; its weights are, but FSDP
        # has them in another form.
        if ended.log_history[: len(state.log_history)] != state.log_history:
            return False
        files = [(file, output / file.relative_to(left)) for file in weights_of(left)]
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
        self.state = state = read_state(checkpoint)
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        left = self.left_by(checkpoint)
        check_trained(left, self.model)
        self._load_from_checkpoint(left)
        message = f"{checkpoint}: the run is finished ({reason}); nothing is trained, and {left} is its model."
        self._tell(message, logging.WARNING)
        return TrainOutput(state.global_step, float("nan"), {})

    @property
    def _state_kind(self) -> str | None:
        return "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else None

    def _check_checkpoint(self, checkpoint: str) -> None:
        args = self.args
        check_trained(checkpoint, self.model)
        check_files(checkpoint, self._state_kind, args.world_size, args.process_index, args.allow_new_optimizer)
        self._check_record(checkpoint)
        state = read_state(checkpoint)
        for kind, option in STATES.items():
            own = next((entry for entry in self.callback_handler.callbacks if type(entry) is kind), None)
            saved = state.stateful_callbacks.get(kind.__name__)
            if (own is None, own and own.state()["args"]) != (saved is None, saved and saved["args"]):
                raise ValueError(f"{checkpoint} was begun with another {option}: resume it with the same.")
            # (Trainer restores all callbacks or none, and those that are not ours belong to others.)
            for name, value in saved["attributes"].items() if saved else ():
                setattr(own, name, value)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = evaluations_waited(state)

    def run_record(self) -> dict:
        """What a run that goes on from a checkpoint of this one has to share with it, see [`record_of`]."""
        return record_of(self.args, self._train_batch_size, self._rows_digest())

    _digest: dict | None = None

    def _rows_digest(self) -> dict:
        self._digest = self._digest or rows_digest(self.train_dataset)
        return self._digest

    def _save_checkpoint(self, model, trial):
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            write_record(folder, self.run_record())
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
