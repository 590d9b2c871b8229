"""A folder of images with a metadata file in it, as `imagefolder` of `datasets` reads it."""

import csv
import io
import json
import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, Features, Image, List

from ...errors import BadRow, DatasetError
from ..columns import DEFAULT_PHRASE, PAIR_COLUMNS
from ..prompts import normalize_phrase
from .entries import FACTS
from .folders import (
    find_pair,
    image_files,
    listed_below,
    metadata_files,
    named_path,
    sample_ids,
    warn_unnamed,
)


# What other tools call a phrase.
_CAPTIONS = ("text", "texts", "caption", "captions", "prompt", "label", "labels", "class", "category", "description")
# Columns of pictures, and how a metadata file names them: as they stand, their paths would count from anywhere.
_PICTURES = {
    "image": "file_name",
    "images": "file_names",
    "mask": "mask_file_name",
    "masks": "masks_file_names",
    **{name: f"{name}_file_name" for name in PAIR_COLUMNS},
}


def _load_metadata(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        try:
            return pyarrow.parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise DatasetError(f"{file} cannot be read: {error}") from error
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not UTF-8 text ({error})") from error
    if file.suffix == ".csv":
        try:
            return [{key: value or None for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
        except csv.Error as error:
            raise DatasetError(f"{file} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # (`splitlines` splits inside of strings, too)
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DatasetError(f"{file}: invalid JSON at line {number}: {error.msg}") from error
            if not isinstance(rows[-1], dict):
                raise DatasetError(f"{file}: line {number} is not an object but {line:.40}")
    return rows


def is_image_metadata(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return bool(metadata_files(folder))


def read_image_metadata(folder: str | os.PathLike, phrase: str | None = DEFAULT_PHRASE) -> Dataset:
    """
    Read a folder of images with a metadata file in it: `images/metadata.jsonl` (or `image/`, `.csv`, `.parquet`).

    As in the `imagefolder` of `datasets`, a row's `file_name` is its image, `NAME_file_name` the picture of the column
    NAME (`mask_file_name`), `NAME_file_names` a list of them (`masks_file_names`), and every other key a column of its
    own. Known columns ([`~data.readers.entries.FACTS`]) have their types, also where CSV has text alone. Paths count
    from the metadata file, and here may lead out of its folder as long as they stay in `folder`
    (`../masks/a.png`). A row that names no mask has that of the same name in `mask/` (`masks/`).

    Args:
        folder (`str` or `os.PathLike`):
            Holds the folder of images, and one of masks where the metadata names none.
        phrase (`str`, *optional*, defaults to `"blood vessel"`):
            Names every mask where the metadata has neither `phrase`, `phrases` nor `messages`.

    Returns:
        `datasets.Dataset` with the metadata's columns (`mask` and `phrase` as `masks` and `phrases`) and `sample_id`.
        Files are not opened, `check_dataset` does. Images that the metadata does not name, and files of a kind that is
        not read, are named in the log.

    Raises:
        `DatasetError`: If there are several metadata files, one cannot be read, or with every row that names no image,
            no mask, a file outside of `folder`, a picture by another key (`mask` for `mask_file_name`), or no number
            in a column of numbers.
    """
    folder = Path(folder)
    found = metadata_files(folder)
    if len(found) != 1:
        raise DatasetError(
            f"{folder}: expected one metadata file, found {listed_below(found, folder) or 'none'}; keep one"
        )
    file, pair = found[0], find_pair(folder)
    files = {root: image_files(root) for root in dict.fromkeys((file.parent, *(pair or ())))}
    entries, rows, bad, pictures = _load_metadata(file), [], [], {"image": Image()}
    for number, entry in enumerate(entries):
        row, problems = _metadata_row(folder, file, entry, pictures)
        if not (problems or row.get("image") or row.get("images") or row.get("messages")):
            problems.append("names no image: expected `file_name`")
        if row.get("image") and not (problems or row.get("masks") or row.get("messages")):
            stem = PurePosixPath(_image_name(entry)).with_suffix("").as_posix()
            own = files[pair[1]].images.get(stem, []) if pair else []
            if len(own) == 1:
                row["masks"], pictures["masks"] = [str(own[0].absolute())], List(Image())
            else:
                where = f"{pair[1].name}/ holds {len(own)} of its name" if pair else "there is no mask/ or masks/"
                problems.append(f"names no mask (`mask_file_name` or `masks_file_names`), and {where}")
        if problems:
            name = _image_name(entry)
            bad.append(BadRow(number, row.get("sample_id"), name, "; ".join(problems)))
        rows.append(row)
    if bad:
        raise DatasetError(f"{file}: {len(bad)} of {len(entries)} rows cannot be used (rows count from 0):", bad)
    if not rows:
        raise DatasetError(f"{file} holds no rows")

    if not any(row.get("phrases") or row.get("messages") for row in rows):
        captions = sorted({name for row in rows for name in _CAPTIONS if row.get(name)})
        if phrase is None and captions:
            raise DatasetError(
                f"{file} has no `phrase` (or `phrases`), but {', '.join(f'`{name}`' for name in captions)}: rename "
                'what says what a mask shows to `phrase`, or give one for all (--phrase "blood vessel")'
            )
        phrase = normalize_phrase(DEFAULT_PHRASE if phrase is None else phrase)
        for row in rows:
            row["phrases"] = [phrase] * len(row["masks"])
    if not any(row.get("sample_id") for row in rows):
        names = [_image_name(entry) or f"row{number}" for number, entry in enumerate(entries)]
        for row, name in zip(rows, sample_ids(names), strict=True):
            row["sample_id"] = name
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
    pictures = {name: feature for name, feature in pictures.items() if name in columns}

    used = {os.path.realpath(path) for name in pictures for value in columns[name] for path in _flat(value)}
    for root, own in files.items():
        warn_unnamed(root, own, used, file)
    try:
        plain = Dataset.from_dict({name: values for name, values in columns.items() if name not in pictures})
    except pyarrow.ArrowException as error:
        raise DatasetError(f"{file}: the values of a column are of several types ({error})") from error
    facts = {name: feature for name, feature in FACTS.items() if name in columns}
    return Dataset.from_dict(columns, features=Features({**plain.features, **facts, **pictures}))


def _image_name(entry: dict[str, Any]) -> str | None:
    names = (entry.get("file_name"), entry.get("image_file_name"))
    return next((name for name in names if isinstance(name, str) and name), None)


def _fact(name: str, value: Any) -> Any:
    """
    The value of a known column, of its type.

    Raises:
        `DatasetError`: with the reason alone: it is no number, or no text.
    """
    kind = FACTS[name].dtype
    if kind == "string":
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        raise DatasetError(f"`{name}` must be a text, not {value!r:.40}")
    whole = kind.startswith("int")
    try:
        number = float(value.strip() if isinstance(value, str) else value)
        if isinstance(value, bool) or not math.isfinite(number) or whole and number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"`{name}` must be a {'whole ' * whole}number, not {value!r:.40}") from error
    return int(number) if whole else number


def _flat(value: str | list[str] | None) -> list[str]:
    return [path for path in (value if isinstance(value, list) else [value]) if path]


def _metadata_row(
    folder: Path, file: Path, entry: dict[str, Any], pictures: dict[str, Image | List]
) -> tuple[dict[str, Any], list[str]]:
    """One row of a metadata file, paths resolved, and all faults. Columns of pictures are noted in `pictures`."""
    row, problems = {}, []

    def named(value: Any) -> str:
        if not isinstance(value, str):
            raise DatasetError(f"path {value!r:.40} is not a string")
        return str(named_path(folder, str(PurePosixPath(file.parent.name, value))))

    if None in entry:  # what `csv` calls the fields beyond the header
        entry = dict(entry)
        problems.append(f"has more fields than the header ({entry.pop(None)!r:.40}): quote a value that holds a comma")
    for key, value in entry.items():
        if key in _PICTURES:
            if value is not None:
                problems.append(f"`{key}` is not read as a path: write `{_PICTURES[key]}`")
            continue
        if key in FACTS and value is not None:
            try:
                row[key] = _fact(key, value)
            except DatasetError as error:
                problems.append(str(error))
            continue
        several = key.endswith("file_names")
        if key not in ("file_name", "file_names") and not key.endswith(("_file_name", "_file_names")):
            row[key] = value
        elif value:
            column = key.removesuffix("file_names" if several else "file_name").removesuffix("_")
            column = column or ("images" if several else "image")
            try:
                if several and not isinstance(value, list):
                    raise DatasetError(f"`{key}` must be a list of paths, not {value!r:.40}")
                row[column] = [named(one) for one in value] if several else named(value)
            except DatasetError as error:
                problems.append(str(error))
            if column != "mask":
                pictures[column] = List(Image()) if several else Image()
    for single, several in (("mask", "masks"), ("phrase", "phrases")):
        value = row.pop(single, None)
        if value is not None and row.get(several):
            problems.append(f"mixes `{single}` and `{several}`: keep one")
        elif value is not None:
            row[several] = [value]
    if row.get("masks"):
        pictures["masks"] = List(Image())
    phrases = row.get("phrases") or []
    if not isinstance(phrases, list) or not all(isinstance(value, str) for value in phrases):
        problems.append(f"phrases must be a list of text, not {phrases!r:.40}")
    if row.get("sample_id") is not None:
        row["sample_id"] = str(row["sample_id"])
    return row, problems
