"""
Reinforcement learning on masks, measured: whether groups have spread, what it leaves beside supervised training of as
many steps, what the reward `published` does to masks, and what rollouts cost. (`rl_gradient.py`: how good its
gradients are.)

    python recipes/benchmarks/rl.py spread --output_dir outputs/rl --models tiny SFT
    python recipes/benchmarks/rl.py outcome --output_dir outputs/rl/generated --model_name_or_path SFT
    python recipes/benchmarks/rl.py outcome --output_dir outputs/rl/arcade --model_name_or_path SFT --dataset_name DIR
    python recipes/benchmarks/rl.py picture --output_dir outputs/rl/generated --model_name_or_path SFT
    python recipes/benchmarks/rl.py throughput --output_dir outputs/rl

A run of `outcome` that was ended goes on where it was; what there is of it is in `outcome.json` at any time.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw

from sa2va_trl import SegDPOConfig, SegDPOTrainer, SegGRPOConfig, SegGRPOTrainer, SegSFTConfig, SegSFTTrainer
from sa2va_trl.data import load_dataset_dict, structure_dataset
from sa2va_trl.evaluation import compare, evaluate, predict_probabilities, stored_features
from sa2va_trl.evaluation.overlays import overlay
from sa2va_trl.features.encoding import RowEncoder
from sa2va_trl.files import whole_file, write_json
from sa2va_trl.mask_logits import upsample_mask_logits
from sa2va_trl.metrics import betti0_error, cldice
from sa2va_trl.mining import score_dataset
from sa2va_trl.rewards import CREDITS, GroupScorer, score_group
from sa2va_trl.sampling import MaskSampler
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model
from sa2va_trl.trainers import rollouts


GENERATED = {
    "scene": "named",
    "hospital": 2,
    "rows": "structures",
    "structures": ["blood vessel"],
    "frames_per_video": 6,
    "train_videos": 40,
    "validation_videos": 12,
    "test_videos": 32,
}

# Outcome: trainer, config and options by arm
SFT, DPO, GRPO = (SegSFTTrainer, SegSFTConfig), (SegDPOTrainer, SegDPOConfig), (SegGRPOTrainer, SegGRPOConfig)
START, BEST_LOSS = "SFT checkpoint", "SFT + 0.5 soft clDice"
MEANS = ("dice", "cldice", "recall", "precision", "betti0_error")


def supervised(**weights: float) -> tuple:
    return (*SFT, {"lm_weight": 0.0, **weights})


def anchored(cldice_weight: float = 2.0, **options) -> tuple:
    """GRPO beside the supervised losses. (Unscaled, a field's gradients are 500 times shorter than the anchor's.)"""
    given = {"sft_weight": 1.0, "cldice_weight": cldice_weight, "policy": "field", "scale_rewards": "group"}
    return (*GRPO, {**given, **options})


def alone(**options) -> tuple:
    return (*GRPO, {"sft_weight": 0.0, "policy": "both", **options})


ARMS = {
    BEST_LOSS: supervised(cldice_weight=0.5),
    "SFT + 2 soft clDice": supervised(cldice_weight=2.0),
    "SFT + 4 soft clDice": supervised(cldice_weight=4.0),
    "GRPO default, anchor 0.5, field": anchored(0.5),
    "GRPO default, anchor 2, field": anchored(),
    "GRPO default, anchor 2, field x 10": anchored(decoder_weight=10.0),
    "GRPO default, anchor 4, field": anchored(4.0),
    "GRPO default, anchor 4, field x 10": anchored(4.0, decoder_weight=10.0),
    "GRPO default alone": alone(),
    "SFT": supervised(),
    "SFT + SCNP": supervised(scnp_weight=1.0),
    "SFT + skeleton recall": supervised(skeleton_recall_weight=0.5),
    "DPO region, anchor": (*DPO, {"score": "region", "beta": 5.0, "sft_weight": 1.0, "pairs": "online"}),
    "GRPO published alone": alone(reward="published"),
    "PPO published alone": alone(
        reward="published",
        policy="embedding",
        decoder_weight=0.0,
        advantage="value",
        num_generations=1,
        learn_noise=True,
        critic_warmup=20,
    ),
}
# Drawn above the threshold that is best on validation, where the others have 0.5: what is won by drawing more alone.
AT_BEST = ", threshold"
THRESHOLDS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55)
ARMS |= {name + AT_BEST: ARMS[name] for name in ("SFT", "SFT + 4 soft clDice", "GRPO default, anchor 4, field x 10")}
LOUD = {
    "global credit": {"credit": "global"},
    "reward 0.3 Dice + 0.7 clDice": {"reward": {"dice": 0.3, "cldice": 0.7}},
    "reward with betti_matching": {"reward": {"dice": 0.4, "cldice": 0.4, "betti_matching": 0.2}},
    "ranks, scaled": {"rank_history": 512},
    "rows by spread": {"sample_by": "spread"},
    "KL 1": {"beta": 1.0},
    "K 16": {"num_generations": 16},
}
# What the recipes may say, judged on validation alone (`outcome --search`)
SEARCH = {
    **{f"SFT + {weight:g} soft clDice": supervised(cldice_weight=weight) for weight in (0.5, 1.0, 2.0, 4.0, 8.0)},
    "SFT + 1 SCNP": supervised(scnp_weight=1.0),
    "SFT + 0.5 SCNP": supervised(scnp_weight=0.5),
    "SCNP in place of SFT": supervised(scnp_weight=1.0, mask_weight=0.0, dice_weight=0.0),
    "SFT + 2 soft clDice + 0.5 SCNP": supervised(cldice_weight=2.0, scnp_weight=0.5),
    "anchor 2": anchored(),
    "anchor 2, decoder_weight 3": anchored(decoder_weight=3.0),
    "anchor 2, decoder_weight 10": anchored(decoder_weight=10.0),
    "anchor 2, noise 0.25": anchored(field_noise=0.25),
    "anchor 2, noise 1": anchored(field_noise=1.0),
    "anchor 2, noise 2": anchored(field_noise=2.0),
    "anchor 2, noise 1 to 0.2": anchored(field_noise=1.0, noise_end=0.2),
    "anchor 2, K 4": anchored(num_generations=4),
    "anchor 2, K 16": anchored(num_generations=16),
    "anchor 2, global credit": anchored(credit="global"),
    "anchor 2, 32 cells": anchored(credit_cells=32),
    "anchor 2, reward 0.3 Dice + 0.7 clDice": anchored(reward={"dice": 0.3, "cldice": 0.7}),
    "anchor 2, decoder_weight 30": anchored(decoder_weight=30.0),
    **{f"anchor 2, decoder_weight 10, {name}": anchored(decoder_weight=10.0, **own) for name, own in LOUD.items()},
}


# Spread


def share_changed(masks: np.ndarray) -> float:
    """Pixels in which drawn masks differ from the greedy one, the first, as a share of its own."""
    return (masks[1:] != masks[0]).sum((1, 2)).mean() / max(masks[0].sum(), 1)


def spread(args) -> None:
    """Groups without any spread under the embedding policy, and what the trainer says of them."""
    data = structure_dataset(num_videos=24, frames_per_video=2, seed=1, hospital=1, structures=["blood vessel"])
    found = []
    for path in args.models:
        model, processor = load_model(ModelArguments(model_name_or_path=path))
        model.eval()
        rows = RowEncoder(model, processor, data, progress=False)
        for noise in (0.03, 0.1, 0.3, 1.0):
            sampler = MaskSampler(embedding=8, field=0, tokens=False, thresholds=(), embedding_noise=noise)
            none, deviation, changed, changed_on_grid = [], [], [], []
            for start, _, targets, features in rows.batches(""):
                with torch.no_grad():
                    drawn = sampler(model, features, torch.Generator().manual_seed(start)).mask_logits
                for own, target in zip(drawn, targets, strict=True):
                    target = target[0].numpy() > 0
                    side = model.config.grounding_config.image_size
                    masks = (upsample_mask_logits(own, side, target.shape) > 0).numpy()
                    values = score_group("default", masks[1:], target).rewards
                    none.append(bool((values == values[0]).all()))
                    deviation.append(values.std())
                    changed.append(share_changed(masks))
                    changed_on_grid.append(share_changed((own > 0).numpy()))
            row = {"model": path, "noise": noise, "groups": len(none), "without_spread": np.mean(none)}
            row |= {"reward_std": np.mean(deviation), "pixels_changed": np.mean(changed)}
            row |= {
                "cells_changed": np.mean(changed_on_grid),
                "equal_on_grid": np.mean(np.array(changed_on_grid) == 0),
            }
            found.append(row)
            print(row, flush=True)
            write_json(args.output_dir / "spread.json", found)
        options = {"max_steps": 6, "skip_patience": 3, "logging_steps": 6, "lr_scheduler_type": "constant"}
        options |= {"learning_rate": 1e-9, "cache_features": "off"}
        options["embedding_noise"] = 0.003
        trainer(args, GRPO, {"sft_weight": 0.0}, data, model, processor, **options).train()


# Outcome


def trainer(args, kind: tuple, options: dict, rows, model, processor, scores=None, **more):
    """A trainer of the head of a model, as all arms have it."""
    made, config = kind
    given = {
        "trainable": "head",
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "per_device_train_batch_size": 4,
        "num_points": 0,
        "mask_size": getattr(args, "mask_size", 128),
        "mask_weight": 1.0,
        "dice_weight": 1.0,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 20,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    folder = str(args.output_dir / "trainer")
    args = config(folder, **{**given, **options, **more})
    own = {} if scores is None else {"scores": scores}
    return made(model=model, args=args, train_dataset=rows, processing_class=processor, **own)


def mined(args, model, processor, rows) -> pd.DataFrame:
    """Scores of the training rows by the checkpoint that all arms start from."""
    file = args.output_dir / "scores.parquet"
    if not file.exists():
        features = stored_features(model, processor, rows, "on", args.output_dir / "features", progress=False)
        with whole_file(file) as temporary:
            score_dataset(model, processor, rows, features=features, progress=False).to_parquet(temporary)
    return pd.read_parquet(file)


def fit(args, kind: tuple, options: dict, data, seed: int, rate: float):
    """The checkpoint after an arm's steps."""
    model, processor = load_model(ModelArguments(model_name_or_path=args.model_name_or_path))
    cache = {"cache_features": "on", "cache_dir": str(args.output_dir / "features")}
    run = trainer(
        args,
        kind,
        options,
        data["train"],
        model,
        processor,
        **cache,
        seed=seed,
        learning_rate=rate,
        max_steps=args.steps,
        **({"scores": mined(args, model, processor, data["train"])} if "sample_by" in options else {}),
    )
    run.train()
    return run.model, processor


