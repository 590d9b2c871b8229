import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pairs import real_pairs
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from sa2va_trl.metrics import calibration_metrics, reliability


@st.composite
def maps(draw):
    shape = draw(hnp.array_shapes(max_dims=2, max_side=8))
    probabilities = draw(hnp.arrays(np.float64, shape, elements=st.floats(0, 1, width=32)))
    return probabilities, draw(hnp.arrays(bool, shape))


def check_against_scikit_learn(probabilities, target, bins):
    found = reliability(probabilities, target, bins)
    flat, truth = probabilities.ravel(), target.ravel()
    assert found.brier == pytest.approx(brier_score_loss(truth, flat), abs=1e-6)
    predicted, real = found.curve
    filled = found.pixels > 0
    # It sorts a probability on an edge into the lower bin.
    if not np.isin(flat * bins, np.arange(1, bins)).any():
        expected = calibration_curve(truth, flat, n_bins=bins)
        assert real[filled] == pytest.approx(expected[0], abs=1e-6)
        assert predicted[filled] == pytest.approx(expected[1], abs=1e-6)
    ece = np.abs(predicted - real)[filled] @ found.pixels[filled] / flat.size
    assert found.ece == pytest.approx(ece, abs=1e-6)


@given(maps(), st.integers(1, 12))
def test_calibration_is_that_of_scikit_learn(pair, bins):
    if len(np.unique(pair[1])) == 2:  # it wants both classes
        check_against_scikit_learn(*pair, bins)


def test_calibration_of_real_masks_is_that_of_scikit_learn(shared):
    for pred, target in real_pairs(shared, 1):
        rng = np.random.default_rng(0)
        check_against_scikit_learn(np.clip(0.7 * pred + rng.random(pred.shape) * 0.3, 0, 1), target, 15)


@given(maps())
def test_sums_of_parts_are_those_of_the_whole_and_nothing_changes_by_asking(pair):
    probabilities, target = pair
    whole = reliability(probabilities, target)
    parts = [reliability(p, t) for p, t in zip(probabilities, target, strict=True) if p.size]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    for _ in range(2):
        assert total.ece == pytest.approx(whole.ece) and total.brier == pytest.approx(whole.brier)
        assert np.array_equal(total.pixels, whole.pixels) and whole.pixels.sum() == target.size
    assert 0 <= whole.ece <= 1 and 0 <= whole.brier <= 1
    turned = reliability(probabilities.T, target.T)
    assert turned.ece == pytest.approx(whole.ece) and turned.brier == pytest.approx(whole.brier)


def test_probabilities_that_mean_what_they_say():
    rng = np.random.default_rng(0)
    probabilities = rng.random((400, 400))
    target = rng.random((400, 400)) < probabilities
    assert reliability(probabilities, target).ece < 0.01
    assert reliability(probabilities**3, target).ece > 0.2
    sure = reliability(target.astype(float), target)
    assert (sure.ece, sure.brier) == (0, 0)


def test_a_mask_has_no_calibration():
    target = np.eye(4, dtype=bool)
    assert all(np.isnan(value) for value in calibration_metrics(target.astype(np.float32), target).values())
    assert calibration_metrics(np.full((4, 4), 0.25), target) == {
        "ece": pytest.approx(0),
        "brier": pytest.approx(3 / 16),
    }


@pytest.mark.parametrize(
    ("probabilities", "target", "bins", "message"),
    [
        ([0.5], [1, 0], 5, "one shape"),
        ([], [], 5, "pixels"),
        ([1.5], [1], 5, r"\[0, 1\]"),
        ([np.nan], [1], 5, r"\[0, 1\]"),
        ([0.5], [2], 5, "0 and 1"),
        ([0.5], [1], 0, "bins"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities, target, bins, message):
    with pytest.raises(ValueError, match=message):
        reliability(np.array(probabilities), np.array(target), bins)
