"""
The objects that a mask tells apart: what [`~media.masks`] reads as one object, and beyond that ids, colours and, by a
threshold, grey.

| mask | objects |
|---|---|
| binary, as of [`~media.masks.binary_mask`] | one |
| grey of any depth, values up to 32 | each value, 0 is background |
| grey of more than 8 bits, values above 255 | each value, unless they look like grey edges |
| palette | each index, whatever its colour; 0 is background |
| RGB, RGBA that is transparent where it is black | each colour; black is background |
| other grey, alpha or floating point | where it is at least the threshold; refused without one |

Values that may be grey edges as well as ids, shades as well as colours, or background as well as an object, are
refused, with both readings, unless they are known to be ids or colours.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import PIL.Image

from .masks import binary_mask, palette_colours, shortened, single_colour, split_alpha


#: More objects in one mask are no objects that anybody names.
MAX_OBJECTS = 256
# No smoothing leaves so dark an edge and nothing brighter, and so many objects are numbered in most images at most.
_SMALL_ID = 32
# What white is in the depths that there are: beside other values, these are its grey edges.
_WHITES = (255, 1023, 4095, 16383, 32767, 65535, 2**31 - 1, 2**32 - 1)
# Of edges each value has few pixels, and they touch each other.
_EDGE_PIXELS, _TOUCHING = 4, 1 / 3
_MANY_COLOURS = 32
# How far from the line between two colours their mixture can come by rounding (half a unit a channel), and some more.
_ROUNDED = 1.5


class MaskObjects(NamedTuple):
    """
    The objects of a mask.

    Args:
        names (`tuple[str | None, ...]`):
            Of the objects, in the order of their ids: an id (`"3"`) or colour (`"#55AAFF"`); `None` of one that a
            threshold has made.
        numbers (`np.ndarray` of shape `(height, width)` and type `uint16`):
            0 where nothing is, else the number of the object in `names`, from 1.
    """

    names: tuple[str | None, ...]
    numbers: np.ndarray

    def mask(self, names: Collection[str | None]) -> np.ndarray:
        """The pixels of all objects of these names, of shape `(height, width)` and type `bool`."""
        wanted = [False, *(name in names for name in self.names)]
        return np.array(wanted)[self.numbers]


class Census(NamedTuple):
    """
    Which whole numbers a mask holds.

    Args:
        values (`np.ndarray`): in rising order.
        areas (`np.ndarray`): how many pixels have each.
        touching (`int`):
            Pixels above 0 beside which (above, below, left or right) is another value above 0. Only what is known of
            masks with values above 255 depends on it, so that it is counted in those alone.
    """

    values: np.ndarray
    areas: np.ndarray
    touching: int

    def joined(self, other: "Census") -> "Census":
        """Of two masks together."""
        values, places = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        areas = np.bincount(places, np.concatenate([self.areas, other.areas])).astype(np.int64)
        return Census(values, areas, self.touching + other.touching)


def census_of(values: np.ndarray) -> Census:
    """The census of a mask of whole numbers, of shape `(height, width)`."""
    present, areas = _present(values)
    return Census(present, areas, _touching(values) if len(present) and present[-1] > 255 else 0)


def colour_name(colour: int) -> str:
    """The name of a colour, of its three bytes as one number."""
    return f"#{colour:06X}"


def mask_objects(
    mask: PIL.Image.Image,
    threshold: float | None = None,
    known: Collection[str] = (),
    lossy: bool = False,
    census: Census | None = None,
) -> MaskObjects:
    """
    Tell the objects of a mask by its raw pixels.

    Args:
        mask (`PIL.Image.Image`): as it was decoded, before any conversion.
        threshold (`float`, *optional*): the object is where a mask that is not binary is at least this.
        known (collection of `str`, *optional*):
            Ids and colours that are certain to be objects. With any, values that are not among them may be left out by
            the caller, so that `255` beside ids and the lack of a background are no faults.
        lossy (`bool`, *optional*, defaults to `False`):
            It was compressed by what changes values (JPEG), which neither ids nor colours survive.
        census ([`Census`], *optional*): of the mask that this one stands for, where it has one pixel of each kind.

    Returns:
        [`MaskObjects`]

    Raises:
        `ValueError`: with the reason alone; the caller knows the row.

    Example:

    ```python
    >>> import numpy as np
    >>> import PIL.Image
    >>> from sa2va_trl.media.mask_objects import mask_objects

    >>> found = mask_objects(PIL.Image.fromarray(np.array([[0, 1], [2, 2]], dtype=np.uint8)))
    >>> found.names, found.mask({"2"}).tolist()
    (('1', '2'), [[False, False], [True, True]])

    ```
    """
    colour, alpha = split_alpha(mask)
    by_alpha = alpha is not None and alpha.getextrema()[0] < alpha.getextrema()[1]
    try:
        binary = np.asarray(binary_mask(mask)) > 0
    except ValueError as error:
        fault = error
    else:
        raw = np.asarray(alpha if by_alpha else colour)
        return _binary(binary, raw, None if colour.mode in ("1", "P") and not by_alpha else threshold)

    if alpha is not None and not by_alpha and alpha.getextrema()[1] == 0:
        raise fault  # transparent everywhere
    if by_alpha and single_colour(colour) is not None:
        return number_objects(np.asarray(alpha), threshold, (), lossy, "one colour, and alpha with the values")
    if by_alpha:
        colour = colour.copy()
        colour.info.pop("transparency", None)
        if not _same_background(colour, alpha):
            raise fault
        return mask_objects(colour, threshold, known, lossy, census)
    if colour.mode == "P":
        if not known and "ambiguous" in str(fault):  # by index or by colour
            raise fault
        return _of_palette(colour, threshold, known, lossy)
    if colour.mode == "RGB":
        return _of_colours(np.asarray(colour), threshold, known, lossy)
    if colour.mode == "F":
        return _by_threshold(np.asarray(colour), threshold)
    if colour.mode == "L" or colour.mode.startswith("I"):
        return number_objects(np.asarray(colour), threshold, known, lossy, census=census)
    raise fault


def array_objects(
    values: np.ndarray, threshold: float | None = None, known: Collection[str] = (), census: Census | None = None
) -> MaskObjects:
    """
    As [`mask_objects`], of an array that was never a picture.

    Args:
        values (`np.ndarray` of shape `(height, width)` or `(height, width, 3 or 4)`):
            bool, whole numbers or floating point; with channels, uint8.
        threshold, known, census (*optional*): as there.

    Returns:
        [`MaskObjects`]

    Raises:
        `ValueError`: with the reason alone.
    """
    if values.ndim == 3 and values.dtype == np.uint8:
        return mask_objects(PIL.Image.fromarray(np.ascontiguousarray(values)), threshold, known)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(f"is an array of {values.dtype} of shape {values.shape}; expected one number a pixel")
    if values.dtype.kind == "b":
        return _binary(values, values, None)
    if values.dtype.kind == "f":
        return _by_threshold(values, threshold)
    largest = int(values.max(initial=0))
    if largest in (0, 1, *_WHITES) and ((values == 0) | (values == largest)).all():
        return _binary(values > 0, values, threshold)
    return number_objects(values, threshold, known, census=census)


def _binary(mask: np.ndarray, raw: np.ndarray, threshold: float | None) -> MaskObjects:
    """One object, named by the value that it has."""
    if not mask.any():
        return MaskObjects((), np.zeros(mask.shape, dtype=np.uint16))
    value = raw[mask][0]
    if threshold is not None and np.ndim(value) == 0 and raw.dtype.kind != "b" and int(value) < threshold:
        raise ValueError(
            f"is ambiguous: values 0 and {int(value)} alone, an object if it is a binary mask, nothing by the "
            f"threshold {threshold:g}: save it with 0 and 255"
        )
    name = colour_name(_codes(value)) if np.ndim(value) else str(int(value))
    return MaskObjects((name,), mask.astype(np.uint16))


def _by_threshold(values: np.ndarray, threshold: float | None) -> MaskObjects:
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("holds values that are no numbers")
    whole = values.dtype.kind in "iu"
    if threshold is None:
        raise ValueError(
            f"is not binary: mode F with values from {low:g} to {high:g}. Probabilities? Choose the threshold, and "
            "say it as mask_threshold (0.5), or save it as 8-bit grey, 0 and 255"
        )
    if whole and threshold < 1:
        raise ValueError(
            f"has whole numbers, of which a threshold of {threshold:g} keeps all but 0: 128 is half of 255; say 1 if "
            "all but 0 is the object"
        )
    if not whole and threshold > 1 and high <= 1:
        raise ValueError(
            f"has floating-point values from {low:g} to {high:g}, all below the threshold {threshold:g}: is it to be "
            f"{threshold / 255:g}?"
        )
    mask = values >= threshold
    return MaskObjects((None,) if mask.any() else (), mask.astype(np.uint16))


def number_objects(
    values: np.ndarray,
    threshold: float | None = None,
    known: Collection[str] = (),
    lossy: bool = False,
    what: str = "values",
    name: Callable[[int], str] = str,
    census: Census | None = None,
) -> MaskObjects:
    """
    The objects of a mask of whole numbers that is not binary.

    Args:
        values (`np.ndarray` of shape `(height, width)`): whole numbers.
        threshold, known, lossy (*optional*): as in [`mask_objects`].
        what (`str`, *optional*): for messages, what the values are.
        name (`Callable`, *optional*): of a value.
        census ([`Census`], *optional*): as in [`mask_objects`]; of `values` by default.

    Returns:
        [`MaskObjects`]

    Raises:
        `ValueError`: with the reason alone.
    """
    if threshold is not None:
        return _by_threshold(values, threshold)
    census = census or census_of(values)
    ids = census.values[census.values != 0]
    found = f"is not binary: {what} {shortened(census.values.tolist())}"
    if ids[0] < 0:
        raise ValueError(f"{found}; ids are above 0")
    if lossy:
        raise ValueError(
            f"{found}. It is a JPEG, or as lossy, which blurs edges and changes ids: say the threshold as "
            "mask_threshold (128), or save it as PNG"
        )
    unknown = [int(value) for value in ids if name(value) not in known]
    if unknown and (fault := _number_fault(unknown, census, bool(known))):
        raise ValueError(f"{found}; expected 0 and 255 (or 0 and 1). {fault}")
    return _numbered(values, ids, name, found)


_SAY = (
    "Say mask_threshold (128 of 255) for the one, or for the other the phrase of each value in classes "
    '({"128": "vessel"}), or number objects from 1 to 32'
)


def _number_fault(unknown: list[int], census: Census, some_known: bool) -> str | None:
    """Why numbers may be something else than ids; else `None`."""
    ids, areas = census.values[census.values != 0], census.areas[census.values != 0]
    if len(ids) == len(census.values) and not some_known:
        return "No pixel is 0: is one of the values the background? Name in classes those that are objects"
    left = [value for value in unknown if value > _SMALL_ID and not (some_known and value == 255)]
    if not left:
        return None
    largest = int(ids[-1])
    if largest == 255 and all(value <= _SMALL_ID for value in ids[:-1]):
        return (
            "Ids, and 255 for an object or for what is to be ignored, or the grey edges of a white object? Name in "
            "classes the ids that are objects, or say mask_threshold (128)"
        )
    if largest <= 255 or largest in _WHITES or len(ids) > MAX_OBJECTS:
        return f"Grey edges of one object, or an id for each object? {_SAY}"
    rest = np.delete(areas, areas.argmax())
    if len(rest) and (rest.mean() < _EDGE_PIXELS or census.touching / areas.sum() > _TOUCHING):
        return f"Grey edges of one object, or ids of objects that are tiny or touch each other? {_SAY}"
    return None


def _touching(values: np.ndarray) -> int:
    """How many pixels above 0 have another value above 0 above, below, left or right of them."""
    touching = np.zeros(values.shape, dtype=bool)
    for own, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (values[own] != values[other]) & (values[own] > 0) & (values[other] > 0)
        touching[own] |= differ
        touching[other] |= differ
    return int(touching.sum())


def _present(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, in rising order, and how often."""
    if values.dtype == np.uint8:  # much faster than sorting
        counts = np.bincount(values.reshape(-1), minlength=256)
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(values, return_counts=True)


