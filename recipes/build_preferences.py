"""
Make preference pairs of masks: of every object a better and a worse mask, from a model's own predictions.

    python recipes/build_preferences.py --model_name_or_path tiny --adapter OUT --dataset_name DIR \\
        --dataset_split train --min_gap 0.15 --output_dir outputs/preferences
    python recipes/build_preferences.py --chosen ground_truth stitched --rejected greedy worst …
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("build_preferences")
