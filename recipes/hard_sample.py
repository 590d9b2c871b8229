"""
Stage 3: training on hard samples, with a share of ordinary ones.

    python recipes/hard_sample.py --config recipes/configs/tiny/hard_sample.yaml
    python recipes/mine_hard_samples.py --model_name_or_path MODEL --dataset_name DIR --output_dir MINED
    accelerate launch --config_file accelerate_configs/zero3.yaml recipes/hard_sample.py \
        --config recipes/configs/sa2va_internvl3_8b/hard_sample.yaml --dataset_name DIR \
        --scores MINED/scores.parquet --output_dir OUT

Without scores the rows are scored before training starts.
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("hard_sample")