def _numbered(values: np.ndarray, ids: np.ndarray, name: Callable[[int], str], found: str) -> MaskObjects:
    if len(ids) > MAX_OBJECTS:
        raise ValueError(f"{found}; {len(ids)} objects in one image are more than {MAX_OBJECTS}")
    if not len(ids):
        return MaskObjects((), np.zeros(values.shape, dtype=np.uint16))
    places = np.searchsorted(ids, values)
    inside = ids[np.minimum(places, len(ids) - 1)] == values
    numbers = np.where(inside, places + 1, 0).astype(np.uint16)
    return MaskObjects(tuple(name(int(value)) for value in ids), numbers)


# ---------------------------------------------------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------------------------------------------------


def _codes(pixels: np.ndarray) -> np.ndarray:
    """The three bytes of colours, along the last axis, as one number each."""
    return pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _of_colours(pixels: np.ndarray, threshold: float | None, known: Collection[str], lossy: bool) -> MaskObjects:
    if (pixels == pixels[..., :1]).all():
        return number_objects(
            pixels[..., 0], threshold, known, lossy, name=lambda value: colour_name(int(value) * 0x010101)
        )
    codes = _codes(pixels)
    present = np.unique(codes)
    colours = np.stack([present >> 16, present >> 8 & 255, present & 255], axis=1)
    shown = [tuple(colour) for colour in colours[:9].tolist()]
    found = (
        f"is not binary: mode RGB, and its channels differ: {len(present)} colours "
        f"{shortened(shown + [()] * (len(present) - len(shown)))}"
    )
    if threshold is not None:
        raise ValueError(f"{found}. mask_threshold is for grey: convert it to grey first")
    if lossy:
        raise ValueError(f"{found}. It is a JPEG, or as lossy, which blurs colours into each other: save it as PNG")
    unknown = np.array([colour_name(int(code)) not in known for code in present]) & (present != 0)
    if unknown.any() and (fault := _colour_fault(colours, unknown, bool(known))):
        raise ValueError(f"{found}. {fault}")
    return _numbered(codes, present[present != 0], colour_name, found)


