"""YOLO's segmentation labels: a text file an image, a line an object, its polygon in shares of the image."""

import logging
import math
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ...media.suffixes import IMAGE_SUFFIXES
from ..masks import polygons_to_mask
from .annotation_files import head_of, image_file, naming, text_of, warn_unnamed_images
from .entries import AnnotatedObject, Entry, Reading, Source
from .folders import SPLITS, walk


logger = logging.getLogger(__name__)
_CANDIDATES = 50  # files of which the first bytes are looked at
_CLASSES = "classes.txt"
_LONGEST = 1_000_000  # bytes of a data.yaml
_OVERSHOOT = 0.1  # beyond 0 and 1: what reaches over the edge is cut off, more is no share


def _yaml_of(folder: Path) -> Path | None:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml") and path.is_file())
    heads = {path: head_of(path) for path in found[:_CANDIDATES]}
    fits = [
        path
        for path, head in heads.items()
        if all(re.search(key, head, re.MULTILINE) for key in (r"^names\s*:", r"^(path|train|val|test|nc)\s*:"))
    ]
    return next((path for path in fits if path.stem in ("data", "dataset")), fits[0] if fits else None)


def is_yolo(folder: Path) -> bool:
    """Whether a folder has this layout: a `data.yaml`, or `classes.txt` beside `images/` and `labels/`."""
    parts = (folder / _CLASSES).is_file() and (folder / "images").is_dir() and (folder / "labels").is_dir()
    return parts or _yaml_of(folder) is not None


