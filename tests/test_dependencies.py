"""`setup.cfg` names what is imported and, but for what it gives a reason for, nothing else."""

import ast
import re
import sys

import pytest
from house import ROOT, runs


# Packages whose modules have other names.
MODULES = {
    "griffelib": "griffe",
    "pillow": "PIL",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
OUR_OWN = {"sa2va_trl", "tests"} | {file.stem for file in (*ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/*.py"))}


def named():
    """Modules of the packages that `setup.cfg` asks for, by extra (`""` for all); those it says are not imported."""
    wanted, unseen, extra, reason = {}, set(), None, ""
    for line in (ROOT / "setup.cfg").read_text().splitlines():
        text = line.strip()
        if line[:1] == "[":
            section, extra = line, None
        elif line[:1].isalpha():
            key = text.partition(" =")[0]
            asks = section == "[options.extras_require]" or key == "install_requires"
            extra = ("" if key == "install_requires" else key) if asks else None
        elif extra is not None and text.startswith("#"):
            reason = text
        elif extra is not None and text:
            name = re.match(r"[\w-]+", text).group()
            wanted.setdefault(extra, set()).add(MODULES.get(name, name.replace("-", "_")))
            if reason.startswith("# not imported"):
                unseen.add(MODULES.get(name, name.replace("-", "_")))
            reason = ""
    return wanted, unseen


def imported(*folders):
    """Modules of others that files import: those that every import of the file needs, and those within functions."""
    always, within = set(), set()
    for file in (file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))):
        tree = ast.parse(file.read_text())
        for node in runs(tree):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = {node.module}
            else:
                continue
            (always if node in tree.body else within).update(name.split(".")[0] for name in names)
    known = OUR_OWN | set(sys.stdlib_module_names)
    return always - known, within - known


WANTED, UNSEEN = named()


def test_what_is_imported_is_named():
    always, within = imported("sa2va_trl")
    assert {"torch", "numpy"} <= always and "av" in within
    assert always <= WANTED[""]
    assert within <= set().union(*(modules for extra, modules in WANTED.items() if extra not in ("test", "quality")))


@pytest.mark.parametrize("folder", ["recipes", "tests", "docs"])
def test_what_stands_around_the_package_needs_no_more_than_tests_do(folder):
    always, within = imported(folder)
    assert always | within <= set().union(*WANTED.values())


def test_what_is_named_is_imported_or_a_reason_is_given():
    always, within = imported("sa2va_trl", "tests", "docs")
    everything = set().union(*WANTED.values()) - {"sa2va_trl"}
    assert everything - always - within == UNSEEN


def test_tests_have_every_extra():
    # app has an environment of its own, since gradio asks for an older Pillow.
    assert "pip install --quiet --no-build-isolation --editable '.[app]'" in (ROOT / "Makefile").read_text()
    line = next(
        line for line in (ROOT / "setup.cfg").read_text().splitlines() if line.strip().startswith("sa2va_trl[")
    )
    assert set(line.strip()[len("sa2va_trl[") : -1].split(",")) == set(WANTED) - {"", "test", "quality", "app"}