def _colour_fault(colours: np.ndarray, unknown: np.ndarray, some_known: bool) -> str | None:
    """Why colours may be something else than one for each object; else `None`. Black is background."""
    if len(colours) > _MANY_COLOURS:
        return "Blurred edges, or a colour for each object? Save it without smoothing, an object a colour"
    if not some_known and colours[0].any():
        return "None of them is black: which is the background? Name in classes those that are objects (#RRGGBB)"
    if colours.max() > _SMALL_ID and (blend := _blend(colours, unknown)) is not None:
        return (
            f"{blend[0]} lies between {blend[1]} and {blend[2]}: a blurred edge, or a colour of its own? Save it "
            'without smoothing, or give the phrase of each colour in classes ({"#FF0000": "vessel"})'
        )
    return None


def _blend(colours: np.ndarray, unknown: np.ndarray) -> tuple[tuple[int, ...], ...] | None:
    """A colour that is not known and may be a mixture of two others (black among them), and those."""
    ends = np.unique(np.concatenate([colours, np.zeros((1, 3), dtype=colours.dtype)]), axis=0).astype(float)
    first, second = np.triu_indices(len(ends), 1)
    for colour in colours[unknown]:
        one, other = colour - ends[first], ends[second] - ends[first]
        share = (one * other).sum(axis=1) / (other**2).sum(axis=1)
        beside = np.linalg.norm(one - share[:, None] * other, axis=1)
        between = (share > 0) & (share < 1) & (beside <= _ROUNDED)  # two ends are never nearer than 1 to each other
        between &= ~(ends[first] == colour).all(axis=1) & ~(ends[second] == colour).all(axis=1)
        if between.any():
            pair = first[between.argmax()], second[between.argmax()]
            return tuple(tuple(int(value) for value in one) for one in (colour, ends[pair[0]], ends[pair[1]]))
    return None


