"""That two calls do not work at one and the same thing."""

from pathlib import Path
from typing import TextIO


try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None


def the_only_one(path: Path, refusal: str) -> TextIO:
    """
    Hold a lock for as long as the file is open, here or in a process that was started with it (`pass_fds`): a step
    that goes on where its task was killed still holds it. However they end, it is free then.

    Args:
        path (`Path`): of the lock's file, which stays; its folder is made if it is not there.
        refusal (`str`): what to say where another process holds it.

    Returns:
        The open file.

    Raises:
        `ValueError`: the refusal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(refusal) from None
    return file
