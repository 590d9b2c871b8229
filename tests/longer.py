"""
Which tests `make test-fast` does not wait for: a plugin that measures those of a run and writes `longer.txt`.

    PYTHONPATH=tests python -m pytest -p longer -n 2 --dist loadfile tests

By processor time, so that it does not matter what else the machine does, and with all fixtures that a test asks for,
so that it does not matter which test asked first. Tests that are not run keep what the list says of them.
"""

import os
from collections import defaultdict
from pathlib import Path

import pytest
from filelock import FileLock


LIMIT = 1.0  # seconds
LIST = Path(__file__).with_suffix(".txt")
HEAD = f"""\
# Test functions that take more than {LIMIT:.0f} s of processor time, with all their cases and fixtures, as measured by
# tests/longer.py. `make test-fast` leaves them out, and those marked slow.
"""
FIXTURES = defaultdict(float)  # seconds of each, the last time that it was set up
CASES = defaultdict(float)  # of the cases of a test function, with the fixtures that each of them has anew
SHARED = defaultdict(float)  # of the fixtures that a test function shares with others


def processor_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    start = processor_seconds()
    try:
        return (yield)
    finally:
        FIXTURES[fixturedef] = processor_seconds() - start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    start = processor_seconds()
    try:
        return (yield)
    finally:
        name = f"{item.path.relative_to(LIST.parent).as_posix()}::{item.originalname}"
        definitions = [every[-1] for every in item._fixtureinfo.name2fixturedefs.values()]
        own = [FIXTURES[fixture] for fixture in definitions if fixture.scope == "function"]
        CASES[name] += processor_seconds() - start + sum(own)
        shared = sum(FIXTURES[fixture] for fixture in definitions if fixture.scope != "function")
        SHARED[name] = max(SHARED[name], shared)


def is_there(name: str) -> bool:
    """Whether there is a test of this name."""
    file, _, function = name.partition("::")
    path = LIST.parent / file
    return path.is_file() and f"def {function}(" in path.read_text()


def listed() -> dict[str, float]:
    """The tests of the list, and their seconds."""
    lines = [line.partition("  # ") for line in LIST.read_text().splitlines() if "::" in line]
    return {name: float(seconds.split()[0]) for name, _, seconds in lines}


def pytest_sessionfinish():
    seconds = {name: own + SHARED[name] for name, own in CASES.items()}
    with FileLock(LIST.with_suffix(".lock")):  # of several workers each has its share
        kept = {name: time for name, time in listed().items() if name not in seconds and is_there(name)}
        long = kept | {name: time for name, time in seconds.items() if time > LIMIT}
        LIST.write_text(HEAD + "".join(f"{name}  # {time:.1f} s\n" for name, time in sorted(long.items())))
