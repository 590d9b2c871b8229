import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.evaluation.statistics import bootstrap_ci, compare, comparison_table, holm, paired_difference, summarize


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


def test_no_number_of_frames_makes_few_patients_significant():
    before, after = np.zeros(3000), np.linspace(0.1, 0.2, 3000)
    for patients in (1, 2, 5):
        found = paired_difference(before, after, np.arange(3000) % patients)
        assert found["wilcoxon_p"] == 2.0 ** (1 - patients)
    assert paired_difference(before, after)["wilcoxon_p"] < 1e-100


def test_false_alarms_are_as_rare_as_said():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 10)
    alarms = {"clustered": 0, "unclustered": 0}
    for _ in range(120):
        after = rng.standard_normal(20)[patients] + 0.2 * rng.standard_normal(200)
        for name, clusters in (("clustered", patients), ("unclustered", None)):
            alarms[name] += p_of(after, clusters) < 0.05
    assert 1 <= alarms["clustered"] <= 14
    assert alarms["unclustered"] > 36


def p_of(after, clusters):
    return paired_difference(np.zeros(len(after)), after, clusters)["wilcoxon_p"]


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_the_other_way_round_is_the_opposite(values):
    before, after = (np.array(side) / 8 for side in zip(*values, strict=True))  # exact in binary
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there["mean"] == -back["mean"]
    assert there["wilcoxon_p"] == pytest.approx(back["wilcoxon_p"])
    assert there["ties"] == back["ties"] == sum(one == two for one, two in values)
    if there["ties"] == len(values):
        assert there["improved"] is back["improved"] is None
    else:
        assert there["improved"] == pytest.approx(1 - back["improved"])


def test_share_of_improved_samples_leaves_ties_out():
    found = paired_difference([0.5, 0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.6, 0.7, 0.4])
    assert (found["improved"], found["ties"], found["n"]) == (2 / 3, 2, 5)


@pytest.mark.parametrize("clusters", [None, ["a", "a", "b"]])
def test_equal_models_do_not_differ(clusters):
    found = paired_difference([0.3, 0.8, 0.6], [0.3, 0.8, 0.6], clusters)
    assert found["mean"] == 0 and found["ci95"] == [0, 0]
    assert found["wilcoxon_p"] == 1 and found["improved"] is None and found["ties"] == 3


def test_one_patient_has_no_interval_and_all_is_json():
    found = paired_difference([0.3, 0.8], [0.4, 0.9], ["a", "a"])
    assert found["ci95"] == [None, None] and found["wilcoxon_p"] == 1
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


# compare


def tables(**runs):
    """One table a run of six frames of three patients."""
    names = [f"frame{index}" for index in range(6)]
    patients = ["a", "a", "b", "b", "c", "c"]
    return {
        run: pd.DataFrame({"sample_id": names, "patient_id": patients, "dice": dice, "iou": np.divide(dice, 2)})
        for run, dice in runs.items()
    }


FIRST, SECOND, THIRD = (list(np.random.default_rng(seed).random(6)) for seed in range(3))


def test_each_run_is_compared_with_the_one_before():
    runs = tables(one=FIRST, two=SECOND, three=THIRD)
    runs["two"] = runs["two"].sample(frac=1, random_state=0)  # rows are joined by their names
    found = compare(runs)
    patients = ["a", "a", "b", "b", "c", "c"]
    assert found["metric"] == "dice"
    assert found["runs"] == {
        name: summarize(dice, patients) for name, dice in (("one", FIRST), ("two", SECOND), ("three", THIRD))
    }
    expected = [paired_difference(FIRST, SECOND, patients), paired_difference(SECOND, THIRD, patients)]
    adjusted = holm([entry["wilcoxon_p"] for entry in expected])
    ends = [("one", "two"), ("two", "three")]
    assert found["differences"] == [
        {"before": before, "after": after, **entry, "wilcoxon_p_holm": p}
        for (before, after), entry, p in zip(ends, expected, adjusted, strict=True)
    ]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_other_metric_and_chosen_pairs():
    runs = tables(one=FIRST, two=SECOND, control=THIRD)
    found = compare(runs, metric="iou", pairs=[("control", "two")])
    (entry,) = found["differences"]
    assert (entry["before"], entry["after"]) == ("control", "two")
    assert entry["mean"] == pytest.approx((np.mean(SECOND) - np.mean(THIRD)) / 2)
    assert entry["wilcoxon_p_holm"] == entry["wilcoxon_p"]
    assert list(found["runs"]) == ["one", "two", "control"]


