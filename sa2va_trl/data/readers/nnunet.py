"""nnU-Net's raw data: imagesTr/, labelsTr/ and a dataset.json that names the labels."""

import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ...media.pictures import quiet_pillow
from ...media.suffixes import KINDS
from .entries import AnnotatedObject, Entry, Reading, Source
from .folders import listed_below, walk
from .mask_files import PAIR_KINDS, draw_mask_file
from .mask_folder import look_at_pair


logger = logging.getLogger(__name__)
_FILE = "dataset.json"
_MAX_BYTES = 64 * 1024 * 1024
_IGNORE = "ignore"


def _dataset_folders(folder: Path) -> list[Path]:
    """The folder itself, or those in it that nnU-Net would call data sets."""
    places = [folder, *(sorted(folder.glob("Dataset[0-9][0-9][0-9]_*")) if folder.is_dir() else ())]
    return [place for place in places if (place / _FILE).is_file() and (place / "labelsTr").is_dir()]


def is_nnunet(folder: Path) -> bool:
    """Whether a folder has this layout, or holds one that has it (`nnUNet_raw/Dataset001_Name`)."""
    return bool(_dataset_folders(folder))


def find_nnunet(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Find the cases of a data set in nnU-Net's format: `imagesTr/CASE_0000.png` with `labelsTr/CASE.png`; `labelsTs/`,
    where there is one, is the split `test`.

    The classes are the labels of `dataset.json` but the background; a label that is a list of ids (a region) is all of
    those. Of several channels the first, `_0000`, is the picture. Cases of which pixels are labelled `ignore` are left
    out, and so are images without labels; both are named in the log. Files are pictures, or NIfTI of one slice.

    Args:
        folder (`Path`): of the data set, or one that holds it and no other.
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`: `train`, and `test` where it has labels.

    Raises:
        `DatasetError`: several data sets, or a dataset.json that is none.
    """
    places = _dataset_folders(folder)
    if len(places) != 1:
        raise DatasetError(
            f"{folder} holds {len(places)} data sets of nnU-Net, give one: {listed_below(places, folder)}"
        )
    (place,) = places
    file = place / _FILE
    try:
        stated = _load(file)
        labels, ignored = _labels(stated)
        ending = _ending(stated, place)
        _warn_channels(stated, place)
    except DatasetError as error:
        raise DatasetError(f"{file}: {error}") from error
    found = {"train": _source(place, "Tr", labels, ignored, ending, reading)}
    if (place / "labelsTs").is_dir():
        found["test"] = _source(place, "Ts", labels, ignored, ending, reading)
    elif (place / "imagesTs").is_dir() and (left := _cases(place / "imagesTs", ending)):
        logger.warning("%s: left out, %d images without labels: %s.", place / "imagesTs", len(left), listed([*left]))
    return found


def _load(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _MAX_BYTES:
        raise DatasetError(f"is larger than {_MAX_BYTES:,} bytes")
    try:
        stated = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"is no JSON ({type(error).__name__}: {error})") from error
    if not isinstance(stated, dict) or not isinstance(stated.get("labels"), dict):
        raise DatasetError('must hold labels, {"background": 0, "vessel": 1}')
    return stated


def _labels(stated: dict[str, Any]) -> tuple[dict[str, frozenset[str]], frozenset[str]]:
    """The ids of each label but the background, and those of pixels that nobody has looked at."""
    found: dict[str, frozenset[str]] = {}
    for name, value in stated["labels"].items():
        if re.fullmatch(r"\d+", name) and isinstance(value, str):  # as before its second version: names by id
            name, value = value, int(name)
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
            raise DatasetError(f"label {name!r} must be a whole number or a list of them, got {value!r:.60}")
        if not name.strip():
            raise DatasetError(f"the label of {value!r:.60} has no name")
        if ids == [0]:
            continue
        if 0 in ids or name in found:
            fault = "holds 0, the background" if 0 in ids else "is there twice"
            raise DatasetError(f"label {name!r} {fault}")
        found[name] = frozenset(map(str, ids))
    ignored = found.pop(_IGNORE, frozenset())
    if not found:
        raise DatasetError("names no label but the background")
    return found, ignored


def _ending(stated: dict[str, Any], place: Path) -> str:
    known = [suffix for kind in PAIR_KINDS for suffix in KINDS[kind]]
    ending = stated.get("file_ending", ".nii.gz")  # before its second version the only one
    if not isinstance(ending, str) or ending.lower() not in known:
        raise DatasetError(f"file_ending {ending!r:.60} is of a kind that is not read (read are {', '.join(known)})")
    return ending


def _warn_channels(stated: dict[str, Any], place: Path) -> None:
    names = stated.get("channel_names", stated.get("modality"))
    if isinstance(names, dict) and len(names) > 1 and next((place / "imagesTr").glob("*_0001.*"), None):
        others = [f"_{int(key):04d} ({name})" for key, name in names.items() if str(key).isdigit() and int(key) > 0]
        logger.warning("%s: left out, channels beside _0000 (%s): %s.", place, names.get("0"), listed(others))


def _cases(folder: Path, ending: str) -> dict[str, Path]:
    """The first channel of every case below a folder of images; files of another ending are named in the log."""
    found, left = {}, []
    for path in walk(folder)[0] if folder.is_dir() else ():
        match = re.fullmatch(r"(.+)_(\d{4})" + re.escape(ending), path.name)
        if not match or path.parent != folder:
            left.append(path)
        elif match[2] == "0000":
            found[match[1]] = path
    if left:
        logger.warning("%s: left out, not named CASE_0000%s: %s.", folder, ending, listed_below(left, folder))
    return found


def _source(
    place: Path,
    part: str,
    labels: Mapping[str, frozenset[str]],
    ignored: frozenset[str],
    ending: str,
    reading: Reading,
) -> Source:
    images, masks, left = _cases(place / f"images{part}", ending), {}, []
    for path in walk(place / f"labels{part}")[0]:
        if path.name.endswith(ending) and path.parent.name == f"labels{part}":
            masks[path.name.removesuffix(ending)] = path
        else:
            left.append(path)
    if left:
        folder = place / f"labels{part}"
        logger.warning("%s: left out, not named CASE%s: %s.", folder, ending, listed_below(left, folder))
    known = frozenset().union(ignored, *labels.values())
    entries, bad, unseen = [], [], []
    with quiet_pillow():
        for case in sorted(images.keys() | masks.keys()):
            image, mask = images.get(case), masks.get(case)
            found, problems = look_at_pair(image, mask, known, reading)
            if image is None:
                problems.append(f"has no image: expected images{part}/{case}_0000{ending}")
            if mask is None:
                problems.append(f"has no label: expected labels{part}/{case}{ending}")
            if found is not None and (unknown := [str(name) for name in found.names if name not in known]):
                problems.append(f"label {mask.name} holds {listed(unknown)}, which {_FILE} does not name")
            if problems:
                bad.append(BadRow(None, None, (image or mask).relative_to(place).as_posix(), "; ".join(problems)))
            elif ignored & set(found.names):
                unseen.append(case)
            else:
                objects = [
                    _object(mask.absolute(), label, ids, known, reading)
                    for label, ids in labels.items()
                    if ids & set(found.names)
                ]
                entries.append(Entry(f"{case}.{ending.rpartition('.')[2]}", image.absolute(), tuple(objects)))
    if unseen:
        text = "%s: left out, cases with pixels labelled %r, of which nobody has said what they are: %s."
        logger.warning(text, place, _IGNORE, listed(unseen))
    return Source(place, entries, tuple(labels), bad)


def _object(mask: Path, label: str, ids: frozenset[str], known: frozenset[str], reading: Reading) -> AnnotatedObject:
    options = {"threshold": None, "known": known, "max_pixels": reading.max_pixels}
    return AnnotatedObject(label, partial(draw_mask_file, path=mask, names=ids, **options))
