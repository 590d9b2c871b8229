"""Any dataset by name: a folder in a format that a reader knows, a prepared one, a Hub id or `synthetic`."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Image

from ..errors import DatasetError
from .columns import FEATURES, PHRASE_COLUMNS
from .prompts import normalize_phrase
from .readers.clips import find_clips, is_clips
from .readers.coco import find_coco, is_coco
from .readers.cvat import find_cvat, is_cvat
from .readers.entries import Reading, Source, rows_of, source_of
from .readers.folders import SPLITS, listed_below, split_folders, walk
from .readers.image_metadata import is_image_metadata, read_image_metadata
from .readers.label_studio import find_label_studio, is_label_studio
from .readers.labelme import find_labelme, is_labelme
from .readers.mask_folder import find_mask_folder, is_mask_folder, read_mask_folder
from .readers.nnunet import find_nnunet, is_nnunet
from .readers.sa2va_json import is_sa2va_json, read_sa2va_json
from .readers.yolo import find_yolo, is_yolo
from .selections import SELECTION, read_selection, select_rows
from .sources import Format, check_annotated, check_options, refuse_lost, told_apart
from .stored import iter_undecoded


logger = logging.getLogger(__name__)
# A format is a file of `readers` and a line here or below. The first whose layout a folder has reads it. These bring
# what they say into entries first: whether a folder has the layout, and its sources by split.
SOURCES: tuple[tuple[Callable[[Path], bool], Callable[[Path, Reading], dict[str, Source]]], ...] = (
    (is_coco, find_coco),
    (is_yolo, find_yolo),
    (is_cvat, find_cvat),
    (is_labelme, find_labelme),
    (is_label_studio, find_label_studio),
    (is_clips, find_clips),
    (is_nnunet, find_nnunet),
)
READERS = (
    (is_sa2va_json, read_sa2va_json),
    (is_image_metadata, read_image_metadata),
    (is_mask_folder, read_mask_folder),
)
# Options of `Reading` that a format uses beside those that all do (see `find_sources`).
OPTIONS = {
    find_clips: ("mask_suffix", "mask_threshold", "secondary_captures"),
    find_mask_folder: ("mask_suffix", "mask_threshold"),
}
# Readers of rows that can also say what there is before rows are made.
FINDERS: dict[Callable[..., Dataset], Callable[[Path, Reading], dict[str, Source]]] = {
    read_mask_folder: find_mask_folder
}


def _reader_of(folder: Path) -> Callable[..., Dataset] | None:
    """The reader whose layout a folder has."""
    return next((reader for has_layout, reader in READERS if has_layout(folder)), None)


def _finder_of(folder: Path) -> Callable[[Path, Reading], dict[str, Source]] | None:
    """What finds the sources of the layout that a folder has."""
    return next((find for has_layout, find in SOURCES if has_layout(folder)), None)


def _only(sources: dict[str, Source], place: Path) -> Source:
    """The source of a folder that is one split."""
    if len(sources) > 1:
        raise DatasetError(f"{place} has splits of its own ({', '.join(sources)}), and is one: keep one of both")
    return next(iter(sources.values()))


def _is_prepared(folder: Path) -> bool:
    """Whether `datasets.load_dataset` opens a folder: Parquet files, or images with a metadata file."""
    places = [folder, folder / "data", *(folder / name for name in SPLITS)]
    return any(
        next(place.glob("*.parquet"), None) is not None
        or any((place / f"metadata.{s}").is_file() for s in ("jsonl", "csv"))
        for place in places
        if place.is_dir()
    )


def _cache_of(folder: Path) -> Path:
    """
    Where `datasets` keeps what it reads from a folder. By its own choice, folders of one name share one place if their
    cards list their files, and the first that was read is what comes back for all of them.
    """
    found = hashlib.sha256(str(folder.resolve()).encode())
    for file in filter(Path.is_file, walk(folder)[0]):
        state = file.stat()
        found.update(f"{file.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / f"sa2va_trl-{found.hexdigest()[:16]}"


def _warn_unused(folder: Path, used: set[str]) -> None:
    """Name the sub-folders in a reader's layout that are not read."""
    unused = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in used and _reader_of(path)
    ]
    if unused:
        logger.warning(
            "%s: left out, each a dataset that can be named by itself: %s.", folder, listed_below(unused, folder)
        )


