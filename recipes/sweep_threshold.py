"""
Choose the threshold on one split and report on another what it gains over 0.5, beside rules that take one for every
image, with temperature scaling.

    python recipes/sweep_threshold.py --model_name_or_path MODEL --dataset_name DIR --output_dir outputs/thresholds
    python recipes/sweep_threshold.py --model_name_or_path BASE --adapter OUT --dataset_name DIR --store
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("sweep_threshold")
