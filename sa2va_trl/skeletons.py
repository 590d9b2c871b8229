"""
Skeletons: masks that are thinned to lines of one pixel, for all that is measured along centrelines.

They are those of `skimage.morphology.skeletonize`, bit for bit: the thinning of Zhang and Suen (A fast parallel
algorithm for thinning digital patterns, CACM 1984) with scikit-image's changes. It goes over the pixels in turns,
until two of them change nothing, and takes away those whose eight neighbours form certain patterns. Here 64 pixels of
a row, one beside the other, are a word, on which some 60 bitwise operations look the patterns up for all its pixels at
once, and a word is only looked at again where something around it has changed.
"""

from typing import NamedTuple

import numpy as np
from skimage.morphology import skeletonize


# The neighbours of a pixel, around it: row and column. The first is bit 0 of a pattern.
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
# Patterns that scikit-image treats unlike the paper: 1 of those that the first turn takes, 2 of the second, 3 of both.
_UNLIKE_THE_PAPER = {
    **{3: 1, 6: 1, 10: 3, 11: 1, 12: 1, 14: 1, 24: 2, 26: 2, 40: 3, 48: 0, 56: 2, 96: 2, 104: 2, 108: 2, 129: 0},
    **{130: 3, 131: 1, 134: 1, 160: 3, 161: 1, 176: 2, 192: 2, 194: 1, 198: 1, 224: 2},
}
# In which order each turn asks for the neighbours: those with the fewest operations (all were tried).
_ORDERS = ((2, 3, 5, 6, 0, 7, 1, 4), (1, 2, 7, 6, 4, 3, 0, 5))
# Of fewer pixels, scikit-image is through before a turn's operations have been called.
_FEW = 2**17


def foreground_box(mask: np.ndarray) -> tuple[slice, slice]:
    """
    Rows and columns that hold all of a mask's foreground; the first pixel where there is none.

    Args:
        mask (`np.ndarray` of shape `(H, W)`): bool.
    """
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return slice(1), slice(1)
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def skeleton(mask: np.ndarray) -> np.ndarray:
    """
    Args:
        mask (`np.ndarray` of shape `(H, W)`): bool; beyond its border there is nothing.

    Returns:
        `np.ndarray` of shape `(H, W)`: bool; of each component of the mask at least a pixel.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.skeletons import skeleton

        >>> bar = np.zeros((5, 9), dtype=bool)
        >>> bar[1:4, 1:8] = True
        >>> np.argwhere(skeleton(bar)).tolist()
        [[1, 6], [2, 1], [2, 2], [2, 3], [2, 4], [2, 5]]

        ```
    """
    return skeletons(mask[None])[0]


def skeletons(masks: np.ndarray) -> np.ndarray:
    """
    Skeletons of several masks, in less time than one after the other.

    Args:
        masks (`np.ndarray` of shape `(N, H, W)`): bool.

    Returns:
        `np.ndarray` of shape `(N, H, W)`: bool, each as of [`skeleton`].
    """
    found = np.zeros_like(masks)
    if not masks.any():
        return found
    rows, columns = foreground_box(masks.any(0))
    part = masks[:, rows, columns]
    thinned = np.stack([skeletonize(mask) for mask in part]) if part.size < _FEW else thin_words(part)
    found[:, rows, columns] = thinned
    return found


