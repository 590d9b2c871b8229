import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from samples import TARGET, box, sample, stored

from sa2va_trl.evaluation.results import (
    aggregate,
    from_worst_to_best,
    remarks,
    save_results,
    score,
    worst_and_improved,
)
from sa2va_trl.metrics import ALL_METRICS, METRICS


# score


@settings(deadline=None, max_examples=50)
@given(data=st.data(), shape=array_shapes(min_dims=3, max_dims=3, max_side=6), threshold=st.floats(0.05, 0.95))
def test_scores_are_means_over_masks_of_counts_of_pixels(data, shape, threshold):
    target = data.draw(arrays(bool, shape))
    probabilities = data.draw(arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    scores = score(sample("a", *target), probabilities, threshold)
    dice, accuracy = [], []
    for mask, values in zip(target, probabilities, strict=True):
        found = {tuple(index) for index in np.argwhere(values > threshold)}
        real = {tuple(index) for index in np.argwhere(mask)}
        dice.append(2 * len(found & real) / (len(found) + len(real)) if found or real else 1)
        accuracy.append(1 - len(found ^ real) / mask.size)
    assert scores["dice"] == pytest.approx(np.mean(dice))
    assert scores["accuracy"] == pytest.approx(np.mean(accuracy))
    assert set(scores) == {"sample_id", *METRICS} and all(0 <= scores[name] <= 1 for name in METRICS)


def test_a_score_is_the_mean_over_the_masks_of_a_row():
    other = box((12, 20), (0, 2), (0, 20))
    scores = score(sample("a", TARGET, other), np.stack([TARGET, TARGET]).astype(float), 0.5)
    assert scores["dice"] == 0.5 and scores["iou"] == 0.5
    swapped = score(sample("a", TARGET, other), np.stack([other, TARGET]).astype(float), 0.5)
    assert swapped["dice"] == 0


def test_a_pixel_belongs_to_the_mask_above_the_threshold():
    probabilities = np.array([[[0.25, 0.5], [0.5001, 0.75]]])
    target = np.array([[False, False], [True, True]])
    assert score(sample("a", target), probabilities, 0.5)["dice"] == 1
    assert score(sample("a", target), probabilities, 0.25)["dice"] == pytest.approx(4 / 5)
    assert score(sample("a", target), probabilities, 0.6)["dice"] == pytest.approx(2 / 3)


def test_scores_carry_the_identifiers_that_a_row_has():
    full = sample("a", TARGET, patient_id="p", video_id="v", frame_index=0)
    bare = sample("a", TARGET, patient_id=None)
    scores = score(full, TARGET[None], 0.5)
    assert [scores[name] for name in ("sample_id", "patient_id", "video_id", "frame_index")] == ["a", "p", "v", 0]
    assert set(score(bare, TARGET[None], 0.5)) == {"sample_id", *METRICS}


def test_predictions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        score(sample("a", TARGET, TARGET), TARGET[None].astype(float), 0.5)
    with pytest.raises(ValueError, match=r"\(20, 12\)"):
        score(sample("a", TARGET), TARGET.T[None].astype(float), 0.5)


# aggregate


def table(dice, **columns):
    return pd.DataFrame({"sample_id": [str(n) for n in range(len(dice))], **columns, **dict.fromkeys(METRICS, dice)})


@pytest.mark.parametrize("column", ["patient_id", "video_id"])
def test_the_interval_resamples_patients_or_else_videos(column):
    dice = np.random.default_rng(0).beta(8, 2, 12)
    single = aggregate(table(dice))["dice"]
    # Ten equal frames a patient say nothing new: resampling patients gives the same interval, frames a narrower one.
    frames = aggregate(table(np.repeat(dice, 10), **{column: np.repeat(np.arange(12), 10).astype(str)}))["dice"]
    assert frames["ci95"] == pytest.approx(single["ci95"]) and frames["n"] == 120
    assert frames["mean"] == pytest.approx(dice.mean())
    naive = aggregate(table(np.repeat(dice, 10)))["dice"]["ci95"]
    assert naive[1] - naive[0] < 0.5 * (single["ci95"][1] - single["ci95"][0])


def test_patients_come_before_videos():
    dice = np.random.default_rng(0).beta(8, 2, 20)
    patients, videos = np.repeat(np.arange(5), 4), np.arange(20)
    both = aggregate(table(dice, video_id=videos, patient_id=patients))
    assert both == aggregate(table(dice, patient_id=patients))
    assert both != aggregate(table(dice, video_id=videos))
    one = aggregate(table(dice, patient_id=["p"] * 20, video_id=videos))
    assert one["dice"]["ci95"] == [None, None] and one["dice"]["mean"] == pytest.approx(dice.mean())


# Files


def test_samples_to_look_at_go_from_the_worst_to_the_best():
    samples = table([0.5, 0.1, 0.9, 0.3, 0.7])
    assert from_worst_to_best(samples, 3)["sample_id"].tolist() == ["1", "0", "2"]
    assert from_worst_to_best(samples, 9)["dice"].tolist() == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert from_worst_to_best(samples, 0).empty and from_worst_to_best(samples, 1)["dice"].tolist() == [0.1]


def test_the_worst_and_the_most_improved_are_named():
    before, after = table([0.5, 0.1, 0.9, 0.3]), table([0.4, 0.8, 0.9, 0.35]).iloc[::-1]
    assert worst_and_improved(before, after, 2) == {
        "worst_00": "3",
        "worst_01": "0",
        "improved_00": "1",
        "improved_01": "3",
    }
    # Where less is better there are fewer, and a sample that is no better is none of them.
    assert list(worst_and_improved(before, after, 4)) == [f"worst_0{n}" for n in range(4)] + [
        "improved_00",
        "improved_01",
    ]


def test_results_are_written_whole_and_an_earlier_router_goes(tmp_path):
    samples = table([0.5, 0.1])
    save_results(tmp_path / "new", aggregate(samples), samples, {"by": "spread"})
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        "metrics.json",
        "per_sample.parquet",
        "router.json",
    }
    assert json.loads((tmp_path / "new" / "router.json").read_text()) == {"by": "spread"}
    save_results(tmp_path / "new", aggregate(samples), samples)
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"metrics.json", "per_sample.parquet"}
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == aggregate(samples)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "new" / "per_sample.parquet"), samples, check_dtype=False)