def scores(args, model, processor, data, splits, threshold: float = 0.5) -> pd.DataFrame:
    """Every frame's Dice, recall, precision, clDice and Betti-0 error."""
    tables = []
    for split in splits:
        own = data[split]
        features = stored_features(model, processor, own, "on", args.output_dir / "features", progress=False)
        more: dict[str, list] = {"cldice": [], "betti0_error": []}

        def keep(row, probabilities, sample, more=more):
            mask = probabilities[0] > threshold
            target = np.asarray(row["mask"] if "mask" in row else row["masks"][0]) > 0
            more["cldice"].append(cldice(mask, target))
            more["betti0_error"].append(betti0_error(mask, target))

        predictions = predict_probabilities(model, processor, own, 8, progress=False, features=features)
        tables.append(evaluate(own, predictions, threshold, on_row=keep)[1].assign(split=split, **more))
    return pd.concat(tables, ignore_index=True)


def run(args, name: str, arm: tuple | None, data, seed: int, rate: float, splits=("validation", "test")):
    """What an arm leaves, from the disk if it was run before."""
    file = args.output_dir / "runs" / f"{name}-{seed}-{rate:g}.parquet".replace(" ", "_").replace(",", "")
    if file.exists():
        return pd.read_parquet(file)
    began = time.time()
    if arm is None:
        model, processor = load_model(ModelArguments(model_name_or_path=args.model_name_or_path))
    else:
        model, processor = fit(args, arm[:2], arm[2], data, seed, rate)
    threshold = 0.5
    if name.endswith(AT_BEST):
        tried = {own: worth(scores(args, model, processor, data, ("validation",), own)) for own in THRESHOLDS}
        threshold = max(tried, key=tried.get)
    table = scores(args, model, processor, data, splits, threshold)
    table = table.assign(threshold=threshold, seconds=time.time() - began)
    with whole_file(file) as temporary:
        table.to_parquet(temporary)
    print(f"{name}, seed {seed}, {rate:g}: {worth(table):.4f} on validation, {time.time() - began:.0f} s", flush=True)
    return table


