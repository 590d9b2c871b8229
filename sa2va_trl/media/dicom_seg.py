"""DICOM segmentations (SEG objects): which frames of which pictures they speak of, and the values that they store."""

import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import DatasetError
from .dicom import SEGMENTATIONS, checked, frame_decoder, read_header, reading
from .dicom_grey import class_of
from .pictures import MAX_PIXELS


if TYPE_CHECKING:
    from pydicom import Dataset

_HEAD = 1024
_CLASS = re.compile(b"(?:%s)[\\0 ]?(?![\\d.])" % b"|".join(re.escape(uid.encode()) for uid in SEGMENTATIONS))
_TYPES = ("BINARY", "FRACTIONAL", "LABELMAP")


class Place(NamedTuple):
    """
    A picture that a segmentation names.

    Args:
        instance (`str`): SOPInstanceUID of its file.
        frame (`int` or `None`): in it, from 0; `None` where the segmentation names no frame.
    """

    instance: str
    frame: int | None


class Segmentation(NamedTuple):
    """
    What a SEG object says beside its pixels.

    Args:
        path (`Path`): of its file.
        type (`str`): `BINARY`, a frame for each segment; `FRACTIONAL`, as that, with shares; `LABELMAP`, numbers of
            segments.
        size (`tuple[int, int]`): (width, height).
        labels (`dict[int, str]`): SegmentLabel by the number of the segment, without the background of a `LABELMAP`.
        frames (`tuple[tuple[Place, int or None], ...]`): of each frame the picture that it lies on, and the number of
            its segment; `None` in a `LABELMAP`.
        named (`dict[str, frozenset[int] or None]`): by their SOPInstanceUID, the pictures that it was made of, with
            the numbers of the frames from 0; `None` for all. Where no frame of it lies on one of those, nothing is.
        background (`int`): the value of a `LABELMAP` where nothing is.
        maximum (`int`): the value of `FRACTIONAL` that stands for 1.
        is_apart (`bool`): whether it states that its segments do not overlap.
    """

    path: Path
    type: str
    size: tuple[int, int]
    labels: dict[int, str]
    frames: tuple[tuple[Place, int | None], ...]
    named: dict[str, frozenset[int] | None]
    background: int
    maximum: int
    is_apart: bool


def is_segmentation(path: str | os.PathLike) -> bool:
    """
    Whether a DICOM file is a segmentation. Its SOP class stands in its first bytes; only where they name that of
    segmentations is the header read, since a picture may name one that was made of it.
    """
    try:
        with open(path, "rb") as file:
            if not _CLASS.search(file.read(_HEAD)):
                return False
        with reading(Path(path)):
            from pydicom.uid import UID_dictionary

            header = read_header(path)
            stated = {class_of(header), str(header.file_meta.get("MediaStorageSOPClassUID") or "")}
            # (Of a damaged one neither may be right; only another class that there is makes it a picture.)
            return bool(stated & {*SEGMENTATIONS}) or not stated & UID_dictionary.keys()
    except OSError:
        return False
    except (DatasetError, ImportError):  # reading it says more
        return True


@lru_cache(maxsize=32)
def _opened(path: Path, changed: int) -> tuple:
    with reading(path), path.open("rb") as file:
        return checked(path, file, MAX_PIXELS, is_picture=False)


def read_segmentation(path: Path) -> Segmentation:
    """
    What a SEG object says beside its pixels.

    Args:
        path (`Path`): of the file.

    Returns:
        [`Segmentation`]

    Raises:
        `DatasetError`: it is damaged, or does not say which picture a frame of it lies on.
        `ImportError`: pydicom is not installed (`pip install 'sa2va_trl[dicom]'`).
    """
    with reading(path):
        dataset, _, count = _opened(path, path.stat().st_mtime_ns)
        if class_of(dataset) not in SEGMENTATIONS:
            raise DatasetError("is no segmentation")
        kind = str(dataset.get("SegmentationType") or "").strip()
        kind = "LABELMAP" if class_of(dataset) == SEGMENTATIONS[1] and not kind else kind
        if kind not in _TYPES or (kind == "LABELMAP") != (class_of(dataset) == SEGMENTATIONS[1]):
            raise DatasetError(f"its SegmentationType is {kind!r:.40}, which is not read")
        if int(dataset.SamplesPerPixel) != 1 or kind == "BINARY" and int(dataset.BitsAllocated) != 1:
            raise DatasetError(
                f"is {kind} with {dataset.SamplesPerPixel} values of {dataset.BitsAllocated} bits a pixel"
            )
        background = int(dataset.get("PixelPaddingValue") or 0)
        labels = _labels(dataset, background if kind == "LABELMAP" else None)
        frames = tuple(_frames(dataset, count, kind, labels))
        return Segmentation(
            path,
            kind,
            (int(dataset.Columns), int(dataset.Rows)),
            labels,
            frames,
            _named(dataset, frames),
            background,
            int(dataset.get("MaximumFractionalValue") or 255),
            dataset.get("SegmentsOverlap") == "NO",
        )


