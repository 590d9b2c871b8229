"""
Which frames of a clip the language model sees and prompts: J&F and time on generated injections, by policy.

    OMP_NUM_THREADS=1 python recipes/benchmarks/frame_policies.py --output_dir outputs/frame_policies

Every clip is a whole injection (before it, inflow, filled, wash-out) that the tiny model has not seen; vessels are
asked for as referring sets are. `first` is Sa2VA's choice, and SaSaSa2VA's `wrap_around` of a long clip; `uniform` is
Sa2VA-i's; `starts` is SaSaSa2VA's `uniform`, `uniform_plus` and, of a long clip, `wrap_around_plus`. Those that repeat
frames of a short clip have no counterpart, since a frame is prompted once here, nor has `q_frame`, which asks another
model. `all` prompts every frame, so that nothing is tracked. Differences are paired, with intervals over clips.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from sa2va_trl import tiny_sa2va
from sa2va_trl.data.angiography import generate_video
from sa2va_trl.evaluation import paired_difference
from sa2va_trl.evaluation.differences import summarize
from sa2va_trl.evaluation.referring import referring_question
from sa2va_trl.files import write_json
from sa2va_trl.metrics import track_scores


PHRASE = "the blood vessel"
# By name the policy and how many frames; the first is what the others are set beside.
ARMS = {
    "uniform 5": ("uniform", 5),
    "first 5": ("first", 5),
    "starts 5": ("starts", 5),
    "uniform 1": ("uniform", 1),
    "uniform 10": ("uniform", 10),
    "starts 10": ("starts", 10),
    "all": ("first", None),
}


def clips(count: int, frames: int, size: int, seed: int) -> Iterator[tuple[list[Image.Image], np.ndarray]]:
    """Injections and the masks of their vessels, of the two generated hospitals by turns."""
    for number in range(count):
        options = {"scene": "named", "hospital": 1 + number % 2, "injection": True}
        video = generate_video(seed, number, frames, size, **options)
        yield [Image.fromarray(frame).convert("RGB") for frame in video.frames], video.masks > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=20263)
    parser.add_argument("--tracking", default="soft", help="soft or mask_prompt")
    args = parser.parse_args()
    model, processor = tiny_sa2va(image_size=args.size, pretrained=True)
    model.eval()
    rows = []
    for number, (images, truth) in enumerate(clips(args.clips, args.frames, args.size, args.seed)):
        for name, (policy, count) in ARMS.items():
            options = {"frame_policy": policy, "num_frames": count or len(images), "tracking": args.tracking}
            start = time.process_time()
            result = model.segment(
                video=images,
                text=referring_question("rvos", PHRASE),
                processor=processor,
                max_new_tokens=32,
                **options,
            )
            found = result.masks[0].numpy() if len(result.phrases) else np.zeros_like(truth)
            seconds = time.process_time() - start
            scores = track_scores(found, truth)
            own = {"j_and_f": scores.j_and_f, "j": scores.j, "f": scores.f, "seconds": seconds}
            rows.append({"clip": number, "arm": name, "answered": bool(len(result.phrases)), **own})
    table = pd.DataFrame(rows)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.output_dir / "per_clip.csv", index=False)
    base = table[table["arm"] == next(iter(ARMS))].set_index("clip")["j_and_f"]
    report = {}
    print(f"{'arm':<12}{'J&F':>7}   95 % over clips     J      F    against {next(iter(ARMS))}     seconds a clip")
    for name in ARMS:
        own = table[table["arm"] == name].set_index("clip")
        report[name] = {key: summarize(own[key].to_numpy(), bounds=(0, 1)) for key in ("j_and_f", "j", "f")}
        report[name]["seconds"] = float(own["seconds"].median())
        low, high = report[name]["j_and_f"]["ci95"]
        means = {key: own[key].mean() for key in ("j_and_f", "j", "f")}
        line = f"{name:<12}{means['j_and_f']:>7.3f}   [{low:.3f}, {high:.3f}]   {means['j']:.3f}  {means['f']:.3f}"
        against = ""
        if not own["j_and_f"].equals(base):
            change = paired_difference(base.to_numpy(), own["j_and_f"].to_numpy(), bounds=(-1, 1))
            report[name]["difference"] = change
            low, high = change["ci95"]
            against = f"{change['mean']:+.3f} [{low:+.3f}, {high:+.3f}] p {change['permutation_p']:.3f}"
        print(f"{line}   {against:<33}{report[name]['seconds']:.2f}")
    write_json(args.output_dir / "frame_policies.json", report)


if __name__ == "__main__":
    main()
