"""All stages in one command. The steps run in this process, where a real run starts a new one for each."""

import json
import re
import subprocess
import sys
from dataclasses import make_dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from datasets import DatasetDict
from PIL import Image
from tasks import run_task

from sa2va_trl.data import DatasetError, synthetic_dataset
from sa2va_trl.scripts import three_stage as script
from sa2va_trl.scripts.steps import StepError
from sa2va_trl.scripts.three_stage import first_look, look_section


ROOT = Path(__file__).parents[2]
TRAINING = {
    "num_points": 0,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "per_device_train_batch_size": 2,
    "max_steps": 2,
}
HEAD = {**TRAINING, "trainable": "head", "learning_rate": 1e-4}
OPTIONS = {
    "model_name_or_path": "tiny-random",
    "grounding_image_size": 128,
    "synthetic": {"train_videos": 2, "validation_videos": 1, "test_videos": 2, "frames_per_video": 3, "size": 64},
    "num_overlays": 2,
    # An untrained model draws nothing like a vessel: no gap is too small, and its worst half is hard.
    "preferences": {"min_gap": 0.0, "rejected": ["greedy", "dilated"]},
    "stage2": {**HEAD, "score": "region", "sft_weight": 1.0},
    "mining": {"worst": 0.5, "tau_low": 0.0},
    "stage3": {**HEAD, "worst": 0.5, "easy_share": 0.5, "gradient_accumulation_steps": 1, "include_review": True},
    "control": {**{name: value for name, value in HEAD.items() if name != "max_steps"}, "lm_weight": 0.0},
    "router": {"route_by": "spread"},
}
PROMPTS = ["Where is the catheter?", "And the vessel?"]


class Runner:
    """Stands in for `subprocess`: runs a recipe here, or fails where it is told to."""

    def __init__(self):
        self.lines, self.fail_at = [], None
        self.also = {"predict": ["--answer", "Sure, [SEG]."]}  # what an untrained model would say, has no end

    def run(self, line, check, **kwargs):
        assert check and line[0] == sys.executable
        assert line[1:3] == ["-m", "sa2va_trl.cli"]
        name = line[3]
        if name == self.fail_at:
            raise subprocess.CalledProcessError(1, line)
        self.lines.append(line[3:])
        run_task(*line[3:], *self.also.get(name, []))

    @property
    def names(self):
        return [line[0] for line in self.lines]


@pytest.fixture
def steps(monkeypatch):
    runner = Runner()
    monkeypatch.setattr(subprocess, "run", runner.run)
    return runner


def three_stage(folder, **options):
    file = folder / "options.yaml"
    file.write_text(yaml.safe_dump({**OPTIONS, "output_dir": str(folder / "out"), **options}))
    run_task("three_stage", "--config", file)


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """Two steps of the tiny model."""
    folder = tmp_path_factory.mktemp("stage1")
    file = folder / "options.yaml"
    options = {name: OPTIONS[name] for name in ("model_name_or_path", "grounding_image_size", "synthetic")}
    file.write_text(yaml.safe_dump({**options, **TRAINING, "trainable": "full", "output_dir": str(folder / "model")}))
    run_task("sft", "--config", file)
    return {"first_stage": 2, "model_name_or_path": str(folder / "model"), "grounding_image_size": None}


def test_options_that_no_step_takes_are_refused(tmp_path, steps):
    for name, value in {"adapter": "nowhere", "quantization": "4bit", "model_revision": "abc"}.items():
        with pytest.raises(ValueError, match=f"^{name}: the stages start from a whole model"):
            three_stage(tmp_path, model_name_or_path="owner/model", **{name: value})
    assert not steps.names


