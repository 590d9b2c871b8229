"""Steps and the records that they leave."""

import json
import subprocess
import sys

import pytest

from sa2va_trl.scripts.config_files import CONFIGS
from sa2va_trl.scripts.quiet import LOG, run
from sa2va_trl.scripts.screen import log_into
from sa2va_trl.scripts.steps import StepError, Steps


# Stands in for a launcher: prints as libraries do, and says what a task says.
LAUNCHER = """
import os, sys
from sa2va_trl.scripts.screen import StepScreen
print("noise of a launcher")
print("noise of a library", file=sys.stderr)
screen = StepScreen(sys.stdout, sys.stderr)
screen.progress("train:  33%")
screen.line("only said")
screen.line("WARNING: look", "warning")
screen.note("somewhere.py:3")
os.write(1, b"no end of a line")
if "--fail" in sys.argv:
    screen.line("sa2va-trl: error: no such split", "error")
    sys.exit(3)
if "--vanish" in sys.argv:
    os.kill(os.getpid(), 9)
screen.line("trained, 3 steps: validation Dice 0.61 -> 0.70", "summary")
"""


@pytest.fixture
def lines(monkeypatch):
    """What is started."""
    lines = []
    monkeypatch.setattr(subprocess, "run", lambda line, **kwargs: lines.append(line))
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
    assert lines == [[sys.executable, "-m", "sa2va_trl.cli", "sft", *options, "--verbose"]]
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"== stage1: sa2va-trl sft {' '.join(options)}"
    assert second.split() == ["stage1", "done", "0", "s"] and third.split() == ["stage1", "done", "before"]
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


def test_a_step_that_is_at_work_is_not_started_again(tmp_path, monkeypatch):
    """Nor where the call that has started it is gone and it lives on."""
    left = []

    def interrupted(line, check, pass_fds):
        left.append(subprocess.Popen(["sleep", "60"], pass_fds=pass_fds))
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    for number in range(2):
        with pytest.raises(KeyboardInterrupt):
            Steps(tmp_path, "")("stage1", "sft", OPTIONS)
        with pytest.raises(ValueError, match=r"/stage1: this step is at work, .* or give another output_dir"):
            Steps(tmp_path, "")("stage1", "sft", OPTIONS)
        assert len(left) == number + 1
        left[-1].kill()
        left[-1].wait()


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
    assert lines[0][:-3] == [*launcher.split(), flag, "sa2va_trl.cli", "sft"]
    assert lines[1][:3] == [sys.executable, "-m", "sa2va_trl.cli"]


def test_a_step_is_a_line_and_its_output_is_in_the_log(tmp_path, capfd):
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    launcher = f"{sys.executable} {tmp_path / 'launcher.py'}"

    def main():
        log_into(tmp_path)
        Steps(tmp_path, launcher)("stage1", "sft", {}, train=True)

    run("three_stage", main)
    shown = capfd.readouterr()
    warning, line, foreign = shown.out.splitlines()
    assert shown.err == "" and warning.split(None, 1) == ["stage1", "WARNING: look"]
    assert line.startswith("stage1 ") and "trained, 3 steps: validation Dice 0.61 -> 0.70   " in line
    assert foreign == f"1 warning of libraries: see {tmp_path / LOG}"
    log = (tmp_path / LOG).read_text()
    assert "== stage1: sa2va-trl sft --output_dir" in log
    for text in ("noise of a launcher", "noise of a library", "no end of a line"):
        assert log.count(text) == 1
    assert "\x1e" not in log


@pytest.mark.parametrize(
    ("option", "reason"), [("fail", "no such split"), ("vanish", "it ended with status -9")], ids=["said", "unsaid"]
)
def test_a_step_that_fails_is_named_with_its_reason(tmp_path, capfd, option, reason):
    (tmp_path / "launcher.py").write_text(LAUNCHER)

    def main():
        log_into(tmp_path)
        Steps(tmp_path, f"{sys.executable} {tmp_path / 'launcher.py'}")("stage2", "dpo", {option: "x"}, train=True)

    with pytest.raises(SystemExit):
        run("three_stage", main)
    (line,) = capfd.readouterr().err.splitlines()
    log = tmp_path / LOG
    assert line == f"sa2va-trl: error: stage2 (sa2va-trl dpo): {reason} (more in {log})"
    assert not json.loads((tmp_path / "steps" / "stage2.json").read_text())["done"]


def test_a_step_that_fails_on_the_screen(tmp_path, monkeypatch):
    def fail(line, check, pass_fds):
        raise subprocess.CalledProcessError(3, line)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(StepError, match="stage1 ended with status 3"):
        Steps(tmp_path, "")("stage1", "sft", {})
