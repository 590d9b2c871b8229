"""What the readers share: files below a folder, their names and sample ids."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...errors import DatasetError
from ...files import name_bytes
from ...media.clips import listed
from ...media.suffixes import KINDS, is_byproduct, kind_by_name, stem_of


logger = logging.getLogger(__name__)
#: Names of a split's sub-folder (or of a split on the Hub), and the name it gets here.
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def sample_ids(paths: list[str]) -> list[str]:
    """
    A unique name for every image, fit to name a file: the stem; where stems collide, the relative path without its
    suffix, then with it, its folders joined by `_`; then, where one image is listed several times, a number.

    Args:
        paths (`list[str]`): relative, with `/`.

    Returns:
        `list[str]`: one a path, in their order.
    """
    forms = (
        lambda path: path.stem,
        lambda path: "_".join(path.with_suffix("").parts),
        lambda path: "_".join(path.parts),
    )
    pure = [PurePosixPath(path) for path in paths]
    ids = [forms[0](path) for path in pure]
    for form in forms[1:]:
        counts = Counter(ids)
        ids = [form(path) if counts[name] > 1 else name for path, name in zip(pure, ids, strict=True)]
    taken, counts = set(ids), Counter()
    for position, name in enumerate(ids):
        counts[name] += 1
        if counts[name] > 1:
            number = counts[name]
            while f"{name}-{number}" in taken:
                number += 1
            ids[position] = f"{name}-{number}"
            taken.add(ids[position])
    return ids


def walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """
    All files below a folder, links followed, and the links that are not, since they lead back to a folder above them.
    Hidden files are passed over, and what operating systems leave behind.
    """
    files, loops = [], []

    def visit(place: Path, above: frozenset[Path]) -> None:
        for path in sorted(place.iterdir()):
            if path.name.startswith(".") or is_byproduct(path):
                continue
            if not path.is_dir():
                files.append(path)
            elif (real := path.resolve()) in above:
                loops.append(path)
            else:
                visit(path, above | {real})

    root = folder.resolve()
    visit(folder, frozenset({root, *root.parents}))
    return files, loops


def file_states(folder: Path) -> Iterator[bytes]:
    """A line for each file below a folder, with its name, size and time: what tells whether any has changed."""
    for file in walk(folder)[0]:
        if file.is_file():
            state = file.stat()
            yield name_bytes(f"{file.relative_to(folder).as_posix()} {state.st_size} {state.st_mtime_ns}\n")


def split_folders(folder: Path) -> dict[str, Path]:
    """
    The sub-folders named after a split, by the split's name here.

    Raises:
        `DatasetError`: two of them are for the same split, or are the same folder.
    """
    found: dict[str, Path] = {}
    for name, split in SPLITS.items():
        if (folder / name).is_dir():
            if split in found:
                raise DatasetError(
                    f"{folder} has both {found[split].name}/ and {name}/ for the split {split!r}: keep one"
                )
            found[split] = folder / name
    places = {path.resolve(): path.name for path in found.values()}
    if len(places) < len(found):
        names = ", ".join(f"{path.name}/" for path in found.values())
        raise DatasetError(f"{folder}: of {names} at least two are one and the same folder: its rows would be in both")
    return found


def listed_below(paths: list[Path], folder: Path) -> str:
    """Paths below a folder for a message, see [`~media.clips.listed`]."""
    return listed([path.relative_to(folder).as_posix() for path in paths])


def resolve_inside(root: str | os.PathLike, relative: str | os.PathLike) -> Path:
    """
    Resolve a path that a dataset names, and refuse it where it leaves the dataset's folder.

    Args:
        root (`str` or `os.PathLike`):
            The folder. It may itself be a symbolic link.
        relative (`str` or `os.PathLike`):
            Path below `root`, as written in the annotation file.

    Returns:
        `Path`: The absolute path, symbolic links followed. It need not exist.

    Raises:
        `DatasetError`: If the path is absolute, or leaves `root` through `..` or through a symbolic link.
    """
    root = Path(root).resolve()
    # A backslash is a separator on Windows only: refuse there what is refused here.
    if Path(relative).is_absolute() or str(relative).startswith(("/", "\\")):
        raise DatasetError(f"path {str(relative)!r} is absolute; it must be relative to {root}")
    try:
        path = (root / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character
        raise DatasetError(f"path {str(relative)!r} cannot be resolved ({error})") from error
    if not path.is_relative_to(root):
        by_link = (
            "" if ".." in Path(relative).parts else f": it is a link to {path}; copy the file, or link its folder"
        )
        raise DatasetError(f"path {str(relative)!r} leaves the dataset folder {root}{by_link}")
    return path


def named_path(root: Path, name: str) -> Path:
    """
    `resolve_inside` for a path that an annotation file names. Beyond that, a link may lead into the store that the
    folder itself is a view of: a Hub snapshot is links into blobs/, a DVC checkout may be links into .dvc/cache.

    Returns:
        `Path`: absolute, as it is named: links are not resolved, whose names say what the user calls things. (But for
        a path with `..`, which means another place behind a link than by its words.)

    Raises:
        `DatasetError`: As `resolve_inside`.
    """
    try:
        inside = resolve_inside(root, name)
        return inside if ".." in Path(name).parts else root.absolute() / name
    except DatasetError:
        place = root.resolve()
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise
        for above in (place, *place.parents):
            store = above / "blobs" if (above / "snapshots") in place.parents else above / ".dvc" / "cache"
            if (place / name).resolve().is_relative_to(store):
                return root.absolute() / name
        raise


class ImageFiles(NamedTuple):
    """
    The files below a folder of images, by their path in it without suffix.

    Args:
        images (`dict[str, list[Path]]`): those that are read.
        unread (`dict[str, list[Path]]`): of another kind.
    """

    images: dict[str, list[Path]]
    unread: dict[str, list[Path]]


def image_files(folder: Path, kinds: tuple[str, ...] = ("image",)) -> ImageFiles:
    """
    What lies below a folder, links followed. A link that leads back to a folder above it is named in the log.

    Args:
        folder (`Path`): it.
        kinds (`tuple[str, ...]`, *optional*, defaults to `("image",)`): of [`~media.suffixes.KINDS`], those read.
    """
    found = ImageFiles({}, {})
    files, loops = walk(folder)
    metadata = metadata_places(folder)
    for path in files:
        if path not in metadata:
            kind = kind_by_name(path)
            into = found.images if kind in kinds else found.unread
            # (macOS writes an umlaut as two characters, others as one.)
            name = path.relative_to(folder).with_name(stem_of(path) if kind else path.stem)
            stem = unicodedata.normalize("NFC", name.as_posix())
            into.setdefault(stem, []).append(path)
    if loops:
        logger.warning(
            "%s: links to a folder that they lie in, not followed: %s.", folder, listed_below(loops, folder)
        )
    return found


def warn_unread(folder: Path, found: ImageFiles, used: set[str]) -> None:
    """Name the files of a folder that are not read."""
    if left := [path for stem, paths in found.unread.items() if stem not in used for path in paths]:
        logger.warning("%s: left out, not of a kind that is read: %s.", folder, listed_below(left, folder))


def warn_unnamed(folder: Path, found: ImageFiles, named: set[str], file: Path) -> None:
    """Name the files of a folder that are not read, and the images whose real path `file` does not name."""
    warn_unread(folder, found, set())
    if left := [path for paths in found.images.values() for path in paths if os.path.realpath(path) not in named]:
        logger.warning("%s: left out, not named in %s: %s.", folder, file.name, listed_below(left, folder))


def known_suffixes(kinds: tuple[str, ...] = ("image",)) -> str:
    """The suffixes of images, and of other kinds of [`~media.suffixes.KINDS`], for a message."""
    return ", ".join(suffix for kind in kinds for suffix in sorted(KINDS[kind]))


def metadata_places(folder: Path) -> list[Path]:
    """Where metadata of the images in a folder may stand."""
    return [folder / name for name in _METADATA]


def find_pair(folder: Path) -> tuple[Path, Path] | None:
    """
    The folder of images and that of masks inside a folder, where it has both.

    Raises:
        `DatasetError`: there are two such pairs, or each has folders of its own for the splits.
    """
    pairs = [(folder / image, folder / mask) for image, mask in (("image", "mask"), ("images", "masks"))]
    pairs = [pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()]
    if len(pairs) > 1:
        raise DatasetError(f"{folder} holds both image/ with mask/ and images/ with masks/: keep one pair")
    for image, mask in pairs:
        if splits := [name for name in SPLITS if (image / name).is_dir() and (mask / name).is_dir()]:
            raise DatasetError(
                f"{folder}: {image.name}/ and {mask.name}/ have folders of their own for the split(s) "
                f"{', '.join(splits)}; put the split first: {splits[0]}/{image.name}/ and {splits[0]}/{mask.name}/"
            )
    return pairs[0] if pairs else None


def metadata_files(folder: Path) -> list[Path]:
    """The metadata files inside a folder's `image/` or `images/`."""
    return [file for name in ("image", "images") for file in metadata_places(folder / name) if file.is_file()]
