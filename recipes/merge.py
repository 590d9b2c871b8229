"""
Merge an adapter into its base model: a model of its own, checked against the adapter on an image before it is written.
With --quantize the layers of its language model are stored in 8 or 4 bits (bitsandbytes); then no adapter is needed.

    python recipes/merge.py --model_name_or_path BASE --adapter ADAPTER --output_dir MERGED --result_dtype bfloat16
    python recipes/merge.py --model_name_or_path MERGED --quantize int8 --output_dir QUANTISED
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("merge")
