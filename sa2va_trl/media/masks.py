"""
What a mask says: from the raw pixels of any image mode to object (255) and background (0), or the reason why not.

| mode | read as | refused |
|---|---|---|
| `1`, `L` | 0 is background, 1 or 255 the object | other values: ids, grey edges, 1 and 255 together |
| `I;16`, `I` | likewise, or the mode's largest value is the object (65535, 2147483647) | other values: ids |
| `P` | by index: 0 is background, 1 or 255 the object; black and white by colour | others; the two disagree |
| `RGB` | as `L`, where the three channels are equal | channels that differ: ids, colours |
| `LA`, `RGBA`, `PA`, `P` with alpha | constant alpha: by colour; one colour: by alpha | both vary |
| `F` | | always: a threshold would have to be guessed |
| `CMYK`, `YCbCr`, `LAB`, `HSV`, others | | always |

A constant mask is empty (0) or full (1, 255 or the largest value). Nothing here converts pixels before they are looked
at: a conversion to `L` drops alpha, weighs ids in colour channels away, clips integers and cuts floats off.
"""

import numpy as np
import PIL.Image


_EXPECTED = "expected 0 and 255 (or 0 and 1)"
_FIX = "save it as 8-bit grey, 0 and 255"
_SHOWN = 8
# 65535 as well for `I`: what Pillow makes of a 16-bit PGM, and older ones of a 16-bit PNG.
_LARGEST = {"I": (65535, 2**31 - 1), "I;16": (65535,), "I;16L": (65535,), "I;16B": (65535,), "I;16N": (65535,)}
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def binary_mask(mask: PIL.Image.Image) -> PIL.Image.Image:
    """
    Judge a mask by its raw pixels.

    Args:
        mask (`PIL.Image.Image`):
            As it was decoded, before any conversion.

    Returns:
        `PIL.Image.Image`: Mode `L`, 0 and 255. It may be `mask` itself.

    Raises:
        `ValueError`: With the reason alone, by mode and values; the caller knows the row.
    """
    if mask.mode == "L":  # nearly all masks
        return _of_grey(mask)
    colour, alpha = split_alpha(mask)
    if alpha is not None:
        low, high = alpha.getextrema()
        if low < high:
            return _of_alpha(mask.mode, colour, alpha)
        if high == 0 and (single := single_colour(colour)) is not None and any(single):
            raise ValueError(
                f"is ambiguous: mode {mask.mode}, transparent everywhere and of one colour, {shortened([single])}: an "
                f"empty mask by alpha, a full one by colour; {_FIX}"
            )
    if colour.mode == "1":
        return colour.convert("L")
    if colour.mode == "L":
        return _of_grey(colour)
    if colour.mode == "P":
        return _of_palette(colour)
    if colour.mode == "RGB":
        return _of_channels(colour)
    if colour.mode in _LARGEST:
        return _of_integers(colour)
    if colour.mode == "F":
        values = np.asarray(colour)
        raise ValueError(
            f"is not binary: mode F with values from {values.min():g} to {values.max():g}. Probabilities? "
            f"Choose the threshold, and {_FIX}"
        )
    raise ValueError(f"has mode {mask.mode}, which is not read as a mask: {_FIX}")


def mask_values(mask: PIL.Image.Image) -> list[int]:
    """The values that occur in a mask of mode `L`, or the indices of one of mode `P`, in rising order."""
    return [value for value, count in enumerate(mask.histogram()) if count]


def shortened(values: list) -> str:
    """Values for a message: the first 8, and how many there are."""
    more = f", ... ({len(values)} values)" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more


def _mapped(mask: PIL.Image.Image, table: list[int]) -> PIL.Image.Image:
    """Mode `L` by a table of 256 values, without what the palette's transparency was."""
    mapped = mask.point(table, "L")
    mapped.info.clear()
    return mapped


def _as_object(mask: PIL.Image.Image, objects: set[int]) -> PIL.Image.Image:
    """Mode `L` with 255 where an 8-bit mask has one of the values."""
    return _mapped(mask, [255 if value in objects else 0 for value in range(256)])


def _of_grey(mask: PIL.Image.Image, what: str = "values") -> PIL.Image.Image:
    pixels = np.asarray(mask)
    if not ((pixels + np.uint8(1)) & 254).any():  # 0 and 255 alone, which become 1 and 0; a histogram is slower
        return mask
    if pixels.max() <= 1:
        return _as_object(mask, {1})
    raise ValueError(f"is not binary: {what} {shortened(mask_values(mask))}; {_EXPECTED}")


