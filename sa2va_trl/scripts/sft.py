"""
Stage 1: supervised fine-tuning of Sa2VA on images with masks.

    sa2va-trl sft --config tiny/sft
    accelerate launch --use_deepspeed --zero_stage 3 --zero3_init_flag true --zero3_save_16bit_model true \\
        -m sa2va_trl.cli sft --config sa2va_internvl3_8b/sft --dataset_name DIR --output_dir OUT
"""

from ..trainers import SegSFTConfig, SegSFTTrainer
from ..trainers.resuming import resolve_checkpoint
from .arguments import DataArguments, ModelArguments, RecipeParser, SplitArguments
from .loading import get_training_splits, load_data, load_model
from .training import train_and_save


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (DataArguments, SplitArguments, SegSFTConfig, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl sft", description=__doc__)


def main() -> None:
    # Parsed before any weight is loaded: under ZeRO-3 the training arguments decide where weights are made.
    data_args, split_args, training_args, model_args = make_parser().parse_args_and_config()
    checkpoint = resolve_checkpoint(training_args.resume_from_checkpoint, training_args.output_dir)

    # Data
    data = load_data(data_args)
    train_dataset, eval_dataset = get_training_splits(data, split_args, training_args)

    # Model
    model, processor = load_model(model_args, merge=True)

    # Training
    trainer = SegSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
    )
    train_and_save(trainer, checkpoint, data_args.dataset_name, model_args, data_args)
