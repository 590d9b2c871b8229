"""What is read as a mask and what is refused: the table at the top is the documentation."""

import ast
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl import rewards
from sa2va_trl.data import columns, masks
from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.collator import SegCollator
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.layout import normalize_row
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.masks import decode_mask, judge_mask
from sa2va_trl.data.readers.mask_folder import read_mask_folder
from sa2va_trl.data.stored import plain_rows
from sa2va_trl.errors import DatasetError
from sa2va_trl.media import masks as mask_pixels
from sa2va_trl.media.masks import binary_mask
from sa2va_trl.media.pictures import open_image, page_count, quiet_pillow, too_deep
from sa2va_trl.models.tiny import tiny_sa2va
from sa2va_trl.preferences.dataset import check_preferences
from sa2va_trl.rewards import dice_reward


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


@pytest.fixture(scope="module")
def collator():
    return SegCollator(tiny_sa2va(image_size=128)[1])


def learnt(collator, row):
    """What the collator makes of a row's one mask, at its own size."""
    return collator([row])["original_masks"][0][0].numpy() * 255


GREY = PIL.Image.new("RGB", (WIDTH, HEIGHT), "grey")
NAMES = [f"{mode}-{values}".replace(" ", "") for mode, values, _ in TABLE]
ACCEPTED_NAMES = [name for name, case in zip(NAMES, TABLE, strict=True) if not isinstance(case[2], str)]


@pytest.mark.parametrize(("mode", "values", "reading"), TABLE, ids=NAMES)
def test_decoded(mode, values, reading):
    made = halves(mode, values)
    before = made.tobytes()
    if isinstance(reading, str):
        with pytest.raises(ValueError) as caught:
            binary_mask(made)
        assert reading in str(caught.value)
        with pytest.raises(DatasetError) as caught:
            normalize_row({"image": GREY, "mask": made, "phrase": "vessel", "sample_id": "s"})
        assert "row with sample_id 's' cannot be used: mask 0 " in str(caught.value) and reading in str(caught.value)
    else:
        read = binary_mask(made)
        assert read.mode == "L" and np.array_equal(np.asarray(read), expected(reading))
    assert made.tobytes() == before, "the caller's picture is left alone"


# A form that cannot hold a picture in its mode is no case.
FILES = [
    pytest.param(form, data, reading, id=f"{form}-{name}")
    for name, (mode, values, reading) in zip(NAMES, TABLE, strict=True)
    for form in FORMATS
    if (data := saved(halves(mode, values), form))
]


@pytest.mark.parametrize(("form", "data", "reading"), FILES)
def test_stored(form, data, reading, tmp_path):
    for folder in ("image", "mask"):
        (tmp_path / folder).mkdir()
    GREY.save(tmp_path / "image" / "a.png")
    (tmp_path / "mask" / f"a.{form[:4].lower().replace('tiff', 'tif')}").write_bytes(data)
    row = {"image": GREY, "masks": [{"bytes": data, "path": None}], "phrases": ["vessel"], "sample_id": "a"}
    stored = Dataset.from_list([row], features=Features({**FEATURES, "masks": List(Image())}))
    if isinstance(reading, str):
        for read in (
            lambda: decode_mask(row["masks"][0]),
            lambda: read_mask_folder(tmp_path),
            lambda: check_dataset(stored),
            lambda: normalize_row(stored[0]),
        ):
            with pytest.raises(DatasetError) as caught:
                read()
            assert reading in str(caught.value)
    else:
        check_dataset(stored)
        folder = read_mask_folder(tmp_path)
        check_dataset(folder)
        for mask in (decode_mask(row["masks"][0]), normalize_row(stored[0])["masks"][0], folder[0]["masks"][0]):
            assert np.array_equal(np.asarray(mask), expected(reading))


