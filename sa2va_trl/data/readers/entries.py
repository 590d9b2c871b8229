"""What annotations say of images, before a picture is decoded: the one form that readers bring their format into."""

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Image, List, Value

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ...media.frames import frame_of
from ...media.pictures import MAX_PIXELS, displayed_size, quiet_pillow
from ...media.suffixes import kind_of
from ..columns import DEFAULT_PHRASE
from ..masks import decode_mask, encode_mask
from ..prompts import normalize_phrase
from ..stored import iter_undecoded
from .folders import sample_ids


logger = logging.getLogger(__name__)
_NOTHING: Mapping[str, Any] = {}  # (A MappingProxyType does not go to other processes.)
#: What a reader may say of an image beside what every row has, and the type of the column.
FACTS = {
    "patient_id": Value("string"),
    "video_id": Value("string"),
    "frame_index": Value("int64"),
    "frame_time_ms": Value("float64"),
    "pixel_spacing_mm": Value("float64"),
    "imager_pixel_spacing_mm": Value("float64"),
    "representative_frame": Value("int64"),
    "burned_in_text": Value("string"),
}


class AnnotatedObject(NamedTuple):
    """
    One object of an image.

    Args:
        label (`str` or `None`): its class; `None` where the format has no classes.
        draw (`Callable`):
            Its mask, of the image's size: `(width, height) -> np.ndarray` of shape `(height, width)`, bool. A function
            of a module, or a `functools.partial` of one, since entries go to other processes. It raises `DatasetError`
            with the reason alone.
    """

    label: str | None
    draw: Callable[[tuple[int, int]], np.ndarray]


class Entry(NamedTuple):
    """
    One image and what is annotated in it.

    Args:
        name (`str`): of the image, as the annotations have it, with `/`; `sample_id` is made of it.
        image (`Path`): its file.
        objects (`tuple[AnnotatedObject]`): none of an image in which nothing is.
        frame (`int`, *optional*): its number in a file that holds several.
        size (`tuple[int, int]`, *optional*): (width, height) that the annotations are made for, where they say it.
        facts (`Mapping`, *optional*): of [`FACTS`].
        embedded (`Callable`, *optional*):
            Reads the picture, as the bytes of an image file, where it is no file but stands in the annotations
            (`image` is those then). A function or a `functools.partial`, as `draw` of [`AnnotatedObject`].
        is_pseudonymous (`bool`, *optional*, defaults to `False`):
            Whether its names are pseudonyms already, made with a key.
        people (`tuple[str, ...]`, *optional*):
            Names and identifiers of people that its file states beside the facts. No row has them: they are looked for
            in what is written.
    """

    name: str
    image: Path
    objects: tuple[AnnotatedObject, ...] = ()
    frame: int | None = None
    size: tuple[int, int] | None = None
    facts: Mapping[str, Any] = _NOTHING
    embedded: Callable[[], bytes] | None = None
    is_pseudonymous: bool = False
    people: tuple[str, ...] = ()