def _of_integers(mask: PIL.Image.Image) -> PIL.Image.Image:
    values = np.asarray(mask)
    largest = int(values.max())
    if largest in (0, 1, 255, *_LARGEST[mask.mode]) and ((values == 0) | (values == largest)).all():
        return PIL.Image.fromarray(np.where(values > 0, 255, 0).astype(np.uint8))
    found = np.unique(values).tolist()
    raise ValueError(
        f"is not binary: mode {mask.mode}, values {shortened(found)}; {_EXPECTED}, or 0 and {_LARGEST[mask.mode][-1]}"
    )


def _of_channels(mask: PIL.Image.Image) -> PIL.Image.Image:
    red, green, blue = mask.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        return _of_grey(red)
    raise ValueError(
        f"is not binary: mode RGB, and its channels differ: {_colours_of(mask)}. Ids in colour channels, or a colour "
        f"for each object? Save each object as a mask of its own in 8-bit grey, 0 and 255"
    )


def _of_palette(mask: PIL.Image.Image) -> PIL.Image.Image:
    indices = mask_values(mask)
    colours = palette_colours(mask, indices)
    by_index = set(indices) - {0} if set(indices) <= {0, 1} or set(indices) <= {0, 255} else None
    # Programs that reduce a picture's colours number them as they like, white often first.
    by_colour = {index for index in indices if colours[index] == _WHITE}
    if not set(colours.values()) <= {_BLACK, _WHITE} or len(set(colours.values())) < len(indices):
        by_colour = None
    shown = shortened([f"{index} {colours[index]}" for index in indices])
    if by_index is None and by_colour is None:
        raise ValueError(
            f"is not binary: a palette mask with the indices (and their colours) {shown}; expected the indices 0 and "
            "1 (or 0 and 255). An id for each object? Save each object as a mask of its own"
        )
    if None not in (by_index, by_colour) and by_index != by_colour:
        raise ValueError(
            f"is ambiguous: a palette mask with the indices (and their colours) {shown}, where the object is one by "
            f"index and another by colour; {_FIX}"
        )
    return _as_object(mask, by_colour if by_index is None else by_index)


def palette_colours(mask: PIL.Image.Image, indices: list[int]) -> dict[int, tuple[int, ...]]:
    """The colours of indices of a mask of mode `P`."""
    palette = mask.getpalette("RGB") or []
    palette = palette + [0] * (768 - len(palette))  # what Pillow draws for an index beyond its palette
    return {index: tuple(palette[3 * index : 3 * index + 3]) for index in indices}


def split_alpha(mask: PIL.Image.Image) -> tuple[PIL.Image.Image, PIL.Image.Image | None]:
    """A mask without its alpha, and its alpha (mode `L`), where it has one."""
    if mask.mode == "LA":
        return mask.getchannel("L"), mask.getchannel("A")
    if mask.mode == "RGBA":
        return mask.convert("RGB"), mask.getchannel("A")
    if mask.mode == "PA":
        colour = mask.getchannel("P")
        colour.putpalette(mask.getpalette("RGB"))
        return colour, mask.getchannel("A")
    if mask.mode == "P" and (transparency := mask.info.get("transparency")) is not None:
        # One transparent index, or an alpha for each of the first indices.
        table = [255] * 256
        if isinstance(transparency, bytes):
            table[: len(transparency)] = transparency[:256]
        else:
            table[transparency] = 0
        return mask, _mapped(mask, table)
    # Where a grey or colour is declared transparent (PNG's tRNS), alpha says nothing that the colour does not.
    return mask, None


def _of_alpha(mode: str, colour: PIL.Image.Image, alpha: PIL.Image.Image) -> PIL.Image.Image:
    if single_colour(colour) is not None:
        return _of_grey(alpha, f"one colour, and alpha (mode {mode}) with the values")
    raise ValueError(
        f"is ambiguous: mode {mode}, in which both colour ({_colours_of(colour)}) and alpha "
        f"({shortened(mask_values(alpha))}) vary; save the one that is meant as 8-bit grey, 0 and 255"
    )


def single_colour(mask: PIL.Image.Image) -> tuple[int, ...] | None:
    """The colour of a mask (mode `L`, `RGB` or `P`) that has one only."""
    if mask.mode == "P":
        colours = set(palette_colours(mask, mask_values(mask)).values())
        return colours.pop() if len(colours) == 1 else None
    found = mask.getcolors(1)
    if found is None:
        return None
    return found[0][1] if isinstance(found[0][1], tuple) else (found[0][1],)


def _colours_of(mask: PIL.Image.Image) -> str:
    found = mask.getcolors(256)
    if found is None:
        return "more than 256 colours"
    if mask.mode == "P":
        colours = palette_colours(mask, sorted(index for _, index in found))
        return f"{len(colours)} indices {shortened([f'{index} {colour}' for index, colour in colours.items()])}"
    colours = sorted(colour for _, colour in found)
    return f"{len(colours)} colours {shortened(colours)}"