def _read_folder(folder: Path, phrase: str | None) -> DatasetDict:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():  # written by save_to_disk
        loaded = datasets.load_from_disk(str(folder))
        return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})
    if (folder / SELECTION).is_file():
        name, of, splits = read_selection(folder)
        return select_rows(load_dataset_dict(name, phrase=phrase), of, splits, name)
    # An image folder with metadata often holds images/ and masks/ as well: what says more about itself comes first.
    if not is_sa2va_json(folder) and _is_prepared(folder):
        try:
            return datasets.load_dataset(str(folder), cache_dir=str(_cache_of(folder)))
        except Exception as error:  # datasets wraps anything in DatasetGenerationError, whose text says nothing
            raise DatasetError(f"{folder}: datasets.load_dataset failed: {error.__cause__ or error}") from error
    if find := _finder_of(folder):
        _warn_unused(folder, set())
        reading = Reading(phrase=phrase)
        sources = find(folder, reading)
        refuse_lost(folder, sources, formats())
        splits = {split: rows_of(source, reading) for split, source in sources.items()}
        return _with_unique_ids(DatasetDict(splits))
    if reader := _reader_of(folder):
        _warn_unused(folder, set())
        return DatasetDict({"train": reader(folder, phrase=phrase)})

    places, reading = split_folders(folder), Reading(phrase=phrase)
    finders = {split: _finder_of(path) for split, path in places.items()}
    readers = {split: _reader_of(path) for split, path in places.items() if finders[split] is None}
    if any(finders.values()) or any(readers.values()):
        unknown = [places[split].name for split, reader in readers.items() if reader is None]
        if unknown:
            raise DatasetError(f"{folder}: {', '.join(unknown)} holds no known format, the other splits do")
        _warn_unused(folder, {path.name for path in places.values()})
        found = {split: _only(find(places[split], reading), places[split]) for split, find in finders.items() if find}
        found, splits, bad = told_apart(found, folder), {}, []
        for split, path in places.items():
            try:
                splits[split] = (
                    rows_of(found[split], reading) if split in found else readers[split](path, phrase=phrase)
                )
            except DatasetError as error:  # the bad rows of all splits together
                bad.append(error)
        if len(bad) == 1:
            raise bad[0]
        if bad:
            together = DatasetError("\n".join(map(str, bad)))
            together.problems = [problem for error in bad for problem in error.problems]
            raise together from bad[0]
        return _with_unique_ids(DatasetDict(splits))

    raise DatasetError(
        f"{folder} holds no dataset in a known format. Looked for, in it and in its train/, val/ (or valid/, "
        "validation/) and test/: annotations.json with images/ (Sa2VA polygons); image/ with mask/, or images/ with "
        "masks/, or either image folder with a metadata.jsonl in it; imagesTr/ with labelsTr/ and dataset.json "
        "(nnU-Net); an export of COCO, YOLO (data.yaml), CVAT, LabelMe or Label Studio; Parquet files or "
        "metadata.jsonl (what datasets.load_dataset opens); dataset_dict.json or state.json "
        "(what save_to_disk writes). "
        f"Found: {', '.join(sorted(path.name for path in folder.iterdir())[:20]) or 'nothing'}."
    )


