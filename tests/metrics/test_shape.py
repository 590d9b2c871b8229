import math

import numpy as np
import pytest
from hypothesis import given, settings
from pairs import BOTH, EMPTY, FIXED, FULL, ONE, mask_pairs, real_pairs
from scipy import ndimage
from skimage.morphology import skeletonize
from sklearn.metrics import f1_score

from sa2va_trl.metrics import (
    Counts,
    MaskPair,
    confusion_counts,
    dice_by_width,
    skeleton_length_error,
    volumetric_similarity,
    width_error,
)


@settings(deadline=None)
@given(mask_pairs())
def test_volumetric_similarity_compares_areas(pair):
    ours, theirs = (int(array.sum()) for array in pair)
    expected = 1 - abs(ours - theirs) / (ours + theirs) if ours + theirs else 1.0
    assert volumetric_similarity(confusion_counts(*pair)) == pytest.approx(expected)


def test_volumetric_similarity_of_several_images_at_once():
    counts = Counts(np.array([1, 0, 0]), np.array([1, 2, 0]), np.array([1, 0, 0]), np.array([1, 1, 1]))
    assert volumetric_similarity(counts).tolist() == [1, 0, 1]


def by_transforms(pred, target, edges):
    """What is measured along skeletons, with whole distance transforms in place of points."""
    pred, target = np.pad(pred, 1), np.pad(target, 1)
    skeletons = [skeletonize(array) for array in (pred, target)]
    depths = [ndimage.distance_transform_edt(array) for array in (pred, target)]
    lengths = [int(array.sum()) for array in skeletons]
    widths = [2 * depth[skeleton].mean() for depth, skeleton in zip(depths, skeletons, strict=True)]
    places = np.argwhere(np.ones_like(target))
    apart = ((places[:, None] - np.argwhere(skeletons[1])) ** 2).sum(-1)  # (pixels, skeleton)
    own = np.searchsorted(edges, 2 * depths[1][skeletons[1]])
    # A pixel may be as near to two places of the skeleton.
    kinds = [set(own[row == row.min()]) for row in apart]
    return abs(lengths[0] - lengths[1]) / lengths[1], abs(widths[0] - widths[1]), kinds, pred.ravel(), target.ravel()


@pytest.mark.parametrize("name", BOTH)
def test_lengths_widths_and_dice_by_width_are_those_of_distance_transforms(name):
    pred, target = FIXED[name]
    edges = (4.0, 7.0)
    length, width, kinds, flat, truth = by_transforms(pred, target, edges)
    pair = MaskPair(pred, target)
    assert skeleton_length_error(pair) == pytest.approx(length, abs=1e-6)
    assert width_error(pair) == pytest.approx(width, abs=1e-6)
    for number, value in enumerate(dice_by_width(pair, edges)):
        surely = np.array([found == {number} for found in kinds])
        perhaps = np.array([number in found for found in kinds]) & ~surely
        if not (surely | perhaps).any():
            assert math.isnan(value)
            continue
        # Pixels in the middle may be of this kind or not: those that are right make it better, others worse.
        best, worst = surely | (perhaps & flat & truth), surely | (perhaps & ~(flat & truth))
        bounds = [f1_score(truth[chosen], flat[chosen], zero_division=0) for chosen in (worst, best)]
        assert bounds[0] - 1e-6 <= value <= bounds[1] + 1e-6
        if not (perhaps & (flat | truth)).any():
            assert value == pytest.approx(bounds[0], abs=1e-6)


def test_lengths_and_widths_of_real_masks(shared):
    for pred, target in real_pairs(shared, 1):
        pair = MaskPair(pred, target)
        lengths = [skeletonize(array).sum() for array in (pred, target)]
        depths = [ndimage.distance_transform_edt(np.pad(array, 1))[1:-1, 1:-1] for array in (pred, target)]
        widths = [2 * depth[skeletonize(array)].mean() for depth, array in zip(depths, (pred, target), strict=True)]
        assert skeleton_length_error(pair) == pytest.approx(abs(lengths[0] - lengths[1]) / lengths[1], abs=1e-6)
        assert width_error(pair) == pytest.approx(abs(widths[0] - widths[1]), abs=1e-6)
        # With one kind of vessel it is Dice.
        (value,) = dice_by_width(pair, ())
        assert value == pytest.approx(f1_score(target.ravel(), pred.ravel()), abs=1e-6)


def test_thin_and_thick_vessels_are_told_apart():
    target = np.zeros((60, 80), bool)
    target[10:12, 5:75] = True
    target[30:50, 5:75] = True
    thick = target.copy()
    thick[:20] = False
    thin, medium, other = dice_by_width(MaskPair(thick, target))
    assert thin < 0.1 and math.isnan(medium) and other > 0.95
    assert dice_by_width(MaskPair(target, target))[0] == 1
    # What grows around a thin vessel is an error there, whatever its own width.
    grown = target.copy()
    grown[6:16, 5:75] = True
    assert dice_by_width(MaskPair(grown, target))[0] == pytest.approx(2 / 6, abs=0.02)


def test_empty_masks():
    nothing, missed, invented = (MaskPair(*pair) for pair in ((EMPTY, EMPTY), (EMPTY, ONE), (ONE, EMPTY)))
    assert skeleton_length_error(nothing) == 0 and skeleton_length_error(missed) == 1
    assert math.isnan(skeleton_length_error(invented))
    assert all(math.isnan(width_error(pair)) for pair in (nothing, missed, invented))
    assert [math.isnan(value) for value in dice_by_width(nothing)] == [True] * 3
    assert [math.isnan(value) for value in dice_by_width(invented)] == [True] * 3
    thin, *others = dice_by_width(missed)
    assert thin == 0 and all(math.isnan(value) for value in others)
    assert volumetric_similarity(confusion_counts(FULL, EMPTY)) == 0


def test_the_unit_is_that_of_the_spacing():
    pred, target = FIXED["blobs-0"]
    one, other = MaskPair(pred, target), MaskPair(pred, target, (0.5, 0.5))
    assert width_error(other) == pytest.approx(width_error(one) / 2)
    assert dice_by_width(other, (2, 5)) == pytest.approx(dice_by_width(one, (4, 10)), nan_ok=True)


def test_edges_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="edges"):
        dice_by_width(MaskPair(ONE, ONE), (10, 4))
