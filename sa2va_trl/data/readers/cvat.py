"""CVAT for images 1.1: an XML of images with polygons and masks."""

import logging
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ..rle import runs_mask
from .annotation_files import (
    candidate_files,
    doubled,
    image_file,
    naming,
    one_a_split,
    split_of,
    stated_size,
    text_of,
    warn_left_out,
    warn_unnamed_images,
)
from .entries import AnnotatedObject, Entry, Reading, Source
from .polygons import draw_together, polygon_drawing, sources_shares_fault


logger = logging.getLogger(__name__)
_DRAWN = ("polygon", "mask")
_UNDRAWN = ("box", "ellipse", "polyline", "points", "cuboid", "skeleton")  # objects of which no mask is known


def is_cvat_text(head: str) -> bool:
    """Whether a file begins as this format does."""
    return bool(re.search(r"<annotations[\s>/]", head))


def is_cvat(folder: Path) -> bool:
    """Whether a folder has this layout: an XML with CVAT's `<annotations>` in it, or in its folders of splits."""
    return bool(candidate_files(folder, ".xml", is_cvat_text))


def find_cvat(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Read "CVAT for images 1.1" (https://docs.cvat.ai/docs/other/xml_format): polygons, and masks, whose RLE runs along
    the rows of their box. Shapes of one class and one group are one object.

    Images lie in `images/`, with or without a folder of their subset, or beside the XML. A subset that is called after
    a split is that split. Tags, boxes, lines, points, ellipses, cuboids and skeletons are named in the log; an image
    of which only such objects are known is left out, since its mask is not.

    Args:
        folder (`Path`): of the dataset.
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`, by split.

    Raises:
        `DatasetError`: a file that is not CVAT's for images, or two for one split.
    """
    sources: dict[str, Source] = {}
    for split, file in one_a_split(candidate_files(folder, ".xml", is_cvat_text), folder).items():
        with naming(file):
            found = _sources(folder, file, split)
        if twice := found.keys() & sources.keys():
            raise DatasetError(f"{folder} has two annotation files for the split {min(twice)!r}: keep one")
        sources.update(found)
    warn_unnamed_images(folder, sources)
    return sources


class _NoDoctype(ET.TreeBuilder):
    """Refuses declarations before one is read: CVAT writes none, and entities may be as large as one likes."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise DatasetError("declares a document type, which CVAT does not write: delete <!DOCTYPE …>")


def _parse(file: Path) -> ET.Element:
    try:
        return ET.parse(file, ET.XMLParser(target=_NoDoctype())).getroot()
    except DatasetError:
        raise
    except ET.ParseError as error:
        raise DatasetError(f"invalid XML ({error})") from error
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror})") from error
    except (ValueError, LookupError) as error:  # an encoding that there is not
        raise DatasetError(f"invalid XML ({error})") from error


def _sources(folder: Path, file: Path, split: str) -> dict[str, Source]:
    root = _parse(file)
    if root.tag != "annotations":
        raise DatasetError(f"expected CVAT's <annotations>, found <{root.tag:.40}>")
    if root.find("track") is not None:
        raise DatasetError("holds tracks of a video: export it as 'CVAT for images 1.1'")
    if root.find("image") is None:
        raise DatasetError("holds no <image>: export it as 'CVAT for images 1.1'")
    labels = [
        label.findtext("name", "").strip()
        for label in root.iterfind("meta//labels/label")
        if label.findtext("type", "any") in ("any", *_DRAWN) and label.find("parent") is None
    ]
    entries: dict[str, list[Entry]] = {}
    problems: dict[str, list[BadRow]] = {}
    left: Counter[str] = Counter()
    unknown: list[str] = []
    for number, image in enumerate(root.iterfind("image")):
        left.update(f"<{shape.tag}>" for shape in image if shape.tag not in _DRAWN)
        own = split_of(image.get("subset", "")) or split
        entries.setdefault(own, [])
        faults = problems.setdefault(own, [])
        try:
            name = text_of(image.get("name"), "`name`")
            path = image_file(folder, _image_folders(folder, file, image.get("subset", "")), name)
            size = stated_size(_whole(image, "width"), _whole(image, "height"))
        except DatasetError as error:
            faults.append(BadRow(number, None, image.get("name"), f"image: {error}"))
            continue
        objects, bad = _objects(image)
        faults += [BadRow(number, None, name, fault) for fault in bad]
        if not objects and not bad and any(shape.tag in _UNDRAWN for shape in image):
            unknown.append(name)
            continue
        labels += [shape.label for shape in objects if shape.label not in labels]
        entries[own].append(Entry(name.replace("\\", "/"), path, tuple(objects), size=size))
    warn_left_out(file, "of what no mask is known", left)
    if unknown:
        logger.warning("%s: left out, images of which no object has a mask: %s.", file, listed(unknown))
    sources = {}
    for own, found in entries.items():
        if found and found[0].size:
            draws = (shape.draw for entry in found for shape in entry.objects)
            if fault := sources_shares_fault(draws, found[0].size):
                problems[own].append(BadRow(None, None, file.name, f"polygons: {fault}"))
        sources[own] = Source(file, found, tuple(dict.fromkeys(filter(None, labels))), problems[own] + doubled(found))
    return sources


def _image_folders(folder: Path, file: Path, subset: str) -> list[Path]:
    own = [place / subset for place in (folder / "images", folder) if re.fullmatch(r"\w[\w .-]*", subset)]
    places = [folder / "images", file.parent / "images", *own, file.parent, folder]
    return [place for place in dict.fromkeys(places) if os.path.isdir(place)]  # (is_dir() raises at a long name)


def _whole(element: ET.Element, name: str) -> int:
    try:
        return int(element.get(name, ""))
    except ValueError as error:
        raise DatasetError(f"`{name}` must be a whole number, not {element.get(name)!r:.40}") from error


def _objects(image: ET.Element) -> tuple[list[AnnotatedObject], list[str]]:
    """The objects of an image, parts of one group joined, and all faults."""
    parts: dict[Any, list] = {}
    faults = []
    for number, shape in enumerate(image):
        if shape.tag in _DRAWN:
            try:
                label = text_of(shape.get("label"), "`label`")
                group = shape.get("group_id", "0")
                key = (label, group) if group != "0" else (label, None, number)
                parts.setdefault(key, []).append(_drawing(shape))
            except DatasetError as error:
                faults.append(f"<{shape.tag}> {number}: {error}")
    drawings = {key: own[0] if len(own) == 1 else partial(draw_together, tuple(own)) for key, own in parts.items()}
    return [AnnotatedObject(key[0], draw) for key, draw in drawings.items()], faults


def _drawing(shape: ET.Element) -> Callable[[tuple[int, int]], np.ndarray]:
    if shape.tag == "mask":
        try:
            counts = np.array([int(word) for word in shape.get("rle", "").split(",")], dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise DatasetError(f"`rle` must be whole numbers, not {shape.get('rle')!r:.40}") from error
        return partial(draw_box, counts, tuple(_whole(shape, name) for name in ("left", "top", "width", "height")))
    points = [pair.split(",") for pair in shape.get("points", "").split(";")]
    try:
        return polygon_drawing([[float(value) for x, y in points for value in (x, y)]])
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"`points` must be x,y;x,y;…, not {shape.get('points')!r:.40}") from error


def draw_box(counts: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """
    The mask of an RLE of CVAT.

    Args:
        counts (`np.ndarray`): lengths of runs along the rows of the box, the first of background.
        box (`tuple[int, int, int, int]`): left, top, width and height in pixels.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        `DatasetError`: with the reason alone: the box leaves the image, or it has other pixels.
    """
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[0] or top + height > size[1]:
        raise DatasetError(
            f"its box (left {left}, top {top}, {width} x {height}) leaves the image of {size[0]} x {size[1]}"
        )
    mask = np.zeros(size[::-1], dtype=bool)
    mask[top : top + height, left : left + width] = runs_mask(counts, (width, height), columns=False)
    return mask
