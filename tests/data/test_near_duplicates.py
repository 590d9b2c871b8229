import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from sa2va_trl.data.near_duplicates import (
    crossings,
    duplicates,
    equal_pictures,
    near_duplicates,
    pixel_digest,
    show_nothing,
    small_grey,
    thumbnail,
)
from sa2va_trl.data.synthetic import synthetic_dataset


@pytest.fixture
def picture():
    coarse = np.random.default_rng(0).integers(40, 200, (8, 8), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)


def as_jpeg(image):
    data = io.BytesIO()
    image.save(data, "JPEG", quality=50)
    return Image.open(data)


def test_equal_pixels_are_duplicates_in_whatever_mode(picture):
    other = picture.copy()
    other.putpixel((3, 3), (other.getpixel((3, 3)) + 1) % 256)
    digests = [pixel_digest(image) for image in (picture, other, picture.convert("RGB"), picture.resize((64, 96)))]
    assert duplicates(digests) == [[0, 2]]


@pytest.mark.parametrize(
    "change",
    [
        as_jpeg,
        lambda image: image.resize((48, 32)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.7),
        lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    ],
    ids=["jpeg", "size", "brightness", "contrast"],
)
def test_the_same_picture_in_another_guise_looks_alike(picture, change):
    shown = np.stack([thumbnail(picture), thumbnail(change(picture))])
    ((one, other, correlation),) = near_duplicates(shown, ["train", "test"], 0.98)
    assert (one, other) == (0, 1) and 0.98 <= correlation <= 1


def test_other_pictures_and_pictures_of_one_group_do_not_count(picture):
    shown = np.stack([thumbnail(image) for image in (picture, picture, picture.rotate(180), picture.convert("RGB"))])
    assert [pair[:2] for pair in near_duplicates(shown, ["a", "a", "b", "c"], 0.98)] == [(0, 3), (1, 3)]
    assert near_duplicates(shown, ["a"] * 4, 0.1) == []
    assert len(near_duplicates(shown, list("abcd"), 0.98, most=2)) == 2


def test_pictures_without_contrast_look_like_nothing():
    flat = thumbnail(Image.new("L", (50, 50), 90))
    assert near_duplicates(np.stack([flat, flat]), ["a", "b"], 0.5) == []


def dark(seed, light=0, noise=0.0, marker=0):
    """A frame before the X-rays are on: between collimators a little light and noise; a square marker."""
    pixels = np.zeros((512, 512))
    inside = light + np.random.default_rng(seed).normal(0, noise or 1e-9, (380, 380))
    pixels[60:440, 70:450] = inside
    pixels[20 : 20 + marker, 30 : 30 + marker] = 255
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "own", [{}, {"marker": 1}, {"marker": 40}, {"light": 4, "noise": 2}, {"light": 20, "noise": 6, "marker": 30}]
)
def test_dark_frames_show_nothing_whatever_marker_is_in_them(own):
    pair = np.stack([thumbnail(dark(seed, **own)) for seed in range(2)])
    assert not pair.any() and near_duplicates(pair, ["a", "b"], 0.1) == [] == equal_pictures(["x", "x"], pair)


def test_frames_before_the_agent_show_something():
    runs = synthetic_dataset(num_videos=3, frames_per_video=6, size=96, seed=5)
    greys = np.stack([small_grey(row["image"]) for row in runs])
    assert not show_nothing(greys).any()
    assert not show_nothing((greys // 6).astype(np.uint8)).any()  # of 42 grey levels


def test_blocks_give_the_same_pairs():
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(2100, 4)).astype(np.float32)
    shown /= np.linalg.norm(shown, axis=1, keepdims=True)
    groups = rng.integers(0, 2, len(shown)).tolist()
    found = near_duplicates(shown, groups, 0.999, most=10**6)
    alike = np.triu(shown @ shown.T >= 0.999, 1) & (np.not_equal.outer(groups, groups))
    assert sorted(pair[:2] for pair in found) == [tuple(place) for place in np.argwhere(alike).tolist()]
    assert len(found) > 10


def test_of_many_pairs_the_most_alike_are_given_over_blocks_of_rows():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1100, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = (np.arange(1100) % 2).tolist()
    alike = vectors @ vectors.T
    rows, columns = np.nonzero((alike >= 0.6) & np.triu(np.not_equal.outer(groups, groups)))
    best = np.argsort(-alike[rows, columns], kind="stable")[:50]
    found = near_duplicates(vectors, groups, 0.6, most=50)
    assert len(rows) > 50 and [pair[2] for pair in found] == pytest.approx(alike[rows[best], columns[best]], abs=1e-5)
    assert {pair[:2] for pair in found} == set(zip(rows[best].tolist(), columns[best].tolist(), strict=True))


def test_what_is_not_said_is_not_looked_for():
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(3, 1024)).astype(np.float32), 2, axis=0)
    vectors[1::2] += 0.02 * rng.normal(size=(3, 1024))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known, splits, digests = [True, True, True, False, False, False], ["a", "b"] * 3, list("uvwxyz")
    pairs = [(0, 1), (2, 3), (4, 5)]
    refused = crossings(digests, vectors, splits, known)
    assert sorted(refused.unknown) == pairs[1:] == sorted(refused.alike)  # of two known ones nothing is said then
    accepted = crossings(digests, vectors, splits, known, accept_alike=True)
    assert sorted(accepted.alike) == pairs
    assert crossings(digests, vectors, splits, known, accept_alike=True, warn=False) == ([], [], [])
    assert sorted(crossings(digests, vectors, splits, known, warn=False).unknown) == pairs[1:]
    named = crossings(digests, vectors, splits, [True] * 6)
    assert named.unknown == [] and sorted(named.alike) == pairs
    assert crossings(digests, vectors, splits, [True] * 6, warn=False).alike == []
