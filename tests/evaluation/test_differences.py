import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.evaluation.differences import mean_of_seeds, paired_difference, summarize
from sa2va_trl.evaluation.intervals import bootstrap_ci
from sa2va_trl.evaluation.power import effect_size, minimum_detectable_difference
from sa2va_trl.evaluation.significance import sign_flip_p


scores = st.lists(st.floats(0, 1), min_size=2, max_size=30)


# summarize


@settings(deadline=None, max_examples=20)
@given(values=scores)
def test_summary_matches_numpy_and_is_json(values):
    summary = summarize(values)
    assert list(summary) == ["mean", "std", "ci95", "n", "ci95_method"]
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["std"] == pytest.approx(np.std(values, ddof=1))
    assert summary["ci95"] == list(bootstrap_ci(values))
    assert summary["n"] == len(values)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_of_a_single_unit():
    assert summarize([0.8]) == {"mean": 0.8, "std": 0.0, "ci95": [None, None], "n": 1, "ci95_method": None}
    clustered = summarize(np.array([0.25, 0.75]), clusters=["p1", "p1"])
    assert clustered["ci95"] == [None, None] and clustered["mean"] == 0.5 and clustered["std"] > 0


def test_summary_hands_the_clusters_on():
    values, clusters = [0.1, 0.2, 0.8, 0.9], ["a", "a", "b", "b"]
    assert summarize(values, clusters)["ci95"] == list(bootstrap_ci(values, clusters)) != summarize(values)["ci95"]
    assert summarize(values, bounds=(0.3, 0.6))["ci95"] == [0.3, 0.6]


@pytest.mark.parametrize("function", [bootstrap_ci, summarize])
def test_bad_values_and_clusters_are_named(function):
    with pytest.raises(ValueError, match=r"2 of 4 `values` are not finite, the first at index 1 \(nan\)"):
        function([0.5, math.nan, 0.5, math.inf])
    with pytest.raises(ValueError, match=r"at least one number, got shape \(0,\)"):
        function([])
    with pytest.raises(ValueError, match=r"got shape \(2, 2\)"):
        function(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="2 labels for 3 values"):
        function([0.1, 0.2, 0.3], ["a", "b"])
    with pytest.raises(ValueError, match="2 of 3 `clusters` are missing .*index 1"):
        function([0.1, 0.2, 0.3], ["a", None, math.nan])


# paired_difference


def signed_rank_p(differences):
    """Two-sided p value of the signed-rank test from its definition: every sign pattern is as likely as another."""
    differences = np.asarray([value for value in differences if value != 0])
    ranks = scipy.stats.rankdata(abs(differences))
    centre = ranks.sum() / 2
    observed = abs(ranks[differences > 0].sum() - centre)
    patterns = itertools.product([0, 1], repeat=len(ranks))
    return np.mean([abs(np.dot(signs, ranks) - centre) >= observed - 1e-9 for signs in patterns])


@settings(deadline=None, max_examples=50)
@given(differences=st.lists(st.integers(-40, 40), min_size=1, max_size=10))
def test_wilcoxon_matches_its_definition(differences):
    found = paired_difference([0.0] * len(differences), differences)
    assert found["wilcoxon_p"] == pytest.approx(signed_rank_p(differences) if any(differences) else 1)


def test_the_test_is_over_patients():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(9), rng.integers(1, 12, size=9))
    difference = 0.05 * rng.standard_normal(9)[patients] + 0.01 * rng.standard_normal(len(patients))
    before = rng.random(len(patients))
    found = paired_difference(before, before + difference, patients)
    means = [difference[patients == patient].mean() for patient in range(9)]
    assert found["wilcoxon_p"] == pytest.approx(signed_rank_p(means))
    assert found["ci95"] == pytest.approx(bootstrap_ci(difference, patients), abs=1e-9)
    assert found["mean"] == pytest.approx(difference.mean())
    assert (found["n"], found["clusters"]) == (len(patients), 9)
    assert found["permutation_p"] == sign_flip_p(difference, patients)
    # the spread between patients, which equal numbers of images would make their means' standard deviation
    once = paired_difference(np.zeros(9), means)
    assert once["std_clusters"] == pytest.approx(np.std(means, ddof=1))
    for entry in (found, once):
        size = effect_size(entry["mean"], entry["std_clusters"], 9)
        assert entry["effect_size"] == pytest.approx(size) and entry["smallest_p"] == 2.0**-8
        least = minimum_detectable_difference(entry["std_clusters"], 9)
        assert entry["minimum_detectable"] == pytest.approx(least)


