"""
Look at data before anything is trained on them: images with their masks as they are fed, sizes, areas, phrases, what
splits share, images that are there twice, rows that are odd.

    sa2va-trl inspect --dataset_name DIR --output_dir outputs/inspection
    sa2va-trl inspect --dataset_name DIR --augmentation '{"rotation": 15, "gamma": 0.3}'
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from tqdm import tqdm

from ..data.augment import Augmentation
from ..data.checks import check_dataset
from ..data.inspection import data_report, inspect_rows
from ..data.layout import normalize_row
from ..errors import DatasetError
from ..evaluation.data_report import data_sections
from ..evaluation.gallery import jpeg
from ..evaluation.overlays import overlay
from ..evaluation.page import REPORT
from ..files import write_json
from .arguments import DataArguments, RecipeParser
from .loading import load_data
from .reporting import about, can_report, check_report_pictures, remove_report, save_report
from .screen import finish, say


RESULT = "dataset_report.json"


@dataclass
class InspectArguments:
    output_dir: str = field(default="outputs/inspection", metadata={"help": "Folder for the results."})
    num_pictures: int = field(default=24, metadata={"help": "Images to show, spread over the splits."})
    grounding_image_size: int = field(default=1024, metadata={"help": "Side of the square that the model is fed."})
    augmentation: dict | str | None = field(
        default=None, metadata={"help": 'As in training: {"flip": 0.5, "rotation": 15}; shown on rows of train.'}
    )
    near_duplicates: float = field(
        default=0.98, metadata={"help": "Correlation of thumbnails from which on images of two splits look alike."}
    )
    seed: int = field(default=0, metadata={"help": "Random seed of the augmentation."})
    report_pictures: str = field(
        default="embedded", metadata={"help": "Images of the page: embedded, or beside it in report_pictures/."}
    )

    def __post_init__(self):
        check_report_pictures(self.report_pictures)
        if isinstance(self.augmentation, str):
            self.augmentation = json.loads(self.augmentation)
        try:
            Augmentation(**(self.augmentation or {}))
        except TypeError as error:
            raise ValueError(
                f"augmentation takes {', '.join(vars(Augmentation()))}; got {self.augmentation}."
            ) from error
        if self.num_pictures < 0:
            raise ValueError(f"num_pictures must not be negative, got {self.num_pictures}.")
        if self.grounding_image_size < 1:
            raise ValueError(f"grounding_image_size must be positive, got {self.grounding_image_size}.")
        if not 0 < self.near_duplicates <= 1:
            raise ValueError(f"near_duplicates must lie in (0, 1], got {self.near_duplicates}.")


def fed_pictures(data: DatasetDict, args: InspectArguments) -> list[tuple[bytes, str]]:
    """Images beside themselves with their masks drawn on them, as the model is fed them, and captions."""
    augmentation, rng = Augmentation(**(args.augmentation or {})), np.random.default_rng(args.seed)
    share, found = -(-args.num_pictures // len(data)), []
    for split, dataset in data.items():
        for place in np.unique(np.linspace(0, len(dataset) - 1, min(share, len(dataset))).round().astype(int)):
            row = dataset[int(place)]
            read = normalize_row(row)
            if not read["images"]:
                continue
            images, masks = read["images"], read["masks"]
            if split == "train":
                images, masks = augmentation(images, masks, rng)
            size = (args.grounding_image_size,) * 2
            own = [np.asarray(mask.resize(size)) > 0 for mask in masks[:: len(images)]]
            drawn = overlay(images[0].resize(size), np.any(own, axis=0) if own else np.zeros(size, dtype=bool))
            drawn.thumbnail((768, 384))
            words = ", ".join(read["phrases"] or ["(a conversation)"])
            width, height = read["images"][0].size
            found.append((jpeg(drawn), f"{split}/{row['sample_id']}: {words} ({width} x {height})"))
    return found


def inspect_split(dataset: Dataset, split: str) -> tuple[list[dict], list[np.ndarray]]:
    """Facts and thumbnails of the rows of a split, which are checked first."""
    check_dataset(dataset, name=split)
    facts, thumbnails = [], []
    for own, thumbnail in tqdm(inspect_rows(dataset, split), total=len(dataset), desc=f"inspect {split}"):
        facts.append(own)
        thumbnails.append(thumbnail)
    return facts, thumbnails


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    return RecipeParser((InspectArguments, DataArguments), prog="sa2va-trl inspect", description=__doc__)


def main() -> None:
    args, data_args = make_parser().parse_args_and_config()
    data, output = load_data(data_args), Path(args.output_dir)
    facts, thumbnails = [], []
    for split, dataset in data.items():
        own, small = inspect_split(dataset, split)
        facts += own
        thumbnails += small
    if not facts:
        raise DatasetError(f"{data_args.dataset_name} has no row with an image, so there is nothing to look at.")
    rows = pd.DataFrame(facts)
    report = data_report(rows, np.stack(thumbnails), args.near_duplicates)
    write_json(output / RESULT, report)
    remove_report(output)
    is_reported = can_report()
    if is_reported:
        side, changed = args.grounding_image_size, f"rows of train after {args.augmentation}"
        fed = f"After EXIF, squeezed to {side} x {side} pixels as SAM 2 is fed; "
        fed += f"{changed if args.augmentation else 'nothing is augmented'}."
        page = data_sections(rows, report, fed_pictures(data, args), fed), {}
        title, found = f"Data: {data_args.dataset_name}", about([args, data_args])
        save_report(output, title, f"{len(rows)} rows", page, found, pictures=args.report_pictures)
    for split, own in report["splits"].items():
        groups = "".join(f", {own[name]} {name}" for name in ("patients", "videos") if name in own)
        say(f"{split}: {own['rows']} rows{groups}")
    over = [own for own in report["duplicates"] if own["over_splits"]]
    for shared in report["shared"]:
        say(f"WARNING: {' and '.join(shared['splits'])} share {len(shared['values'])} {shared['column']}")
    say(f"{len(over)} images are in several splits, {len(report['near_duplicates'])} pairs of other splits look alike")
    place = output / (REPORT if is_reported else RESULT)
    odd = f"{len(report['suspicious'])} of {len(rows)} rows should be looked at"
    finish(odd, f"results in {output}", f"look at {place}", is_shown=True)
