"""LabelMe: a JSON an image, with polygons, rectangles, circles and masks."""

import base64
import binascii
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ..masks import decode_mask
from .annotation_files import (
    doubled,
    head_of,
    image_file,
    load_json,
    stated_size,
    text_of,
    warn_left_out,
    warn_unnamed_images,
    with_labels_of_all,
)
from .entries import AnnotatedObject, Entry, Reading, Source
from .folders import SPLITS, listed_below, walk
from .polygons import draw_together, is_number, point_pairs, polygon_drawing, sources_shares_fault


logger = logging.getLogger(__name__)
_UNDRAWN = ("point", "points", "line", "linestrip")  # objects of which no mask is known
_LONGEST = 2**28  # characters of a picture within the JSON: 192 MiB
_LOOKED_AT = 5


def _json_files(folder: Path, depth: int = 2) -> Iterator[Path]:
    """JSON files of a folder, then those of its folders."""
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    yield from (path for path in paths if path.suffix.lower() == ".json" and path.is_file())
    if depth:
        for path in paths:
            if path.is_dir():
                yield from _json_files(path, depth - 1)


def _fits(file: Path) -> bool:
    head = head_of(file)
    return head.startswith("{") and bool(re.search(r'"(shapes"\s*:\s*\[|imageData"\s*:|imagePath"\s*:)', head))


def is_labelme(folder: Path) -> bool:
    """Whether a folder has this layout: JSON files with LabelMe's `shapes`, in it or two folders below."""
    return any(map(_fits, islice(_json_files(folder), _LOOKED_AT)))


def find_labelme(folder: Path, reading: Reading) -> dict[str, Source]:
    r"""
    Read LabelMe's files (https://github.com/wkentaro/labelme): polygons, rectangles, oriented rectangles, circles and
    masks. Shapes of one label and one `group_id` are one object.

    The image is `imagePath`, from the folder of the JSON, with `/` or `\`; else the file of that name beside the JSON;
    else `imageData`. A file without shapes is of an image without objects; an image without a file has not been
    looked at, and is left out. Points and lines are named in the log; an image of which only such shapes are known is
    left out, since its mask is not.

    Args:
        folder (`Path`): of the dataset; files in its folders `train`, `val` and `test` are of these splits.
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`, by split.
    """
    files = [path for path in walk(folder)[0] if path.suffix.lower() == ".json"]
    by_split: dict[str, list[Path]] = {}
    for file in files:
        top = file.relative_to(folder).parts[0]
        by_split.setdefault(SPLITS.get(top, "train") if file.parent != folder else "train", []).append(file)
    sources = {split: _source(folder, own) for split, own in by_split.items()}
    sources = {split: source for split, source in sources.items() if source.entries or source.problems}
    sources = with_labels_of_all(sources)
    warn_unnamed_images(folder, sources)
    return sources


def _source(folder: Path, files: list[Path]) -> Source:
    entries: list[Entry] = []
    problems: list[BadRow] = []
    others: list[Path] = []
    left: Counter[str] = Counter()
    unknown: list[str] = []
    for number, file in enumerate(files):
        shown = file.relative_to(folder).as_posix()
        try:
            data = load_json(file)
        except DatasetError as error:
            problems.append(BadRow(number, None, shown, str(error)))
            continue
        if not isinstance(data, dict) or "shapes" not in data:
            others.append(file)
            continue
        try:
            entry = _entry(folder, file, data)
            shapes = _shapes(data)
        except DatasetError as error:
            problems.append(BadRow(number, None, shown, str(error)))
            continue
        undrawn = [shape["shape_type"] for shape in shapes if shape.get("shape_type") in _UNDRAWN]
        left.update(undrawn)
        objects, faults = _objects(shapes)
        problems += [BadRow(number, None, shown, fault) for fault in faults]
        if undrawn and not objects and not faults:
            unknown.append(shown)
        else:
            entries.append(entry._replace(objects=tuple(objects)))
    if others:
        logger.warning("%s: left out, JSON files without LabelMe's shapes: %s.", folder, listed_below(others, folder))
    warn_left_out(folder, "shapes of which no mask is known", left)
    if unknown:
        logger.warning("%s: left out, images of which no shape has a mask: %s.", folder, listed(unknown))
    size = next((entry.size for entry in entries if entry.size), None)
    if size and (fault := sources_shares_fault((o.draw for entry in entries for o in entry.objects), size)):
        problems.append(BadRow(None, None, None, f"polygons: {fault}"))
    labels = tuple(dict.fromkeys(one.label for entry in entries for one in entry.objects))
    on_disk = [entry for entry in entries if entry.embedded is None]
    return Source(folder, entries, labels, problems + doubled(on_disk))


def _entry(folder: Path, file: Path, data: dict) -> Entry:
    size = stated_size(data.get("imageWidth"), data.get("imageHeight"))
    name = text_of(data.get("imagePath"), "`imagePath`").replace("\\", "/")
    beside = name.rsplit("/", 1)[-1]
    shown = (file.parent.relative_to(folder) / beside).as_posix()  # (`imagePath` may be a path of another machine)
    try:
        return Entry(shown, _find_image(folder, file, name, beside), size=size)
    except DatasetError as error:
        if data.get("imageData") is None:
            raise DatasetError(f"image: {error}") from error
    # What it holds shows when the row is made: thousands of pictures would not fit into memory.
    return Entry(shown, file, size=size, embedded=partial(embedded_image, file))