def worth(table: pd.DataFrame) -> float:
    """What arms are chosen by: the reward `default` on validation."""
    own = table[table["split"] == "validation"]
    return 0.6 * own["dice"].mean() + 0.4 * own["cldice"].mean()


def outcome(args) -> None:
    made = {} if args.dataset_name != "synthetic" else args.synthetic
    data = load_dataset_dict(args.dataset_name, **made)
    if args.search:
        return search(args, data)
    runs = {START: [run(args, START, None, data, 0, 0.0)]}
    rates = {}
    for seed in range(args.seeds):
        for name in args.arms or ARMS:
            arm = {**ARMS, **SEARCH}[name]
            if not seed:
                first = {rate: run(args, name, arm, data, 0, rate) for rate in args.learning_rates}
                rates[name] = max(first, key=lambda rate: worth(first[rate]))
                runs[name] = [first[rates[name]]]
            else:
                runs[name].append(run(args, name, arm, data, seed, rates[name]))
    print(summary(args, runs, rates))


def summary(args, runs: dict[str, list[pd.DataFrame]], rates: dict[str, float]) -> str:
    """
    A table of what there is, each arm beside SFT + 0.5 soft clDice and beside the supervised arm that is best on
    validation, with Holm over all pairs of a metric; it is written as JSON too.
    """
    test = {name: [table[table["split"] == "test"] for table in own] for name, own in runs.items()}
    result = {"steps": args.steps, "learning_rates": rates, "arms": {}}
    for name, own in test.items():
        means = {metric: float(np.mean([table[metric].mean() for table in own])) for metric in MEANS}
        result["arms"][name] = {**means, "seeds": len(own), "validation": float(np.mean([*map(worth, runs[name])]))}
    losses = [name for name in runs if {**ARMS, **SEARCH}.get(name, ())[:2] == SFT and not name.endswith(AT_BEST)]
    best = max(losses, key=lambda name: result["arms"][name]["validation"])
    references = list(dict.fromkeys((BEST_LOSS, best)))
    pairs = [(before, name) for before in references for name in runs if name != before]
    pairs = [pair for pair in pairs if pair[::-1] != (references[0], references[-1])]
    found = {metric: compare(test, metric, pairs) for metric in ("dice", "cldice")}
    result |= {"best_supervised": best, "comparison": found}
    names = [f"{metric}, against {before}" for before in references for metric in ("Dice", "clDice")]
    heads = ["arm", "seeds", "validation", "Dice", "clDice", "recall", "precision", "Betti-0 error", *names]
    lines = ["| " + " | ".join(heads) + " |", "|" + len(heads) * "---|"]
    for name, own in result["arms"].items():
        cells = [name, str(own["seeds"]), f"{own['validation']:.4f}"]
        cells += [*(f"{own[metric]:.4f}" for metric in MEANS[:2]), *(f"{own[metric]:.3f}" for metric in MEANS[2:4])]
        cells.append(f"{own['betti0_error']:.1f}")
        for before in references:
            cells += [difference(own, before, name) for own in found.values()]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    write_json(args.output_dir / "outcome.json", result)
    (args.output_dir / "outcome.md").write_text(text + "\n")
    return text