def test_three_stages_from_the_start_and_again(tmp_path, steps, capsys):
    stage1 = {**TRAINING, "trainable": "stage1", "lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0}
    steps.fail_at = "hard_sample"
    with pytest.raises(StepError):
        three_stage(tmp_path, stage1=stage1, prompts=PROMPTS)
    look = str(tmp_path / "out" / "first_look" / "overlays" / "synthetic_f00003.prompt")
    said = capsys.readouterr().out
    assert all(f"    {prompt:<22}  {look}{number}.png\n" in said for number, prompt in enumerate(PROMPTS))
    assert all("--grounding_image_size 128" in " ".join(line) for line in steps.lines[:2])
    before = ["predict", "sft", "merge", "build_preferences", "dpo", "merge", "mine_hard_samples"]
    assert steps.names == before
    steps.fail_at = None
    three_stage(tmp_path, stage1=stage1, prompts=PROMPTS)
    after = ["hard_sample", "merge", "sft", "merge", *["evaluate"] * 5]
    assert steps.names == [*before, *after]

    output = tmp_path / "out"
    comparison = json.loads((output / "comparison.json").read_text())
    assert list(comparison["runs"]) == ["stage1", "stage2", "stage3", "router", "control"]
    assert [(entry["before"], entry["after"]) for entry in comparison["differences"]] == [
        *(("stage1", "stage2"), ("stage2", "stage3"), ("stage1", "stage3")),
        *(("stage2", "router"), ("stage1", "control"), ("control", "stage3")),
    ]
    assert {"mean", "ci95", "wilcoxon_p_holm", "improved"} <= comparison["differences"][0].keys()
    for name, run in comparison["runs"].items():
        table = pd.read_parquet(output / "evaluation" / name / "per_sample.parquet")
        assert run["n"] == len(table) == 6 and run["mean"] == pytest.approx(table["dice"].mean())
        assert set(table["video_id"]) == {"v0000", "v0001"}
    assert json.loads((output / "metrics.json").read_text())["dice"]["n"] == 6
    # The control takes as many steps as stages 2 and 3 together.
    states = [
        json.loads((output / name / "trainer_state.json").read_text()) for name in ("stage2", "stage3", "control")
    ]
    assert [state["global_step"] for state in states] == [2, 2, 4]
    # Each stage can be used by itself.
    for name in ("stage1", "stage2", "stage3"):
        assert (output / name / "adapter_config.json").is_file()
        assert (output / name / "merged" / "model.safetensors").is_file()
    pictures = sorted((output / "overlays").iterdir())
    assert 2 <= len(pictures) <= 4 and Image.open(pictures[0]).size == (3 * 64, 64)

    # The page shows what was seen before training, and the pictures.
    page = (output / "report.html").read_text()
    assert all(f"<figcaption>{prompt}</figcaption>" in page for prompt in PROMPTS)
    assert page.count('class="picture"') == len(pictures) and page.count('class="stack"') == 2 * len(pictures)
    assert "stage3 - control" in page and ">Training<" in page and 'src="data:' in page
    assert not re.search(r'src="(?!data:)', page)

    capsys.readouterr()
    three_stage(tmp_path, stage1=stage1, prompts=PROMPTS)
    assert len(steps.names) == len(before) + len(after)
    assert "stage3 - control" in capsys.readouterr().out
    with pytest.raises(ValueError, match="stage2 was made with other options"):
        three_stage(tmp_path, stage1=stage1, prompts=PROMPTS, stage2={**OPTIONS["stage2"], "score": "dice"})
    for change in ({"test_videos": 1}, {"size": 96}):
        with pytest.raises(ValueError, match="begun with other data or splits"):
            three_stage(tmp_path, stage1=stage1, prompts=PROMPTS, synthetic={**OPTIONS["synthetic"], **change})


def test_answers_without_a_mask_are_shown_as_they_are(tmp_path):
    folder = tmp_path / "out, of order" / "first_look"
    folder.mkdir(parents=True)
    entries = [
        {"frame": frame, "prompt": prompt, "text": text, "objects": [{"overlay": f"overlays/{frame}.png"}] * objects}
        for frame in (0, 1)
        for prompt, text, objects in (("Both?", "[SEG] [SEG]", 2), ("A catheter?", "No <b>, see x.png", 0))
    ]
    (folder / "predictions.json").write_text(json.dumps({"predictions": entries}))
    drawn = 2 * [folder / "overlays" / "0.png"]
    drawn[0].parent.mkdir()
    drawn[0].write_bytes(b"a picture")
    looks = first_look(folder)
    assert looks == [("Both?", drawn, "[SEG] [SEG]"), ("A catheter?", [], "No <b>, see x.png")]
    _, sheet, words = look_section(looks).parts
    assert sheet.pictures == 2 * [(b"a picture", "Both?")]
    assert words.plain and words.text == "A catheter? No <b>, see x.png"


@pytest.mark.parametrize(
    ("section", "name"), [("preferences", "preferences"), ("mining", "mined samples")], ids=["pairs", "scores"]
)
def test_held_out_patients_in_a_step_are_an_error(monkeypatch, tmp_path, steps, stage1, section, name):
    recipe = {"preferences": "build_preferences", "mining": "mine_hard_samples"}[section]
    run = steps.run

    def leaky(line, check, **kwargs):
        return run([*line, "--dataset_split", "test"] if line[3] == recipe else line, check)

    monkeypatch.setattr(subprocess, "run", leaky)
    with pytest.raises(DatasetError, match=f"{name} and test overlap"):
        three_stage(tmp_path, **stage1)
    assert "hard_sample" not in steps.names


def test_what_cannot_work_is_said_before_anything_runs(monkeypatch, tmp_path, steps):
    with pytest.raises(ValueError, match="first_stage must be 1 or 2"):
        three_stage(tmp_path, first_stage=3)
    with pytest.raises(ValueError, match="cache_features must be on or off"):
        three_stage(tmp_path, cache_features="auto")
    for prompts in ("one text", ["one"], ["one", "one"]):
        with pytest.raises(ValueError, match="prompts: give several different ones, or none"):
            three_stage(tmp_path, prompts=prompts)
    for step, option in (
        ("stage1", "dataset_train_split"),
        ("preferences", "dataset_split"),
        ("control", "max_steps"),
    ):
        with pytest.raises(ValueError, match=f"{step}: {option} cannot be set there"):
            three_stage(tmp_path, **{step: {option: "test"}})
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="launcher"):
            three_stage(tmp_path)
    assert steps.lines == [] and not (tmp_path / "out").exists()


