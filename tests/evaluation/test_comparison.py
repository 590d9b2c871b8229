import json
import math
import runpy

import numpy as np
import pandas as pd
import pytest
from house import ROOT

from sa2va_trl.evaluation.comparison import compare, comparison_table
from sa2va_trl.evaluation.differences import paired_difference, summarize
from sa2va_trl.evaluation.significance import holm


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
        name: summarize(dice, patients, (0, 1)) for name, dice in (("one", FIRST), ("two", SECOND), ("three", THIRD))
    }
    options = {"bounds": (-1, 1), "alpha": 0.025}
    expected = [paired_difference(*ends, patients, **options) for ends in ((FIRST, SECOND), (SECOND, THIRD))]
    for test in ("wilcoxon_p", "permutation_p"):
        for entry, adjusted in zip(expected, holm([entry[test] for entry in expected]), strict=True):
            entry[f"{test}_holm"] = adjusted
    ends = [("one", "two"), ("two", "three")]
    assert found["differences"] == [
        {"before": before, "after": after, **entry, "seeds_se": None}
        for (before, after), entry in zip(ends, expected, strict=True)
    ]
    assert found["clusters"] == "patients" and found["left_out"] == [] and not found["lower_is_better"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_other_metric_and_chosen_pairs():
    runs = tables(one=FIRST, two=SECOND, control=THIRD)
    found = compare(runs, metric="iou", pairs=[("control", "two")])
    (entry,) = found["differences"]
    assert (entry["before"], entry["after"]) == ("control", "two")
    assert entry["mean"] == pytest.approx((np.mean(SECOND) - np.mean(THIRD)) / 2)
    assert entry["wilcoxon_p_holm"] == entry["wilcoxon_p"]
    assert entry["permutation_p_holm"] == entry["permutation_p"]
    assert list(found["runs"]) == ["one", "two", "control"]


def test_tables_without_patients_are_compared_by_image():
    runs = {name: table.drop(columns="patient_id") for name, table in tables(one=FIRST, two=SECOND).items()}
    found = compare(runs)
    (entry,) = found["differences"]
    assert entry["clusters"] == 6 and found["clusters"] == "images"


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
        (change("dice", math.inf), "run 'two' has an infinite dice of frame1"),
        (lambda table: table.assign(dice=math.nan), r"No sample has a dice in all runs .*0 of 6 in 'one', 6 of 6 in"),
        (change("patient_id", "c"), "name other patients, videos or pictures for frame1"),
        (lambda table: table.drop(columns="patient_id"), "name other patients, videos or pictures for frame0, frame1"),
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
    cells += [f"{entry['permutation_p_holm']:.2g}", f"{entry['effect_size']:+.2f}"]
    cells += [f"{entry['improved']:.1%}", "0"]
    assert lines[6].removeprefix("second - one").split() == cells
    assert "with 3 patients p cannot be below 0.25 before correction" in text and "six" not in text
    assert "It takes 6 or more" in text


def test_table_of_what_has_no_interval():
    runs = {name: table.assign(patient_id="a") for name, table in tables(one=FIRST, two=FIRST).items()}
    lines = comparison_table(compare(runs)).splitlines()
    assert lines[1].split() == ["one", f"{np.mean(FIRST):.4f}", "-", "6"]
    assert lines[5].removeprefix("two - one").split() == ["+0.0000", "-", "1", "-", "-", "6"]
    assert "All samples are of one patient: there is no interval" in lines[-1]


def test_enough_patients_need_no_warning():
    runs = {name: table.drop(columns="patient_id") for name, table in tables(one=FIRST, two=SECOND).items()}
    assert "correction" not in comparison_table(compare(runs))


# what is said with the numbers


def of_images(count, **runs):
    """One table a run of as many samples whose patients are not known."""
    names = [f"frame{index}" for index in range(count)]
    return {run: pd.DataFrame({"sample_id": names, "dice": dice}) for run, dice in runs.items()}


def test_too_small_to_tell_is_said_with_what_could_be_told():
    before = np.linspace(0.5, 0.7, 6)
    found = compare(of_images(6, one=before, two=before + [0.1, -0.1, 0.2, 0.0, 0.1, -0.05]))
    (entry,) = found["differences"]
    (note,) = found["notes"]
    assert "with 6 images p cannot be below 0.031" in note
    assert f"two - one, differences below {entry['minimum_detectable']:.2g}" in note and "80% power" in note
    assert compare(of_images(6, one=before, two=before + 0.1))["notes"] == []  # found
    assert compare(of_images(6, one=before, two=before))["notes"] == []  # nothing to find
    # Six can show one difference, but not one of two.
    three = compare(of_images(6, one=before, two=before + 0.1, three=before))
    assert "0.031 before correction and 0.062 after it" in three["notes"][0] and "7 or more" in three["notes"][0]
    assert three["differences"][0]["minimum_detectable"] is None


def test_samples_without_the_metric_are_left_out_of_all_runs_and_counted():
    runs = tables(one=FIRST, two=SECOND, three=THIRD)
    runs["two"].loc[1, "dice"] = runs["three"].loc[1, "dice"] = runs["three"].loc[4, "dice"] = math.nan
    found = compare(runs)
    kept = {name: table.drop(index=[1, 4]) for name, table in runs.items()}
    expected = compare(kept)
    assert found["runs"] == expected["runs"] and found["differences"] == expected["differences"]
    assert found["undefined"] == {"one": 0, "two": 1, "three": 2} and found["left_out"] == ["frame1", "frame4"]
    assert "1 in two, 2 in three): frame1, frame4." in found["notes"][0]
    assert expected["undefined"] == {"one": 0, "two": 0, "three": 0}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_metrics_that_improve_downwards_are_turned(monkeypatch):
    runs = tables(one=FIRST, two=SECOND)
    runs = {name: table.assign(distance=10 * (1 - table["dice"])) for name, table in runs.items()}
    found = compare(runs, "distance", lower_is_better=True)
    (entry,), (overlap,) = found["differences"], compare(runs)["differences"]
    assert entry["improved"] == overlap["improved"] and entry["mean"] == pytest.approx(-10 * overlap["mean"])
    assert "Lower distance is better" in found["notes"][0]
    (other,) = compare(runs, "distance")["differences"]
    assert other["improved"] == pytest.approx(1 - entry["improved"])
    monkeypatch.setattr("sa2va_trl.evaluation.comparison.LOWER_IS_BETTER", frozenset({"distance"}))
    assert compare(runs, "distance") == found


def test_scores_of_empty_masks_alone_are_told():
    found = compare(of_images(8, one=[1, 0, 1, 1, 0, 1, 1, 1], two=[1, 1, 1, 1, 0, 1, 1, 1]))
    assert "Every dice is 0 or 1, as where all masks of the split are empty" in comparison_table(found)


# seeds


def test_seeds_are_no_patients():
    rng = np.random.default_rng(0)
    base = np.linspace(0.4, 0.8, 6)
    one = [base + 0.02 * rng.standard_normal(6) for _ in range(3)]
    two = [base + 0.05 + 0.02 * rng.standard_normal(6) for _ in range(2)]
    runs = {
        name: [tables(run=dice)["run"].sample(frac=1, random_state=7) for dice in seeds]
        for name, seeds in (("one", one), ("two", two))
    }
    found = compare(runs)
    expected = compare(tables(one=np.mean(one, axis=0), two=np.mean(two, axis=0)))
    assert found["differences"][0]["clusters"] == 3
    for name, seeds in (("one", one), ("two", two)):
        spread = found["runs"][name].pop("seeds")
        means = [np.mean(dice) for dice in seeds]
        assert spread == {"n": len(seeds), "means": pytest.approx(means), "std": pytest.approx(np.std(means, ddof=1))}
        assert found["runs"][name]["mean"] == pytest.approx(expected["runs"][name]["mean"])
        assert any(f"{name} is the mean of {len(seeds)} seeds" in note for note in found["notes"])
    error = math.sqrt(sum(np.var([np.mean(dice) for dice in seeds], ddof=1) / len(seeds) for seeds in (one, two)))
    assert found["differences"][0]["seeds_se"] == pytest.approx(error)
    (entry,), (single,) = found["differences"], expected["differences"]
    for key in ("mean", "permutation_p", "wilcoxon_p", "std_clusters"):
        assert entry[key] == pytest.approx(single[key])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_difference_that_other_seeds_may_give_is_told():
    low, high = ([value + shift for value in FIRST] for shift in (-0.1, 0.1))
    one, two = ([tables(run=dice)["run"] for dice in seeds] for seeds in ((low, high), (high, low)))
    two[0] = two[0].assign(dice=two[0]["dice"] + 0.02)
    assert "two - one is within what other seeds alone may give" in compare({"one": one, "two": two})["notes"][-1]


def test_bad_seeds_are_named():
    own = tables(one=FIRST, two=SECOND)
    with pytest.raises(ValueError, match=r"'two' \(table 2\) were scored on different samples: only 'one' has frame5"):
        compare({"one": own["one"], "two": [own["two"], own["two"].iloc[:-1]]})
    with pytest.raises(ValueError, match="run 'two' has no table"):
        compare({"one": own["one"], "two": []})


def test_false_alarms_and_power_are_as_said():
    simulation = runpy.run_path(str(ROOT / "recipes" / "benchmarks" / "simulated_statistics.py"))
    none = simulation["tested"](30, "unequal", 150, seed=1)
    own = simulation["tested"](30, "unequal", 150, none["minimum_detectable"], seed=2)
    # The whole simulation has 5 and some 80 %; 150 trials have standard errors of 1.8 and 3.3 %.
    assert none["found"] <= 0.105
    assert own["found"] == pytest.approx(0.8, abs=0.11)
