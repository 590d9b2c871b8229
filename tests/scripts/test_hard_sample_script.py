"""The recipe of stage 3 and its YAML."""

import json
from pathlib import Path

import pytest
import yaml
from tasks import run_task


ROOT = Path(__file__).parents[2]


def test_the_recipe_leaves_adapter_processor_card_and_state(tmp_path, capsys):
    output = tmp_path / "out"
    options = {
        "model_name_or_path": "tiny-random",
        "grounding_image_size": 128,
        "synthetic": {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 4, "size": 64},
        "output_dir": str(output),
        "worst": 0.5,
        "include_review": True,  # no candidate of the tiny model explains any mask
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "num_points": 0,
        "eval_strategy": "steps",
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "cache_dir": str(tmp_path / "cache"),
    }
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    run_task("hard_sample", "--config", tmp_path / "options.yaml")
    assert "2 of 4 rows are hard" in capsys.readouterr().out
    names = {path.name for path in output.iterdir()}
    assert {"adapter_model.safetensors", "processor_config.json", "README.md", "trainer_state.json"} <= names
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_dice_hard" in entry] == [0, 1]
    card = (output / "README.md").read_text()
    assert "training on hard samples (`HardSampleTrainer`)" in card and "hard-samples" in card


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "configs").glob("*/hard_sample.yaml")), ids=lambda f: f.parent.name
)
def test_configs_parse(file, tmp_path):
    from trl import TrlParser

    from sa2va_trl import HardSampleConfig
    from sa2va_trl.scripts.arguments import DataArguments, ModelArguments, SplitArguments
    from sa2va_trl.scripts.hard_sample import ScoreArguments as own

    parser = TrlParser((DataArguments, SplitArguments, own, HardSampleConfig, ModelArguments))
    arguments = ["--config", str(file), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    _, _, _, training, _ = parser.parse_args_and_config(arguments)
    assert training.output_dir == str(tmp_path) and training.trainable == "head" and training.lm_weight == 0
    if file.parent.name == "sa2va_internvl3_8b":
        assert (training.hard_below, training.learning_rate, training.num_train_epochs) == (None, 1e-5, 5)
        assert (training.gradient_accumulation_steps, training.weight_decay, training.easy_share) == (2, 0.01, 0)


@pytest.mark.parametrize("name", ["hard_below", "threshold"])
def test_the_limit_is_taken_under_both_of_its_names(tmp_path, name):
    from trl import TrlParser

    from sa2va_trl import HardSampleConfig

    (tmp_path / "options.yaml").write_text(f"{name}: 0.6\n")
    common = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    for options in (["--config", str(tmp_path / "options.yaml")], [f"--{name}", "0.6"]):
        (training,) = TrlParser(HardSampleConfig).parse_args_and_config([*common, *options])
        assert training.hard_below == 0.6
