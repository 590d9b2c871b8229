"""
Stage 2: preference optimisation over masks.

    sa2va-trl build_preferences --model_name_or_path MODEL --dataset_name DIR --output_dir PAIRS
    sa2va-trl dpo --config arcade_tiny/dpo --dataset_name DIR --preferences PAIRS
    accelerate launch --use_deepspeed --zero_stage 3 --zero3_init_flag true --zero3_save_16bit_model true \\
        -m sa2va_trl.cli dpo --config sa2va_internvl3_8b/dpo --dataset_name DIR --preferences PAIRS --output_dir OUT
"""

from dataclasses import dataclass, field, replace

from ..trainers import SegDPOConfig, SegDPOTrainer
from ..trainers.resuming import resolve_checkpoint
from .arguments import DataArguments, ModelArguments, RecipeParser, SplitArguments
from .loading import get_split, load_data, load_model
from .training import train_and_save


@dataclass
class PreferenceArguments:
    preferences: str | None = field(
        default=None,
        metadata={"help": "Folder or id of pairs to learn from; dataset_name then only has the rows to choose by."},
    )


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (DataArguments, SplitArguments, PreferenceArguments, SegDPOConfig, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl dpo", description=__doc__)


def main() -> None:
    # Parsed before any weight is loaded: under ZeRO-3 the training arguments decide where weights are made.
    data_args, split_args, preference_args, training_args, model_args = make_parser().parse_args_and_config()
    checkpoint = resolve_checkpoint(training_args.resume_from_checkpoint, training_args.output_dir)

    # Data
    pair_args = data_args
    if preference_args.preferences is not None:
        pair_args = replace(data_args, dataset_name=preference_args.preferences, synthetic=None)
    pairs = load_data(pair_args)
    train_dataset = get_split(pairs, split_args.dataset_train_split, "dataset_train_split")
    eval_dataset = None
    if training_args.eval_strategy != "no":
        data = pairs if pair_args is data_args else load_data(data_args)
        eval_dataset = get_split(data, split_args.dataset_eval_split, "dataset_eval_split")

    # Model
    model, processor = load_model(model_args, merge=True)

    # Training
    trainer = SegDPOTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
    )
    train_and_save(trainer, checkpoint, pair_args.dataset_name, model_args, data_args)
