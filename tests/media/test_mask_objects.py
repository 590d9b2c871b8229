"""Which objects a mask tells apart, and which masks it is not known of."""

import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_pictures import ACCEPTED, ACCEPTED_NAMES, BLACK, GREEN, RED, TABLE, WHITE, expected, halves

from sa2va_trl.media.mask_objects import array_objects, colour_name, mask_objects


# What is refused as a binary mask and has objects nevertheless: their names, in the order of the table's values.
OBJECTS = [
    ("L", (0, 2), ("2",)),
    ("L", (0, 1, 2), ("1", "2")),
    ("LA", ((0, 0), (255, 255)), ("255",)),
    ("LA", ((0, 255), (3, 255)), ("3",)),
    ("RGB", (BLACK, (2, 2, 2)), ("#020202",)),
    ("RGB", (BLACK, (1, 0, 0)), ("#010000",)),
    ("RGB", (BLACK, (0, 0, 1)), ("#000001",)),
    ("RGB", (BLACK, (0, 255, 0)), ("#00FF00",)),
    ("RGB", (BLACK, (1, 0, 0), (2, 0, 0)), ("#010000", "#020000")),
    ("RGBA", ((*BLACK, 255), (*RED, 255)), ("#800000",)),
    ("RGBA", ((*BLACK, 0), (*WHITE, 255)), ("#FFFFFF",)),
    ("P", ((0, BLACK), (2, RED)), ("2",)),
    ("P", ((0, BLACK), (1, RED), (2, GREEN)), ("1", "2")),
    ("P+alpha", ((0, BLACK, 0), (1, RED, 255)), ("1",)),
    ("PA", ((0, BLACK, 0), (1, RED, 255)), ("1",)),
    ("PA", ((0, BLACK, 255), (2, RED, 255)), ("2",)),
    ("I;16", (0, 256), ("256",)),
    ("I;16", (0, 300, 700), ("300", "700")),
    ("I;16B", (0, 256), ("256",)),
    ("I;16B", (0, 300, 700), ("300", "700")),
    ("I", (0, 256), ("256",)),
    ("I", (0, 70000, 70001), ("70000", "70001")),
]
REFUSED = [case[:2] for case in TABLE if isinstance(case[2], str) and case[:2] not in [own[:2] for own in OBJECTS]]


@pytest.mark.parametrize(("mode", "values", "reading"), ACCEPTED, ids=ACCEPTED_NAMES)
def test_a_binary_mask_is_one_object(mode, values, reading):
    found = mask_objects(halves(mode, values))
    assert len(found.names) == any(reading)
    np.testing.assert_array_equal(found.mask(set(found.names)), expected(reading) > 0)


@pytest.mark.parametrize(("mode", "values", "names"), OBJECTS)
def test_ids_and_colours_are_objects(mode, values, names):
    made = halves(mode, values)
    before = made.tobytes()
    found = mask_objects(made)
    assert found.names == names
    columns = np.zeros((2, 12), dtype=bool)
    columns[0, 6:], columns[-1, -1] = True, True
    if len(names) == 2:
        columns[0, -1] = False
    for name, column in zip(names, columns, strict=False):
        np.testing.assert_array_equal(found.mask({name}), np.tile(column, (8, 1)))
    assert made.tobytes() == before, "the caller's picture is left alone"


@pytest.mark.parametrize(("mode", "values"), REFUSED)
def test_what_may_mean_two_things_is_refused(mode, values):
    with pytest.raises(ValueError, match=r"is not binary|is ambiguous|not read as a mask"):
        mask_objects(halves(mode, values))


# ---------------------------------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------------------------------


@st.composite
def label_maps(draw):
    """Up to 5 rectangles, the later above the earlier, on a background; numbered from 1 without gaps."""
    height, width = draw(st.integers(12, 24)), draw(st.integers(12, 24))
    labels = np.zeros((height, width), dtype=np.int64)
    for number in range(draw(st.integers(0, 5))):
        top, left = draw(st.integers(0, height - 4)), draw(st.integers(0, width - 4))
        labels[top : top + draw(st.integers(3, 5)), left : left + draw(st.integers(3, 5))] = number + 1
    labels[-1] = 0
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def picture_of(labels, values, mode):
    """A picture in which each label has its value."""
    table = np.array([0, *values])
    if mode == "RGBA":
        made = picture_of(labels, values, "RGB")
        made.putalpha(PIL.Image.fromarray((labels > 0).astype(np.uint8) * 255))
        return made
    if mode == "RGB":
        codes = table[labels]
        return PIL.Image.fromarray(np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8))
    if mode == "P":
        made = PIL.Image.fromarray(table[labels].astype(np.uint8), "P")
        made.putpalette(np.random.default_rng(0).integers(1, 256, 768, dtype=np.uint8).tolist())
        palette = made.getpalette()
        made.putpalette([0, 0, 0, *palette[3:]])
        return made
    return PIL.Image.fromarray(table[labels].astype({"L": np.uint8, "I;16": np.uint16, "I": np.int32}[mode]))


