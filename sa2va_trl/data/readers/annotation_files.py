"""What readers of annotation files share: the files of a folder and their splits, JSON, and images that they name."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ...media.suffixes import IMAGE_SUFFIXES
from .entries import Entry, Source
from .folders import SPLITS, listed_below, named_path, walk
from .polygons import is_number


logger = logging.getLogger(__name__)
_HEAD = 65536
_CANDIDATES = 50  # files of which the first bytes are looked at: a folder with more is of another kind
_MAX_SIDE = 2**31


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Put a file's name before the reason why it cannot be used."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{file}: {error}") from error


def load_json(file: Path) -> Any:
    """
    What a JSON file holds.

    Args:
        file (`Path`): UTF-8.

    Returns:
        Its value.

    Raises:
        `DatasetError`: with the reason alone; the caller knows the file.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DatasetError(f"invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"not UTF-8 text ({error})") from error
    except RecursionError as error:
        raise DatasetError("the JSON is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise DatasetError(f"invalid JSON ({error})") from error
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror})") from error


def head_of(file: Path) -> str:
    """The beginning of a text file, by which its format is known; empty where it cannot be read."""
    try:
        with open(file, "rb") as opened:
            return opened.read(_HEAD).decode("utf-8-sig", "ignore").lstrip()
    except OSError:
        return ""


def split_of(name: str) -> str | None:
    """
    The split that a file or folder is named after.

    Example:

    ```python
    >>> from sa2va_trl.data.readers.annotation_files import split_of

    >>> split_of("instances_val2017"), split_of("Train"), split_of("default")
    ('validation', 'train', None)

    ```
    """
    found = {SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def candidate_files(folder: Path, suffix: str, fits: Callable[[str], bool]) -> list[Path]:
    """
    The annotation files of a format in a folder, its `annotations/` and its folders of splits.

    Args:
        folder (`Path`): of the dataset.
        suffix (`str`): of their names, with a dot.
        fits (`Callable`): whether the beginning of a file is that of the format.

    Returns:
        `list[Path]`, sorted within each folder.
    """
    found = []
    for place in (folder, folder / "annotations", *(folder / name for name in SPLITS)):
        if place.is_dir():
            paths = sorted(path for path in place.iterdir() if path.suffix.lower() == suffix and path.is_file())
            if len(paths) <= _CANDIDATES:
                found += [path for path in paths if not path.name.startswith(".") and fits(head_of(path))]
    return found


def one_a_split(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    """
    Annotation files by the split that their folder or name says, `train` where neither does.

    Args:
        files (`list[Path]`): from [`candidate_files`].
        folder (`Path`): of the dataset.

    Returns:
        `dict[str, Path]`.

    Raises:
        `DatasetError`: two are of one split.
    """
    found: dict[str, Path] = {}
    for file in files:
        own = SPLITS.get(file.parent.name) if file.parent != folder else None
        split = own or split_of(file.stem) or "train"
        if split in found:
            names = listed_below([found[split], file], folder)
            raise DatasetError(f"{folder} has two annotation files for the split {split!r}, {names}: keep one")
        found[split] = file
    return found


def image_file(root: Path, folders: Iterable[Path], name: str) -> Path:
    r"""
    The file of an image that annotations name, looked for in several folders.

    Args:
        root (`Path`): of the dataset; `..` may lead no further.
        folders (`list[Path]`): that names may count from.
        name (`str`): with `/` or `\`.

    Returns:
        `Path`.

    Raises:
        `DatasetError`: with the reason alone: it is absolute, leaves the dataset, or is in none or two of the folders.
    """
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise DatasetError(f"path {name!r} is absolute; it must be relative to {root}")
    found: dict[str, Path] = {}
    places = list(folders)
    for place in places:
        if ".." in Path(name).parts:
            path = named_path(root, (place.relative_to(root) / name).as_posix())
        elif os.path.isfile(place / name):  # before links are resolved, which takes ten times as long
            path = named_path(place, name)
        else:
            continue
        if os.path.isfile(path):
            found.setdefault(os.path.realpath(path), path)
    if not found:
        tried = listed([place.relative_to(root).as_posix() + "/" for place in places])
        raise DatasetError(f"file is missing: looked for {name!r} in {tried} of {root}")
    if len(found) > 1:
        names = listed([os.path.relpath(real, root.resolve()) for real in found])
        raise DatasetError(f"there are two files of this name, {names}: keep one")
    return next(iter(found.values()))


def text_of(value: Any, what: str) -> str:
    """
    A name that annotations give.

    Args:
        value: as it came.
        what (`str`): it is, for the message.

    Returns:
        `str`, without white space around it.

    Raises:
        `DatasetError`: with the reason alone: it is no text, empty, or holds what is no character.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise DatasetError(f"{what} must be a text, not {value!r:.40}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a pair: JSON may say so
        raise DatasetError(f"{what} holds what is no character: {value!a:.40}") from error
    return value.strip()


def stated_size(width: Any, height: Any) -> tuple[int, int] | None:
    """
    The size of an image that annotations state.

    Args:
        width, height: as they came; both `None` where they state none.

    Returns:
        `tuple[int, int]` (width, height), or `None`.

    Raises:
        `DatasetError`: with the reason alone: they are no whole numbers above 0.
    """
    if width is None and height is None:
        return None
    for value in (width, height):
        if not is_number(value) or value != value // 1 or not 0 < value < _MAX_SIDE:
            raise DatasetError(f"width and height must be whole numbers above 0, not {width!r:.20} and {height!r:.20}")
    return int(width), int(height)


def doubled(entries: Sequence[Entry]) -> list[BadRow]:
    """Problems of images that are listed twice: each of the two would lack the objects of the other."""
    first: dict[str, Entry] = {}
    problems = []
    for number, entry in enumerate(entries):
        other = first.setdefault(os.path.realpath(entry.image), entry)
        if other is not entry:
            reason = f"is the same file as {other.name!r}, which is listed before it: join them"
            problems.append(BadRow(number, None, entry.name, reason))
    return problems


def with_labels_of_all(sources: Mapping[str, Source]) -> dict[str, Source]:
    """
    Sources of a format that has no list of classes: those of all splits are what an image without objects is without.
    """
    labels = tuple(dict.fromkeys(label for source in sources.values() for label in source.labels))
    return {split: source._replace(labels=labels) for split, source in sources.items()}


def warn_unnamed_images(folder: Path, sources: Mapping[str, Source]) -> None:
    """Name the images of a folder that no entry of its sources is of."""
    named = {os.path.realpath(entry.image) for source in sources.values() for entry in source.entries}
    left = [
        path
        for path in walk(folder)[0]
        if path.suffix.lower() in IMAGE_SUFFIXES and os.path.realpath(path) not in named
    ]
    if left:
        logger.warning("%s: left out, images that no annotation names: %s.", folder, listed_below(left, folder))


def warn_left_out(place: Path, what: str, counts: Mapping[str, int]) -> None:
    """Name what annotations hold that is not read, and how often."""
    if counts:
        logger.warning("%s: left out, %s: %s.", place, what, listed([f"{n} x {name}" for name, n in counts.items()]))
