import numpy as np
import pytest
from annotation_formats import SQUARE_MASK, brush_rle, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as pycocotools

from sa2va_trl.data.rle import brush_bytes, brush_mask, coco_counts, coco_string, mask_runs, runs_mask
from sa2va_trl.errors import DatasetError


MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20))


def size_of(mask):
    return mask.shape[::-1]


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_coco_is_read_as_pycocotools_writes_it(mask):
    encoded = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    for form in (encoded, encoded.decode()):
        counts = coco_counts(form)
        assert counts == runs(mask.T.ravel())
        assert (runs_mask(counts, size_of(mask), columns=True) == mask).all()


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_rows_and_brushes(mask):
    assert (runs_mask(runs(mask.ravel()), size_of(mask), columns=False) == mask).all()
    assert (brush_mask(bytes(brush_rle(mask)), size_of(mask)) == mask).all()


def test_large_runs():
    mask = np.zeros((900, 800), dtype=bool)
    mask[100:700, 50:600] = True
    encoded = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert (runs_mask(coco_counts(encoded), (800, 900), columns=True) == mask).all()


def test_brush_as_label_studio_writes_it():
    # brush.encode_rle of label_studio_sdk 2.1.2, of this mask in RGBA
    data = [0, 0, 1, 128, 57, 27, 254, 55, 0, 191, 255, 135, 192, 47, 255, 225, 240, 11, 255, 249, 140, 2, 63, 252]
    mask = SQUARE_MASK.copy()
    mask[5, 7] = True
    assert (brush_mask(bytes([*data, 222, 0]), (12, 8)) == mask).all()


@pytest.mark.parametrize(
    ("counts", "reason"),
    [([3, 4], "has 7 pixels"), ([3, 94], "has 97 pixels"), ([100, -4], "a run of -4"), ([], "has 0 pixels")],
)
def test_runs_that_are_not_the_picture(counts, reason):
    with pytest.raises(DatasetError, match=reason):
        runs_mask(counts, (12, 8), columns=True)


@pytest.mark.parametrize(
    ("text", "reason"), [("5~", "damaged"), ("5\n", "damaged"), ("ä", "damaged"), ("\ud800", "damaged"), ("o", "ends")]
)
def test_strings_that_pycocotools_does_not_write(text, reason):
    with pytest.raises(DatasetError, match=reason):
        coco_counts(text)
    with pytest.raises(DatasetError, match="damaged"):
        coco_counts("o" * 1000)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30))
def test_any_string_is_refused_or_what_pycocotools_reads(text):
    try:
        counts = coco_counts(text)
        if not 0 < sum(counts) < 10_000:
            return
        mask = runs_mask(counts, (1, sum(counts)), columns=True)
    except DatasetError:
        return
    again = pycocotools.frPyObjects({"size": [mask.size, 1], "counts": counts}, mask.size, 1)
    assert (pycocotools.decode(again) == mask).all()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_brushes(data):
    rle = bytearray(brush_rle(SQUARE_MASK))
    for _ in range(data.draw(st.integers(1, 3))):
        rle[data.draw(st.integers(0, len(rle) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert brush_mask(bytes(rle[: data.draw(st.integers(0, len(rle)))]), (12, 8)).shape == (8, 12)
    except DatasetError as error:
        assert "brush RLE" in str(error)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "ends too early"), (b"\xff" * 4, "has 4294967295 values"), (b"\0\0\1\x80", "ends too")]
)
def test_brushes_that_are_not_the_picture(data, reason):
    with pytest.raises(DatasetError, match=reason):
        brush_mask(data, (12, 8))


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_what_is_written_is_read_and_is_what_the_tools_write(mask):
    encoded = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert coco_string(mask_runs(mask, columns=True)).encode() == encoded
    assert mask_runs(mask, columns=False) == runs(mask.ravel())
    assert (brush_mask(brush_bytes(mask), size_of(mask)) == mask).all()


def test_large_masks_are_written():
    mask = np.zeros((900, 800), dtype=bool)
    mask[100:700] = True
    mask[200:300, 50:600] = False
    encoded = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert coco_string(mask_runs(mask, columns=True)).encode() == encoded
    assert (brush_mask(brush_bytes(mask), size_of(mask)) == mask).all()
