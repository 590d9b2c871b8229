"""
The tiny Sa2VA on real angiograms, beside a vesselness threshold and a small U-Net of the same wall-clock, in one run.

The tiny model learns on generated angiograms first and then on the training split; the U-Net gets as many minutes as
both took together. Checkpoint and threshold are chosen on the validation split, and nothing is on the test split.

    python recipes/benchmarks/arcade.py --dataset_name DIR --output_dir outputs/arcade
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from datasets import Dataset

from sa2va_trl.data import load_dataset_dict
from sa2va_trl.evaluation import evaluate, predict_probabilities, score
from sa2va_trl.files import write_json
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


RECIPES = Path(__file__).parents[1]
THRESHOLDS = np.linspace(0.2, 0.8, 13)


def run(script: Path, *options) -> float:
    """Minutes that a recipe took."""
    start = time.time()
    subprocess.run([sys.executable, str(script), *map(str, options)], check=True)
    return (time.time() - start) / 60


def best_threshold(model, processor, dataset: Dataset) -> float:
    """The threshold with the highest mean Dice on a split."""
    dices = [
        [score(row, probabilities, threshold)["dice"] for threshold in THRESHOLDS]
        for row, probabilities in predict_probabilities(model, processor, dataset)
    ]
    return float(THRESHOLDS[np.mean(dices, axis=0).argmax()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="a folder with train, val and test")
    parser.add_argument("--output_dir", required=True, type=Path)
    args = parser.parse_args()
    pretrained, tuned = args.output_dir / "generated", args.output_dir / "sft"

    minutes = run(
        RECIPES / "sft.py",
        *("--config", RECIPES / "configs/tiny/sft.yaml", "--max_steps", 1200, "--output_dir", pretrained),
    )
    minutes += run(
        RECIPES / "sft.py",
        *("--config", RECIPES / "configs/arcade_tiny/sft.yaml", "--model_name_or_path", pretrained),
        *("--dataset_name", args.dataset_name, "--output_dir", tuned),
    )
    model, processor = load_model(ModelArguments(model_name_or_path=str(tuned)))
    data = load_dataset_dict(args.dataset_name)
    threshold = best_threshold(model, processor, data["validation"])
    rows = {}
    for name, value in (("tiny Sa2VA", 0.5), (f"tiny Sa2VA, threshold {threshold:.2f} from val", threshold)):
        metrics, _ = evaluate(data["test"], predict_probabilities(model, processor, data["test"]), value)
        rows[name] = metrics["dice"]

    run(
        RECIPES / "benchmarks/arcade_references.py",
        *("--dataset_name", args.dataset_name, "--output_dir", args.output_dir / "references", "--minutes", minutes),
    )
    references = json.loads((args.output_dir / "references/metrics.json").read_text())
    rows |= {name: value["dice"] for name, value in references.items()}
    write_json(args.output_dir / "comparison.json", {"minutes": minutes, "test_dice": rows})
    print(f"\nTraining took {minutes:.1f} minutes. Test Dice with image-bootstrap 95 % interval:")
    for name, value in rows.items():
        low, high = value["ci95"]
        print(f"{name:<40}{value['mean']:.3f}  [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