class Source(NamedTuple):
    """
    What a reader has found.

    Args:
        place (`Path`): the annotation file, or the folder; what messages are about.
        entries (`list[Entry]`): in a stable order.
        labels (`tuple[str, ...]`): all classes, in the order of the format; empty where it has none.
        problems (`list[BadRow]`): what cannot be used. With any, nothing is.
        joins (`bool`): whether objects of one phrase in an image are one by default, see [`Reading`].
        annotated (`bool`, *optional*, defaults to `True`):
            `False` where there are pictures only, to be annotated: that an entry has no objects says nothing then.
        videos (`frozenset[str]`, *optional*):
            Names of videos that are paths in this source alone: in another source they name others.
    """

    place: Path
    entries: list[Entry]
    labels: tuple[str, ...] = ()
    problems: Sequence[BadRow] = ()
    joins: bool = True
    annotated: bool = True
    videos: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reading:
    """
    How a source becomes rows.

    Args:
        phrase (`str`, *optional*):
            Names all that is annotated, whatever its class; the only one where a format has no classes (then
            `"blood vessel"` by default).
        classes (`dict[str, str]` or `list[str]`, *optional*):
            The classes to read, with the phrase of each: several with one phrase become one object. A list keeps their
            names. All classes by default. The others are left out and named in the log.
        templates (`tuple[str, ...]`, *optional*):
            Sentences with `{phrase}`; a row has the one of its number's turn.
        instances (`str`, *optional*):
            Objects of one phrase in an image: `"join"`, one mask, since a phrase names all of them; or `"separate"`,
            a mask each. By default those of annotation tools, which have classes, are joined. Those of a format
            without classes are always apart.
        mask_suffix (`str`, *optional*): what names of masks have behind those of their images (`_gt`).
        mask_threshold (`float`, *optional*): the object is where a mask that is not binary is at least this.
        secondary_captures (`bool`, *optional*, defaults to `False`):
            Read DICOM objects that are screenshots, mostly; they are passed over and named in the log otherwise.
        max_pixels (`int`, *optional*, defaults to 100,000,000): the largest width x height of an image.

    Raises:
        `ValueError`: contradictory or bad values.
        `DatasetError`: an empty phrase.

    Example:

    ```python
    >>> from sa2va_trl.data.readers.entries import Reading

    >>> Reading(classes={"LAD": "coronary artery", "RCA": "coronary artery"}).phrase_of("RCA")
    'coronary artery'

    ```
    """

    phrase: str | None = None
    classes: Mapping[str, str] | Sequence[str] | None = None
    templates: tuple[str, ...] = ()
    instances: str | None = None
    mask_suffix: str | None = None
    mask_threshold: float | None = None
    secondary_captures: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.instances not in (None, "join", "separate"):
            raise ValueError(f"instances must be join or separate, got {self.instances!r}.")
        if self.phrase is not None and isinstance(self.classes, Mapping):
            raise ValueError("Give either phrase or classes with phrases: both say what an object is called.")
        if self.classes is not None and not self.classes:
            raise ValueError("classes must name one or more.")
        for template in self.templates:
            if "{phrase}" not in template:
                raise ValueError(f"phrase template {template!r} must hold {{phrase}}.")
            try:
                template.format(phrase="vessel")
            except (LookupError, ValueError) as error:
                raise ValueError(
                    f"phrase template {template!r} may hold {{phrase}} alone; write {{{{ and }}}} for braces."
                ) from error
        for phrase in self._given():
            normalize_phrase(phrase)

    def _given(self) -> Iterable[str]:
        if isinstance(self.classes, Mapping):
            yield from self.classes.values()
        elif self.phrase is not None:
            yield self.phrase

    def given(self) -> list[str]:
        """Which options are given, by the names that users give them."""
        names = {"templates": "phrase_templates"}
        limits = {"max_pixels"}
        return [
            names.get(own.name, own.name)
            for own in fields(self)
            if own.name not in limits and getattr(self, own.name) != own.default
        ]

    def phrase_of(self, label: str | None) -> str | None:
        """What a class is called here, normalised; `None` where it is not read."""
        if label is None:
            return normalize_phrase(DEFAULT_PHRASE if self.phrase is None else self.phrase)
        if self.classes is not None and label not in self.classes:
            return None
        if isinstance(self.classes, Mapping):
            return normalize_phrase(self.classes[label])
        return normalize_phrase(label if self.phrase is None else self.phrase)

    def check_labels(self, labels: Sequence[str], place: Path) -> None:
        """
        Refuse classes that a source does not have, and name in the log those that are left out.

        Raises:
            `DatasetError`: naming the classes that there are.
        """
        if self.classes is None:
            return
        if not labels:
            raise DatasetError(f"{place} has no classes, so that `classes` has no meaning: give `phrase`.")
        if unknown := [label for label in self.classes if label not in labels]:
            raise DatasetError(f"{place} has no class {listed(unknown)}; it has {listed(list(labels))}.")
        if left := [label for label in labels if label not in self.classes]:
            logger.warning("%s: left out, classes that are not asked for: %s.", place, listed(left))


def refuse_classes(reading: Reading, form: str) -> None:
    """
    Refuse `classes` for a format whose objects are named by sentences: an image in which none of those that are asked
    for is said may hold them nevertheless, and would be taken for one without.

    Args:
        reading ([`Reading`]): how.
        form (`str`): the format.

    Raises:
        `ValueError`: classes are given.
    """
    if reading.classes is not None:
        raise ValueError(f"classes has no effect on the format {form}: its expressions are no classes. Leave it out.")


def _stored(size: tuple[int, int], mask: dict[str, Any]) -> np.ndarray:
    return np.asarray(decode_mask(mask, size)) > 0


