"""The sources of a folder side by side: what none of them uses, what is left out, and whose names are whose."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, DatasetDict

from ..errors import DatasetError, listed
from .readers.entries import Entry, Reading, Source
from .readers.folders import split_folders


logger = logging.getLogger(__name__)


class Format(NamedTuple):
    """
    A format of folders.

    Args:
        fits (`Callable`): whether a folder has it, told by names and the beginnings of files.
        find (`Callable`): its sources by split; `train` alone where there are none.
        options (`tuple[str, ...]`):
            Of a [`~data.readers.entries.Reading`], which it uses beside those that all do that have annotations
            (`phrase`, `classes`, `phrase_templates` and `instances`).
        read (`Callable`, *optional*):
            Its rows, where these may hold more than entries can: clips, conversations, columns of their own. It is
            given the folder and `phrase`.
        fits_named (`Callable`, *optional*):
            In place of `fits`, where the user names the format, and it passes over what would be in doubt else.
    """

    fits: Callable[[Path], bool]
    find: Callable[[Path, Reading], Mapping[str, Source]]
    options: tuple[str, ...] = ()
    read: Callable[[Path, str | None], Dataset | DatasetDict] | None = None
    fits_named: Callable[[Path], bool] | None = None


def check_options(reading: Reading, names: Collection[str], formats: Mapping[str, Format]) -> None:
    """
    Refuse options that none of the formats of a folder uses.

    Args:
        reading ([`~data.readers.entries.Reading`]): with the options.
        names (`Collection[str]`): of those formats.
        formats (`Mapping[str, Format]`): all that there are.

    Raises:
        `ValueError`: naming the options and the formats.
    """
    of_some = {option for own in formats.values() for option in own.options}
    used = {option for name in names for option in formats[name].options}
    if unused := [option for option in reading.given() if option in of_some - used]:
        raise ValueError(
            f"{', '.join(unused)} has no effect on the format {' or '.join(sorted(names))}: leave it out."
        )


def check_annotated(reading: Reading, sources: dict[str, Source], folder: Path) -> None:
    """
    Refuse options that say how annotations are read, where there are none, or none of the kind that they are for.

    Args:
        reading ([`~data.readers.entries.Reading`]): with the options.
        sources (`Mapping[str, Source]`): by split.
        folder (`Path`): that they are of, for messages.

    Raises:
        `ValueError`: naming the options.
    """
    given = reading.given()
    if not any(source.annotated for source in sources.values()):
        if unused := [option for option in given if option != "secondary_captures"]:
            raise ValueError(
                f"{', '.join(unused)} has no effect on clips without masks, and {folder} holds nothing else."
            )
    elif "instances" in given and not any(source.labels for source in sources.values()):
        raise ValueError(
            f"instances has no effect on masks without classes, whose objects are always apart, and {folder} holds "
            "nothing else."
        )


def refuse_lost(folder: Path, sources: Mapping[str, Source], formats: Mapping[str, Format]) -> None:
    """
    Refuse a folder that is read as one format, while a folder of a split in it has another one and is left out.

    Args:
        folder (`Path`): with folders of splits or without.
        sources (`Mapping[str, Source]`): what has been found in it.
        formats (`Mapping[str, Format]`): all that there are.

    Raises:
        `DatasetError`: naming both.
    """
    if any(source.problems for source in sources.values()):
        return  # (which are said first)
    images = [entry.image for source in sources.values() for entry in source.entries]
    for place in split_folders(folder).values():
        roots = place.absolute(), place.resolve()
        if any(image.absolute().is_relative_to(root) for image in images for root in roots):
            continue
        if other := next((name for name, own in formats.items() if own.fits(place)), None):
            name = next(name for name, own in formats.items() if own.fits(folder))
            if name == "prepared":  # whose folders are its own
                return
            raise DatasetError(
                f"{folder} is read as {name}, which leaves out {place.name}/, and that is {other}: give each of them "
                "by itself, or keep one format"
            )


def told_apart(sources: Mapping[str, Source], folder: Path) -> dict[str, Source]:
    """
    Sources of splits, with the split in front of the names of videos that are paths, where two splits have the same.

    Args:
        sources (`Mapping[str, Source]`): by split.
        folder (`Path`): that they are of, for messages.

    Returns:
        `dict[str, Source]`. Names that are shared are named in the log.
    """
    counts = Counter(video for source in sources.values() for video in source.videos)
    shared = {video for video, count in counts.items() if count > 1}
    if not shared:
        return dict(sources)
    text = "%s: splits have clips of the same name, which are taken for different videos: %s."
    logger.warning(text, folder, listed(sorted(shared)))

    def of_split(entry: Entry, split: str, videos: frozenset[str]) -> Entry:
        video = entry.facts.get("video_id")
        if video not in shared & videos:
            return entry
        return entry._replace(facts={**entry.facts, "video_id": f"{split}/{video}"})

    return {
        split: source._replace(entries=[of_split(entry, split, source.videos) for entry in source.entries])
        for split, source in sources.items()
    }


def warn_unannotated(folder: Path, sources: Mapping[str, Source], others: Collection[str] = ()) -> None:
    """
    Name the splits that have no annotations beside those that have some.

    Args:
        folder (`Path`): that they are of.
        sources (`Mapping[str, Source]`): by split.
        others (`Collection[str]`, *optional*): further splits, which are annotated.
    """
    bare = [split for split, source in sources.items() if not source.annotated]
    if bare and (others or len(bare) < len(sources)):
        logger.warning(
            "%s: no annotations in %s, while other splits have some: its rows are to be annotated, and no negatives.",
            folder,
            listed(bare),
        )