def test_training_steps_are_started_by_the_launcher(monkeypatch, tmp_path, stage1):
    lines = []

    def run(line, check, **kwargs):
        lines.append(line)
        raise subprocess.CalledProcessError(1, line)

    monkeypatch.setattr(subprocess, "run", run)
    options = {"stage1": {**TRAINING, "trainable": "full"}, "launcher": "accelerate launch --config_file 'a b.yaml'"}
    with pytest.raises(StepError):
        three_stage(tmp_path, **options)
    assert lines[0][:4] == ["accelerate", "launch", "--config_file", "a b.yaml"]
    assert lines[0][4:7] == ["-m", "sa2va_trl.cli", "sft"]
    (tmp_path / "other").mkdir()
    with pytest.raises(StepError):  # nothing trains in the first step
        three_stage(tmp_path / "other", **stage1, launcher="accelerate launch")
    assert lines[1][:4] == [sys.executable, "-m", "sa2va_trl.cli", "build_preferences"]


# A task leaves what the next one reads, and learns nothing.
GRPO = {**HEAD, "num_generations": 2, "reward": {"dice": 0.5, "cldice": 0.5}}


@pytest.fixture
def stubs(monkeypatch):
    """The options of each step by its folder, in the order of the steps, none of which is really run."""
    rows = synthetic_dataset(num_videos=1, frames_per_video=2, size=64, first_video=50)
    seen = {}

    def run(line, check, **kwargs):
        task, *given = line[3:]
        options = {name[2:]: value for name, value in zip(given, given[1:], strict=False) if name.startswith("--")}
        folder = Path(options.pop("output_dir"))
        folder.mkdir(parents=True)
        seen["/".join(folder.parts[folder.parts.index("out") + 1 :])] = {"task": task, **options}
        if task in ("sft", "dpo", "hard_sample", "grpo"):
            (folder / "adapter_config.json").touch()
            steps = int(options.get("max_steps", 2))
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": []}))
        elif task == "build_preferences":
            DatasetDict(train=rows).save_to_disk(folder)
        elif task == "mine_hard_samples":
            rows.remove_columns(["image", "mask"]).to_parquet(folder / "scores.parquet")
        elif task == "evaluate":
            table = pd.DataFrame({"sample_id": list("abc"), "video_id": list("abc"), "dice": [0.4, 0.5, 0.7]})
            table.to_parquet(folder / "per_sample.parquet")
            (folder / "metrics.json").write_text("{}")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(script, "pictures", lambda *args: ([], {}))
    monkeypatch.setattr(script, "can_report", lambda: False)
    return seen


