"""
Stage 2: preference optimisation over masks.

    python recipes/build_preferences.py --model_name_or_path MODEL --dataset_name DIR --output_dir PAIRS
    python recipes/dpo.py --config recipes/configs/arcade_tiny/dpo.yaml --dataset_name DIR --preferences PAIRS
    accelerate launch --config_file accelerate_configs/zero3.yaml recipes/dpo.py \
        --config recipes/configs/sa2va_internvl3_8b/dpo.yaml --dataset_name DIR --preferences PAIRS --output_dir OUT
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("dpo")
