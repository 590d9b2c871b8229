"""
Choose threshold and post-processing together on one split, and report on another what they gain: smallest components,
closing, a second threshold, bridges over gaps and, of clips, smoothing in time.

    sa2va-trl search_postprocessing --model_name_or_path MODEL --dataset_name DIR --output_dir outputs/postprocessing
    sa2va-trl search_postprocessing --model_name_or_path BASE --adapter OUT --dataset_name DIR --store
    sa2va-trl search_postprocessing --predictions_dir PROBABILITIES --dataset_name DIR

PROBABILITIES holds a map of every sample of both splits, SAMPLE_ID.npy or grey SAMPLE_ID.png. Masks, which have been
through a threshold already, are refused.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from ..adapters.mask_options import store_mask_options
from ..errors import DatasetError
from ..evaluation.postprocessing import (
    CLIPS,
    METRICS,
    SPACE,
    THRESHOLDS,
    Candidate,
    Choice,
    choose,
    gains,
    make_candidates,
)
from ..files import write_json
from .arguments import ComparedDataArguments, DataArguments, ModelArguments, RecipeParser
from .choosing import check_maps, chosen_and_reported, gain_in_short, gain_in_words, maps_of, place_to_store
from .commands import command, of_data, of_model
from .mask_drawing import has_clips
from .screen import finish, say


@dataclass
class SearchArguments:
    choose_split: str = field(default="validation", metadata={"help": "Split to choose on."})
    dataset_split: str = field(default="test", metadata={"help": "Split to report on."})
    output_dir: str = field(default="outputs/postprocessing", metadata={"help": "Folder for the results."})
    predictions_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of probability maps named by sample_id, npy or grey PNG, in place of a model."},
    )
    store: bool = field(
        default=False,
        metadata={"help": "Store threshold and setting in the folder of the adapter, or else of the model."},
    )
    metric: str = field(default="dice", metadata={"help": "What to choose by: dice or cldice."})
    thresholds: list[float] = field(
        default_factory=lambda: list(THRESHOLDS), metadata={"help": "Thresholds to try; 0.5 is tried anyway."}
    )
    hysteresis: list[float] = field(
        default_factory=lambda: list(SPACE["hysteresis"]),
        metadata={"help": "Lower thresholds to try, each a share of the threshold; 1 is none."},
    )
    closing_radius: list[int] = field(
        default_factory=lambda: list(SPACE["closing_radius"]), metadata={"help": "Radii of closing to try, in pixels."}
    )
    bridge_length: list[int] = field(
        default_factory=lambda: list(SPACE["bridge_length"]),
        metadata={"help": "Lengths of gaps to bridge to try, in pixels."},
    )
    min_share: list[float] = field(
        default_factory=lambda: list(SPACE["min_share"]),
        metadata={"help": "Sizes of the smallest component to try, each a share of the image's area."},
    )
    smooth_clips: bool = field(
        default=True, metadata={"help": "Try to smooth in time too, where choose_split has clips."}
    )
    seed: int = field(default=0, metadata={"help": "Of the order in which patients join the search."})
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
                f"choose_split={self.choose_split!r} is the split to report on: choose on another, or the result "
                "flatters it."
            )
        if self.metric not in METRICS:
            raise ValueError(f"metric must be {' or '.join(METRICS)}, got {self.metric!r}.")
        if self.predictions_dir is not None and (self.cache_features != "auto" or self.cache_dir is not None):
            raise ValueError("cache_features and cache_dir have no meaning with predictions_dir: no model runs.")
        if self.predictions_dir is not None and self.store:
            raise ValueError("store has no meaning with predictions_dir: there is no model to store a setting in.")
        self.candidates(has_clips=False)  # so that a bad value is named at once

    def candidates(self, has_clips: bool) -> list[Candidate]:
        """What to try; the identity is always among it."""
        thresholds = [*self.thresholds, 0.5]
        space = {name: getattr(self, name) for name in SPACE}
        clips = CLIPS if has_clips and self.smooth_clips else ({},)
        alone = make_candidates(thresholds, {})
        some = [one for one in make_candidates(thresholds, space, clips) if not one.settings.is_identity]
        return [*alone, *some]


def setting(line: dict | Candidate) -> str:
    """A threshold with its post-processing, to read."""
    if isinstance(line, Candidate):
        return f"{line.threshold:g}, {line.settings}"
    return f"{line['threshold']:g}, {json.dumps(line['postprocessing']) if line['postprocessing'] else 'none'}"


def say_table(lines: list[dict], metric: str) -> None:
    """What was chosen, a line each, with its gain over 0.5 and over the best threshold alone."""
    titles = {"0.5": "0.5", "threshold": "threshold", "postprocessing": "post-processing", "both": "both"}
    columns = "".join(f"{name:>9}" for name in METRICS)
    say(f"{'':<16}{columns}   {metric} - that of 0.5 [95 %]      - that of the threshold")
    for line in lines:
        shown = [gain_in_short(line[name]) for name in ("gain", "gain_over_threshold")]
        means = "".join(f"{line[name]['mean']:>9.4f}" for name in METRICS)
        say(f"{titles[line['name']]:<16}{means}   {shown[0]:<27} {shown[1]:<27} {setting(line)}".rstrip())


def in_json(choice: Choice) -> dict:
    """A choice, with the rounds that led to it."""
    rounds = [
        {"candidates": len(one.candidates), "images": one.images, "clusters": one.clusters, "best": one.means[0]}
        for one in choice.found.rounds
    ]
    return {
        "threshold": choice.one.threshold,
        "postprocessing": choice.one.settings.to_dict(),
        "value": choice.value,
        "searched": choice.searched,
        "scored": choice.found.scored,
        "rounds": rounds,
    }


def what_next(
    args: SearchArguments, data_args: DataArguments, model_args: ModelArguments, one: Candidate
) -> str | None:
    """A command for what can be done next; none for maps of another tool."""
    if args.predictions_dir is not None:
        return None
    split = None if args.dataset_split == "test" else args.dataset_split
    options = {}
    if not args.store:
        drawn = "none" if one.settings.is_identity else str(one.settings)
        options = {"threshold": one.threshold, "postprocessing": drawn}
    own = {**of_model(model_args), **of_data(data_args)}
    return f"score it in full: {command('evaluate', **own, dataset_split=split, **options)}"


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (SearchArguments, ComparedDataArguments, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl search_postprocessing", description=__doc__)


def main() -> None:
    args, data_args, model_args = make_parser().parse_args_and_config()
    check_maps(args.predictions_dir)
    folder = place_to_store(model_args) if args.store else None
    chosen_on, reported = splits = chosen_and_reported(data_args, args.choose_split, args.dataset_split)
    own, predictions = maps_of(args, model_args, splits)

    candidates = args.candidates(has_clips(chosen_on))
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with tqdm(desc="search", unit="row") as bar:
        options = {"metric": args.metric, "seed": args.seed, "progress": lambda *_: bar.update()}
        try:
            choices = choose(predictions(chosen_on), candidates, folder=output, **options)
        except DatasetError as error:
            raise DatasetError(f"choose_split={args.choose_split!r}: {error}") from error
    table = gains(predictions(reported), choices, args.metric)
    best = choices["both"].one
    stored = {
        "mask_threshold": best.threshold,
        "mask_temperature": own["mask_temperature"],
        "mask_postprocessing": best.settings.to_dict(),
    }
    content = {
        "choose_split": args.choose_split,
        "dataset_split": args.dataset_split,
        "metric": args.metric,
        "chosen": {name: in_json(choice) for name, choice in choices.items()},
        "to_store": stored,
        "model": own,
        "table": table,
    }
    write_json(output / "postprocessing.json", content)

    count = len(choices["both"].found.values[0])
    say(f"{args.choose_split} split, {count} images, {len(candidates)} candidates; chosen by {args.metric}:")
    for name, choice in choices.items():
        say(f"  {name}: {choice.value:.4f} at {setting(choice.one)}")
    say(f"{args.dataset_split}, {table[0]['dice']['n']} images:")
    say_table(table, args.metric)
    say(f"over the threshold alone, {args.metric}: {gain_in_words(table[-1]['gain_over_threshold'])}")
    wrote = f"results in {output}"
    if folder is not None:
        wrote += f"; stored in {store_mask_options(folder, **stored)}: {setting(best)}"
    finish(
        f"post-processing: {args.metric} {table[-1]['gain']['mean']:+.4f} on {args.dataset_split} over 0.5",
        wrote,
        what_next(args, data_args, model_args, best),
        is_shown=True,
    )
