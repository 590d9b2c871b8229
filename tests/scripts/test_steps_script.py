"""Steps and the records that they leave."""

import json
import subprocess
import sys

import pytest

from sa2va_trl.scripts.config_files import CONFIGS
from sa2va_trl.scripts.steps import Steps


@pytest.fixture
def lines(monkeypatch):
    """What is started."""
    lines = []
    monkeypatch.setattr(subprocess, "run", lambda line, check: lines.append(line))
    return lines


OPTIONS = {"config": "configs/tiny/sft.yaml", "seed": 3, "names": ["a", "b"], "synthetic": {"size": 64}}
FLAGS = ["--seed", "3", "--names", "a", "b", "--synthetic", '{"size": 64}']


def record(folder, name, **values):
    (folder / "steps").mkdir(exist_ok=True)
    (folder / "steps" / f"{name}.json").write_text(json.dumps(values))


def test_a_step_is_a_command_and_runs_once(tmp_path, lines, capsys):
    for _ in range(2):
        assert Steps(tmp_path, "")("stage1", "sft", OPTIONS) == tmp_path / "stage1"
    options = ["--config", str(CONFIGS / "tiny" / "sft.yaml"), *FLAGS, "--output_dir", str(tmp_path / "stage1")]
    assert lines == [[sys.executable, "-m", "sa2va_trl.cli", "sft", *options]]
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"== stage1: sa2va-trl sft {' '.join(options)}" and second == "== stage1: done before"
    with pytest.raises(ValueError, match="stage1 was made with other options"):
        Steps(tmp_path, "")("stage1", "sft", {**OPTIONS, "seed": 4})
    with pytest.raises(ValueError, match="stage1 was made with other options"):
        Steps(tmp_path, "")("stage1", "dpo", OPTIONS)


@pytest.mark.parametrize("done", [False, True])
def test_what_an_earlier_version_has_begun_is_taken_up(tmp_path, lines, done):
    content = (CONFIGS / "tiny" / "sft.yaml").read_text()
    options = ["--config", "/somewhere/recipes/configs/tiny/sft.yaml", *FLAGS, "--output_dir", f"{tmp_path}/stage1"]
    record(tmp_path, "stage1", line=["sft.py", *options], config=content, done=done)
    Steps(tmp_path, "")("stage1", "sft", OPTIONS, train=True)
    assert len(lines) == (not done)
    record(tmp_path, "stage1", line=["sft.py", *options], config=content + "\nlearning_rate: 1", done=done)
    with pytest.raises(ValueError, match="or its YAML has changed"):
        Steps(tmp_path, "")("stage1", "sft", OPTIONS, train=True)


def test_configs_of_ones_own(tmp_path, lines, monkeypatch):
    (tmp_path / "own.yaml").write_text("seed: 1")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate((tmp_path / "own.yaml", "own.yaml", "tiny/sft")):
        Steps(tmp_path, "")(f"step{number}", "sft", {"config": name})
    assert [line[5] for line in lines] == [str(tmp_path / "own.yaml"), "own.yaml", str(CONFIGS / "tiny" / "sft.yaml")]
    with pytest.raises(FileNotFoundError, match="other.yaml.*tiny/dpo"):
        Steps(tmp_path, "")("other", "sft", {"config": "other.yaml"})
    assert not (tmp_path / "steps" / "other.json").exists()


def test_the_limit_that_a_yaml_said_before_is_that_of_mining(tmp_path, lines):
    own = tmp_path / "own.yaml"
    own.write_text("# Decided by mining.\nseed: 1\n")
    options = ["--config", "/somewhere/own.yaml", "--output_dir", f"{tmp_path}/stage3"]
    record(tmp_path, "stage3", line=["hard_sample.py", *options], config="seed: 1\nthreshold: 0.75\n", done=True)
    Steps(tmp_path, "")("stage3", "hard_sample", {"config": own})
    record(tmp_path, "stage3", line=["hard_sample.py", *options], config="seed: 1\nthreshold: 0.7\n", done=True)
    with pytest.raises(ValueError, match="or its YAML has changed"):
        Steps(tmp_path, "")("stage3", "hard_sample", {"config": own})
    assert not lines


@pytest.mark.parametrize(("launcher", "flag"), [("accelerate launch --cpu", "-m"), ("/bin/deepspeed", "--module")])
def test_launchers_start_modules_in_their_own_way(tmp_path, lines, launcher, flag):
    Steps(tmp_path, launcher)("stage1", "sft", {}, train=True)
    Steps(tmp_path, launcher)("merged", "merge", {})
    assert lines[0][:-2] == [*launcher.split(), flag, "sa2va_trl.cli", "sft"]
    assert lines[1][:3] == [sys.executable, "-m", "sa2va_trl.cli"]
