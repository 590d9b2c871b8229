"""
Find hard samples: score every row with a model, and say which are hard, in which runs of frames, and which labels to
look at. What it leaves is what hard-sample training starts from.

    sa2va-trl mine_hard_samples --model_name_or_path tiny --dataset_name synthetic \\
        --dataset_split train --threshold 0.75 --output_dir outputs/hard_samples
    sa2va-trl mine_hard_samples --worst 0.2 --max_gap 1 --smoothing 3 …
    sa2va-trl mine_hard_samples --export cvat …         # the model's masks of rows to be reviewed, for the annotator
    sa2va-trl mine_hard_samples --labels false --worst 0.2 …   # frames that do not fit their neighbours
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from datasets import Dataset

from ..data.export.folder import WRITERS
from ..evaluation import stored_features
from ..files import file_name, replaced_together, write_json, written_beside
from ..media.clips import listed
from ..mining.hardness import one_limit
from ..mining.runs import check_options
from ..mining.score_files import fingerprint_of, save_scores
from ..mining.scoring import score_dataset
from ..mining.selection import hard_limit, mine, summary
from ..mining.sheets import draw_run, run_frames
from ..mining.unlabelled import score_unlabelled
from ..models import Sa2VAProcessor
from ..processes import leave_process_group
from ..sampling import MaskSampler
from ..trainers.base_config import refuse
from .arguments import DataArguments, ModelArguments, RecipeParser
from .commands import command, of_data, of_model
from .exporting import EXPORT, check_format, dicom_sources, drawn_images, foreign_files, record
from .exporting import HELP as EXPORTING
from .loading import Model, get_split, load_data, load_model
from .screen import finish, say


RESULT = "hard_samples.json"


@dataclass
class MiningArguments:
    dataset_split: str = field(default="train", metadata={"help": "Split to mine."})
    output_dir: str = field(default="outputs/hard_samples", metadata={"help": "Folder for the results."})
    hard_below: float | None = field(default=None, metadata={"help": "Dice below which a sample is hard (0.75)."})
    threshold: float | None = field(default=None, metadata={"help": "An earlier name of hard_below."})
    worst: float | None = field(
        default=None, metadata={"help": "Share of samples that is hard, in place of hard_below."}
    )
    max_gap: int = field(default=0, metadata={"help": "Other frames that a run of hard ones may go over."})
    min_length: int = field(default=2, metadata={"help": "Hard frames that a run needs."})
    smoothing: int = field(default=1, metadata={"help": "Odd width of a running median over the frames' Dice."})
    tau_low: float = field(
        default=0.3, metadata={"help": "Dice; rows whose candidate masks are all below it are reviewed."}
    )
    labels: bool = field(default=True, metadata={"help": "Whether to score with the rows' own masks."})
    method: str | None = field(default=None, metadata={"help": "Without labels: tracking (default) or neighbours."})
    sampler: dict | str | None = field(
        default=None, metadata={"help": 'Options of MaskSampler for the candidate masks: {"tokens": true}.'}
    )
    mask_threshold: float | None = field(
        default=None,
        metadata={"help": "Probability above which a pixel is foreground; the model's own by default, else 0.5."},
    )
    batch_size: int = field(default=8, metadata={"help": "Images in a forward pass."})
    cache_features: str = field(
        default="auto", metadata={"help": "Frozen features: auto (use those that are there), on (compute) or off."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the frozen features; beside the data by default."}
    )
    export: str | None = field(
        default=None, metadata={"help": EXPORTING.format("the model's masks of the rows to be reviewed")}
    )
    num_sheets: int = field(default=12, metadata={"help": "Runs to draw, from the hardest on."})

    def __post_init__(self):
        if self.sampler is not None:
            options = json.loads(self.sampler) if isinstance(self.sampler, str) else self.sampler
            self.sampler = MaskSampler(**options)
        self.hard_below = one_limit(self.hard_below, self.threshold)
        check_options(self.hard_below, self.worst, self.max_gap, self.min_length, self.smoothing, self.tau_low)
        if self.num_sheets < 0:
            raise ValueError(f"num_sheets must not be negative, got {self.num_sheets}.")
        check_format(self.export)
        if self.labels and self.method is not None:
            raise ValueError("method has no effect with labels.")
        if not self.labels:
            names = ("sampler", "cache_features", "cache_dir", "tau_low", "export")
            refuse(self, dict.fromkeys(names, "labels=false has no use for it"))


def score(
    args: MiningArguments, model: Model, processor: Sa2VAProcessor, dataset: Dataset, prints: dict
) -> pd.DataFrame:
    """The table of scores. What a killed run has scored is kept beside the results until they are there."""
    options = {"batch_size": args.batch_size, "threshold": args.mask_threshold, "prints": prints}
    options["partial_dir"] = Path(args.output_dir) / ".partial"
    if not args.labels:
        return score_unlabelled(model, processor, dataset, method=args.method or "tracking", **options)
    features = stored_features(model, processor, dataset, args.cache_features, args.cache_dir, args.batch_size)
    return score_dataset(model, processor, dataset, features=features, sampler=args.sampler, **options)


def check_export(output: Path) -> None:
    """
    Raises:
        `ValueError`: `export/` holds what would be lost: an earlier call's, changed since, or anything else.
    """
    try:
        recorded = json.loads((output / RESULT).read_text()).get("export")
    except (OSError, ValueError, AttributeError):
        recorded = None
    if foreign := foreign_files(output, recorded):
        raise ValueError(
            f"output_dir={str(output)!r} holds what no {RESULT} of this program lists, and would be replaced: "
            f"{listed(foreign)}. Give another output_dir, or move them away."
        )


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (MiningArguments, DataArguments, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl mine_hard_samples", description=__doc__)


def main() -> None:
    args, data_args, model_args = make_parser().parse_args_and_config()
    check_export(Path(args.output_dir))
    state = PartialState(cpu=not torch.cuda.is_available())
    dataset = get_split(load_data(data_args), args.dataset_split, "dataset_split")
    sources = None
    if args.export == "dicom_seg":
        sources = dicom_sources(data_args.dataset_name, args.dataset_split, dataset)
    # As training loads it, so that the scores are known to be of the model that is trained on.
    model, processor = load_model(model_args, merge=model_args.quantization is None)
    model = model.to(state.device).eval()
    if args.mask_threshold is None:
        args.mask_threshold = model.config.mask_threshold
    if model.config.mask_postprocessing and state.is_main_process:
        say("Masks are judged before the post-processing that is stored with the model: training acts on the network.")
    prints = fingerprint_of(model, processor, dataset)

    by = "dice" if args.labels else "consistency"
    scores = score(args, model, processor, dataset, prints)
    options = {"max_gap": args.max_gap, "min_length": args.min_length, "smoothing": args.smoothing, "by": by}
    mined = mine(scores, args.hard_below, args.worst, tau_low=args.tau_low, **options)
    threshold = hard_limit(scores, args.hard_below, args.worst, by)
    leave_process_group()
    if not state.is_main_process:
        return
    result = {"threshold": threshold, **options, **summary(mined, threshold, by), "fingerprint": prints}

    output = Path(args.output_dir)
    positions = {sample_id: position for position, sample_id in enumerate(dataset["sample_id"])}
    with written_beside(output / "clusters") as folder:
        for number, cluster in enumerate(result["clusters"][: args.num_sheets]):
            frames = run_frames(mined, cluster["video_id"], cluster["cluster"])
            rows = dataset.select([positions[name] for name in frames["sample_id"]])
            name = f"{number:02d}_{cluster['cause'].replace(' ', '_')}_{file_name(cluster['cluster'])}.png"
            drawn = {"by": by, "labels": args.labels, "threshold": args.mask_threshold, "batch_size": args.batch_size}
            draw_run(model, processor, rows, frames, **drawn).save(folder / name)
        shutil.rmtree(output / "clusters", ignore_errors=True)  # an earlier call's runs are not this one's
    shutil.rmtree(output / EXPORT, ignore_errors=True)  # an earlier call's
    if args.export and result["review"]:
        rows = dataset.select([positions[entry["sample_id"]] for entry in result["review"]])
        with replaced_together(output, [EXPORT]) as folder:
            drawn = {"threshold": args.mask_threshold, "batch_size": args.batch_size, "sources": sources}
            images = drawn_images(model, processor, rows, folder / EXPORT, args.export, **drawn)
            WRITERS[args.export](folder / EXPORT, images)
        result["export"] = record(output, args.export)
    save_scores(mined, output / "scores.parquet", prints)
    write_json(output / RESULT, result)
    shutil.rmtree(output / ".partial", ignore_errors=True)

    say(f"{len(result['hard'])} of {len(mined)} samples are hard ({by} < {threshold:.4f}); buckets:")
    for bucket in result["buckets"]:
        say(f"  {bucket['from']:.2f} to {bucket['to']:.2f}{bucket['count']:>8}")
    causes = Counter(cluster["cause"] for cluster in result["clusters"])
    causes_listed = ", ".join(f"{cause} {count}" for cause, count in causes.items())
    say(f"{causes.total()} runs of hard frames, by likely cause: {causes_listed or 'none'}")
    then = f"look at them: {output / 'clusters'}"
    if args.labels and args.dataset_split != "test":  # of which nobody should be told to train on it
        trained = {"scores": output / "scores.parquet", "output_dir": output.parent / "hard_sample"}
        if args.dataset_split != "train":
            trained["dataset_train_split"] = args.dataset_split
        then = f"train on them: {command('hard_sample', **of_model(model_args), **of_data(data_args), **trained)}"
    review = f"{len(result['review'])} rows whose labels should be looked at"
    if "export" in result:
        review += f", for the annotation tool in {output / EXPORT}"
    say(review)
    done = f"{len(result['hard'])} of {len(mined)} samples are hard, {review}"
    finish(done, f"results in {output}", then, is_shown=True)
