"""
Stage 3: training on hard samples, with a share of ordinary ones.

    sa2va-trl hard_sample --config tiny/hard_sample
    sa2va-trl mine_hard_samples --model_name_or_path MODEL --dataset_name DIR --output_dir MINED
    accelerate launch --use_deepspeed --zero_stage 3 --zero3_init_flag true --zero3_save_16bit_model true \\
        -m sa2va_trl.cli hard_sample --config sa2va_internvl3_8b/hard_sample --dataset_name DIR \\
        --scores MINED/scores.parquet --output_dir OUT

Without scores the rows are scored before training starts.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..trainers import HardSampleConfig, HardSampleTrainer
from ..trainers.resuming import resolve_checkpoint
from .arguments import DataArguments, ModelArguments, RecipeParser, SplitArguments
from .loading import get_training_splits, load_data, load_model
from .training import train_and_save


@dataclass
class ScoreArguments:
    """
    Args:
        scores (`str`, *optional*): `scores.parquet` of `sa2va-trl mine_hard_samples`, of this model and split.
    """

    scores: str | None = field(
        default=None,
        metadata={
            "help": "scores.parquet that mine_hard_samples made of this model and split; else rows are scored first."
        },
    )

    def __post_init__(self):
        if self.scores is not None and not Path(self.scores).is_file():
            raise ValueError(f"scores={self.scores!r} is not there: sa2va-trl mine_hard_samples writes such a file.")


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (DataArguments, SplitArguments, ScoreArguments, HardSampleConfig, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl hard_sample", description=__doc__)


def main() -> None:
    # Parsed before any weight is loaded: under ZeRO-3 the training arguments decide where weights are made.
    data_args, split_args, score_args, training_args, model_args = make_parser().parse_args_and_config()
    checkpoint = resolve_checkpoint(training_args.resume_from_checkpoint, training_args.output_dir)

    # Data
    data = load_data(data_args)
    train_dataset, eval_dataset = get_training_splits(data, split_args, training_args)

    # Model
    model, processor = load_model(model_args, merge=True)

    # Training
    trainer = HardSampleTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        scores=score_args.scores,
    )
    train_and_save(trainer, checkpoint, data_args.dataset_name, model_args, data_args)
