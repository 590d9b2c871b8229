"""What is made into a data set, before anything is written: every picture and mask of a source is looked at once."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from ..errors import BadRow, DatasetError
from ..media.burned_in import Extent, extent_of, joined, text_within
from ..media.pictures import decode_image, quiet_pillow, too_deep
from .near_duplicates import pixel_digest, thumbnail
from .readers.entries import Entry, Reading, Source, entry_image, objects_of
from .workers import Workers


#: What the column `burned_in_text` says: a file of itself, or the look at a clip. That none was found is no "no".
BURNED_IN = ("yes", "no", "suspected", "unknown")
# Looked at together by one process.
_BATCH = 50
# Of each clip, in which text is looked for that stands still.
_FRAMES = 8


class Item(NamedTuple):
    """
    An entry on its way.

    Args:
        entry ([`~data.readers.entries.Entry`]): it.
        source (`int`): the number of its source.
        number (`int`): its own in it.
        split (`str` or `None`): that its source is of, where there are several.
    """

    entry: Entry
    source: int
    number: int
    split: str | None


class Look(NamedTuple):
    """
    What one knows of an entry whose picture has been decoded once.

    Args:
        problem (`str` or `None`): why it cannot be used.
        size (`tuple[int, int]`): (width, height).
        area (`float`): share of the picture that its masks cover together.
        digest (`str`): of the pixels.
        masks_digest (`str`): of the masks.
        phrases (`tuple[str, ...]`): what is annotated.
        objects (`int`): masks that are not empty.
        thumbnail (`np.ndarray` of shape `(1024,)`, *optional*): of the picture.
        has_text (`bool`): whether bright text stands still over the frames of its clip.
    """

    problem: str | None
    size: tuple[int, int] = (0, 0)
    area: float = 0.0
    digest: str = ""
    masks_digest: str = ""
    phrases: tuple[str, ...] = ()
    objects: int = 0
    thumbnail: np.ndarray | None = None
    has_text: bool = False


@dataclass(frozen=True)
class Plan:
    """
    Everything that the rows of a prepared data set depend on, beside the source.

    Args:
        reading ([`~data.readers.entries.Reading`]): how sources become rows.
        key (`bytes` or `None`): of the pseudonyms; `None` keeps names as they are.
        shares (`Mapping[str, float]`): of the splits, see [`~data.grouping.share_out`]; none for one split, `train`,
            or those of the source.
        split_by (`str`): what is kept together, see [`~data.dividing.groups_of`].
        seed (`int`): of the splits.
        accept_alike (`bool`): whether images that look alike may be in two splits.
        output_format (`str`): `parquet` or `imagefolder`.
        harmless_names (`tuple[str, ...]`): names at the source that are nobody's, and may come out of it.
    """

    reading: Reading = field(default_factory=Reading)
    key: bytes | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    split_by: str = "auto"
    seed: int = 0
    accept_alike: bool = False
    output_format: str = "parquet"
    harmless_names: tuple[str, ...] = ()


def items_of(sources: Mapping[str, Source]) -> list[Item]:
    """
    The entries of all sources.

    Raises:
        `DatasetError`: a source has problems, or there is no entry at all. Of all sources together.
    """
    bad = [problem for source in sources.values() for problem in source.problems]
    if bad:
        place = next(iter(sources.values())).place
        total = len(bad) + sum(len(source.entries) for source in sources.values())
        raise DatasetError(f"{place}: {len(bad)} of {total} images or annotations cannot be used:", bad)
    items = [
        Item(entry, number, place, split if len(sources) > 1 or split != "train" else None)
        for number, (split, source) in enumerate(sources.items())
        for place, entry in enumerate(source.entries)
    ]
    if not items:
        raise DatasetError("the source holds no images")
    return items


def without_entries(sources: Sequence[Source]) -> list[Source]:
    """Sources as jobs of other processes need them, which have entries of their own."""
    return [source._replace(entries=[], problems=()) for source in sources]


def drawn(entry: Entry, source: Source, reading: Reading, size: tuple[int, int]) -> tuple[dict[str, list], str]:
    """
    Masks and phrases as [`~data.readers.entries.objects_of`] has them, none of a picture that is still to be
    annotated, and a digest of the masks.
    """
    found: dict[str, list] = {"phrases": [], "masks": []}
    if source.annotated or entry.objects:
        found = objects_of(entry, source.labels, reading, size, source.joins)
    digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
    for mask in found["masks"]:
        digest.update(np.packbits(mask).tobytes())
    return found, digest.hexdigest()


def _look(
    items: Sequence[Item], watched: Sequence[bool], sources: Sequence[Source], reading: Reading
) -> tuple[list[Look], "_Seen"]:
    found, seen_of = [], _Seen()
    with quiet_pillow():
        for item, is_watched in zip(items, watched, strict=True):
            try:
                stored, size = entry_image(item.entry, reading)
                try:
                    image = decode_image(stored, reading.max_pixels)
                    if fault := too_deep(image):
                        raise DatasetError(fault)
                except DatasetError as error:
                    raise DatasetError(f"image {error}") from error
                own, digest = drawn(item.entry, sources[item.source], reading, size)
            except DatasetError as error:
                found.append(Look(str(error)))
                continue
            area = float(np.logical_or.reduce(own["masks"]).mean())
            objects = sum(bool(mask.any()) for mask in own["masks"])
            seen = area, pixel_digest(image), digest, tuple(own["phrases"]), objects, thumbnail(image)
            found.append(Look(None, size, *seen))
            if is_watched:
                seen_of.add({(_clip(item), image.size): extent_of(image)})
    return found, seen_of


class _Seen(dict[tuple[tuple[int, str], tuple[int, int]], Extent]):
    """Of clips, and of the frames of one size in each, what there has been."""

    def add(self, other: Mapping) -> None:
        for frames, extent in other.items():
            self[frames] = joined(self[frames], extent) if frames in self else extent


def _clip(item: Item) -> tuple[int, str] | None:
    """The clip that an item is of, where its file does not say whether text is burned in."""
    facts = item.entry.facts
    is_asked = facts.get("video_id") and facts.get("burned_in_text") not in ("yes", "no")
    return (item.source, str(facts["video_id"])) if is_asked else None


def _watched(items: Sequence[Item]) -> list[bool]:
    """Whether an item is one of the few of its clip, spread over it, that are searched for text."""
    clips: dict[tuple[int, str], list[int]] = {}
    for row, item in enumerate(items):
        if clip := _clip(item):
            clips.setdefault(clip, []).append(row)
    watched = [False] * len(items)
    for rows in clips.values():
        for part in range(_FRAMES) if len(rows) > 1 else ():  # (of one, text cannot be told from what will move)
            watched[rows[(2 * part + 1) * len(rows) // (2 * _FRAMES)]] = True
    return watched


def with_burned_in(items: Sequence[Item], looks: Sequence[Look]) -> list[Item]:
    """
    Items with `burned_in_text`, one of [`BURNED_IN`]: what their files say, else what was seen of their clips.

    Args:
        items, looks (`list`): as in [`look_at`].

    Returns:
        `list[Item]`: as they are where no file says anything and there are no clips.
    """
    if not any({"burned_in_text", "video_id"} & item.entry.facts.keys() for item in items):
        return list(items)
    found = []
    for item, look in zip(items, looks, strict=True):
        own = item.entry.facts.get("burned_in_text")
        if own not in ("yes", "no"):
            own = "suspected" if look.has_text else "unknown"
        found.append(item._replace(entry=item.entry._replace(facts={**item.entry.facts, "burned_in_text": own})))
    return found


def look_at(
    items: Sequence[Item],
    sources: Sequence[Source],
    reading: Reading,
    workers: Workers,
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[list[Look], np.ndarray]:
    """
    Decode every picture and draw every mask once, and keep what splits and reports need of them.

    Args:
        items (`list[Item]`): from [`items_of`].
        sources (`list[Source]`): that they are of.
        reading ([`~data.readers.entries.Reading`]): how.
        workers ([`~data.workers.Workers`]): who does it.
        progress (`Callable`, *optional*): called with numbers of items that are done.

    Returns:
        `list[Look]`: without their thumbnails.
        `np.ndarray` of shape `(items, 1024)`: the thumbnails, see [`~data.near_duplicates.thumbnail`].

    Raises:
        `DatasetError`: with every entry that cannot be used.
    """
    watched, seen, with_text = _watched(items), _Seen(), set()
    left = Counter(_clip(item) for item, is_watched in zip(items, watched, strict=True) if is_watched)
    batches = (
        (items[start : start + _BATCH], watched[start : start + _BATCH]) for start in range(0, len(items), _BATCH)
    )
    looks: list[Look] = []
    thumbnails = np.zeros((len(items), 1024), dtype=np.float32)
    look = partial(_look, sources=without_entries(sources), reading=reading)
    for found, own_seen in workers.map(look, batches):
        seen.add(own_seen)
        for (clip, _), extent in own_seen.items():
            left[clip] -= extent.frames
            if not left[clip]:  # all of it has been seen, and need not be kept
                for frames in [frames for frames in seen if frames[0] == clip]:
                    whole = seen.pop(frames)
                    if whole.frames > 1 and text_within(whole):
                        with_text.add(clip)
        for own in found:
            if own.thumbnail is not None:
                thumbnails[len(looks)] = own.thumbnail
            looks.append(own._replace(thumbnail=None))
        progress(len(found))
    bad = [
        BadRow(item.number, None, item.entry.name, look.problem)
        for item, look in zip(items, looks, strict=True)
        if look.problem
    ]
    if bad:
        raise DatasetError(f"{sources[0].place}: {len(bad)} of {len(items)} images cannot be used:", bad)
    looks = [look._replace(has_text=_clip(item) in with_text) for item, look in zip(items, looks, strict=True)]
    return looks, thumbnails
