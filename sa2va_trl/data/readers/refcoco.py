"""
RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: expressions for objects of COCO's images. What their authors distribute as
`refs(unc).p` is a pickle, which is not read; the same list as JSON is.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadRow, DatasetError
from .annotation_files import head_of, image_file, load_json, naming, split_of, stated_size, text_of, warn_left_out
from .coco import annotation_drawing, coco_key, coco_lists
from .entries import AnnotatedObject, Entry, Reading, Source, refuse_classes
from .folders import SPLITS, listed_below


INSTANCES = "instances.json"
_CAPTION = re.compile(r'\{.*?"images"\s*:\s*\[\s*\{[^{}]*"caption"\s*:', re.DOTALL)
# Folders that pictures may lie in, beside the data set's own: as COCO and the tools that read these sets have them.
_IMAGES = ("images", "train2014", "images/train2014", "images/mscoco/images/train2014")


def _refs(folder: Path) -> list[Path]:
    """The lists of expressions that lie beside `instances.json`: `refs.json`, `refs(unc).json`, `grefs(unc).json`."""
    files = sorted(folder.glob("*.json")) if (folder / INSTANCES).is_file() else []
    return [file for file in files if re.fullmatch(r"g?refs(\(\w+\))?", file.stem)]


def _captioned(folder: Path) -> list[Path]:
    """COCO's JSON with a `caption` for each image: as MDETR and ReferFormer convert these sets."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [file for file in files if _CAPTION.match(head_of(file))]


def is_refcoco(folder: Path) -> bool:
    """
    Whether a folder has one of these layouts: `refs.json` (or `refs(unc).json`, `grefs(unc).json`) beside
    `instances.json`, or COCO's JSON whose images have a `caption`.
    """
    return bool(_refs(folder) or _captioned(folder))


