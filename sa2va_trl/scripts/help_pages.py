"""
What `sa2va-trl TASK --help` prints, written ahead into `help/TASK.txt`: making it takes all of TRL and transformers,
whose options the training tasks inherit. After a change of any option:

    python -m sa2va_trl.scripts.help_pages
"""

import argparse
import dataclasses
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version

from . import HELP, TASKS
from .quiet import VERBOSE


CONFIG = "YAML with any of these options, a file or a name such as tiny/sft; the command line wins over it."
SHOWN = "Show on the screen all that otherwise only goes into log.txt in output_dir."
INHERITED = "inherited from TRL"
NOTES = """\
Dashes may stand for underscores. An option that is true by default is switched off by --NAME false or --no_NAME."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """One spelling of each option, a default where there is one, and the same lines on every terminal."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, max_help_position=30, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = action.option_strings[0] if action.option_strings else action.dest
        values = self._values(action)
        return f"{name} {values}" if action.option_strings and action.nargs != 0 else name

    def _values(self, action: argparse.Action) -> str:
        values = self._format_args(action, action.dest.upper())
        return values if len(values) < 60 else action.dest.upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.choices and self._values(action) == action.dest.upper():
            text += f" One of {', '.join(map(str, action.choices))}."
        empty = action.default is None or action.default in ("", [], {}) or action.default == argparse.SUPPRESS
        return text if empty or "%(default)" in text else f"{text} (default: %(default)s)"


def inherited_names(kinds: Iterable[type]) -> set[str]:
    """Names of the fields of dataclasses that only classes outside this package have."""
    names, own = set(), set()
    for kind in kinds:
        names |= {field.name for field in dataclasses.fields(kind)}
        ours = [base for base in kind.__mro__ if not base.__module__.startswith(("trl.", "transformers."))]
        own |= {name for base in ours for name in vars(base).get("__annotations__", {})}
    return names - own


def help_page(parser: argparse.ArgumentParser, kinds: Iterable[type]) -> str:
    """
    Args:
        parser (`argparse.ArgumentParser`): with the options, and the task's own words as its description.
        kinds (iterable of dataclasses): what its options are made of.

    Returns:
        The text: first what belongs to the task and to this package, then what TRL and transformers add.
    """
    actions = [action for action in parser._actions if not isinstance(action, argparse._StoreFalseAction)]
    actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
    inherited = inherited_names(kinds)
    config = argparse.Action(["--config"], "config", help=getattr(parser, "config_help", CONFIG))
    verbose = argparse.Action([VERBOSE], "verbose", nargs=0, help=SHOWN)
    formatter = _Formatter(parser.prog)
    formatter.add_usage(usage(parser).replace("%", "%%"), [], [], prefix="usage: ")
    formatter.add_text(parser.description)
    versions = f"{_minor('trl')} and transformers {_minor('transformers')}"
    sections = {
        "options": [config, verbose, *(action for action in actions if action.dest not in inherited)],
        f"{INHERITED} {versions} (those without a meaning here raise)": [
            action for action in actions if action.dest in inherited
        ],
    }
    for title, section in sections.items():
        formatter.start_section(title)
        formatter.add_arguments(section)
        formatter.end_section()
    formatter.add_text(NOTES)
    return formatter.format_help()


def usage(parser: argparse.ArgumentParser) -> str:
    """One line, with what has to be given."""
    formatter = _Formatter(parser.prog)
    required = [formatter._format_action_invocation(action) for action in parser._actions if action.required]
    return " ".join([parser.prog, *required, "[--config CONFIG]", "[options]"])


def _minor(package: str) -> str:
    return ".".join(version(package).split(".")[:2])


def render(task: str) -> str:
    """The help of a task, from its options as they are."""
    return import_module(f"sa2va_trl.scripts.{task}").make_parser().format_help()


if __name__ == "__main__":
    pages = {task: render(task) for task in TASKS}  # before anything is deleted
    HELP.mkdir(exist_ok=True)
    for page in HELP.glob("*.txt"):
        page.unlink()
    for task, page in pages.items():
        (HELP / f"{task}.txt").write_text(page, encoding="utf-8")
