"""MeViS: videos as folders of frames, expressions, and masks as run lengths in one JSON (Ding et al., ICCV 2023)."""

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from ...errors import BadRow, DatasetError
from ..rle import check_made_for, coco_counts, runs_mask
from .annotation_files import naming, stated_size
from .entries import Reading, Source, refuse_classes
from .expressions import META, Draw, ExpressionSet, clip_rows, frame_source, read_meta, refuse_phrase
from .folders import SPLITS
from .large_json import Place, members, value_at


MASKS, IMAGES = "mask_dict.json", "JPEGImages"


def _places(folder: Path) -> dict[str, Path]:
    """The folders of splits, by the split's name here; the folder itself is `train`."""
    if _is_split(folder):
        return {"train": folder}
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return {SPLITS.get(path.name, path.name): path for path in below if _is_split(path)}


def _is_split(place: Path) -> bool:
    return (place / META).is_file() and (place / IMAGES).is_dir()


def is_mevis(folder: Path) -> bool:
    """
    Whether a folder has this layout: `meta_expressions.json` beside `JPEGImages/`, in it or in its folders (`train`,
    `valid_u`, `valid`).
    """
    return bool(_places(folder))


def find_mevis(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    The frames of MeViS, each with an object an expression: all that the expression names, in one mask.

    Args:
        folder (`Path`): as of [`is_mevis`].
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`, by split; without masks where there is no `mask_dict.json`.

    Raises:
        `ValueError`: classes are asked for.
        `DatasetError`: a file that is not MeViS's.
    """
    refuse_classes(reading, "mevis")
    return {split: frame_source(_read(place)) for split, place in _places(folder).items()}


def read_mevis(folder: Path, phrase: str | None = None) -> DatasetDict:
    """
    The clips of MeViS: a row for each expression of each video, see [`~data.readers.expressions.clip_rows`].

    Args:
        folder (`Path`): as of [`is_mevis`].
        phrase (`str`, *optional*): refused, since expressions say what is meant.

    Returns:
        `datasets.DatasetDict` by split.

    Raises:
        `DatasetError`: with every video or expression that cannot be used, or a phrase.
    """
    refuse_phrase(folder, phrase)
    return DatasetDict(clip_rows({split: _read(place) for split, place in _places(folder).items()}, folder))


def _read(place: Path) -> ExpressionSet:
    masks, bad = place / MASKS, []
    index = _index(masks, bad) if masks.is_file() else None

    def describe(video: str, expression: Mapping, frames: list[str]) -> Draw | None:
        if index is None:
            return None
        ids = expression.get("anno_id")
        ids = ids if isinstance(ids, list) else [ids]
        if not ids or not all(isinstance(own, int | str) and not isinstance(own, bool) for own in ids):
            raise DatasetError(f"`anno_id` must be a list of numbers, not {expression.get('anno_id')!r:.40}")
        if missing := [own for own in ids if str(own) not in index]:
            raise DatasetError(f"anno_id {missing[0]} is not in {MASKS}")
        found = [index[str(own)] for own in ids]
        if wrong := [(own, count) for own, (_, count) in zip(ids, found, strict=True) if count != len(frames)]:
            raise DatasetError(f"anno_id {wrong[0][0]} has masks of {wrong[0][1]} frames, the video {len(frames)}")
        return partial(draw_annotations, file=masks, places=tuple(own for own, _ in found))

    videos, problems = read_meta(place / META, place / IMAGES, describe)
    return ExpressionSet(place / META, videos, bad + problems, index is not None)


def _index(file: Path, bad: list[BadRow]) -> dict[str, tuple[Place, int]]:
    """Where the masks of each annotation stand, and of how many frames they are; what is wrong goes to `bad`."""
    found = {}
    with naming(file):
        for number, (name, value, place) in enumerate(members(file)):
            try:
                if not isinstance(value, list):
                    raise DatasetError(f"must be a list of a mask a frame, not {value!r:.40}")
                for frame, own in enumerate(value):
                    try:
                        _counts(own)
                    except DatasetError as error:
                        raise DatasetError(f"frame {frame}: {error}") from error
                found[name] = place, len(value)
            except DatasetError as error:
                bad.append(BadRow(number, None, file.name, f"annotation {name}: {error}"))
    return found


def _counts(own: Any) -> tuple[tuple[int, int], Any] | None:
    """The size that the mask of a frame is made for, and its runs; `None` where it is empty."""
    if own is None:
        return None
    size = own.get("size") if isinstance(own, dict) else None
    if not isinstance(size, list) or len(size) != 2 or (stated := stated_size(size[1], size[0])) is None:
        raise DatasetError(f"must be null, or RLE with size and counts, not {own!r:.40}")
    counts = own.get("counts")
    if not isinstance(counts, str) and not (isinstance(counts, list) and all(type(n) is int for n in counts)):
        raise DatasetError(f"RLE needs `counts`, whole numbers or pycocotools' string, not {counts!r:.40}")
    return stated, counts


@lru_cache(maxsize=32)  # the frames of an annotation are drawn one after the other
def _annotation(file: Path, place: Place, changed: int) -> list:
    return value_at(file, place)


def draw_annotations(size: tuple[int, int], file: Path, places: tuple[Place, ...], frame: int) -> np.ndarray:
    """
    All annotations that an expression names, in one frame.

    Args:
        size (`tuple[int, int]`): (width, height) of the frame.
        file (`Path`): `mask_dict.json`.
        places (`tuple[Place, ...]`): of the annotations in it.
        frame (`int`): number of the frame.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        `DatasetError`: with the reason alone: made for another size, or damaged.
    """
    mask, changed = np.zeros(size[::-1], dtype=bool), file.stat().st_mtime_ns
    for place in places:
        if (found := _counts(_annotation(file, place, changed)[frame])) is not None:
            stated, counts = found
            check_made_for(stated, size, f"frame {frame}: RLE ")
            mask |= runs_mask(coco_counts(counts) if isinstance(counts, str) else counts, size, columns=True)
    return mask
