"""
Which tests `make test-fast` does not wait for: a plugin that measures those of a run and writes `longer.txt`.

    PYTHONPATH=tests python -m pytest -p longer -n 2 --dist loadgroup tests

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
# Tests that take more than {LIMIT:.0f} s of processor time with their fixtures, as tests/longer.py has measured them.
# `make test-fast` leaves them out, and those marked slow.
"""
FIXTURES = defaultdict(float)  # seconds of each, of its costliest set-up
TESTS = defaultdict(float)  # seconds of each function, of its costliest case


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
        FIXTURES[fixturedef] = max(FIXTURES[fixturedef], processor_seconds() - start)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    start = processor_seconds()
    try:
        return (yield)
    finally:
        seconds = processor_seconds() - start
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            seconds += FIXTURES[definitions[-1]]
        name = f"{item.path.relative_to(LIST.parent).as_posix()}::{item.originalname}"
        TESTS[name] = max(TESTS[name], seconds)


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
    with FileLock(LIST.with_suffix(".lock")):  # of several workers each has its share
        kept = {name: seconds for name, seconds in listed().items() if name not in TESTS and is_there(name)}
        long = kept | {name: seconds for name, seconds in TESTS.items() if seconds > LIMIT}
        LIST.write_text(HEAD + "".join(f"{name}  # {seconds:.1f} s\n" for name, seconds in sorted(long.items())))
