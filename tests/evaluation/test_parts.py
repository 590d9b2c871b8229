"""Rows that are scored part by part: by several processes, and by a call that takes up what another has left."""

import numpy as np
import pandas as pd
import pytest
from samples import TARGET, answers, sample, stored, text_only

from sa2va_trl.data import DatasetError, synthetic_dataset
from sa2va_trl.evaluation import evaluate, parts
from sa2va_trl.evaluation.gallery import KeptExtremes
from sa2va_trl.evaluation.overlays import KeptMasks
from sa2va_trl.evaluation.parts import Parts


COUNT = 3


@pytest.fixture(scope="module")
def rows():
    """Eleven rows and their maps: no number of whole parts of four."""
    dataset = synthetic_dataset(num_videos=1, frames_per_video=11, size=32)
    rng = np.random.default_rng(0)
    maps = [
        (0.5 * rng.random((1, 32, 32)) + 0.4 * (np.asarray(row["mask"]) > 0)).astype(np.float32) for row in dataset
    ]
    return dataset, maps


def predict(rows, positions, stop_after=None):
    dataset, maps = rows
    for number, position in enumerate(positions):
        if number == stop_after:
            raise KeyboardInterrupt
        yield dataset[position], maps[position]


def score(rows, folder, stop_after=None, metrics="overlap"):
    own = Parts(folder, rows[0], 4)
    own.score(predict(rows, own.share(), stop_after), 0.5, KeptExtremes(COUNT), metrics)
    return own


def assert_whole(rows, own, metrics="overlap"):
    """What is read of the parts is what an evaluation in one pass has."""
    kept, extremes = KeptMasks(), KeptExtremes(COUNT)

    def on_row(row, probabilities, scores):
        kept(row, probabilities, scores)
        extremes(row, probabilities, scores)

    _, expected = evaluate(rows[0], predict(rows, range(11)), on_row=on_row, metrics=metrics)
    samples = own.samples()
    pd.testing.assert_frame_equal(samples, expected, check_exact=True)
    masks, found = own.kept(samples.iloc[2:5], 0.5, COUNT)
    assert set(masks.bits) == set(samples["sample_id"][2:5])
    assert all(masks.bits[name] == kept.bits[name] for name in masks.bits)
    assert found.worst == extremes.worst and found.best == extremes.best and len(found.worst) == COUNT


@pytest.mark.parametrize("metrics", ["overlap", "all"])
def test_parts_are_what_one_pass_has(tmp_path, rows, metrics):
    assert_whole(rows, score(rows, tmp_path / "parts", metrics=metrics), metrics)


@pytest.mark.parametrize("stop_after", [0, 3, 4, 9])
def test_what_an_ended_call_has_scored_is_taken_up(tmp_path, rows, stop_after):
    with pytest.raises(KeyboardInterrupt):
        score(rows, tmp_path, stop_after=stop_after)
    own = Parts(tmp_path, rows[0], 4)
    missing = own.share()
    # (A part is known to be whole when the next one begins.)
    assert own.rows_done == 4 * (max(stop_after - 1, 0) // 4) and missing == list(range(own.rows_done, 11))
    own.score(predict(rows, missing), 0.5, KeptExtremes(COUNT))
    assert_whole(rows, own)
    assert own.share() == [] and own.rows_done == 11


def test_processes_share_the_parts(tmp_path, rows, monkeypatch):
    owns, shares = [], []
    for rank in range(2):
        monkeypatch.setattr(parts, "process_rank", lambda rank=rank: rank)
        monkeypatch.setattr(parts, "everywhere", lambda value: [value, value])
        owns.append(Parts(tmp_path, rows[0], 4))
        shares.append(owns[-1].share())
    assert shares == [[0, 1, 2, 3, 8, 9, 10], [4, 5, 6, 7]]
    for own, share in zip(owns, shares, strict=True):
        own.score(predict(rows, share), 0.5, KeptExtremes(COUNT))
    assert_whole(rows, owns[0])


def test_rows_without_masks_are_left_out(tmp_path):
    dataset = stored([text_only(), sample("a", TARGET)])
    own = Parts(tmp_path, dataset, 1)
    with pytest.raises(DatasetError, match="lacks 2 of 2 parts of the rows that were scored just now. Is it shared"):
        own.samples()
    own.share()
    own.score(list(answers(dataset, None, TARGET[None]))[1:], 0.5, KeptExtremes(1))
    assert own.samples()["sample_id"].tolist() == ["a"]
    assert own.share() == [] and own.rows_done == 2
    own.remove()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError, match="no row with a mask"):
        none = Parts(tmp_path / "none", dataset.select([0]), 1)
        none.share()
        none.score([], 0.5, KeptExtremes(1))
        none.samples()
