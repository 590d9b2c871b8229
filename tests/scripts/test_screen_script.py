"""What the library logs, on the screen of a task."""

import io
import logging
from dataclasses import dataclass

from sa2va_trl.scripts.arguments import RecipeParser
from sa2va_trl.scripts.screen import Screen, put_up, say, show_log


logger = logging.getLogger("sa2va_trl.somewhere")


@dataclass
class Nothing:
    number: int = 1


def test_a_task_shows_what_the_library_logs(capsys):
    logger.info("before")
    RecipeParser((Nothing,)).parse_args_and_config([])
    show_log()  # once more changes nothing
    logger.debug("too small")
    logger.info("%d parameters train", 3)
    logger.warning("rows are left out")
    logger.warning("WARNING: said already")
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "3 parameters train",
        "WARNING: rows are left out",
        "WARNING: said already",
    ]
    assert shown.err == ""


def test_it_is_said_once_whoever_else_listens(capsys, caplog):
    RecipeParser((Nothing,)).parse_args_and_config([])
    logger.info("once")
    assert capsys.readouterr().out == "once\n" and not caplog.records


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    RecipeParser((Nothing,)).parse_args_and_config([])
    logger.info("something")
    logger.warning("something else")
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_names_that_are_no_utf_8_are_shown(capsys):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    before = put_up(Screen(out, out))
    try:
        say("WARNING: M\udcfcller.png is left out")
    finally:
        put_up(before)
    assert capsys.readouterr().out == "WARNING: M\\xfcller.png is left out\n"
    assert out.buffer.getvalue() == rb"WARNING: M\xfcller.png is left out" + b"\n"