def test_the_table_reaches_every_format():
    """What `FILES` leaves out is what formats cannot hold, not all of it."""
    held = {form: {mode for mode, values, _ in TABLE if saved(halves(mode, values), form)} for form in FORMATS}
    assert held["PNG"] >= {"1", "L", "LA", "P", "P+alpha", "RGB", "RGBA", "I;16"}
    assert held["TIFF"] >= {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB"}
    assert held["TIFF-LZW"] >= {"L", "RGBA", "I;16", "I", "F"}
    assert held["WEBP"] >= {"RGB", "RGBA"} and held["PPM"] >= {"1", "L", "RGB", "I"}
    assert held["GIF"] and held["BMP"] >= {"1", "L", "P", "RGB"}


@pytest.mark.parametrize(("mode", "values", "reading"), ACCEPTED, ids=ACCEPTED_NAMES)
def test_the_collator_learns_it(mode, values, reading, collator):
    row = {"image": GREY, "mask": halves(mode, values), "phrase": "vessel", "sample_id": "s"}
    assert np.array_equal(learnt(collator, row), expected(reading))
    other = PIL.Image.new("L", (WIDTH, HEIGHT), 0 if any(reading) else 255)  # the masks of a pair are not equal
    batch = collator([{**row, "chosen_mask": row["mask"], "rejected_mask": other}])
    assert batch["chosen_masks"].bool().any() == any(reading) != batch["rejected_masks"].bool().any()


def test_big_endian_tiff():
    """Pillow reads it as `I;16B`, and writes none."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=">u2")
    tags = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
    tags += [(278, 3, HEIGHT), (279, 4, pixels.nbytes)]
    entries = b"".join(
        struct.pack(">HHIHH", tag, kind, 1, value, 0) if kind == 3 else struct.pack(">HHII", tag, kind, 1, value)
        for tag, kind, value in tags
    )
    header = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + struct.pack(">I", 0)
    for value, accepted in ((1, True), (65535, True), (256, False)):
        pixels[:, 6:] = value
        source = {"bytes": header.ljust(200, b"\0") + pixels.tobytes(), "path": None}
        assert open_image(source).mode == "I;16B"
        if accepted:
            assert np.array_equal(np.asarray(decode_mask(source)), expected(RIGHT))
        else:
            with pytest.raises(DatasetError, match="mode I;16B, values 0, 256"):
                decode_mask(source)


def png_of_16_bits(colour_type, channels, value):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.zeros((HEIGHT, WIDTH, channels), dtype=">u2")
    pixels[:, 6:] = value
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour_type, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return {"bytes": b"\x89PNG\r\n\x1a\n" + data, "path": None}


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("value", [1, 255, 300, 65535])
def test_channels_of_16_bits_are_refused(colour_type, channels, value):
    """Pillow decodes their upper halves alone: ids below 256 would all be 0."""
    with pytest.raises(DatasetError, match="16 bits in each of several channels"):
        decode_mask(png_of_16_bits(colour_type, channels, value))


def test_a_pnm_of_16_bits():
    right = np.zeros((HEIGHT, WIDTH), dtype=">u2")
    right[:, 6:] = 1
    grey = {"bytes": b"P5\n12 8\n65535\n" + right.tobytes(), "path": None}
    assert np.array_equal(np.asarray(decode_mask(grey)), expected(RIGHT))
    colours = {"bytes": b"P6\n12 8\n65535\n" + np.stack([right] * 3, axis=-1).tobytes(), "path": None}
    with pytest.raises(DatasetError, match="16 bits"):
        decode_mask(colours)


def test_a_programs_own_numbering_of_colours_is_not_turned_round():
    """Reducing black and white to a palette may put white first; the object is then refused or right."""
    right = PIL.Image.fromarray(expected(RIGHT))
    for made in (right.convert("RGB").quantize(2), right.convert("RGB").convert("P"), right.convert("P")):
        try:
            read = np.asarray(binary_mask(made))
        except ValueError as error:
            assert "ambiguous" in str(error)
        else:
            assert np.array_equal(read, expected(RIGHT))


# ---------------------------------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------------------------------

OBJECTS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0, 0.3, 1])).map(
    lambda drawn: np.random.default_rng(drawn[2]).random(drawn[:2]) < drawn[3]
)
# Background and object in every accepted form.
FORMS = sorted({(mode, values) for mode, values, reading in ACCEPTED if reading == RIGHT}, key=str)
CONSTANT_SAFE = [form for form in FORMS if form[0] in ("1", "L", "RGB", "I", "I;16", "I;16B")]


def in_form(mode, values, shape):
    background, foreground = (np.array(flat(value)) for value in values)
    pixels = np.where(shape[..., None], foreground, background)
    return picture(mode, pixels if isinstance(values[0], tuple) else pixels[..., 0])


@settings(max_examples=150, deadline=None)
@given(OBJECTS, st.sampled_from(FORMS), st.sampled_from(sorted(FORMATS)))
def test_a_mask_in_any_accepted_form_is_read_back(shape, form, container):
    made = in_form(*form, shape)
    sources = [made]
    if data := saved(made, container):
        sources.append({"bytes": data, "path": None})
    for source in sources:
        try:
            read = np.asarray(decode_mask(source))
        except DatasetError as error:
            # Of one colour alone it may be ambiguous whether that is the object.
            assert shape.all() or not shape.any(), error
            assert form not in CONSTANT_SAFE
        else:
            if form in CONSTANT_SAFE or shape.any() and not shape.all():
                assert np.array_equal(read, shape * np.uint8(255))


RAW = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"])
LEVELS = st.lists(st.sampled_from([0, 1, 2, 127, 254, 255]), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(RAW, LEVELS, st.integers(0, 2**32 - 1), st.sampled_from([None, "L", "RGB"]))
def test_what_the_check_accepts_is_what_the_collator_gets(mode, levels, seed, declared):
    """Whatever lies in a set's bytes, and whatever its feature converts to: refused, or learnt as it was judged."""
    bands = len(PIL.Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).choice(levels, (4, 5, bands))
    if mode == "P":
        colours = np.random.default_rng(seed).choice([0, 255, 128], (256, 3))
        pixels = np.concatenate([pixels, colours[pixels[..., 0]]], axis=-1)
    made = picture(mode, pixels if pixels.shape[-1] > 1 else pixels[..., 0].clip(0, 1 if mode == "1" else None))
    data = saved(made, "TIFF")
    if data is None:
        return
    grey = PIL.Image.new("L", made.size, 9)
    stored = Dataset.from_list(
        [{"image": grey, "masks": [{"bytes": data, "path": None}], "phrases": ["a"], "sample_id": "a"}],
        features=Features({**FEATURES, "masks": List(Image(mode=declared))}),
    )
    try:
        check_dataset(stored)
    except DatasetError:
        return
    judged = decode_mask({"bytes": data, "path": None})
    assert normalize_row(stored[0])["masks"][0].tobytes() == judged.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Where the evidence could be lost on the way
# ---------------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("column", ["mask", "masks"])
def test_a_conversion_that_hides_alpha_is_refused(column):
    shown = Image(mode="L") if column == "mask" else List(Image(mode="L"))
    with pytest.raises(DatasetError, match=r"mask 0 would be read wrongly: its column is Image\(mode='L'\)") as caught:
        check_dataset(prepared(alpha_mask(), column, shown))
    assert "cast the column" in str(caught.value) and "datasets.Image()" in str(caught.value)
    raw = Image() if column == "mask" else List(Image())
    stored = prepared(alpha_mask(), column, raw)
    check_dataset(stored)
    assert np.array_equal(np.asarray(normalize_row(stored[0])["masks"][0]), expected(RIGHT))


@pytest.mark.parametrize("column", ["mask", "masks"])
@pytest.mark.parametrize("how", ["save_to_disk", "parquet", "metadata"])
def test_a_prepared_dataset_keeps_alpha_to_the_collator(tmp_path, column, how, collator):
    stored = prepared(alpha_mask(), column, Image() if column == "mask" else List(Image()))
    if how == "save_to_disk":
        stored.save_to_disk(tmp_path / "d")
    elif how == "parquet":
        (tmp_path / "d").mkdir()
        stored.to_parquet(tmp_path / "d" / "train.parquet")
    else:
        (tmp_path / "d" / "train").mkdir(parents=True)
        GREY.save(tmp_path / "d" / "train" / "a.png")
        alpha_mask().save(tmp_path / "d" / "train" / "a_mask.png")
        row = {"file_name": "a.png", "mask_file_name": "a_mask.png", "phrase": "vessel"}
        if column == "masks":
            row = {"image_file_name": "a.png", "masks_file_names": ["a_mask.png"], "phrases": ["vessel"]}
        (tmp_path / "d" / "train" / "metadata.jsonl").write_text(json.dumps(row))
    dataset = load_dataset_dict(tmp_path / "d")["train"]
    check_dataset(dataset)
    assert np.array_equal(learnt(collator, dataset[0]), expected(RIGHT))


STEPS = {
    "map": lambda stream, features: stream.map(lambda row: {"patient_id": "p"}),
    "map, features": lambda stream, features: stream.map(lambda row: {"sample_id": "b"}, features=features),
    "filter": lambda stream, features: stream.filter(lambda row: True),
    "filter, shuffle": lambda stream, features: stream.filter(lambda row: True).shuffle(seed=0, buffer_size=2),
    "to array": lambda stream, features: stream.map(lambda row: {"mask": np.array(row["mask"])}),
    "decoded in threads": lambda stream, features: stream.decode(num_threads=2).map(lambda row: {"sample_id": "b"}),
    "two streams": lambda stream, features: concatenate_datasets([stream.filter(lambda row: True), stream]),
}


@pytest.mark.parametrize("step", STEPS)
def test_the_steps_of_a_stream_hide_nothing(step):
    """`map` and `filter` decode a row before it is asked for as it is stored."""

    def through(made, feature):
        stored = prepared(made, "mask", feature)
        stream = plain_rows(STEPS[step](stored.to_iterable_dataset(), stored.features))
        return [np.asarray(normalize_row(row)["masks"][0]) for row in stream][0]

    with pytest.raises(DatasetError, match=r"would be read wrongly: its column is Image\(mode='L'\).*before `map`"):
        through(alpha_mask(), Image(mode="L"))
    if step != "to array":  # of four channels, which the function is to reduce
        assert np.array_equal(through(alpha_mask(), Image()), expected(RIGHT))
    assert np.array_equal(through(halves("L", (0, 255)), Image(mode="L")), expected(RIGHT)), "what is written here"
    assert np.array_equal(through(halves("RGB", (BLACK, WHITE)), Image(mode="L")), expected(RIGHT)), "nothing is lost"


@pytest.mark.parametrize(
    ("rename", "reason"),
    [
        (lambda stream: stream.rename_column("label", "mask"), "a mask of the stream would be read wrongly"),
        (
            lambda stream: stream.map(lambda row: {"mask": row["label"]}, remove_columns="label"),
            "sample_id 'a' cannot be used: mask 0 would be read wrongly",
        ),
    ],
)
def test_a_mask_that_a_step_renames(rename, reason):
    def renamed(made, feature):
        stored = prepared(made, "mask", feature).rename_column("mask", "label")
        (row,) = plain_rows(rename(stored.to_iterable_dataset()))
        return np.asarray(normalize_row(row)["masks"][0])

    with pytest.raises(DatasetError, match=reason):
        renamed(alpha_mask(), Image(mode="L"))
    assert np.array_equal(renamed(alpha_mask(), Image()), expected(RIGHT))
    assert np.array_equal(renamed(halves("L", (0, 255)), Image(mode="L")), expected(RIGHT))


def test_16_bits_that_a_step_has_decoded_are_refused():
    stored = prepared(halves("L", (0, 255)), "mask", Image())
    row = {"image": png(GREY), "mask": png_of_16_bits(2, 3, 1), "phrase": "a"}
    stored = Dataset.from_list([{**row, "sample_id": "a"}], features=stored.features)
    with pytest.raises(DatasetError, match="has 16 bits in each of several channels"):
        list(plain_rows(stored.to_iterable_dataset().filter(lambda row: True)))


def test_loading_masks_writes_no_copy_of_them(tmp_path):
    prepared(halves("L", (0, 255)), "masks", List(Image())).save_to_disk(tmp_path / "d")
    before = sorted(path.name for path in (tmp_path / "d").rglob("*"))
    files = load_dataset_dict(tmp_path / "d")["train"].cache_files
    assert files == load_from_disk(str(tmp_path / "d")).cache_files
    assert sorted(path.name for path in (tmp_path / "d").rglob("*")) == before


def test_pairs_are_judged_likewise():
    left, right = (halves("RGBA", values) for values in (((*RED, 255), (*RED, 0)), ((*RED, 0), (*RED, 255))))
    rows = [
        {"image": GREY, "mask": png(right), "chosen_mask": png(right), "rejected_mask": png(left), "sample_id": "a"}
    ]
    raw = {"image": Image(), "mask": Image(), "chosen_mask": Image(), "rejected_mask": Image()}
    check_preferences(Dataset.from_list(rows, features=Features({**raw, "sample_id": Value("string")})))
    features = Features({**raw, "chosen_mask": Image(mode="L"), "sample_id": Value("string")})
    with pytest.raises(DatasetError, match="chosen_mask would be read wrongly"):
        check_preferences(Dataset.from_list(rows, features=features))


def test_the_judge_of_pixels_stands_below_everything():
    """Rewards and columns both stand on it; under its old names it is the same function."""
    source = ast.parse(Path(mask_pixels.__file__).read_text())
    imported = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in imported if node.level or node.module.startswith("sa2va_trl")]
    source = ast.parse(Path(rewards.__file__).read_text())
    imported = {node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and node.level}
    assert imported == {"media.masks", "metrics"}
    assert masks.binary_mask is binary_mask and columns.mask_values is mask_pixels.mask_values


