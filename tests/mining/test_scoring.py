import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from sa2va_trl.data import synthetic_dataset
from sa2va_trl.errors import MiningError
from sa2va_trl.evaluation import evaluate, predict_probabilities, stored_features
from sa2va_trl.mining.scoring import score_dataset
from sa2va_trl.sampling import MaskSampler


def test_scores_are_those_of_the_evaluation(network, rows, scores):
    model, processor = network
    _, samples = evaluate(rows, predict_probabilities(model, processor, rows, 4, progress=False))
    assert scores["sample_id"].tolist() == rows["sample_id"]
    for name in ("dice", "iou", "precision", "recall"):
        assert scores[name].tolist() == pytest.approx(samples[name].tolist(), abs=1e-6)
    assert (scores["best_dice"] >= scores["dice"]).all()
    assert scores["spread"].between(0, 1).all() and scores["predicted_iou"].between(0, 1).all()


def test_the_spread_of_rewards_is_that_of_the_dice_that_candidates_reach(network, rows, scores):
    two = MaskSampler(embedding=0, field=0, tokens=False, thresholds=(0.3,))
    found = score_dataset(*network, rows, sampler=two, progress=False)
    # Of two values the deviation is half their distance, and the better one is known.
    assert (found["reward_spread"] > 0).any()
    better = found["best_dice"] > found["dice"]
    assert better.any() and found["reward_spread"][better].to_numpy() == pytest.approx(
        ((found["best_dice"] - found["dice"]) / 2)[better].to_numpy(), abs=1e-9
    )
    assert scores["reward_spread"].between(0, 0.5).all()


def test_the_first_frame_has_no_motion_and_the_ends_no_pair_of_neighbours(scores):
    first, last = scores["frame_index"] == 0, scores["frame_index"] == 11
    assert (scores["motion"].isna() == first).all()
    assert (scores["mask_agreement"].isna() == (first | last)).all()


def test_the_order_of_rows_and_the_size_of_batches_change_no_score(network, rows, scores):
    order = np.random.default_rng(0).permutation(len(rows))
    # Videos stay in the order of their first rows, which pieces, and so their random draws, are made of.
    order = sorted(order, key=lambda number: rows[int(number)]["video_id"])
    other = score_dataset(*network, rows.select(order), batch_size=32, progress=False)
    assert other["sample_id"].tolist() == [rows[int(number)]["sample_id"] for number in order]
    other = other.set_index("sample_id").loc[scores["sample_id"]].reset_index()
    pd.testing.assert_frame_equal(other, scores, atol=1e-5)


def test_scores_from_stored_features_are_the_same(network, rows, scores, tmp_path):
    features = stored_features(*network, rows, "on", tmp_path, progress=False)
    cached = score_dataset(*network, rows, batch_size=5, features=features, progress=False)
    pd.testing.assert_frame_equal(cached, scores, atol=1e-5)


def test_a_killed_run_takes_up_where_it_ended(network, rows, scores, tmp_path, monkeypatch):
    model, processor = network
    options = {"batch_size": 5, "partial_dir": tmp_path, "progress": False}
    passes = []
    encode = type(model).forward

    def killed(self, *args, **kwargs):
        if "features" not in kwargs:  # not of the mask decoder alone
            if len(passes) == 8:  # in the second of two pieces
                raise KeyboardInterrupt
            passes.append(0)
        return encode(self, *args, **kwargs)

    long = synthetic_dataset(6, 12, 64)
    monkeypatch.setattr(type(model), "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        score_dataset(model, processor, long, **options)
    monkeypatch.setattr(type(model), "forward", encode)
    whole = score_dataset(model, processor, long, batch_size=5, progress=False)

    monkeypatch.setattr(type(model), "forward", killed)
    passes.clear()
    resumed = score_dataset(model, processor, long, **options)
    assert 0 < len(passes) <= 8
    pd.testing.assert_frame_equal(resumed, whole)
    passes.clear()
    score_dataset(model, processor, long, **options)
    assert not passes
    monkeypatch.setattr(type(model), "forward", encode)
    # Other options are another run: nothing of the first one is taken for theirs.
    other = score_dataset(model, processor, long, **{**options, "threshold": 0.4})
    assert (other["dice"] != whole["dice"]).any()


def test_scoring_leaves_the_model_and_the_random_state_as_they_were(network, rows):
    model, processor = network
    model.train()
    state = torch.get_rng_state()
    try:
        score_dataset(model, processor, rows.select(range(3)), progress=False)
        assert model.training and torch.equal(torch.get_rng_state(), state)
    finally:
        model.eval()


def test_rows_without_masks_are_left_out_and_those_without_a_video_have_no_neighbours(network, rows):
    bare = rows.select(range(3)).remove_columns(["video_id", "frame_index"])
    found = score_dataset(*network, bare, progress=False)
    assert found["motion"].isna().all() and "video_id" not in found
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Nothing."}]
    nothing = Dataset.from_dict({"messages": [chat], "sample_id": ["text"]})
    with pytest.raises(MiningError, match="no row with a mask"):
        score_dataset(*network, nothing, progress=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"batch_size": 0}, "batch_size"), ({"threshold": 1}, "threshold"), ({"tolerance": 2}, "tol")],
)
def test_options_of_scoring_out_of_their_range(network, rows, options, named):
    with pytest.raises(ValueError, match=named):
        score_dataset(*network, rows, progress=False, **options)


def test_candidates_can_be_chosen(network, rows):
    few = rows.select(range(2))
    own = MaskSampler(embedding=0, field=0, tokens=False, thresholds=())
    found = score_dataset(*network, few, sampler=own, progress=False)
    assert (found["spread"] == 0).all() and (found["reward_spread"] == 0).all()
    assert (found["best_dice"] == found["dice"]).all()


def test_rows_are_scored_with_the_question_that_is_given_or_else_the_model_s_own(tiny):
    model, processor = tiny
    rows = synthetic_dataset(1, 3, 64)
    plain = score_dataset(model, processor, rows, progress=False)
    other = score_dataset(model, processor, rows, question="Where is the {phrase}, please?", progress=False)
    model.config.default_question = "Where is the {phrase}, please?"
    pd.testing.assert_frame_equal(score_dataset(model, processor, rows, progress=False), other)
    pd.testing.assert_frame_equal(
        score_dataset(model, processor, rows, question="Please segment the {phrase}.", progress=False), plain
    )
    assert (plain["predicted_iou"] != other["predicted_iou"]).any()
