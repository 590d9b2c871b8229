"""
Find hard samples: score every row with a model, and say which are hard, in which runs of frames, and which labels to
look at. What it leaves is what hard-sample training starts from.

    python recipes/mine_hard_samples.py --model_name_or_path tiny --dataset_name synthetic \\
        --dataset_split train --threshold 0.75 --output_dir outputs/hard_samples
    python recipes/mine_hard_samples.py --worst 0.2 --max_gap 1 --smoothing 3 …
    python recipes/mine_hard_samples.py --labels false --worst 0.2 …   # frames that do not fit their neighbours
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("mine_hard_samples")
