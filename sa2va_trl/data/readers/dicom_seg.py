"""DICOM segmentations (SEG objects) beside the DICOM pictures that they name, by SOPInstanceUID and frame number."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import BadRow, DatasetError, listed
from ...media.clips import frame_name
from ...media.dicom import count_dicom, dicom_facts, dicom_people, no_picture, read_header
from ...media.dicom_seg import Place, Segmentation, is_segmentation, read_segmentation, segment_values
from ...media.suffixes import listed_kind, stem_of
from .annotation_files import text_of, with_labels_of_all
from .entries import AnnotatedObject, Entry, Reading, Source
from .folders import listed_below, split_folders, walk


logger = logging.getLogger(__name__)


class _File(NamedTuple):
    """A picture that a segmentation names: its file, the number of its frames, (width, height)."""

    path: Path
    frames: int
    size: tuple[int, int]


class _Drawn(NamedTuple):
    """An object on a picture, and where it comes from: for the order, and to find out what is drawn twice."""

    source: int
    segment: int
    object: AnnotatedObject


def is_dicom_seg(folder: Path) -> bool:
    """Whether a folder holds a DICOM segmentation, at any depth."""
    return any(listed_kind(path) == "dicom" and is_segmentation(path) for path in walk(folder)[0])


def find_dicom_seg(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Read DICOM segmentations, `BINARY`, `LABELMAP` or, with `mask_threshold`, `FRACTIONAL`: an entry for each frame of
    a picture that one of them speaks of. Segments are classes by their SegmentLabel.

    A frame of a segmentation lies on the picture that its DerivationImageSequence names. Frames that the segmentation
    as a whole names (SourceImageSequence, else ReferencedSeriesSequence), and draws nothing on, are without objects.
    Other frames and pictures are left out and named in the log. Several segmentations of one frame are joined, unless
    they draw the same class on it.

    Args:
        folder (`Path`): with pictures and segmentations at any depth; pictures in folders named after splits are of
            those.
        reading ([`~data.readers.entries.Reading`]):
            How; `mask_threshold` is a share of MaximumFractionalValue, above 0 and up to 1.

    Returns:
        `dict[str, Source]`: by split; `"train"` where there are none.

    Raises:
        `ImportError`: pydicom is not installed.
        `DatasetError`: a threshold that has no meaning, or pictures within folders of splits and beside them.
    """
    pictures, segmentations, unread = [], [], []
    for path in walk(folder)[0]:
        if listed_kind(path) != "dicom":
            unread.append(path)
        else:
            (segmentations if is_segmentation(path) else pictures).append(path)
    if unread:
        logger.warning("%s: left out, not of a kind that is read: %s.", folder, listed_below(unread, folder))
    problems: list[BadRow] = []
    read = list(_read(segmentations, problems))
    _check_threshold(folder, read, problems, reading)
    files = _files(folder, pictures, {instance for own in read for instance in own.named}, reading, problems)
    drawn: dict[Place, list[_Drawn]] = {}
    for number, own in enumerate(read):
        try:
            _draw(number, own, read, files, reading, drawn)
        except DatasetError as error:
            problems.append(_bad(own.path, error))

    labels = tuple(dict.fromkeys(label for own in read for label in own.labels.values()))
    entries = list(_entries(folder, read, files, drawn))
    return _by_split(folder, entries, labels, problems)


def _bad(path: Path, error: DatasetError | str) -> BadRow:
    return BadRow(None, None, str(path), str(error))


def _read(paths: Sequence[Path], problems: list[BadRow]) -> Iterator[Segmentation]:
    for path in paths:
        try:
            own = read_segmentation(path)
            yield own._replace(labels={key: text_of(label, "SegmentLabel") for key, label in own.labels.items()})
        except DatasetError as error:
            problems.append(_bad(path, error))


def _check_threshold(folder: Path, read: Sequence[Segmentation], problems: Sequence[BadRow], reading: Reading) -> None:
    threshold = reading.mask_threshold
    if threshold is None:
        return
    if not any(own.type == "FRACTIONAL" for own in read) and not problems:
        raise ValueError(
            f"mask_threshold has no effect on segmentations that are not FRACTIONAL, and {folder} holds no other: "
            "leave it out."
        )
    if not 0 < threshold <= 1:
        raise DatasetError(
            f"mask_threshold of a FRACTIONAL segmentation is a share of its MaximumFractionalValue, above 0 and up to "
            f"1, not {threshold:g}"
        )