# Corners of the cube of colours with a channel of 0: none lies between two others.
CORNERS = [0xFF0000, 0x00FF00, 0x0000FF, 0xFFFF00, 0x55AAFF]
IDS = {"L": range(1, 33), "P": range(1, 200), "I;16": range(257, 60000), "I": range(257, 10**9)}
FILES = {"L": ["PNG", "TIFF", "BMP", "PPM"], "P": ["PNG", "GIF", "BMP"], "RGB": ["PNG", "WEBP", "BMP", "PPM"]}
FILES |= {"RGBA": ["PNG", "WEBP", "TIFF"], "I;16": ["PNG", "TIFF"], "I": ["TIFF"]}


@settings(max_examples=150, deadline=None)
@given(label_maps(), st.sampled_from(sorted(FILES)), st.data())
def test_objects_in_any_mode_come_back_from_any_file(labels, mode, data):
    count = int(labels.max())
    pool = CORNERS if mode in ("RGB", "RGBA") else IDS[mode]
    values = sorted(data.draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count, unique=True)))
    form = data.draw(st.sampled_from(FILES[mode]))
    buffer = io.BytesIO()
    picture_of(labels, values, mode).save(
        buffer, format=form, **({"lossless": True, "exact": True} if form == "WEBP" else {})
    )
    try:
        found = mask_objects(PIL.Image.open(buffer))
    except ValueError as error:
        # What touches, or is hidden but for some pixels, may be a grey edge; colours of a palette, a mixture.
        assert mode not in ("L", "RGB", "RGBA") and "or" in str(error)
        assert mode == "P" or count > 1
        return
    np.testing.assert_array_equal(found.numbers, labels)
    if form != "GIF":  # which numbers the colours anew
        binary = found.names == ("255",) or mode == "RGBA" and count == 1
        assert binary or found.names == tuple(
            colour_name(value) if mode in ("RGB", "RGBA") else str(value) for value in values
        )


@settings(max_examples=200, deadline=None)
@given(
    label_maps(),
    st.sampled_from(["BOX", "BILINEAR", "BICUBIC", "LANCZOS"]),
    st.integers(5, 40),
    st.sampled_from(["L", "half", "I;16", "RGB", "white on colour", "RGBA", "alpha", "P", "grey P", "NPY"]),
)
def test_smoothed_masks_are_refused(labels, method, size, form):
    """Whatever its colours and depth, a mask with soft edges has no objects but by a threshold."""
    method = PIL.Image.Resampling[method]
    soft = PIL.Image.fromarray((labels > 0).astype(np.uint8) * 255).resize((size, size), method)
    grey = np.asarray(soft)
    edges = (grey > 40) & (grey < 215)
    if edges.sum() < 3 or len(np.unique(grey[edges])) < 2:
        return
    share = grey[..., None] / 255
    if form == "half":
        made = PIL.Image.fromarray(np.rint(share[..., 0] * 128).astype(np.uint8))
    elif form in ("I;16", "NPY"):
        made = PIL.Image.fromarray(np.rint(share[..., 0] * 65535).astype(np.uint16))
    elif form == "RGB":
        made = PIL.Image.fromarray(np.rint(share * [85, 170, 255]).astype(np.uint8))
    elif form == "white on colour":
        made = PIL.Image.fromarray(np.rint(share * 255 + (1 - share) * [68, 1, 84]).astype(np.uint8))
    elif form == "RGBA":
        made = PIL.Image.fromarray(
            np.concatenate([np.rint(share * [255, 0, 0]), grey[..., None]], axis=-1).astype(np.uint8)
        )
    elif form == "alpha":
        made = PIL.Image.fromarray(np.dstack([np.full((size, size, 3), 255, np.uint8), grey]))
    elif form == "P":
        made = PIL.Image.fromarray(np.rint(share * [255, 0, 90]).astype(np.uint8)).quantize(256)
        if len(made.getcolors()) < 3:
            return
    elif form == "grey P":
        made = soft.convert("P")
    else:
        made = soft
    with pytest.raises(ValueError, match="is not binary|is ambiguous"):
        array_objects(np.asarray(made)) if form == "NPY" else mask_objects(made)


# ---------------------------------------------------------------------------------------------------------------------
# Thresholds, classes, losses
# ---------------------------------------------------------------------------------------------------------------------


def grey(*values, dtype=np.uint8):
    return np.array([values] * 3, dtype=dtype)