def compared(folder):
    found = json.loads((folder / "out" / "comparison.json").read_text())
    return [(entry["before"], entry["after"]) for entry in found["differences"]]


def test_reinforcement_learning_follows_where_it_is_asked_for(tmp_path, stubs):
    three_stage(tmp_path)
    before = list(stubs)
    assert before == [
        *("stage1", "stage1/merged", "preferences", "stage2", "stage2/merged", "mining", "stage3", "stage3/merged"),
        *("control", "control/merged"),
        *(f"evaluation/{name}" for name in ("stage1", "stage2", "stage3", "router", "control")),
    ]
    pairs = compared(tmp_path)
    three_stage(tmp_path, grpo=GRPO)
    # What was done before stays.
    assert list(stubs)[len(before) :] == ["grpo", "grpo/merged", "evaluation/grpo"]
    output = tmp_path / "out"
    assert stubs["grpo"]["model_name_or_path"] == str(output / "stage3" / "merged")
    assert stubs["control"]["max_steps"] == "4"
    assert compared(tmp_path) == [*pairs, ("stage3", "grpo"), ("stage1", "grpo")]
    with pytest.raises(ValueError, match="grpo: scores cannot be set there"):
        three_stage(tmp_path, grpo={**GRPO, "scores": "scores.parquet"})
    with pytest.raises(ValueError, match=r"begun with other stages \(not set; now sft, grpo\)"):
        three_stage(tmp_path, **only("stage1", "control"), stages=["sft", "grpo"], grpo=GRPO)


def only(*sections):
    """No options for what is not among these."""
    return {name: {} for name in ("preferences", "stage2", "mining", "stage3", "router") if name not in sections}


def test_stages_in_another_order(tmp_path, stubs):
    options = {"stages": ["grpo", "sft", "dpo"], **only("preferences", "stage2")}
    three_stage(tmp_path, **options)
    output = tmp_path / "out"
    assert list(stubs) == [
        *("stage1_grpo", "stage1_grpo/merged", "stage2_sft", "stage2_sft/merged"),
        *("stage3_preferences", "stage3_dpo", "stage3_dpo/merged", "control", "control/merged"),
        *(f"evaluation/{name}" for name in ("start", "stage1_grpo", "stage2_sft", "stage3_dpo", "control")),
    ]
    assert [stubs[name]["model_name_or_path"] for name in ("stage1_grpo", "control", "evaluation/start")] == [
        "tiny-random"
    ] * 3
    assert stubs["stage2_sft"]["model_name_or_path"] == str(output / "stage1_grpo" / "merged")
    for name in ("stage3_preferences", "stage3_dpo"):
        assert stubs[name]["model_name_or_path"] == str(output / "stage2_sft" / "merged")
    assert stubs["stage3_dpo"]["preferences"] == str(output / "stage3_preferences")
    # All that trains or is scored has one size; the control takes the steps of all stages.
    assert all(given["grounding_image_size"] == "128" for given in stubs.values() if given["task"] != "merge")
    assert stubs["control"]["max_steps"] == "6"
    assert compared(tmp_path) == [
        *(("start", "stage1_grpo"), ("stage1_grpo", "stage2_sft"), ("stage2_sft", "stage3_dpo")),
        *(("start", "stage3_dpo"), ("start", "control"), ("control", "stage3_dpo")),
    ]
    count = len(stubs)
    three_stage(tmp_path, **options)
    assert len(stubs) == count
    for stages in (["sft", "grpo", "dpo"], None):
        with pytest.raises(ValueError, match="begun with other stages .grpo, sft, dpo; now "):
            three_stage(tmp_path, **{**options, "stages": stages})


