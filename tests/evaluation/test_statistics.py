import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.evaluation.statistics import bootstrap_ci, summarize


scores = st.lists(st.floats(0, 1), min_size=2, max_size=30)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_matches_scipy(confidence):
    values = np.random.default_rng(0).beta(8, 2, size=60)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20000, confidence_level=confidence, method="percentile", rng=1
    ).confidence_interval
    actual = bootstrap_ci(values, confidence=confidence, resamples=20000)
    assert actual == pytest.approx(expected, abs=0.03 * (expected.high - expected.low))


def test_clustered_interval_matches_a_loop():
    rng = np.random.default_rng(0)
    clusters = rng.integers(12, size=80)  # unequal sizes
    values = 0.7 + 0.1 * rng.standard_normal(12)[clusters] + 0.02 * rng.standard_normal(80)
    names = np.unique(clusters)
    means = []
    for _ in range(5000):
        drawn = rng.choice(names, size=len(names))
        means.append(np.concatenate([values[clusters == name] for name in drawn]).mean())
    expected = np.percentile(means, [2.5, 97.5])
    actual = bootstrap_ci(values, [f"patient {name}" for name in clusters], resamples=20000)
    assert actual == pytest.approx(expected, abs=0.06 * (expected[1] - expected[0]))
    # images of a patient that resemble each other are worth less than independent ones
    unclustered = bootstrap_ci(values)
    assert actual[1] - actual[0] > 1.5 * (unclustered[1] - unclustered[0])


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 3)
    covered = {"clustered": 0, "unclustered": 0}
    for _ in range(1000):
        values = rng.standard_normal(40)[patients] + 0.1 * rng.standard_normal(120)
        for name, clusters in (("clustered", patients), ("unclustered", None)):
            lower, upper = bootstrap_ci(values, clusters, resamples=400)
            covered[name] += lower <= 0 <= upper
    # 95 % less what a percentile interval of 40 patients is known to lack, and the noise of 1,000 trials
    assert 900 <= covered["clustered"] <= 965
    assert covered["unclustered"] < 800


@settings(deadline=None, max_examples=50)
@given(values=scores, data=st.data())
def test_interval_is_ordered_bounded_and_blind_to_order_and_names(values, data):
    labels = data.draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
    labels[:2] = [0, 1]  # at least two clusters
    for clusters in (None, labels):
        lower, upper = bootstrap_ci(values, clusters, resamples=200)
        assert min(values) - 1e-12 <= lower <= upper <= max(values) + 1e-12
    order = data.draw(st.permutations(range(len(values))))
    shuffled = [values[i] for i in order]
    assert bootstrap_ci(shuffled, resamples=200) == bootstrap_ci(values, resamples=200)
    renamed = [f"patient {9 - labels[i]}" for i in order]
    expected = bootstrap_ci(values, labels, resamples=200)
    assert bootstrap_ci(shuffled, renamed, resamples=200) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(values=scores, shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_interval_follows_the_unit(values, shift, scale):
    lower, upper = bootstrap_ci(values, resamples=200)
    moved = bootstrap_ci([scale * value + shift for value in values], resamples=200)
    assert moved == pytest.approx((scale * lower + shift, scale * upper + shift), abs=1e-9)


def test_one_value_a_cluster_is_the_unclustered_interval():
    values = np.random.default_rng(0).random(25)
    assert bootstrap_ci(values, list(range(25))) == bootstrap_ci(values)


def test_seed_confidence_and_blocks():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_ci(values) == bootstrap_ci(values, seed=0) != bootstrap_ci(values, seed=1)
    narrow, wide = bootstrap_ci(values, confidence=0.5), bootstrap_ci(values, confidence=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    # so many values that the resamples are computed in several blocks
    many = np.random.default_rng(0).standard_normal(300_000)
    lower, upper = bootstrap_ci(many, resamples=100)
    half_width = 1.96 / math.sqrt(300_000)
    assert (lower, upper) == pytest.approx((many.mean() - half_width, many.mean() + half_width), abs=half_width)
    assert lower < many.mean() < upper


def test_a_single_unit_has_no_interval():
    assert all(math.isnan(bound) for bound in bootstrap_ci([0.8]))
    assert all(math.isnan(bound) for bound in bootstrap_ci([0.8, 0.9, 0.7], ["p1"] * 3))


@settings(deadline=None, max_examples=20)
@given(values=scores)
def test_summary_matches_numpy_and_is_json(values):
    summary = summarize(values)
    assert list(summary) == ["mean", "std", "ci95", "n"]
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["std"] == pytest.approx(np.std(values, ddof=1))
    assert summary["ci95"] == list(bootstrap_ci(values))
    assert summary["n"] == len(values)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_of_a_single_unit():
    assert summarize([0.8]) == {"mean": 0.8, "std": 0.0, "ci95": [None, None], "n": 1}
    clustered = summarize(np.array([0.25, 0.75]), clusters=["p1", "p1"])
    assert clustered["ci95"] == [None, None] and clustered["mean"] == 0.5 and clustered["std"] > 0


def test_summary_hands_the_clusters_on():
    values, clusters = [0.1, 0.2, 0.8, 0.9], ["a", "a", "b", "b"]
    assert summarize(values, clusters)["ci95"] == list(bootstrap_ci(values, clusters)) != summarize(values)["ci95"]


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


@pytest.mark.parametrize("option", [{"confidence": 0.0}, {"confidence": 95}, {"resamples": 0}])
def test_bad_options_are_named(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"`{name}` must .* got {value}"):
        bootstrap_ci([0.1, 0.2], **option)