def test_tables_without_patients_are_compared_by_image():
    runs = {name: table.drop(columns="patient_id") for name, table in tables(one=FIRST, two=SECOND).items()}
    (entry,) = compare(runs)["differences"]
    assert entry["clusters"] == 6


def change(column, value, row=1):
    def changed(table):
        table = table.copy()
        table.loc[row, column] = value
        return table

    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table.drop(columns="dice"), "run 'two' has no column dice"),
        (lambda table: table.drop(columns="sample_id"), "run 'two' has no column sample_id"),
        (lambda table: table.iloc[:-1], "different samples: only 'one' has frame5"),
        (change("sample_id", "other"), "only 'one' has frame1; only 'two' has other"),
        (lambda table: table.assign(sample_id=list("uvwxyz")), "only 'two' has u, v, w and 3 more"),
        (change("sample_id", "frame0"), "run 'two' has samples twice: frame0"),
        (lambda table: table.assign(dice="high"), "run 'two': column dice holds no numbers"),
        (change("dice", math.nan), "run 'two' has no finite dice of frame1"),
        (change("patient_id", "c"), "name other patients or videos for frame1"),
        (lambda table: table.drop(columns="patient_id"), "name other patients or videos for frame0, frame1"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(damage, message):
    runs = tables(one=FIRST, two=SECOND)
    runs["two"] = damage(runs["two"])
    with pytest.raises(ValueError, match=message):
        compare(runs)


def test_bad_runs_and_pairs_are_refused():
    runs = tables(one=FIRST, two=SECOND)
    with pytest.raises(ValueError, match="at least two runs, got one"):
        compare({"one": runs["one"]})
    for pairs, message in (
        ([("one", "three")], "does not name two of the runs one, two"),
        ([("one", "one")], "does not name two"),
        ([], "at least one pair"),
        ([("one", "two"), ("one", "two")], "none twice"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(runs, pairs=pairs)


def test_table_says_what_the_comparison_says():
    comparison = compare(tables(one=FIRST, second=SECOND, three=[0.5] * 6), pairs=[("one", "second")])
    text = comparison_table(comparison)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line] == [
        "run",
        "one",
        "second",
        "three",
        "difference",
        "second",
        "The",
    ]
    for name, run in comparison["runs"].items():
        (line,) = [line for line in lines[:4] if line.startswith(name)]
        assert line.split()[1:] == [f"{run['mean']:.4f}", f"{run['ci95'][0]:.4f}", "to", f"{run['ci95'][1]:.4f}", "6"]
    (entry,) = comparison["differences"]
    cells = [f"{entry['mean']:+.4f}", f"{entry['ci95'][0]:+.4f}", "to", f"{entry['ci95'][1]:+.4f}"]
    cells += [f"{entry['wilcoxon_p_holm']:.2g}", f"{entry['improved']:.1%}", "0"]
    assert lines[6].removeprefix("second - one").split() == cells
    assert "3 patients" in text and "p = 0.25 before correction" in text


def test_table_of_what_has_no_interval():
    runs = {name: table.assign(patient_id="a") for name, table in tables(one=FIRST, two=FIRST).items()}
    lines = comparison_table(compare(runs)).splitlines()
    assert lines[1].split() == ["one", f"{np.mean(FIRST):.4f}", "-", "6"]
    assert lines[5].removeprefix("two - one").split() == ["+0.0000", "-", "1", "-", "6"]


def test_enough_patients_need_no_warning():
    runs = {name: table.drop(columns="patient_id") for name, table in tables(one=FIRST, two=SECOND).items()}
    assert "correction" not in comparison_table(compare(runs))
