"""The folder that a task writes to."""

import os
from pathlib import Path

from .quiet import LOG


def check_output_dir(folder: str | os.PathLike) -> None:
    """
    Raises:
        `ValueError`: nothing can be written there.
    """
    path = Path(folder).expanduser()
    place = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        what = "is a file" if place == path.absolute() else f"cannot be made: {place} is a file"
        raise ValueError(f"output_dir={str(folder)!r} {what}. Give another folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir={str(folder)!r}: nothing can be written to {place}. Give another folder.")


def check_new(folder: str | os.PathLike) -> None:
    """
    Raises:
        `ValueError`: there is something else in it than the log of an earlier call.
    """
    path = Path(folder)
    if path.is_file() or holds_something(path):
        raise ValueError(f"output_dir={str(folder)!r} is not empty: give a new folder.")


def is_there(path: str | os.PathLike) -> bool:
    """Whether there is anything at a path, but for a folder with the log of a call that has left nothing else."""
    path = Path(path)
    return holds_something(path) if path.is_dir() else path.exists()


def holds_something(folder: Path) -> bool:
    """Whether a folder is there and holds more than a log."""
    return folder.is_dir() and any(entry.name != LOG for entry in folder.iterdir())
