"""Clips thinned to some of their frames, before anything else is done with them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL.Image import Image

from ..errors import BadRow, DatasetError
from ..media.pictures import decode_image, quiet_pillow, too_deep
from .preparing import Item
from .readers.entries import Reading, entry_image


def _clips(items: Sequence[Item]) -> list[list[int]]:
    """Rows of each clip in the order of time."""
    found: dict[tuple, list[int]] = defaultdict(list)
    for row, item in enumerate(items):
        if video := item.entry.facts.get("video_id"):
            found[item.source, str(video)].append(row)

    def time(row: int) -> tuple[int, int]:
        entry = items[row].entry
        return entry.facts.get("frame_index", entry.frame or 0), row

    return [sorted(rows, key=time) for rows in found.values()]


def _frames(
    items: Sequence[Item], rows: Sequence[int], reading: Reading, progress: Callable[[int], None]
) -> Iterator[Image]:
    for row in rows:
        try:
            image = decode_image(entry_image(items[row].entry, reading)[0], reading.max_pixels)
            if fault := too_deep(image):
                raise DatasetError(fault)
        except DatasetError as error:
            bad = BadRow(items[row].number, None, items[row].entry.name, str(error))
            raise DatasetError("a frame cannot be used:", [bad]) from error
        progress(1)
        yield image.convert("L")


def thinned(
    items: Sequence[Item],
    reading: Reading,
    sampler: str,
    count: int,
    progress: Callable[[int], None] = lambda frames: None,
) -> tuple[list[Item], list[tuple[str, dict[str, Any]]]]:
    """
    Some frames of each clip, see [`~data.frame_samplers.sample_frames`]. Images that are of no clip stay.

    Args:
        items (`list[Item]`): of all sources.
        reading ([`~data.readers.entries.Reading`]): how they are read.
        sampler (`str`): name of the sampler.
        count (`int`): frames of a clip.
        progress (`Callable`, *optional*): called with numbers of frames that have been looked at.

    Returns:
        `list[Item]`: those that are left, in their order.
        `list[tuple[str, dict]]`: of each clip its `video_id` at the source and the report of the sampler.

    Raises:
        `DatasetError`: there are no clips, or a frame cannot be read.
        `ValueError`: no such sampler, or no such count.
    """
    from .frame_samplers import sample_frames  # (which needs torch, by way of what inference sees of a clip)

    clips = _clips(items)
    if not clips:
        raise DatasetError("there is no clip to choose frames of: no image has a video_id")
    left, reports = set(range(len(items))), []
    with quiet_pillow():
        for rows in clips:
            facts = items[rows[0]].entry.facts
            fps = {"fps": 1000 / facts["frame_time_ms"]} if facts.get("frame_time_ms") else {}
            sample = sample_frames(_frames(items, rows, reading, progress), count, sampler, **fps)
            left -= set(rows) - {rows[frame] for frame in sample.frames}
            reports.append((str(facts["video_id"]), sample.report))
    return [items[row] for row in sorted(left)], reports
