"""The tiny configurations in a fresh clone: each starts as it stands, or its first line says what to run before."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tasks import run_task

from sa2va_trl.scripts import TASKS
from sa2va_trl.scripts.arguments import DataArguments, RecipeParser
from sa2va_trl.scripts.config_files import config_file, config_names, shortest_name


ROOT = Path(__file__).parents[2]


CONFIGS = ROOT / "recipes" / "configs" / "tiny"


SMALL = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 4, "size": 64}


# What makes them fast, and lets a model of a single step have rows that are not hard.
TRAINING = ["--max_steps", "1"]
PRETRAINING = [*TRAINING, "--per_device_train_batch_size", "2"]


OPTIONS = {
    "sft": TRAINING,
    "merge": [],
    "control": TRAINING,
    "build_preferences": ["--min_gap", "0"],
    "dpo": TRAINING,
    "grpo": TRAINING,
    "hard_sample": [*TRAINING, "--worst", "0.5", "--include_review", "true"],
    "three_stage": [],
    "from_scratch": TRAINING,
    # In the order in which the first of them says they are run.
    "pretrain_talk": PRETRAINING,
    "pretrain_words": PRETRAINING,
    "pretrain": PRETRAINING,
    "pretrain_answers": PRETRAINING,
}


def small(file):
    """Its options, and its generated data with a few small frames."""
    if file.stem == "merge":
        return OPTIONS["merge"]
    made = {**yaml.safe_load(file.read_text()).get("synthetic", {}), **SMALL}
    return [*OPTIONS[file.stem], "--synthetic", json.dumps(made)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder without outputs at first; what one test makes serves the next."""
    return tmp_path_factory.mktemp("clone")


@pytest.mark.parametrize("name", OPTIONS)
def test_it_starts_or_its_first_line_says_what_makes_what_it_needs(monkeypatch, clone, capfd, name):
    monkeypatch.chdir(clone)
    if name == "three_stage":  # its steps are tested elsewhere

        class Started(Exception):
            pass

        def run(line, **kwargs):
            raise Started(line)

        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(Started) as started:
            run_task("three_stage", "--config", CONFIGS / "three_stage.yaml", *small(CONFIGS / "three_stage.yaml"))
        assert started.value.args[0][:4] == [sys.executable, "-m", "sa2va_trl.cli", "predict"]
        return
    todo = [(name if name in TASKS else "sft", CONFIGS / f"{name}.yaml")]
    while todo:
        assert len(todo) < 5
        capfd.readouterr()
        try:
            task, config = todo[-1]
            run_task(task, "--config", config, *small(config))
            todo.pop()
        except SystemExit:
            (line,) = capfd.readouterr().err.splitlines()
            commands = re.fullmatch(r"\w+=\S+ is not there; make it with: (.+)", line)[1].split(", then: ")
            for command in reversed(commands):
                task, config = re.fullmatch(r"sa2va-trl (\w+) --config (tiny/\w+)", command).groups()
                todo.append((task, config_file(config)))
    made = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).get("output_dir", "trainer_output")
    assert any((clone / made).iterdir())


def test_no_other_configuration_is_there():
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(OPTIONS)


def test_a_model_that_no_configuration_makes_is_not_guessed_at(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["--model_name_or_path", "outputs/tiny/sfd"]
    with pytest.raises((OSError, ValueError)):
        run_task("hard_sample", "--config", CONFIGS / "hard_sample.yaml", *line)
    assert "make it with" not in capsys.readouterr().err


def test_the_command_that_makes_it_keeps_the_data(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_task("dpo", "--config", "arcade_tiny/dpo", "--dataset_name", "mine")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("make it with: sa2va-trl sft --config arcade_tiny/sft --dataset_name mine")


def test_what_the_commands_need_is_made_before(monkeypatch, tmp_path, capsys):
    def said(task, *line):
        with pytest.raises(SystemExit):
            run_task(task, *line)
        return capsys.readouterr().err.splitlines()[-1].partition(" is not there; make it with: ")

    monkeypatch.chdir(tmp_path)
    name, _, commands = said("dpo", "--config", "tiny/dpo", "--dataset_name", "mine", "--preferences", "own")
    assert name == "model_name_or_path=outputs/tiny/sft/merged"
    # (Merging needs no data.)
    assert commands == "sa2va-trl sft --config tiny/sft --dataset_name mine, then: sa2va-trl merge --config tiny/merge"
    name, _, commands = said("merge", "--config", "tiny/merge")
    assert (name, commands) == ("adapter=outputs/tiny/sft", "sa2va-trl sft --config tiny/sft")
    name, _, commands = said("sft", "--config", "tiny/pretrain")
    assert name == "model_name_or_path=outputs/tiny/pretrain_words"
    made = ("tiny/pretrain_talk", "tiny/pretrain_words")
    assert commands == ", then: ".join(f"sa2va-trl sft --config {config}" for config in made)
    # Of files that ask for what they make themselves, no end of commands.
    for task, made, needed in (("sft", "a", "b"), ("dpo", "b", "a")):
        content = {"output_dir": made, "model_name_or_path": needed}
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(content))
    assert said("dpo", "--config", "dpo.yaml")[2].count("sa2va-trl") == 2


# Names


def test_a_name_is_a_file_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny/sft", "tiny/sft.yaml", "recipes/configs/tiny/sft.yaml"):
        assert config_file(name).samefile(CONFIGS / "sft.yaml")
    assert set(config_names()) == {
        f"{file.parent.name}/{file.stem}" for file in (ROOT / "recipes" / "configs").glob("*/*.yaml")
    }
    for name in ("none/other", "sft", "tiny", "../configs/tiny/sft", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=f"config='{name}' is no file.*arcade_tiny/dpo.*tiny/sft"):
            config_file(name)


def test_a_file_that_is_there_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "sft.yaml").write_text("{}")
    assert config_file("tiny/sft.yaml") == Path("tiny/sft.yaml")
    assert config_file("tiny/sft").samefile(CONFIGS / "sft.yaml")
    assert shortest_name(CONFIGS / "sft.yaml") == "tiny/sft"
    assert shortest_name(tmp_path / "tiny" / "sft.yaml") == str(tmp_path / "tiny" / "sft.yaml")
    (tmp_path / "tiny" / "sft").write_text("{}")  # the short name would name another file
    assert shortest_name(CONFIGS / "sft.yaml") == str(CONFIGS / "sft.yaml")


def test_a_task_takes_a_name(capsys):
    parser = RecipeParser((DataArguments,))
    with pytest.raises(ValueError, match="output_dir"):  # which is none of its options
        parser.parse_args_and_config(["--config", "tiny/sft"])
    with pytest.raises(FileNotFoundError, match=r"tiny/sfd.*did you mean tiny/sft\?"):
        parser.parse_args_and_config(["--config", "tiny/sfd"])
