"""From files on disk to a `datasets.Dataset` with the columns of `sa2va_trl.data.columns`."""

import csv
import hashlib
import io
import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict, Features, Image, List
from skimage.draw import polygon2mask

from ..errors import BadRow, DatasetError
from ..media.clips import listed
from ..media.pictures import MAX_PIXELS, displayed_size, quiet_pillow
from ..media.suffixes import IMAGE_SUFFIXES, is_byproduct
from ..tokens import IMAGE_PLACEHOLDER, SEG_TOKEN, reserved_tokens
from .columns import (
    DEFAULT_PHRASE,
    FEATURES,
    PAIR_COLUMNS,
    PHRASE_COLUMNS,
    decode_mask,
    iter_undecoded,
    resolve_inside,
)


logger = logging.getLogger(__name__)

#: Names of a split's sub-folder (or of a split on the Hub), and the name it gets here.
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_TOLERANCE = 1.0  # pixels that a polygon may reach over the image's edge: annotation tools round
# What other tools call a phrase.
_CAPTIONS = ("text", "texts", "caption", "captions", "prompt", "label", "labels", "class", "category", "description")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Columns of pictures, and how a metadata file names them: as they stand, their paths would count from anywhere.
_PICTURES = {
    "image": "file_name",
    "images": "file_names",
    "mask": "mask_file_name",
    "masks": "masks_file_names",
    **{name: f"{name}_file_name" for name in PAIR_COLUMNS},
}
_FEW_PIXELS = 4  # up to this side an object may well lie in the first pixel
_OVERSHOOT = 0.1  # beyond 0 and 1, of shares of the image


def normalize_phrase(text: str) -> str:
    """
    Bring a phrase into the form that Sa2VA's fine-tuning data has: no outer white space, no dot at the end, lower
    case.

    Raises:
        `DatasetError`: If nothing is left, or it holds a token that the processor writes itself.
    """
    phrase = text.strip().removesuffix(".").rstrip().lower()
    if not phrase:
        raise DatasetError(f"phrase {text!r} is empty")
    # (In the case that it came in, where they are tokens.)
    if found := [token for token in (SEG_TOKEN, IMAGE_PLACEHOLDER) if token in text] + reserved_tokens(text):
        raise DatasetError(f"phrase {text!r} holds the reserved token {', '.join(found)}")
    return phrase


