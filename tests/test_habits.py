"""Habits of the code that readers rely on: types, docstrings, one dialect of `Raises:`, no private name elsewhere."""

import ast
import inspect
import re
from collections import Counter
from functools import cached_property
from importlib import import_module

import longer
import pytest
from house import ROOT, files_of


MODULES = files_of(ROOT)
# Names with a leading underscore that another module may import, and why.
PRIVATE = {
    "_moved": "finds modules by their old names; nobody calls it",
    "_registration": "tells transformers of the model; nobody calls it",
    "_Progress": "its name is in trainer_state.json of checkpoints",
}
# (Of `*rest` and `**options`, which are passed on, the types are those of where they go.)
PASSED_ON = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def public_things(module):
    """What a module defines under a public name: classes, their own methods and properties, functions."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            yield name, thing
            for member, value in vars(thing).items():
                if not member.startswith("_") or (member == "__init__" and not is_generated(value)):
                    value = getattr(value, "__func__", value)  # class and static methods
                    value = value.fget if isinstance(value, property) else value
                    value = value.func if isinstance(value, cached_property) else value
                    if inspect.isfunction(value) and value.__module__ == module.__name__:
                        yield f"{name}.{member}", value


def is_generated(function):
    """Whether no file has the code, as of a dataclass's constructor."""
    return not inspect.isfunction(function) or inspect.unwrap(function).__code__.co_filename.startswith("<")


def without_type(name, function):
    """The parameters of a function, and its `return`, that have no type."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if "." in name and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    named = [parameter for parameter in parameters if parameter.kind not in PASSED_ON]
    missing = [parameter.name for parameter in named if parameter.annotation is parameter.empty]
    if signature.return_annotation is signature.empty and not name.endswith(".__init__"):
        missing.append("return")
    return missing


def has_docstring(name, thing, module):
    """
    Its own, or that of the method which it stands in for, of a mixin in the classes that it is mixed into; a
    constructor's class and a task's module have it.
    """
    if name.endswith(".__init__") or (name == "main" and module.__doc__):
        return True
    if "." in name:
        owner, member = name.split(".")
        classes = [getattr(module, owner)]
        for each in classes:
            classes += each.__subclasses__()
        return any(getattr(vars(base).get(member), "__doc__", None) for each in classes for base in each.__mro__)
    return bool(thing.__doc__)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_methods_and_classes_have_types_and_docstrings(name):
    module = import_module(name)
    wrong = []
    for thing_name, thing in public_things(module):
        if not has_docstring(thing_name, thing, module):
            wrong.append(f"{thing_name}: no docstring")
        if inspect.isfunction(thing) and without_type(thing_name, thing):
            wrong.append(f"{thing_name}: no type of {', '.join(without_type(thing_name, thing))}")
    assert not wrong, "\n".join(wrong)


def test_what_lacks_a_type_or_a_docstring_would_be_seen():
    def typed(self, a: int, *, b: str = "") -> None:
        """Does."""

    def untyped(self, a: int, b, *rest, **options): ...

    assert without_type("Thing.typed", typed) == []
    assert without_type("Thing.untyped", untyped) == ["b", "return"]
    assert without_type("Thing.__init__", untyped) == ["b"]
    module = import_module("sa2va_trl.trainers.sft_trainer")
    names = dict(public_things(module))
    assert "SegSFTTrainer" in names and "SegSFTTrainer.compute_loss" in names
    assert not has_docstring("untyped", untyped, module) and has_docstring("typed", typed, module)


def private_imports(tree):
    """Names with a leading underscore that a module takes from others of the package, by import or as attributes."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "sa2va_trl"):
            for alias in node.names:
                if alias.name[0].islower():  # no class, whose private names may be those that its base looks for
                    modules.add(alias.asname or alias.name)
                if alias.name.startswith("_") and alias.name not in PRIVATE:
                    yield node.lineno, alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                yield node.lineno, f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("folder", ["sa2va_trl", "recipes"])
def test_no_module_takes_a_private_name_of_another(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 10
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in files
        for line, name in private_imports(ast.parse(file.read_text()))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_private_name_of_another_module_would_be_seen():
    code = (
        "from .a import _b, C\nfrom . import d, _moved\nfrom torch import _dynamo\nd._e()\nd.f\nC._tags\nd.__doc__\n"
    )
    assert list(private_imports(ast.parse(code))) == [(1, "_b"), (4, "d._e")]


ENTRY = re.compile(r"`[A-Z]\w*`(?: or `[A-Z]\w*`|, `[A-Z]\w*`)*: \S")

LIKE_AN_ENTRY = re.compile(r"`?\w*(Error|Exception|Interrupt)`?\s*(:|\()")


def odd_raises(docstring):
    """Entries of the section `Raises:` of a docstring that are not written as the others are."""
    lines = docstring.splitlines()
    odd = []
    for start, line in enumerate(lines):
        if line.strip() != "Raises:":
            continue
        inside = len(line) - len(line.lstrip())
        entries = []
        for following in lines[start + 1 :]:
            indent = len(following) - len(following.lstrip())
            if following.strip() and indent <= inside:
                break
            if following.strip() and indent == inside + 4:
                entries.append(following.strip())
        # (A reason may go on in a line that is no deeper, but which never begins like another entry.)
        begins = entries[:1] + [entry for entry in entries[1:] if LIKE_AN_ENTRY.match(entry)]
        odd += [entry for entry in begins or [line] if not ENTRY.match(entry)]
    return odd


@pytest.mark.parametrize("name", MODULES)
def test_raises_is_written_in_one_way(name):
    tree = ast.parse(MODULES[name].read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {node: ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)}
    wrong = [entry for docstring in docstrings.values() for entry in odd_raises(docstring)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("section", "odd"),
    [
        ("    `ValueError`: a reason.", 0),
        ("    `ValueError`: a reason that\n    goes on.\n    `OSError`: another.", 0),
        ("    `ValueError`, `OSError`: a reason.", 0),
        ("    ValueError: a reason.", 1),
        ("    `ValueError`: a reason.\n    OSError: another.", 1),
        ("    `ValueError` if something is so.", 1),
        ("", 1),
    ],
)
def test_another_dialect_would_be_seen(section, odd):
    assert len(odd_raises(f"What it does.\n\nRaises:\n{section}\n\nExample: none.")) == odd


def test_what_make_test_fast_leaves_out_is_there():
    gone = [name for name in longer.listed() if not longer.is_there(name)]
    assert longer.listed() and not gone, "these tests are no more: take them out of tests/longer.txt, or measure anew"


def test_no_two_files_of_tests_share_a_name():
    """They are imported by it, without their folder."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
