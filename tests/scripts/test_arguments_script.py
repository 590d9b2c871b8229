import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tasks import options, run_task

from sa2va_trl import SegSFTConfig
from sa2va_trl.data import synthetic_splits
from sa2va_trl.scripts.arguments import AveragingArguments, DataArguments, ModelArguments, RecipeParser, SplitArguments


SYNTHETIC = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 3, "size": 64}

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "tiny"
ROUTED = {"train_videos": 1, "validation_videos": 2, "test_videos": 2, "frames_per_video": 2, "size": 64}

SMALL = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 4, "size": 64}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("sft", {"learning_rte": 1e-4}, "learning_rte"),
        ("sft", {"packing": True}, "packing"),
        ("sft", {"synthetic": {"videos": 3}}, "videos"),
        ("sft", {"eval_strategy": "steps", "dataset_eval_split": "holdout"}, "dataset_eval_split"),
        ("sft", {"resume_from_checkpoint": "latest"}, "resume_from_checkpoint"),
        ("evaluate", {"dataset_split": "holdout"}, "dataset_split"),
        ("evaluate", {"threshold": 1.5}, "threshold"),
        ("evaluate", {"grounding_image_size": 100}, "grounding_image_size"),
        ("build_preferences", {"dataset_split": "holdout"}, "dataset_split"),
        ("build_preferences", {"min_gap": 2, "grounding_image_size": 128}, "min_gap=2"),
        ("build_preferences", {"reward": "jaccard"}, "reward"),
        ("build_preferences", {"rejected": ["best"]}, "rejected"),
        ("build_preferences", {"sampler": {"thresholds": [2]}}, "thresholds"),
        ("build_preferences", {"sampler": {"tokens": False}, "grounding_image_size": 128}, "sampler has no effect"),
        ("build_preferences", {"push_to_hub": True}, "hub_dataset_id"),
        ("predict", {"input": "/no/such/file.png"}, "no file"),
        ("predict", {"input": "x.png", "threshold": 1.5}, "threshold"),
        ("predict", {"input": "x.png", "per_frame": True}, "per_frame"),
        ("predict", {"input": "x.png", "num_frames": 3}, "num_frames"),
        ("predict", {"input": "x.mp4", "per_frame": True, "tracking": "soft"}, "tracking"),
        ("predict", {"input": "x.png", "cache_implementation": "paged"}, "cache_implementation must be"),
    ],
)
def test_bad_options_name_themselves_and_leave_nothing(tmp_path, capsys, name, values, message):
    output = tmp_path / "output"
    defaults = {"synthetic": SYNTHETIC} if name != "predict" else {}
    if name == "sft":
        defaults |= {"use_cpu": True, "report_to": "none", "grounding_image_size": 128}
    with pytest.raises((ValueError, TypeError, OSError, SystemExit)) as error:
        run_task(name, *options(tmp_path, **{**defaults, **values}), "--output_dir", output)
    assert message in str(error.value) + capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("evaluate", ("--route_split", "validation"), "route_split has no effect without"),
        ("evaluate", ("--route_threshold", "0.5"), "route_threshold has no effect without"),
        ("evaluate", ("--router_model", "SECOND"), "either route_threshold or route_split"),
        (
            "evaluate",
            ("--router_model", "SECOND", "--route_threshold", "0.5", "--route_split", "validation"),
            "either route_threshold or route_split",
        ),
        ("evaluate", ("--router_model", "SECOND", "--route_split", "test"), "is the split to score"),
        ("evaluate", ("--router_model", "SECOND", "--route_split", "dev"), "no such split"),
        (
            "evaluate",
            ("--router_model", "SECOND", "--route_threshold", "0.5", "--predictions_dir", "masks"),
            "no model runs",
        ),
        ("evaluate", ("--router_model", "tiny", "--route_threshold", "0.5"), "could not take effect"),
        ("evaluate", ("--accept_alike", "true"), "accept_alike has no effect without route_split"),
        ("evaluate", ("--torch_compile", "true", "--predictions_dir", "masks"), "torch_compile has no meaning"),
        ("predict", ("--answer", "[SEG]", "--cache_implementation", "static"), "cache_implementation has no effect"),
        ("predict", ("--input", "film.mp4", "--router_model", "SECOND", "--route_threshold", "0.5"), "add per_frame"),
        ("predict", ("--input", "picture.png", "--router_model", "SECOND"), "A router needs route_threshold"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(tmp_path, second, name, options, message):
    options = [str(second) if option == "SECOND" else option for option in options]
    output = tmp_path / "output"
    if name == "evaluate":
        options += ["--synthetic", json.dumps(ROUTED)]
    with pytest.raises(ValueError, match=message):
        run_task(name, *options, "--output_dir", output)
    assert not output.exists()


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
        assert parse(*line).synthetic == yaml.safe_load((CONFIGS / "sft.yaml").read_text())["synthetic"]
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
    run_task("sft", "--config", CONFIGS / "sft.yaml", *options)
    assert "synthetic of the YAML, of other data, is set aside" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "tiny" / "sft" / "adapter_model.safetensors").is_file()
    run_task("merge", "--config", CONFIGS / "merge.yaml")
    # Pairs of the YAML's data, too, which a set without pairs then lacks.
    with pytest.raises(ValueError, match="no chosen_mask and rejected_mask"):
        run_task("dpo", "--config", CONFIGS / "dpo.yaml", *options)
    assert "synthetic and preferences of the YAML" in capsys.readouterr().out


def test_what_is_averaged_over_may_be_one_text():
    args = AveragingArguments(tta="hflip,gamma0.8", ensemble="FOLD1")
    assert [view.name for view in args.views] == ["hflip", "gamma0.8"] and args.ensemble == ["FOLD1"] and args.is_on
    assert not AveragingArguments().is_on
    with pytest.raises(ValueError, match="tta has no view ''"):
        AveragingArguments(tta=[""])
