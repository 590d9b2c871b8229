"""
Masks from run lengths, in the three ways that annotation tools write them.

| written by | runs | order | begins with |
|---|---|---|---|
| COCO | a list, or a string of differences, of the whole picture | columns, each from top to bottom | background |
| CVAT | a list, of the object's own box | rows | background |
| Label Studio | bits: runs and single values of the picture's RGBA bytes | rows | says its value |
"""

from collections.abc import Sequence

import numpy as np

from ..errors import DatasetError


_CHANNELS = 4
_LONGEST = 7  # characters of one of COCO's numbers: 35 bits


def check_made_for(stated: tuple[int, int], size: tuple[int, int], what: str = "") -> None:
    """
    Args:
        stated (`tuple[int, int]`): (width, height) that a mask is made for.
        size (`tuple[int, int]`): (width, height) of the image.
        what (`str`, *optional*): begins the message.

    Raises:
        `DatasetError`: with the reason alone: they differ.
    """
    if tuple(stated) != tuple(size):
        raise DatasetError(
            f"{what}is for {stated[0]} x {stated[1]}, the image is {size[0]} x {size[1]} (width x height)"
        )


def runs_mask(counts: Sequence[int] | np.ndarray, size: tuple[int, int], columns: bool) -> np.ndarray:
    """
    A mask of runs that are background and object by turns, the first background.

    Args:
        counts (`list[int]`): lengths of the runs in pixels; together all of the mask.
        size (`tuple[int, int]`): (width, height).
        columns (`bool`): pixels follow each other down the columns (COCO) instead of along the rows (CVAT).

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        `DatasetError`: with the reason alone: a length below 0, or more or fewer pixels than the mask has.
    """
    width, height = size
    counts = [int(count) for count in counts]
    if min(counts, default=0) < 0:
        raise DatasetError(f"RLE holds a run of {min(counts)} pixels")
    if sum(counts) != width * height:
        raise DatasetError(f"RLE has {sum(counts)} pixels, {width} x {height} are {width * height}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T if columns else flat.reshape(height, width)


def coco_counts(text: str | bytes) -> list[int]:
    """
    The run lengths in COCO's compressed `counts`: numbers of 5 bits a character, the lowest first, from the fourth on
    as differences to the last but one (`rleFrString` of pycocotools' maskApi.c).

    Args:
        text (`str` or `bytes`): ASCII, from `0` to `o`.

    Returns:
        `list[int]`: pixels, see [`runs_mask`].

    Raises:
        `DatasetError`: with the reason alone: another character, or it ends within a number.
    """
    counts, value, place = [], 0, 0
    for code in text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text:
        bits = code - 48
        if not 0 <= bits < 64 or place == _LONGEST:
            raise DatasetError(f"RLE is damaged at its number {len(counts)}: not a string that pycocotools writes")
        value |= (bits & 31) << 5 * place
        place += 1
        if not bits & 32:
            value -= (bits & 16 and 1) << 5 * place  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = place = 0
    if place:
        raise DatasetError("RLE ends within a number: it was cut off")
    return counts


def brush_mask(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """
    A mask of Label Studio's brush: where the alpha of its RGBA picture is not 0. The bits are those of `rle-pack`
    (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack): 32 for the number of values, 5 for the bits of
    one and four times 4 for those of lengths (each less 1); then blocks: 1 whether it is a run, 2 which length, the
    length less 1, and the run's value or all of its values.

    Args:
        data (`bytes`): what `value.rle` lists.
        size (`tuple[int, int]`): (width, height).

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        `DatasetError`: with the reason alone: another number of values than RGBA of this size, or it was cut off.
    """
    width, height = size
    bits, at = np.unpackbits(np.frombuffer(data, dtype=np.uint8)), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise DatasetError("brush RLE ends too early: it was cut off")
        first, last = (at - count) // 8, -(-at // 8)
        return int.from_bytes(data[first:last], "big") >> (8 * last - at) & (1 << count) - 1

    total = read(32)
    if total != width * height * _CHANNELS:
        raise DatasetError(
            f"brush RLE has {total} values, {width} x {height} in RGBA are {width * height * _CHANNELS}"
        )
    word, lengths = read(5) + 1, [read(4) + 1 for _ in range(4)]
    values, done = np.zeros(total, dtype=bool), 0
    while done < total:
        is_run, count = read(1), read(lengths[read(2)]) + 1
        if done + count > total:
            raise DatasetError(f"brush RLE has more values than the {total} that it says")
        if is_run:
            values[done : done + count] = read(word) != 0
        else:
            start, at = at, at + word * count
            if at > len(bits):
                raise DatasetError("brush RLE ends too early: it was cut off")
            values[done : done + count] = bits[start:at].reshape(count, word).any(axis=1)
        done += count
    return values.reshape(height, width, _CHANNELS)[:, :, -1]


def mask_runs(mask: np.ndarray, columns: bool) -> list[int]:
    """
    The runs of a mask, which [`runs_mask`] makes it of.

    Args:
        mask (`np.ndarray` of shape `(height, width)` and type `bool`): of one pixel or more.
        columns (`bool`): as there.

    Returns:
        `list[int]`: lengths in pixels, the first of background, be it 0.

    Example:

    ```python
    >>> import numpy as np
    >>> from sa2va_trl.data.rle import mask_runs

    >>> mask_runs(np.array([[True, True], [False, True]]), columns=False)
    [0, 2, 1, 1]

    ```
    """
    flat = mask.ravel(order="F" if columns else "C")
    ends = np.flatnonzero(np.diff(flat, prepend=flat[:1])).tolist() + [flat.size]
    return [0] * bool(flat[0]) + np.diff(ends, prepend=0).tolist()


def coco_string(counts: Sequence[int]) -> str:
    """
    Run lengths as COCO's compressed `counts`, which [`coco_counts`] reads (`rleToString` of pycocotools' maskApi.c).

    Args:
        counts (`list[int]`): from [`mask_runs`] along the columns.

    Returns:
        `str`, ASCII.
    """
    text = bytearray()
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            is_last = value == (-1 if bits & 16 else 0)  # the highest bit of the last five is the sign
            text.append(48 + bits + 32 * (not is_last))
            if is_last:
                break
    return text.decode()


def brush_bytes(mask: np.ndarray) -> bytes:
    """
    A mask as Label Studio's brush, which [`brush_mask`] reads: all of RGBA 255 or 0, in runs.

    Args:
        mask (`np.ndarray` of shape `(height, width)` and type `bool`): of one pixel or more.

    Returns:
        `bytes`, for `value.rle`.
    """
    lengths = (3, 4, 8, 16)  # bits, as Label Studio's own encoder has them
    bits = [f"{mask.size * _CHANNELS:032b}{8 - 1:05b}", *(f"{length - 1:04b}" for length in lengths)]
    for number, count in enumerate(mask_runs(mask, columns=False)):
        left = count * _CHANNELS
        while left:
            part = min(left, 2 ** lengths[-1])
            which = next(which for which, length in enumerate(lengths) if part <= 2**length)
            bits.append(f"1{which:02b}{part - 1:0{lengths[which]}b}{255 * (number % 2):08b}")
            left -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
