"""The command: the list of tasks and their help are there at once, and a task gets what it is given."""

import ast
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import sa2va_trl
from sa2va_trl import cli
from sa2va_trl.scripts import HELP, TASKS


ROOT = Path(__file__).resolve().parents[1]
# A recipe's folder is the first that Python looks into: inspect.py there would stand in for Python's own module.
RECIPES = [task for task in TASKS if task != "inspect"]
HEAVY = ("torch", "transformers", "trl", "datasets", "numpy")


def python(*line, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *line], capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def processor_seconds():
    """Of all that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_every_task_is_a_script_with_a_main_a_help_and_a_recipe():
    scripts = ROOT / "sa2va_trl" / "scripts"
    with_main = {
        file.stem
        for file in scripts.glob("*.py")
        if "main" in [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    }
    assert with_main == set(TASKS)
    assert {file.stem for file in HELP.glob("*.txt")} == set(TASKS)
    assert {file.stem for file in (ROOT / "recipes").glob("*.py")} == set(RECIPES)


def test_tasks_are_listed_a_line_each(monkeypatch, capsys):
    for line in ([], ["-h"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["sa2va-trl", *line])
        cli.main()
        printed = capsys.readouterr().out.splitlines()
        for task, about in TASKS.items():
            (line,) = [line.split(None, 1) for line in printed if line.startswith(f"  {task} ")]
            assert line == [task, about]


def test_nothing_heavy_is_imported_for_it():
    code = "import sys, sa2va_trl, sa2va_trl.cli as cli\nsys.argv = ['sa2va-trl']\ncli.main()\n"
    code += "sys.argv = ['sa2va-trl', 'sft', '--help']\ncli.main()\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    finished = python("-c", code)
    assert finished.returncode == 0 and finished.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_the_page_of_the_task(monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["sa2va-trl", "predict", "--input", "x.png", option])
    cli.main()
    assert capsys.readouterr().out == (HELP / "predict.txt").read_text()


@pytest.mark.parametrize("task", RECIPES)
def test_a_recipe_is_its_task(task):
    start = processor_seconds()
    finished = python(str(ROOT / "recipes" / f"{task}.py"), "--help", cwd=ROOT.parent)
    assert finished.returncode == 0 and finished.stdout == (HELP / f"{task}.txt").read_text()
    assert finished.stdout.startswith(f"usage: sa2va-trl {task} ")
    assert processor_seconds() - start < 2


def test_an_unknown_task_is_a_line_with_the_nearest(monkeypatch, capsys):
    for given, nearest in (("sfd", "sft"), ("mine_hard_sample", "mine_hard_samples"), ("evaluation", "evaluate")):
        monkeypatch.setattr(sys, "argv", ["sa2va-trl", given, "--config", "tiny/sft"])
        with pytest.raises(SystemExit) as error:
            cli.main()
        assert error.value.code == 2
        assert capsys.readouterr().err == f"sa2va-trl: there is no task {given!r}; did you mean {nearest}?\n"


def test_a_task_gets_the_rest_of_the_line(monkeypatch):
    seen = []
    monkeypatch.setattr("sa2va_trl.scripts.compare.main", lambda: seen.append(sys.argv[:]))
    line = ["stage1", "stage2", "--output_dir", "out"]
    monkeypatch.setattr(sys, "argv", ["sa2va-trl", "compare", *line])
    cli.main()
    monkeypatch.setattr(sys, "argv", ["compare.py", *line])
    cli.main("compare")
    assert seen == [["sa2va-trl", *line], ["compare.py", *line]]


@pytest.mark.slow
def test_two_processes_without_a_clone(tmp_path):
    """What the README says of `accelerate launch`, for a package that is installed."""
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    data = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 4, "size": 64}
    options = [
        "--config",
        "tiny/from_scratch",
        "--max_steps",
        "1",
        "--eval_strategy",
        "no",
        "--load_best_model_at_end",
        "false",
    ]
    options += ["--use_cpu", "true", "--grounding_image_size", "64", "--synthetic", json.dumps(data)]
    finished = python(*launcher, "-m", "sa2va_trl.cli", "sft", *options, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr[-5000:]
    output = tmp_path / "outputs" / "tiny" / "from_scratch"
    assert (output / "model.safetensors").is_file()
    assert finished.stdout.count("score it: sa2va-trl evaluate --model_name_or_path outputs/tiny/from_scratch") == 1


def test_the_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sa2va-trl", "--version"])
    cli.main()
    assert capsys.readouterr().out == f"sa2va_trl {sa2va_trl.__version__}\n"
