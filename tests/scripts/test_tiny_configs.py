"""The tiny configurations in a fresh clone: each starts as it stands, or its first line says what to run before."""

import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sa2va_trl import SegSFTConfig
from sa2va_trl.data import synthetic_splits
from sa2va_trl.scripts.arguments import DataArguments, ModelArguments, RecipeParser, SplitArguments


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs" / "tiny"
SMALL = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 4, "size": 64}
# What makes them fast, and lets a model of a single step have rows that are not hard.
TRAINING = ["--max_steps", "1", "--synthetic", str(SMALL).replace("'", '"')]
OPTIONS = {
    "sft": TRAINING,
    "control": TRAINING,
    "build_preferences": TRAINING[2:],
    "dpo": TRAINING,
    "hard_sample": [*TRAINING, "--worst", "0.5", "--include_review", "true"],
    "three_stage": TRAINING[2:],
}


def start(monkeypatch, recipe, config, *options):
    monkeypatch.setattr(sys, "argv", [str(recipe), "--config", str(config), *options])
    runpy.run_path(str(recipe), run_name="__main__")


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
            raise Started(Path(line[1]).name)

        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(Started, match=r"^sft\.py$"):
            start(monkeypatch, ROOT / "recipes" / "three_stage.py", CONFIGS / "three_stage.yaml", *OPTIONS[name])
        return
    todo = [(ROOT / "recipes" / f"{'sft' if name == 'control' else name}.py", CONFIGS / f"{name}.yaml")]
    while todo:
        assert len(todo) < 4
        capfd.readouterr()
        try:
            start(monkeypatch, *todo[-1], *OPTIONS[todo[-1][1].stem])
            todo.pop()
        except SystemExit:
            (line,) = capfd.readouterr().err.splitlines()
            command = re.fullmatch(r"\w+=\S+ is not there; make it with: python (\S+) --config (\S+)", line)
            todo.append((Path(command[1]), Path(command[2])))
    made = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).get("output_dir", "trainer_output")
    assert any((clone / made).iterdir())


def test_no_other_configuration_is_there():
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(OPTIONS)


def test_a_model_that_no_configuration_makes_is_not_guessed_at(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["--model_name_or_path", "outputs/tiny/sfd"]
    with pytest.raises((OSError, ValueError)):
        start(monkeypatch, ROOT / "recipes" / "hard_sample.py", CONFIGS / "hard_sample.yaml", *line)
    assert "make it with" not in capsys.readouterr().err


# What the command line says wins


def parse(*line):
    parser = RecipeParser((DataArguments, SplitArguments, SegSFTConfig, ModelArguments))
    return parser.parse_args_and_config(["--config", str(CONFIGS / "sft.yaml"), "--use_cpu", "true", *line])[0]


@pytest.mark.parametrize("option", ["--dataset_name", "--dataset-name"])
def test_generated_data_of_the_yaml_are_set_aside_for_a_folder_on_the_line(capsys, option):
    data = parse(option, "DIR")
    assert (data.dataset_name, data.synthetic) == ("DIR", None)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "dataset_name=DIR is given: synthetic of the YAML, of other data, is set aside."


@dataclass
class Pairs:
    preferences: str | None = None


@pytest.mark.parametrize(
    ("content", "preferences"),
    [({"dataset_name": "RUN_3"}, "PAIRS"), ({"dataset_name": "synthetic"}, None), ({}, None)],
    ids=["of a folder", "of generated data", "of the default"],
)
def test_pairs_are_set_aside_only_with_the_generated_data_that_they_are_of(tmp_path, capsys, content, preferences):
    file = tmp_path / "dpo.yaml"
    file.write_text(yaml.safe_dump({**content, "preferences": "PAIRS"}))
    parser = RecipeParser((DataArguments, Pairs))
    data, pairs = parser.parse_args_and_config(["--config", str(file), "--dataset_name", "DIR"])
    assert (data.dataset_name, pairs.preferences) == ("DIR", preferences)
    assert ("set aside" in capsys.readouterr().out) == (preferences is None)


@dataclass
class Required:
    preferences: str


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_tells_defaults_and_what_is_required(capsys, option):
    with pytest.raises(SystemExit):
        RecipeParser((ModelArguments, Required)).parse_args_and_config([option])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: float32)" in text and "(default: sdpa)" in text
    assert "--preferences PREFERENCES" in text and "[--preferences PREFERENCES]" not in text


def test_nothing_is_set_aside_without_need(capsys):
    for line in ([], ["--dataset_name", "synthetic"]):
        assert parse(*line).synthetic == {"train_videos": 48, "validation_videos": 6, "test_videos": 8}
    assert parse("--synthetic", '{"train_videos": 1}').synthetic == {"train_videos": 1}
    assert capsys.readouterr().out == ""


def test_both_in_one_place_are_still_refused(tmp_path):
    with pytest.raises(ValueError, match="synthetic has no meaning"):
        parse("--dataset_name", "DIR", "--synthetic", '{"train_videos": 1}')
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump({"dataset_name": "DIR", "synthetic": {"train_videos": 1}}))
    with pytest.raises(ValueError, match="synthetic has no meaning"):
        RecipeParser((DataArguments,)).parse_args_and_config(["--config", str(file)])
    with pytest.raises(ValueError, match="synthetic has no meaning"):
        DataArguments(dataset_name="DIR", synthetic={"train_videos": 1})


def test_a_folder_beside_the_yaml_of_generated_data_is_trained_on(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    synthetic_splits(**SMALL).save_to_disk(tmp_path / "data")
    options = ["--dataset_name", "data", "--max_steps", "1"]
    start(monkeypatch, ROOT / "recipes" / "sft.py", CONFIGS / "sft.yaml", *options)
    assert "synthetic of the YAML, of other data, is set aside" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "tiny" / "sft" / "model.safetensors").is_file()
    # Pairs of the YAML's data, too, which a set without pairs then lacks.
    with pytest.raises(ValueError, match="no chosen_mask and rejected_mask"):
        start(monkeypatch, ROOT / "recipes" / "dpo.py", CONFIGS / "dpo.yaml", *options)
    assert "synthetic and preferences of the YAML" in capsys.readouterr().out