def difference(found: dict, before: str, after: str) -> str:
    """One of the differences of a comparison: in bold where its interval excludes 0."""
    for entry in found["differences"]:
        if (entry["before"], entry["after"]) == (before, after):
            low, high = entry["ci95"]
            mean = f"{entry['mean']:+.4f}"
            mean = f"**{mean}**" if low > 0 or high < 0 else mean
            return f"{mean} [{low:+.4f}, {high:+.4f}], p {entry['permutation_p_holm']:.2g}"
    return ""


def search(args, data) -> None:
    """What the recipes may say, on validation, one arm a line."""
    found = {}
    for name in args.arms or SEARCH:
        for rate in args.learning_rates:
            title = f"search {name}"
            tables = [run(args, title, SEARCH[name], data, seed, rate, ("validation",)) for seed in range(args.seeds)]
            own = {metric: float(np.mean([table[metric].mean() for table in tables])) for metric in MEANS}
            found[f"{name}, {rate:g}"] = {**own, "seeds": [worth(table) for table in tables]}
            write_json(args.output_dir / "search.json", found)


# Picture and throughput


def picture(args) -> None:
    """One test image: the truth, SFT and two rewards alone; green found, orange invented, blue missed."""
    data = load_dataset_dict("synthetic", **args.synthetic)
    row = data["test"].select([args.row])
    image, target = row[0]["image"], np.asarray(row[0]["mask"]) > 0
    panels = {"truth": overlay(image, target)}
    for name in ("SFT", "GRPO default alone", "GRPO published alone"):
        model, processor = fit(args, ARMS[name][:2], ARMS[name][2], data, 0, args.learning_rate)
        _, found = next(predict_probabilities(model, processor, row, 1, progress=False))
        mask = found[0] > 0.5
        hit = (mask & target).sum()
        title = f"{name.removesuffix(' alone')}  R {hit / target.sum():.2f}  P {hit / max(mask.sum(), 1):.2f}"
        panels[title] = overlay(image, mask, target)
    width, height = image.size
    sheet = Image.new("RGB", ((width + 4) * len(panels) - 4, height + 16))
    pen = ImageDraw.Draw(sheet)
    for number, (title, panel) in enumerate(panels.items()):
        sheet.paste(panel.crop((width, 0, 2 * width, height)), (number * (width + 4), 16))
        pen.text((number * (width + 4) + 2, 2), title, fill=(255, 255, 255))
    sheet.save(args.output_dir / "over_segmentation.png", optimize=True)


