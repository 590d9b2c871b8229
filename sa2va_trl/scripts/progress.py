"""How far a training is, on a screen that is kept for what a person can act on."""

from typing import Any

from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

from .screen import Screen, current


class NamedBars(ProgressCallback):
    """
    Trainer's bars with their names, and the loss beside them. Where nothing can change in place, each evaluation is a
    line. (What Trainer logs, it writes as it always does, to what is the log here.)

    Args:
        screen (`Screen`): where they are shown.
    """

    def __init__(self, screen: Screen):
        super().__init__()
        self.screen = screen
        self.loss = ""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("train")

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("evaluate", refresh=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is not None and "loss" in (logs or {}):
            self.loss = f"loss {logs['loss']:.3g}"
            self.training_bar.set_postfix_str(self.loss)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_evaluate(args, state, control, **kwargs)
        dice = (metrics or {}).get("eval_dice")
        if state.is_world_process_zero and not (self.screen.moves or self.screen.is_step) and dice is not None:
            values = ", ".join(text for text in (self.loss, f"validation Dice {dice:.3f}") if text)
            self.screen.line(f"step {state.global_step} of {state.max_steps}: {values}")


def show_progress(trainer: Trainer) -> None:
    """
    Show on the screen of the task, if it has one, how far a training is.

    Args:
        trainer (`Trainer`): before it trains.
    """
    screen = current()
    if screen is not None and trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(NamedBars(screen))
