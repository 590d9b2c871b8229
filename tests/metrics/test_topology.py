import itertools

import gudhi
import numpy as np
import pytest
from hypothesis import given, settings
from pairs import BOTH, EMPTY, FIXED, ONE, TURNS, mask, mask_pairs, real_pairs
from scipy import ndimage
from skimage.morphology import skeletonize

from sa2va_trl.metrics import (
    MaskPair,
    MeasuredMask,
    betti0_error,
    betti1_error,
    betti_matching_error,
    betti_matching_errors,
    betti_numbers,
    closed_connections,
    confusion_counts,
    endpoint_count,
    false_connections,
    junction_count,
    missed_connections,
    skeleton_components,
)


def measured(array):
    return MeasuredMask(np.pad(array, 1))


def persistent_betti(*nested):
    """Of masks that lie in each other: features of the first that are still there in the last (gudhi)."""
    levels = sum(~np.pad(array, 1) for array in nested).astype(float)
    # Pixels as top-dimensional cells are 8-connected.
    whole = gudhi.CubicalComplex(top_dimensional_cells=levels)
    whole.compute_persistence()
    return whole.persistent_betti_numbers(0, len(nested) - 1)[:2]


@pytest.mark.parametrize("name", FIXED)
def test_betti_numbers_are_those_of_gudhi(name):
    for array in FIXED[name]:
        expected = persistent_betti(array) if array.any() else [0, 0]
        assert list(betti_numbers(measured(array))) == list(expected)


def check_matching(pred, target):
    """Against gudhi: what of either mask lives on in the union."""
    union = pred | target
    errors = betti_matching_errors(MaskPair(pred, target))
    if not (pred.any() and target.any()):
        assert sum(errors) == sum(betti_numbers(measured(union)))
        return
    own = [persistent_betti(array) for array in (pred, target, union)]
    kept = [persistent_betti(array, union) for array in (pred, target)]
    # Every component of the union holds one of either mask; those that hold some of both are in both images.
    assert errors[0] == own[0][0] + own[1][0] - 2 * (kept[0][0] + kept[1][0] - own[2][0])
    # Pairs of holes are no more than what lives on of either mask.
    assert errors[1] >= own[0][1] + own[1][1] - 2 * min(kept[0][1], kept[1][1])


@pytest.mark.parametrize("name", FIXED)
def test_partners_live_on_in_the_union(name):
    check_matching(*FIXED[name])


def test_partners_live_on_in_the_union_of_real_masks(shared):
    for pred, target in real_pairs(shared):
        check_matching(pred, target)
        for array in (pred, target):
            assert list(betti_numbers(measured(array))) == list(persistent_betti(array))


def pairs_of_holes(pred, target, order):
    """
    The induced matching (Bauer and Lesnick, 2015) in dimension 1 when holes of the union die in some order: by
    duality the eldest of those within a hole of a mask is the one that it lives on as.
    """
    # Not by the functions that are tested: holes are what is filled, one by one.
    holes = {}
    for name, array in (("pred", pred), ("target", target), ("union", pred | target)):
        array = np.pad(array, 1)
        holes[name] = ndimage.label(ndimage.binary_fill_holes(array) & ~array)[0]
    eldest = {"pred": {}, "target": {}}
    for hole in order:
        place = tuple(np.argwhere(holes["union"] == hole)[0])
        for name, found in eldest.items():
            found.setdefault(holes[name][place], hole)
    real = [{hole for within, hole in found.items() if within} for found in eldest.values()]
    return len(real[0] & real[1])


@pytest.mark.parametrize(
    ("pred", "target", "pairs"),
    [
        # One hole against two, of which one can be its partner.
        (("#####", "#...#", "#####"), ("#####", "#.#.#", "#####"), 1),
        # Holes that overlap in a row, two against two: both can have a partner, one way round only.
        (("###########", "#....##...#", "###########"), ("###########", "##.#....#.#", "###########"), 2),
        # Holes of different places.
        (("#######", "#.#####", "#######"), ("#######", "#####.#", "#######"), 0),
    ],
)
def test_most_pairs_of_holes(pred, target, pairs):
    pred, target = mask(*pred), mask(*target)
    total = betti_numbers(measured(pred))[1] + betti_numbers(measured(target))[1]
    assert betti_matching_errors(MaskPair(pred, target)) == (0, total - 2 * pairs)