def _same_background(colour: PIL.Image.Image, alpha: PIL.Image.Image) -> bool:
    """Whether a mask is transparent exactly where it is black, and nowhere in between."""
    opaque = np.asarray(alpha)
    black = np.asarray(colour.convert("RGB")).max(axis=2) == 0
    return bool((opaque == np.where(black, 0, 255)).all())


# ---------------------------------------------------------------------------------------------------------------------
# Palettes
# ---------------------------------------------------------------------------------------------------------------------


def _voc_colour(index: int) -> tuple[int, ...]:
    """Of Pascal VOC's palette, also that of DAVIS: the bits of the index, dealt out to the channels by turns."""
    return tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))


def _of_palette(mask: PIL.Image.Image, threshold: float | None, known: Collection[str], lossy: bool) -> MaskObjects:
    values = np.asarray(mask)
    present, _ = _present(values)
    colours = palette_colours(mask, present.tolist())
    pairs = [f"{index} {colours[index]}" for index in present.tolist()]
    found = f"is not binary: a palette mask with the indices (and their colours) {shortened(pairs)}"
    grey = all(len(set(colour)) == 1 for colour in colours.values())
    if threshold is not None:
        if not grey:
            raise ValueError(f"{found}. mask_threshold is for grey: convert it to grey first")
        levels = np.zeros(256, dtype=np.uint8)
        levels[present] = [colours[index][0] for index in present.tolist()]
        return _by_threshold(levels[values], threshold)
    ids = present[present != 0]
    unknown = [index for index in ids.tolist() if str(index) not in known]
    if unknown and (fault := _palette_fault(colours, unknown, grey, bool(known))):
        raise ValueError(f"{found}. {fault}")
    return _numbered(values, ids, str, found)


