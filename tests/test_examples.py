"""Examples in docstrings run, by themselves and offline, and those that readers look for first are there."""

import ast
import doctest
import re
from importlib.util import find_spec

import pytest
from house import ROOT, files_of


EXAMPLES = [
    *("SegSFTTrainer", "SegSFTConfig", "SegDPOTrainer", "SegDPOConfig", "HardSampleTrainer", "HardSampleConfig"),
    *("segment", "MaskSampler", "build_preferences", "score_dataset", "compare"),
    "load_dataset_dict",
]
if find_spec("deepspeed"):  # says at its first import what it runs on, which no example expects
    import deepspeed  # noqa: F401


def docstrings(tree, owner=""):
    """The docstrings of a module, of its classes, functions and methods, by name."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{owner}{node.name}", ast.get_docstring(node, clean=False) or ""
        if isinstance(node, ast.ClassDef):
            yield from docstrings(node, f"{owner}{node.name}.")


def examples():
    """Every docstring of the package with examples: its name, the file, and the text."""
    for file in files_of(ROOT).values():
        tree = ast.parse(file.read_text())
        for name, text in [(file.stem, ast.get_docstring(tree, clean=False) or ""), *docstrings(tree)]:
            if ">>> " in text:
                yield name, file, text


def run(name, file, text):
    """Run the examples of a docstring one after the other, as in a session of their own; what they say is wrong."""
    # The line that ends a block of code is none of what the code before it prints.
    text = re.sub(r"^\s*```\w*$", "", text, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, str(file), 0)
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    return "".join(said)


FOUND = [pytest.param(*found, id=f"{found[1].relative_to(ROOT)}::{found[0]}") for found in examples()]


@pytest.mark.parametrize(("name", "file", "text"), FOUND)
def test_an_example_runs(name, file, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run(name, file, text)
    assert not said, said


@pytest.mark.parametrize("name", EXAMPLES)
def test_there_is_an_example_of(name):
    assert name in {found.values[0].rpartition(".")[2] for found in FOUND}


def test_an_example_that_does_not_run_would_be_seen():
    text = "Adds.\n\nExample:\n\n    ```python\n    >>> 1 + 1\n    {}\n    ```\n\nReturns:\n    A sum.\n"
    assert not run("add", "add.py", text.format(2))
    assert "Expected:\n    3" in run("add", "add.py", text.format(3))
    assert "NameError" in run("add", "add.py", text.replace("1 + 1", "pytest"))
