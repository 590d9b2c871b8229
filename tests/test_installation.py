"""What `pip install` brings, outside any clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2va_trl.models.tiny import WEIGHTS
from sa2va_trl.scripts import TASKS


ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
ENVIRONMENT |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PIP_NO_INDEX": "1"}


def run(*line, cwd):
    finished = subprocess.run([*map(str, line)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-5000:]
    return finished.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a distribution is made of, which is written to while it is built."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "sa2va_trl", folder / "sa2va_trl", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A virtual environment with the wheel, and everything else from the present one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    # Before the present one's packages can be seen: pip leaves the package in there alone.
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin", site


def names_of(folder, pattern):
    return {file.relative_to(ROOT / "sa2va_trl").as_posix() for file in folder.glob(pattern)}


@pytest.mark.slow
def test_wheel_and_source_hold_the_files_that_are_no_code(source, wheel):
    expected = names_of(ROOT / "sa2va_trl" / "configs", "*/*.yaml") | names_of(
        ROOT / "sa2va_trl" / "scripts" / "help", "*.txt"
    )
    expected |= names_of(ROOT / "sa2va_trl" / "evaluation" / "templates", "*")
    expected |= {"app/viewer.js", WEIGHTS.relative_to(ROOT / "sa2va_trl").as_posix()}
    assert len(expected) > 2 * len(TASKS)
    with zipfile.ZipFile(wheel) as archive:
        for name in expected:
            assert archive.read(f"sa2va_trl/{name}") == (ROOT / "sa2va_trl" / name).read_bytes()
    run(sys.executable, "-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')", cwd=source)
    with tarfile.open(next((source / "dist").glob("*.tar.gz"))) as archive:
        top = archive.getnames()[0].split("/")[0]
        for name in expected:
            assert archive.getmember(f"{top}/sa2va_trl/{name}").isreg()


@pytest.mark.slow
def test_train_evaluate_and_predict_outside_the_clone(installed, tmp_path):
    programs, site = installed
    command, data = programs / "sa2va-trl", {"train_videos": 1, "validation_videos": 1, "test_videos": 1}
    given = ["--synthetic", json.dumps({**data, "frames_per_video": 4, "size": 64})]
    file = run(programs / "python", "-c", "import sa2va_trl; print(sa2va_trl.__file__)", cwd=tmp_path).strip()
    assert Path(file) == site / "sa2va_trl" / "__init__.py"

    listed = run(command, cwd=tmp_path)
    assert all(f"\n  {task} " in listed for task in TASKS)
    options = [
        "--config",
        "tiny/from_scratch",
        "--max_steps",
        "2",
        "--grounding_image_size",
        "128",
        "--use_cpu",
        "true",
    ]
    said = run(command, "sft", *options, *given, cwd=tmp_path)
    model = Path("outputs/tiny/from_scratch")
    assert f"score it: sa2va-trl evaluate --model_name_or_path {model}" in said
    assert json.loads((tmp_path / model / "trainer_state.json").read_text())["global_step"] == 2

    run(command, "evaluate", "--model_name_or_path", model, "--output_dir", "scores", *given, cwd=tmp_path)
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["dice"]["n"] == 4
    picture = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    options = ["--model_name_or_path", model, "--input", "picture.png", "--answer", "Sure, [SEG]."]
    run(command, "predict", *options, "--output_dir", "drawn", cwd=tmp_path)
    (entry,) = json.loads((tmp_path / "drawn" / "predictions.json").read_text())["predictions"]
    assert Image.open(tmp_path / "drawn" / entry["objects"][0]["mask"]).size == (64, 48)
