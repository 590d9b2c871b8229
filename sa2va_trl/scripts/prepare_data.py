"""
Make a data set of images and annotations as they come from the cath lab or an annotation tool: read, looked at, split
by patient, without names. What an earlier run that was ended has written is kept.

    sa2va-trl prepare_data --source DIR --output_dir OUT
    sa2va-trl prepare_data --source DIR --splits '{"train": 0.8, "test": 0.2}' --patient_pattern '(P[0-9]+)_'
    sa2va-trl prepare_data --source DIR --classes '{"LAD": "coronary artery", "RCA": "coronary artery"}'
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from huggingface_hub import HfApi
from tqdm import tqdm

from ..data.dividing import DIVISIONS, splits_of
from ..data.finished import (
    MADE,
    WRITTEN,
    check_output,
    dataset_card,
    made_before,
    put_in_place,
    refuse_to_push,
    state_of,
)
from ..data.grouping import ids_by_pattern, looks_grouped
from ..data.loading import find_sources
from ..data.preparing import BURNED_IN, Item, Look, Plan, items_of, look_at, with_burned_in
from ..data.privacy import KEY_FILE, Pseudonyms, read_key
from ..data.readers.entries import Reading, Source
from ..data.thinning import thinned
from ..data.workers import Workers
from ..data.writing import OUTPUT_FORMATS, names_table, refuse_names, write_names, write_rows
from ..files import file_name
from .commands import command
from .parser import RecipeParser
from .screen import finish, say


NAMES = ("pseudonyms", "keep")
# Options that a data set does not depend on: the same command but for these knows it again.
NO_ROWS = ("source", "output_dir", "key_file", "names_table", "num_proc", "push_to_hub", "private")
# Clips whose choice of frames is drawn.
TIMELINES = 20


@dataclass
class PrepareArguments:
    # The source's own names are in messages: no log goes into the data set.
    names_people: ClassVar[bool] = True

    source: str = field(metadata={"help": "Folder of images and annotations."})
    output_dir: str = field(
        default="outputs/data", metadata={"help": "Folder for the data set; it must not be there."}
    )
    format: str = field(
        default="auto", metadata={"help": "Format of the source, where it could be taken for several."}
    )
    phrase: str | None = field(default=None, metadata={"help": "What all masks show, whatever their class."})
    classes: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Classes to read and their phrases, {"LAD": "coronary artery"}; those of one phrase are joined.'
        },
    )
    phrase_templates: list[str] | None = field(
        default=None, metadata={"help": "Sentences with {phrase}, which rows have in turn."}
    )
    instances: str | None = field(
        default=None,
        metadata={"help": "Objects of one phrase in an image: join or separate; by the format by default."},
    )
    mask_suffix: str | None = field(
        default=None, metadata={"help": "What names of masks have behind those of their images: _gt."}
    )
    mask_threshold: float | None = field(
        default=None, metadata={"help": "The object is where a mask that is not binary is at least this."}
    )
    secondary_captures: bool = field(
        default=False, metadata={"help": "Read secondary captures of DICOM, too, which are screenshots mostly."}
    )
    patient_pattern: str | None = field(
        default=None,
        metadata={
            "help": r"Regular expression whose first group is the patient in a file's name, where the source does not "
            r"say who it is: (P\d+)_."
        },
    )
    frame_sampler: str | None = field(
        default=None,
        metadata={"help": "How frames of each clip are chosen: uniform, contrast, cardiac, diverse; all by default."},
    )
    frames_per_clip: int | None = field(default=None, metadata={"help": "How many frames it chooses of each clip."})
    splits: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Shares or numbers of rows by split, {"train": 1000, "test": 220}; those of the source by default.'
        },
    )
    split_by: str = field(
        default="auto",
        metadata={
            "help": "What is kept together: patient_id, video_id, near_duplicates, sample_id; auto is the first "
            "that there is."
        },
    )
    seed: int = field(default=0, metadata={"help": "Random seed of the splits."})
    accept_alike: bool = field(
        default=False, metadata={"help": "Accept images of two splits that look alike; equal ones never are."}
    )
    output_format: str = field(
        default="parquet", metadata={"help": "parquet, with the pictures in it, or imagefolder."}
    )
    names: str = field(
        default="pseudonyms", metadata={"help": "Of patients, videos and images: pseudonyms, or keep those there are."}
    )
    key_file: str | None = field(
        default=None, metadata={"help": f"Key of the pseudonyms, made if it is not there; {KEY_FILE} by default."}
    )
    names_table: str | None = field(
        default=None, metadata={"help": "CSV file outside of the data set: which row is which image and patient."}
    )
    harmless_names: list[str] | None = field(
        default=None, metadata={"help": "Names of files and folders that are nobody's, and may stand in phrases."}
    )
    num_proc: int = field(default=1, metadata={"help": "Processes that decode and write."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Id of a data set on the Hub to push it to."})
    private: bool = field(default=True, metadata={"help": "Whether a new data set on the Hub is private."})

    def __post_init__(self):
        for name in ("classes", "splits"):
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    setattr(self, name, json.loads(value))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{name} must be JSON, got {value!r} ({error}).") from error
        if self.splits is not None and not isinstance(self.splits, dict):
            raise ValueError(f'splits must be shares by split, {{"train": 0.8, "test": 0.2}}, got {self.splits!r}.')
        if self.splits is not None and not all(
            isinstance(share, int | float) and 0 < share < math.inf for share in self.splits.values()
        ):
            raise ValueError(f"splits must have shares above 0, got {self.splits}.")
        if self.splits and max(self.splits.values()) < 1 and not math.isclose(sum(self.splits.values()), 1):
            total = sum(self.splits.values())
            raise ValueError(f"splits must add up to 1, or be numbers of rows: {self.splits} add up to {total:g}.")
        if self.split_by not in DIVISIONS:
            raise ValueError(f"split_by must be one of {', '.join(DIVISIONS)}, got {self.split_by!r}.")
        if self.output_format not in OUTPUT_FORMATS:
            raise ValueError(f"output_format must be one of {', '.join(OUTPUT_FORMATS)}, got {self.output_format!r}.")
        if self.splits is not None and not all(re.fullmatch(r"[A-Za-z]\w*", name) for name in self.splits):
            raise ValueError(f"names of splits are letters, digits and _, got {', '.join(self.splits)}.")
        if not self.splits and (self.split_by != "auto" or self.seed):
            raise ValueError("split_by and seed have no effect without splits.")
        if self.names not in NAMES:
            raise ValueError(f"names must be one of {', '.join(NAMES)}, got {self.names!r}.")
        if self.names == "keep":
            for name in ("key_file", "names_table", "harmless_names"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect with names=keep.")
            if self.push_to_hub:
                raise ValueError("push_to_hub needs names=pseudonyms: what is pushed holds no names.")
        if (self.frame_sampler is None) != (self.frames_per_clip is None):
            raise ValueError("frame_sampler and frames_per_clip go together.")
        if self.frames_per_clip is not None and self.frames_per_clip < 1:
            raise ValueError(f"frames_per_clip must be at least 1, got {self.frames_per_clip}.")
        if self.num_proc < 1:
            raise ValueError(f"num_proc must be at least 1, got {self.num_proc}.")
        self.reading()

    def reading(self) -> Reading:
        """How the source becomes rows."""
        return Reading(
            phrase=self.phrase,
            classes=self.classes,
            templates=tuple(self.phrase_templates or ()),
            instances=self.instances,
            mask_suffix=self.mask_suffix,
            mask_threshold=self.mask_threshold,
            secondary_captures=self.secondary_captures,
        )


def with_patients(items: list[Item], pattern: str | None) -> list[Item]:
    """Items with the patient that their name says where nothing else does, or a warning where names look so."""
    if pattern is None:
        unknown = [item.entry.name for item in items if not {"patient_id", "video_id"} & item.entry.facts.keys()]
        if start := looks_grouped(unknown):
            say(
                f"WARNING: names look like frames of patients or clips (many begin with {start!r}); give "
                "--patient_pattern, or rows of one patient may come into several splits"
            )
        return items
    known = [item.entry.facts.get("patient_id") for item in items]
    ids = ids_by_pattern([item.entry.name for item in items], pattern, known)
    return [
        item._replace(entry=item.entry._replace(facts={**item.entry.facts, "patient_id": own}))
        for item, own in zip(items, ids, strict=True)
    ]


def save_timelines(part: Path, clips: list[tuple[str, dict]], key: bytes | None) -> None:
    """Pictures of what was chosen of the first clips, under the names that these have in rows."""
    from ..evaluation.frame_timeline import save_timeline  # (which takes seconds to import)

    if not clips or find_spec("matplotlib") is None:
        return
    for video, report in clips[:TIMELINES]:
        name = file_name(video) if key is None else Pseudonyms(key)("video", video)
        save_timeline(part / "timelines" / f"{name}.png", report)


def _burned_in(items: Iterable[Item]) -> dict[str, int]:
    found = Counter(item.entry.facts.get("burned_in_text") for item in items)
    return {name: found[name] for name in BURNED_IN if found[name]}


def report_of(items: list[Item], looks: list[Look], splits: list[str], by: str, args: PrepareArguments) -> dict:
    """Numbers of rows, groups and phrases of each split; no name."""
    found = {}
    for split in dict.fromkeys(splits):
        rows = [row for row, own in enumerate(splits) if own == split]
        groups = {
            f"{kind}s": len({items[row].entry.facts[f"{kind}_id"] for row in rows})
            for kind in ("patient", "video")
            if all(items[row].entry.facts.get(f"{kind}_id") for row in rows)
        }
        found[split] = {
            "rows": len(rows),
            **groups,
            **({"burned_in_text": texts} if (texts := _burned_in(items[row] for row in rows)) else {}),
            "without_object": sum(not looks[row].objects for row in rows),
            "mean_area": sum(looks[row].area for row in rows) / len(rows),
            "phrases": dict(Counter(phrase for row in rows for phrase in looks[row].phrases).most_common()),
        }
    return {"splits": found, "split_by": by, "seed": args.seed, "names": args.names}


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    return RecipeParser((PrepareArguments,), prog="sa2va-trl prepare_data", description=__doc__)


def make(
    items: list[Item],
    clips: list[tuple[str, dict]],
    found: list[Source],
    plan: Plan,
    args: PrepareArguments,
    state: str,
) -> dict:
    """Look at everything, divide it, write it, and bring it to its place; the report of it."""
    source, output = Path(args.source).expanduser(), Path(args.output_dir)
    with Workers(args.num_proc) as workers:
        with tqdm(total=len(items), desc="look", unit="row") as bar:
            looks, thumbnails = look_at(items, found, plan.reading, workers, bar.update)
        items = with_burned_in(items, looks)
        by, splits = splits_of(items, looks, thumbnails, plan)
        if plan.key is not None:
            refuse_names(items, looks, splits, source, plan)
        with tqdm(total=len(items), desc="write", unit="row") as bar:
            part = write_rows(items, looks, splits, found, source, plan, output, workers, bar.update)
    report = report_of(items, looks, splits, by, args)
    if clips:
        report["frames"] = {"sampler": args.frame_sampler, "of_each_clip": args.frames_per_clip, "clips": len(clips)}
        save_timelines(part, clips, plan.key)
    card = dataset_card(sorted(set(splits)), plan.key is not None, args.output_format)
    put_in_place(part, output, report, card, state)
    return report


def tell(report: dict, args: PrepareArguments, annotated: bool) -> None:
    """Say what a data set holds, and what is to be seen to."""
    for split, own in report["splits"].items():
        groups = "".join(f", {own[name]} {name}" for name in ("patients", "videos") if name in own)
        empty = f", {own['without_object']} without any object" if own["without_object"] else ""
        say(f"{split}: {own['rows']} rows{groups}{empty}")
    if args.splits:
        say(f"split by {report['split_by']}")
    if not annotated:
        say("pictures without annotations have no masks: they are there to be annotated, not to train on")
    texts = sum((Counter(own.get("burned_in_text", {})) for own in report["splits"].values()), Counter())
    if texts["yes"] or texts["suspected"]:
        say(
            f"WARNING: {texts['yes']} pictures have text burned into them, as their files say, and "
            f"{texts['suspected']} are of clips in which bright text seems to stand still (burned_in_text: yes, "
            "suspected): look at them with inspect, see below, before you share them"
        )


def main() -> None:
    (args,) = make_parser().parse_args_and_config()
    source, output, reading = Path(args.source).expanduser(), Path(args.output_dir), args.reading()
    check_output(output, source)
    outside = {"names_table": args.names_table}
    if args.names == "pseudonyms":
        outside["key_file"] = args.key_file or KEY_FILE
    for name, file in outside.items():
        place = file and Path(file).expanduser().resolve()
        if place and (place.is_relative_to(output.resolve()) or place.is_relative_to(source.resolve())):
            raise ValueError(f"{name}={file} must lie outside of the data set and of its source.")
    sources = find_sources(source, reading, args.format)
    for own in sources.values():
        reading.check_labels(own.labels, own.place)
    items = everything = with_patients(items_of(sources), args.patient_pattern)
    key = read_key(outside["key_file"]) if "key_file" in outside else None
    options = {name: value for name, value in asdict(args).items() if name not in NO_ROWS}
    state = state_of(source, options, key)
    report, clips = made_before(output, state), []
    table = args.names_table and Path(args.names_table).expanduser()
    if args.frame_sampler and (report is None or table):
        with tqdm(total=len(items), desc="choose", unit="frame") as bar:
            items, clips = thinned(items, reading, args.frame_sampler, args.frames_per_clip, bar.update)
        say(f"{args.frame_sampler}: {len(items)} of {len(everything)} images, of {len(clips)} clips")
    names = names_table(items, key) if table else b""
    if table and table.exists() and table.read_bytes() != names:
        raise ValueError(f"names_table={table} is there already: name another file, or remove it.")
    plan = Plan(
        reading,
        key,
        args.splits or {},
        args.split_by,
        args.seed,
        args.accept_alike,
        args.output_format,
        tuple(args.harmless_names or ()),
    )
    if report is None:
        report = make(items, clips, list(sources.values()), plan, args, state)
    else:
        say(f"{output} has been made before, by the same options of the same data")
    if table:
        write_names(table, names)
    tell(report, args, all(own.annotated for own in sources.values()))
    if key is not None:
        say(f"pseudonyms by the key in {outside['key_file']}: keep it, and to yourself")
    if args.push_to_hub:
        refuse_to_push(output, report, everything, source, plan)
        api = HfApi()
        api.create_repo(args.push_to_hub, repo_type="dataset", private=args.private, exist_ok=True)
        # (Rows of an earlier push would be read along.)
        api.upload_folder(
            repo_id=args.push_to_hub,
            repo_type="dataset",
            folder_path=os.fspath(output),
            delete_patterns=WRITTEN,
            ignore_patterns=[MADE],
        )
    wrote = f"data set in {output}" + (f", pushed to {args.push_to_hub}" if args.push_to_hub else "")
    then = command("inspect", dataset_name=str(output), output_dir=f"{output}_inspection")
    rows = sum(own["rows"] for own in report["splits"].values())
    finish(f"{rows} rows", wrote, f"look at it: {then}", is_shown=True)