def find_sources(folder: Path, reading: Reading, form: str = "auto") -> dict[str, Source]:
    """
    What a folder holds that is to be made into a data set, before any row is made.

    Every format uses `phrase`, `classes`, `templates` and `instances` of a [`~data.readers.entries.Reading`] where it
    has annotations at all; `OPTIONS` has what else.

    Args:
        folder (`Path`): in any format that a reader knows, with or without a sub-folder for each split.
        reading ([`~data.readers.entries.Reading`]): how.
        form (`str`, *optional*, defaults to `"auto"`): name of the format, see [`formats`].

    Returns:
        `dict[str, Source]`: by split; `train` alone where there are none.

    Raises:
        `FileNotFoundError`: there is no such folder.
        `DatasetError`: no known format, several, bad rows, or it is prepared already.
        `ValueError`: there is no format of this name, or options can take no effect on it.
    """
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file; give the folder that holds the data")
    known = formats()
    if form != "auto" and form not in known:
        raise ValueError(f"format must be auto or one of {', '.join(known)}, got {form!r}.")
    wanted = known if form == "auto" else {form: known[form]}
    places = {"": folder} | split_folders(folder)
    chosen: dict[str, str] = {}
    for split, place in places.items():
        fitting = [name for name, own in wanted.items() if own.fits(place)]
        # (Of readers the first is meant: metadata beside images say more than a folder of masks does.)
        readers = [name for name in fitting if name in {read.__name__.removeprefix("read_") for _, read in READERS}]
        fitting = [name for name in fitting if name not in readers[1:]]
        if len(fitting) > 1 and form == "auto":
            raise DatasetError(f"{place} may be {' or '.join(fitting)}: say which with --format")
        if fitting:
            chosen[split] = fitting[0]
            if not split:
                break
    if chosen:
        if unknown := [path.name for split, path in places.items() if split and not {split, ""} & chosen.keys()]:
            raise DatasetError(f"{folder}: {', '.join(unknown)} holds no known format, the other splits do")
        check_options(reading, set(chosen.values()), known)
        if "" in chosen:
            _warn_unused(folder, set())
            found = wanted[chosen[""]].find(folder, reading)
            if form == "auto":
                refuse_lost(folder, found, known)
        else:
            each = {
                split: _only(wanted[name].find(places[split], reading), places[split])
                for split, name in chosen.items()
            }
            found = told_apart(each, folder)
        check_annotated(reading, found, folder)
        return found
    if _is_prepared(folder) or (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        raise DatasetError(f"{folder} is a prepared data set already: give it to the other tasks as it is")
    raise DatasetError(
        f"{folder} holds no data in {'a known format' if form == 'auto' else f'the format {form}'}. Known are "
        f"{', '.join(known)}. Found: {', '.join(sorted(path.name for path in folder.iterdir())[:20]) or 'nothing'}."
    )


def formats() -> dict[str, Format]:
    """All formats, by their names."""
    named = {find.__name__.removeprefix("find_"): Format(fits, find, OPTIONS.get(find, ())) for fits, find in SOURCES}
    for fits, read in READERS:
        find = FINDERS.get(read) or partial(_rows_as_source, read)
        named[read.__name__.removeprefix("read_")] = Format(fits, find, OPTIONS.get(find, ()))
    return named


def _rows_as_source(read: Callable[..., Dataset], folder: Path, reading: Reading) -> dict[str, Source]:
    return {"train": source_of(read(folder, phrase=reading.phrase), folder)}


def _with_unique_ids(splits: DatasetDict) -> DatasetDict:
    """Put the split's name before every sample_id where two splits use the same one for different files."""
    counts = Counter(sample_id for split in splits.values() for sample_id in split["sample_id"])
    if max(counts.values()) == 1:
        return splits
    return DatasetDict(
        {
            name: _with_column(split, "sample_id", [f"{name}_{sample_id}" for sample_id in split["sample_id"]])
            for name, split in splits.items()
        }
    )


def _with_column(dataset: Dataset, name: str, values: list) -> Dataset:
    feature = FEATURES[name] if name in FEATURES else datasets.Value("string")
    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, values, feature=feature)


def _to_columns(dataset: Dataset, split: str, phrase: str | None) -> Dataset:
    """A phrase and a sample_id where a prepared dataset has none. Masks stay as they are until they are judged."""
    features = dataset.features
    if phrase is not None and not features.keys() & {*PHRASE_COLUMNS, "messages"}:
        phrase = normalize_phrase(phrase)
        if "masks" in features:
            masks = [row["masks"] or [] for rows in iter_undecoded(dataset.select_columns("masks")) for row in rows]
            dataset = _with_column(dataset, "phrases", [[phrase] * max(len(row), 1) for row in masks])
        else:
            dataset = _with_column(dataset, "phrase", [phrase] * len(dataset))
    if "sample_id" not in features:
        names = [f"{number:06d}" for number in range(len(dataset))]
        if isinstance(features.get("image"), Image):
            images = [row["image"] for rows in iter_undecoded(dataset.select_columns("image")) for row in rows]
            stems = {Path(image["path"]).stem for image in images if image and image["path"]}
            if len(stems) == len(images):
                names = [Path(image["path"]).stem for image in images]
        dataset = _with_column(dataset, "sample_id", [f"{split}_{name}" for name in names])
    return dataset