def source_of(rows: Dataset, place: Path) -> Source:
    """
    Rows that a reader has made already as a source.

    Args:
        rows (`datasets.Dataset`): `image` files, `masks`, `phrases` and `sample_id`, and facts.
        place (`Path`): what messages are about.

    Returns:
        [`Source`]: objects are of the class that their phrase names, each of them apart.

    Raises:
        `DatasetError`: rows of clips or conversations.
    """
    if not {"image", "masks", "phrases"} <= set(rows.column_names):
        raise DatasetError(
            f"{place} has clips or conversations, which are not prepared: train on the folder as it is."
        )
    entries: list[Entry] = []
    labels: dict[str, None] = {}
    problems = []
    for number, row in enumerate(row for batch in iter_undecoded(rows) for row in batch):
        masks, phrases = row["masks"] or [], row["phrases"] or []
        file = (row["image"] or {}).get("path")
        if row["image"] is None or None in masks or not len(masks) == len(phrases) > 0:
            reason = (
                f"has {len(masks)} masks and {len(phrases)} phrases: a row has an image, and a phrase for each mask"
            )
            problems.append(BadRow(number, row["sample_id"], file, reason))
            continue
        objects = []
        for phrase, mask in zip(phrases, masks, strict=True):
            objects.append(AnnotatedObject(phrase, partial(_stored, mask=mask)))
            labels.setdefault(phrase)
        facts = {name: row[name] for name in FACTS if row.get(name) is not None}
        file = Path(file)
        roots = [root for root in (place.absolute(), place.resolve()) if file.is_relative_to(root)]
        name = file.relative_to(roots[0]).as_posix() if roots else file.name
        entries.append(Entry(name, file, tuple(objects), facts=facts))
    return Source(place, entries, tuple(labels), problems, joins=False)


def features_of(entries: Iterable[Entry]) -> Features:
    """The columns of rows of entries: those of every row, and the facts that any of them has."""
    known = {name for entry in entries for name in entry.facts}
    if unknown := known - FACTS.keys():
        raise KeyError(f"facts must be of {', '.join(FACTS)}; got {', '.join(sorted(unknown))}.")
    return Features(
        {
            "image": Image(),
            "masks": List(Image(mode="L")),
            "phrases": List(Value("string")),
            "sample_id": Value("string"),
            **{name: feature for name, feature in FACTS.items() if name in known},
        }
    )


def objects_of(
    entry: Entry, labels: Sequence[str], reading: Reading, size: tuple[int, int], joins: bool = True
) -> dict[str, list]:
    """
    The masks of an entry under their phrases.

    Args:
        entry ([`Entry`]): one.
        labels (`list[str]`): all classes of its source: an image without any object is one without each of them.
        reading ([`Reading`]): how.
        size (`tuple[int, int]`): (width, height) of the picture.
        joins (`bool`, *optional*, defaults to `True`): of its source.

    Returns:
        `dict`: `phrases`, and `masks` (`np.ndarray` of shape `(height, width)`, bool), in the order of the objects.

    Raises:
        `DatasetError`: with the reason alone.
    """
    if entry.size is not None and tuple(entry.size) != tuple(size):
        raise DatasetError(
            f"is {size[0]} x {size[1]} (width x height), its annotations are made for {entry.size[0]} x "
            f"{entry.size[1]}: scale one of them"
        )
    phrases, masks = [], []
    joins = joins if reading.instances is None else reading.instances == "join"
    for number, own in enumerate(entry.objects):
        phrase = reading.phrase_of(own.label)
        if phrase is None:
            continue
        try:
            mask = own.draw(size)
        except DatasetError as error:
            raise DatasetError(f"object {number}{f' ({own.label})' if own.label else ''}: {error}") from error
        if own.label is not None and joins and phrase in phrases:
            masks[phrases.index(phrase)] |= mask
        else:
            phrases.append(phrase)
            masks.append(np.array(mask, dtype=bool))
    if not phrases:  # a negative: nothing of what this source annotates is there
        phrases = list(dict.fromkeys(filter(None, map(reading.phrase_of, labels or [None]))))
        masks = [np.zeros(size[::-1], dtype=bool) for _ in phrases]
    return {"phrases": phrases, "masks": masks}


