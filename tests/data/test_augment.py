import math
import random

import numpy as np
import pytest
import scipy.ndimage
import skimage.exposure
import skimage.transform
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl.data import augment
from sa2va_trl.data.augment import Augmentation


GEOMETRY = {"flip": 0.5, "vertical_flip": 0.5, "rotation": 40.0, "scale": 0.3, "shift": 0.2}
EVERYTHING = {**GEOMETRY, "gamma": 1.0, "contrast": 0.5}
IDENTITY = (False, False, 0, 1, 0, 0)
seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(24, 90), st.integers(24, 90))


def generator(seed=0):
    return np.random.default_rng(seed)


def blobs(size, seed=0):
    """A mask of smooth shapes that keep off the border, where interpolations differ on what comes from outside."""
    width, height = size
    noise = scipy.ndimage.gaussian_filter(generator(seed).standard_normal((height, width)), 4)
    mask = noise > np.quantile(noise, 0.6)
    mask[[0, 1, -2, -1]] = mask[:, [0, 1, -2, -1]] = False
    return Image.fromarray((255 * mask).astype(np.uint8))


def picture(size, seed=0):
    """A smooth colour picture without any symmetry."""
    width, height = size
    noise = generator(seed).standard_normal((height, width, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (3, 3, 0))
    return Image.fromarray(np.clip(128 + 600 * smooth, 0, 255).astype(np.uint8))


def ramp():
    return Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None], 3, axis=0))


def same(first, second):
    return first.mode == second.mode and first.size == second.size and first.tobytes() == second.tobytes()


# What the transformation is


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_changes_by_default(mode, seed):
    image, mask = picture((50, 30)).convert(mode), blobs((50, 30))
    images, masks = Augmentation()([image], [mask], generator(seed))
    assert same(images[0], image.convert("RGB")) and same(masks[0], mask)


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    shape=seeds,
    size=sizes,
    flip=st.floats(0, 1),
    vertical_flip=st.floats(0, 1),
    rotation=st.floats(0, 180),
    scale=st.floats(0, 0.5),
    shift=st.floats(0, 0.3),
)
def test_image_and_mask_move_together(seed, shape, size, flip, vertical_flip, rotation, scale, shift):
    mask = blobs(size, shape)
    move = Augmentation(flip, vertical_flip, rotation, scale, shift)
    (image,), (moved,) = move([mask.convert("RGB")], [mask], generator(seed))
    assert image.mode == "RGB" and moved.mode == "L" and image.size == moved.size == size
    image, moved = np.asarray(image), np.asarray(moved)
    assert set(np.unique(moved)) <= {0, 255}
    assert (image == image[..., :1]).all()
    # Of the four pixels that bilinear interpolation mixes, the nearest has at least a quarter of the weight. So
    # the mask is what the image is, but for the border of the shapes, where the mixture is between 60 and 195.
    assert not moved[image[..., 0] < 60].any()
    assert (moved[image[..., 0] > 195] == 255).all()


def test_every_image_and_mask_of_a_row_moves_alike():
    image, mask = picture((60, 40)), blobs((60, 40))
    images, masks = Augmentation(**EVERYTHING)([image] * 3, [mask] * 6, generator(3))
    assert len(images) == 3 and len(masks) == 6
    assert all(same(entry, images[0]) for entry in images) and all(same(entry, masks[0]) for entry in masks)
    assert not same(masks[0], mask) and not same(images[0], image)


@pytest.mark.parametrize(("options", "axis"), [({"flip": 1}, 1), ({"vertical_flip": 1}, 0)])
def test_flips_are_involutions(options, axis):
    image, mask = picture((50, 30)), blobs((50, 30))
    move = Augmentation(**options)
    images, masks = move([image], [mask], generator(0))
    assert np.array_equal(np.asarray(images[0]), np.flip(np.asarray(image), axis))
    assert np.array_equal(np.asarray(masks[0]), np.flip(np.asarray(mask), axis))
    images, masks = move(images, masks, generator(1))
    assert same(images[0], image) and same(masks[0], mask)


