import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from samples import answers, sample, stored

from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation import bootstrap_ci, score
from sa2va_trl.evaluation.thresholds import (
    RULES,
    SWEPT,
    THRESHOLDS,
    area_pixels,
    best_threshold,
    curves,
    dice_optimal_pixels,
    macro,
    resampled_means,
    rule_table,
    sort_map,
    sweep,
    tempered,
    threshold_for,
)
from sa2va_trl.metrics import confusion_counts


def world(images, size=40, seed=0, temperature=1.0):
    """Rows of patients with two images each, and maps of a model that says of each pixel how likely it is."""
    rng = np.random.default_rng(seed)
    rows, maps = [], []
    for number in range(images):
        truth = rng.beta(0.4, 1.6, (size, size)).astype(np.float32)
        rows.append(sample(f"s{number}", rng.random(truth.shape) < truth, patient_id=f"p{number // 2}"))
        maps.append(tempered(truth, temperature).astype(np.float32)[None])
    return rows, maps


# Every threshold from one sort


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(),
    shape=array_shapes(min_dims=2, max_dims=2, max_side=6),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_counts_are_those_of_the_masks(data, shape, kind):
    # Thresholds themselves among the probabilities: what lies on one does not exceed it.
    values = st.one_of(st.sampled_from(THRESHOLDS).map(lambda value: float(kind(value))), st.sampled_from([0.0, 1.0]))
    values |= st.floats(0, 1, width=np.dtype(kind).itemsize * 8)
    probabilities, target = data.draw(arrays(kind, shape, elements=values)), data.draw(arrays(bool, shape))
    found = sort_map(probabilities, target).counts(THRESHOLDS)
    for threshold, *counts in zip(THRESHOLDS, *found, strict=True):
        assert tuple(counts) == confusion_counts(probabilities > threshold, target)


def test_a_sweep_equals_evaluation_at_every_threshold_to_the_last_bit():
    rng = np.random.default_rng(0)
    rows, maps = [], []
    for number, masks in enumerate((1, 2, 9, 3)):  # NumPy adds up eight or more in another order
        rows.append(sample(f"s{number}", *(rng.random((masks, 17, 23)) < 0.3)))
        maps.append(rng.random((masks, 17, 23)).astype(np.float32))
    found = sweep(answers(rows, *maps))
    assert found.thresholds == THRESHOLDS and len(THRESHOLDS) == 99
    for place, threshold in enumerate(THRESHOLDS):
        table = pd.DataFrame([score(row, one, threshold) for row, one in zip(rows, maps, strict=True)])
        for name in SWEPT:
            assert found.values[name][:, place].tolist() == table[name].tolist()
            assert macro(found.values[name])[place] == table[name].to_numpy().mean()
    assert found.samples["sample_id"].tolist() == [row["sample_id"] for row in rows]


def test_a_sweep_reads_what_predictions_yield_once():
    rows, maps = world(3)
    seen = []
    sweep(answers(stored(rows), *maps), on_map=seen.append)
    assert [len(ordered.everything) for ordered in seen] == [1600] * 3


# The choice


def test_the_known_optimum_of_a_calibrated_model_is_found():
    # Every pixel of the target has 0.9 or, a third of them, 0.3; around them as many that are likely at 0.2 only. With
    # the former drawn Dice is 2/3 / (5/6) = 0.8, with those of 0.3 too it is 1: only thresholds between 0.2 and 0.3
    # draw that.
    rows, maps = [], []
    for number in range(6):
        target = np.zeros((30, 30), bool)
        target[:10] = True
        probabilities = np.full((30, 30), 0.05, np.float32)
        probabilities[:10, :20], probabilities[:10, 20:], probabilities[10:20] = 0.9, 0.3, 0.2
        rows.append(sample(f"s{number}", target, patient_id=f"p{number}"))
        maps.append(probabilities[None])
    found = sweep(answers(rows, *maps))
    chosen = best_threshold(found)
    gain = chosen.pop("gain")
    assert gain["mean"] == pytest.approx(0.2) and gain["ci95"] == pytest.approx([0.2, 0.2])
    # float32(0.3) > 0.29, the nearest to 0.5 of those that draw it.
    assert chosen == {"metric": "dice", "threshold": 0.29, "ci95": [0.29, 0.29], "value": 1.0, "n": 6}
    assert found.at(0.5)["dice"].tolist() == [0.8] * 6 and found.at(0.3)["dice"].tolist() == [0.8] * 6
    assert best_threshold(found, "precision")["threshold"] == 0.5
    assert best_threshold(sweep(answers(rows, *maps), (0.1, 0.25)))["gain"] is None


