"""
Choose the question that a model is asked on one split, and report on another what it gains over the package's own.

    python recipes/search_prompts.py --model_name_or_path MODEL --dataset_name DIR --output_dir outputs/prompts
    python recipes/search_prompts.py --model_name_or_path BASE --adapter OUT --dataset_name DIR --prompts FILE --store
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("search_prompts")
