"""Files that are there whole or not at all."""

import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write a file beside, then rename it: a reader never meets half of it, and what was there stays if anything fails.

    Args:
        path (`str` or `os.PathLike`): of the file; its folder is made if it is not there.

    Yields:
        The path to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # another process may write the same file
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """
    Write beside, then rename: a reader never meets half a file.

    Args:
        path (`Path`): of the file; its folder is made if it is not there.
        content: whatever `json` can hold.
    """
    text = json.dumps(content, indent=2) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text)


def name_bytes(name: str) -> bytes:
    """
    A name as the file system has it. Bytes that are no UTF-8 (`b"M\\xfcller"`) are lone surrogates in Python's names
    of files, and are those bytes again here; other lone surrogates, as JSON may have them, are encoded as they are.
    """
    try:
        return name.encode()
    except UnicodeEncodeError:
        kinds = ("surrogateescape" if "\udc80" <= letter <= "\udcff" else "surrogatepass" for letter in name)
        return b"".join(letter.encode(errors=kind) for letter, kind in zip(name, kinds, strict=True))


def printable(text: str) -> str:
    """
    Text that can be written as UTF-8: what [`name_bytes`] has that is none is written as `\\xfc`.

    Args:
        text (`str`): with names of files, maybe.

    Returns:
        `str`: itself, mostly.

    Example:

    ```python
    >>> from sa2va_trl.files import printable

    >>> print(printable("M\\udcfcller"), printable("Müller"))
    M\\xfcller Müller

    ```
    """
    return name_bytes(text).decode(errors="backslashreplace")


def file_name(sample_id: str) -> str:
    """
    A file name (without suffix) for a sample: its identifier, where that is a plain one; otherwise what is left of it
    without the characters that a path or a shell could take amiss, and a checksum, so that no two samples share one.
    """
    sample_id = str(sample_id)
    plain = re.sub(r"[^\w.\-]+", "_", sample_id).strip("._-")
    if plain and plain == sample_id and len(plain.encode()) <= 200:
        return plain
    short = plain.encode()[:180].decode(errors="ignore") or "sample"
    return f"{short}-{zlib.crc32(sample_id.encode(errors='surrogatepass')):08x}"


class written_beside:
    """
    Context manager: files are written into a new folder beside `folder` and moved into it only if nothing failed.

    Args:
        folder (`str` or `Path`): made if it is not there; files of the same names are replaced.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __enter__(self) -> Path:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.folder.parent))
        return self.temporary

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self.folder.mkdir(exist_ok=True)
                for file in self.temporary.rglob("*"):
                    if file.is_file():
                        place = self.folder / file.relative_to(self.temporary)
                        place.parent.mkdir(parents=True, exist_ok=True)
                        file.replace(place)
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)
