"""Tasks, run in this process as the command line runs them."""

import sys
from importlib import import_module

import yaml


def run_task(name, *line):
    """The `main` of a task, on these options."""
    main, before = import_module(f"sa2va_trl.scripts.{name}").main, sys.argv
    sys.argv = [f"sa2va-trl {name}", *map(str, line)]
    try:
        main()
    finally:
        sys.argv = before


def options(folder, **values):
    """Options in a YAML, as the command line takes them."""
    file = folder / "options.yaml"
    file.write_text(yaml.safe_dump(values))
    return ["--config", file]
