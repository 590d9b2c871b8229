"""
Set evaluations of the same samples beside each other: each run against the one before it, with intervals and tests
that respect patients.

    python recipes/compare.py outputs/eval/stage1 outputs/eval/stage2 --output_dir outputs/comparison
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("compare")
