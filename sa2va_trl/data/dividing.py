"""The splits of what is made into a data set: groups that stay together, and the check that splits share nothing."""

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ..errors import BadRow, DatasetError
from .grouping import clusters_alike, joined, share_out
from .near_duplicates import ALIKE, crossings, equal_pictures
from .preparing import Item, Look, Plan


logger = logging.getLogger(__name__)
#: What rows may be divided by.
DIVISIONS = ("auto", "patient_id", "video_id", "near_duplicates", "sample_id")
_IDS = ("patient_id", "video_id")


def groups_of(
    items: Sequence[Item], looks: Sequence[Look], thumbnails: np.ndarray, split_by: str, accept_alike: bool = False
) -> tuple[str, list[str]]:
    """
    What rows are divided by, and of each row its group.

    Groups with equal pictures are one, those of videos and samples also where pictures look alike: who is in them
    is not known. Patients are known, and views of two of them may look alike.

    Args:
        items (`list[Item]`), looks (`list[Look]`), thumbnails (`np.ndarray`): of [`~data.preparing.look_at`].
        split_by (`str`): `patient_id`, `video_id`, `near_duplicates`, `sample_id` (no groups but of equal pictures),
            or `auto`, the first that there is.
        accept_alike (`bool`, *optional*, defaults to `False`): let videos that look alike be in two splits.

    Returns:
        `tuple[str, list[str]]`: the groups are called by the first name of an image in them, whatever their order.

    Raises:
        `DatasetError`: rows without the group that is asked for.
        `ValueError`: no such way to divide.
    """
    if split_by not in DIVISIONS:
        raise ValueError(f"split_by must be one of {', '.join(DIVISIONS)}, got {split_by!r}.")
    if split_by == "auto":
        there = [name for name in _IDS if any(item.entry.facts.get(name) for item in items)]
        split_by = there[0] if there else "near_duplicates"
    groups = list(range(len(items)))
    if split_by in _IDS:
        bad = [
            BadRow(item.number, None, item.entry.name, f"has no {split_by}")
            for item in items
            if not item.entry.facts.get(split_by)
        ]
        if bad:
            raise DatasetError(f"split_by={split_by}: {len(bad)} of {len(items)} images have none:", bad)
        groups = [str(item.entry.facts[split_by]) for item in items]
    together = equal_pictures([look.digest for look in looks], thumbnails)
    crossing = [rows for rows in together if len({groups[row] for row in rows}) > 1]
    if split_by in _IDS and crossing:
        one, other = crossing[0][0], next(row for row in crossing[0] if groups[row] != groups[crossing[0][0]])
        logger.warning(
            "%d pictures are there under several %ss (%s and %s, ...): these go to one split.",
            *(len(crossing), split_by, items[one].entry.name, items[other].entry.name),
        )
    if split_by == "near_duplicates" or (split_by == "video_id" and not accept_alike):
        together += clusters_alike(thumbnails, ALIKE)
    first: dict[int, str] = {}
    numbers = joined(groups, together)
    for number, item in zip(numbers, items, strict=True):
        name = f"{item.split or ''}/{item.entry.name}/{item.entry.frame or 0:09d}"
        first[number] = min(first.get(number, name), name)
    return split_by, [first[number] for number in numbers]


def splits_of(
    items: Sequence[Item], looks: Sequence[Look], thumbnails: np.ndarray, plan: Plan
) -> tuple[str, list[str]]:
    """
    The split of each item, and what decided it: `source` where it has splits of its own and no others are asked for.

    Raises:
        `DatasetError`: as [`groups_of`], [`~data.grouping.share_out`] and [`check_splits`].
    """
    own = [item.split for item in items]
    if plan.shares:
        by, groups = groups_of(items, looks, thumbnails, plan.split_by, plan.accept_alike)
        splits = share_out(groups, [look.area for look in looks], plan.shares, plan.seed)
    elif None in own:
        return "none", ["train"] * len(items)
    else:
        by, splits = "source", own
    check_splits(items, looks, thumbnails, splits, plan.accept_alike)
    return by, splits


def check_splits(
    items: Sequence[Item],
    looks: Sequence[Look],
    thumbnails: np.ndarray,
    splits: Sequence[str],
    accept_alike: bool = False,
) -> None:
    """
    Check that no patient, video or picture is in two splits, and none that looks like one in another.

    Images that look alike are an error where nothing says that they are of two patients: without a patient they are
    mostly frames of one run. Those of two known patients are named in the log, since standard views do look alike.

    Args:
        items, looks, thumbnails: as in [`groups_of`].
        splits (`list[str]`): of each item.
        accept_alike (`bool`, *optional*, defaults to `False`): name them in the log in any case.

    Raises:
        `DatasetError`: with what is shared, by the names at the source.
    """
    for column in _IDS:
        where: dict[str, set] = defaultdict(set)
        for item, split in zip(items, splits, strict=True):
            if name := item.entry.facts.get(column):
                where[str(name)].add(split)
        if crossing := [name for name, found in where.items() if len(found) > 1]:
            raise DatasetError(
                f"splits share {len(crossing)} {column} ({', '.join(crossing[:5])}{', ...' * (len(crossing) > 5)}): "
                "split anew, by patients (--splits, --split_by)"
            )
    known = [bool(item.entry.facts.get("patient_id")) for item in items]
    digests = [look.digest for look in looks]
    equal, unknown, pairs = crossings(digests, thumbnails, splits, known, accept_alike)
    if equal:
        bad = [_bad(items, row, splits, "its pixels are in another split") for rows in equal for row in rows]
        raise DatasetError(f"splits share {len(equal)} pictures; split anew (--splits), or remove them:", bad)
    if unknown and not accept_alike:
        bad = [
            _bad(items, one, splits, f"looks like {items[other].entry.name}, {splits[other]}")
            for one, other in unknown
        ]
        raise DatasetError(
            f"{len(bad)} pairs of images look alike (correlation of {ALIKE} or more) and are in two splits. Split "
            "anew (--splits), say who is in them (--patient_pattern), or look at them and --accept_alike:",
            bad,
        )
    if pairs:
        one, other = pairs[0]
        logger.warning(
            "%d or more pairs of images of other splits look alike (%s and %s, ...): sa2va-trl inspect shows them.",
            *(len(pairs), items[one].entry.name, items[other].entry.name),
        )


def _bad(items: Sequence[Item], row: int, splits: Sequence[str], reason: str) -> BadRow:
    return BadRow(items[row].number, None, items[row].entry.name, f"{splits[row]}: {reason}")
