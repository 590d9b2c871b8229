import math

import numpy as np
import pytest
import scipy.stats

from sa2va_trl.evaluation.power import effect_size, minimum_detectable_difference
from sa2va_trl.evaluation.significance import sign_flip_p


def test_size_is_that_of_hedges():
    differences = np.random.default_rng(0).normal(0.3, 1, size=12)
    size = effect_size(differences.mean(), differences.std(ddof=1), 12)
    student = scipy.stats.ttest_1samp(differences, 0).statistic
    # (His approximation of the correction is that good from 10 degrees of freedom on.)
    assert size == pytest.approx(student / math.sqrt(12) * (1 - 3 / (4 * 11 - 1)), rel=3e-4)
    assert effect_size(-0.2, 0.1, 12) == -effect_size(0.2, 0.1, 12)
    assert effect_size(0.2, 0.0, 12) is effect_size(0.2, math.nan, 1) is None
    assert effect_size(0.2, 0.1, 2) == 0


def test_planned_number_is_that_of_the_textbook():
    # Two-sided paired t test at 5 %: 34 pairs find d = 0.5 with 80 % power, 33 do not (Cohen, 1988; G*Power).
    assert minimum_detectable_difference(1.0, 34) < 0.5 < minimum_detectable_difference(1.0, 33)
    assert minimum_detectable_difference(0.2, 34) == pytest.approx(0.2 * minimum_detectable_difference(1.0, 34))
    # of many pairs the normal quantiles
    expected = (scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.9)) / 100
    assert minimum_detectable_difference(1.0, 10_000, power=0.9) == pytest.approx(expected, rel=1e-3)


def test_few_clusters_can_find_nothing():
    assert [minimum_detectable_difference(0.1, count) is None for count in (1, 5, 6)] == [True, True, False]
    assert minimum_detectable_difference(0.1, 6, alpha=0.025) is None
    values = [minimum_detectable_difference(0.1, count) for count in range(6, 40)]
    assert all(one > two > 0 for one, two in zip(values, values[1:], strict=False))
    assert minimum_detectable_difference(0.0, 10) == 0


@pytest.mark.parametrize("count", [8, 20])
def test_stated_power_is_reached(count):
    shift, rng = minimum_detectable_difference(1.0, count), np.random.default_rng(count)
    found = np.mean([sign_flip_p(rng.normal(shift, 1, count), resamples=2000) <= 0.05 for _ in range(500)])
    assert found == pytest.approx(0.8, abs=0.06)  # 500 trials have a standard error of 1.8 %


@pytest.mark.parametrize(
    "options", [(-1.0, 5), (0.1, 0), (math.nan, 5), (0.1, 9, 1.0), (0.1, 9, 0.04), (0.1, 9, 0.8, 0)]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="got"):
        minimum_detectable_difference(*options)
