import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from pairs import BOTH, EMPTY, FIXED, ONE, TURNS, mask, mask_pairs, real_pairs

from sa2va_trl.metrics import MaskPair, assd, hd95, nsd


with warnings.catch_warnings():  # it still names modules of scipy as they were called
    warnings.simplefilter("ignore", DeprecationWarning)
    import surface_distance


def check_against_surface_distance(pred, target, spacing):
    pair = MaskPair(pred, target, spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = surface_distance.compute_surface_distances(target, pred, spacing)
    assert hd95(pair) == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95), abs=1e-6)
    # It gives one mean for each contour; ours is over both, by their lengths.
    means = surface_distance.compute_average_surface_distance(theirs)
    lengths = [theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()]
    assert assd(pair) == pytest.approx(np.average(means, weights=lengths), abs=1e-6)
    for tolerance in (0, 1, 2, 3.3):
        expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert nsd(pair, tolerance) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.8)])
@pytest.mark.parametrize("name", BOTH)
def test_distances_are_those_of_surface_distance(name, spacing):
    check_against_surface_distance(*FIXED[name], spacing)


def test_distances_are_those_of_surface_distance_on_real_masks(shared):
    for pred, target in real_pairs(shared):
        check_against_surface_distance(pred, target, (1.0, 1.0))


def test_of_an_empty_mask_there_is_no_distance():
    for pred, target in ((EMPTY, ONE), (ONE, EMPTY), (EMPTY, EMPTY)):
        pair = MaskPair(pred, target)
        assert math.isnan(hd95(pair)) and math.isnan(assd(pair))
        assert nsd(pair, 1) == float(pred.any() == target.any())


def test_distances_by_hand():
    target = np.zeros((20, 20), bool)
    target[5:15, 5:15] = True
    moved = np.roll(target, 3, axis=1)
    assert hd95(MaskPair(target, target)) == assd(MaskPair(target, target)) == 0
    assert nsd(MaskPair(target, target), 0) == 1
    pair = MaskPair(moved, target)
    assert hd95(pair) == 3 and 0 < assd(pair) < 3
    assert nsd(pair, 3) == 1 and nsd(pair, 2.9) < 1
    assert hd95(MaskPair(moved, target, (1, 0.25))) == 0.75
    # A speck far away is more than 5 % of neither contour.
    large = np.zeros((60, 60), bool)
    large[10:50, 10:50] = True
    speck = large.copy()
    speck[0, 0] = True
    assert hd95(MaskPair(speck, large)) == 0 and assd(MaskPair(speck, large)) > 0
    assert hd95(MaskPair(mask("#......#"), mask("#......."))) > 5


@settings(deadline=None, max_examples=100)
@given(mask_pairs())
def test_turning_or_enlarging_both_masks_changes_nothing_else(pair):
    pred, target = pair
    one = MaskPair(pred, target)
    for turn in TURNS:
        other = MaskPair(turn(pred), turn(target))
        assert hd95(other) == pytest.approx(hd95(one), nan_ok=True)
        assert assd(other) == pytest.approx(assd(one), nan_ok=True)
        assert nsd(other, 1) == pytest.approx(nsd(one, 1))
    back = MaskPair(target, pred)
    assert assd(back) == pytest.approx(assd(one), nan_ok=True) and nsd(back, 1) == pytest.approx(nsd(one, 1))
    assert hd95(back) == pytest.approx(hd95(one), nan_ok=True)
    # Pixels of three times the side: three times the distances.
    wide = MaskPair(pred, target, (3, 3))
    assert assd(wide) == pytest.approx(3 * assd(one), nan_ok=True)
    assert nsd(wide, 3) == pytest.approx(nsd(one, 1))
    assert 0 <= nsd(one, 1) <= nsd(one, 2) <= 1


def test_bad_tolerances_and_spacings_are_refused():
    with pytest.raises(ValueError, match="tolerance"):
        nsd(MaskPair(ONE, ONE), -1)
    for spacing in ((0, 1), (1,), (math.nan, 1)):
        with pytest.raises(ValueError, match="spacing"):
            MaskPair(ONE, ONE, spacing)
