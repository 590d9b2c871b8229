"""COCO's instances: one JSON of images, annotations and categories; polygons and RLE."""

import logging
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadRow, DatasetError
from ..rle import check_made_for, coco_counts, runs_mask
from .annotation_files import (
    candidate_files,
    doubled,
    image_file,
    load_json,
    naming,
    one_a_split,
    split_of,
    stated_size,
    text_of,
    warn_left_out,
    warn_unnamed_images,
)
from .entries import AnnotatedObject, Entry, Reading, Source
from .folders import listed_below
from .polygons import is_number, polygon_drawing, sources_shares_fault


logger = logging.getLogger(__name__)


def is_coco_text(head: str) -> bool:
    """Whether a file begins as this format does."""
    return head.startswith("{") and bool(re.search(r'"(images|annotations|categories)"\s*:\s*\[', head))


def is_coco(folder: Path) -> bool:
    """Whether a folder has this layout: a JSON with COCO's lists, also in `annotations/` or a folder of a split."""
    return bool(candidate_files(folder, ".json", is_coco_text))


def find_coco(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Read COCO's instances: polygons, and RLE as lists or compressed (`iscrowd` or not). An annotation is an object.

    Images lie where `file_name` says, from the folder of the JSON, the dataset's, `images/` or the split's
    (`train2017/`, `images/train/`). An image without annotations is a negative; annotations without an image are named
    in the log. With several files, `instances_*.json` are read, one a split, by the name of file or folder.

    Args:
        folder (`Path`): of the dataset.
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`, by split.

    Raises:
        `DatasetError`: a file that is not COCO's, or two for one split.
    """
    files = candidate_files(folder, ".json", is_coco_text)
    instances = [file for file in files if file.name.startswith("instances")] or files
    if left := [file for file in files if file not in instances]:
        logger.warning("%s: left out, beside instances_*.json: %s.", folder, listed_below(left, folder))
    sources = {}
    for split, file in one_a_split(instances, folder).items():
        with naming(file):
            sources[split] = _source(folder, file, _image_folders(folder, split, file))
    warn_unnamed_images(folder, sources)
    return sources


def _image_folders(folder: Path, split: str, file: Path) -> list[Path]:
    subset = file.stem.removeprefix("instances_")
    below = [p for place in (folder, folder / "images") if place.is_dir() for p in sorted(place.iterdir())]
    own = [path for path in below if path.name == subset] or [path for path in below if split_of(path.name) == split]
    places = [file.parent, file.parent / "images", folder, folder / "images", *own]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def coco_key(value: Any, what: str) -> str:
    """
    An id as text: some tools write the same one as a number here and as text there.

    Args:
        value: as it came.
        what (`str`): it is, for the message.

    Returns:
        `str`.

    Raises:
        `DatasetError`: with the reason alone: it is neither a whole number nor a text.
    """
    if isinstance(value, str) or (is_number(value) and value == value // 1):
        return str(value if isinstance(value, str) else int(value))
    raise DatasetError(f"{what} must be a number or a text, not {value!r:.40}")


def coco_lists(data: Any) -> list[list]:
    """
    The three lists of COCO's JSON.

    Args:
        data: what the file holds.

    Returns:
        `list[list[dict]]`: images, annotations and categories.

    Raises:
        `DatasetError`: with the reason alone: it is something else.
    """
    if not isinstance(data, dict):
        raise DatasetError(
            f"expected COCO's object of images, annotations and categories, found {type(data).__name__}"
        )
    for name in ("images", "annotations", "categories"):
        if not isinstance(data.get(name), list):
            raise DatasetError(
                f"`{name}` must be a list, not {data.get(name)!r:.40}: is this COCO's instances format?"
            )
        if odd := [value for value in data[name] if not isinstance(value, dict)]:
            raise DatasetError(f"`{name}` holds {odd[0]!r:.40}, which is not an object")
    return [data[name] for name in ("images", "annotations", "categories")]


def _labels(categories: list[dict], used: set) -> dict[str, str]:
    """The names of the classes by their ids, without those that only stand for others (Roboflow's first one)."""
    names: dict[str, str] = {}
    for number, category in enumerate(categories):
        try:
            key, name = coco_key(category.get("id"), "`id`"), text_of(category.get("name"), "`name`")
        except DatasetError as error:
            raise DatasetError(f"category {number}: {error}") from error
        if names.setdefault(key, name) != name:
            raise DatasetError(f"category {number}: the id {key} is that of {names[key]!r} as well as of {name!r}")
    above = {c.get("supercategory") for c in categories if isinstance(c.get("supercategory"), str)}
    own = {c["name"].strip() for c in categories if c.get("supercategory") == c["name"]}
    return {key: name for key, name in names.items() if key in used or name not in above - own}


def _source(folder: Path, file: Path, folders: list[Path]) -> Source:
    images, annotations, categories = coco_lists(load_json(file))
    problems: list[BadRow] = []
    entries: dict[str, Entry] = {}
    refused = set()  # images with a fault of their own, whose annotations have an image nevertheless
    for number, image in enumerate(images):
        key = name = None
        try:
            key = coco_key(image.get("id"), "`id`")
            name = text_of(image.get("file_name"), "`file_name`")
            if key in entries or key in refused:
                raise DatasetError(f"the id {key} is that of another image as well")
            size = stated_size(image.get("width"), image.get("height"))
            entries[key] = Entry(name.replace("\\", "/"), image_file(folder, folders, name), size=size)
        except DatasetError as error:
            refused.add(key)
            problems.append(BadRow(number, None, name, f"image: {error}"))

    objects: dict[str, list[AnnotatedObject]] = {key: [] for key in entries}
    labels = _labels(categories, {str(annotation.get("category_id")) for annotation in annotations})
    orphans: Counter[str] = Counter()
    for number, annotation in enumerate(annotations):
        key = None
        try:
            key = coco_key(annotation.get("image_id"), "`image_id`")
            if key not in entries:
                orphans.update([f"image_id {key}"] * (key not in refused))
                continue
            category = coco_key(annotation.get("category_id"), "`category_id`")
            if category not in labels:
                raise DatasetError(f"there is no category {category!r:.40}")
            objects[key].append(AnnotatedObject(labels[category], annotation_drawing(annotation.get("segmentation"))))
        except DatasetError as error:
            name = entries[key].name if key in entries else None
            problems.append(BadRow(number, None, name, f"annotation (id {annotation.get('id')!r:.40}): {error}"))
    warn_left_out(file, "annotations without an image", orphans)

    filled = [entry._replace(objects=tuple(objects[key])) for key, entry in entries.items()]
    size = next((entry.size for entry in filled if entry.size), None)
    if size and (fault := sources_shares_fault((o.draw for entry in filled for o in entry.objects), size)):
        problems.append(BadRow(None, None, file.name, f"annotations: {fault}"))
    return Source(file, filled, tuple(dict.fromkeys(labels.values())), problems + doubled(filled))


def annotation_drawing(segmentation: Any) -> Callable[[tuple[int, int]], np.ndarray]:
    """
    How an annotation is drawn.

    Args:
        segmentation: what COCO's JSON has of it: polygons, or RLE as a list or compressed.

    Returns:
        `Callable`: as `draw` of [`~data.readers.entries.AnnotatedObject`].

    Raises:
        `DatasetError`: with the reason alone: it is neither.
    """
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(size, list) or len(size) != 2 or (stated := stated_size(size[1], size[0])) is None:
            raise DatasetError(f"RLE needs its size, [height, width], not {size!r:.40}")
        if isinstance(counts, str):
            # (Bytes that somebody has written as Python shows them.)
            shown = re.fullmatch(r"b(['\"])(.*)\1", counts)
            counts = shown[2].replace("\\\\", "\\") if shown else counts
            return partial(draw_rle, counts.encode("utf-8", "surrogatepass"), stated)
        if not isinstance(counts, list) or not all(type(count) is int and 0 <= count < 2**32 for count in counts):
            raise DatasetError(f"RLE needs `counts`, whole numbers or pycocotools' string, not {counts!r:.40}")
        return partial(draw_rle, np.asarray(counts, dtype=np.int64), stated)
    if not segmentation:
        raise DatasetError("has a box and no mask: segment it, or delete the annotation")
    if isinstance(segmentation, list) and not any(isinstance(part, list) for part in segmentation):
        segmentation = [segmentation]  # one polygon without a list around it
    return polygon_drawing(segmentation)


def draw_rle(counts: bytes | np.ndarray, stated: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """
    The mask of an RLE of COCO.

    Args:
        counts (`bytes` or `np.ndarray`): compressed, or the lengths of the runs, see [`~data.rle`].
        stated (`tuple[int, int]`): (width, height) that it is made for.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        `DatasetError`: with the reason alone: another size, or damaged.
    """
    check_made_for(stated, size, "RLE ")
    return runs_mask(coco_counts(counts) if isinstance(counts, bytes) else counts, size, columns=True)