@settings(deadline=None, max_examples=150)
@given(mask_pairs(max_side=8))
def test_holes_are_matched_as_in_the_best_order_of_pixels(pair):
    pred, target = pair
    ours, theirs, both = (betti_numbers(measured(array))[1] for array in (pred, target, pred | target))
    pairs = (ours + theirs - betti_matching_errors(MaskPair(pred, target))[1]) / 2
    orders = itertools.islice(itertools.permutations(range(1, both + 1)), 720)
    found = [pairs_of_holes(pred, target, order) for order in orders]
    assert pairs == max(found) if both <= 6 else pairs >= max(found)


@settings(deadline=None, max_examples=100)
@given(mask_pairs())
def test_topology_survives_turning_and_enlarging(pair):
    pred, target = pair
    one = MaskPair(pred, target)
    expected = (betti0_error(pred, target), betti1_error(one), betti_matching_errors(one))
    for turn in (*TURNS, lambda array: np.kron(array, np.ones((2, 2), bool)).astype(bool)):
        other = MaskPair(turn(pred), turn(target))
        assert (betti0_error(turn(pred), turn(target)), betti1_error(other), betti_matching_errors(other)) == expected
    assert betti_matching_errors(MaskPair(target, pred)) == expected[2]
    assert expected[2][0] >= expected[0] and expected[2][1] >= expected[1]
    assert betti_matching_error(one) == sum(expected[2]) and betti_matching_error(MaskPair(pred, pred)) == 0


def test_as_many_features_elsewhere_do_not_deceive_matching():
    pred, target = mask("##....", "......", "......"), mask("......", "......", "....##")
    assert betti0_error(pred, target) == 0 and betti_matching_errors(MaskPair(pred, target)) == (2, 0)
    assert betti_matching_error(MaskPair(EMPTY, EMPTY)) == 0 and betti_matching_error(MaskPair(ONE, EMPTY)) == 1


# Junctions and connections


def drawing(*rows):
    """A drawing enlarged, so that its lines are thick."""
    return np.kron(mask(*rows), np.ones((5, 5), bool)).astype(bool)


def test_junctions_are_places_where_a_skeleton_branches():
    counted = {
        0: drawing(".......", ".#####.", "......."),
        1: drawing("...#...", "...#...", "...#...", "#######"),
        2: drawing("..#....", "..#....", "#######", "....#..", "....#.."),
    }
    for count, array in counted.items():
        assert junction_count(measured(array)) == count
    # A corner is none, nor is a staircase or a loop.
    assert junction_count(measured(mask("##....", ".##...", "..##..", "...###"))) == 0
    assert junction_count(measured(drawing("####", "#..#", "#..#", "####"))) == 0
    assert junction_count(measured(EMPTY)) == 0
    crossing = mask("#...#", ".#.#.", "..#..", ".#.#.", "#...#")
    assert junction_count(measured(crossing)) == 1


@pytest.mark.parametrize("name", BOTH)
def test_pixels_of_a_skeleton_with_three_ways_out_are_junctions(name):
    """Brute force: take the pixel away, and count the pieces of what is around it."""
    for array in FIXED[name]:
        found = measured(array)
        branching = np.zeros_like(found.skeleton)
        for y, x in np.argwhere(found.skeleton):
            ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
            values = [found.skeleton[y + dy, x + dx] for dy, dx in ring]
            ways = sum(a and not b for a, b in zip(values, values[1:] + values[:1], strict=True))
            branching[y, x] = ways > 2
        assert junction_count(found) == ndimage.label(branching, np.ones((3, 3)))[1]


WHOLE = drawing("...........", ".#########.", ".....#.....", ".....#.....", "...........")


def without(array, *boxes):
    array = array.copy()
    for rows, columns in boxes:
        array[slice(*rows), slice(*columns)] = False
    return array


GAP, OTHER, END = ((5, 10), (14, 17)), ((12, 15), (25, 30)), ((5, 10), (48, 55))
CROSSING = ((3, 12), (22, 33))


