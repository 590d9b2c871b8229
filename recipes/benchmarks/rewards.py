"""
What rewards of a group cost: 8 masks of an object, as a policy draws them, beside calling scikit-image on every full
mask and its target: once for all parts of a reward, and anew for each part, as one function a part does. The values
are compared; milliseconds of the processor, medians over objects of the best of some runs; the ratios count. With
`--workers` there is the time that passes with processes beside this one, too.

    OMP_NUM_THREADS=1 python recipes/benchmarks/rewards.py --size 512 --masks 8
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import skeletonize

from sa2va_trl.data import synthetic_dataset
from sa2va_trl.files import write_json
from sa2va_trl.rewards import GroupScorer, score_group


MIXED = {"dice": 0.4, "cldice": 0.3, "betti0": 0.1, "topology": 0.1, "vessel_length": 0.1}
REWARDS = {"default": "default", "published": "published", "mixed": MIXED}
PARTS = {
    "default": {"dice": 0.6, "cldice": 0.4},
    "published": {"dice": 5, "recall": 1, "topology": 0.4, "vessel_length": 0.3},
    "mixed": MIXED,
}


def candidates(target: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Masks as a coarse field of logits draws them: vessels thicker here and thinner or gone there."""
    distance = ndimage.distance_transform_edt(target) - ndimage.distance_transform_edt(~target)
    fields = [ndimage.zoom(rng.normal(size=(16, 16)), np.array(target.shape) / 16, order=1) for _ in range(count)]
    return np.stack([distance + 2 * field > 0 for field in fields])


def ratio(one: float, other: float) -> float:
    return min(one, other) / max(one, other) if one or other else 1.0


def full_size(name: str, pred: np.ndarray, target: np.ndarray, anew: bool = False) -> float:
    """One mask's reward, by scikit-image on the whole picture (no mask here is empty)."""
    parts = PARTS[name]
    thinned = None

    def skeletons() -> tuple[np.ndarray, np.ndarray]:
        nonlocal thinned
        if thinned is None or anew:
            thinned = skeletonize(pred), skeletonize(target)
        return thinned

    total = 0.0
    for part, weight in parts.items():
        if part == "dice":
            value = 2 * (pred & target).sum() / (pred.sum() + target.sum())
        elif part == "recall":
            value = min((pred & target).sum() / target.sum(), 0.85)
        elif part == "betti0":
            value = ratio(label(pred, connectivity=2).max(), label(target, connectivity=2).max())
        elif part == "cldice":
            ours, theirs = skeletons()
            precision, sensitivity = target[ours].mean(), pred[theirs].mean()
            value = 2 * precision * sensitivity / (precision + sensitivity)
        elif part == "vessel_length":
            value = ratio(*(skeleton.sum() for skeleton in skeletons()))
        elif part == "topology":
            counts = [ends_crossings_components(skeleton) for skeleton in skeletons()]
            value = np.mean([ratio(*pair) for pair in zip(*counts, strict=True)])
        total += weight * value
    return total


def ends_crossings_components(skeleton: np.ndarray) -> tuple[int, int, int]:
    """Pixels that a skeleton leaves once, to two neighbours at most; groups that it leaves thrice or more; parts."""
    padded = np.pad(skeleton, 1)
    shifts = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    around = [np.roll(padded, (-y, -x), (0, 1)) for y, x in shifts]
    leaves = sum((one & ~other).astype(int) for one, other in zip(around, around[1:] + around[:1], strict=True))
    ends = padded & (leaves == 1) & (sum(one.astype(int) for one in around) <= 2)
    return ends.sum(), label(padded & (leaves > 2), connectivity=2).max(), label(skeleton, connectivity=2).max()


def best(work: Callable, clock: Callable, repeats: int) -> float:
    runs = []
    for _ in range(repeats):
        start = clock()
        work()
        runs.append(1000 * (clock() - start))
    return min(runs)


def wall(args: argparse.Namespace) -> dict:
    return {"clock": time.perf_counter, "repeats": args.repeats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/rewards"), help="where rewards.json goes")
    parser.add_argument("--size", type=int, default=512, help="side of the masks")
    parser.add_argument("--masks", type=int, default=8, help="masks in a group")
    parser.add_argument("--objects", type=int, default=8, help="groups")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    parser.add_argument("--workers", type=int, default=0, help="processes of the last column")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    targets = [np.asarray(row["mask"]) > 0 for row in synthetic_dataset(args.objects, 1, size=args.size)]
    groups = [(candidates(target, args.masks, rng), target, {}) for target in targets]
    results = {}
    for name, reward in REWARDS.items():
        once, anew, fast, off = [], [], [], 0.0
        for preds, target, _ in groups:

            def full(again: bool, preds: np.ndarray = preds, target: np.ndarray = target, name: str = name) -> list:
                return [full_size(name, pred, target, again) for pred in preds]

            def group(preds: np.ndarray = preds, target: np.ndarray = target, reward: object = reward) -> np.ndarray:
                return score_group(reward, preds, target).rewards

            off = max(off, np.abs(group() - full(False)).max())
            once.append(best(lambda: full(False), time.process_time, args.repeats))
            anew.append(best(lambda: full(True), time.process_time, args.repeats))
            fast.append(best(group, time.process_time, args.repeats))
        found = {"full_size": median(once), "full_size_each_part": median(anew), "group": median(fast)}
        found["ratio"] = median(one / other for one, other in zip(fast, once, strict=True))
        found["ratio_each_part"] = median(one / other for one, other in zip(fast, anew, strict=True))
        found["largest_difference"] = off
        print(
            f"{name:<10} full size {median(once):6.1f} ms, each part anew {median(anew):6.1f}; as a group "
            f"{median(fast):5.1f}: ratio {found['ratio']:.2f} and {found['ratio_each_part']:.2f}; within {off:.0e}"
        )
        if args.workers:
            with GroupScorer(reward, args.workers) as scorer:
                scorer(groups)  # which starts them
                found["wall"] = best(lambda: [score_group(reward, *group[:2]) for group in groups], **wall(args))  # noqa: B023
                found["wall_with_workers"] = best(lambda: scorer(groups), **wall(args))
            print(f"{'':<10} {found['wall']:.0f} ms pass for all, {found['wall_with_workers']:.0f} with workers")
        results[name] = found
    write_json(
        args.output_dir / "rewards.json", {"about": vars(args) | {"output_dir": str(args.output_dir)}, **results}
    )


if __name__ == "__main__":
    main()
