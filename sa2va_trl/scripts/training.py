"""What every training task does with its trainer."""

from pathlib import Path

from peft import PeftModel
from transformers import Trainer, TrainingArguments

from ..processes import leave_process_group
from ..trainers.checkpoints_to_resume import resolve_checkpoint
from .screen import say


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


def train_and_save(trainer: Trainer, checkpoint: str | None, dataset_name: str) -> None:
    """
    What every training task does with its trainer: adapter or model, processor, card and `trainer_state.json` are in
    its `output_dir` afterwards, and on the Hub if `push_to_hub` is set. Leaves the process group.

    Args:
        trainer (`Trainer`): ready to train.
        checkpoint (`str`, *optional*): from [`~trainers.checkpoints_to_resume.resolve_checkpoint`].
        dataset_name (`str`): what it trains on, for the card.

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
    trainer.train(resume_from_checkpoint=checkpoint)
    if not there:
        trainer.save_model(args.output_dir)
        trainer.save_state()
        trainer.create_model_card(dataset_name=dataset_name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    kind = "adapter" if isinstance(trainer.model, PeftModel) else "model"
    model = f"--model_name_or_path BASE --adapter {args.output_dir}"
    if kind == "model":
        model = f"--model_name_or_path {args.output_dir}"
    say(f"{kind} in {args.output_dir}; score it: sa2va-trl evaluate {model} --dataset_name DATA")
    leave_process_group()