def find_yolo(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Read YOLO's segmentation labels: `data.yaml` names classes and the images of each split, and the labels of
    `…/images/…/NAME.png` are `…/labels/…/NAME.txt` (or beside it where no folder is called `images`).

    A line is `class x1 y1 x2 y2 …` in shares of the image. A ring that comes back to a point it has been at is several
    parts, as COCO converters join them, see [`draw_ring`]. An image without labels is a negative.

    Args:
        folder (`Path`): of the dataset.
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`, by split.

    Raises:
        `DatasetError`: `data.yaml` cannot be used.
    """
    folder = folder.resolve()  # `..` is looked for in what it becomes
    file = _yaml_of(folder) or folder / _CLASSES
    with naming(file):
        names, splits = _from_classes(folder) if file.name == _CLASSES else _from_yaml(folder, file)
    sources = {split: _source(folder, file, paths, names) for split, paths in splits.items()}
    _warn_unused_labels(folder, sources)
    warn_unnamed_images(folder, sources)
    return sources


def _from_classes(folder: Path) -> tuple[dict[int, str], dict[str, list[Path]]]:
    try:
        lines = (folder / _CLASSES).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot be read ({error})") from error
    names = {number: text_of(line, f"line {number + 1}") for number, line in enumerate(lines) if line.strip()}
    own = {split: folder / "images" / name for name, split in SPLITS.items() if (folder / "images" / name).is_dir()}
    return names, {split: _images_below(place) for split, place in (own or {"train": folder / "images"}).items()}


def _images_below(place: Path) -> list[Path]:
    return [path for path in walk(place)[0] if path.suffix.lower() in IMAGE_SUFFIXES]


class _Plain(yaml.SafeLoader):
    """Without aliases: a short file would be a list of any length."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*NAME): write out what they stand for")
        return super().compose_node(parent, index)


def _from_yaml(folder: Path, file: Path) -> tuple[dict[int, str], dict[str, list[Path]]]:
    if file.stat().st_size > _LONGEST:
        raise DatasetError(f"has {file.stat().st_size:,} bytes, too many for a list of names")
    try:
        data = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=_Plain)
    except Exception as error:  # odd scalars raise nearly anything: ValueError, OverflowError, RecursionError ...
        raise DatasetError(f"invalid YAML ({error})") from error
    if not isinstance(data, dict):
        raise DatasetError(f"expected names and folders, found {type(data).__name__}")
    if data.get("kpt_shape") is not None:
        raise DatasetError("has keypoints (`kpt_shape`), whose labels are no polygons: export segmentation labels")
    splits = {}
    for key in ("train", "val", "test"):
        value = data.get(key)
        if value is not None and value != "":
            places = value if isinstance(value, list) else [value]
            splits[SPLITS[key]] = [path for place in places for path in _images(folder, data.get("path"), key, place)]
    if not splits:
        raise DatasetError("names no images: it needs `train:`, `val:` or `test:`")
    return _names(data["names"] if "names" in data else None), splits


def _names(value: Any) -> dict[int, str]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        raise DatasetError(f"`names` must be a list or numbers with names, not {value!r:.40}")
    names: dict[int, str] = {}
    for key, name in value.items():
        if isinstance(key, bool) or not re.fullmatch(r"\d{1,9}", str(key)):
            raise DatasetError(f"`names`: {key!r:.40} is not the number of a class")
        if type(name) in (int, float):
            name = str(name)
        names[int(key)] = text_of(name, f"the name of class {key} (in quotes)")
    return names


def _images(folder: Path, base: Any, key: str, value: Any) -> list[Path]:
    """The images that an entry of data.yaml names, a folder or a list in a text file, wherever it counts from."""
    value = text_of(value, f"`{key}`").replace("\\", "/")
    bases = [folder, *([folder / base] if isinstance(base, str) and base else [])]
    # (Roboflow writes `../train/images` and means `train/images`.)
    tried = [os.path.normpath(b / v) for b in reversed(bases) for v in (value, re.sub(r"^(\.\./)+", "", value))]
    inside = [path for path in map(Path, tried) if path.is_relative_to(folder)]
    if place := next((path for path in inside if os.path.isdir(path)), None):
        return _images_below(place)
    if listing := next((path for path in inside if path.suffix == ".txt" and os.path.isfile(path)), None):
        return _listed_images(folder, listing)
    raise DatasetError(
        f"`{key}: {value}` is no folder in {folder} and no list of images: correct it, or delete the line"
    )


def _listed_images(folder: Path, listing: Path) -> list[Path]:
    found, bad = [], []
    try:
        lines = listing.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{listing.name} cannot be read ({error})") from error
    for number, line in enumerate(lines):
        if line.strip():
            try:
                name = text_of(line, "an image")
                found.append(image_file(folder, dict.fromkeys([listing.parent, folder]), name))
            except DatasetError as error:
                bad.append(BadRow(None, None, listing.name, f"line {number + 1}: {error}"))
    if bad:
        raise DatasetError(f"{len(bad)} of {len(lines)} images cannot be found:", bad)
    return found


def _labels_of(folder: Path, image: Path) -> Path:
    parts = list(image.relative_to(folder).with_suffix(".txt").parts)
    folders = [number for number, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return folder.joinpath(*parts)


def _source(folder: Path, file: Path, images: list[Path], names: dict[int, str]) -> Source:
    entries, problems = [], []
    files = [_labels_of(folder, image) for image in images]
    counts = Counter(files)
    if files and not any(labels.is_file() for labels in files):
        shown = files[0].relative_to(folder).as_posix()
        problems.append(
            BadRow(None, None, shown, "no image has a file of labels, and this is where the first one's is")
        )
    for number, (image, labels) in enumerate(zip(images, files, strict=True)):
        name, shown = image.relative_to(folder).as_posix(), labels.relative_to(folder).as_posix()
        objects: list[AnnotatedObject] = []
        try:
            if counts[labels] > 1:
                raise DatasetError(f"{counts[labels]} images have the labels {shown}: keep one of them")
            if labels.is_file():
                objects, faults = _objects(labels.read_text(encoding="utf-8-sig"), names)
                problems += [BadRow(None, None, shown, fault) for fault in faults]
        except UnicodeDecodeError as error:
            problems.append(BadRow(None, None, shown, f"not UTF-8 text ({error})"))
        except OSError as error:
            problems.append(BadRow(None, None, shown, f"cannot be read ({error.strerror})"))
        except DatasetError as error:
            problems.append(BadRow(number, None, name, str(error)))
        entries.append(Entry(name, image, tuple(objects)))
    return Source(file, entries, tuple(dict.fromkeys(names[key] for key in sorted(names))), problems)


def _objects(text: str, names: dict[int, str]) -> tuple[list[AnnotatedObject], list[str]]:
    objects, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        try:
            objects.append(_object(words, names))
        except DatasetError as error:
            faults.append(f"line {number}: {error}")
    return objects, faults


def _object(words: list[str], names: dict[int, str]) -> AnnotatedObject:
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise DatasetError(f"holds what is not a number ({error!s:.80})") from error
    if not all(map(math.isfinite, numbers)):
        raise DatasetError("holds a number that is not finite")
    key, values = numbers[0], numbers[1:]
    if key not in names:
        there = f"{min(names)} to {max(names)}" if names else "none"
        raise DatasetError(f"data has no class {key:g}; it has {there}")
    if len(values) == 4:
        raise DatasetError("is a box (class, x, y, width, height), not a polygon: export segmentation labels")
    if len(values) % 2 or len(values) < 6:
        raise DatasetError(f"has {len(values)} coordinates; a polygon is `class x1 y1 x2 y2 x3 y3 …`")
    if min(values) < -_OVERSHOOT or max(values) > 1 + _OVERSHOOT:
        raise DatasetError(
            f"has coordinates from {min(values):g} to {max(values):g}; they must be shares of the image, from 0 to 1: "
            "divide x by its width and y by its height"
        )
    return AnnotatedObject(names[int(key)], partial(draw_ring, np.asarray(values).reshape(-1, 2)))


def _parts(ring: np.ndarray) -> list[np.ndarray]:
    """The simple rings that a ring is made of: each time that it is where it has been, what lies between is one."""
    parts, path, places = [], [], {}
    for point in map(tuple, ring.tolist()):
        if point in places:
            start = places[point]
            parts.append(path[start:])
            for left in path[start + 1 :]:
                del places[left]
            path = path[: start + 1]
        else:
            places[point] = len(path)
            path.append(point)
    parts.append(path)
    return [np.asarray(part) for part in parts if len(part) >= 3]


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2  # Gauss's formula, with the sign of the direction


def draw_ring(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    The mask of a polygon that may be several, joined by lines that lead there and back (`merge_multi_segment` of
    Ultralytics' converter of COCO). The parts are joined by OR; one that lies within what is drawn, and runs the other
    way round than the largest, is a hole. What lies outside the image is cut off.

    Args:
        ring (`np.ndarray` of shape `(points, 2)`): x and y, in shares of the image.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.
    """
    parts = sorted(_parts(ring * size), key=lambda part: -abs(_area(part)))
    mask = np.zeros(size[::-1], dtype=bool)
    for part in parts:
        own = polygons_to_mask([part.ravel()], size)
        if _area(part) * _area(parts[0]) < 0 and not (own & ~mask).any():
            mask &= ~own
        else:
            mask |= own
    return mask


def _warn_unused_labels(folder: Path, sources: dict[str, Source]) -> None:
    used = {os.path.realpath(_labels_of(folder, entry.image)) for s in sources.values() for entry in s.entries}
    places = {_labels_of(folder, entry.image).parent for s in sources.values() for entry in s.entries}
    left = [
        path
        for place in sorted(places)
        if place.is_dir()
        for path in sorted(place.glob("*.txt"))
        if path.name != _CLASSES and os.path.realpath(path) not in used
    ]
    if left:
        names = listed([os.path.relpath(path, folder) for path in left])
        logger.warning("%s: left out, labels without an image: %s.", folder, names)