def timed(function: Callable, seconds: dict[str, float], name: str) -> Callable:
    def wrapper(*args, **kwargs):
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - began

    return wrapper


def throughput(args) -> None:
    """Rollouts a second of the processor's time in the trainer's steps, from cached features, and where it goes."""
    usual = (GroupScorer.__call__, MaskSampler.__call__, dict(CREDITS))
    found = []
    for size in args.sizes:
        data = structure_dataset(num_videos=4, frames_per_video=6, size=size, hospital=2, structures=["blood vessel"])
        for policy in ("embedding", "field"):
            options = ModelArguments(model_name_or_path="tiny", grounding_image_size=size)
            model, processor = load_model(options)
            cache = {"cache_features": "on", "cache_dir": str(args.output_dir / f"features-{size}")}
            run = trainer(args, GRPO, {"policy": policy}, data, model, processor, max_steps=args.steps, **cache)
            seconds: dict[str, float] = {}
            GroupScorer.__call__ = timed(usual[0], seconds, "rewards")
            MaskSampler.__call__ = timed(usual[1], seconds, "masks")
            rollouts.CREDITS.update({name: timed(own, seconds, "credit") for name, own in usual[2].items()})
            run.training_step = timed(run.training_step, seconds, "step")
            try:
                run.train()
            finally:
                GroupScorer.__call__, MaskSampler.__call__ = usual[:2]
                rollouts.CREDITS.update(usual[2])
            total = seconds.pop("step")
            row = {"size": size, "policy": policy, "rollouts_per_second": 32 * args.steps / total}
            row |= {name: own / total for name, own in seconds.items()}
            found.append(row)
            print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})
            write_json(args.output_dir / "throughput.json", found)


def main():
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)

    def task(function: Callable) -> argparse.ArgumentParser:
        own = tasks.add_parser(function.__name__, description=function.__doc__)
        own.set_defaults(function=function)
        own.add_argument("--output_dir", required=True, type=Path)
        return own

    own = task(spread)
    own.add_argument("--models", nargs="+", default=["tiny"])
    for own in (task(outcome), task(picture)):
        own.add_argument("--model_name_or_path", required=True, help="SFT checkpoint")
        own.add_argument("--synthetic", type=json.loads, default=GENERATED)
        own.add_argument("--steps", type=int, default=60, help="of the optimizer")
        own.add_argument("--mask_size", type=int, default=128)
    own.add_argument("--row", type=int, default=2)
    own.add_argument("--learning_rate", type=float, default=5e-4)
    own = tasks.choices["outcome"]
    own.add_argument("--dataset_name", default="synthetic", help="with train, validation and test")
    own.add_argument("--arms", nargs="+", choices=list({**ARMS, **SEARCH}), help="all of the table, or of the search")
    own.add_argument("--seeds", type=int, default=3)
    own.add_argument("--learning_rates", type=float, nargs="+", default=[1e-4, 5e-4])
    own.add_argument("--search", action="store_true", help="the recipes' choices, on validation alone")
    own = task(throughput)
    own.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    own.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    args.function(args)


if __name__ == "__main__":
    main()
