"""
Reinforcement learning on masks: rewards of Dice, centreline Dice, topology and length, after any other stage.

    sa2va-trl grpo --config tiny/grpo
    accelerate launch --use_deepspeed --zero_stage 3 --zero3_init_flag true --zero3_save_16bit_model true \\
        -m sa2va_trl.cli grpo --config sa2va_internvl3_8b/grpo --model_name_or_path MODEL --dataset_name DIR \\
        --output_dir OUT

Rows that candidate masks differ on most, as scores of the same model and split say:

    sa2va-trl mine_hard_samples --model_name_or_path MODEL --dataset_name DIR --dataset_split train --output_dir MINED
    sa2va-trl grpo --config sa2va_internvl3_8b/grpo --model_name_or_path MODEL --dataset_name DIR --output_dir OUT \\
        --scores MINED/scores.parquet --sample_by spread --max_samples 2000
"""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from ..trainers import SegGRPOConfig, SegGRPOTrainer
from ..trainers.resuming import resolve_checkpoint
from .arguments import DataArguments, ModelArguments, RecipeParser, SplitArguments
from .loading import get_training_splits, load_data, load_model
from .screen import say
from .training import train_and_save


# Rows to learn from and to choose by, and steps, of a quick test.
QUICK_ROWS, QUICK_EVALUATED, QUICK_STEPS = 16, 8, 8


@dataclass
class GrpoArguments:
    """
    Args:
        scores (`str`, *optional*): `scores.parquet` of `sa2va-trl mine_hard_samples`, of this model and split.
        max_eval_samples (`int`, *optional*): evaluation rows to keep, evenly spaced.
        quick_test (`bool`, *optional*, defaults to `False`): see whether everything runs, with a few rows and steps.
    """

    scores: str | None = field(
        default=None,
        metadata={"help": "scores.parquet that mine_hard_samples made of this model and split, for sample_by."},
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluation rows to keep, evenly spaced."})
    quick_test: bool = field(
        default=False,
        metadata={
            "help": f"See whether everything runs: at most {QUICK_ROWS} training rows, {QUICK_EVALUATED} evaluation "
            f"rows and {QUICK_STEPS} steps, no warm-up."
        },
    )

    def __post_init__(self):
        if self.scores is not None and not Path(self.scores).is_file():
            raise ValueError(f"scores={self.scores!r} is not there: sa2va-trl mine_hard_samples writes such a file.")
        if self.max_eval_samples is not None and self.max_eval_samples < 1:
            raise ValueError(f"max_eval_samples must be at least 1, got {self.max_eval_samples}.")


def limit(
    args: GrpoArguments, training_args: SegGRPOConfig, train_dataset: Dataset, eval_dataset: Dataset | None
) -> Dataset | None:
    """
    Limit a run as its options say, and say what is left out.

    Args:
        args (`GrpoArguments`): of the task.
        training_args (`SegGRPOConfig`): in a quick test `max_samples` and `max_steps` are set.
        train_dataset (`datasets.Dataset`): left to the trainer, which knows what to choose by.
        eval_dataset (`datasets.Dataset`, *optional*): the rows to choose by.

    Returns:
        What is left of `eval_dataset`.

    Raises:
        `ValueError`: `max_eval_samples` without an evaluation.
    """
    if eval_dataset is None and args.max_eval_samples is not None:
        raise ValueError("max_eval_samples has no effect with eval_strategy=no.")
    count = args.max_eval_samples
    if args.quick_test:
        count = min(QUICK_EVALUATED, QUICK_EVALUATED if count is None else count)
        rows = min(QUICK_ROWS, len(train_dataset), training_args.max_samples or QUICK_ROWS)
        steps = QUICK_STEPS if training_args.max_steps <= 0 else min(QUICK_STEPS, training_args.max_steps)
        training_args.max_samples, training_args.max_steps, training_args.warmup_steps = rows, steps, 0
        say(
            f"quick_test: {rows} of {len(train_dataset)} training rows, {steps} steps, no warm-up; whatever comes of "
            "it says nothing of the method."
        )
    if eval_dataset is None or count is None or count >= len(eval_dataset):
        return eval_dataset
    rows = len(eval_dataset)
    say(f"Evaluation has {count} of {rows} rows; {rows - count} are left out.")
    return eval_dataset.select([number * rows // count for number in range(count)])


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (DataArguments, SplitArguments, GrpoArguments, SegGRPOConfig, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl grpo", description=__doc__)


def main() -> None:
    # Parsed before any weight is loaded: under ZeRO-3 the training arguments decide where weights are made.
    data_args, split_args, grpo_args, training_args, model_args = make_parser().parse_args_and_config()
    checkpoint = resolve_checkpoint(training_args.resume_from_checkpoint, training_args.output_dir)

    # Data
    data = load_data(data_args)
    train_dataset, eval_dataset = get_training_splits(data, split_args, training_args)
    eval_dataset = limit(grpo_args, training_args, train_dataset, eval_dataset)

    # Model
    model, processor = load_model(model_args, merge=True)

    # Training
    trainer = SegGRPOTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        scores=grpo_args.scores,
    )
    train_and_save(trainer, checkpoint, data_args.dataset_name, model_args, data_args)
