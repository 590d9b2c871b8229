import re

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from score_tables import table

from sa2va_trl.data import SegCollator, synthetic_dataset
from sa2va_trl.errors import MiningError
from sa2va_trl.mining.scoring import score_dataset
from sa2va_trl.mining.selection import (
    CAUSES,
    buckets,
    describe_clusters,
    likely_cause,
    mark_clusters,
    mine,
    review_reasons,
    select_hard,
)
from sa2va_trl.sampling import Candidates


# What is hard


def scored(dice, **columns):
    return table(dice=dice, **columns)


def test_hard_is_below_the_threshold():
    frame = scored([0.75, 0.7499, 0.9, np.nan])
    assert select_hard(frame).tolist() == [False, True, False, False]
    assert select_hard(frame, threshold=0.8).tolist() == [True, True, False, False]
    assert select_hard(scored([0.1, 0.2, 0.3, 0.4]), worst=0.5).tolist() == [True, True, False, False]
    assert select_hard(scored([0.2, 0.2, 0.2, 0.4]), worst=0.25).tolist() == [True, True, True, False]  # ties
    assert select_hard(table(consistency=[0.1, 0.9]), worst=0.5, by="consistency").tolist() == [True, False]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0.01, 0.99))
def test_the_worst_share_is_selected_or_refused(dice, worst):
    count = round(worst * len(dice))
    try:
        hard = select_hard(scored(dice), worst=worst)
    except MiningError:
        kth = sorted(dice)[count - 1]
        assert count == 0 or kth == max(dice)
    else:
        assert count <= hard.sum() < len(dice)
        assert max(np.array(dice)[hard]) < min(np.array(dice)[~hard])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.sampled_from([0.0, 2.0]))
def test_a_threshold_that_selects_nothing_or_everything_says_what_would(dice, threshold):
    frame = scored(dice)
    with pytest.raises(MiningError, match="selects (none|all) of") as error:
        select_hard(frame, threshold)
    offers = re.findall(r"(\S+) selects (\d+)[,.]", str(error.value).split("limit of")[-1])
    assert bool(offers) == (min(dice) < max(dice))
    for value, count in offers:
        assert select_hard(frame, float(value)).sum() == int(count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.7, "worst": 0.2}, "give one"),
        ({"worst": 1.0}, "between 0 and 1"),
        ({"threshold": float("nan")}, "nan"),
        ({"by": "iou"}, "no such column"),
        ({"worst": 0.1}, "worst=0.1 of 2 samples is none"),
    ],
)
def test_choices_that_have_no_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        select_hard(scored([0.1, 0.9]), **options)


def test_scores_that_are_all_missing_make_nothing_hard():
    with pytest.raises(MiningError, match="No sample has a dice"):
        select_hard(scored([np.nan]))


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.5, 0.65, 0.75, 1.0])), max_size=30))
def test_every_sample_is_in_one_bucket(dice):
    found = buckets(scored(dice))
    assert sum(bucket["count"] for bucket in found) == len(dice)
    assert [(bucket["from"], bucket["to"]) for bucket in found] == [(0, 0.5), (0.5, 0.65), (0.65, 0.75), (0.75, 1)]
    for bucket in found:
        own = [value for value in dice if bucket["from"] <= value and (value < bucket["to"] or bucket["to"] == 1)]
        assert bucket["count"] == len(own) and (bucket["hardest"] is None) == (not own)
        if own:
            assert bucket["hardest"]["dice"] == min(own)
            assert abs(bucket["borderline"]["dice"] - 0.75) == min(abs(value - 0.75) for value in own)


def test_runs_of_a_table_go_by_frame_and_video():
    dice = [0.4, 0.9, 0.5, 0.4, 0.4, 0.4]
    frame = scored(dice, video_id=["a", "a", "a", "b", None, None], frame_index=[6, 0, 3, 0, None, None])
    assert mark_clusters(frame).tolist() == ["a/0", None, "a/0", None, None, None]
    assert mark_clusters(frame, min_length=1).tolist() == ["a/0", None, "a/0", "b/0", None, None]


def test_a_missing_frame_ends_a_run_unless_it_may_be_in_its_gap():
    frame = scored([0.4, 0.4, 0.4, 0.4], video_id=["a"] * 4, frame_index=[0, 1, 3, 4])
    assert mark_clusters(frame).tolist() == ["a/0", "a/0", "a/1", "a/1"]
    assert mark_clusters(frame, max_gap=1).tolist() == ["a/0"] * 4
    far = frame.assign(frame_index=[0, 1, 1000, 1001])
    assert mark_clusters(far, max_gap=3, smoothing=5).tolist() == ["a/0", "a/0", "a/1", "a/1"]


def test_a_video_of_one_frame_has_no_run_but_of_length_one():
    frame = scored([0.4], video_id=["a"], frame_index=[7])
    assert mark_clusters(frame).tolist() == [None]
    assert mark_clusters(frame, min_length=1).tolist() == ["a/0"]


