"""
Milliseconds of one core that the metrics of a pair of masks take: generated vessel trees as targets, and the same with
their outlines shaken and gaps torn into them as predictions. Medians over pairs, in time of the processor: what
another process takes is not counted, but it may slow this one down.

    OMP_NUM_THREADS=1 python recipes/benchmarks/metrics.py --size 512
"""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
from scipy import ndimage

from sa2va_trl.data import synthetic_dataset
from sa2va_trl.files import write_json
from sa2va_trl.metrics import MaskPair, calibration_metrics, confusion_counts, mask_metrics, segmentation_metrics
from sa2va_trl.metrics.sets import topology_metrics


# At most, in milliseconds, for a pair of 512 x 512 pixels.
LIMITS = {"overlap and topology": 25, "all": 60}


def pairs(count: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and target of some masks."""
    rng = np.random.default_rng(0)
    found = []
    for row in synthetic_dataset(num_videos=count, frames_per_video=1, size=size):
        target = np.asarray(row["mask"]) > 0
        noise = ndimage.gaussian_filter(rng.normal(size=target.shape), 4)
        logits = 6 * ndimage.gaussian_filter(target.astype(float), 1.5) - 2.5 + 1.5 * noise / noise.std()
        found.append(((1 / (1 + np.exp(-logits))).astype(np.float32), target))
    return found


def overlap_and_topology(probabilities: np.ndarray, target: np.ndarray) -> None:
    segmentation_metrics(probabilities > 0.5, target)
    topology_metrics(MaskPair(probabilities > 0.5, target))


def everything(probabilities: np.ndarray, target: np.ndarray) -> None:
    mask_metrics(probabilities > 0.5, target)
    calibration_metrics(probabilities, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/metrics"), help="where metrics.json goes")
    parser.add_argument("--size", type=int, default=512, help="side of the masks")
    parser.add_argument("--pairs", type=int, default=12, help="masks to measure")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    args = parser.parse_args()

    data = pairs(args.pairs, args.size)
    results = {}
    for name, measure in (
        ("overlap", lambda probabilities, target: segmentation_metrics(probabilities > 0.5, target)),
        ("overlap and topology", overlap_and_topology),
        ("all", everything),
    ):
        runs = []
        for probabilities, target in data:
            for _ in range(args.repeats):
                start = time.process_time()
                measure(probabilities, target)
                runs.append(1000 * (time.process_time() - start))
        limit = LIMITS.get(name) if args.size == 512 else None
        results[name] = {"median": median(runs), "max": max(runs), "limit": limit}
        print(f"{name:<24}{median(runs):7.1f} ms, at most {max(runs):.1f}" + (f" (limit {limit})" if limit else ""))
    counts = [confusion_counts(probabilities > 0.5, target) for probabilities, target in data]
    about = {"size": args.size, "pairs": args.pairs, "foreground": [entry.tp + entry.fn for entry in counts]}
    write_json(args.output_dir / "metrics.json", {"about": about, "milliseconds": results})


if __name__ == "__main__":
    main()
