"""The official fine-tuning layout of Sa2VA: polygons in `annotations.json` beside `images/`."""

import logging
import os
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...errors import BadRow, DatasetError
from ...media.pictures import MAX_PIXELS, displayed_size, quiet_pillow
from ..columns import FEATURES
from ..masks import encode_mask, polygons_to_mask
from ..prompts import normalize_phrase
from .annotation_files import head_of, load_json, naming
from .coco import is_coco_text
from .folders import image_files, listed_below, metadata_places, named_path, sample_ids, warn_unnamed
from .label_studio import is_label_studio_text
from .polygons import polygon_fault, shares_fault


logger = logging.getLogger(__name__)


def _read_objects(masks: Any, size: tuple[int, int] | None) -> tuple[list[list], int, list[str]]:
    """The polygons of every object of one entry, the number of objects that were one bare polygon, and all faults."""
    if not isinstance(masks, list):
        return [], 0, [f"`mask` must be a list of objects, not {masks!r:.40}"]
    objects, bare, problems = [], 0, []
    for number, polygons in enumerate(masks):
        if not isinstance(polygons, list):
            problems.append(f"object {number} is not a list of polygons but {polygons!r:.40}")
            polygons = []
        elif polygons and not any(isinstance(polygon, list) for polygon in polygons):
            polygons = [polygons]
            bare += 1
        for index, polygon in enumerate(polygons):
            if fault := polygon_fault(polygon, size):
                problems.append(f"object {number}, polygon {index} {fault}")
        objects.append(polygons)
    return objects, bare, problems


def _read_phrases(text: Any, default: str | None, masks: int) -> tuple[list[str], list[str]]:
    """The phrases of one entry, normalised, and all faults."""
    if text is None:
        if default is None:
            return [], ["`text` is missing; give `phrase` to use one phrase for every object"]
        return [default] * max(masks, 1), []
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list):
        return [], [f"`text` must be a list of phrases, not {text!r:.40}"]
    phrases, problems = [], []
    for number, value in enumerate(texts):
        try:
            if not isinstance(value, str):
                raise DatasetError(f"is not a string but {value!r:.40}")
            phrases.append(normalize_phrase(value))
        except DatasetError as error:
            problems.append(f"text {number}: {error}")
    if not texts:
        problems.append("`text` is empty: an image needs at least one phrase")
    return phrases, problems


def _load_json(file: Path) -> list:
    with naming(file):
        entries = load_json(file)
    if not isinstance(entries, list):
        raise DatasetError(f'{file}: expected a list of {{"image", "mask", "text"}}, found {type(entries).__name__}')
    if not entries:
        raise DatasetError(f"{file}: the list is empty")
    return entries


def is_sa2va_json(folder: Path) -> bool:
    """Whether a folder has this layout."""
    head = head_of(folder / "annotations.json")
    # (Others give theirs the same name.)
    return (folder / "annotations.json").is_file() and not (is_coco_text(head) or is_label_studio_text(head))