def _labels(dataset: "Dataset", background: int | None) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, item in enumerate(dataset.get("SegmentSequence") or [], start=1):
        own, label = item.get("SegmentNumber"), item.get("SegmentLabel")
        if own is None or not isinstance(label, str) or not label.strip() or "\0" in label:
            raise DatasetError(f"its segment {number} has no SegmentNumber or no SegmentLabel")
        if int(own) in found:
            raise DatasetError(f"has two segments of the number {own}")
        found[int(own)] = label.strip()
    found.pop(background, None)
    if not found:
        raise DatasetError("describes no segment")
    return found


def _group(dataset: "Dataset", index: int, name: str) -> "Dataset | None":
    """A functional group of a frame, its own before that of all."""
    own = (dataset.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    for place in (*own, *shared):
        if place.get(name):
            return place[name].value[0]
    return None


def _frames(dataset: "Dataset", count: int, kind: str, labels: dict[int, str]) -> Iterator[tuple[Place, int | None]]:
    groups = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if groups != count:
        raise DatasetError(f"has {count} frames, and describes {groups} (PerFrameFunctionalGroupsSequence)")
    for index in range(count):
        where = f"its frame {index + 1}"
        segment = None
        if kind != "LABELMAP":
            group = _group(dataset, index, "SegmentIdentificationSequence")
            segment = None if group is None else group.get("ReferencedSegmentNumber")
            if not isinstance(segment, int) or segment not in labels:
                raise DatasetError(f"{where} is of the segment {segment!r:.20}, which is not described")
        group = _group(dataset, index, "DerivationImageSequence")
        sources = [] if group is None else list(group.get("SourceImageSequence") or [])
        if len(sources) != 1:
            raise DatasetError(f"{where} names {len(sources) or 'no'} pictures that it is made of; expected one")
        if str(sources[0].get("SpatialLocationsPreserved") or "YES") != "YES":
            raise DatasetError(f"{where} does not lie on its picture as it is (SpatialLocationsPreserved)")
        numbers = _numbers(sources[0], where)
        if len(numbers) > 1:
            raise DatasetError(f"{where} is made of {len(numbers)} frames of a picture; expected one")
        yield Place(_instance(sources[0], where), numbers[0] if numbers else None), segment


def _instance(item: "Dataset", where: str) -> str:
    found = str(item.get("ReferencedSOPInstanceUID") or "")
    if not found:
        raise DatasetError(f"{where} names a picture without its SOPInstanceUID")
    return found


def _numbers(item: "Dataset", where: str) -> list[int]:
    """ReferencedFrameNumber, counted from 0."""
    found = item.get("ReferencedFrameNumber")
    if found is None or found == "":
        return []
    found = [found] if isinstance(found, int) or not isinstance(found, Iterable) else list(found)
    numbers = [int(number) - 1 for number in found]
    if min(numbers, default=0) < 0:
        raise DatasetError(f"{where} names the frame {min(numbers) + 1} of a picture; they count from 1")
    return numbers


def _named(dataset: "Dataset", frames: Iterable[tuple[Place, int | None]]) -> dict[str, frozenset[int] | None]:
    """What SourceImageSequence and ReferencedSeriesSequence name. Only the former can name frames."""
    found: dict[str, set[int] | None] = {}
    for series in dataset.get("ReferencedSeriesSequence") or []:
        for item in series.get("ReferencedInstanceSequence") or []:
            found[_instance(item, "ReferencedSeriesSequence")] = None
    own: dict[str, set[int] | None] = {}
    for item in dataset.get("SourceImageSequence") or []:
        instance, numbers = (function(item, "SourceImageSequence") for function in (_instance, _numbers))
        known = own.get(instance, set())
        own[instance] = None if known is None or not numbers else known | set(numbers)
    found |= own
    for (instance, frame), _ in frames:
        known = found.setdefault(instance, set())
        if frame is not None and known is not None:
            known.add(frame)
    return {instance: None if known is None else frozenset(known) for instance, known in found.items()}


def segment_values(path: Path, index: int) -> np.ndarray:
    """
    What a frame of a SEG object stores.

    Args:
        path (`Path`): of the file.
        index (`int`): of the frame in it, from 0.

    Returns:
        `np.ndarray` of shape `(height, width)`: whole numbers; of `BINARY`, 0 and 1.

    Raises:
        `DatasetError`: it is damaged, or nothing decodes it.
    """
    with reading(path), path.open("rb") as file:
        dataset, pixels, frames = _opened(path, path.stat().st_mtime_ns)
        values = np.asarray(frame_decoder(path, file, dataset, pixels, frames, index)(index))
        if values.shape != (dataset.Rows, dataset.Columns) or values.dtype.kind not in "bui":
            raise DatasetError(f"its frame {index + 1} is an array of {values.dtype} of shape {values.shape}")
    return values
