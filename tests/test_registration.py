"""`import sa2va_trl` loads nothing, and the Auto classes know its models all the same."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sa2va_trl


ROOT = Path(__file__).resolve().parents[1]
# What is imported in which order, in a fresh interpreter.
ORDER = "import sa2va_trl; from transformers import AutoConfig"
OTHERS = (
    "from transformers import AutoConfig; import sa2va_trl",
    "import sys, sa2va_trl; [sys.modules.pop(n) for n in list(sys.modules) if n.startswith('sa2va_trl')]; " + ORDER,
)


@pytest.mark.parametrize("order", [ORDER, *(pytest.param(order, marks=pytest.mark.slow) for order in OTHERS)])
def test_auto_classes_know_the_models_in_whichever_order(order):
    code = f"{order}\nprint('\\n' + type(AutoConfig.for_model('sa2va')).__name__)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "Sa2VAConfig"


def test_every_name_comes_from_where_type_checkers_look():
    tree = ast.parse(Path(sa2va_trl.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == sa2va_trl.__all__
    assert sa2va_trl._HOME_OF == seen
    for name, home in seen.items():
        assert getattr(sa2va_trl, name) is getattr(import_module(f"sa2va_trl.{home}"), name)
    assert set(sa2va_trl.__all__) <= set(dir(sa2va_trl))


def test_modules_are_attributes_and_other_names_are_not():
    assert sa2va_trl.evaluation.compare is import_module("sa2va_trl.evaluation").compare
    assert sa2va_trl.arguments.ModelArguments is import_module("sa2va_trl.scripts.arguments").ModelArguments
    with pytest.raises(AttributeError, match="has no attribute 'Sa2VA'"):
        sa2va_trl.Sa2VA  # noqa: B018
    with pytest.raises(ImportError, match="SegPPOTrainer"):
        from sa2va_trl import SegPPOTrainer  # noqa: F401
