import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.evaluation.significance import holm, is_exact, sign_flip_p, smallest_p


# sign_flip_p


def definition(sums):
    """Every pattern of signs is as likely as another."""
    patterns = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    return np.mean(abs(patterns @ sums) >= abs(np.sum(sums)) - 1e-9)


@settings(deadline=None, max_examples=50)
@given(differences=st.lists(st.integers(-40, 40), min_size=1, max_size=9))
def test_few_clusters_are_tested_exactly(differences):
    assert is_exact(len(differences))
    assert sign_flip_p(differences) == pytest.approx(definition(differences))
    assert sign_flip_p(differences) >= smallest_p(len(differences))


@pytest.mark.parametrize("count", [8, 12, 25])
def test_the_test_matches_scipy(count):
    differences = 0.05 + 0.2 * np.random.default_rng(count).standard_normal(count)
    expected = scipy.stats.permutation_test(
        (differences, np.zeros(count)),
        lambda one, two, axis: np.mean(one - two, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=1,
    ).pvalue
    close = {"rel": 1e-9} if is_exact(count) else {"abs": 4 * math.sqrt(2 * expected * (1 - expected) / 10_000)}
    assert sign_flip_p(differences) == pytest.approx(expected, **close)


def test_images_of_a_patient_are_swapped_together():
    differences, patients = [0.1, 0.3, -0.2, 0.4, 0.1], ["a", "a", "b", "c", "c"]
    assert sign_flip_p(differences, patients) == pytest.approx(definition([0.4, -0.2, 0.5]))
    assert sign_flip_p([0.2] * 3000, np.arange(3000) % 6) == 2.0**-5


def test_many_clusters_have_random_ways_and_no_p_of_nothing():
    assert is_exact(14) and not is_exact(15) and not is_exact(5000)
    assert sign_flip_p(np.full(40, 0.1), resamples=999) == 0.001
    rng = np.random.default_rng(0)
    many = rng.standard_normal(20_000)  # in several blocks
    assert sign_flip_p(many, resamples=1500) == pytest.approx(scipy.stats.ttest_1samp(many, 0).pvalue, abs=0.05)
    assert sign_flip_p(many[:40]) == sign_flip_p(many[:40][::-1])
    with pytest.raises(ValueError, match="`resamples` must be at least 1, got 0"):
        sign_flip_p([0.1, 0.2], resamples=0)
    with pytest.raises(ValueError, match="1 of 2 `differences` are not finite"):
        sign_flip_p([0.1, math.nan])


def test_smallest_p_counts_the_tests():
    assert smallest_p(6) == 0.03125 and smallest_p(6, 2) == 0.0625 and smallest_p(1, 3) == 1


# holm


@settings(deadline=None, max_examples=100)
@given(p_values=st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.02]), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    # Marcus, Peritz and Gabriel (1976): a hypothesis falls at a level if every intersection that holds it falls.
    everything = range(len(p_values))
    subsets = [chosen for size in everything for chosen in itertools.combinations(everything, size + 1)]
    for index, adjusted in enumerate(holm(p_values)):
        bounds = [len(chosen) * min(p_values[i] for i in chosen) for chosen in subsets if index in chosen]
        assert adjusted == pytest.approx(min(1, max(bounds)))


def test_holm_of_the_textbook_and_of_nothing():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="`p_values` must lie in"):
            holm([0.5, bad])