def find_refcoco(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    An image for each expression, with the object that it names; of one without a target, with nothing.

    Images lie where `file_name` says, from the folder, its `images/` or `train2014/`.

    Args:
        folder (`Path`): as of [`is_refcoco`].
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`, by split: `train`, `validation`, `test`, `testA`, `testB`, as the expressions say; of
        captions, as the name of the file says.

    Raises:
        `ValueError`: classes are asked for.
        `DatasetError`: a file that is none of these, or two of one split.
    """
    refuse_classes(reading, "refcoco")
    if refs := _refs(folder):
        if len(refs) > 1:
            raise DatasetError(f"{folder} has several lists of expressions: {listed_below(refs, folder)}; keep one")
        return _of_refs(folder, refs[0])
    sources = {}
    for file in _captioned(folder):
        split = split_of(file.stem) or (match := re.search(r"test[AB]", file.stem)) and match.group() or "train"
        if split in sources:
            names = listed_below([sources[split].place, file], folder)
            raise DatasetError(f"{folder} has two annotation files for the split {split!r}, {names}: keep one")
        sources[split] = _of_captions(folder, file)
    return sources


def _folders(folder: Path) -> list[Path]:
    return [place for place in (folder, *(folder / name for name in _IMAGES)) if place.is_dir()]


class _Images:
    """The images of COCO's JSON, by id, each looked for once."""

    def __init__(self, folder: Path, images: list[dict]):
        self.folder, self.folders, self.found = folder, _folders(folder), {}
        self.images = {coco_key(image.get("id"), "`id`"): image for image in images}

    def get(self, key: str) -> tuple[Path, tuple[int, int] | None]:
        """File and stated size of an image, or `DatasetError` with the reason alone."""
        if key not in self.images:
            raise DatasetError(f"image_id {key} is not in {INSTANCES}")
        if key not in self.found:
            image = self.images[key]
            name = text_of(image.get("file_name"), "`file_name`")
            size = stated_size(image.get("width"), image.get("height"))
            self.found[key] = image_file(self.folder, self.folders, name), size
        return self.found[key]


def _of_refs(folder: Path, file: Path) -> dict[str, Source]:
    with naming(folder / INSTANCES):
        images, annotations, _ = coco_lists(load_json(folder / INSTANCES))
        images = _Images(folder, images)
        drawings = {coco_key(own.get("id"), "`id`"): own for own in annotations}
    with naming(file):
        refs = load_json(file)
        if not isinstance(refs, list) or not refs:
            raise DatasetError("expected a list of expressions, at least one")
    entries: dict[str, list[Entry]] = {}
    problems: dict[str, list[BadRow]] = {}
    for number, ref in enumerate(refs):
        split, name = "train", None
        try:
            if not isinstance(ref, dict):
                raise DatasetError(f"is not an object but {ref!r:.40}")
            name = f"ref_id {ref.get('ref_id')}"
            split = text_of(ref.get("split"), "`split`")
            split = SPLITS.get(split, split)
            picture, size = images.get(coco_key(ref.get("image_id"), "`image_id`"))
            draw = _target(ref.get("ann_id"), drawings)
            sentences = ref.get("sentences")
            if not isinstance(sentences, list) or not all(isinstance(own, dict) for own in sentences):
                raise DatasetError("`sentences` must be a list of objects")
            for place, own in enumerate(sentences):
                text = text_of(own.get("sent", own.get("raw")), "`sent`")
                ids = f"{picture.stem}_{ref.get('ref_id', number)}_{own.get('sent_id', place)}{picture.suffix}"
                entries.setdefault(split, []).append(Entry(ids, picture, (AnnotatedObject(text, draw),), size=size))
        except DatasetError as error:
            problems.setdefault(split, []).append(BadRow(number, None, name, str(error)))
    return {
        split: Source(file, entries.get(split, []), (), problems.get(split, []), joins=False)
        for split in dict.fromkeys([*entries, *problems])
    }


def _target(ids: Any, annotations: dict[str, dict]) -> Callable[[tuple[int, int]], np.ndarray]:
    """How all objects of an expression are drawn; `ann_id` is one, a list, or -1 where nothing is meant."""
    keys = [coco_key(own, "`ann_id`") for own in (ids if isinstance(ids, list) else [ids])]
    if missing := [own for own in keys if own != "-1" and own not in annotations]:
        raise DatasetError(f"ann_id {missing[0]} is not in {INSTANCES}")
    found = [annotations[own] for own in keys if own != "-1"]
    if isinstance(ids, list):  # gRefCOCO's, which leaves crowds out
        found = [own for own in found if not own.get("iscrowd")]
    return partial(draw_all, draws=tuple(map(_drawing, found)))


def _drawing(annotation: dict) -> Callable[[tuple[int, int]], np.ndarray]:
    try:
        return annotation_drawing(annotation.get("segmentation"))
    except DatasetError as error:
        raise DatasetError(f"annotation {annotation.get('id')!r:.40}: {error}") from error


def draw_all(size: tuple[int, int], draws: tuple[Callable[[tuple[int, int]], np.ndarray], ...]) -> np.ndarray:
    """
    Several objects in one mask.

    Args:
        size (`tuple[int, int]`): (width, height) of the image.
        draws (`tuple[Callable]`): of each object; none where there is nothing.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        `DatasetError`: as of the objects.
    """
    mask = np.zeros(size[::-1], dtype=bool)
    for draw in draws:
        mask |= draw(size)
    return mask


def _of_captions(folder: Path, file: Path) -> Source:
    with naming(file):
        images, annotations, _ = coco_lists({"categories": [], **_object(load_json(file))})
        found = _Images(folder, images)
    objects: dict[str, list[dict]] = {}
    orphans = {}
    for annotation in annotations:
        key = str(annotation.get("image_id"))
        if key in found.images:
            objects.setdefault(key, []).append(annotation)
        else:
            orphans[f"image_id {key}"] = orphans.get(f"image_id {key}", 0) + 1
    warn_left_out(file, "annotations without an image", orphans)
    entries, problems = [], []
    for number, (key, image) in enumerate(found.images.items()):
        try:
            picture, size = found.get(key)
            text = text_of(image.get("caption"), "`caption`")
            draw = partial(draw_all, draws=tuple(_drawing(own) for own in objects.get(key, ())))
            name = f"{picture.stem}_{key}{picture.suffix}"
            entries.append(Entry(name, picture, (AnnotatedObject(text, draw),), size=size))
        except DatasetError as error:
            problems.append(BadRow(number, None, str(image.get("file_name")), str(error)))
    return Source(file, entries, (), problems, joins=False)


def _object(data: Any) -> dict:
    if not isinstance(data, dict):
        raise DatasetError(f"expected COCO's object of images and annotations, found {type(data).__name__}")
    return data
