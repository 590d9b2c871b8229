"""
Set evaluations of the same samples beside each other: each run against the one before it, with intervals and tests
that respect patients. A folder of mask PNGs that another tool has written is scored first, on the data set given.
Folders of one name (--names) are seeds of one run, and are averaged.

    sa2va-trl compare outputs/eval/stage1 outputs/eval/stage2 --output_dir outputs/comparison
    sa2va-trl compare outputs/eval/stage1 MASKS --dataset_name DIR --dataset_split test --names ours theirs
    sa2va-trl compare sft_0 sft_1 sft_2 dpo_0 dpo_1 dpo_2 --names sft sft sft dpo dpo dpo
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from datasets import Dataset

from ..evaluation import compare, comparison_table, evaluate, read_predictions
from ..evaluation.comparison import averaged
from ..evaluation.page import REPORT
from ..evaluation.report import comparison_report
from ..files import write_json
from .arguments import DataArguments, RecipeParser
from .commands import command
from .loading import get_split, load_data
from .reporting import RAW, about, can_report, changed_pictures, hard_runs, remove_report, save_report, sha256
from .screen import finish, say


@dataclass
class CompareArguments:
    output_dir: str = field(default="outputs/comparison", metadata={"help": "Folder for comparison.json."})
    metric: str = field(default="dice", metadata={"help": "Column of numbers of per_sample.parquet to compare."})
    lower_is_better: bool | None = field(
        default=None, metadata={"help": "Which way the metric improves, where its name does not say it."}
    )
    names: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the runs, in the order of the folders; the folders' own by default. Several folders of "
            "one name are its seeds."
        },
    )
    report: bool = field(default=True, metadata={"help": "Leave report.html, a page to look at (extra `report`)."})
    reference: str | None = field(
        default=None, metadata={"help": "Name of a run to compare all others with, in place of the one before."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set to score folders of mask PNGs (SAMPLE_ID.png) on."}
    )
    dataset_split: str | None = field(default=None, metadata={"help": "Its split; test by default."})
    phrase: str | None = field(default=None, metadata={"help": "What its masks show, where the data do not say it."})

    def __post_init__(self):
        if self.dataset_name is None:
            for name in ("dataset_split", "phrase"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no meaning without dataset_name, which mask PNGs are scored on.")


def names_of(folders: list[str], names: list[str] | None) -> list[str]:
    """What the runs are called, a name a folder; folders of one name go by their whole path where none are given."""
    places = [Path(folder).resolve() for folder in folders]
    if repeated := {folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1}:
        raise ValueError(f"{', '.join(sorted(repeated))} is given more than once: each run needs a folder of its own.")
    if names is None:
        names = [place.name for place in places]
        return names if len(set(names)) == len(names) else list(folders)
    if len(names) != len(folders):
        raise ValueError(f"names: {len(names)} names for {len(folders)} folders.")
    if len(set(names)) == 1:
        raise ValueError(f"All folders are seeds of one run, {names[0]}: a comparison needs names of two or more.")
    return names


def scored(folders: list[str], args: CompareArguments) -> list[pd.DataFrame]:
    """
    Args:
        folders (`list[str]`): evaluations, and folders of mask PNGs.
        args (`CompareArguments`): what to score the latter on.

    Returns:
        `list[pandas.DataFrame]`: a table a folder, one row a sample.

    Raises:
        `ValueError`: a folder is neither, or which data its masks belong to is not said, or is said without need.
        `DatasetError`: masks that do not fit the data.
    """
    files = [Path(folder) / "per_sample.parquet" for folder in folders]
    others = [file.parent for file in files if not file.is_file()]
    masks = [folder for folder in others if any(folder.glob("*.png"))]
    if missing := [str(folder) for folder in others if folder not in masks]:
        raise ValueError(f"No per_sample.parquet in {', '.join(missing)}: run sa2va-trl evaluate first.")
    if masks and args.dataset_name is None:
        raise ValueError(
            f"{', '.join(map(str, masks))}: no per_sample.parquet, but mask PNGs. Say which data they are of with "
            "--dataset_name and --dataset_split."
        )
    if not masks and args.dataset_name is not None:
        raise ValueError("dataset_name has no effect: all folders are evaluations, which have been scored.")
    dataset = _dataset(args) if masks else None
    tables = []
    for file in files:
        if file.is_file():
            tables.append(pd.read_parquet(file))
        else:
            tables.append(evaluate(dataset, read_predictions(file.parent, dataset))[1])
    return tables


def _dataset(args: CompareArguments) -> Dataset:
    data = load_data(DataArguments(dataset_name=args.dataset_name, phrase=args.phrase))
    return get_split(data, args.dataset_split or "test", "dataset_split")


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    parser = RecipeParser((CompareArguments,), prog="sa2va-trl compare", description=__doc__)
    parser.add_argument(
        "evaluations", nargs="+", help="Folders that sa2va-trl evaluate has left, or of mask PNGs, in order."
    )
    return parser


def main() -> None:
    args, folders = make_parser().parse_args_and_config()
    folders = folders.evaluations
    if len(folders) < 2:
        raise ValueError(f"A comparison needs two or more evaluation folders, got only {folders[0]}.")
    names = names_of(folders, args.names)
    if args.reference is not None and args.reference not in names:
        raise ValueError(f"reference={args.reference!r} is none of the runs {', '.join(dict.fromkeys(names))}.")
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, table in zip(names, scored(folders, args), strict=True):
        tables.setdefault(name, []).append(table)
    pairs = None if args.reference is None else [(args.reference, name) for name in tables if name != args.reference]

    comparison = compare(tables, args.metric, pairs, args.lower_is_better)
    output = Path(args.output_dir)
    write_json(output / "comparison.json", comparison)
    remove_report(output)
    is_reported = args.report and can_report()
    if is_reported:
        write_report(output, args, dict(zip(folders, names, strict=True)), averaged(tables, args.metric), comparison)
    say(comparison_table(comparison))
    page = f", look at {output / REPORT}" if is_reported else ""
    finish(
        f"{len(tables)} runs compared",
        f"results in {output / 'comparison.json'}{page}",
        f"another metric: {_another(args, folders, tables)}",
        is_shown=True,
    )


def write_report(
    output: Path, args: CompareArguments, names: dict[str, str], tables: dict[str, pd.DataFrame], comparison: dict
) -> None:
    """The page of a comparison; `names` are those of the runs by folder."""
    last = comparison["differences"][-1]
    pair = (last["before"], last["after"])
    values = [tables[name].set_index("sample_id")[args.metric] for name in pair]
    places = tuple(Path(next(folder for folder, own in names.items() if own == name)) for name in pair)
    gallery, threshold, is_raw = changed_pictures(places, pair, *values, comparison["lower_is_better"])
    report = comparison_report(comparison, tables, hard_runs(list(tables.values())[-1]), gallery, pair, threshold)
    found = {"Runs": names, **about([args])}
    files = [file for folder in names if (file := Path(folder) / "per_sample.parquet").is_file()]
    found["Digests"] = {f"{file} (SHA-256)": sha256(file) for file in files}
    subtitle = f"{args.metric} of {', '.join(tables)}" + f" ({RAW})" * (is_raw and any(gallery.values()))
    save_report(output, "Comparison", subtitle, report, found)


def _another(args: CompareArguments, folders: list[str], tables: dict[str, list[pd.DataFrame]]) -> str:
    """This comparison by a metric that the tables have, too."""
    usual = [name for name in ("cldice", "iou", "dice", "j_and_f", "j") if name != args.metric]
    every = [table for own in tables.values() for table in own]
    metric = next((name for name in usual if all(name in table for table in every)), "METRIC")
    kept = ("names", "reference", "dataset_name", "dataset_split", "phrase")
    options = {name: getattr(args, name) for name in kept}
    output = f"{args.output_dir}_{metric}"
    line = command("compare", **options, metric=metric, output_dir=output)
    return line.replace("sa2va-trl compare", shlex.join(["sa2va-trl", "compare", *folders]), 1)
