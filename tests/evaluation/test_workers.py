import numpy as np
import pandas as pd
import pytest
from samples import TARGET, sample

from sa2va_trl.evaluation import evaluate
from sa2va_trl.evaluation.results import score
from sa2va_trl.evaluation.workers import scored


def predictions(count=7):
    rng = np.random.default_rng(0)
    for number in range(count):
        target = np.roll(TARGET, number, axis=1)
        row = sample(str(number), target, structure="blood vessel", patient_id=str(number // 2))
        yield row, (0.6 * target + 0.4 * rng.random(target.shape))[None].astype(np.float32)


def test_workers_give_the_same_in_the_same_order():
    alone, beside = (list(scored(predictions(), 0.5, "all", workers)) for workers in (0, 2))
    for (row, probabilities, scores), (other, its, found) in zip(alone, beside, strict=True):
        assert row["sample_id"] == other["sample_id"] == found["sample_id"] and np.array_equal(probabilities, its)
        pd.testing.assert_series_equal(pd.Series(scores), pd.Series(found))
        assert list(scores) == list(score(row, probabilities, 0.5, "all"))


def test_what_a_worker_cannot_do_is_raised():
    wrong = ((row, probabilities[:, :5]) for row, probabilities in predictions())
    with pytest.raises(ValueError, match="same size"):
        list(scored(wrong, 0.5, "all", 1))
    with pytest.raises(ValueError, match="workers"):
        list(scored(predictions(), 0.5, "all", -1))
    with pytest.raises(ValueError, match="metrics must be overlap or all"):
        evaluate(None, predictions(), metrics="some")