@pytest.mark.parametrize(
    ("torn", "missed"),
    [((), 0), ((GAP,), 1), ((GAP, OTHER), 2), ((END,), 0), ((GAP, END), 1), ((CROSSING,), 2)],
    ids=["whole", "gap", "two gaps", "end", "gap and end", "crossing"],
)
def test_a_gap_is_a_missed_connection_and_an_end_is_none(torn, missed):
    pred = without(WHOLE, *torn)
    assert missed_connections(MaskPair(pred, WHOLE)) == missed
    # The same seen the other way round: a bridge that should not be.
    assert false_connections(MaskPair(WHOLE, pred)) == missed
    assert false_connections(MaskPair(pred, WHOLE)) == 0


def test_what_is_missing_whole_and_a_way_round_are_no_missed_connections():
    assert missed_connections(MaskPair(np.zeros_like(WHOLE), WHOLE)) == 0
    ring = drawing("#####", "#...#", "#...#", "#####")
    assert missed_connections(MaskPair(without(ring, ((0, 5), (11, 14))), ring)) == 0


def test_connections_that_a_later_prediction_closes():
    before = without(WHOLE, GAP, OTHER)
    assert closed_connections(before, WHOLE, WHOLE) == 2
    assert closed_connections(before, without(WHOLE, OTHER), WHOLE) == 1
    assert closed_connections(before, before, WHOLE) == 0
    # Nothing is closed by losing what the gap kept apart, nor by a gap that was none.
    assert closed_connections(before, np.zeros_like(WHOLE), WHOLE) == 0
    assert closed_connections(WHOLE, before, WHOLE) == 0
    assert closed_connections(without(WHOLE, CROSSING), WHOLE, WHOLE) == 2
    with pytest.raises(ValueError, match="differ"):
        closed_connections(before, before[:-1], WHOLE)


@settings(deadline=None, max_examples=60)
@given(mask_pairs(), mask_pairs())
def test_no_more_is_closed_than_was_missed(pair, other):
    before, target = pair
    after = np.resize(other[0], target.shape)
    missed = missed_connections(MaskPair(before, target))
    assert 0 <= closed_connections(before, after, target) <= missed
    assert closed_connections(before, before, target) == 0
    assert closed_connections(before, before | target, target) == missed


@given(mask_pairs(12))
def test_a_skeleton_is_that_of_the_whole_picture(masks):
    """Although only the box around the foreground is thinned."""
    for array in masks:
        np.testing.assert_array_equal(measured(array).skeleton[1:-1, 1:-1], skeletonize(array))


@pytest.mark.parametrize("name", FIXED)
def test_pairs_of_a_group_are_the_pairs_one_by_one(name):
    pred, target = FIXED[name]
    preds = np.stack([pred, target, pred & target, pred | target])
    group = MaskPair.group(preds, target)
    assert [pair.counts for pair in group] == [confusion_counts(each, target) for each in preds]
    for pair, single in zip(group, (MaskPair(each, target) for each in preds), strict=True):
        assert pair.counts == single.counts
        assert pair.target is group[0].target
        assert betti_matching_errors(pair) == betti_matching_errors(single)
        for count in (junction_count, endpoint_count, skeleton_components, betti_numbers):
            assert count(pair.pred) == count(single.pred)
        assert len(pair.pred.centres) == len(single.pred.centres)
    assert MaskPair.group(preds[:0], target) == []
    for bad in (preds[:, :-1], [target, target[:-1]], preds.astype(int) * 2):
        if preds.any() or np.shape(bad[-1]) != target.shape:
            with pytest.raises(ValueError, match="differ|must hold only 0 and 1"):
                MaskPair.group(bad, target)


@pytest.mark.parametrize(
    ("rows", "ends", "junctions", "components"),
    [
        (("", " ####  "), 2, 0, 1),
        (("", "   #   "), 0, 0, 1),
        (("  #", "  #", "#####", "  #", "  #"), 4, 1, 1),
        (("####", "#  #", "#  #", "####"), 0, 0, 1),
        (("###  ##", "", "   #"), 4, 0, 3),
    ],
)
def test_ends_and_components_of_skeletons_by_hand(rows, ends, junctions, components):
    drawn = measured(mask(*(f" {row:<8}" for row in rows), " " * 9))
    assert (endpoint_count(drawn), junction_count(drawn), skeleton_components(drawn)) == (ends, junctions, components)