def thin_words(masks: np.ndarray) -> np.ndarray:
    """
    Skeletons of masks of any size by words of 64 pixels, which is the faster the more there are; see [`skeletons`].

    Args:
        masks (`np.ndarray` of shape `(N, H, W)`): bool.

    Returns:
        `np.ndarray` of shape `(N, H, W)`: bool.
    """
    count, height, width = masks.shape
    # Blank rows around each mask, and a blank pixel at least behind each row, so that all are one row of words.
    across = width // 64 + 1
    packed = np.zeros((count * (height + 2) + 1, across * 8), dtype=np.uint8)
    inner = packed[:-1].reshape(count, height + 2, -1)[:, 1:-1, : -(-width // 8)]
    inner[:] = np.packbits(masks, axis=2, bitorder="little")
    _thin(packed.view("<u8").reshape(-1), across)
    return np.unpackbits(inner, axis=2, count=width, bitorder="little").view(bool)


def skeleton_ends(skeleton: np.ndarray) -> np.ndarray:
    """
    Where a skeleton ends, as [`are_ends`] has it.

    Args:
        skeleton (`np.ndarray` of shape `(H, W)`): bool, without foreground on its border.

    Returns:
        `np.ndarray` of shape `(n, 2)`: rows and columns.
    """
    places = np.argwhere(skeleton)
    return places[are_ends(neighbours(skeleton, places))]


def are_ends(around: np.ndarray) -> np.ndarray:
    """
    Which pixels of a skeleton are its ends: those with one neighbour, or with two side by side, as thinning leaves
    them where a line begins with a corner. (Either of the two would be reached without the pixel.) A lone pixel is a
    skeleton without ends.

    Args:
        around (`np.ndarray` of shape `(n, 8)`): of [`neighbours`].

    Returns:
        `np.ndarray` of shape `(n,)`: bool.
    """
    return (crossings(around) == 1) & (around.sum(1) <= 2)


def neighbours(skeleton: np.ndarray, places: np.ndarray) -> np.ndarray:
    """
    Args:
        skeleton (`np.ndarray` of shape `(H, W)`): bool.
        places (`np.ndarray` of shape `(n, 2)`): rows and columns, none on the border.

    Returns:
        `np.ndarray` of shape `(n, 8)`: which neighbours belong to the skeleton, one after the other around each place.
    """
    around = places[:, None] + np.array(RING)
    return skeleton[around[..., 0], around[..., 1]]


def crossings(around: np.ndarray) -> np.ndarray:
    """
    How often a skeleton leaves each place (crossing number, Rutovitz 1966): runs of neighbours around it.

    Args:
        around (`np.ndarray` of shape `(n, 8)`): of [`neighbours`].

    Returns:
        `np.ndarray` of shape `(n,)`.
    """
    return (around & ~np.roll(around, 1, axis=1)).sum(1)


class _Choice(NamedTuple):
    """What one of two earlier values is, by a neighbour's bit: the first two of them are 0 and 1."""

    neighbour: int
    without: int
    beside: int


def _thin(words: np.ndarray, across: int) -> None:
    """Thin in place: words of 64 pixels, of which so many are a row."""
    near = [down + right for down in (-across, 0, across) for right in (-1, 0, 1)]
    stirred = [words != 0, words != 0]
    while stirred[0].any() or stirred[1].any():
        for choices in _TURNS:
            # What has not changed since this turn's rule was last asked, two turns ago, stays.
            at = np.flatnonzero((stirred[0] | stirred[1]) & (words != 0))
            gone = _matches(choices, _around(words, at, across)) & words[at]
            words[at] ^= gone
            changed = at[gone != 0]
            stirred = [stirred[1], np.zeros_like(stirred[1])]
            for step in near:
                stirred[1][changed + step] = True


def _around(words: np.ndarray, at: np.ndarray, across: int) -> list[np.ndarray]:
    """Of words at some places the neighbours of all their pixels, in the order of `RING`."""
    one, last = words.dtype.type(1), words.dtype.type(63)
    found = {}
    for row in (-1, 0, 1):
        middle = at + row * across
        found[row, 0] = words[middle]
        found[row, -1] = found[row, 0] << one | words[middle - 1] >> last
        found[row, 1] = found[row, 0] >> one | words[middle + 1] << last
    return [found[place] for place in RING]


def _matches(choices: list[_Choice], around: list[np.ndarray]) -> np.ndarray:
    """Which pixels of words have a pattern, as bits."""
    absent = [~bits for bits in around]
    values = [None, None]
    for neighbour, without, beside in choices:
        bits, blank = around[neighbour], absent[neighbour]
        if without > 1 and beside > 1:
            value = values[without] ^ (bits & (values[without] ^ values[beside]))
        elif without > 1:
            value = values[without] | bits if beside else values[without] & blank
        elif beside > 1:
            value = values[beside] | blank if without else values[beside] & bits
        else:
            value = bits if beside else blank
        values.append(value)
    return values[-1]


def _table() -> np.ndarray:
    """Of each pattern whether the first and the second turn take a pixel that has it: `(2, 256)`, bool."""
    around = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    north, east, south, west = around.T[1::2]
    thins = (around.sum(1) >= 2) & (around.sum(1) <= 6) & (crossings(around) == 1)
    first = thins & ~(north & east & south) & ~(east & south & west)
    second = thins & ~(north & east & west) & ~(north & south & west)
    for pattern, turns in _UNLIKE_THE_PAPER.items():
        first[pattern], second[pattern] = turns & 1, turns & 2
    return np.stack([first, second])


def _choices(table: np.ndarray, order: tuple[int, ...]) -> list[_Choice]:
    """A table of patterns as choices one after the other (its decision diagram: Bryant, 1986)."""
    places = {}
    choices = []

    def place_of(part: np.ndarray, depth: int) -> int:
        if part.all() or not part.any():
            return int(part[0])
        without, beside = np.split(part, 2)
        if (without == beside).all():
            return place_of(without, depth + 1)
        if part.tobytes() not in places:
            choices.append(_Choice(order[depth], place_of(without, depth + 1), place_of(beside, depth + 1)))
            places[part.tobytes()] = len(choices) + 1
        return places[part.tobytes()]

    # From bits of the patterns to the order in which they are asked for.
    place_of(table.reshape((2,) * 8).transpose([7 - neighbour for neighbour in order]).reshape(-1), 0)
    return choices


_TURNS = [_choices(table, order) for table, order in zip(_table(), _ORDERS, strict=True)]
