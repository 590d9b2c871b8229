"""
Score a model, or masks that another tool has written, on a data set: at each image's own size, with intervals.

    sa2va-trl evaluate --model_name_or_path tiny --dataset_name synthetic --output_dir outputs/eval
    sa2va-trl evaluate --predictions_dir MASKS --dataset_name DIR --output_dir outputs/eval
    sa2va-trl evaluate --model_name_or_path BASE --adapter STAGE2 --router_adapter STAGE3 \\
        --route_split validation --dataset_name DIR --output_dir outputs/eval
    sa2va-trl evaluate --model_name_or_path BASE --adapter FOLD0 --ensemble FOLD1 FOLD2 --tta vflip gamma0.8 \\
        --dataset_name DIR --output_dir outputs/eval

    sa2va-trl evaluate --protocol rvos --model_name_or_path BASE --dataset_name MEVIS --dataset_split valid_u \\
        --output_dir outputs/eval

With --tta and --ensemble masks are drawn from the mean of the probabilities. On several processes (accelerate launch
recipes/evaluate.py) each scores its share, with the same results. A call that was ended is taken up by the same one
again.
"""

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from datasets import Dataset

from ..batches import AUTO, CPU_ROWS, parse_batch_size
from ..data.checks import check_dataset
from ..data.splits import check_no_leakage
from ..evaluation import predict_probabilities, read_predictions, stored_features
from ..evaluation.averaging import (
    Member,
    check_questions,
    common_postprocessing,
    common_threshold,
    predict_averaged,
    texts_of,
)
from ..evaluation.candidate_questions import phrases_in
from ..evaluation.gallery import KeptExtremes, make_picture, save_picture
from ..evaluation.overlays import draw_samples, save_overlays
from ..evaluation.page import REPORT
from ..evaluation.parts import Parts
from ..evaluation.referring import aggregate_protocol, check_pictures, picture_names, referring_question
from ..evaluation.report import evaluation_report
from ..evaluation.results import aggregate, from_worst_to_best, remarks, save_results
from ..evaluation.routing import Router, fit_router, predict_routed, routing_report
from ..evaluation.submission import read_masks, write_masks
from ..evaluation.views import PLAIN, check_sides
from ..features.encoding import Stored
from ..features.fingerprint import fingerprint, json_digest
from ..metrics import ALL_METRICS, LOWER_IS_BETTER
from ..metrics.rows import check_metric_set
from ..mining.pieces import partial_folder
from ..mining.score_files import fingerprint_of
from ..postprocessing import IDENTITY, Postprocessing
from ..processes import everywhere, leave_process_group
from ..questions import QUESTIONS, check_question, question_of
from .arguments import AveragingArguments, ComparedDataArguments, ModelArguments, RecipeParser, RouterArguments
from .loading import COMPILING, Model, compile_models, get_split, load_data, load_members, load_model, load_router
from .locks import the_only_one
from .mask_drawing import HELP as POSTPROCESSING
from .mask_drawing import check_clips, given_postprocessing, own_postprocessing
from .protocols import (
    FRAMES,
    SUBMISSION,
    ProtocolArguments,
    check_rows,
    finish_submission,
    protocol_masks,
    write_submission,
)
from .reporting import (
    RAW,
    SAMPLES,
    about,
    can_report,
    check_report_pictures,
    hard_runs,
    logs_of,
    move_pictures,
    remove_report,
    save_report,
)
from .screen import finish, say


# Where rows are kept as they are scored, until the results are there.
PARTIAL = ".partial"
# Of a protocol, the number that is quoted.
HEADLINES = {"rvos": ("J&F", "j_and_f"), "refcoco": ("cIoU", "ciou")}
# Small enough to be read for a digest: those of adapters and of heads, not of the base.
WEIGHTS = ("adapter_model.safetensors", "adapter_config.json", "config.json")