def read_sa2va_json(folder: str | os.PathLike, phrase: str | None = None, max_pixels: int = MAX_PIXELS) -> Dataset:
    """
    Read the official fine-tuning layout of Sa2VA: `annotations.json` beside `images/`.

    The JSON is a list, one `{"image": NAME, "mask": [object, ...], "text": [phrase, ...]}` an image; an object is a
    list of polygons, a polygon a flat `[x1, y1, x2, y2, ...]` in pixels of that file. The polygons of an object are
    joined by OR (`polygons_to_mask`). An object without polygons has an empty mask; with `"mask": []` all of the
    entry's phrases have. Also read, and counted in the log: an object that is one polygon without the list around it.

    Args:
        folder (`str` or `os.PathLike`):
            Holds `annotations.json` and `images/`.
        phrase (`str`, *optional*):
            For entries without `text`, one for every object.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height of an image.

    Returns:
        `datasets.Dataset` with `image` (the file, not copied), `masks` (PNG, mode `L`, 0 and 255, at the image's own
        size), `phrases` (lower case, without a final dot) and `sample_id` (the image's stem). Only the images' headers
        are read: `check_dataset` decodes them.

    Raises:
        `FileNotFoundError`: If `annotations.json` or `images/` is missing.
        `DatasetError`: If the JSON cannot be read, or with every bad entry: a missing, unreadable or too large image;
            a path out of `images/`; a polygon with an odd number of coordinates, fewer than 3 points, something else
            than finite numbers, or more than 1 px out of the image; an entry whose polygons are shares of the image;
            more or fewer masks than phrases; an empty phrase. No entry is left out silently.
    """
    folder = Path(folder)
    file, image_folder = folder / "annotations.json", folder / "images"
    for path in (file, image_folder):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: this layout is annotations.json beside images/")
    default = None if phrase is None else normalize_phrase(phrase)

    if unread := [path for path in metadata_places(folder) + metadata_places(image_folder) if path.is_file()]:
        logger.warning("%s: not read, since annotations.json is: %s.", folder, listed_below(unread, folder))

    names, columns, bad, bare_rows, blank = [], {"image": [], "masks": [], "phrases": []}, [], [], []
    per_cent = []  # of every entry with polygons, whether they might be per cent of the image
    entries = _load_json(file)
    with quiet_pillow():
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                bad.append(BadRow(number, None, file.name, f"is not an object but {entry!r:.40}"))
                continue
            name, problems, path, size = entry.get("image"), [], None, None
            if not isinstance(name, str) or not name:
                problems.append(f"`image` must be a file name, not {name!r:.40}")
            else:
                try:
                    path = named_path(image_folder, name)
                    if not path.exists():
                        inner = name.removeprefix(f"{image_folder.name}/")
                        found = inner != name and (image_folder / inner).exists()
                        hint = f"; names count from {image_folder.name}/: write {inner!r}" if found else ""
                        raise DatasetError(f"file is missing: tried {path}{hint}")
                    size = displayed_size(path, max_pixels)
                except DatasetError as error:
                    problems.append(f"image {error}")
            if "mask" in entry:
                objects, bare, faults = _read_objects(entry["mask"], size)
            else:
                objects, bare, faults = [], 0, ["`mask` is missing (an image without any object has an empty list)"]
            problems += faults
            if size is not None and not faults and any(objects):
                if fault := shares_fault([polygon for polygons in objects for polygon in polygons], size):
                    problems.append(fault)
                largest = max(value for polygons in objects for polygon in polygons for value in polygon)
                per_cent.append(largest <= 100 < max(size))
            phrases, faults = _read_phrases(entry.get("text"), default, len(objects))
            problems += faults
            if phrases and not faults and objects and len(objects) != len(phrases):
                relation = "more masks than phrases" if len(objects) > len(phrases) else "fewer masks than phrases"
                problems.append(
                    f"{relation}: {len(objects)} masks, {len(phrases)} phrases "
                    "(`mask` has one list of polygons an object)"
                )
            if problems:
                bad.append(BadRow(number, None, name if isinstance(name, str) else None, "; ".join(problems)))
                continue
            if bare:
                bare_rows.append(number)
            masks = [polygons_to_mask(polygons, size) for polygons in objects or [[]] * len(phrases)]
            if any(polygons and not mask.any() for polygons, mask in zip(objects, masks, strict=False)):
                blank.append(number)
            names.append(name)
            columns["image"].append(str(path))
            columns["masks"].append([encode_mask(mask) for mask in masks])
            columns["phrases"].append(phrases)
    if bad:
        raise DatasetError(f"{file}: {len(bad)} of {len(entries)} entries cannot be used (rows count from 0):", bad)
    listed_files = set(map(os.path.realpath, columns["image"]))
    warn_unnamed(image_folder, image_files(image_folder), listed_files, file)
    if per_cent and all(per_cent):
        logger.warning(
            "%s: no coordinate of any polygon is above 100, and all images are larger. If they are per cent of the "
            "image, multiply x by width / 100 and y by height / 100.",
            file,
        )
    for rows, what in (
        (bare_rows, "have an object that is one polygon without a list around it; read as that polygon"),
        (blank, "have an object whose polygons hold no pixel's centre; its mask is empty"),
    ):
        if rows:
            shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            logger.warning("%s: %d entries %s (rows %s).", file, len(rows), what, shown)
    return Dataset.from_dict({**columns, "sample_id": sample_ids(names)}, features=FEATURES)
