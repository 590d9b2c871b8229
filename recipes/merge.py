"""
Merge an adapter into its base model: a model of its own, checked against the adapter on an image before it is written.

    python recipes/merge.py --model_name_or_path BASE --adapter ADAPTER --output_dir MERGED --result_dtype bfloat16
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("merge")