@dataclass
class EvaluateArguments:
    dataset_split: str = field(default="test", metadata={"help": "Split to score."})
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder for the results."})
    predictions_dir: str | None = field(
        default=None, metadata={"help": "Folder of mask PNGs named by sample_id, in place of a model."}
    )
    threshold: float | None = field(
        default=None,
        metadata={"help": "Probability above which a pixel is foreground; the model's own by default, else 0.5."},
    )
    postprocessing: str = field(default="stored", metadata={"help": POSTPROCESSING})
    question: str | None = field(
        default=None,
        metadata={"help": "What to ask, with {phrase}, in place of the model's own question."},
    )
    metrics: str = field(
        default="overlap", metadata={"help": "overlap, or all: also topology, boundary, shape, calibration and more."}
    )
    workers: int = field(default=0, metadata={"help": "Processes that score beside this one, with the same scores."})
    batch_size: str = field(
        default="8",
        metadata={
            "help": "Images in a forward pass at most, those of like size together; auto: as many as memory takes."
        },
    )
    torch_compile: bool = field(default=False, metadata={"help": COMPILING})
    cache_features: str = field(
        default="auto", metadata={"help": "Frozen features: auto (use those that are there), on (compute) or off."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the frozen features; beside the data by default."}
    )
    num_overlays: int = field(default=12, metadata={"help": "Pictures to draw, from the worst to the best image."})
    report: bool = field(default=True, metadata={"help": "Leave report.html, a page to look at (extra `report`)."})
    report_pictures: str = field(
        default="embedded", metadata={"help": "Images of the page: embedded, or beside it in report_pictures/."}
    )
    num_pictures: int = field(default=12, metadata={"help": "Pictures in the page of the worst, and of the best."})
    keep_pictures: bool = field(
        default=False,
        metadata={"help": "Leave image and probabilities of every sample, of which compare shows what changed most."},
    )
    route_split: str | None = field(
        default=None, metadata={"help": "Split to choose the router's threshold on, in place of route_threshold."}
    )

    def __post_init__(self):
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}.")
        if self.question is not None:
            check_question(self.question, "question")
            if self.predictions_dir is not None:
                raise ValueError("question has no meaning with predictions_dir: no model runs.")
        given = given_postprocessing(self.postprocessing)
        if self.predictions_dir is not None and given is not None and (given.hysteresis != 1 or given.is_temporal):
            raise ValueError(
                "postprocessing with predictions_dir is of single masks: no hysteresis, nothing of clips."
            )
        self.batch_size: int | str = parse_batch_size(self.batch_size)
        check_metric_set(self.metrics)
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, got {self.workers}.")
        check_report_pictures(self.report_pictures)
        if self.num_pictures < 0:
            raise ValueError(f"num_pictures must not be negative, got {self.num_pictures}.")
        if not self.report and (self.report_pictures, self.num_pictures) != ("embedded", 12):
            raise ValueError("report_pictures and num_pictures have no effect with report=false.")
        if self.predictions_dir is not None and self.torch_compile:
            raise ValueError("torch_compile has no meaning with predictions_dir: no model runs.")
        if self.predictions_dir is not None and (self.cache_features != "auto" or self.cache_dir is not None):
            raise ValueError("cache_features and cache_dir have no meaning with predictions_dir: no model runs.")
        if self.predictions_dir is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(
                "predictions_dir: no model runs, so start evaluate in one process; --workers gives it more that score."
            )


def check_router(args: EvaluateArguments, router_args: RouterArguments) -> None:
    """
    Raises:
        `ValueError`: options of a router that contradict each other, lack another or have no effect.
    """
    if not router_args.has_router:
        if args.route_split is not None:
            raise ValueError("route_split has no effect without router_model or router_adapter.")
        return
    if args.predictions_dir is not None:
        raise ValueError("router_model and router_adapter have no meaning with predictions_dir: no model runs.")
    if (args.route_split is None) == (router_args.route_threshold is None):
        raise ValueError("A router needs either route_threshold or route_split, a split to choose it on.")
    if args.route_split == args.dataset_split:
        raise ValueError(
            f"route_split={args.route_split!r} is the split to score: choose the threshold on another, or the result "
            "flatters the router."
        )


def check_averaging(args: EvaluateArguments, router_args: RouterArguments, averaging: AveragingArguments) -> None:
    """
    Raises:
        `ValueError`: something else draws the masks than what is to be averaged, or frozen features are asked for.
    """
    if not (names := averaging.in_words):
        return
    if args.predictions_dir is not None:
        raise ValueError(f"{names} have no meaning with predictions_dir: no model runs.")
    averaging.check_router(router_args)
    if args.cache_features == "on" or args.cache_dir is not None:
        raise ValueError(
            f"cache_features=on and cache_dir have no effect with {names}: there are no frozen features of changed "
            "images or of several models. Leave them out."
        )


