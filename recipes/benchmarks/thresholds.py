"""
What 99 thresholds cost beside one: an evaluation at one threshold, a sweep over all of them with the rules for every
image, and that with the temperature too, of the same model and rows, in turns in one process. The ratio counts.

    python recipes/benchmarks/thresholds.py --output_dir outputs/thresholds_benchmark
"""

import argparse
import os
import time
from pathlib import Path
from statistics import median

import numpy as np

from sa2va_trl.data import load_dataset_dict
from sa2va_trl.evaluation import evaluate, predict_probabilities, score
from sa2va_trl.evaluation.calibration import TemperatureScaling
from sa2va_trl.evaluation.thresholds import THRESHOLDS, sweep
from sa2va_trl.files import write_json
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="tiny")
    parser.add_argument("--grounding_image_size", type=int, default=None)
    parser.add_argument("--dataset_name", default="synthetic")
    parser.add_argument("--dataset_split", default="test")
    parser.add_argument("--size", type=int, default=512, help="side of generated images, in pixels")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output_dir", required=True, type=Path)
    args = parser.parse_args()
    generated = {
        "train_videos": 1,
        "validation_videos": 1,
        "test_videos": (args.images + 7) // 8,
        "frames_per_video": 8,
    }
    own = {**generated, "size": args.size} if args.dataset_name == "synthetic" else {}
    data = load_dataset_dict(args.dataset_name, **own)[args.dataset_split]
    data = data.select(range(min(args.images, len(data))))
    model, processor = load_model(
        ModelArguments(args.model_name_or_path, grounding_image_size=args.grounding_image_size)
    )
    model.eval()

    def predictions():
        return predict_probabilities(model, processor, data, batch_size=4, progress=False)

    def one():
        evaluate(data, predictions(), 0.5)

    def all_of_them():
        sweep(predictions())

    def with_temperature():
        sweep(predictions(), temperature=1.3, on_map=TemperatureScaling().add)

    maps = list(predictions())

    def by_brute_force():
        for row, probabilities in maps:
            for threshold in THRESHOLDS:
                score(row, probabilities, threshold)

    tasks = {"evaluate": one, "sweep": all_of_them, "calibrated": with_temperature}
    tasks |= {"scores": lambda: [score(*pair, 0.5) for pair in maps]}
    tasks["99 scores"] = by_brute_force
    # Processor time of this process: what else the machine does matters less. (One thread: OMP_NUM_THREADS=1.)
    seconds = {name: [] for name in tasks}
    one()
    for _ in range(args.repeats):
        for name, task in tasks.items():
            if name == "99 scores" and seconds[name]:
                continue
            start = time.process_time()
            task()
            seconds[name].append(time.process_time() - start)
    middle = {name: median(values) for name, values in seconds.items()}
    ratios = {
        name: float(np.median(np.divide(seconds[name], seconds["evaluate"]))) for name in ("sweep", "calibrated")
    }
    for name, value in middle.items():
        print(f"{name:<12}{value / len(data) * 1000:>10.1f} ms of processor time an image")
    for name, ratio in ratios.items():
        print(f"{name} / evaluate {ratio:.2f} ({len(data)} images of {data[0]['image'].size}, {args.repeats} turns)")
    content = {
        "about": {
            "images": len(data),
            "size": data[0]["image"].size,
            "model": args.model_name_or_path if args.model_name_or_path.startswith("tiny") else "a folder",
            "threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "seconds": seconds,
        "ratios": ratios,
    }
    write_json(args.output_dir / "thresholds.json", content)


if __name__ == "__main__":
    main()
