"""
What the shipped tiny weights make of words, on generated runs that pretraining never saw: each structure of each frame
is asked for as `sa2va-trl predict` asks, by its usual phrase and by one that no training row uses, and so is what is
not there. Nothing is teacher-forced: an answer without `[SEG]` is an empty mask, Dice 0.

    python recipes/benchmarks/tiny.py --output_dir outputs/tiny_words
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from sa2va_trl.data import named_dataset, structure_dataset
from sa2va_trl.data.structures import CATHETER, STRUCTURES, VESSEL
from sa2va_trl.evaluation.statistics import summarize
from sa2va_trl.files import write_json
from sa2va_trl.metrics import confusion_counts, dice, iou
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


BATCH = 16
# The seeds of the runs that configs/tiny/pretrain*.yaml train on.
LEARNED = (0, 2)


def answers(model, processor, images: list, texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The text and the masks of each answer, as they are written."""
    for start in range(0, len(images), BATCH):
        batch = [image.convert("RGB") for image in images[start : start + BATCH]]
        found = model.segment(images=batch, text=texts[start : start + BATCH], processor=processor, max_new_tokens=64)
        for result in found:
            yield result.text, result.masks.numpy()


def span(value: dict) -> str:
    """A mean and its interval over patients, where there is more than one."""
    low, high = value["ci95"]
    return f"{value['mean']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="tiny")
    parser.add_argument("--adapter", default=None)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--hospital", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1, help="pretraining's runs are those of seeds 0 and 2")
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--frames", type=int, default=8)
    args = parser.parse_args()
    if args.seed in LEARNED:
        parser.error(f"seed {args.seed} gives the runs that pretraining has learned from: take another")
    model, processor = load_model(ModelArguments(model_name_or_path=args.model_name_or_path, adapter=args.adapter))
    model.eval()
    runs = {
        "num_videos": args.videos,
        "frames_per_video": args.frames,
        "seed": args.seed,
        "hospital": args.hospital,
    }

    tables, masks = [], {}
    for wording in ("usual", "held_out"):
        data = structure_dataset(**runs, wording=wording)
        texts = [f"Please segment the {phrase}." for phrase in data["phrase"]]
        pictures = answers(model, processor, data["image"], texts)
        for row, (text, found) in zip(data.remove_columns("image"), pictures, strict=True):
            target = np.asarray(row["mask"]) > 0
            mask = found.any(axis=0)  # of an answer without any it is empty
            value = dice(confusion_counts(mask, target))
            keys = ("structure", "phrase", "video_id", "patient_id", "frame_index", "sample_id")
            tables.append({"wording": wording, **{key: row[key] for key in keys}, "answer": text, "dice": value})
            tables[-1]["refused"] = len(found) == 0
            if wording == "usual":
                masks[row["video_id"], row["frame_index"], row["structure"]] = mask
    table = pd.DataFrame(tables)
    print(f"{'':<20}{'n':>5}  {'Dice, usual phrase':<24}{'held-out phrase':<24}{'difference':>10}{'refused':>9}")
    results = {}
    for structure in (name for name in STRUCTURES if (table["structure"] == name).any()):
        own = table[table["structure"] == structure]
        usual, other = (own[own["wording"] == wording] for wording in ("usual", "held_out"))
        one, two = (summarize(part["dice"], part["patient_id"], (0, 1)) for part in (usual, other))
        refused = float(usual["refused"].mean())
        results[structure] = {"usual": one, "held_out": two, "refused": refused}
        spans = [span(value) for value in (one, two)]
        gap = two["mean"] - one["mean"]
        print(f"{structure:<20}{len(usual):>5}  {spans[0]:<24}{spans[1]:<24}{gap:>+10.3f}{refused:>9.1%}")

    pairs = [(mask, masks.get((*key[:2], VESSEL))) for key, mask in masks.items() if key[2] == CATHETER]
    overlap = [iou(confusion_counts(one, other)) for one, other in pairs if other is not None]
    absent = named_dataset(**runs, rows_per_frame=2, shares={"absent": 1})
    texts = [messages[0]["content"] for messages in absent["messages"]]
    found = list(answers(model, processor, absent["image"], texts))
    refusals = pd.DataFrame(
        {
            "structure": [missing[0] for missing in absent["absent"]],
            "question": texts,
            "answer": [text for text, _ in found],
            "refused": [len(masks) == 0 for _, masks in found],
        }
    )
    by_structure = refusals.groupby("structure")["refused"].agg(["mean", "size"])
    print(
        f"\nIoU of the masks of catheter and blood vessel on a frame: {np.mean(overlap):.3f} ({len(overlap)} frames)"
    )
    print(f"Absent structures refused: {refusals['refused'].mean():.1%} of {len(refusals)} questions:")
    for name, (mean, size) in by_structure.iterrows():
        print(f"    {name:<16}{mean:>6.1%} of {size:.0f}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    table.to_parquet(args.output_dir / "answers.parquet")
    refusals.to_parquet(args.output_dir / "refusals.parquet")
    content = {
        "structures": results,
        "catheter_vessel_iou": float(np.mean(overlap)),
        "absent_refused": float(refusals["refused"].mean()),
        "absent_by_structure": by_structure["mean"].to_dict(),
    }
    write_json(args.output_dir / "results.json", content)


if __name__ == "__main__":
    main()
