"""
Score a model, or masks that another tool has written, on a data set: at each image's own size, with intervals.

    python recipes/evaluate.py --model_name_or_path tiny --dataset_name synthetic --output_dir outputs/eval
    python recipes/evaluate.py --predictions_dir MASKS --dataset_name DIR --output_dir outputs/eval
    python recipes/evaluate.py --model_name_or_path BASE --adapter STAGE2 --router_adapter STAGE3 \
        --route_split validation --dataset_name DIR --output_dir outputs/eval
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("evaluate")
