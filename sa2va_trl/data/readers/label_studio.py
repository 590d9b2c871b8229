"""Label Studio's JSON export: polygons and brush strokes of tasks with one picture."""

import logging
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ...media.suffixes import IMAGE_SUFFIXES
from ..rle import brush_mask, check_made_for
from .annotation_files import (
    candidate_files,
    doubled,
    image_file,
    load_json,
    naming,
    one_a_split,
    stated_size,
    text_of,
    warn_left_out,
    warn_unnamed_images,
    with_labels_of_all,
)
from .entries import AnnotatedObject, Entry, Reading, Source
from .polygons import point_pairs, polygon_drawing, polygon_fault


logger = logging.getLogger(__name__)
_DRAWN = {"polygonlabels": "polygonlabels", "polygon": "labels", "brushlabels": "brushlabels", "brush": "labels"}
# What is said of a picture or of an object, and is no object itself.
_WORDS = (
    "choices",
    "textarea",
    "rating",
    "number",
    "datetime",
    "taxonomy",
    "labels",
    "relation",
    "pairwise",
    "ranker",
)
_DEEPEST = 20  # folders of a path that are tried


def is_label_studio_text(head: str) -> bool:
    """Whether a file begins as this format does."""
    return head.startswith("[") and bool(re.search(r'"(annotations|completions|annotation_id)"\s*:', head))


def is_label_studio(folder: Path) -> bool:
    """Whether a folder has this layout: a JSON list of tasks with annotations in it, or in its folders of splits."""
    return bool(candidate_files(folder, ".json", is_label_studio_text))


