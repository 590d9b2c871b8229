"""
All stages in one command: fine-tuning, preference optimisation on mined pairs, training on mined hard samples, and
the evaluation of each on the same held-out patients, beside as many further steps of fine-tuning.

    sa2va-trl three_stage --config tiny/three_stage

With `grpo` reinforcement learning follows on stage 3, evaluated and compared like the others. Other orders, and fewer
stages, are given by their tasks; the options of each are where they always are:

    sa2va-trl three_stage --dataset_name DIR --stages sft grpo --stage1 '{"config": "configs/tiny/sft.yaml"}' \\
        --grpo '{"config": "configs/tiny/grpo.yaml"}' --control '{"config": "configs/tiny/control.yaml"}'

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
from ..data.splits import check_pictures
from ..evaluation import compare, comparison_table, predict_probabilities
from ..evaluation.gallery import Picture, make_picture
from ..evaluation.overlays import draw_beside, save_overlays
from ..evaluation.page import REPORT, Section, Sheet, Words
from ..evaluation.report import comparison_report
from ..evaluation.results import worst_and_improved
from ..files import file_name, replaced_together, write_json
from .arguments import ComparedDataArguments, ModelArguments, RecipeParser
from .commands import command
from .loading import get_split, load_data, load_model
from .reporting import about, can_report, hard_runs, logs_of, remove_report, save_report
from .screen import finish, say
from .stages import SECTIONS, START, Plan, check_sections, draws_by_scores, plan_in_order, usual_plan
from .steps import Steps


SPLITS = ("train", "validation", "test")
STEPS = ("stage1", "preferences", "stage2", "mining", "stage3", "grpo", "control", "router", "merging")
# What steps learn from, and what they share.
DECIDED = (
    "model_name_or_path adapter dataset_name synthetic phrase dataset_split dataset_train_split dataset_eval_split "
    "preferences scores output_dir seed cache_features cache_dir dtype grounding_dtype "
    "attn_implementation"
).split()


@dataclass
class ThreeStageArguments:
    output_dir: str = field(default="outputs/three_stage", metadata={"help": "Folder for all that the steps leave."})
    first_stage: int = field(
        default=1, metadata={"help": "2 where model_name_or_path is fine-tuned already: stage 1 is left out."}
    )
    stages: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Stages in their order, of {', '.join(SECTIONS)}, each at most once; by default sft, dpo, "
            "hard_sample and, where it has options, grpo."
        },
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
        default_factory=dict,
        metadata={"help": "Options of sa2va-trl grpo; without stages it follows on stage 3, if there are any."},
    )
    control: dict = field(default_factory=dict, metadata={"help": "Options of sa2va-trl sft for the control."})
    router: dict = field(
        default_factory=dict, metadata={"help": "Options of evaluate's router to the model of hard_sample."}
    )
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
            raise ValueError("control: max_steps cannot be set there, it is that of the stages together.")
        if self.stages is not None:
            if self.first_stage != 1:
                raise ValueError("first_stage has no effect with stages: leave sft out of them.")
            self.plan()
            check_sections(self.stages, {step: getattr(self, step) for step in STEPS})
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("Start three_stage in one process; its option `launcher` starts the training steps.")

    def plan(self) -> Plan:
        """The stages that are run."""
        if self.stages is None:
            return usual_plan(self.first_stage, bool(self.grpo))
        return plan_in_order(self.stages)


def check_splits(data: DatasetDict, data_args: ComparedDataArguments, record: Path, stages: list[str] | None) -> None:
    """
    Held-out patients stay held out: the splits share nothing, and earlier steps have seen the same ones, in the same
    order of stages.
    """
    for one, other in combinations(SPLITS, 2):
        check_no_leakage(data[one], data[other], names=(one, other), images=False)
    check_pictures({split: data[split] for split in SPLITS}, data_args.accept_alike)
    own = {
        split: {
            name: sorted(set(map(str, data[split][name])))
            for name in GROUP_COLUMNS
            if name in data[split].column_names
        }
        for split in SPLITS
    }
    own["synthetic"] = data_args.synthetic
    if stages is not None:
        own["stages"] = stages
    found = json.loads(record.read_text()) if record.exists() else own
    if found.get("stages") != stages:
        before, now = (", ".join(names) if names else "not set" for names in (found.get("stages"), stages))
        raise ValueError(
            f"{record.parent} was begun with other stages ({before}; now {now}), which start from each other. Give "
            "another output_dir."
        )
    if found != own:
        raise ValueError(
            f"{record.parent} was begun with other data or splits ({record.name}): a patient held out now may have "
            "been trained on. Give another output_dir."
        )
    write_json(record, own)


def pictures(
    models: list[str], args: dict, test: Dataset, tables: list[pd.DataFrame], titles: list[str], count: int
) -> tuple[list[tuple[str, Image.Image]], dict[str, list[Picture]]]:
    """
    The worst and the most improved frames, as the first and the second model draw them: names and pictures (image,
    first model's mask, second model's), and what the page shows of them.
    """
    chosen = worst_and_improved(*tables, count)
    positions = {name: position for position, name in enumerate(test["sample_id"])}
    rows = test.select([positions[name] for name in dict.fromkeys(chosen.values())])
    predicted = []
    for name in models:
        model, processor = load_model(ModelArguments(model_name_or_path=name, **args))
        predicted.append(list(predict_probabilities(model, processor, rows, progress=False)))
    strips, read = draw_beside(predicted), {}
    for (row, first), (_, second) in zip(*predicted, strict=True):
        read[row["sample_id"]] = row, [first, second]
    before, after = (table.set_index("sample_id")["dice"] for table in tables)
    drawn, gallery = [], {"Worst": [], "Most improved": []}
    for title, name in chosen.items():
        drawn.append((f"{title}_{before[name]:.3f}_{after[name]:.3f}_{file_name(name)}", strips[name]))
        facts = dict(zip(titles, (float(before[name]), float(after[name])), strict=True))
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
    kinds = (ThreeStageArguments, ComparedDataArguments, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl three_stage", description=__doc__)


def main() -> None:
    args, data_args, model_args = make_parser().parse_args_and_config()
    if unused := [name for name in ("adapter", "quantization", "model_revision") if getattr(model_args, name, None)]:
        raise ValueError(
            f"{', '.join(unused)}: the stages start from a whole model as it is (sa2va-trl merge makes one)."
        )
    output, plan = Path(args.output_dir), args.plan()
    data = load_data(data_args)
    for split in SPLITS:
        get_split(data, split, "dataset_name")
    check_splits(data, data_args, output / "splits.json", args.stages)
    dataset = {"dataset_name": data_args.dataset_name, "synthetic": {}}  # whatever the steps' own files say
    if data_args.dataset_name == "synthetic":  # made once, and not by every step
        dataset["dataset_name"] = str(output / "data")
        if not (output / "data").exists():
            with replaced_together(output, ["data"]) as new:
                data.save_to_disk(new / "data")
    if data_args.phrase is not None:
        dataset["phrase"] = data_args.phrase
    loading = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    for name in ("grounding_dtype", "prompt_style"):
        if getattr(model_args, name) is not None:
            loading[name] = getattr(model_args, name)
    sizes = {} if (size := model_args.grounding_image_size) is None else {"grounding_image_size": size}
    stored = {"cache_features": args.cache_features}
    if args.cache_features == "on":
        stored["cache_dir"] = str(output / "features")
    trained_on = {"dataset_train_split": "train", "dataset_eval_split": "validation"}
    if data_args.accept_alike:
        trained_on["accept_alike"] = True
    run = Steps(output, args.launcher)

    def whole(name: str, base: str) -> str:
        """A model of its own: what a step has left, merged into its base if it is an adapter."""
        if not (output / name / "adapter_config.json").exists():
            return str(output / name)
        options = {"model_name_or_path": base, "adapter": output / name}
        return str(run(f"{name}/merged", "merge", {**args.merging, **options}))

    def mined(name: str, model: str) -> Path:
        """Scores of the training rows."""
        options = {"model_name_or_path": model, "dataset_split": "train", **loading, **dataset, **stored}
        scores = run(name, "mine_hard_samples", {**args.mining, **options}) / "scores.parquet"
        names = [name for name in GROUP_COLUMNS if name in data["train"].column_names]
        own = Dataset.from_pandas(pd.read_parquet(scores)[names])
        for split in ("validation", "test"):
            check_no_leakage(own, data[split], names=("mined samples", split), images=False)
        return scores

    model = model_args.model_name_or_path
    if args.prompts:
        options = {"model_name_or_path": model, "prompt": args.prompts, **loading, **sizes}
        for prompt, files, answer in first_look(run("first_look", "predict", options)):
            say(f"    {prompt:<{max(map(len, args.prompts))}}  {', '.join(map(str, files)) or answer}")

    # The stages, each from what the one before has made
    if plan.base == START:  # all steps have the starting model or one that it became, at one and the same size
        loading |= sizes
    further = {**({} if plan.begins_with_sft else sizes), "seed": args.seed, **loading, **dataset, **stored}
    models = {} if plan.begins_with_sft else {plan.base: model}
    for stage in plan.stages:
        given, options = getattr(args, SECTIONS[stage.task]), {"model_name_or_path": model, **further, **trained_on}
        if stage.task == "sft":
            seeded = {"model_name_or_path": model, "seed": args.seed}
            options = {**seeded, **trained_on, **loading, **sizes, **dataset}
        elif stage.task == "dpo":
            making = {"model_name_or_path": model, **further, "dataset_split": "train"}
            options["preferences"] = run(stage.preparation, "build_preferences", {**args.preferences, **making})
            for split, own in product(("validation", "test"), load_dataset_dict(options["preferences"]).values()):
                # (Of the pictures that have been compared.)
                check_no_leakage(own, data[split], names=("preferences", split), images=False)
        elif stage.task == "hard_sample" or draws_by_scores(given):
            options = {"model_name_or_path": model, "scores": mined(stage.preparation, model), **options}
        run(stage.folder, stage.task, {**given, **options}, train=True)
        model = models[stage.folder] = whole(stage.folder, model)

    # The control: as many further steps of fine-tuning
    judged, added = plan.names()
    steps = [json.loads((output / name / "trainer_state.json").read_text())["global_step"] for name in judged[1:]]
    options = {"model_name_or_path": models[plan.base], "max_steps": sum(steps)}
    run("control", "sft", {**args.control, **options, **further, **trained_on}, train=True)

    # Evaluation
    evaluated = {name: {"model_name_or_path": models[name]} for name in judged}
    if routed := plan.before("hard_sample"):
        ordinary, special = (models[name] for name in routed)
        routes = {"model_name_or_path": ordinary, "router_model": special, "route_split": "validation"}
        evaluated["router"] = {**routes, **args.router}
    evaluated["control"] = {"model_name_or_path": whole("control", models[plan.base])}
    evaluated |= {name: {"model_name_or_path": models[name]} for name in added}
    scored = {"dataset_split": "test", "num_overlays": 0, "report": False, **loading, **dataset, **stored}
    tables = {}
    for name, options in evaluated.items():
        folder = run(f"evaluation/{name}", "evaluate", {**options, **scored})
        tables[name] = pd.read_parquet(folder / "per_sample.parquet")
    comparison = compare(tables, "dice", plan.comparisons())
    write_json(output / "comparison.json", comparison)
    shutil.copy(output / "evaluation" / plan.last / "metrics.json", output / "metrics.json")
    two = (plan.base, plan.last)
    titles = [name.replace("stage", "stage ").replace("_", " ") for name in two]
    drawn, gallery = pictures(
        [models[name] for name in two],
        loading,
        data["test"],
        [tables[name] for name in two],
        titles,
        args.num_overlays,
    )
    save_overlays(drawn, output / "overlays")
    say(f"\n{comparison_table(comparison)}\n")
    remove_report(output)
    if is_reported := can_report():
        order = [*judged[:-1], "control", "router", plan.last, *added]
        shown = {name: tables[name] for name in order if name in tables}
        sections, files = comparison_report(comparison, shown, hard_runs(tables[plan.last]), gallery, titles, 0.5)
        if args.prompts:
            sections.insert(1, look_section(first_look(output / "first_look")))
        trained = {name: output / name for name in (*judged, *added, "control")}
        found = about([args, data_args, model_args], [output / "comparison.json"])
        subtitle = f"{data_args.dataset_name}, {len(tables[plan.base])} images of the test split"
        title = "Three stages" if args.stages is None else f"Stages: {', '.join(args.stages)}"
        save_report(output, title, subtitle, (sections, files), found, logs_of(trained))
    finish(
        f"results in {output}",
        f"the worst and the most improved frames (image, {', '.join(titles)}) are in "
        f"{output / (REPORT if is_reported else 'overlays')}",
        f"try it: {command('predict', model_name_or_path=models[plan.last])}",
    )
