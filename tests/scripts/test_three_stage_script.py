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
from PIL import Image
from tasks import run_task

from sa2va_trl.data import DatasetError
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

    def run(self, line, check):
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

    def leaky(line, check):
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

    def run(line, check):
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


def test_reinforcement_learning_follows_where_it_is_asked_for(tmp_path, steps, stage1):
    three_stage(tmp_path, **stage1)
    before = len(steps.names)
    grpo = {**HEAD, "num_generations": 2, "reward": {"dice": 0.5, "cldice": 0.5}}
    three_stage(tmp_path, **stage1, grpo=grpo)
    # What was done before stays.
    assert steps.names[before:] == ["grpo", "merge", "evaluate"]
    output = tmp_path / "out"
    line = steps.lines[before]
    assert line[line.index("--model_name_or_path") + 1] == str(output / "stage3" / "merged")
    assert json.loads((output / "grpo" / "trainer_state.json").read_text())["global_step"] == 2
    assert (output / "grpo" / "merged" / "model.safetensors").is_file()
    comparison = json.loads((output / "comparison.json").read_text())
    assert list(comparison["runs"]) == ["stage1", "stage2", "stage3", "router", "control", "grpo"]
    pairs = [(entry["before"], entry["after"]) for entry in comparison["differences"]]
    assert pairs[-2:] == [("stage3", "grpo"), ("stage1", "grpo")]
    assert "grpo - stage3" in (output / "report.html").read_text()
    with pytest.raises(ValueError, match="grpo: scores cannot be set there"):
        three_stage(tmp_path, **stage1, grpo={**grpo, "scores": "scores.parquet"})


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