def check_protocol(
    args: EvaluateArguments, router_args: RouterArguments, averaging: AveragingArguments, protocol: ProtocolArguments
) -> None:
    """
    Raises:
        `ValueError`: options that have no effect where the protocol of referring sets is followed.
    """
    without = {
        "metrics": args.metrics != "overlap",
        "question": args.question is not None,
        "cache_features": args.cache_features != "auto",
        "cache_dir": args.cache_dir is not None,
        "route_split": args.route_split is not None,
        "router_model and router_adapter": router_args.has_router,
        averaging.in_words: bool(averaging.in_words),
        "batch_size": protocol.protocol == "rvos" and str(args.batch_size) != EvaluateArguments.batch_size,
    }
    protocol.check(without, args.predictions_dir is None)


def own_threshold(threshold: float | None, *models: Model) -> float:
    """
    Args:
        threshold (`float`, *optional*): as the options say.
        models (`Sa2VAForConditionalGeneration` or `PeftModel`): that draw; none for masks of another tool.

    Returns:
        `float`: the one to draw with: that of the options, else the models' own, else 0.5.

    Raises:
        `ValueError`: nothing is given, and the models have different ones.
    """
    own = [model.config.mask_threshold for model in models]
    if threshold is None and len(set(own)) > 1:
        raise ValueError(
            f"The two models have different thresholds of their own, {own[0]:g} and {own[1]:g}: give --threshold."
        )
    return threshold if threshold is not None else (own or [0.5])[0]


def set_question(question: str | None, model: Model) -> None:
    """Have a model asked with the question of the options, where they have one."""
    if question is not None:
        model.config.default_question = question


def earlier_evaluation(output: Path, samples: pd.DataFrame, by: str) -> str | None:
    """The latest evaluation of the same samples, by the same score, in a folder beside this one."""
    files = [file for file in output.parent.glob("*/per_sample.parquet") if file.parent.name != output.name]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        table = pd.read_parquet(file)
        if by in table and set(table["sample_id"]) == set(samples["sample_id"]):
            return str(file.parent)
    return None


def metrics_table(metrics: dict[str, dict]) -> str:
    """
    Metrics to read.

    Args:
        metrics (`dict[str, dict]`): from [`~evaluation.results.aggregate`].

    Returns:
        `str`: a line a metric with mean, spread and interval and, where images are left out, how many; an arrow where
        less is better.
    """
    shown = ALL_METRICS if "dice" in metrics else [name for name in metrics if "mean" in metrics[name]]
    names = {name: f"{name} ↓" if name in LOWER_IS_BETTER else name for name in shown if name in metrics}
    width = 1 + max(map(len, names.values()))
    lines = [f"{'metric':<{width}}{'mean':>8}{'std':>8}   95 % interval"]
    for name, shown in names.items():
        value = metrics[name]
        if value["n"] == 0:
            lines.append(f"{shown:<{width}}{'-':>8}   undefined for all images")
            continue
        low, high = (f"{bound:.4f}" if bound is not None else "-" for bound in value["ci95"])
        left_out = f"   ({value['undefined']} images undefined)" if value.get("undefined") else ""
        spread = "-" if value["std"] is None else f"{value['std']:.4f}"
        lines.append(f"{shown:<{width}}{value['mean']:>8.4f}{spread:>8}   {low} - {high}{left_out}")
    return "\n".join(lines)


class Predictor(NamedTuple):
    """
    What is scored, and how it draws.

    Args:
        predict (`Callable`): from positions of rows to the rows and their probabilities.
        threshold (`float`), postprocessing ([`~postprocessing.Postprocessing`]): that masks are drawn with.
        asked (`str`): the question.
        prints (`Callable`, *optional*): what the probabilities depend on; none of masks of another tool.
        router, fitted (*optional*): what sends rows to a second model, and how its threshold was chosen.
    """

    predict: Callable[[list[int]], Iterator[tuple[dict, np.ndarray]]]
    threshold: float
    postprocessing: Postprocessing
    asked: str = QUESTIONS[0]
    prints: Callable[[], list[dict]] | None = None
    router: Router | None = None
    fitted: dict | None = None

    def in_words(self) -> str:
        """How masks are drawn."""
        words = f"threshold {self.threshold:g}"
        words += "" if self.postprocessing.is_identity else f", post-processing {self.postprocessing}"
        return words + ("" if self.asked == QUESTIONS[0] else f', asked "{self.asked}"')