def test_rows_that_are_drawn_by_scores_are_scored_after_the_stage_before(tmp_path, stubs):
    (tmp_path / "grpo.yaml").write_text("sample_by: spread")
    grpo = {"config": str(tmp_path / "grpo.yaml")}
    three_stage(tmp_path, stages=["sft", "hard_sample", "grpo"], **only("mining", "stage3", "router"), grpo=grpo)
    output = tmp_path / "out"
    for place, made in ((2, "stage1_sft"), (3, "stage2_hard_sample")):
        assert stubs[f"stage{place}_mining"]["model_name_or_path"] == str(output / made / "merged")
        assert stubs[f"stage{place}_mining"]["worst"] == "0.5"
    assert stubs["stage3_grpo"]["scores"] == str(output / "stage3_mining" / "scores.parquet")
    routed = stubs["evaluation/router"]
    assert routed["model_name_or_path"] == str(output / "stage1_sft" / "merged")
    assert routed["router_model"] == str(output / "stage2_hard_sample" / "merged")
    assert ("stage1_sft", "router") in compared(tmp_path)
    (tmp_path / "usual").mkdir()
    three_stage(tmp_path / "usual", grpo={**GRPO, "sample_by": "hardness"})
    assert stubs["grpo"]["scores"] == str(tmp_path / "usual" / "out" / "grpo_mining" / "scores.parquet")


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ([], {}, "stages: give a list of one or more of sft, dpo, hard_sample, grpo; got"),
        ("sft", {}, "stages: give a list"),
        (["sft", "ppo"], {}, "there is no ppo; there are sft, dpo, hard_sample, grpo"),
        (["sft", "grpo", "sft"], {}, "sft comes twice"),
        (["sft"], only(), "sft alone leaves nothing to compare"),
        (["sft", "grpo"], only("stage2"), "stage2: these are options for dpo, .*: sft, grpo.*--stage2 '{}'"),
        (["sft", "dpo"], only("preferences", "stage2", "router"), "router: these are options for hard_sample"),
        (["dpo"], {**only("stage2"), "stage1": HEAD}, "stage1: these are options for sft"),
        (["dpo"], {**only("stage2"), "grpo": GRPO}, "grpo: these are options for grpo"),
        (["sft", "grpo"], only("mining"), "mining: these are options for hard_sample or grpo with sample_by"),
        (["sft", "grpo"], {**only(), "first_stage": 2}, "first_stage has no effect with stages"),
    ],
)
def test_stages_that_cannot_be(tmp_path, stages, options, message):
    with pytest.raises(ValueError, match=message):
        three_stage(tmp_path, stages=stages, **options)


def test_stages_of_ones_own_are_really_run(tmp_path, steps, stage1):
    own = {name: value for name, value in stage1.items() if name != "first_stage"}
    grpo = {**GRPO, "sample_by": "hardness"}
    three_stage(tmp_path, **own, stages=["grpo", "hard_sample"], **only("mining", "stage3", "router"), grpo=grpo)
    output = tmp_path / "out"
    assert steps.names == [
        *("mine_hard_samples", "grpo", "merge", "mine_hard_samples", "hard_sample", "merge", "sft", "merge"),
        *["evaluate"] * 5,
    ]
    states = [
        json.loads((output / name / "trainer_state.json").read_text())["global_step"]
        for name in ("stage1_grpo", "stage2_hard_sample", "control")
    ]
    assert states == [2, 2, 4]
    page = (output / "report.html").read_text()
    assert "Stages: grpo, hard_sample" in page and "stage2_hard_sample - start" in page
    assert (output / "stage2_hard_sample" / "merged" / "model.safetensors").is_file()
    assert json.loads((output / "metrics.json").read_text())["dice"]["n"] == 6


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "configs").glob("*/three_stage.yaml")), ids=lambda file: file.parent.name
)
def test_published_configs_name_files_that_parse(file, tmp_path):
    from trl import TrlParser

    from sa2va_trl import HardSampleConfig, SegDPOConfig, SegSFTConfig
    from sa2va_trl.scripts.arguments import DataArguments, ModelArguments, SplitArguments

    options = yaml.safe_load(file.read_text())
    configs = {"stage1": SegSFTConfig, "stage2": SegDPOConfig, "stage3": HardSampleConfig, "control": SegSFTConfig}
    for name, config in configs.items():
        own = ROOT / "recipes" / options[name]["config"]
        pairs = (make_dataclass("Pairs", [("preferences", str, None)]),) if name == "stage2" else ()
        parser = TrlParser((DataArguments, SplitArguments, config, ModelArguments, *pairs))
        line = ["--config", str(own), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
        assert parser.parse_args_and_config(line)[2].output_dir == str(tmp_path)