def test_the_best_threshold_of_calibrated_pixels_is_half_the_best_dice():
    """Lipton et al., 2014: of a calibrated model the optimal threshold is half of the optimal value."""
    rows, maps = world(24, size=80)
    chosen = best_threshold(sweep(answers(rows, *maps)))
    assert abs(chosen["threshold"] - chosen["value"] / 2) < 0.02
    assert chosen["ci95"][0] <= chosen["threshold"] <= chosen["ci95"][1] and chosen["threshold"] < 0.4
    # Of the same model, twice too sure of itself, the same pixels are found at the threshold's other name.
    sharp = best_threshold(sweep(answers(rows, *(tempered(one, 0.5).astype(np.float32) for one in maps))))
    assert abs(sharp["threshold"] - tempered(chosen["threshold"], 0.5)) < 0.02
    assert sharp["value"] == pytest.approx(chosen["value"], abs=1e-3)


def test_bands_are_those_of_the_cluster_bootstrap():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(12), 4)
    values = rng.normal(size=(48, 2)) + rng.normal(size=12)[patients][:, None]
    means = resampled_means(values, patients.tolist())
    for column in range(2):
        low, high = np.quantile(means[:, column], (0.025, 0.975))
        expected = bootstrap_ci(values[:, column], patients, method="percentile")
        assert (low, high) == pytest.approx(expected, abs=0.05)
        assert high - low > 1.3 * np.subtract(*bootstrap_ci(values[:, column], method="percentile")[::-1])
    assert resampled_means(values, ["one"] * 48) is None


def test_a_curve_has_a_band_around_its_mean():
    rows, maps = world(8)
    for name, curve in curves(sweep(answers(rows, *maps))).items():
        assert len(curve["mean"]) == len(curve["low"]) == len(curve["high"]) == 99, name
        assert (np.array(curve["low"]) <= curve["mean"]).all() and (np.array(curve["mean"]) <= curve["high"]).all()
    one = [{**row, "patient_id": "the only one"} for row in rows]
    found = sweep(answers(one, *maps))
    assert curves(found)["dice"]["low"] is None and best_threshold(found)["ci95"] == [None, None]


# Rules for every image


@settings(deadline=None, max_examples=200)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=40))
def test_the_area_preserving_rule_preserves_area(values):
    ordered = np.sort(np.array(values, dtype=np.float32))
    area = float(ordered.sum(dtype=np.float64))
    pixels = area_pixels(ordered)
    drawn = int((ordered > threshold_for(ordered, pixels)).sum())
    assert drawn == pixels
    # No threshold comes nearer, and without equal probabilities the difference is that of rounding.
    possible = {int((ordered > cut).sum()) for cut in (-1.0, *ordered.tolist())}
    assert abs(drawn - area) == pytest.approx(min(abs(count - area) for count in possible))
    if len(np.unique(ordered)) == len(ordered):
        assert abs(drawn - area) <= 0.5 + 1e-6


@settings(deadline=None, max_examples=200)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=40))
def test_the_dice_optimal_rule_draws_what_no_threshold_exceeds(values):
    ordered = np.sort(np.array(values, dtype=np.float32))
    exact = ordered.astype(np.float64)

    def expected(count):
        empty = np.prod(1 - exact)
        return empty if count == 0 else 2 * exact[-count:].sum() / max(count + exact.sum(), 1e-300)

    pixels = dice_optimal_pixels(ordered)
    drawn = int((ordered > threshold_for(ordered, pixels)).sum())
    possible = [int((ordered > cut).sum()) for cut in (-1.0, *ordered.tolist())]
    assert expected(drawn) == pytest.approx(max(map(expected, possible)), abs=1e-6)
    if 0 < pixels < len(ordered):  # Lipton et al.: drawn is what exceeds half of it
        half = expected(pixels) / 2
        assert exact[-pixels] >= half - 1e-6 and exact[-drawn - 1] <= half + 1e-6


