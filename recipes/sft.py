"""
Stage 1: supervised fine-tuning of Sa2VA on images with masks.

    python recipes/sft.py --config recipes/configs/tiny/sft.yaml
    accelerate launch --config_file accelerate_configs/zero3.yaml recipes/sft.py \
        --config recipes/configs/sa2va_internvl3_8b/sft.yaml --dataset_name DIR --output_dir OUT
"""

from sa2va_trl import SegSFTConfig, SegSFTTrainer
from sa2va_trl.scripts.arguments import DataArguments, ModelArguments, RecipeParser, SplitArguments
from sa2va_trl.scripts.loading import get_training_splits, load_data, load_model
from sa2va_trl.scripts.training import train_and_save
from sa2va_trl.trainers.resuming import resolve_checkpoint


def main():
    # Parsed before any weight is loaded: under ZeRO-3 the training arguments decide where weights are made.
    parser = RecipeParser((DataArguments, SplitArguments, SegSFTConfig, ModelArguments))
    data_args, split_args, training_args, model_args = parser.parse_args_and_config()
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
    train_and_save(trainer, checkpoint, data_args.dataset_name)


if __name__ == "__main__":
    main()