def test_no_number_of_frames_makes_few_patients_significant():
    before, after = np.zeros(3000), np.linspace(0.1, 0.2, 3000)
    for patients in (1, 2, 5):
        found = paired_difference(before, after, np.arange(3000) % patients)
        assert found["wilcoxon_p"] == found["permutation_p"] == found["smallest_p"] == 2.0 ** (1 - patients)
        assert found["minimum_detectable"] is None
    assert paired_difference(before, after)["wilcoxon_p"] < 1e-100


@pytest.mark.parametrize("test", ["wilcoxon_p", "permutation_p"])
def test_false_alarms_are_as_rare_as_said(test):
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 10)
    alarms = {"clustered": 0, "unclustered": 0}
    for _ in range(120):
        after = rng.standard_normal(20)[patients] + 0.2 * rng.standard_normal(200)
        for name, clusters in (("clustered", patients), ("unclustered", None)):
            alarms[name] += p_of(after, clusters, test) < 0.05
    assert 1 <= alarms["clustered"] <= 14
    assert alarms["unclustered"] > 36


def p_of(after, clusters, test):
    return paired_difference(np.zeros(len(after)), after, clusters)[test]


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_the_other_way_round_is_the_opposite(values):
    before, after = (np.array(side) / 8 for side in zip(*values, strict=True))  # exact in binary
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there["mean"] == -back["mean"]
    assert there["wilcoxon_p"] == pytest.approx(back["wilcoxon_p"])
    assert there["permutation_p"] == pytest.approx(back["permutation_p"])
    assert there["minimum_detectable"] == pytest.approx(back["minimum_detectable"])
    assert there["ties"] == back["ties"] == sum(one == two for one, two in values)
    if there["ties"] == len(values):
        assert there["improved"] is back["improved"] is None
    else:
        assert there["improved"] == pytest.approx(1 - back["improved"])


def test_share_of_improved_samples_leaves_ties_out():
    found = paired_difference([0.5, 0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.6, 0.7, 0.4])
    assert (found["improved"], found["ties"], found["n"]) == (2 / 3, 2, 5)
    turned = paired_difference([0.5, 0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.6, 0.7, 0.4], lower_is_better=True)
    assert turned.pop("improved") == 1 / 3
    assert turned == {name: value for name, value in found.items() if name != "improved"}  # the unit is the metric's


@pytest.mark.parametrize("clusters", [None, ["a", "a", "b"]])
def test_equal_models_do_not_differ(clusters):
    found = paired_difference([0.3, 0.8, 0.6], [0.3, 0.8, 0.6], clusters)
    assert found["mean"] == 0 and found["ci95"] == [0, 0]
    assert found["wilcoxon_p"] == found["permutation_p"] == 1
    assert found["improved"] is found["effect_size"] is None and found["ties"] == 3


def test_one_patient_has_no_interval_and_all_is_json():
    found = paired_difference([0.3, 0.8], [0.4, 0.9], ["a", "a"])
    assert found["ci95"] == [None, None] and found["wilcoxon_p"] == found["permutation_p"] == 1
    assert found["std_clusters"] is found["minimum_detectable"] is found["effect_size"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_bad_pairs_are_named():
    with pytest.raises(ValueError, match=r"1 of 2 `after` are not finite, the first at index 1 \(nan\)"):
        paired_difference([0.1, 0.2], [0.1, math.nan])
    with pytest.raises(ValueError, match=r"`before` must be a sequence of at least one"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="got 2 and 1 values"):
        paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="1 labels for 2 values"):
        paired_difference([0.1, 0.2], [0.1, 0.2], ["a"])


# mean_of_seeds


def test_seeds_are_averaged_by_image():
    first, second = np.array([0.1, 0.5, 0.9]), np.array([0.3, 0.5, 0.1])
    values, spread = mean_of_seeds([first, second])
    assert values == pytest.approx([0.2, 0.5, 0.5])
    assert spread == {"n": 2, "means": pytest.approx([0.5, 0.3]), "std": pytest.approx(0.2 / math.sqrt(2))}
    values, spread = mean_of_seeds([first])
    assert values is first and spread is None
