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
# What is imported in which order.
ORDERS = (
    "import sa2va_trl; from transformers import AutoConfig",
    "from transformers import AutoConfig; import sa2va_trl",
    "import sys, sa2va_trl; [sys.modules.pop(n) for n in list(sys.modules) if n.startswith('sa2va_trl')]; "
    "import sa2va_trl; from transformers import AutoConfig",
)
# Each in a process that has imported neither, but what takes long to import and knows nothing of them.
IN_EACH = """
import os, sys
import datasets, torch, torch._dynamo, torchvision

assert not {"sa2va_trl", "transformers"} & set(sys.modules)
for order in sys.argv[1:]:
    process = os.fork()
    if process == 0:
        exec(order)
        print(type(AutoConfig.for_model("sa2va")).__name__, flush=True)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0, order
"""


def test_auto_classes_know_the_models_in_whichever_order():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", IN_EACH, *ORDERS]
    finished = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == 3 * ["Sa2VAConfig"]


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
