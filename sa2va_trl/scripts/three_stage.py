"""
All stages in one command: fine-tuning, preference optimisation on mined pairs, training on mined hard samples, and
the evaluation of each on the same held-out patients, beside as many further steps of fine-tuning.

    sa2va-trl three_stage --config tiny/three_stage

With `grpo` reinforcement learning follows on stage 3, evaluated and compared like the others.

Every step is a run of another task; log.txt has its command and all that it prints. One that was ended is taken up at
its last checkpoint, and one that is done is not run again. To train on several processes, set `launcher`, which starts
the training steps:

    sa2va-trl three_stage --config sa2va_internvl3_8b/three_stage --dataset_name DIR \\
        --launcher "accelerate launch --use_deepspeed --zero_stage 3 --zero3_init_flag true \\
        --zero3_save_16bit_model true"
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict
from PIL import Image

from ..data import check_no_leakage, load_dataset_dict
from ..data.columns import GROUP_COLUMNS
from ..evaluation import compare, comparison_table, predict_probabilities
from ..evaluation.gallery import Picture, make_picture
from ..evaluation.overlays import draw_beside, save_overlays
from ..evaluation.page import REPORT, Section, Sheet, Words
from ..evaluation.report import comparison_report
from ..evaluation.results import worst_and_improved
from ..files import file_name, replaced_together, write_json
from .arguments import DataArguments, ModelArguments, RecipeParser
from .commands import command
from .loading import get_split, load_data, load_model
from .reporting import about, can_report, hard_runs, logs_of, remove_report, save_report
from .screen import finish, say
from .steps import Steps


SPLITS = ("train", "validation", "test")
STEPS = ("stage1", "preferences", "stage2", "mining", "stage3", "grpo", "control", "router", "merging")
# What steps learn from, and what they share.
DECIDED = (
    "model_name_or_path adapter dataset_name synthetic phrase dataset_split dataset_train_split dataset_eval_split "
    "preferences scores output_dir seed cache_features cache_dir dtype attn_implementation"
).split()


@dataclass
class ThreeStageArguments:
    output_dir: str = field(default="outputs/three_stage", metadata={"help": "Folder for all that the steps leave."})
    first_stage: int = field(
        default=1, metadata={"help": "2 where model_name_or_path is fine-tuned already: stage 1 is left out."}
    )
    launcher: str = field(default="", metadata={"help": 'What starts training: "accelerate launch --config_file …".'})
    seed: int = field(default=0, metadata={"help": "Random seed of all steps."})
    cache_features: str = field(default="on", metadata={"help": "Frozen features after stage 1: on or off."})
    prompts: list[str] = field(
        default_factory=list, metadata={"help": "Asked of the model on a generated clip, before anything is trained."}
    )
    stage1: dict = field(default_factory=dict, metadata={"help": "Options of sa2va-trl sft."})
    preferences: dict = field(default_factory=dict, metadata={"help": "Options of sa2va-trl build_preferences."})
    stage2: dict = field(default_factory=dict, metadata={"help": "Options of sa2va-trl dpo."})
    mining: dict = field(default_factory=dict, metadata={"help": "Options of sa2va-trl mine_hard_samples."})
    stage3: dict = field(default_factory=dict, metadata={"help": "Options of sa2va-trl hard_sample."})
    grpo: dict = field(
        default_factory=dict, metadata={"help": "Options of sa2va-trl grpo, after stage 3; left out without any."}
    )
    control: dict = field(default_factory=dict, metadata={"help": "Options of sa2va-trl sft for the control."})
    router: dict = field(default_factory=dict, metadata={"help": "Options of evaluate's router from stage 2 to 3."})
    merging: dict = field(default_factory=dict, metadata={"help": "Options of sa2va-trl merge."})
    num_overlays: int = field(default=6, metadata={"help": "Pictures of the worst frames, and of the most improved."})

    def __post_init__(self):
        if self.first_stage not in (1, 2):
            raise ValueError(f"first_stage must be 1 or 2, got {self.first_stage}.")
        if self.cache_features not in ("on", "off"):
            raise ValueError(f"cache_features must be on or off, got {self.cache_features!r}.")
        if isinstance(self.prompts, str) or len(self.prompts) == 1 or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(f"prompts: give several different ones, or none; got {self.prompts!r}.")
        for step in STEPS:
            if given := [name for name in DECIDED if name in getattr(self, step)]:
                raise ValueError(f"{step}: {', '.join(given)} cannot be set there, three_stage decides it.")
        if "max_steps" in self.control:
            raise ValueError("control: max_steps cannot be set there, it is that of stages 2 and 3 together.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("Start three_stage in one process; its option `launcher` starts the training steps.")


def check_splits(data: DatasetDict, data_args: DataArguments, record: Path) -> None:
    """Held-out patients stay held out: the splits share nothing, and earlier steps have seen the same ones."""
    for one, other in combinations(SPLITS, 2):
        check_no_leakage(data[one], data[other], names=(one, other))
    own = {
        split: {
            name: sorted(set(map(str, data[split][name])))
            for name in GROUP_COLUMNS
            if name in data[split].column_names
        }
        for split in SPLITS
    }
    own["synthetic"] = data_args.synthetic
    if record.exists() and json.loads(record.read_text()) != own:
        raise ValueError(
            f"{record.parent} was begun with other data or splits ({record.name}): a patient held out now may have "
            "been trained on. Give another output_dir."
        )
    write_json(record, own)


def pictures(
    models: list[str], args: dict, test: Dataset, before: pd.DataFrame, after: pd.DataFrame, count: int
) -> tuple[list[tuple[str, Image.Image]], dict[str, list[Picture]]]:
    """
    The worst and the most improved frames, as the first and the second model draw them: names and pictures (image,
    first model's mask, second model's), and what the page shows of them.
    """
    chosen = worst_and_improved(before, after, count)
    positions = {name: position for position, name in enumerate(test["sample_id"])}
    rows = test.select([positions[name] for name in dict.fromkeys(chosen.values())])
    predicted = []
    for name in models:
        model, processor = load_model(ModelArguments(model_name_or_path=name, **args))
        predicted.append(list(predict_probabilities(model, processor, rows, progress=False)))
    strips, read = draw_beside(predicted), {}
    for (row, first), (_, second) in zip(*predicted, strict=True):
        read[row["sample_id"]] = row, [first, second]
    before, after = (table.set_index("sample_id")["dice"] for table in (before, after))
    drawn, gallery = [], {"Worst": [], "Most improved": []}
    for title, name in chosen.items():
        drawn.append((f"{title}_{before[name]:.3f}_{after[name]:.3f}_{file_name(name)}", strips[name]))
        facts = {"stage 1": float(before[name]), "stage 3": float(after[name])}
        group = "Worst" if title.startswith("worst") else "Most improved"
        gallery[group].append(make_picture(*read[name], facts))
    return drawn, gallery


def first_look(folder: Path) -> list[tuple[str, list[Path], str]]:
    """Of each prompt the overlays of the frame in the middle, and the answer."""
    entries = json.loads((folder / "predictions.json").read_text())["predictions"]
    middle = max(entry["frame"] for entry in entries) // 2
    return [
        (entry["prompt"], [folder / found["overlay"] for found in entry["objects"]], entry["text"])
        for entry in entries
        if entry["frame"] == middle
    ]


def look_section(looks: list[tuple[str, list[Path], str]]) -> Section:
    """What the page shows of a first look: the overlays, and the answers where nothing was drawn."""
    seen = [(file.read_bytes(), prompt) for prompt, files, _ in looks for file in files]
    parts = [Words("What the model makes of a generated angiogram."), Sheet(seen)]
    if unseen := [f"{prompt} {answer}" for prompt, files, answer in looks if not files]:
        parts.append(Words("\n".join(unseen), plain=True))
    return Section("Before training", parts)


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (ThreeStageArguments, DataArguments, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl three_stage", description=__doc__)


def main() -> None:
    args, data_args, model_args = make_parser().parse_args_and_config()
    if unused := [name for name in ("adapter", "quantization", "model_revision") if getattr(model_args, name, None)]:
        raise ValueError(
            f"{', '.join(unused)}: the stages start from a whole model as it is (sa2va-trl merge makes one)."
        )
    output = Path(args.output_dir)
    data = load_data(data_args)
    for split in SPLITS:
        get_split(data, split, "dataset_name")
    check_splits(data, data_args, output / "splits.json")
    dataset = {"dataset_name": data_args.dataset_name, "synthetic": {}}  # whatever the steps' own files say
    if data_args.dataset_name == "synthetic":  # made once, and not by every step
        dataset["dataset_name"] = str(output / "data")
        if not (output / "data").exists():
            with replaced_together(output, ["data"]) as new:
                data.save_to_disk(new / "data")
    if data_args.phrase is not None:
        dataset["phrase"] = data_args.phrase
    loading = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    if model_args.prompt_style is not None:
        loading["prompt_style"] = model_args.prompt_style
    sizes = {} if (size := model_args.grounding_image_size) is None else {"grounding_image_size": size}
    stored = {"cache_features": args.cache_features}
    if args.cache_features == "on":
        stored["cache_dir"] = str(output / "features")
    trained_on = {"dataset_train_split": "train", "dataset_eval_split": "validation"}
    run = Steps(output, args.launcher)

    def whole(name: str, base: str) -> str:
        """A model of its own: what a step has left, merged into its base if it is an adapter."""
        if not (output / name / "adapter_config.json").exists():
            return str(output / name)
        options = {"model_name_or_path": base, "adapter": output / name}
        return str(run(f"{name}/merged", "merge", {**args.merging, **options}))

    first = model_args.model_name_or_path
    if args.prompts:
        options = {"model_name_or_path": first, "prompt": args.prompts, **loading, **sizes}
        for prompt, files, answer in first_look(run("first_look", "predict", options)):
            say(f"    {prompt:<{max(map(len, args.prompts))}}  {', '.join(map(str, files)) or answer}")

    # Stage 1
    if args.first_stage == 1:
        options = {"model_name_or_path": first, "seed": args.seed, **trained_on, **loading, **sizes, **dataset}
        run("stage1", "sft", {**args.stage1, **options}, train=True)
        first = whole("stage1", first)
    after_first = {**({} if args.first_stage == 1 else sizes), "seed": args.seed, **loading, **dataset, **stored}

    # Stage 2
    options = {"model_name_or_path": first, **after_first}
    pairs = run("preferences", "build_preferences", {**args.preferences, **options, "dataset_split": "train"})
    for split, own in product(("validation", "test"), load_dataset_dict(pairs).values()):
        check_no_leakage(own, data[split], names=("preferences", split))
    run("stage2", "dpo", {**args.stage2, **options, **trained_on, "preferences": pairs}, train=True)
    second = whole("stage2", first)

    # Stage 3
    options = {"model_name_or_path": second, "dataset_split": "train", **loading, **dataset, **stored}
    mined = run("mining", "mine_hard_samples", {**args.mining, **options})
    names = [name for name in GROUP_COLUMNS if name in data["train"].column_names]
    scores = Dataset.from_pandas(pd.read_parquet(mined / "scores.parquet")[names])
    for split in ("validation", "test"):
        check_no_leakage(scores, data[split], names=("mined samples", split))
    options = {"model_name_or_path": second, "scores": mined / "scores.parquet", **after_first}
    run("stage3", "hard_sample", {**args.stage3, **options, **trained_on}, train=True)
    third = whole("stage3", second)

    # Reinforcement learning, where it is asked for
    fourth = None
    if args.grpo:
        options = {"model_name_or_path": third, **after_first, **trained_on}
        run("grpo", "grpo", {**args.grpo, **options}, train=True)
        fourth = whole("grpo", third)

    # The control: as many steps of what stage 1 does
    states = [json.loads((output / name / "trainer_state.json").read_text()) for name in ("stage2", "stage3")]
    options = {"model_name_or_path": first, "max_steps": sum(state["global_step"] for state in states)}
    run("control", "sft", {**args.control, **options, **after_first, **trained_on}, train=True)
    control = whole("control", first)

    # Evaluation
    tables = {}
    scored = {
        "dataset_split": "test",
        "num_overlays": 0,
        "report": False,
        **loading,
        **dataset,
        **stored,
    }
    routed = {"model_name_or_path": second, "router_model": third, "route_split": "validation", **args.router}
    for name, options in {
        "stage1": {"model_name_or_path": first},
        "stage2": {"model_name_or_path": second},
        "stage3": {"model_name_or_path": third},
        "router": routed,
        "control": {"model_name_or_path": control},
        **({"grpo": {"model_name_or_path": fourth}} if fourth else {}),
    }.items():
        folder = run(f"evaluation/{name}", "evaluate", {**options, **scored})
        tables[name] = pd.read_parquet(folder / "per_sample.parquet")
    against = [("stage1", "stage2"), ("stage2", "stage3"), ("stage1", "stage3"), ("stage2", "router")]
    against += [("stage1", "control"), ("control", "stage3")]
    against += [("stage3", "grpo"), ("stage1", "grpo")] if fourth else []
    comparison = compare(tables, "dice", against)
    write_json(output / "comparison.json", comparison)
    shutil.copy(output / "evaluation/stage3/metrics.json", output / "metrics.json")
    drawn, gallery = pictures(
        [first, third], loading, data["test"], tables["stage1"], tables["stage3"], args.num_overlays
    )
    save_overlays(drawn, output / "overlays")
    say(f"\n{comparison_table(comparison)}\n")
    remove_report(output)
    if is_reported := can_report():
        order = ("stage1", "stage2", "control", "router", "stage3", "grpo")
        last = {name: tables[name] for name in order if name in tables}
        sections, files = comparison_report(
            comparison, last, hard_runs(tables["stage3"]), gallery, ["stage 1", "stage 3"], 0.5
        )
        if args.prompts:
            sections.insert(1, look_section(first_look(output / "first_look")))
        trained = {name: output / name for name in ("stage1", "stage2", "stage3", "grpo", "control") if name in tables}
        found = about([args, data_args, model_args], [output / "comparison.json"])
        subtitle = f"{data_args.dataset_name}, {len(tables['stage1'])} images of the test split"
        save_report(output, "Three stages", subtitle, (sections, files), found, logs_of(trained))
    finish(
        f"results in {output}",
        f"the worst and the most improved frames (image, stage 1, stage 3) are in "
        f"{output / (REPORT if is_reported else 'overlays')}",
        f"try it: {command('predict', model_name_or_path=third)}",
    )
