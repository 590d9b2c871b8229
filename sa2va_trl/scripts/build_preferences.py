"""
Make preference pairs of masks: of every object a better and a worse mask, from a model's own predictions.

    sa2va-trl build_preferences --model_name_or_path tiny --adapter OUT --dataset_name DIR \\
        --dataset_split train --min_gap 0.15 --output_dir outputs/preferences
    sa2va-trl build_preferences --chosen ground_truth stitched --rejected greedy worst …
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from ..data.checks import check_dataset
from ..data.finished import names_nobody
from ..evaluation import stored_features
from ..preferences.dataset import build_preferences, one_object_a_row, save_preferences
from ..preferences.pairs import CHOSEN, REJECTED
from ..preferences.sheets import contact_sheet
from ..rewards import PRESETS, REWARDS, get_reward
from ..sampling import MaskSampler
from .arguments import DataArguments, ModelArguments, RecipeParser
from .commands import command, of_data, of_model
from .loading import get_split, load_data, load_model
from .screen import finish, say


@dataclass
class PreferenceArguments:
    dataset_split: str = field(default="train", metadata={"help": "Split to make pairs of."})
    output_dir: str = field(default="outputs/preferences", metadata={"help": "Folder for the dataset of pairs."})
    chosen: list[str] = field(
        default_factory=lambda: ["ground_truth"], metadata={"help": f"Which masks are preferred: {', '.join(CHOSEN)}."}
    )
    rejected: list[str] = field(
        default_factory=lambda: ["greedy"],
        metadata={"help": f"What the chosen mask is preferred to: {', '.join(REJECTED)}."},
    )
    reward: str = field(
        default="dice",
        metadata={
            "help": f"What makes a mask the better one: {', '.join((*REWARDS, *PRESETS))} or weights: "
            '{"dice": 0.6, "cldice": 0.4}.'
        },
    )
    min_gap: float = field(
        default=0.15, metadata={"help": "Least difference of the rewards of a pair, in the reward's own range."}
    )
    allow_worse: bool = field(default=False, metadata={"help": "Keep pairs whose chosen mask is the worse one."})
    sampler: dict | str | None = field(
        default=None,
        metadata={"help": 'Options of MaskSampler for the candidates of best and worst: {"tokens": false}.'},
    )
    batch_size: int = field(default=8, metadata={"help": "Images in a forward pass."})
    cache_features: str = field(
        default="auto", metadata={"help": "Frozen features: auto (use those that are there), on (compute) or off."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the frozen features; beside the data by default."}
    )
    seed: int = field(default=0, metadata={"help": "Random seed of candidate masks and of drawn faults."})
    num_pictures: int = field(default=8, metadata={"help": "Pairs on the contact sheet."})
    push_to_hub: bool = field(default=False, metadata={"help": "Push the dataset to the Hub as well."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Id of the dataset on the Hub: user/name."})
    hub_private_repo: bool = field(default=True, metadata={"help": "Whether a new repository on the Hub is private."})

    def __post_init__(self):
        get_reward(self.reward)
        if self.sampler is not None:
            options = json.loads(self.sampler) if isinstance(self.sampler, str) else self.sampler
            self.sampler = MaskSampler(**options)
        if self.push_to_hub != (self.hub_dataset_id is not None):
            raise ValueError("push_to_hub and hub_dataset_id go together: give both or neither.")


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (PreferenceArguments, DataArguments, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl build_preferences", description=__doc__)


def main() -> None:
    args, data_args, model_args = make_parser().parse_args_and_config()
    if args.push_to_hub and not names_nobody(data_args.dataset_name):
        raise ValueError(
            f"push_to_hub: rows of {data_args.dataset_name} have the names of its files, patients perhaps, and their "
            "pictures what else those files hold: make a data set of it with prepare_data first, and give that."
        )
    dataset = get_split(load_data(data_args), args.dataset_split, "dataset_split")
    check_dataset(dataset, name=f"{args.dataset_split} split")
    dataset = one_object_a_row(dataset)
    model, processor = load_model(model_args)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    features = stored_features(model, processor, dataset, args.cache_features, args.cache_dir, args.batch_size)
    names = ("chosen", "rejected", "reward", "min_gap", "allow_worse", "sampler", "batch_size", "seed")
    options = {name: getattr(args, name) for name in names}
    pairs = build_preferences(dataset, model, processor, features=features, **options)

    save_preferences(pairs, args.output_dir, args.dataset_split)
    if args.num_pictures > 0:
        contact_sheet(pairs, args.num_pictures).save(Path(args.output_dir) / "pairs.png")
    if args.push_to_hub:
        pairs.push_to_hub(args.hub_dataset_id, split=args.dataset_split, private=args.hub_private_repo)

    table = pairs.select_columns(["pair_kind", "chosen_reward", "rejected_reward"]).to_pandas()
    gaps = (table["chosen_reward"] - table["rejected_reward"]).groupby(table["pair_kind"])
    say(f"{len(pairs)} pairs of {len(dataset)} objects; difference of the rewards ({args.reward}):")
    with pd.option_context("display.width", 119, "display.max_columns", None, "display.precision", 4):
        table = gaps.describe(percentiles=[0.1, 0.5, 0.9]).rename(columns={"count": "pairs"}).astype({"pairs": int})
        say(str(table))
    trained = Path(args.output_dir).parent / "dpo"
    options = {**of_model(model_args), **of_data(data_args), "preferences": args.output_dir, "output_dir": trained}
    finish(
        f"{len(pairs)} pairs of {len(dataset)} objects",
        f"written to {args.output_dir}" + (f", pushed to {args.hub_dataset_id}" if args.push_to_hub else ""),
        f"train on them: {command('dpo', **options)}",
        is_shown=True,
    )