def test_rewards_judge_pictures_likewise():
    target = halves("P", ((0, BLACK), (1, (1, 0, 0))))
    assert dice_reward(pred_masks=[expected(RIGHT), expected(LEFT)], mask=[target, target]) == [1, 0]
    assert dice_reward(pred_masks=[[alpha_mask()]], masks=[[target]]) == [1]
    with pytest.raises(ValueError, match="values 0, 7"):
        dice_reward(pred_masks=[target], mask=[halves("L", (0, 7))])


def test_a_decoded_mask_of_several_pages_is_refused(tmp_path):
    pages = [PIL.Image.new("L", (WIDTH, HEIGHT), 255 * (number % 2)) for number in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with PIL.Image.open(tmp_path / "a.tif") as opened:
        opened.load()
        with pytest.raises(DatasetError, match="holds 3 pictures"):
            judge_mask(opened)
    with PIL.Image.open(tmp_path / "a.tif") as file:
        assert page_count(file) == 3


def test_turned_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    PIL.Image.fromarray(expected(RIGHT)).save(tmp_path / "a.png", exif=exif)
    read = np.asarray(decode_mask(tmp_path / "a.png", (HEIGHT, WIDTH)))
    assert np.array_equal(read, np.rot90(expected(RIGHT), -1))


def test_a_decoded_mask_lies_as_its_image():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO(), io.BytesIO()]
    for file, picture in zip(files, (GREY.convert("RGB"), PIL.Image.fromarray(expected(RIGHT))), strict=True):
        picture.save(file, format="PNG", exif=exif)
    image, mask = map(PIL.Image.open, files)
    found = normalize_row({"image": image, "mask": mask, "phrase": "a", "sample_id": "a"})
    assert found["images"][0].size == found["masks"][0].size == (WIDTH, HEIGHT)
    assert np.array_equal(np.asarray(found["masks"][0]), expected(RIGHT))
    stored = normalize_row(
        {
            "image": {"bytes": files[0].getvalue(), "path": None},
            "mask": files[1].getvalue(),
            "phrase": "a",
            "sample_id": "a",
        }
    )
    assert found["masks"][0].size == stored["masks"][0].size[::-1], "as files, both are turned"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("I;16", "more than 8 bits a channel (mode I;16)"),
        ("I", "more than 8 bits"),
        ("F", "more than 8 bits"),
        ("LAB", "has mode LAB, which is not read: convert it to RGB"),
        ("HSV", "has mode HSV, which is not read"),
        ("RGB", None),
        ("CMYK", None),
        ("P", None),
    ],
)
def test_images_have_their_own_guard(mode, reason):
    fault = too_deep(PIL.Image.new(mode, (4, 3)))
    assert fault is None if reason is None else reason in fault


