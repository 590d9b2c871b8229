"""
Score a model, or masks that another tool has written, on a data set: at each image's own size, with intervals.

    python recipes/evaluate.py --model_name_or_path outputs/tiny/sft --dataset_name synthetic --output_dir outputs/eval
    python recipes/evaluate.py --predictions_dir MASKS --dataset_name DIR --output_dir outputs/eval
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trl import TrlParser

from sa2va_trl.arguments import DataArguments, ModelArguments, get_split, load_data, load_model
from sa2va_trl.data.columns import normalize_row
from sa2va_trl.evaluation import evaluate, overlay, predict_probabilities, read_predictions, stored_features
from sa2va_trl.evaluation.evaluator import METRICS, write_json
from sa2va_trl.evaluation.overlays import file_name, save_overlays


@dataclass
class EvaluateArguments:
    dataset_split: str = field(default="test", metadata={"help": "Split to score."})
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Where the results go."})
    predictions_dir: str | None = field(
        default=None, metadata={"help": "Folder of mask PNGs named by sample_id, in place of a model."}
    )
    threshold: float = field(default=0.5, metadata={"help": "Probability above which a pixel is foreground."})
    batch_size: int = field(default=8, metadata={"help": "Images a forward pass."})
    cache_features: str = field(
        default="auto", metadata={"help": "Frozen features: auto (use those that are there), on (compute) or off."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where they are; beside the data by default."})
    num_overlays: int = field(default=12, metadata={"help": "Pictures to draw, from the worst to the best image."})

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}.")
        if self.predictions_dir is not None and (self.cache_features != "auto" or self.cache_dir is not None):
            raise ValueError("cache_features and cache_dir have no meaning with predictions_dir: no model runs.")


def by_frame(masks: np.ndarray, row: dict) -> np.ndarray:
    """All objects of a row in one mask a frame, `(frames, H, W)`, from one mask an object and frame."""
    frames = len(row.get("images") or [None])
    return masks.reshape(-1, frames, *masks.shape[1:]).any(0)


def main():
    parser = TrlParser((EvaluateArguments, DataArguments, ModelArguments))
    args, data_args, model_args = parser.parse_args_and_config()
    dataset = get_split(load_data(data_args), args.dataset_split, "dataset_split")

    if args.predictions_dir is None:
        model, processor = load_model(model_args)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        features = stored_features(model, processor, dataset, args.cache_features, args.cache_dir, args.batch_size)
        predictions = predict_probabilities(model, processor, dataset, args.batch_size, features=features)
    else:
        predictions = read_predictions(args.predictions_dir, dataset)

    # One bit a pixel is kept of every image, so that the worst can be drawn once all are known.
    found = {}

    def keep(row, probabilities, scores):
        found[row["sample_id"]] = np.packbits(by_frame(probabilities > args.threshold, row))

    metrics, samples = evaluate(dataset, predictions, args.threshold, on_row=keep)

    output = Path(args.output_dir)
    order = samples.sort_values("dice", kind="stable").reset_index(drop=True)
    chosen = order.iloc[
        np.unique(np.linspace(0, len(order) - 1, min(args.num_overlays, len(order))).round().astype(int))
    ]
    positions = {sample_id: position for position, sample_id in enumerate(dataset["sample_id"])}
    pictures = []
    for sample_id, dice in zip(chosen["sample_id"], chosen["dice"], strict=True):
        row = normalize_row(dataset[positions[sample_id]])
        target = by_frame(np.stack([np.asarray(mask) > 0 for mask in row["masks"]]), row)
        prediction = np.unpackbits(found[sample_id], count=target.size).reshape(target.shape).astype(bool)
        # The frames of a clip stand below each other.
        panels = [np.asarray(overlay(*frame)) for frame in zip(row["images"], prediction, target, strict=True)]
        pictures.append((f"dice_{dice:.3f}_{file_name(sample_id)}", Image.fromarray(np.concatenate(panels))))
    save_overlays(pictures, output / "overlays")
    samples.to_parquet(output / ".per_sample.parquet.tmp")
    (output / ".per_sample.parquet.tmp").replace(output / "per_sample.parquet")
    write_json(output / "metrics.json", metrics)

    print(
        f"\n{args.dataset_split} split of {data_args.dataset_name}: {len(samples)} images, threshold {args.threshold}"
    )
    print(f"{'metric':<12}{'mean':>8}{'std':>8}   95 % interval")
    for name in METRICS:
        value = metrics[name]
        low, high = (f"{bound:.4f}" if bound is not None else "-" for bound in value["ci95"])
        print(f"{name:<12}{value['mean']:>8.4f}{value['std']:>8.4f}   {low} - {high}")
    print(f"results in {output}, pictures from the worst to the best image in {output / 'overlays'}")


if __name__ == "__main__":
    main()
