"""
Train and evaluate in folds: the patients are divided, each part is held out once while a model is trained on the
others, and the evaluations of all parts are pooled, so that every image is scored by a model that has not seen its
patient. Several configurations are compared fold by fold.

    sa2va-trl cross_validate --config tiny/sft --folds 5
    sa2va-trl cross_validate --configs A.yaml B.yaml --dataset_name DIR --folds 5 --output_dir OUT

--config names the YAML of a training task, or its short name; options that are not listed here are options of that
task (sa2va-trl sft --help), and hold for all configurations. Every step is a run of another task; log.txt has its
command and all that it prints. One that was ended is taken up at its last checkpoint, and one that is done is not run
again.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
from datasets import DatasetDict

from ..data import check_dataset, check_no_leakage
from ..evaluation import aggregate, compare, comparison_table
from ..evaluation.candidate_questions import phrases_in
from ..evaluation.gallery import Picture, read_changed, read_kept
from ..evaluation.page import REPORT, Section, Words, shown
from ..evaluation.pooling import CAUTION, FOLD, fold_section, fold_table, pool
from ..evaluation.report import comparison_report, evaluation_report
from ..evaluation.results import save_results
from ..files import replaced_together, write_json
from ..metrics import ALL_METRICS, LOWER_IS_BETTER, METRICS
from ..trainers.base_config import SegArguments
from . import evaluate
from .arguments import DataArguments, RecipeParser, SplitArguments
from .commands import command, flags
from .config_files import shortest_name
from .configurations import TRAININGS, Training, cautions, of_trained, read_line, read_trainings
from .folds import (
    Folds,
    digest_of,
    in_words,
    make_folds,
    pooled_rows,
    record_folds,
    with_masks,
    write_folds,
    write_pairs,
)
from .loading import get_split, load_data
from .mask_drawing import check_clips
from .reporting import RAW, SAMPLES, about, can_report, hard_runs, kept_at, logs_of, remove_report, save_report
from .screen import finish, say
from .steps import Steps


CONFIG = "YAML of a training task, a file or a name such as tiny/sft; what cross_validate itself takes is not in it."
SHARE = 0.15
TEST = "test"  # the split that folds leave alone
# Of `evaluation`: what cross_validate decides.
DECIDED = (
    "model_name_or_path model_revision adapter dataset_name synthetic phrase dataset_split output_dir predictions_dir "
    "keep_pictures report report_pictures num_pictures num_overlays ensemble router_model router_adapter route_split"
).split()


@dataclass
class CrossValidateArguments:
    configs: list[str] | None = field(
        default=None, metadata={"help": "Several of what --config takes, to be compared with the first."}
    )
    names: list[str] | None = field(
        default=None, metadata={"help": "What they are called, in their order; after their files by default."}
    )
    task: str | None = field(
        default=None,
        metadata={"help": "What trains: sft, dpo or hard_sample; what the YAML is called after by default, else sft."},
    )
    folds: int = field(default=5, metadata={"help": "Parts that the patients are divided into."})
    by: str | None = field(
        default=None,
        metadata={"help": "Column to divide by; patient_id by default where known, or else video_id or sample_id."},
    )
    splits: list[str] | None = field(
        default=None,
        metadata={"help": "Splits whose rows are pooled and divided; by default those that training would use."},
    )
    validation_share: float | None = field(
        default=None,
        metadata={
            "help": "Of the rows that a fold may learn from, those to choose the checkpoint by, of patients of their "
            f"own; {SHARE} by default where eval_strategy asks for any."
        },
    )
    output_dir: str = field(
        default="outputs/cross_validation", metadata={"help": "Folder for all that the steps leave."}
    )
    seed: int = field(default=0, metadata={"help": "Random seed of the folds and of every training."})
    launcher: str = field(default="", metadata={"help": 'What starts training: "accelerate launch --config_file …".'})
    only_fold: int | None = field(
        default=None, metadata={"help": "Run this fold alone, from 0 on; the results are pooled by a call without."}
    )
    metric: str = field(default="dice", metadata={"help": "Metric of the tables and of the comparison."})
    evaluation: dict | str | None = field(
        default=None, metadata={"help": 'Options of sa2va-trl evaluate: {"metrics": "all"}.'}
    )
    ensemble: bool = field(
        default=False,
        metadata={"help": "Also score the folds' models, each alone and as an ensemble, on the test split."},
    )
    num_pictures: int = field(
        default=12, metadata={"help": "Pictures in the page of the worst images, and of those that changed most."}
    )

    def __post_init__(self):
        if self.task is not None and self.task not in TRAININGS:
            raise ValueError(f"task must be one of {', '.join(TRAININGS)}, got {self.task!r}.")
        if self.folds < 2:
            raise ValueError(f"folds must be 2 or more, got {self.folds}.")
        if self.only_fold is not None and not 0 <= self.only_fold < self.folds:
            raise ValueError(f"only_fold must be one of 0 to {self.folds - 1}, got {self.only_fold}.")
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must lie between 0 and 1, got {self.validation_share}.")
        if self.num_pictures < 0:
            raise ValueError(f"num_pictures must not be negative, got {self.num_pictures}.")
        self.evaluation = read_evaluation({} if self.evaluation is None else self.evaluation)
        every = self.evaluation.get("metrics") == "all"
        if self.metric not in (ALL_METRICS if every else METRICS):
            more = ', or with --evaluation \'{"metrics": "all"}\' of all' if self.metric in ALL_METRICS else ""
            raise ValueError(f"metric={self.metric!r} is none of {', '.join(METRICS)}{more}.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("Start cross_validate in one process; its option `launcher` starts the training steps.")


def read_evaluation(given: str | dict) -> dict:
    """
    Options of every evaluation, read as `evaluate` itself reads them, before anything is trained.

    Args:
        given (`str` or `dict`): by name, as JSON or as they are.

    Returns:
        `dict`.

    Raises:
        `ValueError`: no names with values, names that there are not or that cross_validate decides, values out of
            range.
        `SystemExit`: values that evaluate cannot read, which has been said.
    """
    try:
        options = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ValueError(f"evaluation must be JSON, got {given!r}: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'evaluation must be names with values such as {{"metrics": "all"}}, got {given!r}.')
    if decided := [name for name in DECIDED if name in options]:
        raise ValueError(f"evaluation: {', '.join(decided)} cannot be set there, cross_validate decides it.")
    if options.get("protocol") is not None:
        raise ValueError(
            "evaluation: protocol cannot be set there, folds are compared by metrics of single masks. Evaluate the "
            "folds' models by the protocol afterwards."
        )
    parser = evaluate.make_parser()
    known = [entry.name for kind in parser.dataclass_types for entry in fields(kind)]
    for name in options:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f", did you mean {nearest[0]}?" if nearest else "."
            raise ValueError(f"evaluation: sa2va-trl evaluate has no option {name}{hint}")
    line = flags({**options, "model_name_or_path": "MODEL"})  # (that of a fold, which is not there yet)
    try:
        args, _, _, router_args, averaging, _ = parser.parse_args_into_dataclasses(line, look_for_args_file=False)
        evaluate.check_router(args, router_args)
        evaluate.check_averaging(args, router_args, averaging)
    except ValueError as error:
        raise ValueError(f"evaluation: {error}") from error
    return options


def pictures(
    output: Path, pooled: dict[str, pd.DataFrame], metric: str, count: int
) -> tuple[dict[str, list[Picture]], float, bool]:
    """
    The worst images of the last configuration, and of several those that changed most from the first to it, as the
    evaluations of the folds have kept them; the threshold that they were evaluated at; and whether any evaluation has
    post-processed its masks, which the pictures do not show.
    """
    first, last = next(iter(pooled)), list(pooled)[-1]
    values = {name: table.set_index("sample_id")[metric] for name, table in pooled.items()}
    folds = pooled[last].set_index("sample_id")[FOLD]
    lower = metric in LOWER_IS_BETTER
    names = list(dict.fromkeys((first, last)))
    orders = {"Worst": values[last].dropna().sort_values(ascending=not lower, kind="stable")}
    if len(names) > 1:
        gain = (values[first] - values[last] if lower else values[last] - values[first]).dropna()
        gain = gain.sort_values(kind="stable")
        orders |= {"Most improved": gain[gain > 0][::-1], "Most worsened": gain[gain < 0]}
    places = {fold: [output / fold / name / "evaluation" / SAMPLES for name in names] for fold in dict.fromkeys(folds)}
    kept = [kept_at(place) for own in places.values() for place in own]
    thresholds = sorted({threshold for threshold, _ in kept})
    if len(thresholds) > 1:
        say(f"The folds were evaluated at different thresholds ({', '.join(map(str, thresholds))}): no pictures.")
        return {}, 0.5, False
    found = {}
    for title, order in orders.items():
        found[title] = []
        for sample in order.index[:count]:
            own = places[folds[sample]]
            facts = {name: float(values[name][sample]) for name in names} | {"held out in": folds[sample]}
            picture = read_kept(own[0], sample, facts) if len(own) == 1 else read_changed(tuple(own), sample, facts)
            found[title] += [picture] if picture is not None else []
    return found, thresholds[0], any(is_processed for _, is_processed in kept)


def in_one_line(metric: str, found: dict) -> str:
    """A mean with its interval."""
    if found["mean"] is None:
        return f"{metric} is not defined of any image"
    low, high = found["ci95"]
    interval = "" if low is None else f", 95 % interval {low:.4f} to {high:.4f}"
    return f"{metric} {found['mean']:.4f}{interval}, {found['n']} images"


def chosen(trainings: list[Training], metrics: dict[str, dict], metric: str) -> Training:
    """The training with the best mean."""
    means = {training.name: metrics[training.name][metric]["mean"] for training in trainings}
    known = [training for training in trainings if means[training.name] is not None] or trainings
    better = min if metric in LOWER_IS_BETTER else max
    return better(known, key=lambda training: means[training.name] or 0.0)


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    parser = RecipeParser((CrossValidateArguments,), prog="sa2va-trl cross_validate", description=__doc__)
    parser.config_help = CONFIG
    return parser


def read_options() -> tuple[CrossValidateArguments, list[Training]]:
    """
    The options of the task, and what it trains. (`--config` is a YAML of a training task, and not of this one.)

    Raises:
        `ValueError`: as [`~scripts.configurations.read_trainings`], or options of this task are out of range or
            spelled wrongly.
    """
    line = sys.argv[1:]
    for place, part in enumerate(line):
        name, equals, value = part.partition("=")
        if name == "--config":
            line[place] = "--configs" + equals + value
    args, others = make_parser().parse_args_and_config(line, return_remaining_strings=True)
    given, own = read_line(others), [entry.name for entry in fields(CrossValidateArguments)]
    for name in given:
        if nearest := get_close_matches(name, own, n=1, cutoff=0.85):
            raise ValueError(f"there is no option --{name}, did you mean --{nearest[0]}?")
    return args, read_trainings(args.configs or [], args.names, args.task, given, args.output_dir)


def digests_of_pairs(trainings: Sequence[Training]) -> dict[str, str]:
    """By data set, what tells the preference pairs apart that the folds choose theirs of."""
    found = {}
    for training in trainings:
        if (name := training.preferences) is not None:
            split = training.part(SplitArguments).dataset_train_split
            pairs = get_split(load_data(DataArguments(name)), split, "dataset_train_split")
            check_dataset(pairs, name=name)
            found[f"{name} ({split})"] = digest_of(pairs)
    return found


def run_folds(
    run: Steps, args: CrossValidateArguments, trainings: list[Training], folds: Folds, scored: dict
) -> dict[str, dict[str, pd.DataFrame]]:
    """
    Train and evaluate, fold by fold.

    Args:
        run (`Steps`): what runs the steps.
        args (`CrossValidateArguments`): with `only_fold`, that one alone.
        trainings (`list[Training]`): what is trained.
        folds (`Folds`): written to `output_dir`.
        scored (`dict`): options of every evaluation.

    Returns:
        `dict[str, dict[str, pandas.DataFrame]]`: by name of the training and of the fold, a row a sample.
    """
    output, tables = Path(args.output_dir), {training.name: {} for training in trainings}
    for number in range(args.folds) if args.only_fold is None else [args.only_fold]:
        for training in trainings:
            place, split_args = f"fold{number}/{training.name}", training.part(SplitArguments)
            data = {"dataset_name": str(output / f"fold{number}" / "data"), "synthetic": {}}
            options = {"config": training.config, **training.given, **data, "seed": args.seed}
            options["dataset_train_split"] = "train"
            if training.chooses:
                options["dataset_eval_split"] = "validation"
            if (name := training.preferences) is not None:
                pairs, folder = load_data(DataArguments(name)), output / f"fold{number}" / "pairs" / training.name
                write_pairs(folder, pairs, name, split_args.dataset_train_split, folds, number)
                options["preferences"] = str(folder)
            model = of_trained(training, run(place, training.task, options, train=True))
            own = {**model, **data, **scored, "dataset_split": "test", "keep_pictures": True}
            folder = run(f"{place}/evaluation", "evaluate", own)
            tables[training.name][f"fold{number}"] = pd.read_parquet(folder / "per_sample.parquet")
    return tables


def run_ensembles(
    run: Steps, args: CrossValidateArguments, trainings: list[Training], data: dict, scored: dict
) -> dict:
    """
    Score the folds' models on the split that none of them has seen: each alone, and all as an ensemble.

    Args:
        run (`Steps`), args (`CrossValidateArguments`), trainings (`list[Training]`), scored (`dict`): as in
            [`run_folds`].
        data (`dict`): options that name the data.

    Returns:
        `dict`: from [`~evaluation.compare`]: of each training the mean of its models, and the ensemble.
    """
    output, scored = Path(args.output_dir), {**data, **scored, "dataset_split": TEST}
    tables, pairs = {}, []
    for training in trainings:
        members = [output / f"fold{number}" / training.name for number in range(args.folds)]
        alone = [run(f"fold{n}/{training.name}/{TEST}", "evaluate", {**of_trained(training, member), **scored})
                 for n, member in enumerate(members)]  # fmt: skip
        together = {**of_trained(training, members[0]), "ensemble": [str(member) for member in members[1:]]}
        # (Several models have no frozen features in common.)
        own = {name: value for name, value in scored.items() if name not in ("cache_features", "cache_dir")}
        ensemble = run(f"ensemble/{training.name}", "evaluate", {**together, **own})
        pairs.append((f"{training.name}, one fold", f"{training.name}, ensemble"))
        tables[pairs[-1][0]] = [pd.read_parquet(folder / "per_sample.parquet") for folder in alone]
        tables[pairs[-1][1]] = pd.read_parquet(ensemble / "per_sample.parquet")
    return compare(tables, args.metric, pairs)


def main() -> None:
    args, trainings = read_options()
    data_args = trainings[0].part(DataArguments)
    split_args = trainings[0].part(SplitArguments)
    share = args.validation_share
    if any(training.chooses for training in trainings):
        share = SHARE if share is None else share
    elif share is not None:
        raise ValueError("validation_share has no effect: eval_strategy is no, so nothing is chosen by a validation.")

    # Who is held out where
    output, data = Path(args.output_dir), load_data(data_args)
    splits = args.splits
    if splits is None:
        usual = (split_args.dataset_train_split, split_args.dataset_eval_split)
        splits = [split for split in dict.fromkeys(usual) if split in data] or [usual[0]]
    rows = pooled_rows(DatasetDict({split: get_split(data, split, "splits") for split in splits}))
    check_dataset(rows, name=" and ".join(splits))
    check_clips(args.evaluation.get("postprocessing", "stored"), rows)
    if "question" in args.evaluation:
        phrases_in(rows, "evaluation: question")
    accept_alike = all(training.part(SegArguments).accept_alike for training in trainings)
    folds = make_folds(rows, args.folds, args.by, share, args.seed, accept_alike)
    if args.ensemble:
        if TEST in splits or TEST not in data:
            raise ValueError(f"ensemble: the folds' models need a {TEST} split that is in no fold to be scored on.")
        check_no_leakage(rows, data[TEST], names=("the folds", TEST), accept_alike=accept_alike)
        if not with_masks(data[TEST]):
            raise ValueError(f"ensemble: no row of the {TEST} split has a mask to be scored by.")
    pairs = digests_of_pairs(trainings)
    record_folds(output / "folds.json", folds, data_args.dataset_name, data_args.synthetic, digest_of(rows), pairs)
    dataset_name = data_args.dataset_name
    if dataset_name == "synthetic":  # made once, and not by every step
        dataset_name = str(output / "data")
        if not (output / "data").exists():
            with replaced_together(output, ["data"]) as new:
                data.save_to_disk(new / "data")
    write_folds(output, folds, dataset_name, splits)
    words = [*in_words(folds, splits, share), *cautions(trainings)]
    say("\n".join(words))

    # Training and evaluation
    run = Steps(output, args.launcher)
    phrase = {} if data_args.phrase is None else {"phrase": data_args.phrase}
    scored = {**args.evaluation, **phrase, "num_overlays": 0, "report": False}
    tables = run_folds(run, args, trainings, folds, scored)
    if args.only_fold is not None:
        finish(
            f"fold{args.only_fold} of {args.folds} trained and evaluated",
            f"results in {output / f'fold{args.only_fold}'}",
            "once all folds are there, the same without --only_fold pools them",
        )
        return

    # Results
    expected = {f"fold{number}": scored for number, scored in enumerate(folds.scored)}
    pooled = {name: pool(own, expected) for name, own in tables.items()}
    metrics = {name: aggregate(table) for name, table in pooled.items()}
    for name, table in pooled.items():
        save_results(output / "evaluation" / name, metrics[name], table)
    first, *others = pooled
    comparison = compare(pooled, args.metric, [(first, other) for other in others]) if others else None
    if comparison is None:
        (output / "comparison.json").unlink(missing_ok=True)
    else:
        comparison["notes"].append(CAUTION)
        write_json(output / "comparison.json", comparison)
    counts = [{split: len(rows) for split, rows in own.items()} for own in folds.splits]
    by_fold = fold_table(pooled, args.metric, counts)
    write_json(output / "by_fold.json", by_fold.to_dict("records"))
    together = None
    if args.ensemble:
        data_options = {"dataset_name": dataset_name, "synthetic": {}}
        together = run_ensembles(run, args, trainings, data_options, scored)
        write_json(output / "ensemble.json", together)

    say(f"\n{by_fold.map(shown).to_string(index=False)}\n")
    say(comparison_table(comparison) if comparison else in_one_line(args.metric, metrics[first][args.metric]))
    if together is not None:
        say(f"\n{TEST} split, the folds' models alone and together:\n{comparison_table(together)}")
    remove_report(output)
    if is_reported := can_report():
        gallery, threshold, is_raw = pictures(output, pooled, args.metric, args.num_pictures)
        last = list(pooled)[-1]
        hard = hard_runs(pooled[last])
        if comparison is None:
            report = evaluation_report(metrics[first], pooled[first], gallery, threshold, hard)
        else:
            report = comparison_report(
                comparison, pooled, hard, gallery, list(dict.fromkeys((first, last))), threshold
            )
        sections = report[0]
        words_of_page = words if comparison else [*words, CAUTION]
        sections.insert(1, fold_section(pooled, args.metric, by_fold, words_of_page))
        if together is not None:
            sections.insert(2, Section("Ensemble", [Words(comparison_table(together), plain=True)]))
        trained = {f"fold{number}, {name}": output / f"fold{number}" / name
                   for name in pooled for number in range(args.folds)}  # fmt: skip
        options = [args, *(entry for training in trainings for entry in training.options[:1])]
        files = [output / "evaluation" / name / "per_sample.parquet" for name in pooled]
        subtitle = f"{', '.join(pooled)}: {len(rows)} images of {data_args.dataset_name} in {args.folds} folds"
        subtitle += f" ({RAW})" * (is_raw and any(gallery.values()))
        save_report(output, "Cross-validation", subtitle, report, about(options, files), logs_of(trained))
    best = chosen(trainings, metrics, args.metric)
    given = {"config": shortest_name(Path(best.config)), **best.given}
    finish(
        f"{args.folds} folds: {in_one_line(args.metric, metrics[best.name][args.metric])} ({best.name})",
        f"results in {output}" + (f", look at {output / REPORT}" if is_reported else ""),
        f"train the model to keep: {command(best.task, **given)}",
        is_shown=True,
    )
