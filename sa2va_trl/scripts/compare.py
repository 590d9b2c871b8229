"""
Set evaluations of the same samples beside each other: each run against the one before it, with intervals and tests
that respect patients.

    sa2va-trl compare outputs/eval/stage1 outputs/eval/stage2 --output_dir outputs/comparison
"""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..evaluation import compare, comparison_table
from ..files import write_json
from .arguments import RecipeParser
from .screen import finish, say


@dataclass
class CompareArguments:
    output_dir: str = field(default="outputs/comparison", metadata={"help": "Folder for comparison.json."})
    metric: str = field(
        default="dice", metadata={"help": "Column of per_sample.parquet to compare, higher is better."}
    )
    names: list[str] | None = field(
        default=None, metadata={"help": "Names of the runs, in the order of the folders; the folders' own by default."}
    )
    reference: str | None = field(
        default=None, metadata={"help": "Name of a run to compare all others with, in place of the one before."}
    )


def names_of(folders: list[str], names: list[str] | None) -> list[str]:
    """What the runs are called; folders of one name go by their whole path."""
    if names is None:
        names = [Path(folder).resolve().name for folder in folders]
        names = names if len(set(names)) == len(names) else list(folders)
    elif len(names) != len(folders):
        raise ValueError(f"names: {len(names)} names for {len(folders)} folders.")
    if len(set(names)) < len(names):
        raise ValueError(f"Each run needs a name of its own, got {', '.join(names)}: give other folders or --names.")
    return names


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    parser = RecipeParser((CompareArguments,), prog="sa2va-trl compare", description=__doc__)
    parser.add_argument("evaluations", nargs="+", help="Folders that sa2va-trl evaluate has left, in order.")
    return parser


def main() -> None:
    args, folders = make_parser().parse_args_and_config()
    folders = folders.evaluations
    if len(folders) < 2:
        raise ValueError(f"A comparison needs two or more evaluation folders, got only {folders[0]}.")
    names = names_of(folders, args.names)
    if args.reference is not None and args.reference not in names:
        raise ValueError(f"reference={args.reference!r} is none of the runs {', '.join(names)}.")
    files = [Path(folder) / "per_sample.parquet" for folder in folders]
    if missing := [str(file.parent) for file in files if not file.is_file()]:
        raise ValueError(f"No per_sample.parquet in {', '.join(missing)}: run sa2va-trl evaluate first.")
    tables = {name: pd.read_parquet(file) for name, file in zip(names, files, strict=True)}
    pairs = None if args.reference is None else [(args.reference, name) for name in names if name != args.reference]

    comparison = compare(tables, metric=args.metric, pairs=pairs)
    write_json(Path(args.output_dir) / "comparison.json", comparison)
    say(comparison_table(comparison))
    finish(
        f"{len(tables)} evaluations compared", f"results in {Path(args.output_dir) / 'comparison.json'}", is_shown=True
    )
