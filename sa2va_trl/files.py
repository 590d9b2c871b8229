"""Files that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_together(folder: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """
    Write files and folders of a folder anew, all of them or none: they are written elsewhere on its disk, and take the
    places of the old ones only if nothing failed. If something fails even then, the old ones are put back.

    Args:
        folder (`str` or `Path`): made if it is not there. What else it holds is left as it is.
        names (`list[str]`): of its files and folders to replace; what is there under these names is removed.

    Yields:
        An empty folder, in which a file or folder of each name is to be written.
    """
    folder = Path(folder).resolve()
    # Inside it, where it is there already: it may be a disk of its own, and renaming does not cross disks.
    parent = folder if folder.is_dir() else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    new, old = temporary / "new", temporary / "old"
    try:
        for place in (new, old):
            place.mkdir()
        yield new
        folder.mkdir(exist_ok=True)
        try:
            for name in names:
                if os.path.lexists(folder / name):
                    (folder / name).rename(old / name)
                (new / name).rename(folder / name)
        except BaseException:  # of an interrupt, too
            for name in names:
                if not os.path.lexists(new / name) and os.path.lexists(folder / name):
                    (folder / name).rename(new / name)
                if os.path.lexists(old / name):
                    (old / name).rename(folder / name)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