def model_predictor(
    args: EvaluateArguments,
    model_args: ModelArguments,
    router_args: RouterArguments,
    averaging: AveragingArguments,
    dataset: Dataset,
    chosen_on: Dataset | None,
) -> Predictor:
    """A model, or several, on rows; `chosen_on` are those that a router's threshold is chosen on."""
    state = PartialState()
    model, processor = load_model(model_args)
    model = model.to(state.device)
    router = load_router(router_args, model_args, model, processor) if router_args.has_router else None
    models = [model] if router is None else [model, router.model]
    for each in models:
        set_question(args.question, each)
    shown = {"batch_size": args.batch_size, "progress": state.is_main_process}
    members = [Member(model, processor), *([] if router is None else [Member(router.model, router.processor)])]
    if averaging.is_on:
        members = load_members(averaging.ensemble or [], model_args, model, processor)
        for member in members:
            member.options |= {} if args.question is None else {"default_question": args.question}
        check_questions(members)
        check_sides((question_of(model.config), *texts_of(dataset)), averaging.views)
    if args.torch_compile:
        compile_models([*(member.model for member in members), *models])

    def prints() -> list[dict]:
        found = [fingerprint_of(model, processor, dataset)]
        for member in members:
            with member.active() as each:
                found.append({**fingerprint(each, member.processor, parts=("",)), **member.options})
        return found

    if averaging.is_on:
        given = given_postprocessing(args.postprocessing)
        return Predictor(
            lambda rows: predict_averaged(members, dataset.select(rows), averaging.views, **shown),
            common_threshold(members) if args.threshold is None else args.threshold,
            common_postprocessing(members) if given is None else given,
            question_of(model.config),
            prints,
        )

    def features_of(rows: Dataset) -> Stored | None:
        return stored_features(model, processor, rows, args.cache_features, args.cache_dir, **shown)

    threshold, fitted = own_threshold(args.threshold, *models), None
    postprocessing = own_postprocessing(args.postprocessing, *models)
    if chosen_on is not None:
        options = {**shown, "features": features_of(chosen_on), "postprocessing": postprocessing}
        fitted = everywhere(fit_router(model, processor, router, chosen_on, threshold, **options))[0]
        router.threshold = fitted["threshold"]
    features = features_of(dataset)

    def predict(rows: list[int]) -> Iterator[tuple[dict, np.ndarray]]:
        own = None if features is None else (features[0], [features[1][row] for row in rows])
        if router is not None:
            return predict_routed(model, processor, router, dataset.select(rows), **shown, features=own)
        return predict_probabilities(model, processor, dataset.select(rows), **shown, features=own)

    return Predictor(predict, threshold, postprocessing, question_of(model.config), prints, router, fitted)


def protocol_predictor(
    args: EvaluateArguments, model_args: ModelArguments, protocol: ProtocolArguments, dataset: Dataset
) -> Predictor:
    """A model that is asked as referring sets are. It draws masks, which are not post-processed a second time."""
    state = PartialState()
    model, processor = load_model(model_args)
    model = model.to(state.device)
    if args.torch_compile:
        compile_models([model])
    threshold = own_threshold(args.threshold, model)
    drawing = {"threshold": threshold, "postprocessing": own_postprocessing(args.postprocessing, model)}
    shown = {"batch_size": args.batch_size, "progress": state.is_main_process, "drawing": drawing}

    def prints() -> list[dict]:
        names = [dataset[name] for name in ("sample_id", "exp_id") if name in dataset.column_names]
        return [{**fingerprint(model, processor, parts=("",)), "rows": json_digest([names, dataset._fingerprint])}]

    def predict(rows: list[int]) -> Iterator[tuple[dict, np.ndarray]]:
        return protocol_masks(protocol, model, processor, dataset.select(rows), **shown)

    asked = referring_question(protocol.protocol, "{phrase}").removeprefix("<image>\n")
    return Predictor(predict, threshold, IDENTITY, asked, prints)


def masks_predictor(args: EvaluateArguments, dataset: Dataset, protocol: str | None = None) -> Predictor:
    """Masks of another tool."""
    if not Path(args.predictions_dir).is_dir():
        raise ValueError(f"predictions_dir={args.predictions_dir!r} is not there: give a folder of masks.")
    return Predictor(
        # (In one process, `rows` are all.)
        lambda rows: (
            read_masks(Path(args.predictions_dir), dataset)
            if protocol == "rvos"
            else read_predictions(args.predictions_dir, dataset)
        ),
        own_threshold(args.threshold),
        own_postprocessing(args.postprocessing),
    )