def find_label_studio(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Read Label Studio's JSON export (https://labelstud.io/guide/export): the regions of `PolygonLabels` and
    `BrushLabels` (or `Labels` over `Polygon` and `Brush`), each an object.

    The picture is the file that `data` names, below the folder: by as much of the path as leads to one, and without
    the eight characters that an upload gets in front. Nothing is fetched. Of several annotations of a task the first
    that was not cancelled counts. Tasks without one have not been looked at and are left out; one with an empty result
    is of an image without objects. Predictions are not read. Other regions (rectangles, ellipses, key points, …) are
    named in the log; an image of which only such are known is left out, since its mask is not.

    Args:
        folder (`Path`): of the dataset.
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`, by split.

    Raises:
        `DatasetError`: a file that is not such an export, or two for one split.
    """
    sources = {}
    for split, file in one_a_split(candidate_files(folder, ".json", is_label_studio_text), folder).items():
        with naming(file):
            sources[split] = _source(folder, file)
    sources = with_labels_of_all(sources)
    warn_unnamed_images(folder, sources)
    return sources


def _tasks(data: Any) -> list[dict]:
    if not isinstance(data, list) or not all(isinstance(task, dict) for task in data):
        raise DatasetError("expected a list of tasks: export as JSON")
    if any("annotation_id" in task and "data" not in task for task in data):
        raise DatasetError("is JSON-MIN, which does not say the size of the picture: export as JSON")
    return data


def _source(folder: Path, file: Path) -> Source:
    tasks = _tasks(load_json(file))
    places = [place for place in dict.fromkeys([file.parent, folder]) for place in (place, place / "images")]
    places = [place for place in places if place.is_dir()]
    entries: list[Entry] = []
    problems: list[BadRow] = []
    left: Counter[str] = Counter()
    without: list[str] = []
    unknown: list[str] = []
    several = predicted = 0
    for number, task in enumerate(tasks):
        name = None
        try:
            predicted += bool(task.get("predictions"))
            valid = _annotations(task)
            if not valid:
                without.append(str(task.get("id", number)))
                continue
            several += len(valid) > 1
            name, path = _picture(task, folder, places)
            result = _result(valid[0])
            if path is None:
                raise DatasetError(f"image: file is missing: nothing of {name!r} leads to a file in {folder}")
            size = _size(result)
        except DatasetError as error:
            problems.append(BadRow(number, None, name, str(error)))
            continue
        others = [region["type"] for region in result if region["type"] not in (*_DRAWN, *_WORDS)]
        left.update(others)
        objects, faults = _objects(result)
        problems += [BadRow(number, None, name, fault) for fault in faults]
        if others and not objects and not faults:
            unknown.append(name)
        else:
            shown = path.relative_to(folder.absolute()).as_posix() if path.is_relative_to(folder.absolute()) else name
            entries.append(Entry(shown, path, tuple(objects), size=size))
    warn_left_out(file, "regions of which no mask is known", left)
    for names, what in ((without, "tasks without an annotation"), (unknown, "images of which no region has a mask")):
        if names:
            logger.warning("%s: left out, %s: %s.", file, what, listed(names))
    if several:
        logger.warning("%s: %d tasks have several annotations, of which the first is read.", file, several)
    if predicted:
        logger.warning("%s: the predictions of %d tasks are not read.", file, predicted)
    labels = tuple(dict.fromkeys(one.label for entry in entries for one in entry.objects))
    return Source(file, entries, labels, problems + doubled(entries))


def _annotations(task: dict) -> list[dict]:
    """The annotations of a task that were not cancelled."""
    found = task.get("annotations", task.get("completions"))
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DatasetError(f"`annotations` must be a list of objects, not {found!r:.40}")
    return [one for one in found if not one.get("was_cancelled")]


def _result(annotation: dict) -> list[dict]:
    result = annotation.get("result")
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        raise DatasetError(f"`result` must be a list of regions, not {result!r:.40}")
    # (A relation between two regions has no value.)
    for region in result:
        if not isinstance(region.get("type"), str):
            raise DatasetError(f"region without a `type`: {region!r:.40}")
        if region["type"] in _DRAWN and not isinstance(region.get("value"), dict):
            raise DatasetError(f"region without a `value`: {region!r:.40}")
    return result


def _size(result: list[dict]) -> tuple[int, int] | None:
    """The size of the picture that the regions are drawn in."""
    found = set()
    for region in result:
        if region["type"] in _DRAWN:
            size = stated_size(region.get("original_width"), region.get("original_height"))
            if size is None:
                raise DatasetError("region without `original_width` and `original_height`")
            found.add(size)
    if len(found) > 1:
        raise DatasetError(f"regions are drawn in pictures of several sizes: {sorted(found)}")
    return found.pop() if found else None


def _picture(task: dict, folder: Path, places: list[Path]) -> tuple[str, Path | None]:
    """What a task calls its picture, and its file."""
    data = task.get("data")
    if not isinstance(data, dict):
        raise DatasetError(f"`data` must be an object, not {data!r:.40}")
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    pictures = [key for key, value in texts.items() if Path(_path_of(value)).suffix.lower() in IMAGE_SUFFIXES]
    key = "image" if "image" in texts else pictures[0] if len(pictures) == 1 else None
    if key is None:
        raise DatasetError(f"`data` must name one picture; its texts are {listed(sorted(texts)) or 'none'}")
    name = text_of(texts[key], f"`data`: {key!r}")
    parts = [part for part in _path_of(name).replace("\\", "/").split("/") if part not in ("", ".")][-_DEEPEST:]
    own = re.sub(r"^[0-9a-f]{8}-", "", parts[-1]) if parts else ""
    for tail in (*(parts[start:] for start in range(len(parts))), [own] * bool(own)):
        if not tail or ".." in tail:
            continue
        try:
            return name, image_file(folder, places, "/".join(tail))
        except DatasetError as error:
            if "keep one" in str(error):
                raise
    return name, None


def _path_of(value: str) -> str:
    """The path in what Label Studio calls a picture: of its own storages, of a cloud's or of a web server's."""
    try:
        url = urlsplit(value)
        query = parse_qs(url.query).get("d")
    except ValueError:  # e.g. half of an IPv6 address
        return value
    if url.path.endswith("/local-files/") and query:
        return query[0]
    return unquote(url.path) if len(url.scheme) > 1 or url.path.startswith("/data/") else value


def _objects(result: list[dict]) -> tuple[list[AnnotatedObject], list[str]]:
    """The objects of an annotation, and all faults."""
    # <Labels> over <Polygon> or <Brush>: the names of a region stand in a result of their own with the same id.
    apart = {str(region.get("id")): region.get("value") for region in result if region["type"] == "labels"}
    objects, faults = [], []
    for number, region in enumerate(result):
        if region["type"] not in _DRAWN:
            continue
        try:
            value, key = region["value"], _DRAWN[region["type"]]
            named = apart.get(str(region.get("id"))) if key == "labels" else value
            names = named.get(key) if isinstance(named, dict) else None
            if not isinstance(names, list) or not names:
                raise DatasetError("has no label")
            for angle in (region.get("image_rotation"), value.get("rotation")):
                if angle not in (None, 0):
                    raise DatasetError(
                        f"is drawn in a picture that is rotated by {angle!r:.20} degrees there: rotate the file, or "
                        "annotate it as it is"
                    )
            if region.get("item_index") not in (None, 0):
                raise DatasetError("is of a task with several pictures: make each a task of its own")
            draw = _drawing(region, value)
            objects += [AnnotatedObject(text_of(name, "a label"), draw) for name in names]
        except DatasetError as error:
            faults.append(f"region {number}: {error}")
    return objects, faults


def _drawing(region: dict, value: dict) -> Callable[[tuple[int, int]], np.ndarray]:
    size = stated_size(region["original_width"], region["original_height"])
    if region["type"].startswith("brush"):
        if value.get("format", "rle") != "rle":
            raise DatasetError(f"`format` must be 'rle', not {value['format']!r:.40}")
        try:
            return partial(draw_brush, bytes(value["rle"]) if isinstance(value.get("rle"), list) else b"", size)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"`rle` must be whole numbers from 0 to 255 ({error})") from error
    if value.get("closed") is False:
        raise DatasetError("is a polygon that was not closed: finish it")
    points = point_pairs(value.get("points"))
    if fault := polygon_fault(points):
        raise DatasetError(f"polygon {fault}")
    return polygon_drawing([[number * size[axis % 2] / 100 for axis, number in enumerate(points)]])


def draw_brush(data: bytes, stated: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """
    The mask of a brush's RLE, see [`~data.rle.brush_mask`].

    Args:
        data (`bytes`): of the RLE.
        stated (`tuple[int, int]`): (width, height) of the picture that it is made for.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        `DatasetError`: with the reason alone: another size, or damaged.
    """
    check_made_for(stated, size)
    return brush_mask(data, size)
