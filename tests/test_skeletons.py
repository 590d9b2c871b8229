import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import skeletonize

from sa2va_trl import skeletons as module
from sa2va_trl.skeletons import are_ends, foreground_box, neighbours, skeleton, skeleton_ends, skeletons, thin_words


def sheet(masks):
    """Masks of one size on one picture, a pixel apart, so that none knows of another."""
    count, height, width = masks.shape
    side = int(np.sqrt(count))
    padded = np.pad(masks, ((0, 0), (0, 1), (0, 1))).reshape(side, side, height + 1, width + 1)
    return padded.swapaxes(1, 2).reshape(side * (height + 1), side * (width + 1))


def shapes(size, seed=0, smooth=2.0):
    """Masks whose forms are cut off by all borders."""
    noise = np.random.default_rng(seed).normal(size=size)
    field = ndimage.gaussian_filter(noise, (0, smooth, smooth))
    return field > 0.2 * field.std()


def drawing(*rows):
    return np.pad(np.array([[pixel == "#" for pixel in row] for row in rows]), 1)


def test_every_mask_of_four_by_four_pixels_is_thinned_as_scikit_image_thins_it():
    every = (np.arange(2**16)[:, None] >> np.arange(16) & 1).astype(bool).reshape(-1, 4, 4)
    picture = sheet(every)
    np.testing.assert_array_equal(thin_words(picture[None])[0], skeletonize(picture))


@given(hnp.arrays(bool, st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 70)), fill=st.booleans()))
def test_masks_are_thinned_as_scikit_image_thins_them(masks):
    np.testing.assert_array_equal(thin_words(masks), [skeletonize(mask) for mask in masks])


@pytest.mark.parametrize("width", [1, 62, 63, 64, 65, 127, 128, 129])
def test_no_width_leaks_from_one_row_or_mask_to_the_next(width):
    for masks in (shapes((3, 50, width)), np.ones((2, 40, width), dtype=bool), np.zeros((1, 3, width), dtype=bool)):
        np.testing.assert_array_equal(thin_words(masks), [skeletonize(mask) for mask in masks])


@pytest.mark.parametrize("smooth", [0.0, 0.7, 1.5, 4.0, 12.0])
def test_forms_of_any_width_are_thinned_as_scikit_image_thins_them(smooth):
    masks = shapes((2, 200, 230), seed=1, smooth=smooth)
    np.testing.assert_array_equal(thin_words(masks), [skeletonize(mask) for mask in masks])


@pytest.mark.parametrize("few", [0, 2**30])
def test_masks_have_the_same_skeletons_together_alone_and_either_way(few, monkeypatch):
    monkeypatch.setattr(module, "_FEW", few)
    masks = np.pad(shapes((3, 60, 80)), ((0, 0), (5, 9), (70, 3)))
    masks[1] = False
    kept = masks.copy()
    found = skeletons(masks)
    np.testing.assert_array_equal(found, [skeletonize(mask) for mask in masks])
    np.testing.assert_array_equal(found, [skeleton(mask) for mask in masks])
    np.testing.assert_array_equal(masks, kept)
    assert found.dtype == bool and not skeletons(masks & False).any() and skeletons(masks[:0]).shape == (0, 74, 153)


def test_ends_of_a_skeleton():
    cross = np.zeros((41, 41), dtype=bool)
    cross[20, 10:31] = cross[10:31, 20] = True
    assert sorted(map(tuple, skeleton_ends(cross).tolist())) == [(10, 20), (20, 10), (20, 30), (30, 20)]


@pytest.mark.parametrize(
    ("rows", "ends"),
    [
        (["#"], 0),  # a lone pixel
        (["##"], 2),
        (["#....", "#####"], 2),  # the corner's pixel above is an end of two neighbours, the line's last one of one
        (["##...", "##..."], 0),  # a block
        (["###", "#.#", "###"], 0),
        (["####.", "...##"], 2),
        (["..#..", "#####", "..#.."], 2),  # what sticks out by one pixel is none
        (["..#..", "..#..", "#####"], 3),
    ],
)
def test_a_pixel_with_two_neighbours_side_by_side_is_an_end(rows, ends):
    drawn = drawing(*rows)
    places = np.argwhere(drawn)
    assert len(skeleton_ends(drawn)) == are_ends(neighbours(drawn, places)).sum() == ends


def test_what_is_no_end_holds_two_others_together_or_has_many_around_it():
    """By another definition: an end is one whose neighbours, of which there are at most two, hang together alone."""
    for drawn in map(skeleton, shapes((4, 60, 70), seed=2, smooth=1.0)):
        drawn = np.pad(drawn, 1)
        found = set(map(tuple, skeleton_ends(drawn).tolist()))
        assert len(found) > 3
        for row, column in np.argwhere(drawn):
            around = drawn[row - 1 : row + 2, column - 1 : column + 2].copy()
            around[1, 1] = False
            # Side by side, or one: neighbours across a corner are none of one another here.
            is_end = 1 <= around.sum() <= 2 and label(around, connectivity=1).max() == 1
            assert ((row, column) in found) == is_end


def test_the_box_around_the_foreground():
    mask = np.zeros((9, 12), dtype=bool)
    assert foreground_box(mask) == (slice(1), slice(1))
    mask[3, 4] = mask[6, 2] = True
    assert foreground_box(mask) == (slice(3, 7), slice(2, 5))
