"""What a task shows, and what it keeps for its log."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from datasets import load_dataset

from sa2va_trl import cli, tiny_sa2va
from sa2va_trl.scripts.predict import named
from sa2va_trl.scripts.quiet import LOG, is_mistake, run
from sa2va_trl.scripts.screen import log_into, say


ROOT = Path(__file__).resolve().parents[2]
DATA = json.dumps({"train_videos": 2, "validation_videos": 1, "test_videos": 1, "frames_per_video": 3, "size": 64})
# Where a test runs as root, any folder but such a one can be written to.
NO_FOLDER = "/proc/nothing" if Path("/proc/self").exists() else "/dev/null/nothing"


# Runs tasks of the command line one after the other, with no way into any network.
DRIVER = """
import json, os, socket, sys, traceback

def blocked(*args, **options):
    os.write(2, f"NETWORK {args}\\n{''.join(traceback.format_stack())}".encode())
    raise OSError("no network in this test")

socket.getaddrinfo = socket.socket.connect = blocked
from sa2va_trl import cli
for line in json.loads(sys.argv[1]):
    sys.argv = ["sa2va-trl", *line]
    print("$", line[0], flush=True)
    cli.main()
"""


@pytest.fixture
def task(monkeypatch):
    """Runs a task of the command line in this process; its exit status."""

    def start(*line):
        monkeypatch.setattr(sys, "argv", ["sa2va-trl", *map(str, line)])
        try:
            cli.main()
        except SystemExit as error:
            return error.code
        return 0

    return start


def test_the_screen_has_what_is_said_and_the_log_has_all(tmp_path, capfd):
    def main():
        print("before the folder is known")
        log_into(tmp_path / "new")
        say("said")
        os.write(1, b"from C\n")
        subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)
        warnings.warn("a library", stacklevel=1)
        warnings.warn("mtime may not be reliable on this filesystem", stacklevel=1)
        logging.getLogger("some.library").warning("another")
        say("WARNING: look at this")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run("sft", main)
    shown = capfd.readouterr()
    log = tmp_path / "new" / LOG
    assert shown.out.splitlines() == ["said", "WARNING: look at this", f"2 warnings of libraries: see {log}"]
    assert shown.err == ""
    header, *lines = log.read_text().splitlines()
    assert "sa2va-trl sft" in header
    for text in ("before the folder is known", "said", "from C", "from a child", "WARNING: look at this"):
        assert lines.count(text) == 1
    say("after")
    assert capfd.readouterr().out == "after\n" and "after" not in log.read_text()


def test_a_second_run_is_added_to_the_log(tmp_path, capfd):
    for text in ("first", "second"):
        run("sft", lambda text=text: (log_into(tmp_path), print(text)))
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [line for line in lines if not line.startswith("==")] == ["first", "second"]
    assert capfd.readouterr() == ("", "")


def test_verbose_shows_all(tmp_path, capfd):
    def main():
        log_into(tmp_path / "new")
        print("everything")
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        run("sft", main, verbose=True)
    assert capfd.readouterr().out == "everything\n" and not (tmp_path / "new").exists()


def test_bars_share_a_line_that_nothing_remains_of(tmp_path, monkeypatch, capfd):
    from tqdm.auto import tqdm

    monkeypatch.setattr("sa2va_trl.scripts.quiet.SECONDS_BEFORE_A_BAR", 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)

    def main():
        log_into(tmp_path)
        for _ in tqdm(range(3), desc="outer", mininterval=0):
            for _ in tqdm(range(2), desc="inner", mininterval=0, leave=False):
                pass
        say("done")

    run("sft", main)
    shown = capfd.readouterr()
    assert shown.out == "done\n" and "\n" not in shown.err
    states = [state.strip() for state in shown.err.split("\r")]
    assert any(state.startswith("outer:  33%") for state in states) and states[-1] == ""
    assert any(state.startswith("inner:  50%") for state in states)
    # (The log has each bar as it ended.)
    assert [line.split(" ")[0] for line in (tmp_path / LOG).read_text().splitlines()[1:]] == ["outer:", "done"]


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        (("sft", "--config", "tiny/sft", "--learning_rte", "1"), 2, "--learning_rte, did you mean --learning_rate?"),
        (("sft", "--config", "tiny/nothing"), 1, "config='tiny/nothing' is no file"),
        (("sft", "--config", "FILE"), 1, "FILE: there is no option max_step, did you mean max_steps?"),
        (("sft", "--config", "tiny/sft", "--max_steps", "many"), 2, "invalid int value: 'many'"),
        (("sft", "--config", "tiny/sft", "--output_dir", "FILE"), 1, "is a file. Give another"),
        (("merge", "--output_dir", NO_FOLDER, "--adapter", "x"), 1, NO_FOLDER),
        (("compare", "a", "b", "--output_dir", "FILE/sub"), 1, "is a file. Give another"),
        (("sft", "--config", "tiny/sft", "--resume_from_checkpoint", "none"), 1, "there is no such folder"),
        (("hard_sample", "--scores", "none.parquet"), 1, "scores='none.parquet' is not there"),
        (("evaluate", "--predictions_dir", "none"), 1, "predictions_dir='none' is not there"),
        (("evaluate", "--dataset_split", "some", "--synthetic", DATA), 1, "dataset_split='some'"),
        (("build_preferences", "--dataset_name", "none"), 1, "none"),
        (("predict", "--input", "none.png"), 1, "none.png"),
        (("convert", "--source", "none", "--output_dir", "new"), 1, "none"),
        (("mine_hard_samples", "--worst", "3"), 1, "worst"),
    ],
)
def test_a_mistake_is_one_line(task, tmp_path, monkeypatch, capfd, line, status, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("max_step: 3\n")
    assert task(*line) == status
    shown = capfd.readouterr()
    assert shown.out == ""
    (text,) = shown.err.splitlines()
    assert text.startswith("sa2va-trl") and ": error: " in text and said in text
    if (log := next(tmp_path.rglob(LOG), None)) is not None:
        assert "Traceback" in log.read_text() and said in log.read_text()


def test_what_nobody_has_foreseen_says_where_its_traceback_is(task, tmp_path, monkeypatch, capfd):
    def main():
        log_into(tmp_path)
        return {}["missing"]

    monkeypatch.setattr("sa2va_trl.scripts.compare.main", main)
    assert task("compare") == 1
    (text,) = capfd.readouterr().err.splitlines()
    place = f"the traceback is in {tmp_path / LOG}, or run it again with --verbose"
    assert text == f"sa2va-trl: error: KeyError: 'missing'; {place}"
    assert 'return {}["missing"]' in (tmp_path / LOG).read_text()
    # Where there is no log yet, it is shown.
    monkeypatch.setattr("sa2va_trl.scripts.compare.main", lambda: {}["missing"])
    assert task("compare") == 1
    shown = capfd.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in shown and shown[-1] == "sa2va-trl: error: KeyError: 'missing'"


def test_an_interrupt_is_a_word(task, monkeypatch, capfd):
    def main():
        raise KeyboardInterrupt

    monkeypatch.setattr("sa2va_trl.scripts.compare.main", main)
    assert task("compare") == 130 and capfd.readouterr().err == "sa2va-trl: interrupted\n"


def test_only_what_this_package_raises_is_made_for_the_user():
    made = {"a family of ours": lambda: tiny_sa2va(family="none"), "a file": lambda: open("nowhere")}
    for call in (*made.values(), lambda: int("x"), lambda: torch.zeros(2) @ torch.zeros(3)):
        with pytest.raises((ValueError, OSError, RuntimeError)) as error:
            call()
        assert is_mistake(error.value) == (call in made.values())


def test_a_fault_is_none_for_the_user_because_a_file_is_named():
    with pytest.raises(RuntimeError, match="^scan.png: ") as error, named("scan.png"):
        torch.zeros(2) @ torch.zeros(3)
    assert not is_mistake(error.value)
    with pytest.raises(RuntimeError, match="^scan.png: ") as error, named("scan.png"):
        raise torch.OutOfMemoryError("no memory")
    assert is_mistake(error.value)


def test_from_training_to_comparison_the_screen_has_only_what_one_can_act_on(tmp_path):
    """All in one process, whose imports are what takes long; nothing of it looks for a network."""
    data, sizes = ["--synthetic", DATA], ["--grounding_image_size", "64"]
    steps = ["--max_steps", "2", "--eval_steps", "1", "--save_steps", "1", "--trainable", "stage1", "--lora_r", "2"]
    adapter = ["--model_name_or_path", "tiny", *sizes, "--adapter", "sft"]
    few = ["--trainable", "head", "--max_steps", "1", "--report_to", "none", "--eval_strategy", "no"]
    lines = [
        ["sft", "--config", "tiny/sft", *data, *sizes, *steps, "--use_cpu", "true", "--output_dir", "sft"],
        ["evaluate", *adapter, *data, "--output_dir", "evaluations/one"],
        ["evaluate", *adapter, *data, "--threshold", "0.4", "--output_dir", "evaluations/two"],
        ["compare", "evaluations/one", "evaluations/two", "--output_dir", "comparison"],
        ["build_preferences", *adapter, *data, "--min_gap", "0", "--output_dir", "pairs"],
        ["dpo", *adapter, *data, "--preferences", "pairs", *few, "--use_cpu", "true", "--output_dir", "dpo"],
        ["mine_hard_samples", *adapter, *data, "--worst", "0.5", "--output_dir", "mined"],
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("HF_HUB_OFFLINE", None)
    finished = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(lines)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "hub")},
    )
    assert finished.returncode == 0 and finished.stderr == "", finished.stderr[-5000:]
    said = [part.splitlines() for part in finished.stdout.split("$ ")[1:]]
    assert [part[0] for part in said] == [line[0] for line in lines]
    assert not any(word in finished.stdout for word in ("Warning", "WARNING", "warnings of", "NETWORK", "it/s", "{'"))
    sft, evaluate, second, compare, pairs, dpo, mined = (part[1:] for part in said)
    model = "--model_name_or_path tiny --grounding_image_size 64 --adapter sft"
    trains, (needs, *sft) = sft[:6], sft[6:]  # before the first step
    assert all(re.fullmatch(r"[\w ()]+ +[\d.]+ M", line) for line in trains)
    assert [line.split()[0] for line in trains] == ["projector", "LoRA", "SAM", "text_hidden_fcs", "trainable", "all"]
    assert needs.startswith("A step needs about 0.")
    assert sft.pop(0).startswith("step 0 of 2: validation Dice ")
    assert sft[0].startswith("step 1 of 2: validation Dice ") and sft[1].startswith("step 2 of 2: ")
    assert sft[2].startswith("LoRA supervised fine-tuning, 2 steps: validation Dice ")
    assert sft[3].startswith("adapter, processor and card in sft, after ")
    assert sft[4].startswith(f"score it: sa2va-trl evaluate {model} --dataset_name synthetic --synthetic ")
    assert sft[4].endswith("--output_dir sft/evaluation") and len(sft) == 5
    assert evaluate[-1] == "look at it: evaluations/one/report.html"
    assert second[-1] == "compare it with another: sa2va-trl compare evaluations/one evaluations/two"
    assert "results in evaluations/one" in evaluate[-2] and len(evaluate) < 25
    assert compare[-2].startswith("results in comparison/comparison.json")
    again = (
        "another metric: sa2va-trl compare evaluations/one evaluations/two --metric iou --output_dir comparison_iou"
    )
    assert compare[-1] == again
    model = "--model_name_or_path tiny --adapter sft --grounding_image_size 64"
    assert pairs[-1].startswith(f"train on them: sa2va-trl dpo {model} ") and "--preferences pairs" in pairs[-1]
    merge = "sa2va-trl merge --model_name_or_path tiny --adapter sft --output_dir dpo_base"
    assert dpo[-1].startswith(f"score it: {merge} && sa2va-trl evaluate --model_name_or_path dpo_base ")
    assert "NETWORK" not in "".join(file.read_text() for file in tmp_path.rglob(LOG))
    assert mined[-1].startswith(f"train on them: sa2va-trl hard_sample {model} ")
    assert "--scores mined/scores.parquet" in mined[-1]
    # What was hidden is in the logs.
    log = (tmp_path / "sft" / LOG).read_text()
    assert "'eval_dice': " in log and "LoRA (language model)" in log and "train: 100%" in log and "NETWORK" not in log
    for name in ("pin_memory", "gradient_checkpointing`", "PAD/BOS/EOS", "config file in"):  # avoided, and not hidden
        assert all(name not in file.read_text() for file in tmp_path.rglob(LOG))
    # A log beside rows is none of them.
    assert (tmp_path / "pairs" / LOG).is_file()
    assert len(load_dataset(str(tmp_path / "pairs"), cache_dir=str(tmp_path / "cache"))["train"]) == 6