def _palette_fault(
    colours: dict[int, tuple[int, ...]], unknown: list[int], grey: bool, some_known: bool
) -> str | None:
    """Why indices of a palette may be something else than ids; else `None`."""
    if not some_known:
        if 0 not in colours:
            return "No pixel has the index 0: which is the background? Name in classes the indices that are objects"
        if any(index and not any(colour) for index, colour in colours.items()) and any(colours[0]):
            return (
                "The background is 0 by index and another, black, by colour: name in classes the indices that are "
                "objects"
            )
        if 255 in colours:
            return (
                "Is 255 an object, or what is to be ignored, as in Pascal VOC? Name in classes the indices that are "
                "objects"
            )
    if all(colour == _voc_colour(index) for index, colour in colours.items()):
        return None
    if grey and not (max(colours) <= _SMALL_ID and all(colour[0] == index for index, colour in colours.items())):
        return f"Grey edges of one object, or an id for each object? {_SAY}"
    table = np.array(list(colours.values()))
    if len(table) > _MANY_COLOURS:
        return "Blurred edges, or an index for each object? Name in classes the indices that are objects"
    if (blend := _blend(table, np.array([index in unknown for index in colours]))) is not None:
        return (
            f"{blend[0]} lies between {blend[1]} and {blend[2]}: blurred edges, or an index for each object? Save it "
            "without smoothing, or name in classes the indices that are objects"
        )
    return None