def load_dataset_dict(
    name_or_path: str | os.PathLike, phrase: str | None = None, **synthetic_kwargs: Any
) -> DatasetDict:
    """
    Load a dataset by name: what `--dataset_name` takes.

    Args:
        name_or_path (`str` or `os.PathLike`):
            One of
            - `"synthetic"`: generated angiography (`synthetic_splits`, `named_splits`).
            - A folder in a reader's layout, with or without one sub-folder a split (`train`; `val`, `valid` or
              `validation`; `test`).
            - A folder that `datasets.load_dataset` opens (Parquet, or images with `metadata.jsonl`), or that
              `save_to_disk` wrote.
            - The id of a dataset on the Hub (`user/name`).
        phrase (`str`, *optional*):
            For data that names no phrase itself (a mask folder then has `"blood vessel"` by default). In lower case
            and without a final dot, as Sa2VA's own data has them, whatever it is given in (`normalize_phrase`).
        synthetic_kwargs (*optional*):
            For `"synthetic"` alone: arguments of [`~data.synthetic.synthetic_splits`], or with `scene="named"` of
            [`~data.scenes.named_splits`].

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`, as many as there are; data without splits is
        `train`. The rows are not checked beyond what the readers check: see `check_dataset`. Where two sub-folders use
        one `sample_id`, all get the split's name in front (`test_0001`).

    Raises:
        `FileNotFoundError`: If it is neither an existing folder nor the id of a dataset that the Hub opens.
        `DatasetError`: If the folder has no known format (the message lists those), or bad rows.
        `ValueError`: If `synthetic_kwargs` are given for another dataset, or one of them is unknown or out of range.

    Example:

    ```python
    >>> from sa2va_trl.data import load_dataset_dict

    >>> data = load_dataset_dict(
    ...     "synthetic", phrase="Coronary Artery.", train_videos=2, validation_videos=1, test_videos=1,
    ...     frames_per_video=2, size=64,
    ... )
    >>> {split: len(rows) for split, rows in data.items()}
    {'train': 4, 'validation': 2, 'test': 2}
    >>> row = data["test"][0]
    >>> row["sample_id"], row["phrase"], row["image"].size, row["mask"].mode
    ('v0000_f000', 'coronary artery', (64, 64), 'L')

    ```
    """
    name = os.fspath(name_or_path)
    if name == "synthetic":
        from .scenes import generated_splits

        return generated_splits(phrase=phrase, **synthetic_kwargs)
    if synthetic_kwargs:
        raise ValueError(f"{', '.join(synthetic_kwargs)}: only for the dataset 'synthetic', not for {name!r}")

    path = Path(name).expanduser()
    if path.is_dir():
        splits = _read_folder(path, phrase)
    elif path.exists():
        raise DatasetError(f"{path} is a file; give the folder that holds the dataset")
    elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        try:
            splits = datasets.load_dataset(name)
        except (FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"{name!r} is neither an existing folder (looked in {Path.cwd()}) nor a dataset on the Hub that "
                f"could be opened: {error}"
            ) from error
    else:
        raise FileNotFoundError(
            f"{path} does not exist (looked in {Path.cwd()}), and {name!r} is not the id of a dataset on the Hub "
            "(user/name)"
        )

    renamed: dict[str, Dataset] = {}
    for split, dataset in splits.items():
        target = SPLITS.get(split, split)
        if target in renamed:
            raise DatasetError(f"{name}: two of its splits ({', '.join(splits)}) are named {target!r} here: keep one")
        renamed[target] = _to_columns(dataset, target, phrase)
    return DatasetDict(renamed)
