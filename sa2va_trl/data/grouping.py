"""Which rows belong together, and which split each group goes to, before any row is made."""

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import BadRow, DatasetError


logger = logging.getLogger(__name__)
# What tells frames of one clip apart, at the end of a name.
_FRAME = re.compile(r"[ _.\-]*(?:f|fr|frame|img|im|slice)?[ _.\-]*\d+$", re.IGNORECASE)
_STRATA = 3


def ids_by_pattern(names: Sequence[str], pattern: str, known: Sequence[str | None] | None = None) -> list[str]:
    """
    Who each name is of, by a regular expression where nothing else says it.

    Args:
        names (`list[str]`): of images, with their folders.
        pattern (`str`): its first group, or else all of it, is the id; it is searched for anywhere (`(P\\d+)_`).
        known (`list[str | None]`, *optional*): of each what else says it. That stays.

    Returns:
        `list[str]`.

    Raises:
        `ValueError`: it is no regular expression, or says nothing since all are known.
        `DatasetError`: with every name in which it is not found, or finds another one than is known: one patient
            would be two.

    Example:

    ```python
    >>> from sa2va_trl.data.grouping import ids_by_pattern

    >>> ids_by_pattern(["P07_f001.png", "P07_f002.png", "b/P12_f001.png"], r"(P\\d+)_")
    ['P07', 'P07', 'P12']

    ```
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient_pattern={pattern!r} is no regular expression: {error}.") from error
    known = [None] * len(names) if known is None else known
    if names and all(known):
        raise ValueError(f"patient_pattern={pattern!r} has no effect: the source says who is in each of its images.")
    found, bad = [], []
    for number, (name, said) in enumerate(zip(names, known, strict=True)):
        match = compiled.search(name)
        own = match and (match.group(1) if compiled.groups else match.group())
        if said and own and own != said:
            reason = f"{pattern!r} finds {own!r} in its name, and the source says {said!r}: one patient would be two"
            bad.append(BadRow(number, None, name, reason))
        elif not (said or own):
            bad.append(BadRow(number, None, name, f"{pattern!r} finds nothing in its name"))
        found.append(said or own or "")
    if bad:
        raise DatasetError(f"patient_pattern: {len(bad)} of {len(names)} names do not say the patient:", bad)
    return found


def looks_grouped(names: Sequence[str]) -> str | None:
    """
    What names have in common that look like frames of a few clips or patients: an example, or `None`.

    Args:
        names (`list[str]`): of images.

    Returns:
        `str`: the beginning that the most of them share, where there are at most half as many beginnings as names.
    """
    starts = Counter(_beginnings(names))
    starts.pop("", None)  # numbers alone
    if len(starts) < 2 or 2 * len(starts) > sum(starts.values()):
        return None
    return max(starts, key=lambda start: (starts[start], start))


def _beginnings(names: Iterable[str]) -> list[str]:
    return [_FRAME.sub("", str(PurePosixPath(name).with_suffix(""))) for name in names]


def look_grouped_across(names: Sequence[str], others: Sequence[str]) -> str | None:
    """
    What names of two splits have in common that look like frames of the same clips or patients: an example, or `None`.

    Args:
        names, others (`list[str]`): of images.

    Returns:
        `str`: a beginning that is in both, where [`looks_grouped`] finds some in all of them.
    """
    if looks_grouped([*names, *others]) is None:
        return None
    return min((set(_beginnings(names)) & set(_beginnings(others))) - {""}, default=None)


def alike(thumbnails: np.ndarray, limit: float) -> list[int]:
    """
    Clusters of pictures that look alike, directly or through others.

    Args:
        thumbnails (`np.ndarray` of shape `(images, 1024)`): from [`~data.near_duplicates.thumbnail`].
        limit (`float`): correlation from which on two pictures look alike.

    Returns:
        `list[int]`: of each its cluster.
    """
    clusters = np.arange(len(thumbnails))
    for start in range(0, len(thumbnails), 256):  # bounds the memory, of products as of pairs
        one, other = np.nonzero(thumbnails[start : start + 256] @ thumbnails[start:].T >= limit)
        _, firsts, numbers = np.unique(clusters, return_index=True, return_inverse=True)
        one = np.concatenate([one + start, np.arange(len(thumbnails))])
        other = np.concatenate([other + start, firsts[numbers]])
        graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(thumbnails),) * 2)
        clusters = connected_components(graph, directed=False)[1]
    return clusters.tolist()


def clusters_alike(thumbnails: np.ndarray, limit: float) -> list[list[int]]:
    """The positions of pictures in each cluster of [`alike`]."""
    found: dict[int, list[int]] = defaultdict(list)
    for place, cluster in enumerate(alike(thumbnails, limit)):
        found[cluster].append(place)
    return list(found.values())


def joined(groups: Sequence[Hashable], others: Iterable[Sequence[int]]) -> list[int]:
    """
    Groups made one where rows of several belong together for another reason.

    Args:
        groups (`Sequence`): one a row.
        others (`Iterable[Sequence[int]]`): rows that belong together.

    Returns:
        `list[int]`: of each row the number of its group.
    """
    _, numbers = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    pairs = [(numbers[rows[0]], numbers[row]) for rows in others for row in rows[1:]]
    one, other = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(numbers.max() + 1,) * 2)
    return connected_components(graph, directed=False)[1][numbers].tolist()


def share_out(
    groups: Sequence[Hashable], areas: Sequence[float], shares: Mapping[str, float], seed: int = 0
) -> list[str]:
    """
    Give every group to one split, so that each split has about its share of the rows, of those with large masks as of
    those with small ones.

    Groups are parted into thirds by the mean area of their masks. Of each third the groups come in an order that the
    seed decides, larger ones first (by powers of two), and go where the largest part is lacking, of the third and of
    all, but to no split that has its share. So none has more than its share by the rows of a group or more.

    Args:
        groups (`list`): one a row.
        areas (`list[float]`): one a row, in [0, 1].
        shares (`dict[str, float]`): by split, positive: shares of the rows or numbers of rows, which count in
            proportion.
        seed (`int`, *optional*, defaults to 0): of the order.

    Returns:
        `list[str]`: of each row its split. No split is empty.

    Raises:
        `ValueError`: shares that are not positive.
        `DatasetError`: fewer groups than splits.
    """
    if not shares or not all(share > 0 and math.isfinite(share) for share in shares.values()):
        raise ValueError(f"splits must have shares above 0, got {dict(shares)}.")
    rows_of: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    names, order = list(shares), sorted(rows_of, key=str)
    if len(order) < len(names):
        raise DatasetError(
            f"{len(order)} groups (patients, videos or clusters of images that look alike) are too few for "
            f"{len(names)} splits ({', '.join(names)})"
        )
    order = [order[place] for place in np.random.default_rng(seed).permutation(len(order))]
    # (`fsum`, since the sum must not depend on the order of the rows)
    area = {group: math.fsum(areas[row] for row in rows) / len(rows) for group, rows in rows_of.items()}
    ranked = sorted(order, key=area.get)
    thirds = [own.tolist() for own in np.array_split(np.arange(len(ranked)), _STRATA)]
    place = {group: number for number, group in enumerate(order)}
    target = {name: share / sum(shares.values()) for name, share in shares.items()}
    lacking, found, had = {name: len(groups) * share for name, share in target.items()}, {}, set()
    for third in thirds:
        own = sorted((ranked[number] for number in third), key=lambda g: (-len(rows_of[g]).bit_length(), place[g]))
        rows = sum(len(rows_of[group]) for group in own)
        here = {name: rows * share for name, share in target.items()}
        for group in own:
            left = len(order) - len(found)
            empty = [name for name in names if name not in had]
            among = empty if left <= len(empty) else [name for name in names if lacking[name] > 1e-9]
            name = max(among, key=lambda split: here[split] / target[split] + lacking[split] / target[split])
            here[name] -= len(rows_of[group])
            lacking[name] -= len(rows_of[group])
            found[group] = name
            had.add(name)
    return [found[group] for group in groups]
