"""The recipe of reinforcement learning and its YAML."""

import json
from pathlib import Path

import pytest
import yaml
from tasks import run_task

from sa2va_trl import SegGRPOConfig
from sa2va_trl.scripts.grpo import GrpoArguments, make_parser


ROOT = Path(__file__).parents[2]
SYNTHETIC = {"train_videos": 2, "validation_videos": 1, "test_videos": 1, "frames_per_video": 12, "size": 64}
OPTIONS = {
    "model_name_or_path": "tiny-random",
    "grounding_image_size": 128,
    "synthetic": SYNTHETIC,
    "per_device_train_batch_size": 2,
    "num_generations": 2,
    "num_points": 0,
    "logging_steps": 1,
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "use_cpu": True,
    "report_to": "none",
}


def run(tmp_path, *more, **options):
    found = {**OPTIONS, "output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache"), **options}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(found))
    run_task("grpo", "--config", tmp_path / "options.yaml", *more)
    return json.loads((tmp_path / "out" / "trainer_state.json").read_text())


def test_a_quick_test_says_what_it_leaves_out(tmp_path, capsys):
    state = run(tmp_path, "--quick_test", "--reward", '{"dice": 0.5, "recall": 0.5}')
    said = capsys.readouterr().out
    assert "quick_test: 16 of 24 training rows, 8 steps, no warm-up" in said
    assert "max_samples: training has 16 rows; 8 are left out." in said
    assert "Evaluation has 8 of 12 rows; 4 are left out." in said
    assert state["global_step"] == 8 and any("rewards/recall/mean" in entry for entry in state["log_history"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "processor_config.json", "README.md"} <= names
    assert "reinforcement learning on masks (`SegGRPOTrainer`)" in (tmp_path / "out" / "README.md").read_text()


def test_scores_of_the_same_model_and_split_choose_the_rows(tmp_path, capsys):
    loading = {name: OPTIONS[name] for name in ("model_name_or_path", "grounding_image_size", "synthetic")}
    mined = {**loading, "dataset_split": "train", "output_dir": str(tmp_path / "mined"), "worst": 0.5}
    (tmp_path / "mining.yaml").write_text(yaml.safe_dump(mined))
    run_task("mine_hard_samples", "--config", tmp_path / "mining.yaml")
    scores = str(tmp_path / "mined" / "scores.parquet")
    adaptive = '[{"component": "dice", "below": 0.8, "weight": 0.8, "otherwise": 0.6}]'
    line = ("--max_samples", 4, "--max_steps", 2, "--adaptive_weights", adaptive)
    state = run(tmp_path, *line, scores=scores, sample_by="spread")
    assert "max_samples: training has 4 rows; 20 are left out." in capsys.readouterr().out
    assert state["global_step"] == 2
    assert any("reward_weights/dice" in entry for entry in state["log_history"])
    with pytest.raises(BaseException, match="another data set"):
        run(tmp_path, "--max_steps", 2, scores=scores, sample_by="spread", synthetic={**SYNTHETIC, "size": 80})


def test_limits_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="scores='nothing' is not there"):
        GrpoArguments(scores="nothing")
    with pytest.raises(ValueError, match="max_eval_samples must be at least 1"):
        GrpoArguments(max_eval_samples=0)
    with pytest.raises(BaseException, match="max_eval_samples has no effect with eval_strategy=no"):
        run(tmp_path, "--max_eval_samples", 2, "--eval_strategy", "no")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "configs").glob("*/grpo.yaml")), ids=lambda f: f.parent.name
)
def test_configs_parse(file, tmp_path):
    arguments = ["--config", str(file), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    *_, training, _ = make_parser().parse_args_and_config([*arguments, "--model_name_or_path", "tiny"])
    assert isinstance(training, SegGRPOConfig) and training.output_dir == str(tmp_path)
    if file.parent.name == "sa2va_26b":  # as published
        assert (training.learning_rate, training.warmup_steps, training.num_train_epochs) == (5e-5, 100, 3)
        assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (4, 8)
        assert (training.lora_r, training.lora_alpha, training.max_grad_norm) == (32, 64, 1.0)