# All metrics


def test_all_metrics_are_means_over_the_masks_that_they_are_defined_for():
    nothing = np.zeros_like(TARGET)
    scores = score(sample("a", TARGET, nothing, structure="catheter"), np.stack([TARGET, nothing]) * 0.75, 0.5, "all")
    assert list(scores) == ["sample_id", "structure", *ALL_METRICS]
    assert scores["dice"] == 1 and scores["hd95"] == 0 and scores["absence_sensitivity"] == 1
    # (The second map is of zeros alone: a mask, which has no calibration.)
    assert scores["brier"] == pytest.approx(0.0625 * TARGET.mean())
    assert np.isnan(scores["flicker"]) and np.isnan(scores["dice_thick"])
    bare = score(sample("a", nothing), nothing[None].astype(float), 0.5, "all")
    assert np.isnan(bare["hd95"]) and np.isnan(bare["absence_specificity"])


def test_overlap_is_what_it_was_and_keeps_the_structure():
    row = sample("a", TARGET, structure="catheter")
    scores = score(row, TARGET[None].astype(float), 0.5)
    assert list(scores) == ["sample_id", "structure", *METRICS]
    everything = score(row, TARGET[None].astype(float), 0.5, "all")
    assert scores == {name: everything[name] for name in scores}
    assert set(aggregate(pd.DataFrame([scores, scores]))) == set(METRICS)
    with pytest.raises(ValueError, match="metrics must be overlap or all, got 'most'"):
        score(row, TARGET[None].astype(float), 0.5, "most")


def test_clips_are_scored_object_by_object():
    still, gone = np.stack([TARGET, TARGET, TARGET]), np.stack([TARGET, ~TARGET, TARGET])
    row = sample("clip", *still, *still)
    row["images"] = [row.pop("image")] * 3
    row["phrases"] = row["phrases"][:2]
    scores = score(row, np.concatenate([still, gone]).astype(float), 0.5, "all")
    assert scores["flicker"] == pytest.approx(0.5) and scores["warped_iou"] == pytest.approx(0.5)


def test_an_interval_stays_where_a_metric_can_be():
    samples = table([0.0, 0.9, 1.0], patient_id=["p", "q", "r"]).assign(betti0_error=[0, 0, 40], nsd_1=[1.0, 1.0, 0.1])
    found = aggregate(samples)
    assert [found[name]["ci95"][0] for name in ("dice", "betti0_error")] == [0, 0]
    assert found["betti0_error"]["ci95"][1] > 40 and found["nsd_1"]["ci95"][1] == 1


def test_an_aggregate_says_what_it_leaves_out():
    samples = table([0.5, 0.7, 0.9, 0.1], patient_id=["p", "p", "q", "r"])
    samples = samples.assign(hd95=[4.0, np.nan, 2.0, np.nan], flicker=np.nan)
    found = aggregate(samples)
    assert (found["hd95"]["mean"], found["hd95"]["n"], found["hd95"]["undefined"]) == (3.0, 2, 2)
    assert found["flicker"] == {
        "mean": None,
        "std": None,
        "ci95": [None, None],
        "n": 0,
        "ci95_method": None,
        "undefined": 4,
    }
    overlap = aggregate(samples.drop(columns=["hd95", "flicker"]))
    assert found["dice"] == {**overlap["dice"], "undefined": 0}
    # Each patient counts once.
    assert found["by_patient"]["dice"]["mean"] == pytest.approx(np.mean([0.6, 0.9, 0.1]))
    assert (found["by_patient"]["dice"]["n"], found["by_patient"]["hd95"]["n"]) == (3, 2)
    assert found["by_patient"]["hd95"]["undefined"] == 1 and "by_video" not in found
    json.dumps(found, allow_nan=False)
    assert aggregate(samples) == found


def test_videos_are_counted_once_too():
    samples = table([0.5, 0.7, 0.9], video_id=["v", "v", None]).assign(hd95=[1.0, 3.0, 9.0])
    assert aggregate(samples)["by_video"]["hd95"]["mean"] == 2 and "by_patient" not in aggregate(samples)


def test_what_has_to_be_said_of_an_evaluation():
    rows = stored([sample("a", TARGET), sample("b", TARGET)])
    nothing = stored([sample("a", TARGET & False), sample("b", TARGET & False)])
    table = pd.DataFrame({"sample_id": ["a", "b"], "dice": [0.0, 1.0]})
    assert remarks(table, rows) == []
    assert remarks(table.assign(dice=0.5), nothing) == []  # is not asked of masks with a Dice between
    (said,) = remarks(table, nothing)
    assert said.startswith("All masks of the split are empty")
    (said,) = remarks(table.assign(patient_id="p", video_id=["v", "w"]), rows)
    assert said == "All samples are of one patient: there is no interval, and the means say nothing of other patients."
    assert remarks(table.assign(patient_id=["p", "q"]), rows) == []
    assert "of one image" in remarks(table[:1], rows)[0]
