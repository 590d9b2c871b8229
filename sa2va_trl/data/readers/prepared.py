"""A data set that is prepared already: Parquet or images with metadata, or what `save_to_disk` writes."""

import atexit
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, BinaryIO

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from filelock import FileLock, Timeout

from ...errors import BadRow, DatasetError
from ...files import name_bytes
from ..columns import REGIONS
from ..masks import decode_mask
from ..stored import iter_undecoded
from .entries import FACTS, AnnotatedObject, Entry, Reading, Source
from .folders import SPLITS, file_states


#: What prepare_data says of a data set that it has written.
REPORT = "dataset_report.json"
# Folders in the cache of `datasets`, each of one process, for rows with names.
_PASSING = "sa2va_trl-passing-"
# Files that are in no folder any more, open as long as this process lives: from these others read single rows.
_OPEN: list[BinaryIO] = []


def is_prepared(folder: Path) -> bool:
    """
    Whether `datasets` opens a folder as it is: Parquet files, or images with a metadata file, in it, in `data/`, or in
    every folder that is named after a split; or what `save_to_disk` has written.
    """
    splits = [folder / name for name in SPLITS if (folder / name).is_dir()]
    return (
        _is_saved(folder)
        or _holds_rows(folder)
        or _holds_rows(folder / "data")
        or any(splits)
        and all(map(_holds_rows, splits))
    )


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _holds_rows(place: Path) -> bool:
    return place.is_dir() and (
        next(place.glob("*.parquet"), None) is not None
        or any((place / f"metadata.{suffix}").is_file() for suffix in ("jsonl", "csv"))
    )


def _cache_of(folder: Path) -> Path:
    """
    Where `datasets` keeps what it reads from a folder. By its own choice, folders of one name share one place if their
    cards list their files, and the first that was read is what comes back for all of them.
    """
    found = hashlib.sha256(name_bytes(str(folder.resolve())))
    for line in file_states(folder):
        found.update(line)
    return Path(datasets.config.HF_DATASETS_CACHE) / f"sa2va_trl-{found.hexdigest()[:16]}"


def read_prepared(folder: Path) -> DatasetDict:
    """
    All splits of a folder that [`is_prepared`], with the columns and names that they have.

    Raises:
        `DatasetError`: `datasets` cannot read it; with the reason.
    """
    if _is_saved(folder):
        try:
            loaded = datasets.load_from_disk(str(folder))
        except Exception as error:  # of a file that is damaged, nearly anything
            raise DatasetError(f"{folder}: datasets.load_from_disk failed: {error}") from error
        return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})
    return _load(folder, _cache_of(folder))


def _load(folder: Path, cache: Path) -> DatasetDict:
    try:
        return datasets.load_dataset(str(folder), cache_dir=str(cache))
    except Exception as error:  # datasets wraps anything in DatasetGenerationError, whose text says nothing
        raise DatasetError(f"{folder}: datasets.load_dataset failed: {error.__cause__ or error}") from error


def _read_in_passing(folder: Path) -> dict[str, tuple[Dataset, list[Path]]]:
    """
    All splits of a folder whose rows have names, each with the files that its rows are read from. Nothing of these
    stays in the cache, be the run killed: they are in no folder any more (where there is no `/proc`, they go at the
    end). What a run that was killed before that has left, the next one removes.
    """
    if _is_saved(folder):  # these are the files of the folder itself
        return {split: (rows, _files_of(rows)) for split, rows in read_prepared(folder).items()}
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{_PASSING}*.lock"):
        _remove(left.with_suffix(""), FileLock(left))
    place = Path(mkdtemp(prefix=_PASSING, dir=cache))
    lock = FileLock(f"{place}.lock")
    lock.acquire()
    is_found_open = Path("/proc/self/fd").is_dir()
    keep = _kept_open if is_found_open else Path
    try:
        return {split: (rows, [*map(keep, _files_of(rows))]) for split, rows in _load(folder, place).items()}
    finally:
        if is_found_open:
            _remove(place, lock)
        else:
            atexit.register(_remove, place, lock)


def _files_of(rows: Dataset) -> list[Path]:
    return [Path(own["filename"]) for own in rows.cache_files]


def _kept_open(file: Path) -> Path:
    """A path by which a file is found once it has been removed, by other processes of its owner, too."""
    _OPEN.append(file.open("rb"))
    return Path(f"/proc/{os.getpid()}/fd/{_OPEN[-1].fileno()}")


