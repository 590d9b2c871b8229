"""Any dataset by name: a folder in a format that a reader knows, a prepared one, a Hub id or `synthetic`."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Image

from ..errors import DatasetError, listed
from .columns import FEATURES, PHRASE_COLUMNS
from .prompts import normalize_phrase
from .readers.clips import find_clips, is_bare_dicom, is_clips, notes_beside
from .readers.coco import find_coco, is_coco
from .readers.cvat import find_cvat, is_cvat
from .readers.dicom_seg import find_dicom_seg, is_dicom_seg
from .readers.entries import Reading, Source, rows_of, source_of
from .readers.folders import SPLITS, listed_below, split_folders
from .readers.image_metadata import is_image_metadata, read_image_metadata
from .readers.label_studio import find_label_studio, is_label_studio
from .readers.labelme import find_labelme, is_labelme
from .readers.mask_folder import find_mask_folder, is_mask_folder
from .readers.mevis import find_mevis, is_mevis, read_mevis
from .readers.nnunet import find_nnunet, is_nnunet
from .readers.prepared import find_prepared, is_prepared, read_prepared
from .readers.ref_youtube_vos import find_ref_youtube_vos, is_ref_youtube_vos, read_ref_youtube_vos
from .readers.refcoco import find_refcoco, is_refcoco
from .readers.sa2va_json import is_sa2va_json, read_sa2va_json
from .readers.yolo import find_yolo, is_yolo
from .selections import SELECTION, read_selection, select_rows
from .sources import Format, check_annotated, check_options, refuse_lost, told_apart, warn_unannotated
from .stored import iter_undecoded


logger = logging.getLogger(__name__)


def _rows_as_source(read: Callable[..., Dataset], folder: Path, reading: Reading) -> dict[str, Source]:
    return {"train": source_of(read(folder, phrase=reading.phrase), folder)}


# A format is a file of `readers` and a line here.
FORMATS: dict[str, Format] = {
    "prepared": Format(is_prepared, find_prepared, read=lambda folder, phrase: read_prepared(folder)),
    "sa2va_json": Format(is_sa2va_json, partial(_rows_as_source, read_sa2va_json), read=read_sa2va_json),
    "refcoco": Format(is_refcoco, find_refcoco),
    "coco": Format(is_coco, find_coco),
    "yolo": Format(is_yolo, find_yolo),
    "cvat": Format(is_cvat, find_cvat),
    "labelme": Format(is_labelme, find_labelme),
    "label_studio": Format(is_label_studio, find_label_studio),
    "dicom_seg": Format(is_dicom_seg, find_dicom_seg, ("mask_threshold", "secondary_captures")),
    "mevis": Format(is_mevis, find_mevis, read=read_mevis),
    "ref_youtube_vos": Format(is_ref_youtube_vos, find_ref_youtube_vos, read=read_ref_youtube_vos),
    "clips": Format(
        is_clips,
        find_clips,
        ("mask_suffix", "mask_threshold", "secondary_captures"),
        fits_named=partial(is_clips, is_named=True),
    ),
    "nnunet": Format(is_nnunet, find_nnunet),
    "image_metadata": Format(
        is_image_metadata, partial(_rows_as_source, read_image_metadata), read=read_image_metadata
    ),
    "mask_folder": Format(is_mask_folder, find_mask_folder, ("mask_suffix", "mask_threshold")),
}
# Of these the first is meant where several fit: what names its images says more than the folders that they lie in.
_TELLING = ("sa2va_json", "prepared", "image_metadata", "mask_folder")
# A format that has the files of another one and more.
_MORE = {"refcoco": "coco"}


def _fitting(place: Path, form: str) -> list[str]:
    """The formats that a folder has and may be meant."""
    if form != "auto":
        return [form] if (FORMATS[form].fits_named or FORMATS[form].fits)(place) else []
    found = [name for name, own in FORMATS.items() if own.fits(place)]
    telling = [name for name in _TELLING if name in found]
    less = telling[1:] + [name for more, name in _MORE.items() if more in found]
    return [name for name in found if name not in less]


def _warn_unused(folder: Path, used: set[str]) -> None:
    """Name the sub-folders that are data sets of their own and are not read, beside splits or in a whole."""
    names = FORMATS if used else _TELLING  # (a whole may be of files in folders, each of which is of its format)
    unused = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name not in used and any(_may_fit(FORMATS[name], path) for name in names)
    ]
    if unused:
        logger.warning(
            "%s: left out, each a dataset that can be named by itself: %s.", folder, listed_below(unused, folder)
        )


def _may_fit(form: Format, place: Path) -> bool:
    try:
        return form.fits(place)
    except DatasetError:  # says what is wrong with a folder of this format
        return True


def _in_doubt(places: Iterable[Path]) -> str:
    """Why what may be clips is not read as such, for a message."""
    notes = [path for place in places if is_clips(place, is_named=True) for path in notes_beside(place)]
    if not notes:
        return ""
    return (
        " It has clips or DICOM files, and beside them what may say what is in them "
        f"({listed(list(map(str, notes)))}): --format clips of sa2va-trl prepare_data passes that over."
    )


def formats_in(folder: Path, form: str = "auto") -> dict[str, tuple[Path, str]]:
    """
    What a folder is.

    Args:
        folder (`Path`): to be read.
        form (`str`, *optional*, defaults to `"auto"`): name of the format, of [`FORMATS`], where several might fit.

    Returns:
        `dict[str, tuple[Path, str]]`: the place and name of its format, as `""`; or those of each folder that is named
        after a split, which may be of several formats.

    Raises:
        `DatasetError`: no known format, or several.
        `ValueError`: there is no format of this name.
    """
    if form != "auto" and form not in FORMATS:
        raise ValueError(f"format must be auto or one of {', '.join(FORMATS)}, got {form!r}.")
    places = split_folders(folder)
    whole, fitting = _fitting(folder, form), {split: _fitting(place, form) for split, place in places.items()}
    # Some formats find their files in the folders of splits, too, and would pass over those that are of another one.
    shared = {name for names in fitting.values() for name in names} & {*whole}
    others = {split: names for split, names in fitting.items() if names and not shared & {*names}}
    if "dicom_seg" in shared:  # which may lie anywhere, and then those are its pictures
        others = {
            split: names for split, names in others.items() if names != ["clips"] or not is_bare_dicom(places[split])
        }
    mixed = bool(shared and others)
    if whole and not mixed:
        places, fitting = {"": folder}, {"": whole}
    elif not any(fitting.values()):
        fitting = {}
    for split, names in fitting.items():
        if len(names) > 1:
            raise DatasetError(
                f"{places[split]} may be {' or '.join(names)}: say which with --format of sa2va-trl prepare_data, or "
                "leave the files of one alone in it"
            )
    if unknown := [places[split] for split, names in fitting.items() if not names]:
        raise DatasetError(
            f"{folder}: {', '.join(place.name for place in unknown)} holds no known format, the other splits do."
            f"{_in_doubt(unknown)}"
        )
    if not fitting:
        raise DatasetError(
            f"{folder} holds no dataset in {'a known format' if form == 'auto' else f'the format {form}'}. Looked "
            "for, in it and in its train/, val/ (or valid/, validation/) and test/: annotations.json with images/ "
            "(Sa2VA polygons); image/ with mask/, or images/ with masks/, or either image folder with a "
            "metadata.jsonl in it; imagesTr/ with labelsTr/ and dataset.json (nnU-Net); an export of COCO, YOLO "
            "(data.yaml), CVAT, LabelMe or Label Studio; MeViS, Ref-YouTube-VOS or RefCOCO (JSON, no pickle); DICOM "
            "segmentations beside their pictures; clips and DICOM files; Parquet files or metadata.jsonl (what "
            "datasets.load_dataset opens); dataset_dict.json or state.json (what save_to_disk writes). "
            f"Found: {', '.join(sorted(path.name for path in folder.iterdir())[:20]) or 'nothing'}."
            f"{_in_doubt((folder, *split_folders(folder).values()))}"
        )
    if fitting.get("") != ["prepared"]:  # whose folders are its own
        _warn_unused(folder, {place.name for split, place in places.items() if split})
    return {split: (places[split], names[0]) for split, names in fitting.items()}


def _together(splits: Iterable[str], make: Callable[[str], Any]) -> dict[str, Any]:
    """What `make` gives of each split; bad rows of all of them in one error."""
    found, bad = {}, []
    for split in splits:
        try:
            found[split] = make(split)
        except DatasetError as error:
            bad.append(error)
    if len(bad) == 1:
        raise bad[0]
    if bad:
        together = DatasetError("\n".join(map(str, bad)))
        together.problems = [problem for error in bad for problem in error.problems]
        raise together from bad[0]
    return found


def _by_split(
    places: Mapping[str, tuple[Path, str]], read: Callable[[Format, Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """What `read` makes of all that [`formats_in`] has found."""

    def of(split: str) -> Mapping[str, Any]:
        place, name = places[split]
        own = read(FORMATS[name], place)
        if split and len(own) > 1:
            raise DatasetError(f"{place} has splits of its own ({', '.join(own)}), and is one: keep one of both")
        return own

    found = _together(places, of)
    return found[""] if "" in found else {split: next(iter(own.values())) for split, own in found.items()}


def _read_folder(folder: Path, phrase: str | None) -> DatasetDict:
    if (folder / SELECTION).is_file():
        name, of, splits = read_selection(folder)
        return select_rows(load_dataset_dict(name, phrase=phrase), of, splits, name)
    places, reading = formats_in(folder), Reading(phrase=phrase)

    def read(form: Format, place: Path) -> Mapping[str, Source | Dataset]:
        if form.read is None:
            return form.find(place, reading)
        rows = form.read(place, phrase)
        return rows if isinstance(rows, DatasetDict) else {"train": rows}

    found = _by_split(places, read)
    sources = _side_by_side({split: own for split, own in found.items() if isinstance(own, Source)}, places, folder)
    rows = _together(found, lambda split: rows_of(sources[split], reading) if split in sources else found[split])
    # (What two splits of a prepared data set share is a leak.)
    is_prepared_one = "prepared" in (name for _, name in places.values())
    return DatasetDict(rows) if is_prepared_one else _with_unique_ids(DatasetDict(rows))


def _side_by_side(
    sources: dict[str, Source], places: Mapping[str, tuple[Path, str]], folder: Path
) -> dict[str, Source]:
    """Sources whose videos are told apart, of a folder of which nothing is left out."""
    warn_unannotated(folder, sources, places.keys() - sources.keys() - {""})
    if "" not in places:
        return told_apart(sources, folder)
    if sources:
        refuse_lost(folder, sources, FORMATS)
    return sources


def find_sources(folder: Path, reading: Reading, form: str = "auto") -> dict[str, Source]:
    """
    What a folder holds that is to be made into a data set, before any row is made.

    Every format uses `phrase`, `classes`, `templates` and `instances` of a [`~data.readers.entries.Reading`] where it
    has annotations at all; [`FORMATS`] has what else.

    Args:
        folder (`Path`): in any of [`FORMATS`], with or without a sub-folder for each split.
        reading ([`~data.readers.entries.Reading`]): how.
        form (`str`, *optional*, defaults to `"auto"`): name of the format.

    Returns:
        `dict[str, Source]`: by split; `train` alone where there are none.

    Raises:
        `FileNotFoundError`: there is no such folder.
        `DatasetError`: no known format, several, or bad rows.
        `ValueError`: there is no format of this name, or options can take no effect on it.
    """
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file; give the folder that holds the data")
    if form == "auto" and (folder / SELECTION).is_file():
        raise DatasetError(f"{folder} chooses rows of {read_selection(folder)[0]}: prepare that")
    places = formats_in(folder, form)
    check_options(reading, {name for _, name in places.values()}, FORMATS)
    found = _side_by_side(_by_split(places, lambda own, place: own.find(place, reading)), places, folder)
    check_annotated(reading, found, folder)
    return found


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
