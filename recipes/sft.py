"""
Stage 1: supervised fine-tuning of Sa2VA on images with masks.

    python recipes/sft.py --config recipes/configs/tiny/sft.yaml
    accelerate launch --config_file accelerate_configs/zero3.yaml recipes/sft.py \
        --config recipes/configs/sa2va_internvl3_8b/sft.yaml --dataset_name DIR --output_dir OUT
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("sft")
