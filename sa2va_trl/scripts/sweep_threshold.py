"""
Choose the threshold on one split and report on another what it gains over 0.5: every threshold in one pass, beside
rules that take one for every image, with temperature scaling.

    sa2va-trl sweep_threshold --model_name_or_path MODEL --dataset_name DIR --output_dir outputs/thresholds
    sa2va-trl sweep_threshold --model_name_or_path BASE --adapter OUT --dataset_name DIR --store
    sa2va-trl sweep_threshold --predictions_dir PROBABILITIES --dataset_name DIR

PROBABILITIES holds a map of every sample of both splits, SAMPLE_ID.npy or grey SAMPLE_ID.png. Masks, which have been
through a threshold already, are refused.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..adapters.mask_options import store_mask_options
from ..errors import DatasetError
from ..evaluation.calibration import Calibration, TemperatureScaling
from ..evaluation.threshold_plots import draw_curves, draw_reliability
from ..evaluation.thresholds import SWEPT, SortedMap, best_threshold, curves, rule_table, sweep, tempered
from ..files import write_json
from .arguments import ComparedDataArguments, DataArguments, ModelArguments, RecipeParser
from .choosing import check_maps, chosen_and_reported, gain_in_short, gain_in_words, maps_of, place_to_store
from .commands import command, of_data, of_model
from .screen import finish, say


@dataclass
class SweepArguments:
    choose_split: str = field(default="validation", metadata={"help": "Split to choose threshold and temperature on."})
    dataset_split: str = field(default="test", metadata={"help": "Split to report on."})
    output_dir: str = field(default="outputs/thresholds", metadata={"help": "Folder for the results."})
    predictions_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of probability maps named by sample_id, npy or grey PNG, in place of a model."},
    )
    store: bool = field(
        default=False,
        metadata={"help": "Store threshold and temperature in the folder of the adapter, or else of the model."},
    )
    batch_size: int = field(default=8, metadata={"help": "Images in a forward pass."})
    cache_features: str = field(
        default="auto", metadata={"help": "Frozen features: auto (use those that are there), on (compute) or off."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the frozen features; beside the data by default."}
    )

    def __post_init__(self):
        if self.choose_split == self.dataset_split:
            raise ValueError(
                f"choose_split={self.choose_split!r} is the split to report on: choose the threshold on another, or "
                "the result flatters it."
            )
        if self.predictions_dir is not None and (self.cache_features != "auto" or self.cache_dir is not None):
            raise ValueError("cache_features and cache_dir have no meaning with predictions_dir: no model runs.")
        if self.predictions_dir is not None and self.store:
            raise ValueError("store has no meaning with predictions_dir: there is no model to store a threshold in.")


def say_table(lines: list[dict]) -> None:
    """The rules, a line each, with the gain in Dice over 0.5."""
    width = max(len(line["rule"]) for line in lines)
    say(f"{'rule':<{width}}" + "".join(f"{name:>11}" for name in SWEPT) + "   Dice - that of 0.5 [95 %]")
    for line in lines:
        means = "".join(f"{line[name]['mean']:>11.4f}" for name in SWEPT)
        say(f"{line['rule']:<{width}}{means}   {gain_in_short(line['gain'])}".rstrip())


def what_next(
    args: SweepArguments, data_args: DataArguments, model_args: ModelArguments, threshold: float, own: dict
) -> str | None:
    """A command for what can be done next; none for maps of another tool."""
    if args.predictions_dir is not None:
        return None
    split = None if args.dataset_split == "test" else args.dataset_split
    options = {} if args.store else {"threshold": threshold}
    if own["mask_postprocessing"] and not args.store:  # which was chosen for another threshold
        options["postprocessing"] = "none"
    evaluate = command("evaluate", **of_model(model_args), **of_data(data_args), dataset_split=split, **options)
    return f"score it in full: {evaluate}"


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (SweepArguments, ComparedDataArguments, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl sweep_threshold", description=__doc__)


def main() -> None:
    args, data_args, model_args = make_parser().parse_args_and_config()
    check_maps(args.predictions_dir)
    folder, has_matplotlib = place_to_store(model_args) if args.store else None, find_spec("matplotlib") is not None
    chosen_on, reported = splits = chosen_and_reported(data_args, args.choose_split, args.dataset_split)
    own, predictions = maps_of(args, model_args, splits)

    # Choose
    scaling = TemperatureScaling()
    first = sweep(predictions(chosen_on), on_map=scaling.add)
    if not scaling.positive[0]:
        raise DatasetError(
            f"choose_split={args.choose_split!r}: the masks are all empty, so the best threshold is one that draws "
            "nothing. Choose on a split with something to find."
        )
    temperature, chosen = scaling.fit(), best_threshold(first)

    # Report
    before, after = Calibration(), Calibration(temperature)

    def count(ordered: SortedMap) -> None:
        before.add(ordered)
        after.add(ordered)

    second = sweep(predictions(reported), temperature=temperature, on_map=count)
    table = rule_table(second, chosen["threshold"], args.choose_split)
    # Of the model's logits, where it had a temperature already, and of the probabilities at the new one.
    stored = {
        "mask_threshold": float(tempered(chosen["threshold"], temperature)),
        "mask_temperature": own["mask_temperature"] * temperature,
        "mask_postprocessing": {},
    }
    output = Path(args.output_dir)
    both = {args.choose_split: curves(first), args.dataset_split: curves(second)}
    calibration = {"temperature": temperature, "before": before.report(), "after": after.report()}
    content = {
        "choose_split": args.choose_split,
        "dataset_split": args.dataset_split,
        "chosen": chosen,
        "to_store": stored,
        "model": own,
        "thresholds": list(first.thresholds),
        "curves": both,
        "rules": table,
        "calibration": calibration,
    }
    write_json(output / "thresholds.json", content)
    if has_matplotlib:
        draw_curves(output / "curves.png", list(first.thresholds), both, chosen)
        titles = {"as they are": before.report(), f"at temperature {temperature:.2f}": after.report()}
        draw_reliability(output / "reliability.png", titles)

    low, high = chosen["ci95"]
    span = "" if low is None else f"; resamples choose {low:g} to {high:g} (95 %)"
    say(
        f"{args.choose_split} split, {chosen['n']} images: Dice {chosen['value']:.4f} at {chosen['threshold']:g}{span}"
    )
    say(f"{args.dataset_split}, {len(second.samples)} images:")
    say_table(table)
    say(
        f"temperature {temperature:.3f}, fitted on {args.choose_split}; on {args.dataset_split} ECE {before.ece:.4f} "
        f"-> {after.ece:.4f}, Brier {before.brier:.4f} -> {after.brier:.4f}"
    )
    say(f"gain of {chosen['threshold']:g} over 0.5, Dice on {args.dataset_split}: {gain_in_words(table[1]['gain'])}")
    if own["mask_postprocessing"]:
        dropped = "; --store drops it: search_postprocessing chooses it anew" if args.store else ""
        say(f"All without the post-processing that is stored, which was chosen for another threshold{dropped}.")
    if not has_matplotlib:
        say("No pictures of the curves: they need matplotlib, pip install 'sa2va_trl[report]'.")
    wrote = f"results in {output}"
    if folder is not None:
        file = store_mask_options(folder, **stored)
        wrote += (
            f"; stored in {file}: threshold {stored['mask_threshold']:.4g} at temperature "
            f"{stored['mask_temperature']:.4g}, which draws the masks of {chosen['threshold']:g} as before"
        )
    finish(
        f"threshold {chosen['threshold']:g}: Dice {table[1]['gain']['mean']:+.4f} on {args.dataset_split}",
        wrote,
        what_next(args, data_args, model_args, chosen["threshold"], own),
        is_shown=True,
    )
