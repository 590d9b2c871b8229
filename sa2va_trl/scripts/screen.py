"""
What a task says on the screen, once for all its processes.

By itself, a task prints as any program does. The command line ([`~scripts.quiet.run`]) gives it a [`Screen`]: from
then on standard output and standard error are its log, and what is said here, and it alone, is shown as well.
"""

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from ..files import printable


# What begins a line that a step says to the task that has started it (ASCII's record separator).
MARK = "\x1e"


class Screen:
    """
    Lines, and below them one that changes: what is going on, and how far it is.

    Args:
        out, err (`TextIO`): where lines go, and where errors and what changes go.
    """

    is_step = False

    def __init__(self, out: TextIO, err: TextIO):
        self.out, self.err = out, err
        self.moves = err.isatty()
        self.log: str | None = None  # where everything else is, once that is known
        self.move_log: Callable[[Path], None] | None = None  # has it written into a folder from then on
        self.foreign: set[str] = set()  # warnings of libraries that are in the log
        self._lock, self._drawn = threading.RLock(), 0

    def line(self, text: str, kind: str = "line") -> None:
        """
        Args:
            text (`str`): what to show, a line or several.
            kind (`str`, *optional*): `"line"`, `"warning"`, `"error"` or, of what a step has done, `"summary"`.
        """
        with self._lock:
            self.progress("")
            self._write(self.err if kind == "error" else self.out, f"{text}\n")

    def progress(self, text: str) -> None:
        """Put this into the line that changes; nothing removes it. Where it cannot change, nothing is shown."""
        if not self.moves:
            return
        with self._lock:
            text = text[: shutil.get_terminal_size().columns - 1]
            if text or self._drawn:
                self._write(self.err, f"\r{text:<{self._drawn}}" + ("" if text else "\r"))
            self._drawn = len(text)

    def note(self, who: str) -> None:
        """Remember that the log holds a warning of a library, which says how many there are at the end."""
        self.foreign.add(who)

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        try:
            stream.write(printable(text))
            stream.flush()
        except OSError:  # nobody reads it any more, as after `| head`
            pass


class StepScreen(Screen):
    """The screen of a step of another task, which reads marked lines, see [`~scripts.steps.Steps`]."""

    is_step = True

    def line(self, text: str, kind: str = "line") -> None:
        # (What is merely said is in the step's output already.)
        if kind != "line":
            self._tell(kind, text)

    def progress(self, text: str) -> None:
        self._tell("progress", text)

    def note(self, who: str) -> None:
        self._tell("foreign", who)

    def _tell(self, kind: str, text: str) -> None:
        with self._lock:
            self._write(self.out, f"{MARK}{json.dumps([kind, text])}\n")


_screen: Screen | None = None


def put_up(screen: Screen | None) -> Screen | None:
    """
    Args:
        screen (`Screen` or `None`): to say things on from now on; none for plain printing.

    Returns:
        `Screen` or `None`: the one before.
    """
    global _screen
    before, _screen = _screen, screen
    return before


def current() -> Screen | None:
    """The screen, or `None` where a task prints plainly."""
    return _screen


def log_into(folder: str | os.PathLike) -> None:
    """Have the log of this task, if it has one of its own, in this folder from now on."""
    if _screen is not None and _screen.move_log is not None:
        _screen.move_log(Path(folder))


class _Handler(logging.Handler):
    """
    What the library logs: all of it printed, warnings and what is marked as `shown` said. Other processes print it
    where there is a log.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text, prefix = self.format(record), f"{record.levelname}: "
            warning = record.levelno >= logging.WARNING
            text = prefix + text if warning and not text.startswith(prefix) else text
            if is_main_process():
                shown = "line" if getattr(record, "shown", False) else None
                _say(text, kind="warning" if warning else shown)
            elif _screen is not None:
                print(f"[process {os.environ['RANK']}] {text}", flush=True)
        except Exception:  # as all handlers of logging: what cannot be said stops nothing
            self.handleError(record)


def is_main_process() -> bool:
    """Whether this process is the first of its run, as launchers say it before torch knows."""
    return os.environ.get("RANK", "0") == "0"


def show_log() -> None:
    """Show what the library logs, of the main process alone. Called again, it changes nothing."""
    logger = logging.getLogger("sa2va_trl")
    if any(isinstance(handler, _Handler) for handler in logger.handlers):
        return
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Handler())


def say(message: str, file: TextIO | None = None) -> None:
    """Print on the main process alone, on the screen and into its log."""
    if is_main_process():
        kind = "warning" if message.startswith("WARNING") else "line"
        _say(message, "error" if file is sys.stderr else kind, file)


def _say(text: str, kind: str | None, file: TextIO | None = None) -> None:
    text = printable(text)
    print(text, file=file, flush=True)
    if _screen is not None and kind is not None:
        _screen.line(text, kind)


def duration(seconds: float) -> str:
    """A time in words: `"2 min 10 s"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def finish(summary: str, wrote: str, then: str | None = None, is_shown: bool = False) -> None:
    """
    The end of a task.

    Args:
        summary (`str`): what it did, in a line; where the task is a step, all that is shown of it.
        wrote (`str`): what it wrote, and where.
        then (`str`, *optional*): what can be done next: a few words, a colon, and a command.
        is_shown (`bool`, *optional*, defaults to `False`): what it did has been said, at more length.
    """
    if not is_main_process():
        return
    if _screen is not None and _screen.is_step:
        _screen.line(summary, "summary")
    for text in (None if is_shown else summary, wrote, then):
        if text:
            _say(text, "line")