def _files(
    folder: Path, paths: Sequence[Path], named: set[str], reading: Reading, problems: list[BadRow]
) -> dict[str, _File]:
    """The pictures that segmentations name, by their SOPInstanceUID."""
    found: dict[str, _File] = {}
    passed, unnamed = [], []
    for path in paths:
        try:
            header = read_header(path)
            instance = str(header.get("SOPInstanceUID") or "")
            reason = no_picture(path)
            if reason and not (reading.secondary_captures and reason == "is a secondary capture"):
                passed.append(f"{path.relative_to(folder).as_posix()} ({reason})")
            elif instance not in named:
                unnamed.append(path)
            elif instance in found:
                problems.append(_bad(path, f"has the SOPInstanceUID of {found[instance].path}: keep one"))
            else:
                frames = count_dicom(path, reading.max_pixels)
                found[instance] = _File(path, frames, (int(header.Columns), int(header.Rows)))
        except DatasetError as error:
            problems.append(_bad(path, error))
    if passed:
        logger.warning("%s: passed over: %s.", folder, listed(passed))
    if unnamed and not problems:
        logger.warning("%s: left out, no segmentation speaks of: %s.", folder, listed_below(unnamed, folder))
    return found


def _draw(
    number: int,
    own: Segmentation,
    read: Sequence[Segmentation],
    files: Mapping[str, _File],
    reading: Reading,
    drawn: dict[Place, list[_Drawn]],
) -> None:
    """Put the objects of a segmentation on the pictures that they lie on; nothing where it cannot be used."""
    if own.type == "FRACTIONAL" and reading.mask_threshold is None:
        raise DatasetError("is FRACTIONAL, with shares from 0 to 1: say with mask_threshold where an object begins")
    places = _checked_places(own, files)
    found: dict[Place, list[_Drawn]] = {}
    covered: dict[Place, np.ndarray] = {}
    seen: set[tuple[Place, int | None]] = set()
    for index, (place, (_, segment)) in enumerate(zip(places, own.frames, strict=True)):
        if (place, segment) in seen:
            what = "this picture" if segment is None else f"the segment {segment} on this picture"
            raise DatasetError(f"its frame {index + 1} is the second of {what}")
        seen.add((place, segment))
        values = segment_values(own.path, index)
        if segment is None:
            present = [int(value) for value in np.unique(values) if value != own.background]
            if unknown := [value for value in present if value not in own.labels]:
                raise DatasetError(f"its frame {index + 1} holds {unknown[0]}, which is the number of no segment")
            objects = {value: (value, None) for value in present}
        else:
            threshold = 1 if own.type == "BINARY" else reading.mask_threshold * own.maximum
            objects = {segment: (None, threshold)} if (values >= threshold).any() else {}
            if own.is_apart and objects and own.type == "BINARY":
                if (values & covered.get(place, 0)).any():
                    raise DatasetError(
                        f"states that its segments do not overlap (SegmentsOverlap), and in its frame {index + 1} "
                        "they do"
                    )
                covered[place] = values | covered.get(place, 0)
        for key, (value, threshold) in objects.items():
            draw = partial(draw_segment, own.path, index, value, threshold)
            found.setdefault(place, []).append(_Drawn(number, key, AnnotatedObject(own.labels[key], draw)))
    for place, objects in found.items():
        labels = {one.object.label for one in objects}
        if other := next((one for one in drawn.get(place, ()) if one.object.label in labels), None):
            raise DatasetError(
                f"draws {other.object.label!r} on {_shown(place, files)}, as does {read[other.source].path}: keep one"
            )
    for place, objects in found.items():
        drawn.setdefault(place, []).extend(objects)


def _shown(place: Place, files: Mapping[str, _File]) -> str:
    file = files[place.instance]
    return file.path.name if file.frames == 1 else f"frame {place.frame + 1} of {file.path.name}"