@pytest.mark.parametrize(
    ("values", "threshold", "inside"),
    [
        (grey(0, 100, 200), 128, [0, 0, 1]),
        (grey(0, 100, 200), 100, [0, 1, 1]),
        (grey(0, 1, 2), 128, [0, 0, 0]),  # the threshold is what is asked for
        (grey(0, 255), 128, [0, 1]),
        (grey(0, 1, dtype=bool), 128, [0, 1]),
        (grey(0, 0.4, 0.5, dtype=np.float32), 0.5, [0, 0, 1]),
        (grey(0, 0, dtype=np.float64), 0.5, [0, 0]),
        (grey(-3.5, 40, 200, dtype=np.float64), 100, [0, 0, 1]),
        (grey(0, 30000, 40000, dtype=np.uint16), 32768, [0, 0, 1]),
    ],
)
def test_thresholds(values, threshold, inside):
    found = [array_objects(values, threshold)]
    if values.dtype in (np.uint8, np.uint16, np.float32):
        found.append(mask_objects(PIL.Image.fromarray(values), threshold))
    for own in found:
        assert len(own.names) == any(inside)
        np.testing.assert_array_equal(own.mask(own.names), [np.array(inside) > 0] * 3)


@pytest.mark.parametrize(
    ("values", "threshold", "reason"),
    [
        (grey(0, 100, 200), 0.5, "a threshold of 0.5 keeps all but 0: 128 is half of 255"),
        (grey(0, 0.9, dtype=np.float32), 128, "all below the threshold 128: is it to be 0.5"),
        (grey(0, 1), 128, "an object if it is a binary mask, nothing by the threshold 128"),
        (grey(0, np.nan, dtype=np.float32), 0.5, "no numbers"),
        (grey(0, 0.9, dtype=np.float32), None, "Choose the threshold"),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(values, threshold, reason):
    for read in (
        lambda: array_objects(values, threshold),
        lambda: mask_objects(PIL.Image.fromarray(values), threshold),
    ):
        with pytest.raises(ValueError, match=reason):
            read()


def test_a_threshold_is_not_for_colours():
    for mode, values in (("RGB", (BLACK, RED)), ("P", ((0, BLACK), (2, RED)))):
        with pytest.raises(ValueError, match="mask_threshold is for grey"):
            mask_objects(halves(mode, values), 128)
    assert mask_objects(halves("P", ((0, BLACK), (1, (90, 90, 90)), (2, WHITE))), 128).mask({None})[0].sum() == 1


@pytest.mark.parametrize(
    ("mode", "values", "known", "names"),
    [
        ("L", (0, 128, 255), {"128", "255"}, ("128", "255")),
        ("L", (0, 15, 255), {"15"}, ("15", "255")),  # what is to be ignored is left out by the caller
        ("L", (1, 2, 3), {"1"}, ("1", "2", "3")),
        ("RGB", (WHITE, RED), {"#800000"}, ("#800000", "#FFFFFF")),
        ("RGB", (BLACK, (64, 0, 0), RED), {"#400000", "#800000"}, ("#400000", "#800000")),
        ("P", ((0, BLACK), (1, (90, 90, 90)), (2, WHITE)), {"1", "2"}, ("1", "2")),
        ("P", ((0, WHITE), (1, BLACK)), {"1"}, ("1",)),
    ],
)
def test_what_is_known_is_not_ambiguous(mode, values, known, names):
    assert mask_objects(halves(mode, values), known=known).names == names
    with pytest.raises(ValueError, match=r"ambiguous|classes"):
        mask_objects(halves(mode, values))


def test_what_is_known_does_not_excuse_grey_edges():
    with pytest.raises(ValueError, match="Grey edges of one object, or an id"):
        mask_objects(halves("L", (0, 128, 255)), known={"255"})


def test_ids_do_not_survive_jpeg():
    for made in (halves("L", (0, 1, 2)), halves("RGB", (BLACK, (0, 0, 255)))):
        with pytest.raises(ValueError, match="It is a JPEG, or as lossy"):
            mask_objects(made, lossy=True)
    assert mask_objects(halves("L", (0, 255)), lossy=True).names == ("255",)


def test_too_many_objects_are_refused_before_they_are_drawn():
    values = np.arange(1024 * 64, dtype=np.int32).reshape(256, 256)
    with pytest.raises(ValueError, match="Grey edges of one object, or an id for each"):
        array_objects(values)
    with pytest.raises(ValueError, match="more than 256"):
        array_objects(values, known=set(map(str, range(1024 * 64))))


@pytest.mark.parametrize(
    "values", [np.zeros((2, 3, 4, 5), np.uint8), np.zeros((3, 3), complex), np.zeros((4, 4, 3), np.int32)]
)
def test_arrays_that_are_no_masks(values):
    with pytest.raises(ValueError, match="expected one number a pixel"):
        array_objects(values)
