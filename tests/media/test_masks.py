"""What is read as a mask and what is refused: the table in mask_pictures.py is the documentation."""

import ast
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_pictures import (
    ACCEPTED,
    BLACK,
    FORMATS,
    GREY,
    LEFT,
    NAMES,
    RIGHT,
    TABLE,
    alpha_mask,
    expected,
    flat,
    halves,
    picture,
    saved,
)

from sa2va_trl import rewards
from sa2va_trl.data import columns, masks
from sa2va_trl.data.layout import normalize_row
from sa2va_trl.data.masks import decode_mask
from sa2va_trl.errors import DatasetError
from sa2va_trl.media import masks as mask_pixels
from sa2va_trl.media.masks import binary_mask
from sa2va_trl.rewards import dice_reward


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


def test_the_table_reaches_every_format():
    """What `FILES` leaves out is what formats cannot hold, not all of it."""
    held = {form: {mode for mode, values, _ in TABLE if saved(halves(mode, values), form)} for form in FORMATS}
    assert held["PNG"] >= {"1", "L", "LA", "P", "P+alpha", "RGB", "RGBA", "I;16"}
    assert held["TIFF"] >= {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "LAB"}
    assert "YCbCr" in held["TIFF"] or PIL.__version__ < "13"  # which reads it as RGB
    assert held["TIFF-LZW"] >= {"L", "RGBA", "I;16", "I", "F"}
    assert held["WEBP"] >= {"RGB", "RGBA"} and held["PPM"] >= {"1", "L", "RGB", "I"}
    assert held["GIF"] and held["BMP"] >= {"1", "L", "P", "RGB"}


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


# ---------------------------------------------------------------------------------------------------------------------
# Who judges by it
# ---------------------------------------------------------------------------------------------------------------------


def test_the_judge_of_pixels_stands_below_everything():
    """Rewards and columns both stand on it; under its old names it is the same function."""
    source = ast.parse(Path(mask_pixels.__file__).read_text())
    imported = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in imported if node.level or node.module.startswith("sa2va_trl")]
    sources = [ast.parse(file.read_text()) for file in Path(rewards.__file__).parent.glob("*.py")]
    nodes = [node for source in sources for node in ast.walk(source)]
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 2}
    assert imported == {"media.masks", "metrics", "skeletons"}
    assert masks.binary_mask is binary_mask and columns.mask_values is mask_pixels.mask_values


def test_rewards_judge_pictures_likewise():
    target = halves("P", ((0, BLACK), (1, (1, 0, 0))))
    assert dice_reward(pred_masks=[expected(RIGHT), expected(LEFT)], mask=[target, target]) == [1, 0]
    assert dice_reward(pred_masks=[[alpha_mask()]], masks=[[target]]) == [1]
    with pytest.raises(ValueError, match="values 0, 7"):
        dice_reward(pred_masks=[target], mask=[halves("L", (0, 7))])