def _checked_places(own: Segmentation, files: Mapping[str, _File]) -> list[Place]:
    """The picture of each frame, with its number in every case."""
    if missing := sorted({place.instance for place, _ in own.frames} - files.keys()):
        raise DatasetError(
            f"draws on {len(missing)} pictures that are not there, or are no pictures; the first has the "
            f"SOPInstanceUID {missing[0]}"
        )
    places = []
    for index, (place, _) in enumerate(own.frames):
        file = files[place.instance]
        if file.size != own.size:
            raise DatasetError(
                f"is {own.size[0]} x {own.size[1]} (width x height), its picture {file.path.name} {file.size[0]} x "
                f"{file.size[1]}"
            )
        if place.frame is None and file.frames > 1:
            raise DatasetError(f"its frame {index + 1} does not say which frame of {file.path.name} it lies on")
        if (place.frame or 0) >= file.frames:
            raise DatasetError(
                f"its frame {index + 1} lies on frame {place.frame + 1} of {file.path.name}, which has {file.frames}"
            )
        places.append(Place(place.instance, place.frame or 0))
    return places


def _entries(
    folder: Path, read: Sequence[Segmentation], files: Mapping[str, _File], drawn: Mapping[Place, list[_Drawn]]
) -> Iterator[Entry]:
    """An entry for each frame that a segmentation speaks of."""
    left_out = 0
    for instance, file in files.items():
        numbers = [own.named[instance] for own in read if instance in own.named]
        spoken = set(range(file.frames)) if None in numbers or file.frames == 1 else set().union(*numbers)
        left_out += file.frames - len(spoken & set(range(file.frames)))
        name = file.path.relative_to(folder).with_name(stem_of(file.path)).as_posix()
        facts = {"video_id": name} if file.frames > 1 else {}
        facts |= dicom_facts(file.path)
        people = dicom_people(file.path)
        for number in sorted(spoken & set(range(file.frames))):
            objects = sorted(drawn.get(Place(instance, number), ()), key=lambda one: one[:2])
            is_clip = file.frames > 1
            yield Entry(
                f"{frame_name(name, number) if is_clip else name}.png",
                file.path,
                tuple(one.object for one in objects),
                number if is_clip else None,
                file.size,
                {**facts, "frame_index": number} if is_clip else facts,
                people=people,
            )
    if left_out:
        logger.warning("%s: left out, %d frames that no segmentation speaks of.", folder, left_out)


def _by_split(
    folder: Path, entries: Sequence[Entry], labels: tuple[str, ...], problems: Sequence[BadRow]
) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    rest = list(entries)
    for split, place in split_folders(folder).items():
        if own := [entry for entry in rest if entry.image.is_relative_to(place)]:
            sources[split] = Source(place, own, labels)
            rest = [entry for entry in rest if not entry.image.is_relative_to(place)]
    if rest and sources:
        raise DatasetError(
            f"{folder} holds pictures in {', '.join(source.place.name for source in sources.values())} and beside "
            f"those, the first {rest[0].image}: which split is that of?"
        )
    sources = sources or {"train": Source(folder, rest, labels)}
    first = next(iter(sources))
    sources[first] = sources[first]._replace(problems=problems)
    return with_labels_of_all(sources)


def draw_segment(
    path: Path, index: int, value: int | None, threshold: float | None, size: tuple[int, int]
) -> np.ndarray:
    """
    One object of a segmentation.

    Args:
        path (`Path`): of its file.
        index (`int`): of the frame in it, from 0.
        value (`int` or `None`): the number of its segment in a `LABELMAP`.
        threshold (`float` or `None`): in its place, the least value inside.
        size (`tuple[int, int]`): (width, height) of the picture.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        `DatasetError`: with the reason alone; unreadable, or of another size.
    """
    try:
        values = segment_values(path, index)
    except OSError as error:
        raise DatasetError(f"segmentation {path.name} cannot be read ({error})") from error
    if values.shape != size[::-1]:
        raise DatasetError(
            f"segmentation {path.name} is {values.shape[1]} x {values.shape[0]} (width x height), its picture "
            f"{size[0]} x {size[1]}"
        )
    return values == value if threshold is None else values >= threshold