def test_the_dice_optimal_rule_is_best_by_simulation():
    """The formula for many pixels, against the mean Dice of targets that are drawn from the probabilities."""
    rng = np.random.default_rng(0)
    truth = np.sort(rng.beta(0.3, 1.2, 400))
    targets = rng.random((4000, 400)) < truth
    mean = [
        (2 * targets[:, 400 - count :].sum(1) / np.maximum(count + targets.sum(1), 1)).mean()
        for count in range(1, 400)
    ]
    pixels = dice_optimal_pixels(truth)
    assert mean[pixels - 1] > max(mean) - 1e-3
    assert mean[pixels - 1] > mean[int((truth > 0.5).sum()) - 1] + 0.01


def test_rules_gain_where_the_best_threshold_changes_from_image_to_image():
    rng = np.random.default_rng(1)
    rows, maps = [], []
    for number in range(12):  # clear ones and doubtful ones
        truth = rng.beta(0.3, 1, (60, 60)) if number % 2 else rng.beta(2, 8, (60, 60))
        rows.append(sample(f"s{number}", rng.random((60, 60)) < truth, patient_id=f"p{number}"))
        maps.append(truth[None].astype(np.float32))
    found = sweep(answers(rows, *maps), temperature=1.0)
    assert list(found.rules) == [*RULES, *(f"{name}, calibrated" for name in RULES)]
    best = best_threshold(found)
    table = {line["rule"]: line for line in rule_table(found, best["threshold"], "validation")}
    fixed, optimal = table["0.5"], table["highest expected Dice, per image"]
    assert fixed["gain"] is None and fixed["threshold"] == 0.5 and fixed["dice"]["n"] == 12
    assert table[f"{best['threshold']:g}, chosen on validation"]["gain"]["mean"] > 0
    assert optimal["gain"]["ci95"][0] > 0 and optimal["threshold"] is None
    assert optimal["dice"]["mean"] > best["value"]
    # At temperature 1 what is calibrated is what was there.
    assert found.rules["expected area"]["dice"].tolist() == found.rules["expected area, calibrated"]["dice"].tolist()


def test_a_temperature_gives_rules_the_probabilities_they_ask_for():
    rows, maps = world(6, size=60, temperature=0.5)
    found = sweep(answers(rows, *maps), temperature=2.0)
    plain, calibrated = (
        found.rules[name]["dice"].mean() for name in ("highest expected Dice", "highest expected Dice, calibrated")
    )
    assert calibrated > plain + 0.005
    truth = sweep(answers(rows, *(tempered(one, 2.0) for one in maps)))
    assert truth.rules["highest expected Dice"]["dice"].tolist() == pytest.approx(
        found.rules["highest expected Dice, calibrated"]["dice"].tolist(), abs=1e-3
    )


# What cannot be swept


@pytest.mark.parametrize("values", [(0, 1), (0.2, 0.8), (0, 1 / 255)])
def test_masks_are_refused(values):
    rows, maps = world(3)
    maps[1] = np.where(maps[1] > 0.5, *values[::-1]).astype(np.float32)
    with pytest.raises(DatasetError, match="'s1' is binary.* same mask and the same Dice.*Give the probabilities"):
        sweep(answers(rows, *maps))


def test_maps_of_one_value_are_refused_unless_others_have_more():
    rows, maps = world(2)
    flat = np.zeros_like(maps[0])
    with pytest.raises(DatasetError, match="one value throughout"):
        sweep(answers(rows, flat, flat))
    assert len(sweep(answers(rows, flat, maps[1])).samples) == 2
    with pytest.raises(DatasetError, match="no row with a mask"):
        sweep([])


@pytest.mark.parametrize("thresholds", [(), (0.0,), (0.5, 1.0), (float("nan"),)])
def test_thresholds_that_cut_nothing_are_refused(thresholds):
    with pytest.raises(ValueError, match="thresholds must lie between 0 and 1"):
        sweep([], thresholds)
