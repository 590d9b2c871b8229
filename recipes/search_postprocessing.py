"""
Choose threshold and post-processing of masks together on one split, and report on another what they gain.

    python recipes/search_postprocessing.py --model_name_or_path MODEL --dataset_name DIR --output_dir outputs/post
    python recipes/search_postprocessing.py --model_name_or_path BASE --adapter OUT --dataset_name DIR --store
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("search_postprocessing")