def write_report(
    output: Path,
    options: Sequence[Any],
    metrics: dict[str, dict],
    samples: pd.DataFrame,
    extremes: KeptExtremes,
    predictor: Predictor,
    said: list[str],
) -> None:
    """The page of an evaluation, with the curves of the training that its model or adapter comes from."""
    args, data_args, model_args, _, averaging, _ = options
    gallery = {"Worst": extremes.worst, "Best": extremes.best}
    report = evaluation_report(metrics, samples, gallery, predictor.threshold, hard_runs(samples), said)
    if args.predictions_dir is not None:
        of, options, trained, weights = f"masks in {args.predictions_dir}", [args, data_args], {}, []
    else:
        of = " with ".join(filter(None, (model_args.model_name_or_path, model_args.adapter)))
        of = " and ".join([of, *(averaging.ensemble or [])])
        of += f", averaged with {', '.join(view.name for view in averaging.views)}" * bool(averaging.tta)
        folders = [Path(name) for name in (model_args.adapter, model_args.model_name_or_path) if name is not None]
        trained = {folder.name: folder for folder in folders}
        weights = [folder / name for folder in [*folders, *map(Path, averaging.ensemble or [])] for name in WEIGHTS]
    subtitle = f"{of} on the {args.dataset_split} split of {data_args.dataset_name}, {predictor.in_words()}"
    if not predictor.postprocessing.is_identity:
        subtitle += f" ({RAW})"
    found = about(options, [output / "per_sample.parquet", *weights])
    save_report(output, "Evaluation", subtitle, report, found, logs_of(trained), args.report_pictures)


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (EvaluateArguments, ComparedDataArguments, ModelArguments, RouterArguments, AveragingArguments)
    kinds = (*kinds, ProtocolArguments)
    return RecipeParser(kinds, prog="sa2va-trl evaluate", description=__doc__)


