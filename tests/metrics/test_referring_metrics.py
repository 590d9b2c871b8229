import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairs import mask_pairs

from sa2va_trl.metrics import Counts, absence_sensitivity, confusion_counts, cumulative_iou, generalized_iou


def as_gres_sums_up(pairs):
    """
    gIoU and cIoU as the evaluation of GRES accumulates them, sample by sample: of an expression without a target 1 or
    0, and its union in the sum only where something was drawn.
    """
    intersections = unions = ious = 0
    for pred, target in pairs:
        union = int((pred | target).sum())
        if not target.any():
            ious += float(not pred.any())
            unions += union if pred.any() else 0
            continue
        own = int((pred & target).sum())
        ious += own / union
        intersections, unions = intersections + own, unions + union
    return ious / len(pairs), intersections / unions if unions else 1.0


@given(st.lists(mask_pairs(), min_size=1, max_size=6))
def test_both_are_as_gres_sums_them_up(pairs):
    counts = [confusion_counts(*pair) for pair in pairs]
    assert (generalized_iou(counts), cumulative_iou(counts)) == pytest.approx(as_gres_sums_up(pairs), abs=1e-12)


def test_by_hand():
    # A large object found by half, a small one found whole, nothing found rightly, and something invented.
    counts = [Counts(50, 0, 50, 900), Counts(4, 0, 0, 996), Counts(0, 0, 0, 1000), Counts(0, 26, 0, 974)]
    assert generalized_iou(counts) == (0.5 + 1 + 1 + 0) / 4
    assert cumulative_iou(counts) == 54 / (100 + 4 + 0 + 26)
    assert np.nanmean([absence_sensitivity(own) for own in counts]) == 0.5  # N-acc of gRefCOCO


def test_without_expressions_there_is_nothing_to_say():
    for measure in (cumulative_iou, generalized_iou):
        with pytest.raises(ValueError, match="no expressions"):
            measure([])
