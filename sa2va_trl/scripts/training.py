"""What every training task does with its trainer."""

import time
from pathlib import Path

from peft import PeftModel
from transformers import Trainer, TrainingArguments

from ..processes import leave_process_group
from ..trainers.checkpoints_to_resume import resolve_checkpoint
from .arguments import DataArguments, ModelArguments
from .commands import scoring
from .progress import show_progress
from .screen import duration, finish, say


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """
    The checkpoint that `--resume_from_checkpoint` means, for scripts that know
    [`~trainers.checkpoints_to_resume.resolve_checkpoint`] by this earlier name.

    Args:
        args (`TrainingArguments`): with `resume_from_checkpoint` a folder, or `"latest"` for the newest in
        `output_dir`.

    Returns:
        A folder, or `None` where none was asked for.

    Raises:
        `ValueError`: the folder is no complete checkpoint, or `"latest"` finds none.
    """
    return resolve_checkpoint(args.resume_from_checkpoint, args.output_dir)


def train_and_save(
    trainer: Trainer,
    checkpoint: str | None,
    dataset_name: str,
    model_args: ModelArguments | None = None,
    data_args: DataArguments | None = None,
) -> None:
    """
    What every training task does with its trainer: adapter or model, processor, card and `trainer_state.json` are in
    its `output_dir` afterwards, and on the Hub if `push_to_hub` is set. Leaves the process group.

    Args:
        trainer (`Trainer`): ready to train.
        checkpoint (`str`, *optional*): from [`~trainers.checkpoints_to_resume.resolve_checkpoint`].
        dataset_name (`str`): what it trains on, for the card.
        model_args (`ModelArguments`, *optional*): of the model that it begins with.
        data_args (`DataArguments`, *optional*): of what its result can be scored on. With both, how is said.

    Raises:
        `ValueError`: as the trainer's `train`.
    """
    args = trainer.args
    reason = None if checkpoint is None else trainer.finished(checkpoint)
    there = reason is not None and trainer.saved(checkpoint)
    if there and not args.push_to_hub and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        # They load a model only to train it.
        say(f"{checkpoint}: the run is finished ({reason}); nothing is trained, and {args.output_dir} has its model.")
        leave_process_group()
        return
    earlier = sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*"))
    if checkpoint is None and earlier:
        say(
            f"WARNING: {args.output_dir} holds {', '.join(earlier)} of an earlier run. They stay, and "
            "--resume_from_checkpoint latest may mean one of them: delete them, or give this run another output_dir."
        )
    show_progress(trainer)
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - start
    if not there:
        trainer.save_model(args.output_dir)
        trainer.save_state()
        trainer.create_model_card(dataset_name=dataset_name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    is_adapter = isinstance(trainer.model, PeftModel)
    then = None
    if model_args is not None and data_args is not None:
        then = f"score it: {scoring(args.output_dir, is_adapter, model_args, data_args)}"
    wrote = f"{'adapter' if is_adapter else 'model'}, processor and card in {args.output_dir}, "
    wrote += f"after {duration(seconds)}" + (f", pushed to {args.hub_model_id}" if args.push_to_hub else "")
    finish(summary(trainer), wrote, then)
    leave_process_group()


def summary(trainer: Trainer) -> str:
    """
    What a training has done, in a line: what trained, for how many steps, and what became of the validation's Dice,
    or else of the loss.

    Args:
        trainer (`Trainer`): that has trained.

    Returns:
        `str`.
    """
    state = trainer.state
    name = getattr(trainer, "_stage", "training")
    if any(part.requires_grad and ".lora_" in name for name, part in trainer.model.named_parameters()):
        name = f"LoRA {name}"
    text = f"{name}, {state.global_step} step{'' if state.global_step == 1 else 's'}"
    for name, title in (("eval_dice", "validation Dice"), ("eval_loss", "validation loss"), ("loss", "loss")):
        values = [entry[name] for entry in state.log_history if name in entry]
        if values:
            last, which = values[-1], ""
            if name == f"eval_{(trainer.args.metric_for_best_model or '').removeprefix('eval_')}":
                best = state.best_metric
                if trainer.args.load_best_model_at_end and best is not None and best != last:
                    last, which = best, " (the best)"
            begin = f"{values[0]:.3f} -> " if len(values) > 1 else ""
            return f"{text}: {title} {begin}{last:.3f}{which}"
    return text
