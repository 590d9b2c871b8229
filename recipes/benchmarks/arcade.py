"""
The tiny Sa2VA on real angiograms: its own weights, fine-tuned on the training split, beside the same network from
random weights, a small U-Net from random weights, and that U-Net after as much time on the same generated angiograms.

Every arm has the same minutes of processor time on one thread for the training split, as many as the tiny network's
fixed steps take. Checkpoint and threshold are chosen on the validation split, and nothing is on the test split.

    python recipes/benchmarks/arcade.py --dataset_name DIR --output_dir outputs/arcade
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from sa2va_trl.data import load_dataset_dict
from sa2va_trl.evaluation import compare, comparison_table, evaluate, predict_probabilities
from sa2va_trl.evaluation.thresholds import best_threshold, sweep
from sa2va_trl.files import write_json
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


RECIPES = Path(__file__).parents[1]
THRESHOLDS = np.linspace(0.2, 0.8, 13)
TINY = {"tiny": "tiny", "tiny from random weights": "tiny-random"}
UNETS = {"U-Net": "unet", "U-Net, pretrained": "unet_pretrained"}


def run(script: Path, *options) -> float:
    """Minutes of processor time that a recipe took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), *map(str, options)], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="a folder with train, val and test")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=600, help="of the tiny network")
    parser.add_argument("--pretrain_minutes", type=float, default=39.0, help="of the U-Net on generated angiograms")
    args = parser.parse_args()
    data = load_dataset_dict(args.dataset_name)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in (*TINY, *UNETS)}
    minutes = []
    for seed in args.seeds:
        for name, model_name in TINY.items():
            tuned = args.output_dir / f"{model_name}-{seed}"
            took = run(
                RECIPES / "sft.py",
                *("--config", RECIPES / "configs/arcade_tiny/sft.yaml", "--model_name_or_path", model_name),
                *("--dataset_name", args.dataset_name, "--output_dir", tuned, "--seed", seed),
                *("--max_steps", args.max_steps, "--eval_steps", args.max_steps // 6),
                *("--save_steps", args.max_steps // 6),
            )
            minutes.append(took)
            model, processor = load_model(ModelArguments(model_name_or_path=str(tuned)))
            model.eval()
            predicted = predict_probabilities(model, processor, data["validation"])
            threshold = best_threshold(sweep(predicted, THRESHOLDS))["threshold"]
            _, rows = evaluate(data["test"], predict_probabilities(model, processor, data["test"]), threshold)
            tables[name].append(pd.DataFrame(rows))
        folder = args.output_dir / f"references-{seed}"
        run(
            RECIPES / "benchmarks/arcade_references.py",
            *("--dataset_name", args.dataset_name, "--output_dir", folder, "--seed", seed),
            *("--minutes", np.mean(minutes[-len(TINY) :]), "--methods", *UNETS.values()),
            *("--pretrain_minutes", args.pretrain_minutes, "--pretrained", args.output_dir / "unet.safetensors"),
        )
        found = pd.read_parquet(folder / "per_sample.parquet")
        for name, method in UNETS.items():
            tables[name].append(found[found["method"] == method].drop(columns="method"))

    # An image's Dice is the mean over seeds.
    means = {
        name: pd.concat(parts).groupby("sample_id", as_index=False)["dice"].mean() for name, parts in tables.items()
    }
    against = [(name, "tiny") for name in tables if name != "tiny"]
    comparison = compare(means, "dice", against)
    seeds = {name: [float(part["dice"].mean()) for part in parts] for name, parts in tables.items()}
    write_json(args.output_dir / "comparison.json", {"minutes": minutes, "seeds": seeds, "comparison": comparison})
    print(f"\nOn the training split {np.mean(minutes):.1f} minutes of one thread each. Test Dice:")
    print(comparison_table(comparison))
    for name, values in seeds.items():
        print(f"{name:<28}seeds: {' '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    main()