def test_both_flips_are_half_a_turn():
    images, masks = Augmentation(flip=1, vertical_flip=1)([picture((50, 30))], [blobs((50, 30))], generator())
    assert np.array_equal(np.asarray(images[0]), np.rot90(np.asarray(picture((50, 30))), 2))
    turned = augment._warp(picture((50, 30)), (False, False, 180, 1, 0, 0), Image.Resampling.NEAREST)
    assert same(images[0], turned)


def interior(expected_of_ones):
    return expected_of_ones > 0.999


@settings(deadline=None, max_examples=40)
@given(
    size=sizes,
    flips=st.tuples(st.booleans(), st.booleans()),
    degrees=st.floats(-180, 180),
    scale=st.floats(0.6, 1.6),
    shifts=st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
)
def test_geometry_agrees_with_scipy(size, flips, degrees, scale, shifts):
    """Flip, then turn (clockwise) and scale about the centre, then shift; pixel centres lie at one half."""
    width, height = size
    image = picture(size)
    actual = np.asarray(augment._warp(image, (*flips, degrees, scale, *shifts), Image.Resampling.BILINEAR), float)
    source = np.asarray(image, float)
    source = source[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    # From output to input, in (row, column).
    angle = math.radians(degrees)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / scale
    centre = np.array([height, width]) / 2 - 0.5
    offset = centre - matrix @ (centre + np.array([shifts[1] * height, shifts[0] * width]))
    inside = np.zeros((height, width))
    inside[1:-1, 1:-1] = 1
    inside = interior(scipy.ndimage.affine_transform(inside, matrix, offset, order=1))
    assert inside.any()
    for channel in range(3):
        expected = scipy.ndimage.affine_transform(source[..., channel], matrix, offset, order=1)
        assert np.abs(actual[..., channel] - expected)[inside].max() < 1.5


@pytest.mark.parametrize("degrees", [-90, -33.3, 10, 45, 90, 135])
def test_a_turn_is_about_the_centre_and_clockwise(degrees):
    image = picture((64, 48))
    actual = augment._warp(image, (False, False, degrees, 1, 0, 0), Image.Resampling.BILINEAR)
    expected = image.rotate(-degrees, Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(actual, int) - np.asarray(expected, int))
    assert difference.max() <= 1


@pytest.mark.parametrize(
    ("scale", "shift_x", "shift_y"), [(1.4, 0, 0), (0.7, 0, 0), (1, 0.2, -0.1), (1.2, -0.1, 0.15)]
)
def test_scale_and_shift_agree_with_skimage(scale, shift_x, shift_y):
    width, height = 80, 56
    image = picture((width, height))
    actual = np.asarray(
        augment._warp(image, (False, False, 0, scale, shift_x, shift_y), Image.Resampling.BILINEAR), float
    )
    to_centre = skimage.transform.AffineTransform(translation=(-(width - 1) / 2, -(height - 1) / 2))
    zoom = skimage.transform.AffineTransform(scale=(scale, scale))
    back = skimage.transform.AffineTransform(
        translation=((width - 1) / 2 + shift_x * width, (height - 1) / 2 + shift_y * height)
    )
    inverse = (to_centre + zoom + back).inverse
    expected = skimage.transform.warp(np.asarray(image, float), inverse, order=1, preserve_range=True)
    ones = np.pad(np.ones((height - 2, width - 2)), 1)
    inside = interior(skimage.transform.warp(ones, inverse, order=1))
    assert inside.mean() > 0.3
    assert np.abs(actual - expected)[inside].max() < 1.5


def test_what_comes_from_outside_is_black_and_empty():
    white = Image.new("L", (40, 40), 255)
    for options in ({"scale": 0.9}, {"shift": 0.5}, {"rotation": 45}):
        seen = set()
        for seed in range(6):
            (image,), (mask,) = Augmentation(**options)([white], [white], generator(seed))
            image, mask = np.asarray(image), np.asarray(mask)
            assert set(np.unique(image)) <= {0, 255} and np.mean((image[..., 0] == 255) != (mask == 255)) < 0.01
            seen.add(bool((mask == 0).any()))
        assert True in seen


# How large the random changes are


def landmarks(image):
    """Centres of mass of the three colours."""
    return np.array(
        [scipy.ndimage.center_of_mass(channel)[::-1] for channel in np.moveaxis(np.asarray(image, float), 2, 0)]
    )


def dots():
    pixels = np.zeros((100, 160, 3), np.uint8)
    for channel, (x, y) in enumerate([(70, 40), (95, 45), (80, 62)]):
        pixels[y - 3 : y + 4, x - 3 : x + 4, channel] = 255
    return Image.fromarray(pixels)


def movements(options, count=60):
    """The similarity that each of many draws applies, read off the landmarks."""
    image = dots()
    start = landmarks(image)
    found = []
    for seed in range(count):
        (moved,), _ = Augmentation(**options)([image], [], generator(seed))
        found.append(skimage.transform.SimilarityTransform.from_estimate(start, landmarks(moved)))
    return found


CENTRE = np.array([[159 / 2, 99 / 2]])


def test_turns_stay_within_their_limit_and_keep_the_centre():
    found = movements({"rotation": 25})
    angles = np.degrees([entry.rotation for entry in found])
    assert np.abs(angles).max() < 25.5 and angles.min() < -20 and angles.max() > 20
    for entry in found:
        assert entry.scale == pytest.approx(1, abs=0.01)
        assert entry(CENTRE) == pytest.approx(CENTRE, abs=0.2)


def test_scales_stay_within_their_limit_and_keep_the_centre():
    found = movements({"scale": 0.4})
    scales = np.array([entry.scale for entry in found])
    assert scales.min() > 0.59 and scales.max() < 1.41 and scales.min() < 0.67 and scales.max() > 1.33
    for entry in found:
        assert abs(entry.rotation) < 0.01
        assert entry(CENTRE) == pytest.approx(CENTRE, abs=0.3)


def test_shifts_are_shares_of_each_side():
    found = movements({"shift": 0.2})
    moved = np.array([(entry(CENTRE) - CENTRE)[0] for entry in found])
    for axis, side in ((0, 160), (1, 100)):
        assert np.abs(moved[:, axis]).max() < 0.2 * side + 0.1
        assert moved[:, axis].min() < -0.15 * side and moved[:, axis].max() > 0.15 * side
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.4  # the two directions are drawn apart
    for entry in found:
        assert entry.scale == pytest.approx(1, abs=0.01) and abs(entry.rotation) < 0.01


def test_flips_come_as_often_as_asked_for_and_apart_from_each_other():
    corner = Image.fromarray(np.pad(np.full((1, 1), 255, np.uint8), ((0, 4), (0, 6))))
    counts = np.zeros((2, 2))
    for seed in range(1000):
        _, (mask,) = Augmentation(flip=0.3, vertical_flip=0.6)([], [corner], generator(seed))
        (y,), (x,) = np.nonzero(np.asarray(mask))
        counts[int(y == 4), int(x == 6)] += 1
    expected = np.outer([0.4, 0.6], [0.7, 0.3])
    assert np.abs(counts / 1000 - expected).max() < 0.05


# Grey values


@settings(deadline=None, max_examples=60)
@given(seed=seeds, gamma=st.floats(0, 3), contrast=st.floats(0, 0.99))
def test_grey_values_keep_their_order_and_masks_stay(seed, gamma, contrast):
    image, mask = ramp(), blobs((256, 3))
    (image,), (after,) = Augmentation(gamma=gamma, contrast=contrast)([image], [mask], generator(seed))
    assert same(after, mask)
    grey = np.asarray(image)
    assert grey.dtype == np.uint8 and (grey == grey[:1, :, :1]).all()
    assert (np.diff(grey[0, :, 0].astype(int)) >= 0).all()
    assert grey[0, 0, 0] < grey[0, -1, 0]


def test_gamma_is_a_power_within_its_limit():
    exponents = []
    for seed in range(40):
        (image,), _ = Augmentation(gamma=1.0)([ramp()], [], generator(seed))
        grey = np.asarray(image)[0, :, 0]
        assert grey[0] == 0 and grey[255] == 255
        exponents.append(math.log(grey[128] / 255) / math.log(128 / 255))
        expected = skimage.exposure.adjust_gamma(np.arange(256) / 255, exponents[-1]) * 255
        assert np.abs(grey - expected).max() < 2
    octaves = np.log2(exponents)
    assert np.abs(octaves).max() < 1.02 and octaves.min() < -0.8 and octaves.max() > 0.8


def test_contrast_is_a_line_through_the_middle_grey():
    slopes = []
    for seed in range(40):
        (image,), _ = Augmentation(contrast=0.5)([ramp()], [], generator(seed))
        grey = np.asarray(image)[0, :, 0].astype(float)
        slopes.append((grey[168] - grey[88]) / 80)
        expected = np.clip(127.5 + slopes[-1] * (np.arange(256) - 127.5), 0, 255)
        assert np.abs(grey - expected).max() < 2.5
    assert min(slopes) > 0.48 and max(slopes) < 1.52 and min(slopes) < 0.6 and max(slopes) > 1.4


def test_all_channels_get_the_same_grey_values():
    image = picture((40, 30))
    swapped = Image.fromarray(np.ascontiguousarray(np.asarray(image)[..., ::-1]))
    (first, second), _ = Augmentation(gamma=1, contrast=0.5)([image, swapped], [], generator(5))
    assert not same(first, image)
    assert np.array_equal(np.asarray(first)[..., ::-1], np.asarray(second))


# Motion blur


def point():
    pixels = np.zeros((61, 61, 3), np.uint8)
    pixels[30, 30] = 255
    return Image.fromarray(pixels)


def test_motion_blur_spreads_a_point_along_a_line_about_its_place():
    lengths, angles = [], []
    for seed in range(60):
        (image,), (mask,) = Augmentation(motion_blur=0.3)([point()], [point().convert("L")], generator(seed))
        assert same(mask, point().convert("L"))
        grey = np.asarray(image, float)[..., 0]
        assert grey.sum() == pytest.approx(255, rel=0.15)  # rounded, pixel by pixel
        y, x = np.nonzero(grey)
        weights = grey[y, x] / grey.sum()
        centre = (weights * y).sum(), (weights * x).sum()
        assert centre == pytest.approx((30, 30), abs=0.15)
        values, vectors = np.linalg.eigh(np.cov(np.stack([y - 30.0, x - 30.0]), aweights=weights, ddof=0))
        assert values[0] < 0.5  # about a pixel wide
        lengths.append(math.sqrt(12 * values[1]))  # of a uniform distribution
        angles.append(math.degrees(math.atan2(vectors[0, 1], vectors[1, 1])) % 180)
    assert max(lengths) < 0.3 * 61 + 2 and max(lengths) > 0.2 * 61 and min(lengths) < 0.08 * 61
    assert np.histogram(angles, 3, (0, 180))[0].min() > 8


def test_motion_blur_along_a_row_is_a_box_filter_and_keeps_the_rest():
    image = picture((64, 48))
    blurred = np.asarray(augment._blur(image, 4.0, 0.0), float)
    expected = scipy.ndimage.uniform_filter1d(np.asarray(image, float), 5, axis=1, mode="nearest")
    assert np.abs(blurred - expected).max() <= 0.5 + 1e-3
    flat = Image.new("RGB", (20, 30), (10, 200, 90))
    assert same(augment._blur(flat, 7.3, 1.1), flat)
    assert same(augment._blur(image, 0.0, 1.0), image)


def test_motion_blur_leaves_the_other_changes_as_they_are():
    image, mask = picture((48, 36)), blobs((48, 36))
    _, (plain,) = Augmentation(**EVERYTHING)([image], [mask], generator(4))
    numbers, others = generator(4), generator(4)
    _, (moved,) = Augmentation(**EVERYTHING, motion_blur=0.1)([image], [mask], numbers)
    Augmentation()([image], [mask], others)
    assert same(plain, moved) and numbers.random() == others.random()


# Where randomness comes from


@pytest.mark.parametrize("size", [(61, 37), (37, 61)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_generator_decides_everything(mode, size):
    image, mask = picture(size).convert(mode), blobs(size)
    untouched, move = image.copy(), Augmentation(**EVERYTHING)
    results = []
    for seed in (0, 0, 1):
        random.seed(len(results))
        np.random.seed(len(results))
        torch.manual_seed(len(results))
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        results.append(move([image], [mask], generator(seed)))
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    (first, first_mask), (again, again_mask), (other, other_mask) = ((a[0], b[0]) for a, b in results)
    assert same(first, again) and same(first_mask, again_mask)
    assert not same(first, other) and not same(first_mask, other_mask)
    assert first.size == first_mask.size == size and first.mode == "RGB"
    assert same(image, untouched)


def test_grey_and_colour_versions_of_an_image_become_the_same():
    grey = picture((40, 30)).convert("L")
    results = [Augmentation(**EVERYTHING)([image], [], generator(7))[0][0] for image in (grey, grey.convert("RGB"))]
    assert same(*results)


@settings(deadline=None, max_examples=25)
@given(seed=seeds)
def test_options_do_not_disturb_each_other(seed):
    image, mask = picture((48, 36)), blobs((48, 36))
    plain = Augmentation(**GEOMETRY)([image], [mask], generator(seed))
    graded = Augmentation(**EVERYTHING)([image], [mask], generator(seed))
    assert same(plain[1][0], graded[1][0])
    # Grey values come after geometry, pixel by pixel: equal ones stay equal.
    table = {}
    for before, after in zip(
        np.asarray(plain[0][0]).ravel().tolist(), np.asarray(graded[0][0]).ravel().tolist(), strict=True
    ):
        assert table.setdefault(before, after) == after
    # Flips do not depend on whether rotation is on, and whatever is drawn next does not depend on any option.
    corner = Image.fromarray(np.pad(np.full((12, 12), 255, np.uint8), ((0, 48), (0, 48))))
    quadrants = []
    for options in ({"flip": 0.5, "vertical_flip": 0.5}, {"flip": 0.5, "vertical_flip": 0.5, "rotation": 10}):
        moved = Augmentation(**options)([], [corner], generator(seed))[1][0]
        quadrants.append(np.asarray(moved, float).reshape(2, 30, 2, 30).sum((1, 3)).argmax())
    assert quadrants[0] == quadrants[1]
    following = []
    for options in ({}, EVERYTHING):
        numbers = generator(seed)
        Augmentation(**options)([image], [mask], numbers)
        following.append(numbers.random())
    assert following[0] == following[1]


# Options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, -0.1) for name in EVERYTHING),
        *((name, math.nan) for name in EVERYTHING),
        ("motion_blur", -0.1),
        ("motion_blur", 1.1),
        ("flip", 1.1),
        ("vertical_flip", 2),
        ("scale", 1.0),
        ("contrast", 1.0),
        ("rotation", math.inf),
    ],
)
def test_bad_options_are_named(name, value):
    with pytest.raises(ValueError, match=rf"augmentation\.{name} must lie in \[0, .*got {value}"):
        Augmentation(**{name: value})


def test_limits_themselves_are_legal():
    Augmentation(flip=1, vertical_flip=1, rotation=360, scale=0.99, shift=2, gamma=5, contrast=0.99)
    assert Augmentation(**dict.fromkeys(EVERYTHING, 0)) == Augmentation()