def measured(rng, rows, **change):
    values = {name: np.exp(0.05 * rng.standard_normal(rows)) for name in CAUSES}
    return pd.DataFrame({name: value * change.get(name, 1) for name, value in values.items()})


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"contrast": 0.5}, "faint contrast"),
        ({"contrast": 0.6, "sharpness": 0.3}, "faint contrast"),
        ({"sharpness": 0.5}, "blur"),
        ({"motion": 2}, "motion"),
        ({"thickness": 0.6}, "thin vessels"),
        ({"border_distance": 0.5}, "near the border"),
        ({"area": 0.5}, "little filling"),
        ({"contrast": 2.0}, "unclear"),  # the good direction
        ({"motion": 0.5}, "unclear"),
        ({}, "unclear"),
    ],
)
def test_the_cause_is_what_differs_in_the_bad_direction(change, cause):
    rng = np.random.default_rng(0)
    own, others = measured(rng, 4, **change), measured(rng, 12)
    found, ratio = likely_cause(own, others)
    assert found == cause
    assert np.isnan(ratio) if cause == "unclear" else ratio == pytest.approx(next(iter(change.values())), rel=0.15)
    assert likely_cause(own, others.iloc[:2])[0] == "unclear"


def test_runs_are_described(scores):
    frame = scores.assign(dice=np.where(scores["frame_index"].isin([3, 4, 5, 9]), 0.4, 0.9))
    frame.loc[frame["frame_index"] == 4, "dice"] = 0.3
    found = describe_clusters(mine(frame))
    assert found["cluster"].tolist() == ["v0000/0", "v0001/0", "v0002/0"]
    first = found.iloc[0]
    assert (first["first_frame"], first["last_frame"], first["frames"]) == (3, 5, 3)
    assert first["hardest"] == "v0000_f004" and first["lowest"] == 0.3
    assert first["sample_ids"] == ["v0000_f003", "v0000_f004", "v0000_f005"]
    assert describe_clusters(mine(frame, min_length=4)).empty


# Faulty labels


def test_reasons_for_review():
    frame = table(
        best_dice=[0.29, 0.3, 0.8, 0.8, 0.8, 0.8],
        mask_agreement=[np.nan, 1.0, 0.7, 0.79, 0.7, 0.5],
        prediction_agreement=[np.nan, 1.0, 0.9, 0.85, 0.79, np.nan],
    )
    reasons = review_reasons(frame)
    assert reasons.notna().tolist() == [True, False, True, False, False, False]
    assert "candidate" in reasons[0] and "neighbours" in reasons[2]
    assert review_reasons(frame, tau_low=0).notna().tolist() == [False, False, True, False, False, False]
    with pytest.raises(ValueError, match="tau_low"):
        review_reasons(frame, tau_low=2)


class Knows:
    """In place of a sampler: candidates that are the true masks, but for the frames that it is told to miss."""

    def __init__(self, rows, hard=()):
        self.truth = {row["image"].tobytes(): (row["sample_id"], np.asarray(row["mask"]) > 0) for row in rows}
        self.hard, self.waiting = set(hard), []

    def __call__(self, model, features, generator):
        logits = []
        for name, mask in self.waiting[: len(features.seg_index)]:
            del self.waiting[0]
            seen = torch.from_numpy(mask)[None, None].float()
            seen = torch.nn.functional.interpolate(seen, (32, 32), mode="area")[0]
            if name in self.hard:
                seen[..., 16:] = 0
            logits.append(20 * seen - 10)
        stacked = torch.stack(logits)
        none = torch.zeros(len(logits))
        return Candidates(stacked, none[:, None], ("greedy",), none, none, none, none + 0.8)


@pytest.fixture
def knowing(network, monkeypatch):
    """Score rows whose masks may be faulty, with a model that predicts the true ones of `rows`."""

    def score(rows, labelled, hard=()):
        knows = Knows(rows, hard)
        collate = SegCollator.__call__

        def remember(self, batch):
            knows.waiting = [knows.truth[row["image"].tobytes()] for row in batch]
            return collate(self, batch)

        monkeypatch.setattr(SegCollator, "__call__", remember)
        return score_dataset(*network, labelled, sampler=knows, batch_size=6, progress=False)

    return score


def test_hard_runs_of_the_generator_are_found(knowing):
    """By a model that fails on the frames that were made hard; that a trained one does is another matter."""
    rows = synthetic_dataset(3, 16, 64)
    hard = np.array(rows["hard"])
    found = knowing(rows, rows, np.array(rows["sample_id"])[hard])
    low, high = found["dice"][hard].max(), found["dice"][~hard].min()
    assert low < high
    clusters = mine(found, threshold=(low + high) / 2)["cluster"].notna()
    assert (clusters == hard).all()
    # Their frames are fainter than the others, which is how the generator makes them hard.
    causes = describe_clusters(mine(found, threshold=(low + high) / 2))["cause"]
    assert causes.tolist() == ["faint contrast"] * 3


def test_faulty_masks_are_for_review_and_clean_ones_are_not(knowing):
    rows = synthetic_dataset(2, 12, 64)
    masks = [np.asarray(row["mask"]) for row in rows]
    assert review_reasons(knowing(rows, rows)).isna().all()

    faulty = [5, 17]
    masks[5], masks[17] = masks[20], np.where(np.arange(64) < 32, masks[17], 0).astype(np.uint8)
    labelled = Dataset.from_list(
        [{**row, "mask": Image.fromarray(mask)} for row, mask in zip(rows, masks, strict=True)], rows.features
    )
    found = mine(knowing(rows, labelled))
    assert np.flatnonzero(found["review"]).tolist() == faulty
    assert found["hard"][faulty].all() and "neighbours" in found["review_reason"][17]
