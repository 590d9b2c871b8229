"""
Train and evaluate in folds, so that every image is scored by a model that has not seen its patient.

    python recipes/cross_validate.py --config tiny/sft --folds 5
    python recipes/cross_validate.py --configs A.yaml B.yaml --dataset_name DIR --folds 5 --output_dir OUT
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("cross_validate")