def main() -> None:
    options = args, data_args, model_args, router_args, averaging, protocol = make_parser().parse_args_and_config()
    check_protocol(args, router_args, averaging, protocol)
    check_router(args, router_args)
    check_averaging(args, router_args, averaging)
    if data_args.accept_alike and args.route_split is None:
        raise ValueError("accept_alike has no effect without route_split: no second split is looked at.")
    # (One process may wait for another as long as it takes.)
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
    data, chosen_on = load_data(data_args), None
    dataset = get_split(data, args.dataset_split, "dataset_split")
    with_masks = protocol.protocol is None or check_rows(protocol, dataset, args.predictions_dir)
    if with_masks:
        check_dataset(dataset, name="dataset")
    else:
        check_pictures(dataset)
    check_clips(args.postprocessing, dataset)
    if args.question is not None:
        phrases_in(dataset, "question")
    if args.route_split is not None:
        chosen_on = get_split(data, args.route_split, "route_split")
        names = args.route_split, args.dataset_split
        check_no_leakage(chosen_on, dataset, names=names, accept_alike=data_args.accept_alike)
    if args.predictions_dir is not None:
        predictor = masks_predictor(args, dataset, protocol.protocol)
    elif protocol.protocol is not None:
        predictor = protocol_predictor(args, model_args, protocol, dataset)
    else:
        predictor = model_predictor(args, model_args, router_args, averaging, dataset, chosen_on)
    threshold, router = predictor.threshold, predictor.router

    # Predict and score
    output, is_reported = Path(args.output_dir), args.report and can_report()
    lock = None
    if state.is_main_process:  # two would take each other's rows up, and remove them
        refusal = (
            f"output_dir={str(output)!r}: another evaluation into it is at work. Wait for it, or give another one."
        )
        lock = the_only_one(output / PARTIAL / "lock", refusal)
    partial = output / PARTIAL / "masks"
    if predictor.prints is None:
        shutil.rmtree(partial, ignore_errors=True)  # what the folder of masks held then is not known
    else:
        decided = [threshold, predictor.postprocessing.to_dict(), args.metrics, args.batch_size]
        decided += [averaging.tta, args.keep_pictures, args.num_pictures, args.num_overlays > 0, is_reported]
        decided += [args.torch_compile]
        if protocol.protocol is not None:
            decided += [protocol.protocol, protocol.tracking_options, protocol.submission, args.postprocessing]
        decided += [] if router is None else [router.by, router.threshold]
        # (The fingerprint is of rows in any order, and parts are of rows by number.)
        order = [dataset[name] for name in ("sample_id", "structure") if name in dataset.column_names]
        partial = partial_folder(output / PARTIAL, predictor.prints, [*decided, json_digest(order)])
        partial = everywhere(partial)[0]
    # (The same wherever it is taken up; clips go one at a time.)
    size = CPU_ROWS if args.batch_size == AUTO else args.batch_size
    parts = Parts(partial, dataset, 1 if protocol.protocol == "rvos" else size)
    pictures = partial / SAMPLES
    if args.keep_pictures:
        pictures.mkdir(exist_ok=True)
    count = args.num_pictures if is_reported else 0

    def keep(row: dict, probabilities: np.ndarray, scores: dict) -> None:
        if args.keep_pictures:
            save_picture(pictures, make_picture(row, [probabilities], {}))
        if protocol.submission:
            write_masks(partial, row, probabilities)

    rows = parts.share()
    if parts.done:
        say(f"{parts.rows_done} of {len(dataset)} images were scored before, and are taken up")
    if rows and not with_masks:
        write_submission(partial, predictor.predict(rows), parts)
    elif rows:
        scoring = {
            "metrics": protocol.protocol or args.metrics,
            "workers": args.workers,
            "postprocessing": predictor.postprocessing,
        }
        scoring["keep_masks"] = args.num_overlays > 0
        parts.score(predictor.predict(rows), threshold, KeptExtremes(count, protocol.by), on_row=keep, **scoring)
    everywhere(None)  # all parts are there
    leave_process_group()
    if not state.is_main_process:
        return

    # Results
    (output / SUBMISSION).unlink(missing_ok=True)  # of an earlier call
    sent = finish_submission(partial, output, protocol.submission) if protocol.submission else None
    if not with_masks:
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        lock.close()
        finish(f"{len(dataset)} expressions of {args.dataset_split}, without masks to score by", f"masks in {sent}")
        return
    samples, by = parts.samples(), protocol.by
    if protocol.protocol == "refcoco":
        samples["picture"] = picture_names(dataset)
    said = remarks(samples, dataset)
    metrics = aggregate(samples) if protocol.protocol is None else aggregate_protocol(samples, protocol.protocol)
    drawn = from_worst_to_best(samples, args.num_overlays, by)
    kept, extremes = parts.kept(drawn, threshold, count, by)
    frames = None if protocol.protocol is None else FRAMES
    save_overlays(draw_samples(dataset, drawn, kept, by, frames), output / "overlays")
    routing = None
    if router is not None:
        chosen = predictor.fitted or {"by": router.by, "threshold": router.threshold}
        routing = {**chosen, "fitted_on": args.route_split}
    save_results(output, metrics, samples, routing)
    remove_report(output)
    if is_reported:
        write_report(output, options, metrics, samples, extremes, predictor, said)
    parts.remove()  # first: without its pictures none could be taken up
    if args.keep_pictures:
        move_pictures(output, pictures, threshold, predictor.postprocessing.to_dict())
    else:  # those of an earlier call show other masks
        shutil.rmtree(output / SAMPLES, ignore_errors=True)
    shutil.rmtree(output / PARTIAL, ignore_errors=True)
    lock.close()

    unit = "images" if protocol.protocol is None else "expressions"
    say(f"{args.dataset_split} split of {data_args.dataset_name}: {len(samples)} {unit}, {predictor.in_words()}")
    if averaging.is_on:
        names = ", ".join(view.name for view in [PLAIN, *averaging.views])
        say(f"probabilities averaged over {1 + len(averaging.ensemble or [])} models and {names} images")
    say("\n".join([metrics_table(metrics), *said]))
    if (fitted := predictor.fitted) is not None:
        say(
            f"router: threshold chosen on {fitted['n']} images of {args.route_split}, Dice {fitted['dice_first']:.4f} "
            f"(first model), {fitted['dice_second']:.4f} (second), {fitted['dice_routed']:.4f} (routed)"
        )
    if router is not None:
        say(routing_report(router, samples[["routed", router.by]].to_dict("records")))
    then = f"look at it: {output / (REPORT if is_reported else 'overlays')}"
    if (other := earlier_evaluation(output, samples, by)) is not None:
        which = ["--metric", by] if protocol.protocol else []
        then = f"compare it with another: {shlex.join(['sa2va-trl', 'compare', other, str(output), *which])}"
    name, score = ("Dice", "dice") if protocol.protocol is None else HEADLINES[protocol.protocol]
    finish(
        f"{len(samples)} images of {args.dataset_split}: {name} {metrics[score]['mean']:.3f}",
        f"results in {output}, pictures from the worst to the best image in {output / 'overlays'}",
        then,
        is_shown=True,
    )
