"""
Whether intervals and tests hold what they say, on simulated evaluations of which the truth is known: coverage of the
intervals for images in patients, false alarms of `compare` where both runs are equally good, and how often it finds a
difference as large as its own formula says that it can.

    python recipes/benchmarks/simulated_statistics.py --output_dir outputs/simulated_statistics

On one core some 15 minutes. (A quick version is in `tests/evaluation/test_intervals.py` and `test_comparison.py`.)
"""

import argparse
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from sa2va_trl.evaluation import bootstrap_ci, compare
from sa2va_trl.evaluation.intervals import METHODS
from sa2va_trl.files import write_json


# Dice is the logistic function of a sum of Gaussians: where it lies, and how far patients and images of one differ.
KINDS = {
    "equal": "8 images a patient; mean Dice 0.76",
    "unequal": "1 to some 40 images a patient, 8 on average; mean Dice 0.76",
    "high": "as unequal; mean Dice 0.90, skewed",
    "informative": "patients with larger Dice have more images",
    "failures": "as unequal; in some patients many images fail altogether",
}
PLACES = {"high": (2.6, 0.9), "failures": (1.6, 0.8)}
USUAL = (1.4, 0.8)
IMAGES, RUN_OF_PATIENT, RUN_OF_IMAGE = 0.6, 0.35, 0.3  # further standard deviations on that scale


def draw_patients(rng: np.random.Generator, count: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every image its patient, and how hard it is: the logit of its Dice."""
    place, spread = PLACES.get(kind, USUAL)
    effects = rng.standard_normal(count)
    sizes = 1 + rng.negative_binomial(1.5, 1.5 / 8.5, size=count)
    if kind == "equal":
        sizes = np.full(count, 8)
    elif kind == "informative":
        sizes = 1 + rng.poisson(np.minimum(7 * np.exp(0.5 * effects), 60))
    patients = np.repeat(np.arange(count), sizes)
    logits = place + spread * effects[patients] + IMAGES * rng.standard_normal(len(patients))
    if kind == "failures":
        failing = rng.beta(0.4, 3.0, size=count)[patients]
        logits = np.where(rng.random(len(patients)) < failing, logits - 5, logits)
    return patients, logits


def dice(logits: np.ndarray) -> np.ndarray:
    """In (0, 1)."""
    return 1 / (1 + np.exp(-logits))


@cache
def true_mean(kind: str) -> float:
    """Mean Dice over the images of a million patients."""
    return float(dice(draw_patients(np.random.default_rng(99), 1_000_000, kind)[1]).mean())


def coverage(kind: str, patients: int, experiments: int, method: str, seed: int = 0) -> dict:
    """How often an interval of 95 % has the true mean in it, above it and below it, and how wide it is."""
    rng, truth, found = np.random.default_rng(seed), true_mean(kind), []
    for _ in range(experiments):
        labels, logits = draw_patients(rng, patients, kind)
        low, high = bootstrap_ci(dice(logits), labels, method=method, bounds=(0, 1))
        found.append((low <= truth <= high, truth > high, truth < low, high - low))
    covered, above, below, width = np.mean(found, axis=0)
    return {"covered": covered, "above": above, "below": below, "width": width}


def draw_tables(
    rng: np.random.Generator, count: int, kind: str, shift: float, seeds: int
) -> dict[str, list[pd.DataFrame]]:
    """Tables of two runs, a seed each, which differ by patient and by image, and by a shift on average."""
    patients, logits = draw_patients(rng, count, kind)
    samples = {"sample_id": [f"image{index}" for index in range(len(patients))], "patient_id": patients}
    tables = {}
    for name, own in (("before", 0.0), ("after", shift)):
        of_run = logits + RUN_OF_PATIENT * rng.standard_normal(count)[patients]
        of_seeds = [dice(of_run + RUN_OF_IMAGE * rng.standard_normal(len(patients))) for _ in range(seeds)]
        tables[name] = [pd.DataFrame({**samples, "dice": own + values}) for values in of_seeds]
    return tables


def tested(patients: int, kind: str, experiments: int, shift: float = 0.0, seeds: int = 1, seed: int = 0) -> dict:
    """How often `compare` finds a difference, by its test and by the other, and what it says that it could find."""
    rng, entries = np.random.default_rng(seed), []
    for _ in range(experiments):
        entries += compare(draw_tables(rng, patients, kind, shift, seeds))["differences"]
    can = [entry["minimum_detectable"] for entry in entries]
    return {
        "shift": shift,
        "found": float(np.mean([entry["permutation_p_holm"] <= 0.05 for entry in entries])),
        "found_by_wilcoxon": float(np.mean([entry["wilcoxon_p_holm"] <= 0.05 for entry in entries])),
        "minimum_detectable": None if None in can else float(np.mean(can)),
    }


def seeds_as_patients(patients: int, kind: str, experiments: int, seeds: int = 3, seed: int = 0) -> float:
    """How often a difference is found where there is none if every seed's patients count as others."""
    rng, found = np.random.default_rng(seed), 0
    for _ in range(experiments):
        tables = draw_tables(rng, patients, kind, 0.0, seeds)
        long = {
            name: pd.concat(
                own.assign(sample_id=own["sample_id"] + f"/{number}", patient_id=own["patient_id"] + number * patients)
                for number, own in enumerate(parts)
            )
            for name, parts in tables.items()
        }
        found += compare(long)["differences"][0]["permutation_p"] <= 0.05
    return found / experiments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default="outputs/simulated_statistics", help="Folder of the JSON.")
    parser.add_argument("--experiments", type=int, default=1000, help="Simulated evaluations, of every figure.")
    parser.add_argument("--patients", type=int, nargs="+", default=[30, 10], help="Patients in an evaluation.")
    args = parser.parse_args()
    start, many = time.perf_counter(), args.experiments
    result = {"experiments": many, "compare": {}, "coverage": {}}

    heads = ["patients", "images", "none", "none, 3 seeds", "none, seeds as patients", "its minimum detectable"]
    heads += ["signed-rank test: none", "its minimum detectable"]
    print("compare: differences found (p <= 0.05) where there is")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    for patients in args.patients:
        for kind in ("equal", "unequal"):
            none = tested(patients, kind, many, seed=1)
            own = tested(patients, kind, many, none["minimum_detectable"], seed=2)
            seeds = tested(patients, kind, many, seeds=3, seed=3)
            wrong = seeds_as_patients(patients, kind, many, seed=4)
            result["compare"][f"{patients} {kind}"] = {
                "none": none,
                "minimum_detectable": own,
                "seeds": seeds,
                "seeds_as_patients": wrong,
            }
            shares = (none["found"], seeds["found"], wrong, own["found"])
            shares += (none["found_by_wilcoxon"], own["found_by_wilcoxon"])
            print(f"| {patients} | {kind} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)

    print("\ncoverage of 95 % intervals (true mean above / below; mean width)")
    print("| patients | images | " + " | ".join(METHODS) + " |\n" + "|---" * (2 + len(METHODS)) + "|", flush=True)
    for patients in args.patients:
        for kind in KINDS:
            cells = {method: coverage(kind, patients, many, method) for method in METHODS}
            result["coverage"][f"{patients} {kind}"] = cells
            texts = [
                f"{cell['covered']:.1%} ({cell['above']:.1%} / {cell['below']:.1%}; {cell['width']:.3f})"
                for cell in cells.values()
            ]
            print(f"| {patients} | {kind} | " + " | ".join(texts) + " |", flush=True)
    write_json(args.output_dir / "statistics.json", {**result, "seconds": time.perf_counter() - start})


if __name__ == "__main__":
    main()
