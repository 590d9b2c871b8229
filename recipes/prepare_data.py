"""
Make a data set of images and annotations as they come from the cath lab or an annotation tool: read, looked at, split
by patient, without names.

    python recipes/prepare_data.py --source DIR --output_dir outputs/data
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("prepare_data")
