"""Pictures of masks in every mode: what each is read as, or why it is refused."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
from datasets import Dataset, Features, Image, List, Value

from sa2va_trl.media.pictures import quiet_pillow


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (128, 0, 0), (0, 128, 0)


# The left half of the picture has the first value, the right half the second (a third lies in its last column).
# Read as: which halves are the object.
LEFT, RIGHT, BOTH, NONE = (True, False), (False, True), (True, True), (False, False)


TABLE = [
    # mode, values, read as | refused as
    ("1", (0, 1), RIGHT),
    ("1", (1, 0), LEFT),
    ("1", (0, 0), NONE),
    ("1", (1, 1), BOTH),
    ("L", (0, 255), RIGHT),
    ("L", (255, 0), LEFT),
    ("L", (0, 1), RIGHT),
    ("L", (0, 0), NONE),
    ("L", (1, 1), BOTH),
    ("L", (255, 255), BOTH),
    ("L", (0, 2), "values 0, 2; expected 0 and 255"),
    ("L", (0, 128), "values 0, 128;"),
    ("L", (0, 254), "values 0, 254;"),
    ("L", (1, 255), "values 1, 255;"),
    ("L", (7, 7), "values 7;"),
    ("L", (0, 1, 2), "values 0, 1, 2;"),
    ("L", (0, 255, 128), "values 0, 128, 255;"),
    ("LA", ((255, 0), (255, 255)), RIGHT),  # by alpha
    ("LA", ((0, 255), (0, 0)), LEFT),
    ("LA", ((7, 0), (7, 1)), RIGHT),
    ("LA", ((0, 255), (255, 255)), RIGHT),  # by colour
    ("LA", ((0, 9), (1, 9)), RIGHT),
    ("LA", ((0, 0), (255, 0)), RIGHT),
    ("LA", ((0, 0), (0, 0)), NONE),
    ("LA", ((0, 255), (0, 255)), NONE),
    ("LA", ((255, 255), (255, 255)), BOTH),
    ("LA", ((255, 0), (255, 0)), "transparent everywhere and of one colour, (255,)"),
    ("LA", ((255, 0), (255, 128)), "one colour, and alpha (mode LA) with the values 0, 128"),
    ("LA", ((0, 0), (255, 255)), "both colour (2 colours 0, 255) and alpha (0, 255) vary"),
    ("LA", ((0, 255), (3, 255)), "values 0, 3;"),
    ("RGB", (BLACK, WHITE), RIGHT),
    ("RGB", (BLACK, (1, 1, 1)), RIGHT),
    ("RGB", (BLACK, BLACK), NONE),
    ("RGB", (BLACK, (2, 2, 2)), "values 0, 2;"),
    ("RGB", (BLACK, (1, 0, 0)), "channels differ: 2 colours (0, 0, 0), (1, 0, 0)"),
    ("RGB", (BLACK, (0, 0, 1)), "channels differ: 2 colours (0, 0, 0), (0, 0, 1)"),
    ("RGB", (BLACK, (0, 255, 0)), "channels differ"),
    ("RGB", (BLACK, (1, 0, 0), (2, 0, 0)), "3 colours (0, 0, 0), (1, 0, 0), (2, 0, 0)"),
    ("RGBA", ((*WHITE, 0), (*WHITE, 255)), RIGHT),
    ("RGBA", ((*BLACK, 0), (*BLACK, 255)), RIGHT),
    ("RGBA", ((*RED, 0), (*RED, 255)), RIGHT),
    ("RGBA", ((*BLACK, 255), (*WHITE, 255)), RIGHT),
    ("RGBA", ((*BLACK, 255), (*RED, 255)), "mode RGB, and its channels differ: 2 colours (0, 0, 0), (128, 0, 0)"),
    ("RGBA", ((*BLACK, 0), (*WHITE, 255)), "ambiguous: mode RGBA, in which both colour"),
    ("RGBA", ((*WHITE, 0), (*WHITE, 0)), "transparent everywhere and of one colour, (255, 255, 255)"),
    ("RGBA", ((*RED, 0), (*RED, 127)), "alpha (mode RGBA) with the values 0, 127"),
    ("P", ((0, BLACK), (1, RED)), RIGHT),  # (index, its colour)
    ("P", ((0, BLACK), (1, (1, 0, 0))), RIGHT),
    ("P", ((0, BLACK), (255, RED)), RIGHT),
    ("P", ((0, RED), (1, BLACK)), RIGHT),
    ("P", ((0, WHITE), (1, RED)), RIGHT),
    ("P", ((0, BLACK), (1, BLACK)), RIGHT),
    ("P", ((0, BLACK), (1, WHITE)), RIGHT),
    ("P", ((0, BLACK), (225, WHITE)), RIGHT),  # by colour, where it is black and white
    ("P", ((3, WHITE), (9, BLACK)), LEFT),
    ("P", ((0, RED), (0, RED)), NONE),
    ("P", ((1, RED), (1, RED)), BOTH),
    (
        "P",
        ((0, WHITE), (1, BLACK)),
        "ambiguous: a palette mask with the indices (and their colours) 0 (255, 255, 255)",
    ),
    ("P", ((0, WHITE), (0, WHITE)), "ambiguous"),
    ("P", ((0, BLACK), (2, RED)), "indices (and their colours) 0 (0, 0, 0), 2 (128, 0, 0)"),
    ("P", ((0, BLACK), (1, RED), (2, GREEN)), "0 (0, 0, 0), 1 (128, 0, 0), 2 (0, 128, 0)"),
    ("P", ((0, BLACK), (1, WHITE), (2, WHITE)), "0 (0, 0, 0), 1 (255, 255, 255), 2 (255, 255, 255)"),
    ("P", ((3, RED), (3, RED)), "3 (128, 0, 0)"),
    ("P+alpha", ((0, WHITE, 0), (1, WHITE, 255)), RIGHT),  # (index, its colour, its alpha)
    ("P+alpha", ((0, WHITE, 255), (1, WHITE, 0)), LEFT),
    ("P+alpha", ((0, BLACK, 255), (1, RED, 255)), RIGHT),
    (
        "P+alpha",
        ((0, BLACK, 0), (1, RED, 255)),
        "both colour (2 indices 0 (0, 0, 0), 1 (128, 0, 0)) and alpha (0, 255)",
    ),
    ("PA", ((0, BLACK, 255), (1, RED, 255)), RIGHT),
    ("PA", ((1, RED, 0), (1, RED, 255)), RIGHT),
    ("PA", ((0, BLACK, 0), (1, RED, 255)), "ambiguous: mode PA"),
    ("PA", ((0, BLACK, 255), (2, RED, 255)), "0 (0, 0, 0), 2 (128, 0, 0)"),
    ("I;16", (0, 65535), RIGHT),
    ("I;16", (0, 1), RIGHT),
    ("I;16", (255, 0), LEFT),
    ("I;16", (0, 0), NONE),
    ("I;16", (65535, 65535), BOTH),
    ("I;16", (0, 256), "mode I;16, values 0, 256; expected 0 and 255 (or 0 and 1), or 0 and 65535"),
    ("I;16", (0, 300, 700), "values 0, 300, 700;"),
    ("I;16", (0, 255, 65535), "values 0, 255, 65535;"),
    ("I;16", (1, 255), "values 1, 255;"),
    ("I;16B", (0, 65535), RIGHT),
    ("I;16B", (0, 1), RIGHT),
    ("I;16B", (0, 256), "mode I;16B, values 0, 256;"),
    ("I;16B", (0, 300, 700), "values 0, 300, 700;"),
    ("I", (0, 1), RIGHT),
    ("I", (0, 255), RIGHT),
    ("I", (0, 65535), RIGHT),
    ("I", (0, 2**31 - 1), RIGHT),
    ("I", (0, 256), "mode I, values 0, 256;"),
    ("I", (0, -1), "values -1, 0;"),
    ("I", (0, 70000, 70001), "values 0, 70000, 70001;"),
    ("F", (0, 0.9), "mode F with values from 0 to 0.9. Probabilities? Choose the threshold"),
    ("F", (0, 1), "mode F with values from 0 to 1"),
    ("F", (0, 0), "mode F with values from 0 to 0"),
    ("CMYK", ((0, 0, 0, 255), (0, 0, 0, 0)), "has mode CMYK, which is not read as a mask"),
    ("YCbCr", ((0, 128, 128), (255, 128, 128)), "has mode YCbCr"),
    ("LAB", ((0, 128, 128), (255, 128, 128)), "has mode LAB"),
    ("HSV", ((0, 0, 0), (0, 0, 255)), "has mode HSV"),
]


ACCEPTED = [case for case in TABLE if not isinstance(case[2], str)]


WIDTH, HEIGHT = 12, 8  # not symmetric; the halves meet at 6


FORMATS = {
    "PNG": {},
    "TIFF": {},
    "TIFF-LZW": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True, "exact": True},
    "GIF": {},
    "PPM": {},
    "BMP": {},
}


def picture(mode, pixels):
    """A picture from an array of pixels, each as the table gives it, in its raw mode."""
    height, width = pixels.shape[:2]
    if mode in ("1", "L", "F"):
        array = pixels.astype(np.float32 if mode == "F" else np.uint8)
        return PIL.Image.fromarray(array * 255).convert("1") if mode == "1" else PIL.Image.fromarray(array)
    if mode in ("I", "I;16", "I;16B"):
        kind = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
        return PIL.Image.frombytes(mode, (width, height), pixels.astype(kind).tobytes())
    if mode in ("P", "P+alpha", "PA"):
        indices = PIL.Image.fromarray(pixels[..., 0].astype(np.uint8))
        palette, alphas = [90] * 768, [255] * 256
        for index, *values in np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0).tolist():
            palette[3 * index : 3 * index + 3], alphas[index] = values[:3], values[3] if values[3:] else 255
        indices.putpalette(palette)
        if mode == "P+alpha":
            indices.info["transparency"] = bytes(alphas)
        if mode == "PA":
            indices = indices.convert("PA")
            indices.putalpha(PIL.Image.fromarray(pixels[..., 4].astype(np.uint8)))
        return indices
    return PIL.Image.frombytes(mode, (width, height), pixels.astype(np.uint8).tobytes())


def flat(value):
    """A pixel of the table as one tuple."""
    if not isinstance(value, tuple):
        return (value,)
    return tuple(part for one in value for part in flat(one))


def halves(mode, values):
    rows = np.zeros((HEIGHT, WIDTH, len(flat(values[0]))), dtype=np.float64 if mode == "F" else np.int64)
    rows[:, :6], rows[:, 6:] = flat(values[0]), flat(values[1])
    rows[:, -1] = flat(values[-1])
    made = picture(mode, rows if isinstance(values[0], tuple) else rows[..., 0])
    assert made.mode == mode.removesuffix("+alpha")
    return made


def expected(reading):
    array = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    array[:, :6], array[:, 6:] = 255 * reading[0], 255 * reading[1]
    return array


def saved(made, form):
    """The bytes of a file, or None where the format does not hold these pixels in this mode."""
    buffer = io.BytesIO()
    with quiet_pillow():
        try:
            made.save(buffer, format=form.removesuffix("-LZW"), **FORMATS[form])
        except (OSError, ValueError):
            return None
        read = PIL.Image.open(io.BytesIO(buffer.getvalue()))
        same = read.mode == made.mode and read.tobytes() == made.tobytes()
        if same and made.mode in ("P", "PA"):
            same = read.convert("RGBA").tobytes() == made.convert("RGBA").tobytes()
    return buffer.getvalue() if same else None


GREY = PIL.Image.new("RGB", (WIDTH, HEIGHT), "grey")


NAMES = [f"{mode}-{values}".replace(" ", "") for mode, values, _ in TABLE]


ACCEPTED_NAMES = [name for name, case in zip(NAMES, TABLE, strict=True) if not isinstance(case[2], str)]


def png_of_16_bits(colour_type, channels, value):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.zeros((HEIGHT, WIDTH, channels), dtype=">u2")
    pixels[:, 6:] = value
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour_type, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return {"bytes": b"\x89PNG\r\n\x1a\n" + data, "path": None}


def alpha_mask():
    return halves("RGBA", ((*WHITE, 0), (*WHITE, 255)))


def png(made):
    buffer = io.BytesIO()
    made.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def prepared(made, column, feature):
    row = {"image": GREY, "phrase": "vessel", "sample_id": "a", column: png(made)}
    if column == "masks":
        row |= {"masks": [row["masks"]], "phrases": [row.pop("phrase")]}
    texts = {"phrases": List(Value("string"))} if column == "masks" else {"phrase": Value("string")}
    return Dataset.from_list(
        [row], features=Features({"image": Image(), column: feature, **texts, "sample_id": Value("string")})
    )
