"""
The three stages with several seeds: what each reaches on the test split, averaged over seeds frame by frame, beside
the control. Options that are not known here go to recipes/three_stage.py.

    python recipes/benchmarks/three_stage.py --config recipes/configs/tiny/three_stage.yaml --output_dir outputs/seeds
    python recipes/benchmarks/three_stage.py --config recipes/configs/arcade_tiny/three_stage.yaml \\
        --dataset_name DIR --first_stage 2 --model_name_or_path outputs/arcade/tiny-0 --output_dir outputs/arcade_seeds

A run that was ended goes on where it was.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from sa2va_trl.evaluation import compare
from sa2va_trl.files import write_json


RUNS = {"stage1": None, "stage2": "stage1", "stage3": "stage2", "router": "stage2", "control": "stage1"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args, others = parser.parse_known_args()

    script = Path(__file__).parents[1] / "three_stage.py"
    folders = [args.output_dir / f"seed{seed}" for seed in range(args.seeds)]
    for seed, folder in enumerate(folders):
        line = [sys.executable, script, *others, "--seed", str(seed), "--output_dir", folder]
        subprocess.run(line, check=True)

    tables, seeds = {}, {}
    for name in RUNS:
        own = [pd.read_parquet(folder / "evaluation" / name / "per_sample.parquet") for folder in folders]
        own = [table.set_index("sample_id").loc[own[0]["sample_id"]].reset_index() for table in own]
        seeds[name] = [float(table["dice"].mean()) for table in own]
        tables[name] = own[0].assign(dice=np.mean([table["dice"] for table in own], axis=0))
    pairs = [(before, name) for name, before in RUNS.items() if before] + [("control", "stage3")]
    found = compare(tables, "dice", pairs)
    write_json(args.output_dir / "three_stage.json", {**found, "seeds": seeds})

    print(f"\nTest Dice, {args.seeds} seeds, 95 % interval over patients (else videos, else images), p with Holm\n")
    print("| | Dice | seeds | against | difference | p | improved |\n|---|---|---|---|---|---|---|")
    for name, run in found["runs"].items():
        low, high = run["ci95"]
        cells = [name, f"{run['mean']:.4f} [{low:.4f}, {high:.4f}]", " ".join(f"{value:.4f}" for value in seeds[name])]
        rows = [entry for entry in found["differences"] if entry["after"] == name] or [None]
        for entry in rows:
            if entry is not None:
                low, high = entry["ci95"]
                cells += [entry["before"], f"{entry['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"]
                cells += [f"{entry['wilcoxon_p_holm']:.3f}", f"{entry['improved'] or 0:.0%}"]
            print("| " + " | ".join(cells + [""] * (7 - len(cells))) + " |")
            cells = ["", "", ""]


if __name__ == "__main__":
    main()