def _sample_ids(paths: list[str]) -> list[str]:
    """
    A unique name for every image, fit to name a file: the stem; where stems collide, the relative path without its
    suffix, then with it, its folders joined by `_`; then, where one image is listed several times, a number.
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


def _png(mask: np.ndarray | PIL.Image.Image) -> dict[str, Any]:
    if isinstance(mask, np.ndarray):
        mask = PIL.Image.fromarray(mask.astype(np.uint8) * 255)
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
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


def _listed(paths: list[Path], folder: Path) -> str:
    return listed([path.relative_to(folder).as_posix() for path in paths])


def _named_path(root: Path, name: str) -> Path:
    """
    `resolve_inside` for a path that an annotation file names. Beyond that, a link may lead into the store that the
    folder itself is a view of: a Hub snapshot is links into blobs/, a DVC checkout may be links into .dvc/cache.

    Raises:
        `DatasetError`: As `resolve_inside`.
    """
    try:
        return resolve_inside(root, name)
    except DatasetError:
        place = root.resolve()
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise
        for above in (place, *place.parents):
            store = above / "blobs" if (above / "snapshots") in place.parents else above / ".dvc" / "cache"
            if (place / name).resolve().is_relative_to(store):
                return place / name
        raise


# ---------------------------------------------------------------------------------------------------------------------
# Sa2VA polygon JSON
# ---------------------------------------------------------------------------------------------------------------------


def polygons_to_mask(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """
    Rasterise the polygons of one object and join them by OR.

    Coordinates are COCO's: continuous, x to the right and y down, the pixel in column c and row r covering [c, c + 1)
    x [r, r + 1). A pixel belongs to the object where its centre (c + 0.5, r + 0.5) lies inside a polygon. (Sa2VA's own
    loader adds the polygons up instead, so that its targets exceed 1 where they overlap.)

    Args:
        polygons (list of list of `float`):
            Each `[x1, y1, x2, y2, ...]`, in pixels. None gives an empty mask.
        size (`tuple[int, int]`):
            (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.
    """
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    for flat in polygons:
        points = np.asarray(flat, dtype=np.float64).reshape(-1, 2)
        # scikit-image has a pixel's centre at whole coordinates, and takes (row, column)
        rows_columns = points[:, ::-1] - 0.5
        # rasterise in the polygon's own box: an object is mostly a small part of the image
        low = np.clip(np.floor(rows_columns.min(axis=0)), 0, None).astype(int)
        high = np.minimum(np.ceil(rows_columns.max(axis=0)).astype(int) + 1, (height, width))
        if (high > low).all():
            box = mask[low[0] : high[0], low[1] : high[1]]
            box |= polygon2mask(box.shape, rows_columns - low)
    return mask


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_polygon(polygon: Any, size: tuple[int, int] | None) -> str | None:
    """The first fault of one polygon, or None."""
    if not isinstance(polygon, list):
        return f"is not a list of numbers but {polygon!r:.40}"
    for value in polygon:
        if not _is_number(value):
            return f"holds {value!r:.40}, which is not a number"
        if not math.isfinite(value):
            return f"holds {value}, which is not finite"
    if len(polygon) % 2:
        return f"is ragged: {len(polygon)} coordinates, an odd number (expected x1, y1, x2, y2, ...)"
    if len(polygon) < 6:
        return f"has {len(polygon) // 2} point(s), a polygon needs at least 3"
    if size is not None:
        for axis, name, limit in ((0, "x", size[0]), (1, "y", size[1])):
            low, high = min(polygon[axis::2]), max(polygon[axis::2])
            if low < -_TOLERANCE or high > limit + _TOLERANCE:
                return (
                    f"leaves the image: {name} from {low:g} to {high:g}, the image is {size[0]} x {size[1]} "
                    "(width x height); are the coordinates in the pixels of this very file?"
                )
    return None


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
            if fault := _check_polygon(polygon, size):
                problems.append(f"object {number}, polygon {index} {fault}")
        objects.append(polygons)
    return objects, bare, problems


def _in_shares(objects: list[list], size: tuple[int, int]) -> str | None:
    """What is wrong with faultless polygons that say shares of the image where pixels are expected, or None."""
    values = [value for polygons in objects for polygon in polygons for value in polygon]
    if not values or max(size) <= _FEW_PIXELS or min(values) < -_OVERSHOOT or max(values) > 1 + _OVERSHOOT:
        return None
    return (
        f"all coordinates lie in [0, 1], the image is {size[0]} x {size[1]} (width x height): shares of the image? "
        "multiply x by the width and y by the height"
    )


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
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{file}: invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not UTF-8 text ({error})") from error
    except RecursionError as error:
        raise DatasetError(f"{file}: the JSON is nested too deeply") from error
    if not isinstance(entries, list):
        raise DatasetError(f'{file}: expected a list of {{"image", "mask", "text"}}, found {type(entries).__name__}')
    if not entries:
        raise DatasetError(f"{file}: the list is empty")
    return entries


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

    if unread := [path for path in _metadata_files(folder) + _metadata_files(image_folder) if path.is_file()]:
        logger.warning("%s: not read, since annotations.json is: %s.", folder, _listed(unread, folder))

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
                    path = _named_path(image_folder, name)
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
                if fault := _in_shares(objects, size):
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
            columns["masks"].append([_png(mask) for mask in masks])
            columns["phrases"].append(phrases)
    if bad:
        raise DatasetError(f"{file}: {len(bad)} of {len(entries)} entries cannot be used (rows count from 0):", bad)
    listed_files = set(map(os.path.realpath, columns["image"]))
    _warn_unnamed(image_folder, _image_files(image_folder), listed_files, file)
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
    return Dataset.from_dict({**columns, "sample_id": _sample_ids(names)}, features=FEATURES)


# ---------------------------------------------------------------------------------------------------------------------
# Folders of images and masks
# ---------------------------------------------------------------------------------------------------------------------


def _find_pair(folder: Path) -> tuple[Path, Path] | None:
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


class _Files(NamedTuple):
    images: dict[str, list[Path]]  # by relative path without suffix
    unread: dict[str, list[Path]]  # of another kind, likewise


def _image_files(folder: Path) -> _Files:
    """What lies below a folder, links followed. A link that leads back to a folder above it is named in the log."""
    found = _Files({}, {})
    files, loops = _walk(folder)
    metadata = _metadata_files(folder)
    for path in files:
        if path not in metadata:
            into = found.images if path.suffix.lower() in IMAGE_SUFFIXES else found.unread
            # (macOS writes an umlaut as two characters, others as one.)
            stem = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
            into.setdefault(stem, []).append(path)
    if loops:
        logger.warning("%s: links to a folder that they lie in, not followed: %s.", folder, _listed(loops, folder))
    return found


def _warn_unread(folder: Path, found: _Files, used: set[str]) -> None:
    """Name the files of a folder that are not read."""
    if left := [path for stem, paths in found.unread.items() if stem not in used for path in paths]:
        logger.warning("%s: left out, not of a kind that is read: %s.", folder, _listed(left, folder))


def _warn_unnamed(folder: Path, found: _Files, named: set[str], file: Path) -> None:
    """Name the files of a folder that are not read, and the images whose real path `file` does not name."""
    _warn_unread(folder, found, set())
    if left := [path for paths in found.images.values() for path in paths if os.path.realpath(path) not in named]:
        logger.warning("%s: left out, not named in %s: %s.", folder, file.name, _listed(left, folder))


def _common_end(stems: Iterable[str]) -> str:
    """What all names end in, from a separator on: `_training` of `21_training` and `22_training`."""
    common = os.path.commonprefix([stem[::-1] for stem in stems])[::-1]
    return common[start.start() :] if (start := re.search(r"[_\-. ]", common)) else ""


def _check_ends(folder: Path, images: Collection[str], masks: Collection[str]) -> None:
    """Refuse names that would pair but for what all images, or all masks, end in."""
    if not images or not masks or set(images) & set(masks):
        return
    ends = _common_end(images), _common_end(masks)
    if {stem.removesuffix(ends[0]) for stem in images} == {stem.removesuffix(ends[1]) for stem in masks}:
        mask = sorted(masks)[0]
        raise DatasetError(
            f"{folder}: images and masks pair by name, but all images end in {ends[0]!r} and all masks in "
            f"{ends[1]!r}: rename one of them (mask {mask!r} to {mask.removesuffix(ends[1]) + ends[0]!r})"
        )


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def read_mask_folder(
    folder: str | os.PathLike, phrase: str | None = DEFAULT_PHRASE, max_pixels: int = MAX_PIXELS
) -> Dataset:
    """
    Read images and masks that pair by file name: `image/NAME.*` with `mask/NAME.*`, or `images/` with `masks/`. Where
    the folder of images holds a metadata file, it says what there is: see `read_image_metadata`.

    Args:
        folder (`str` or `os.PathLike`):
            Holds the two folders (`IMAGE_SUFFIXES` are read; those of a pair may differ). Files and folders in them
            may be links to elsewhere.
        phrase (`str`, *optional*, defaults to `"blood vessel"`):
            Names the one object of every image.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height of an image or mask.

    Returns:
        `datasets.Dataset` with `image` (the file, not copied), `masks` (one; PNG, mode `L`, 0 and 255), `phrases` and
        `sample_id` (the stem). Files of a kind that is not read are named in the log, and pairs that are links to
        another pair, which are left out.

    Raises:
        `FileNotFoundError`: If the folder has no such pair of folders.
        `DatasetError`: If there are both image/ with mask/ and images/ with masks/; or with every bad file: an image
            without a mask or a mask without an image; half a pair, or a whole one, of a kind that is not read; two
            files of one name; a missing, unreadable or too large file, or one of several pages; a mask of another size
            than its image, or that is none ([`~media.masks.binary_mask`]).
    """
    folder = Path(folder)
    if _metadata_of(folder):
        return read_image_metadata(folder, phrase)
    pair = _find_pair(folder)
    if pair is None:
        raise FileNotFoundError(f"{folder} has neither image/ and mask/ nor images/ and masks/")
    phrase = normalize_phrase(DEFAULT_PHRASE if phrase is None else phrase)
    roots = {"image": pair[0], "mask": pair[1]}
    files = {kind: _image_files(root) for kind, root in roots.items()}
    stems = {stem for found in files.values() for stem in found.images}
    stems |= files["image"].unread.keys() & files["mask"].unread.keys()  # a pair that nobody can read
    if not stems:
        unread = [path.name for found in files.values() for paths in found.unread.values() for path in paths]
        there = f"; it and {pair[1].name}/ hold: {listed(unread)}" if unread else ""
        raise DatasetError(f"{pair[0]} holds no image ({_suffixes()}){there}")
    _check_ends(folder, files["image"].images, files["mask"].images)
    for kind, root in roots.items():
        _warn_unread(root, files[kind], stems - files[kind].images.keys())  # the others are refused below

    paths, names, masks, bad, twice = [], [], [], [], []
    seen: set[tuple[str, str]] = set()
    stems = sorted(stems)
    with quiet_pillow():
        for stem in stems:
            problems, opened = [], {}
            for kind, root in roots.items():
                found = files[kind].images.get(stem, [])
                unread = [path.relative_to(root).as_posix() for path in files[kind].unread.get(stem, [])]
                if len(found) == 1:
                    opened[kind] = found[0].absolute()
                elif found:
                    problems.append(f"has several {kind}s: {', '.join(path.name for path in found)}")
                elif unread:
                    names = ", ".join(f"{root.name}/{name}" for name in unread)
                    problems.append(f"{names} is of a kind that is not read (read are {_suffixes()}): convert it")
                else:
                    problems.append(f"has no {kind}: expected {root.name}/{stem}.png (or another image suffix)")
            # The same two files by another name. (One mask of several images, or two of one, are no copies.)
            real = tuple(os.path.realpath(path) for path in opened.values())
            if not problems and real in seen:
                twice.append(opened["image"])
                continue
            seen.add(real)
            size = mask = None
            if "image" in opened:
                try:
                    size = displayed_size(opened["image"], max_pixels)
                except DatasetError as error:
                    problems.append(f"image {error}")
            if "mask" in opened:
                try:
                    mask = decode_mask(opened["mask"], size, max_pixels)
                except DatasetError as error:
                    problems.append(f"mask {opened['mask'].name} {error}")
            if problems:
                places = [(root, files[kind].images) for kind, root in roots.items()]
                places += [(root, files[kind].unread) for kind, root in roots.items()]
                root, path = next((root, found[stem][0]) for root, found in places if stem in found)
                bad.append(BadRow(None, None, f"{root.name}/{path.relative_to(root).as_posix()}", "; ".join(problems)))
            else:
                paths.append(opened["image"])
                names.append(files["image"].images[stem][0].relative_to(roots["image"]).as_posix())
                masks.append([_png(mask)])
    if bad:
        raise DatasetError(f"{folder}: {len(bad)} of {len(stems)} pairs of image and mask cannot be used:", bad)
    if twice:
        again = _listed(twice, pair[0].absolute())
        logger.warning("%s: left out, links to an image and a mask that are read already: %s.", pair[0], again)
    return Dataset.from_dict(
        {
            "image": [str(path) for path in paths],
            "masks": masks,
            "phrases": [[phrase]] * len(paths),
            "sample_id": _sample_ids(names),
        },
        features=FEATURES,
    )


# ---------------------------------------------------------------------------------------------------------------------
# A folder of images with a metadata file in it
# ---------------------------------------------------------------------------------------------------------------------


def _metadata_files(folder: Path) -> list[Path]:
    return [folder / name for name in _METADATA]


def _metadata_of(folder: Path) -> list[Path]:
    """The metadata files inside a folder's `image/` or `images/`."""
    return [file for name in ("image", "images") for file in _metadata_files(folder / name) if file.is_file()]


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


def read_image_metadata(folder: str | os.PathLike, phrase: str | None = DEFAULT_PHRASE) -> Dataset:
    """
    Read a folder of images with a metadata file in it: `images/metadata.jsonl` (or `image/`, `.csv`, `.parquet`).

    As in the `imagefolder` of `datasets`, a row's `file_name` is its image, `NAME_file_name` the picture of the column
    NAME (`mask_file_name`), `NAME_file_names` a list of them (`masks_file_names`), and every other key a column of its
    own. Paths count from the metadata file, and here may lead out of its folder as long as they stay in `folder`
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
            no mask, a file outside of `folder`, or a picture by another key (`mask` for `mask_file_name`).
    """
    folder = Path(folder)
    found = _metadata_of(folder)
    if len(found) != 1:
        raise DatasetError(f"{folder}: expected one metadata file, found {_listed(found, folder) or 'none'}; keep one")
    file, pair = found[0], _find_pair(folder)
    files = {root: _image_files(root) for root in dict.fromkeys((file.parent, *(pair or ())))}
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
        for row, name in zip(rows, _sample_ids(names), strict=True):
            row["sample_id"] = name
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
    pictures = {name: feature for name, feature in pictures.items() if name in columns}

    used = {os.path.realpath(path) for name in pictures for value in columns[name] for path in _flat(value)}
    for root, own in files.items():
        _warn_unnamed(root, own, used, file)
    try:
        plain = Dataset.from_dict({name: values for name, values in columns.items() if name not in pictures})
    except pyarrow.ArrowException as error:
        raise DatasetError(f"{file}: the values of a column are of several types ({error})") from error
    return Dataset.from_dict(columns, features=Features({**plain.features, **pictures}))


def _image_name(entry: dict[str, Any]) -> str | None:
    names = (entry.get("file_name"), entry.get("image_file_name"))
    return next((name for name in names if isinstance(name, str) and name), None)


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
        return str(_named_path(folder, str(PurePosixPath(file.parent.name, value))))

    if None in entry:  # what `csv` calls the fields beyond the header
        entry = dict(entry)
        problems.append(f"has more fields than the header ({entry.pop(None)!r:.40}): quote a value that holds a comma")
    for key, value in entry.items():
        if key in _PICTURES:
            if value is not None:
                problems.append(f"`{key}` is not read as a path: write `{_PICTURES[key]}`")
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


# ---------------------------------------------------------------------------------------------------------------------
# Any dataset by name
# ---------------------------------------------------------------------------------------------------------------------


def _reader_of(folder: Path) -> Callable[..., Dataset] | None:
    """The reader whose layout a folder has."""
    if (folder / "annotations.json").is_file():
        return read_sa2va_json
    if _metadata_of(folder):
        return read_image_metadata
    return read_mask_folder if _find_pair(folder) else None


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
    for file in filter(Path.is_file, _walk(folder)[0]):
        state = file.stat()
        found.update(f"{file.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / f"sa2va_trl-{found.hexdigest()[:16]}"


def _split_folders(folder: Path) -> dict[str, Path]:
    """The sub-folders named after a split, by the split's name here."""
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


def _warn_unused(folder: Path, used: set[str]) -> None:
    """Name the sub-folders in a reader's layout that are not read."""
    unused = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in used and _reader_of(path)
    ]
    if unused:
        logger.warning(
            "%s: left out, each a dataset that can be named by itself: %s.", folder, _listed(unused, folder)
        )


def _read_folder(folder: Path, phrase: str | None) -> DatasetDict:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():  # written by save_to_disk
        loaded = datasets.load_from_disk(str(folder))
        return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})
    # An image folder with metadata often holds images/ and masks/ as well: what says more about itself comes first.
    if not (folder / "annotations.json").is_file() and _is_prepared(folder):
        try:
            return datasets.load_dataset(str(folder), cache_dir=str(_cache_of(folder)))
        except Exception as error:  # datasets wraps anything in DatasetGenerationError, whose text says nothing
            raise DatasetError(f"{folder}: datasets.load_dataset failed: {error.__cause__ or error}") from error
    if reader := _reader_of(folder):
        _warn_unused(folder, set())
        return DatasetDict({"train": reader(folder, phrase=phrase)})

    readers = {split: (path, _reader_of(path)) for split, path in _split_folders(folder).items()}
    if any(reader for _, reader in readers.values()):
        unknown = [path.name for path, reader in readers.values() if reader is None]
        if unknown:
            raise DatasetError(f"{folder}: {', '.join(unknown)} holds no known format, the other splits do")
        _warn_unused(folder, {path.name for path, _ in readers.values()})
        splits, bad = {}, []
        for split, (path, reader) in readers.items():
            try:
                splits[split] = reader(path, phrase=phrase)
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
        "masks/, or either image folder with a metadata.jsonl in it; Parquet files or metadata.jsonl (what "
        "datasets.load_dataset opens); dataset_dict.json or state.json "
        "(what save_to_disk writes). "
        f"Found: {', '.join(sorted(path.name for path in folder.iterdir())[:20]) or 'nothing'}."
    )


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
            - `"synthetic"`: generated angiography (`synthetic_splits`).
            - A folder in a reader's layout, with or without one sub-folder a split (`train`; `val`, `valid` or
              `validation`; `test`).
            - A folder that `datasets.load_dataset` opens (Parquet, or images with `metadata.jsonl`), or that
              `save_to_disk` wrote.
            - The id of a dataset on the Hub (`user/name`).
        phrase (`str`, *optional*):
            For data that names no phrase itself (a mask folder then has `"blood vessel"` by default).
        synthetic_kwargs:
            Passed to `synthetic_splits`.

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`, as many as there are; data without splits is
        `train`. The rows are not checked beyond what the readers check: see `check_dataset`. Where two sub-folders use
        one `sample_id`, all get the split's name in front (`test_0001`).

    Raises:
        `FileNotFoundError`: If it is neither an existing folder nor the id of a dataset that the Hub opens.
        `DatasetError`: If the folder has no known format (the message lists those), or bad rows.
        `ValueError`: If `synthetic_kwargs` are given for another dataset.
    """
    name = os.fspath(name_or_path)
    if name == "synthetic":
        from .synthetic import synthetic_splits

        if phrase is not None:
            synthetic_kwargs["phrase"] = normalize_phrase(phrase)
        return synthetic_splits(**synthetic_kwargs)
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
