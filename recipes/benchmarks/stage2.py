"""
Stage 2, measured: from one SFT checkpoint, nothing, more SFT, SFT with soft clDice, and preference optimisation by
every score, with and without the supervised anchor and the reference; as many optimizer steps each, several seeds.

    python recipes/benchmarks/stage2.py --output_dir outputs/stage2

Each arm has the best of the learning rates on the validation videos (first seed). What the arms reach there and on the
test videos is averaged over seeds frame by frame; differences to the checkpoint are paired, with intervals and
signed-rank tests over patients (Holm over all arms). A run that was ended goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from sa2va_trl import SegDPOConfig, SegDPOTrainer, SegSFTConfig, SegSFTTrainer
from sa2va_trl.data import load_dataset_dict
from sa2va_trl.evaluation import compare, evaluate, predict_probabilities, stored_features
from sa2va_trl.files import write_json
from sa2va_trl.metrics import cldice
from sa2va_trl.preferences.dataset import build_preferences
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


RECIPES = Path(__file__).parents[1]
START = "SFT checkpoint"
ARMS = {
    "SFT continued": (SegSFTTrainer, SegSFTConfig, {"lm_weight": 0.0}),
    "SFT + soft clDice": (SegSFTTrainer, SegSFTConfig, {"lm_weight": 0.0, "cldice_weight": 0.5}),
    **{
        f"DPO {score}{', anchor' if anchor else ''}{'' if reference else ', no reference'}": (
            *(SegDPOTrainer, SegDPOConfig),
            {"score": score, "beta": 5.0, "sft_weight": anchor, "use_reference": reference},
        )
        for score in ("dice", "log_dice", "region")
        for anchor in (0.0, 1.0)
        for reference in (True, False)
        if reference or score == "dice"
    },
}


def scores(model, processor, data, cache: Path) -> pd.DataFrame:
    """Dice and clDice of every validation and test frame."""
    tables = []
    for split in ("validation", "test"):
        features = stored_features(model, processor, data[split], "on", cache, progress=False)
        centrelines = []

        def keep(row, probabilities, sample, into=centrelines):
            into.append(cldice(probabilities[0] > 0.5, np.asarray(row["mask"]) > 0))

        predictions = predict_probabilities(model, processor, data[split], 8, progress=False, features=features)
        table = evaluate(data[split], predictions, on_row=keep)[1]
        tables.append(table.assign(split=split, cldice=centrelines))
    return pd.concat(tables, ignore_index=True)


def run(name: str, args, data, pairs, seed: int, learning_rate: float) -> pd.DataFrame:
    """What one arm leaves: its scores, from the disk if it was run before."""
    file = args.output_dir / "runs" / f"{name.replace(' ', '_').replace(',', '')}-{seed}-{learning_rate}.parquet"
    if file.exists():
        return pd.read_parquet(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    cache = args.output_dir / "features"
    model, processor = load_model(ModelArguments(model_name_or_path=str(args.model_name_or_path)))
    if name in ARMS:
        trainer, config, options = ARMS[name]
        trainer = trainer(
            model=model,
            args=config(
                str(args.output_dir / "trainer"),
                **options,
                trainable="head",
                seed=seed,
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                weight_decay=0.01,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch_size,
                num_points=0,
                mask_size=128,
                mask_weight=1.0,
                dice_weight=1.0,
                gradient_checkpointing=False,
                cache_features="on",
                cache_dir=str(cache),
                save_strategy="no",
                logging_steps=50,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=data["train"] if config is SegSFTConfig else pairs,
            processing_class=processor,
        )
        trainer.train()
        model = trainer.model
    table = scores(model, processor, data, cache)
    table.to_parquet(file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)
    return table


def check_options(args) -> None:
    """Runs on the disk are of the options that they were made with, and of no others."""
    names = ("model_name_or_path", "dataset_name", "synthetic", "steps", "batch_size", "min_gap")
    options, file = {name: getattr(args, name) for name in names}, args.output_dir / "options.json"
    options["model_name_or_path"] = str(args.model_name_or_path)
    if not file.exists():
        write_json(file, options)
    elif changed := [name for name, value in json.loads(file.read_text()).items() if options[name] != value]:
        raise SystemExit(f"{args.output_dir} holds runs with another {', '.join(changed)}: give another output_dir.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--model_name_or_path", type=Path, help="SFT checkpoint; trained first by default")
    parser.add_argument("--dataset_name", default="synthetic", help="with train, validation and test")
    parser.add_argument(
        "--synthetic", type=json.loads, default='{"train_videos": 48, "validation_videos": 12, "test_videos": 24}'
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of the optimizer")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[5e-5, 5e-4])
    parser.add_argument("--min_gap", type=float, default=0.15, help="of a preference pair, in Dice")
    args = parser.parse_args()
    check_options(args)

    made = {} if args.dataset_name != "synthetic" else args.synthetic
    if args.model_name_or_path is None:
        args.model_name_or_path = args.output_dir / "sft"
        if not (args.model_name_or_path / "model.safetensors").exists():
            options = ["--dataset_name", args.dataset_name, "--synthetic", json.dumps(made)]
            options += ["--output_dir", str(args.model_name_or_path)]
            config = RECIPES / "configs/tiny/from_scratch.yaml"
            subprocess.run([sys.executable, RECIPES / "sft.py", "--config", config, *options], check=True)
    data = load_dataset_dict(args.dataset_name, **made)
    model, processor = load_model(ModelArguments(model_name_or_path=str(args.model_name_or_path)))
    pairs = build_preferences(data["train"], model, processor, min_gap=args.min_gap, batch_size=8)
    print(f"{len(pairs)} pairs of {len(data['train'])} training rows have a gap of at least {args.min_gap}.")

    tables, rates = {START: run(START, args, data, pairs, 0, 0.0)}, {}
    for name in args.arms:
        first = {rate: run(name, args, data, pairs, 0, rate) for rate in args.learning_rates}
        chosen = [table[table["split"] == "validation"]["dice"].mean() for table in first.values()]
        rates[name] = args.learning_rates[int(np.argmax(chosen))]
        runs = [first[rates[name]]]
        runs += [run(name, args, data, pairs, seed, rates[name]) for seed in range(1, args.seeds)]
        mean = {metric: np.mean([table[metric] for table in runs], axis=0) for metric in ("dice", "cldice")}
        tables[name] = runs[0].assign(**mean)
        tables[name].attrs["seeds"] = [
            table[table["split"] == "test"]["dice"].mean() - tables[START].query("split == 'test'")["dice"].mean()
            for table in runs
        ]

    against = [(START, name) for name in args.arms]
    found = {
        (split, metric): compare(
            {name: table[table["split"] == split] for name, table in tables.items()}, metric, against
        )
        for split in ("validation", "test")
        for metric in ("dice", "cldice")
    }
    print(
        f"\n{args.steps} steps of {args.batch_size} rows, {args.seeds} seeds; difference to the checkpoint, with 95 %"
    )
    print("interval over patients, p of the signed-rank test (Holm), and the difference of each seed")
    print(
        "| arm | lr | val Dice | test Dice | difference | p | seeds | test clDice |\n|---|---|---|---|---|---|---|---|"
    )
    rows = {entry["after"]: entry for entry in found["test", "dice"]["differences"]}
    for name, table in tables.items():
        means = [found[key]["runs"][name]["mean"] for key in (("validation", "dice"), ("test", "dice"))]
        cells = [name, f"{rates[name]:g}" if name in rates else "", *(f"{value:.4f}" for value in means)]
        if name in rows:
            low, high = rows[name]["ci95"]
            cells += [f"{rows[name]['mean']:+.4f} [{low:+.4f}, {high:+.4f}]", f"{rows[name]['wilcoxon_p_holm']:.3f}"]
            cells += [" ".join(f"{value:+.4f}" for value in table.attrs["seeds"])]
        else:
            cells += ["", "", ""]
        print("| " + " | ".join([*cells, f"{found['test', 'cldice']['runs'][name]['mean']:.4f}"]) + " |")
    best = max(args.arms, key=lambda name: found["validation", "dice"]["runs"][name]["mean"])
    print(f"\nBest on validation: {best}")
    result = {f"{split}_{metric}": value for (split, metric), value in found.items()}
    write_json(args.output_dir / "stage2.json", {"learning_rates": rates, "best_on_validation": best, **result})


if __name__ == "__main__":
    main()
