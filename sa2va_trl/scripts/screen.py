"""What a task says on the screen, once for all its processes."""

import logging
import os
from typing import TextIO


class _Screen(logging.Handler):
    """Standard output, as it is when something is said."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text, prefix = self.format(record), f"{record.levelname}: "
            print(text if record.levelno < logging.WARNING or text.startswith(prefix) else prefix + text, flush=True)
        except Exception:  # as all handlers of logging: what cannot be said stops nothing
            self.handleError(record)


def is_main_process() -> bool:
    """Whether this process is the first of its run, as launchers say it before torch knows."""
    return os.environ.get("RANK", "0") == "0"


def show_log() -> None:
    """Show what the library logs, of the main process alone. Called again, it changes nothing."""
    logger = logging.getLogger("sa2va_trl")
    if any(isinstance(handler, _Screen) for handler in logger.handlers):
        return
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Screen() if is_main_process() else logging.NullHandler())


def say(message: str, file: TextIO | None = None) -> None:
    """Print on the main process alone."""
    if is_main_process():
        print(message, file=file, flush=True)