def test_examples_of_other_programs(shared):
    """Every small odd file is read right or refused by name."""
    folder = shared / "data" / "formats"
    truth = json.loads((folder / "truth.json").read_text())
    shapes = {name: np.array([[cell == "#" for cell in row] for row in truth[name]]) for name in ("mask", "second")}
    read = {}
    for name, wanted in truth["files"].items():
        if not name.startswith("masks/"):
            continue
        try:
            mask = np.asarray(decode_mask(folder / name)) > 0
        except DatasetError:
            read[name] = False
        else:
            assert wanted["objects"] == ["mask"] and np.array_equal(mask, shapes["mask"]), name
            read[name] = True
    refused = {name.removeprefix("masks/") for name, right in read.items() if not right}
    assert refused == {
        "palette_two_objects.png",
        "colours.png",
        "instances_16_bit.png",
        "float.tif",
        "antialiased.png",
        "array.npy",
    }
    with pytest.raises(DatasetError, match="all images end in '_training' and all masks in '_manual1': rename"):
        load_dataset_dict(folder / "suffixes")


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_an_image_of_16_bits_in_each_channel_is_refused(colour_type, channels):
    """Of 12-bit values only the upper 8 of 16 bits would be left: a nearly black picture."""
    row = {"image": png_of_16_bits(colour_type, channels, 4095), "mask": PIL.Image.new("L", (WIDTH, HEIGHT))}
    with pytest.raises(DatasetError, match="image has 16 bits in each of several channels"):
        normalize_row({**row, "phrase": "vessel", "sample_id": "s"})


def test_a_tiff_in_which_white_is_zero(tmp_path):
    """Pillow inverts 8 bits, and leaves 16 as they are."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    pixels[:, 6:] = 65535
    PIL.Image.fromarray(pixels).save(tmp_path / "deep.tif", tiffinfo={262: 0})
    with pytest.raises(DatasetError, match="white is zero"):
        decode_mask(tmp_path / "deep.tif")


def test_a_plain_bitmap(tmp_path):
    (tmp_path / "a.pbm").write_text("P1\n4 1\n0 1 1 0\n")
    assert np.array_equal(np.asarray(decode_mask(tmp_path / "a.pbm")), [[255, 0, 0, 255]])
