import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sa2va_trl import SegSFTConfig
from sa2va_trl.scripts.arguments import DataArguments, ModelArguments, SplitArguments


ROOT = Path(__file__).parents[2]


def test_sft_leaves_model_processor_card_and_state(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "README.md", "trainer_state.json"} <= names
    history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    assert any("eval_dice" in entry for entry in history)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "configs").glob("*/sft.yaml")), ids=lambda f: f.parent.name
)
def test_published_configs_parse(file, tmp_path):
    from trl import TrlParser

    parser = TrlParser((DataArguments, SplitArguments, SegSFTConfig, ModelArguments))
    arguments = ["--config", str(file), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    _, _, training, _ = parser.parse_args_and_config(arguments)
    assert training.output_dir == str(tmp_path)


def test_a_new_run_beside_checkpoints_of_another_says_so(tmp_path, capsys):
    from sa2va_trl.scripts import training

    class Trained(Exception):
        pass

    def train(resume_from_checkpoint):
        raise Trained

    trainer = SimpleNamespace(args=SegSFTConfig(str(tmp_path), use_cpu=True), train=train)
    with pytest.raises(Trained):
        training.train_and_save(trainer, None, "synthetic")
    assert capsys.readouterr().out == ""
    for step in (4, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(Trained):
        training.train_and_save(trainer, None, "synthetic")
    assert "holds checkpoint-2, checkpoint-4 of an earlier run" in capsys.readouterr().out
