import math

import numpy as np
import pytest
from hypothesis import given, settings
from pairs import EMPTY, FIXED, FULL, ONE, TURNS, mask_pairs
from sklearn.metrics import confusion_matrix

from sa2va_trl.metrics import (
    ALL_METRICS,
    LOWER_IS_BETTER,
    METRICS,
    absence_sensitivity,
    absence_specificity,
    betti0_error,
    cldice,
    confusion_counts,
    mask_metrics,
    segmentation_metrics,
)
from sa2va_trl.metrics.sets import CALIBRATION_METRICS, CLIP_METRICS


# By hand, of masks of 9 x 12 pixels; what is not said is 0.
EDGES = {
    # prediction, target
    ("empty", "empty"): {
        "undefined": {"hd95", "assd", "width_error", "dice_thin", "dice_medium", "dice_thick", "absence_specificity"},
        1: {*METRICS, "cldice", "nsd_1", "nsd_2", "volumetric_similarity", "absence_sensitivity"},
    },
    ("empty", "one"): {
        "undefined": {"hd95", "assd", "width_error", "dice_medium", "dice_thick", "absence_sensitivity"},
        1: {"specificity", "betti0_error", "betti_matching_error", "skeleton_length_error"},
        107 / 108: {"accuracy"},
    },
    ("one", "empty"): {
        "undefined": {
            *("hd95", "assd", "width_error", "dice_thin", "dice_medium", "dice_thick"),
            *("skeleton_length_error", "absence_specificity"),
        },
        1: {"betti0_error", "betti_matching_error"},
        107 / 108: {"accuracy", "specificity"},
    },
    ("one", "one"): {
        "undefined": {"dice_medium", "dice_thick", "absence_sensitivity"},
        1: {*METRICS, "cldice", "nsd_1", "nsd_2", "volumetric_similarity", "dice_thin", "absence_specificity"},
    },
}
MASKS = {"empty": EMPTY, "one": ONE, "full": FULL}


@pytest.mark.parametrize("pair", EDGES, ids="-".join)
def test_the_table_of_empty_masks(pair):
    found, expected = mask_metrics(*(MASKS[name] for name in pair)), EDGES[pair]
    assert {name for name, value in found.items() if math.isnan(value)} == expected["undefined"]
    for name, value in found.items():
        if name not in expected["undefined"]:
            wanted = [number for number, names in expected.items() if number != "undefined" and name in names]
            assert value == pytest.approx(wanted[0] if wanted else 0), name


def test_names_are_in_one_order_and_directions_are_known():
    names = list(mask_metrics(ONE, FULL))
    assert (*names, *CALIBRATION_METRICS, *CLIP_METRICS) == ALL_METRICS and len(set(ALL_METRICS)) == len(ALL_METRICS)
    assert set(ALL_METRICS) > LOWER_IS_BETTER and not LOWER_IS_BETTER & set(METRICS)
    # A perfect mask has the best value of each, a worse one is no better.
    target = FIXED["blobs-1"][1]
    best, worse = mask_metrics(target, target), mask_metrics(np.roll(target, 9, axis=1), target)
    for name, value in best.items():
        if not math.isnan(value):
            assert value == (0 if name in LOWER_IS_BETTER else 1)
            assert worse[name] >= value if name in LOWER_IS_BETTER else worse[name] <= value


@pytest.mark.parametrize("name", FIXED)
def test_shared_skeletons_and_labels_change_no_value(name):
    pred, target = FIXED[name]
    found = mask_metrics(pred, target)
    assert {key: found[key] for key in METRICS} == segmentation_metrics(pred, target)
    assert found["cldice"] == cldice(pred, target) and found["betti0_error"] == betti0_error(pred, target)
    assert mask_metrics(pred, target) == pytest.approx(found, nan_ok=True)  # asked twice
    # Surroundings change none but those that count them.
    wide = mask_metrics(np.pad(pred, 7), np.pad(target, 7))
    for key in set(found) - {"accuracy", "specificity"}:
        assert wide[key] == pytest.approx(found[key], nan_ok=True), key


@settings(deadline=None, max_examples=60)
@given(mask_pairs())
def test_what_needs_no_skeleton_survives_turning(pair):
    by_skeleton = {"cldice", "junction_error", "missed_connections", "false_connections", "skeleton_length_error"}
    by_skeleton |= {"width_error", "dice_thin", "dice_medium", "dice_thick"}
    found = mask_metrics(*pair)
    for turn in TURNS:
        turned = mask_metrics(*map(turn, pair))
        for name in set(found) - by_skeleton:
            assert turned[name] == pytest.approx(found[name], nan_ok=True), name


def test_presence_is_a_confusion_matrix_of_images():
    rng = np.random.default_rng(0)
    masks = rng.random((40, 2, 3, 3)) > 0.85
    counts = [confusion_counts(*pair) for pair in masks]
    absent = ~masks.any((2, 3))
    (tn, fp), (fn, tp) = confusion_matrix(absent[:, 1], absent[:, 0])
    assert min(tn, fp, fn, tp) > 0
    assert np.nanmean([absence_sensitivity(entry) for entry in counts]) == pytest.approx(tp / (tp + fn), abs=1e-6)
    assert np.nanmean([absence_specificity(entry) for entry in counts]) == pytest.approx(tn / (tn + fp), abs=1e-6)


def test_images_of_pillow_with_one_bit_are_masks():
    from PIL import Image

    array = np.asarray(Image.fromarray(np.uint8(FIXED["blobs-0"][0]) * 255).convert("1"))
    assert array.dtype == bool
    assert mask_metrics(array, array)["cldice"] == 1
