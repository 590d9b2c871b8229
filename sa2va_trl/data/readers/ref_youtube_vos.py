"""
Ref-YouTube-VOS (Seo et al., ECCV 2020) and, in the same layout as ReferFormer's converter leaves it, Ref-DAVIS17
(Khoreva et al., ACCV 2018): frames, pictures of ids, and expressions in a folder of their own.
"""

import logging
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from ...errors import DatasetError
from ...media.pictures import decode_image
from .entries import Reading, Source, refuse_classes
from .expressions import META, Draw, ExpressionSet, clip_rows, frame_source, meta_videos, read_meta, refuse_phrase
from .folders import SPLITS
from .mask_files import mask_state, reason_alone, size_fault


logger = logging.getLogger(__name__)
EXPRESSIONS, IMAGES, MASKS = "meta_expressions", "JPEGImages", "Annotations"
_MOST = 255  # ids of a palette


def _places(folder: Path) -> dict[str, tuple[Path, Path]]:
    """By the split's name here, its expressions and the folder of its pictures."""
    found = {}
    for file in sorted((folder / EXPRESSIONS).glob(f"*/{META}")):
        if (place := folder / file.parent.name) and (place / IMAGES).is_dir():
            found[SPLITS.get(file.parent.name, file.parent.name)] = file, place
    return found


def is_ref_youtube_vos(folder: Path) -> bool:
    """Whether a folder has this layout: `meta_expressions/SPLIT/meta_expressions.json` and `SPLIT/JPEGImages/`."""
    return bool(_places(folder))


def find_ref_youtube_vos(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    The frames of the set, each with an object an expression.

    Args:
        folder (`Path`): as of [`is_ref_youtube_vos`].
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`, by split; without masks where there is no `Annotations/`.

    Raises:
        `ValueError`: classes are asked for.
        `DatasetError`: a file that is not of this format.
    """
    refuse_classes(reading, "ref_youtube_vos")
    return {split: frame_source(_read(*place)) for split, place in _places(folder).items()}


def read_ref_youtube_vos(folder: Path, phrase: str | None = None) -> DatasetDict:
    """
    The clips of the set: a row for each expression of each video, see [`~data.readers.expressions.clip_rows`].

    Of Ref-DAVIS17, `exp_id` modulo 4 is the annotator: the two of the first frame and of the whole video by turns.

    Args:
        folder (`Path`): as of [`is_ref_youtube_vos`].
        phrase (`str`, *optional*): refused, since expressions say what is meant.

    Returns:
        `datasets.DatasetDict` by split.

    Raises:
        `DatasetError`: with every video or expression that cannot be used, or a phrase.
    """
    refuse_phrase(folder, phrase)
    return DatasetDict(clip_rows({split: _read(*place) for split, place in _places(folder).items()}, folder))


def _of_test(file: Path) -> set[str]:
    """
    Videos of `test` that the list of `valid` names too, as it is distributed: 305, beside its own 202. Evaluations on
    the set are of the latter.
    """
    test = file.parent.with_name("test") / META
    if file.parent.name != "valid" or not test.is_file():
        return set()
    both = set.intersection(*(set(meta_videos(own)) for own in (file, test)))
    if both:
        logger.info("%s: left out, %d videos that %s names too.", file, len(both), test)
    return both


def _read(file: Path, place: Path) -> ExpressionSet:
    masks = place / MASKS
    annotated = masks.is_dir()

    def describe(video: str, expression: Mapping, frames: list[str]) -> Draw | None:
        if not annotated:
            return None
        own = expression.get("obj_id")
        if isinstance(own, bool) or not str(own).isdecimal() or not 0 < int(own) <= _MOST:
            raise DatasetError(f"`obj_id` must be a number from 1 to {_MOST}, not {own!r:.40}")
        files = tuple(masks / video / f"{frame}.png" for frame in frames)
        return partial(draw_id, files=files, number=int(own))

    def masked(video: str) -> set[str]:
        folder = masks / video
        return {path.stem for path in folder.glob("*.png")} if folder.is_dir() else set()

    others = _of_test(file)
    videos, problems = read_meta(file, place / IMAGES, describe, masked if annotated else None, others)
    return ExpressionSet(file, videos, problems, annotated)


@lru_cache(maxsize=8)  # the objects of a frame are drawn one after the other
def _ids(file: Path, changed: tuple[int, int]) -> np.ndarray:
    picture = decode_image(file)
    if picture.mode not in ("P", "L"):
        raise DatasetError(f"is a picture of mode {picture.mode}, not of ids in a palette")
    return np.asarray(picture)


def draw_id(size: tuple[int, int], files: tuple[Path, ...], number: int, frame: int) -> np.ndarray:
    """
    An object of a picture of ids.

    Args:
        size (`tuple[int, int]`): (width, height) of the frame.
        files (`tuple[Path, ...]`): of the video's frames, PNG with a palette; 0 is background.
        number (`int`): id of the object.
        frame (`int`): number of the frame.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        `DatasetError`: with the reason alone: it cannot be read, has no ids or another size.
    """
    file = files[frame]
    try:
        ids = _ids(file, mask_state(file))
    except DatasetError as error:
        raise DatasetError(f"mask {file.name} {reason_alone(error, file)}") from error
    if fault := size_fault(ids.shape, size):
        raise DatasetError(f"mask {file.name} {fault}")
    return ids == number
