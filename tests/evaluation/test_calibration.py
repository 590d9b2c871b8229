import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit

from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation.calibration import BINS, Calibration, TemperatureScaling
from sa2va_trl.evaluation.thresholds import sort_map, tempered


def drawn(seed=0, shape=(300, 300)):
    """Probabilities, and a target drawn from them."""
    rng = np.random.default_rng(seed)
    truth = rng.beta(0.4, 1.2, shape)
    return truth, rng.random(shape) < truth


@settings(deadline=None, max_examples=100)
@given(data=st.data(), temperature=st.sampled_from([1.0, 0.5, 3.0]))
def test_errors_are_those_of_their_definitions(data, temperature):
    maps = data.draw(st.lists(arrays(np.float32, 12, elements=st.floats(0, 1, width=32)), min_size=1, max_size=3))
    targets = [data.draw(arrays(bool, 12)) for _ in maps]
    found = Calibration(temperature)
    for one, target in zip(maps, targets, strict=True):
        found.add(sort_map(one, target))
    values, target = tempered(np.concatenate(maps), temperature).astype(np.float64), np.concatenate(targets)
    assert found.brier == pytest.approx(np.mean((values - target) ** 2), abs=1e-9)
    # (A probability on an edge belongs to the interval above.)
    places = np.searchsorted(np.arange(1, BINS) / BINS, values, side="right")
    gaps = [abs(values[places == bin].sum() - target[places == bin].sum()) for bin in range(BINS)]
    assert found.ece == pytest.approx(sum(gaps) / len(values), abs=1e-9)
    bins = found.report()["reliability"]
    assert sum(entry["pixels"] for entry in bins) == len(values)
    assert all(entry["from"] - 1e-6 <= entry["probability"] <= entry["to"] + 1e-6 for entry in bins)


def test_a_calibrated_model_has_no_error_and_temperature_one():
    truth, target = drawn()
    scaling, found = TemperatureScaling(), Calibration()
    for count in (scaling.add, found.add):
        count(sort_map(truth, target))
    assert found.ece < 0.005 and scaling.fit() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_the_temperature_undoes_what_was_done(temperature):
    truth, target = drawn()
    given = tempered(truth, 1 / temperature).astype(np.float32)  # whose log-odds are too large by that
    scaling, before = TemperatureScaling(), Calibration()
    for part in np.array_split(np.arange(len(truth)), 3):
        ordered = sort_map(given[part], target[part])
        scaling.add(ordered)
        before.add(ordered)
    found = scaling.fit()
    assert found == pytest.approx(temperature, rel=0.02)
    after = Calibration(found)
    after.add(sort_map(given, target))
    assert after.ece < 0.2 * before.ece and after.brier < before.brier
    assert after.report()["temperature"] == found


def test_the_likelihood_is_that_of_all_pixels():
    truth, target = drawn(shape=(200, 200))
    scaling = TemperatureScaling()
    scaling.add(sort_map(truth, target))
    for temperature in (0.5, 1.0, 2.0):
        values = expit(np.clip(logit(truth), -17, 17) / temperature)
        exact = -np.where(target, np.log(values), np.log1p(-values)).mean()
        assert scaling.negative_log_likelihood(temperature) == pytest.approx(exact, abs=1e-5)
    best = scaling.fit()
    assert all(
        scaling.negative_log_likelihood(best) <= scaling.negative_log_likelihood(best * change)
        for change in (0.9, 0.99, 1.01, 1.1)
    )


def test_probabilities_of_zero_and_one_are_bounded():
    scaling = TemperatureScaling()
    scaling.add(sort_map(np.array([0, 0, 1, 1], np.float32), np.array([False, True, True, False])))
    assert np.isfinite(scaling.negative_log_likelihood(1.0)) and scaling.fit() == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("value", [False, True])
def test_targets_without_an_edge_are_refused(value):
    scaling = TemperatureScaling()
    scaling.add(sort_map(np.array([0.2, 0.7]), np.array([value, value])))
    with pytest.raises(DatasetError, match="all empty or all full"):
        scaling.fit()
