"""From files on disk to a `datasets.Dataset` with the columns of `sa2va_trl.data.columns`."""

import hashlib
import io
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, Image, List
from skimage.draw import polygon2mask

from .columns import (
    DEFAULT_PHRASE,
    FEATURES,
    MAX_PIXELS,
    PHRASE_COLUMNS,
    BadRow,
    DatasetError,
    decode_mask,
    is_image_list,
    iter_undecoded,
    open_image,
    quiet_pillow,
    resolve_inside,
)


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
#: Names of a split's sub-folder (or of a split on the Hub), and the name it gets here.
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_EXIF_ORIENTATION = 0x0112
_TOLERANCE = 1.0  # pixels that a polygon may reach over the image's edge: annotation tools round


def normalize_phrase(text: str) -> str:
    """
    Bring a phrase into the form that Sa2VA's fine-tuning data has: no outer white space, no dot at the end, lower
    case.

    Raises:
        `DatasetError`: If nothing is left.
    """
    phrase = text.strip().removesuffix(".").rstrip().lower()
    if not phrase:
        raise DatasetError(f"phrase {text!r} is empty")
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


def _displayed_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """(width, height) of an image as `datasets.Image` decodes it, from the header alone where the format allows."""
    with open_image(path, max_pixels) as image:
        # Pillow turns a TIFF itself. In a PNG the tag may follow the pixels; looking for it then decodes them.
        try:
            turned = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
        except Exception as error:
            raise DatasetError(f"is unreadable ({type(error).__name__}: {error})") from error
        return image.size[::-1] if turned else image.size


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
            than finite numbers, or more than 1 px out of the image; more or fewer masks than phrases; an empty phrase.
            No entry is left out silently.
    """
    folder = Path(folder)
    file, image_folder = folder / "annotations.json", folder / "images"
    for path in (file, image_folder):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: this layout is annotations.json beside images/")
    default = None if phrase is None else normalize_phrase(phrase)

    names, columns, bad, bare_rows, blank = [], {"image": [], "masks": [], "phrases": []}, [], [], []
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
                    path = resolve_inside(image_folder, name)
                    size = _displayed_size(path, max_pixels)
                except DatasetError as error:
                    problems.append(f"image {error}")
            if "mask" in entry:
                objects, bare, faults = _read_objects(entry["mask"], size)
            else:
                objects, bare, faults = [], 0, ["`mask` is missing (an image without any object has an empty list)"]
            problems += faults
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
    for image, mask in (("image", "mask"), ("images", "masks")):
        if (folder / image).is_dir() and (folder / mask).is_dir():
            return folder / image, folder / mask
    return None


def _image_files(folder: Path) -> dict[str, list[Path]]:
    """The image files below a folder by relative path without suffix, hidden files left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in relative.parts):
            found.setdefault(relative.with_suffix("").as_posix(), []).append(path)
    return found


def read_mask_folder(
    folder: str | os.PathLike, phrase: str | None = DEFAULT_PHRASE, max_pixels: int = MAX_PIXELS
) -> Dataset:
    """
    Read images and masks that pair by file name: `image/NAME.*` with `mask/NAME.*`, or `images/` with `masks/`.

    Args:
        folder (`str` or `os.PathLike`):
            Holds the two folders (PNG, JPEG, TIFF or BMP; the suffixes of a pair may differ).
        phrase (`str`, *optional*, defaults to `"blood vessel"`):
            Names the one object of every image.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height of an image or mask.

    Returns:
        `datasets.Dataset` with `image` (the file, not copied), `masks` (one; PNG, mode `L`, 0 and 255), `phrases` and
        `sample_id` (the stem).

    Raises:
        `FileNotFoundError`: If the folder has no such pair of folders.
        `DatasetError`: With every bad file: an image without a mask or a mask without an image; two files of one name;
            a missing, unreadable or too large file; a mask of another size than its image, or not binary ({0, 255} or
            {0, 1} as mode `L`).
    """
    folder = Path(folder)
    pair = _find_pair(folder)
    if pair is None:
        raise FileNotFoundError(f"{folder} has neither image/ and mask/ nor images/ and masks/")
    phrase = normalize_phrase(DEFAULT_PHRASE if phrase is None else phrase)
    roots = {"image": pair[0], "mask": pair[1]}
    files = {kind: _image_files(root) for kind, root in roots.items()}
    if not files["image"] and not files["mask"]:
        raise DatasetError(f"{pair[0]} holds no image ({', '.join(IMAGE_SUFFIXES)})")

    paths, masks, bad = [], [], []
    stems = sorted(files["image"].keys() | files["mask"].keys())
    with quiet_pillow():
        for stem in stems:
            problems, opened = [], {}
            for kind, root in roots.items():
                found = files[kind].get(stem, [])
                if not found:
                    problems.append(f"has no {kind}: expected {root.name}/{stem}.png (or another image suffix)")
                elif len(found) > 1:
                    problems.append(f"has several {kind}s: {', '.join(path.name for path in found)}")
                else:
                    try:
                        opened[kind] = resolve_inside(root, found[0].relative_to(root))
                    except DatasetError as error:
                        problems.append(f"{kind} {error}")
            size = mask = None
            if "image" in opened:
                try:
                    size = _displayed_size(opened["image"], max_pixels)
                except DatasetError as error:
                    problems.append(f"image {error}")
            if "mask" in opened:
                try:
                    mask = decode_mask(opened["mask"], size, max_pixels)
                except DatasetError as error:
                    problems.append(f"mask {files['mask'][stem][0].name} {error}")
            if problems:
                kind = "image" if stem in files["image"] else "mask"
                file = f"{roots[kind].name}/{files[kind][stem][0].relative_to(roots[kind]).as_posix()}"
                bad.append(BadRow(None, None, file, "; ".join(problems)))
            else:
                paths.append(opened["image"])
                masks.append([_png(mask)])
    if bad:
        raise DatasetError(f"{folder}: {len(bad)} of {len(stems)} pairs of image and mask cannot be used:", bad)
    return Dataset.from_dict(
        {
            "image": [str(path) for path in paths],
            "masks": masks,
            "phrases": [[phrase]] * len(paths),
            "sample_id": _sample_ids(stems),
        },
        features=FEATURES,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Any dataset by name
# ---------------------------------------------------------------------------------------------------------------------


def _reader_of(folder: Path) -> Callable[..., Dataset] | None:
    """The reader whose layout a folder has."""
    if (folder / "annotations.json").is_file():
        return read_sa2va_json
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
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
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
    return found


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
        return DatasetDict({"train": reader(folder, phrase=phrase)})

    readers = {split: (path, _reader_of(path)) for split, path in _split_folders(folder).items()}
    if any(reader for _, reader in readers.values()):
        unknown = [path.name for path, reader in readers.values() if reader is None]
        if unknown:
            raise DatasetError(f"{folder}: {', '.join(unknown)} holds no known format, the other splits do")
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
        "masks/; Parquet files or metadata.jsonl (what datasets.load_dataset opens); dataset_dict.json or state.json "
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
    """Masks as mode `L`; a phrase and a sample_id where a prepared dataset has none."""
    features = dataset.features
    if isinstance(features.get("mask"), Image):
        dataset = dataset.cast_column("mask", Image(mode="L"))
    # unlike the cast above, this one rewrites the data
    if is_image_list(features.get("masks")) and features["masks"].feature.mode != "L":
        dataset = dataset.cast_column("masks", List(Image(mode="L")))
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
