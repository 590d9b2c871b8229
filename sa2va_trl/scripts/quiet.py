"""
How the command line runs a task: what libraries print goes into a log beside the results, a mistake ends in one line,
and the screen is left to what a person can act on (see [`~scripts.screen`]).
"""

import atexit
import io
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from ..files import printable
from .noise import foreign_warnings
from .screen import Screen, StepScreen, is_main_process, put_up


VERBOSE = "--verbose"
LOG = "log.txt"
# Set for the steps of a task, which reads what they say.
STEP = "SA2VA_TRL_STEP"
# Bars that are younger would only flicker.
SECONDS_BEFORE_A_BAR = 0.5
# How long a process that is not the first waits before it says why it failed: if the first one has failed too, it has
# said so by then, and the launcher has ended this one.
SECONDS_OF_OTHERS = 3


def run(task: str, main: Callable[[], None], verbose: bool = False) -> None:
    """
    Run a task as a person wants to see it.

    Args:
        task (`str`): its name.
        main (`Callable`): its `main`, which reads `sys.argv`.
        verbose (`bool`, *optional*): let it print everything to the screen, as a program does by itself.

    Raises:
        `SystemExit`: it has failed, which has been said; of the exception itself where it was raised by one.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would tell Hugging Face of every trainer
    if verbose:
        main()
        return
    with ExitStack() as stack:
        screen, log = stack.enter_context(_step() if os.environ.get(STEP) else _quiet(task))
        stack.callback(put_up, put_up(screen))
        stack.enter_context(foreign_warnings(screen))
        stack.enter_context(_bars_on(screen))
        screen.progress("starting")  # importing the libraries takes its time
        try:
            main()
        except SystemExit:
            raise
        except KeyboardInterrupt as error:
            _say_failure(screen, "interrupted")
            raise SystemExit(130) from error
        except Exception as error:
            traceback.print_exc()  # into the log
            if screen.log is None and not is_mistake(error):
                log.show()  # there is no other place to read it
            _say_failure(screen, explain(error, screen.log))
            raise SystemExit(1) from error
        if screen.foreign and screen.log:
            count = len(screen.foreign)
            screen.line(f"{count} {'warning' if count == 1 else 'warnings'} of libraries: see {screen.log}")


def _say_failure(screen: Screen, text: str) -> None:
    text = f"sa2va-trl: {text}"
    if not is_main_process():
        print(printable(text), flush=True)
        time.sleep(SECONDS_OF_OTHERS)
        text = f"[process {os.environ['RANK']}] {text}"
    screen.line(text, "error")


def is_mistake(error: BaseException) -> bool:
    """
    Whether an exception was made for the user: this package has raised it itself, or it came up while options were
    read, or it is of a kind that says by itself what is wrong (a file, a package, memory).
    """
    if isinstance(error, (OSError, ImportError, MemoryError)) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, RuntimeError):
        return is_mistake(error.__cause__)  # raised again with the name of a file
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, (ValueError, TypeError)) and any(f.name == "parse_args_and_config" for f in frames):
        return True
    *_, last = frames
    return last.filename.startswith(str(Path(__file__).parents[1])) and (last.line or "").startswith("raise ")


def explain(error: BaseException, log: str | None) -> str:
    """What the screen says of an exception: what was made for a user as it is, anything else with where to look."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if is_mistake(error):
        return f"error: {text or type(error).__name__}"
    *_, last = text.splitlines() or [""]
    place = f"; the traceback is in {log}, or run it again with --verbose" if log else ""
    return f"error: {type(error).__name__}: {last}{place}"


class _Log:
    """The log of a task: a file that nobody sees until its folder is known."""

    def __init__(self, screen: Screen, title: str):
        self.screen = screen
        self.file = tempfile.TemporaryFile(buffering=0)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self.file.write(printable(f"== {stamp}  {title}\n").encode())
        _redirect(self.file.fileno())

    def move_to(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOG, "ab", buffering=0)
        _flush()
        self.file.seek(0)
        file.write(self.file.read())
        self.file.close()
        self.file, self.screen.log, self.screen.move_log = file, str(folder / LOG), None
        _redirect(file.fileno())

    def show(self) -> None:
        _flush()
        self.file.seek(0)
        self.screen.line(self.file.read().decode(errors="replace").rstrip(), "error")


@contextmanager
def _quiet(task: str) -> Iterator[tuple[Screen, _Log]]:
    """Standard output and error of the whole process, libraries in C included, go to a log; the screen remains."""
    _flush()
    streams, kept = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
    shown = [_copy(stream, own, number) for stream, own, number in zip(streams, kept, (1, 2), strict=True)]
    if is_main_process():
        screen = Screen(*shown)
    else:
        nowhere = open(os.devnull, "w")
        screen = Screen(nowhere, shown[1])
        screen.moves = False
    log = _Log(screen, shlex.join(["sa2va-trl", task, *sys.argv[1:]]))
    sys.stdout, sys.stderr = (_onto(stream, number) for stream, number in zip(streams, (1, 2), strict=True))
    screen.move_log = log.move_to
    try:
        yield screen, log
    finally:
        screen.progress("")
        _flush()
        sys.stdout, sys.stderr = streams
        for number, own in zip((1, 2), kept, strict=True):
            os.dup2(own, number)
            os.close(own)
        # What libraries have to say when the interpreter ends comes after this.
        atexit.register(_redirect, os.dup(log.file.fileno()))
        log.file.close()


@contextmanager
def _step() -> Iterator[tuple[Screen, None]]:
    """A step's output is read, and kept, by the task that has started it."""
    screen = StepScreen(sys.stdout, sys.stderr)
    if not is_main_process():
        screen = Screen(open(os.devnull, "w"), sys.stderr)
    screen.log = os.environ[STEP]
    yield screen, None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _redirect(number: int) -> None:
    for own in (1, 2):
        os.dup2(number, own)


def _number(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError, io.UnsupportedOperation):
        return None


def _copy(stream: TextIO, own: int, number: int) -> TextIO:
    """A stream that still reaches what this one reaches now; itself, if it never went to the process's own."""
    if _number(stream) != number:
        return stream
    return open(own, "w", encoding=stream.encoding, errors="replace", closefd=False)


def _onto(stream: TextIO, number: int) -> TextIO:
    """A stream of the process's own output, with each line written at once so that they stay in their order."""
    if _number(stream) == number:
        stream.reconfigure(line_buffering=True)
        return stream
    return open(number, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)


@contextmanager
def _bars_on(screen: Screen) -> Iterator[None]:
    """All bars of tqdm, whoever draws them, share the line of the screen that changes; the log gets how they ended."""
    from tqdm.std import tqdm

    display, clear = tqdm.display, tqdm.clear

    def displayed(self, msg=None, pos=None):
        if self.disable:  # it is being closed
            if msg is None:
                self.fp.write(str(self))
            screen.progress("")
        elif self.format_dict["elapsed"] >= SECONDS_BEFORE_A_BAR:
            screen.progress(str(self))
        return True

    tqdm.display, tqdm.clear = displayed, lambda self, nolock=False: None
    try:
        yield
    finally:
        tqdm.display, tqdm.clear = display, clear