def _remove(place: Path, lock: FileLock) -> None:
    """Remove a folder of rows with names, and its lock, unless another process has it."""
    try:
        with lock.acquire(timeout=0):
            shutil.rmtree(place, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        pass
    finally:
        lock.release(force=True)


def find_prepared(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    A prepared data set as what another one is to be made of, such as one that is split anew.

    Args:
        folder (`Path`): as of [`is_prepared`].
        reading ([`Reading`]): how; objects are of the class that their phrase names, and apart.

    Returns:
        `dict[str, Source]`: by split. Pictures and masks are read row by row, when they are needed. Names that
        prepare_data has made with a key are noted as such: they are nobody's, and stay.

    Raises:
        `DatasetError`: it cannot be read, or its rows are clips or conversations.
    """
    given = has_pseudonyms(folder)
    if given:
        splits = {split: (rows, _files_of(rows)) for split, rows in read_prepared(folder).items()}
    else:
        splits = _read_in_passing(folder)
    named = {SPLITS.get(split, split): rows for split, rows in splits.items()}
    if len(named) < len(splits):
        raise DatasetError(f"{folder}: two of its splits ({', '.join(splits)}) have one name here: keep one")
    return {split: _source(folder, split, *rows, given) for split, rows in named.items()}


def has_pseudonyms(folder: Path) -> bool:
    """Whether prepare_data says of a folder that it has made it, with pseudonyms in place of names."""
    return read_object(folder / REPORT).get("names") == "pseudonyms"


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _source(folder: Path, split: str, rows: Dataset, files: Sequence[Path], is_pseudonymous: bool) -> Source:
    columns = set(rows.column_names)
    if "image" not in columns or not columns & {"mask", "masks"}:
        raise DatasetError(
            f"{folder}, {split}: rows have {', '.join(rows.column_names)}; what is prepared again has an image and "
            "masks. Train on the folder as it is."
        )
    if REGIONS in columns:
        raise DatasetError(
            f"{folder}, {split}: rows have regions, which are not prepared again. Train on the folder as it is."
        )
    if not isinstance(rows.features["image"], datasets.Image):
        raise DatasetError(f"{folder}, {split}: the column image holds no pictures, but {rows.features['image']}")
    entries: list[Entry] = []
    labels: dict[str, None] = {}
    problems = []
    column = "masks" if "masks" in columns else "mask"
    for file in files:
        for place, row in enumerate(_rows(file, f"{folder}, {split}")):
            number = len(entries) + len(problems)
            masks = row["masks"] or [] if column == "masks" else [row["mask"]]
            phrases = row["phrases"] or [] if "phrases" in row else [row.get("phrase")] * len(masks)
            name, picture = row.get("sample_id") or f"{number:06d}", row["image"]
            if picture is None or None in masks or not len(masks) == len(phrases) > 0:
                reason = f"has {len(masks)} masks and {len(phrases)} phrases: a row has an image, and a phrase a mask"
                problems.append(BadRow(number, name, None, reason))
                continue
            objects = tuple(
                AnnotatedObject(phrase, partial(_mask, file, place, column, own)) for own, phrase in enumerate(phrases)
            )
            labels.update(dict.fromkeys(phrase for phrase in phrases if phrase is not None))
            is_file = picture["bytes"] is None
            image, embedded = (
                (Path(picture["path"]), None) if is_file else (folder / name, partial(_picture, file, place))
            )
            facts = {fact: row[fact] for fact in FACTS if row.get(fact) is not None}
            entries.append(Entry(f"{name}.png", image, objects, None, None, facts, embedded, is_pseudonymous))
    return Source(folder, entries, tuple(labels), problems, joins=False)


def _rows(file: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        _opened(file).data.validate(full=True)  # what lies outside of the file would end the process
        for batch in iter_undecoded(_opened(file)):
            yield from batch
    except Exception as error:  # of bytes that have turned, nearly anything
        raise DatasetError(f"{name}: its rows are damaged: {error}") from error


@lru_cache(maxsize=64)
def _opened(file: Path) -> Dataset:
    return Dataset.from_file(str(file))


def _cell(file: Path, row: int, column: str) -> Any:
    return _opened(file).data.column(column)[row].as_py()


def _picture(file: Path, row: int) -> bytes:
    return _cell(file, row, "image")["bytes"]


def _mask(file: Path, row: int, column: str, number: int, size: tuple[int, int]) -> np.ndarray:
    found = _cell(file, row, column)
    return np.asarray(decode_mask(found[number] if column == "masks" else found, size)) > 0