def _find_image(folder: Path, file: Path, name: str, beside: str) -> Path:
    try:
        return image_file(folder, [file.parent], name)
    except DatasetError:
        if beside == name or beside in ("", "..", "."):
            raise
        try:
            return image_file(folder, [file.parent], beside)
        except DatasetError:
            pass
        raise


def embedded_image(file: Path) -> bytes:
    """
    The picture that a file of LabelMe holds.

    Args:
        file (`Path`): with `imageData`.

    Returns:
        `bytes`, of an image file.

    Raises:
        `DatasetError`: with the reason alone: there is none, it is too large or damaged.
    """
    data = load_json(file)
    text = data.get("imageData") if isinstance(data, dict) else None
    return _decoded(text, "`imageData`")


def _decoded(text: Any, what: str) -> bytes:
    if not isinstance(text, str) or not text:
        raise DatasetError(f"{what} must be a picture in base64, not {text!r:.40}")
    if len(text) > _LONGEST:
        raise DatasetError(
            f"{what} has {len(text):,} characters, the limit is {_LONGEST:,}: save the picture as a file"
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DatasetError(f"{what} is no base64 ({error})") from error


def _shapes(data: dict) -> list[dict]:
    shapes = data["shapes"]
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DatasetError(f"`shapes` must be a list of objects, not {shapes!r:.40}")
    return shapes


def _objects(shapes: list[dict]) -> tuple[list[AnnotatedObject], list[str]]:
    """The objects of a file, parts of one group joined, and all faults."""
    parts: dict[Any, list] = {}
    faults = []
    for number, shape in enumerate(shapes):
        if shape.get("shape_type") in _UNDRAWN:
            continue
        try:
            label, group = text_of(shape.get("label"), "`label`"), shape.get("group_id")
            if not (group is None or type(group) is int):
                raise DatasetError(f"`group_id` must be a whole number or null, not {group!r:.40}")
            key = (label, group) if group is not None else (label, None, number)
            parts.setdefault(key, []).append(_drawing(shape))
        except DatasetError as error:
            faults.append(f"shape {number}: {error}")
    drawings = {key: own[0] if len(own) == 1 else partial(draw_together, tuple(own)) for key, own in parts.items()}
    return [AnnotatedObject(key[0], draw) for key, draw in drawings.items()], faults


def _drawing(shape: dict) -> Callable[[tuple[int, int]], np.ndarray]:
    kind, points = shape.get("shape_type", "polygon"), point_pairs(shape.get("points"))
    if kind in ("polygon", "oriented_rectangle", None):
        return polygon_drawing([points])
    if kind not in ("rectangle", "circle", "mask"):
        raise DatasetError(f"has the shape_type {kind!r:.40}, which is not known")
    if len(points) != 4 or not all(map(is_number, points)):
        raise DatasetError(f"a {kind} has two points, not {points!r:.40}")
    x1, y1, x2, y2 = points
    if kind == "rectangle":
        return polygon_drawing([[x1, y1, x2, y1, x2, y2, x1, y2]])
    try:
        if kind == "circle":
            x1, y1, x2, y2 = map(float, points)
            radius = math.hypot(x2 - x1, y2 - y1)
            if not math.isfinite(x1 + y1 + radius):
                raise OverflowError
            return partial(draw_circle, (x1, y1), radius)
        return partial(draw_png, _decoded(shape.get("mask"), "`mask`"), tuple(int(value) for value in points))
    except (OverflowError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"has a point that is not finite: {points!r:.80}") from error


def draw_circle(centre: tuple[float, float], radius: float, size: tuple[int, int]) -> np.ndarray:
    """
    The mask of a circle: the pixels whose centres are at most a radius away. What lies outside the image is cut off.

    Args:
        centre (`tuple[float, float]`): x and y, in pixels.
        radius (`float`): in pixels.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        `DatasetError`: with the reason alone: its centre is not in the image.
    """
    (x, y), (width, height) = centre, size
    if not (0 <= x <= width and 0 <= y <= height):
        raise DatasetError(f"circle around ({x:g}, {y:g}) leaves the image of {width} x {height} (width x height)")
    across, down = np.arange(width) + 0.5 - x, np.arange(height) + 0.5 - y
    return np.hypot(across[None], down[:, None]) <= radius


def draw_png(data: bytes, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """
    The mask of a shape of the type `mask`.

    Args:
        data (`bytes`): its picture, of the box.
        box (`tuple[int, int, int, int]`): left, top, right and bottom; the last two belong to it.
        size (`tuple[int, int]`): (width, height) of the image.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        `DatasetError`: with the reason alone: the box leaves the image, or the picture is no mask of its size.
    """
    left, top, right, bottom = box
    if not (0 <= left <= right < size[0] and 0 <= top <= bottom < size[1]):
        raise DatasetError(
            f"mask from ({left}, {top}) to ({right}, {bottom}) leaves the image of {size[0]} x {size[1]}"
        )
    own = (right - left + 1, bottom - top + 1)
    try:
        drawn = decode_mask({"bytes": data, "path": None}, own, max_pixels=own[0] * own[1])
    except DatasetError as error:
        raise DatasetError(f"mask {error}") from error
    mask = np.zeros(size[::-1], dtype=bool)
    mask[top : bottom + 1, left : right + 1] = np.asarray(drawn) > 0
    return mask
