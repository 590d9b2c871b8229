"""
Reinforcement learning on masks: rewards of Dice, centreline Dice, topology and length, after any other stage.

    python recipes/grpo.py --config recipes/configs/tiny/grpo.yaml
    accelerate launch --config_file accelerate_configs/zero3.yaml recipes/grpo.py \
        --config recipes/configs/sa2va_internvl3_8b/grpo.yaml --model_name_or_path MODEL --dataset_name DIR \
        --output_dir OUT
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("grpo")