def entry_image(entry: Entry, reading: Reading) -> tuple[dict[str, Any], tuple[int, int]]:
    """
    The picture of an entry, as a stored `datasets.Image` value.

    Args:
        entry, reading: as in [`objects_of`].

    Returns:
        `dict`: by its path, undecoded, where `datasets.Image` opens it as it is; else (a frame, DICOM, ...) as PNG.
        `tuple[int, int]`: its (width, height) as displayed.

    Raises:
        `DatasetError`: with the reason alone.
    """
    try:
        if entry.embedded is not None:
            image = {"path": None, "bytes": entry.embedded()}
            return image, displayed_size(image, reading.max_pixels)
        if entry.frame is None and kind_of(entry.image) in ("image", None):
            path = {"path": str(entry.image.absolute()), "bytes": None}
            return path, displayed_size(entry.image, reading.max_pixels)
        picture = frame_of(entry.image, entry.frame or 0, reading.max_pixels)
    except DatasetError as error:
        raise DatasetError(f"image {error}") from error
    except FileNotFoundError as error:
        raise DatasetError("image file is missing") from error
    buffer = io.BytesIO()
    picture.info.clear()  # or Pillow writes the profile and the resolution of its file along
    picture.save(buffer, "PNG", compress_level=1)  # several times as fast as the default, and hardly larger
    return {"path": None, "bytes": buffer.getvalue()}, picture.size


def entry_row(entry: Entry, sample_id: str, number: int, source: Source, reading: Reading) -> dict[str, Any]:
    """
    The row of an entry.

    Args:
        entry, reading: as in [`objects_of`].
        sample_id (`str`): of the row.
        number (`int`): of the row, for the template.
        source ([`Source`]): that it is of.

    Returns:
        `dict`: as [`features_of`] says; pictures undecoded, the image as of [`entry_image`].

    Raises:
        `DatasetError`: with the reason alone.
    """
    image, size = entry_image(entry, reading)
    found = objects_of(entry, source.labels, reading, size, source.joins)
    return {
        "image": image,
        "masks": [encode_mask(mask) for mask in found["masks"]],
        "phrases": worded(found["phrases"], number, reading),
        "sample_id": sample_id,
        **entry.facts,
    }


def worded(phrases: list[str], number: int, reading: Reading) -> list[str]:
    """Phrases in the sentence whose turn it is."""
    if not reading.templates:
        return phrases
    template = reading.templates[number % len(reading.templates)]
    return [normalize_phrase(template.format(phrase=phrase)) for phrase in phrases]


def refuse(place: Path, problems: Sequence[BadRow], total: int) -> None:
    """
    Raises:
        `DatasetError`: there are problems; with all of them.
    """
    if problems:
        asked = any("mask_threshold" in problem.reason for problem in problems)
        options = " (mask_threshold and classes are options of sa2va-trl prepare_data)" if asked else ""
        raise DatasetError(
            f"{place}: {len(problems)} of {total} images or annotations cannot be used{options}:", problems
        )


def rows_of(source: Source, reading: Reading) -> Dataset:
    """
    All rows of a source. Masks lie in memory (as PNG), images stay files.

    Args:
        source ([`Source`]): what a reader has found.
        reading ([`Reading`]): how.

    Returns:
        `datasets.Dataset` with `image`, `masks` (mode `L`, 0 and 255), `phrases`, `sample_id` and facts.

    Raises:
        `DatasetError`: no images, images without annotations, or with every bad one.
    """
    if not source.annotated:
        raise DatasetError(
            f"{source.place} holds pictures without masks, which nothing can be trained on or scored with: put their "
            "masks into masks/ beside them; sa2va-trl prepare_data can choose the frames to annotate"
        )
    reading.check_labels(source.labels, source.place)
    if not source.entries and not source.problems:
        raise DatasetError(f"{source.place} holds no images")
    features, bad = features_of(source.entries), list(source.problems)
    columns: dict[str, list] = {name: [] for name in features}
    ids = sample_ids([entry.name for entry in source.entries])
    with quiet_pillow():
        for number, (entry, sample_id) in enumerate(zip(source.entries, ids, strict=True)):
            try:
                row = entry_row(entry, sample_id, number, source, reading)
            except DatasetError as error:
                bad.append(BadRow(number, None, entry.name, str(error)))
                continue
            for name, values in columns.items():
                values.append(row.get(name))
    refuse(source.place, bad, len(source.entries) + len(source.problems))
    if empty := sum(not entry.objects for entry in source.entries):
        logger.info("%s: %d images without any object, which are rows with empty masks.", source.place, empty)
    return Dataset.from_dict(columns, features=features)
