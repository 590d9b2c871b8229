import json
import math

import numpy as np
import pytest
from PIL import Image
from samples import TARGET, answers, box, sample, stored, text_only

from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation.evaluator import evaluate
from sa2va_trl.evaluation.predictions import predict_probabilities
from sa2va_trl.metrics import METRICS


def test_perfect_predictions():
    dataset = stored([sample("a", TARGET), sample("b", ~TARGET), sample("c", np.zeros((6, 5), bool))])
    metrics, samples = evaluate(dataset, answers(dataset, TARGET[None], ~TARGET[None], np.zeros((1, 6, 5))))
    assert set(metrics) == set(METRICS)
    for values in metrics.values():
        assert values == {"mean": 1.0, "std": 0.0, "ci95": [1.0, 1.0], "n": 3, "ci95_method": "studentized"}
    assert samples["sample_id"].tolist() == ["a", "b", "c"]
    assert (samples[list(METRICS)] == 1).all(axis=None)


def test_empty_predictions():
    dataset = stored([sample("a", TARGET), sample("b", np.zeros((7, 4), bool))])
    _, samples = evaluate(dataset, answers(dataset, np.zeros((1, 12, 20)), np.zeros((1, 7, 4))))
    missed, empty = samples.to_dict("records")
    assert missed["dice"] == missed["iou"] == missed["recall"] == 0 and missed["specificity"] == 1
    assert missed["accuracy"] == pytest.approx(160 / 240)
    assert empty["dice"] == empty["iou"] == 1  # nothing to find, nothing found


def test_a_known_overlap():
    dataset = stored([sample("a", TARGET)])
    prediction = box((12, 20), (6, 12), (5, 17))  # 72 pixels, 4 x 10 of them right
    metrics, samples = evaluate(dataset, answers(dataset, prediction[None]))
    expected = {
        "dice": 80 / 152,
        "iou": 40 / 112,
        "precision": 40 / 72,
        "recall": 40 / 80,
        "specificity": 128 / 160,
        "accuracy": 168 / 240,
    }
    for name, value in expected.items():
        assert samples[name].tolist() == [pytest.approx(value)]
        assert metrics[name] == {
            "mean": pytest.approx(value),
            "std": 0.0,
            "ci95": [None, None],
            "n": 1,
            "ci95_method": None,
        }


def test_the_mean_is_over_images_not_over_pixels():
    large, small = box((40, 40), (0, 40), (0, 20)), box((4, 4), (0, 4), (0, 2))
    dataset = stored([sample("large", large), sample("small", small)])
    metrics, _ = evaluate(dataset, answers(dataset, large[None], np.zeros((1, 4, 4))))
    assert metrics["dice"]["mean"] == 0.5 and metrics["dice"]["n"] == 2
    assert metrics["dice"]["std"] == pytest.approx(math.sqrt(0.5))


def test_callers_see_every_row_with_its_scores():
    dataset = stored([sample("a", TARGET, frame_index=4), sample("b", TARGET)])
    seen = []
    evaluate(dataset, answers(dataset, TARGET[None], ~TARGET[None]), on_row=lambda *call: seen.append(call))
    assert [row["sample_id"] for row, _, _ in seen] == ["a", "b"]
    assert [scores["dice"] for _, _, scores in seen] == [1, 0]
    assert np.array_equal(seen[1][1][0] > 0.5, ~TARGET)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, math.nan])
def test_a_threshold_out_of_range_is_refused(threshold):
    dataset = stored([sample("a", TARGET)])
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1"):
        evaluate(dataset, answers(dataset, TARGET[None]), threshold=threshold)


def must_not_run():
    pytest.fail("predicted before the rows were checked")
    yield


def test_bad_rows_stop_before_anything_is_predicted():
    grey = Image.new("L", (20, 12), 7)
    dataset = stored([sample("good", TARGET), {**sample("bad one", TARGET), "masks": [grey]}])
    with pytest.raises(DatasetError, match="bad one.*not binary"):
        evaluate(dataset, must_not_run())


def test_a_dataset_without_masks_has_nothing_to_score(network):
    dataset = stored([text_only("a"), text_only("b")])
    with pytest.raises(DatasetError, match="no row with a mask"):
        evaluate(dataset, predict_probabilities(*network, dataset, progress=False))


def test_rows_of_unknown_patients_do_not_cost_the_evaluation():
    dataset = stored([sample("a", TARGET, patient_id="p"), sample("b", TARGET)])
    metrics, samples = evaluate(dataset, answers(dataset, TARGET[None], ~TARGET[None]))
    # A row of an unknown patient counts as a patient of its own.
    assert metrics["dice"]["n"] == 2 and metrics["dice"]["ci95"] == [0, 1]
    assert samples["patient_id"].tolist()[0] == "p" and samples["patient_id"].isna().tolist() == [False, True]


def test_an_evaluation_respects_patients():
    rows = [sample(str(n), TARGET, patient_id="one", video_id=str(n)) for n in range(3)]
    dataset = stored(rows)
    metrics, samples = evaluate(dataset, answers(dataset, TARGET[None], ~TARGET[None], TARGET[None]))
    assert metrics["dice"]["ci95"] == [None, None] and metrics["dice"]["n"] == 3
    assert samples["patient_id"].tolist() == ["one"] * 3
    json.dumps(metrics, allow_nan=False)


def test_an_evaluation_from_end_to_end(network):
    dataset = stored([sample("a", TARGET), sample("b", np.ones((12, 20), bool))])
    metrics, samples = evaluate(dataset, predict_probabilities(*network, dataset, progress=False), threshold=1e-6)
    # Everything is above so low a threshold.
    assert samples["dice"].tolist() == [pytest.approx(2 * 80 / (240 + 80)), 1]
    assert metrics["recall"]["mean"] == 1 and metrics["dice"]["n"] == 2
