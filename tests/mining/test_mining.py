import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl import tiny_sa2va
from sa2va_trl.data import SegCollator, synthetic_dataset
from sa2va_trl.errors import MiningError
from sa2va_trl.evaluation import evaluate, predict_probabilities, stored_features
from sa2va_trl.mining.runs import on_the_grid, temporal_clusters, usual_step, videos
from sa2va_trl.mining.score_files import fingerprint_of, read_scores, save_scores
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
from sa2va_trl.mining.unlabelled import score_unlabelled
from sa2va_trl.sampling import Candidates, MaskSampler


# Runs of hard frames

SCORES = st.lists(st.one_of(st.sampled_from([0.74, 0.75, 0.76, np.nan]), st.floats(0, 1)), max_size=30)
OPTIONS = {"max_gap": st.integers(0, 4), "min_length": st.integers(1, 4)}


def by_scanning(dice, threshold, max_gap, min_length):
    """The definition, frame by frame: two hard frames are in one run if every gap between them is short enough."""
    hard = [value < threshold for value in dice]
    runs, first, last, count = [], None, None, 0
    for position in [*range(len(hard)), None]:
        if position is not None and not hard[position]:
            continue
        if first is not None and (position is None or position - last > max_gap + 1):
            if count >= min_length:
                runs.append((first, last))
            first, count = None, 0
        if position is not None:
            first = position if first is None else first
            last, count = position, count + 1
    return runs


def test_the_sequence_of_the_issue():
    assert temporal_clusters([0.82, 0.85, 0.45, 0.48, 0.83, 0.81], threshold=0.75, max_gap=0, min_length=2) == [(2, 3)]


@given(dice=SCORES, **OPTIONS)
def test_runs_are_those_of_the_definition(dice, max_gap, min_length):
    assert temporal_clusters(dice, 0.75, max_gap, min_length) == by_scanning(dice, 0.75, max_gap, min_length)


@given(dice=SCORES, smoothing=st.sampled_from([1, 3, 5]), **OPTIONS)
def test_runs_begin_and_end_with_a_scored_frame_are_long_enough_and_lie_apart(dice, max_gap, min_length, smoothing):
    runs = temporal_clusters(dice, 0.75, max_gap, min_length, smoothing)
    assert all(0 <= first <= last < len(dice) and last - first + 1 >= min_length for first, last in runs)
    assert all(not np.isnan(dice[end]) for run in runs for end in run)
    assert all(later[0] - earlier[1] - 1 > max_gap for earlier, later in zip(runs, runs[1:], strict=False))


@given(dice=SCORES, smoothing=st.sampled_from([1, 3, 5]), **OPTIONS)
def test_a_video_played_backward_has_the_same_runs(dice, max_gap, min_length, smoothing):
    forward = temporal_clusters(dice, 0.75, max_gap, min_length, smoothing)
    backward = temporal_clusters(dice[::-1], 0.75, max_gap, min_length, smoothing)
    assert forward == [(len(dice) - 1 - last, len(dice) - 1 - first) for first, last in backward[::-1]]


@given(dice=SCORES, **OPTIONS)
def test_a_frame_without_a_score_counts_as_an_easy_one(dice, max_gap, min_length):
    easy = [1.0 if np.isnan(value) else value for value in dice]
    assert temporal_clusters(dice, 0.75, max_gap, min_length) == temporal_clusters(easy, 0.75, max_gap, min_length)


@pytest.mark.parametrize(
    ("dice", "options", "runs"),
    [
        ([], {}, []),
        ([0.1], {}, []),
        ([0.1], {"min_length": 1}, [(0, 0)]),
        ([0.75, 0.75], {}, []),  # a tie is easy
        ([0.1, 0.1, 0.9, 0.1, 0.1], {}, [(0, 1), (3, 4)]),  # both ends
        ([0.1, 0.9, 0.1], {"max_gap": 1}, [(0, 2)]),
        ([0.1, 0.9, 0.1], {"max_gap": 1, "min_length": 3}, []),  # the gap does not count
        ([0.1, np.nan, 0.1], {}, []),
        ([0.1, np.nan, 0.1], {"max_gap": 1}, [(0, 2)]),
        ([0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.9], {"smoothing": 3}, [(2, 6)]),  # one easy frame is smoothed away
        ([0.9, 0.9, 0.1, 0.9, 0.9], {"smoothing": 3, "min_length": 1}, []),  # and one hard frame
        ([0.1, 0.1, np.nan, 0.1, 0.1], {"smoothing": 3}, [(0, 1), (3, 4)]),  # what is missing stays so
        ([np.nan] * 3, {"smoothing": 3}, []),
    ],
)
def test_runs_at_the_edges(dice, options, runs):
    assert temporal_clusters(dice, **options) == runs


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_gap": -1}, "max_gap"),
        ({"min_length": 0}, "min_length"),
        ({"smoothing": 2}, "odd"),
        ({"smoothing": 0}, "smoothing"),
        ({"max_gap": 0.5}, "max_gap"),
        ({"threshold": float("nan")}, "threshold"),
    ],
)
def test_options_of_runs_out_of_their_range(options, named):
    with pytest.raises(ValueError, match=named):
        temporal_clusters([0.5, 0.5], **options)


def test_runs_are_of_one_video():
    with pytest.raises(ValueError, match=r"one video.*\(2, 2\)"):
        temporal_clusters([[0.5, 0.5], [0.5, 0.5]])


# Frames of a video


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True).map(sorted), st.integers(1, 9))
def test_the_grid_knows_neither_offset_nor_step(index, step):
    grid = on_the_grid(index, 5)
    assert grid[0] == 0 and len(grid) == len(index)
    assert ((np.diff(grid) >= 1) & (np.diff(grid) <= 6)).all()
    assert (on_the_grid([17 + step * number for number in index], 5) == grid).all()


def test_a_video_of_which_every_third_frame_is_kept_has_no_gaps_but_where_one_is_missing():
    assert usual_step([0, 3, 6, 12, 15]) == 3 and usual_step([7]) == 1
    assert on_the_grid([0, 3, 6, 12, 15], 9).tolist() == [0, 1, 2, 4, 5]
    assert on_the_grid([0, 1, 1000, 1001], 4).tolist() == [0, 1, 6, 7]


def table(**columns):
    rows = len(next(iter(columns.values())))
    return pd.DataFrame({"sample_id": [f"s{number}" for number in range(rows)], **columns})


def test_frames_out_of_order_are_sorted():
    mixed = table(video_id=["b", "a", "b", None, "a"], frame_index=[4, 1, 2, None, 0])
    found = [(name, rows["sample_id"].tolist()) for name, rows in videos(mixed)]
    assert found == [("b", ["s2", "s0"]), ("a", ["s4", "s1"])]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"video_id": ["a", "a", "b"], "frame_index": [0, None, None]}, r"(?s)2 rows.*'s1'.*without.*'s2'"),
        ({"video_id": ["a", "b"]}, "(?s)2 rows.*'s0'.*'s1'"),
        ({"video_id": ["a", "a", "b"], "frame_index": [3, 3, 3]}, r"(?s)2 rows.*'s0'.*frame_index 3.*more than once"),
    ],
)
def test_frames_without_a_place_are_named(columns, message):
    with pytest.raises(MiningError, match=message):
        list(videos(table(**columns)))


# Scores


@pytest.fixture(scope="module")
def network():
    """One model for the whole file; nothing here changes it."""
    model, processor = tiny_sa2va(image_size=128)
    return model.eval(), processor


@pytest.fixture(scope="module")
def rows():
    return synthetic_dataset(3, 12, 64)


@pytest.fixture(scope="module")
def scores(network, rows):
    return score_dataset(*network, rows, batch_size=5, progress=False)


def test_scores_are_those_of_the_evaluation(network, rows, scores):
    model, processor = network
    _, samples = evaluate(rows, predict_probabilities(model, processor, rows, 4, progress=False))
    assert scores["sample_id"].tolist() == rows["sample_id"]
    for name in ("dice", "iou", "precision", "recall"):
        assert scores[name].tolist() == pytest.approx(samples[name].tolist(), abs=1e-6)
    assert (scores["best_dice"] >= scores["dice"]).all()
    assert scores["spread"].between(0, 1).all() and scores["predicted_iou"].between(0, 1).all()


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


# Files


def test_scores_of_another_model_or_data_set_are_refused(network, rows, scores, tmp_path):
    model, processor = network
    own = fingerprint_of(model, processor, rows)
    save_scores(scores, tmp_path / "new" / "scores.parquet", own)
    pd.testing.assert_frame_equal(read_scores(tmp_path / "new" / "scores.parquet", own), scores)
    pd.testing.assert_frame_equal(read_scores(tmp_path / "new" / "scores.parquet"), scores)
    assert own == json.loads(json.dumps(own)) and [file.name for file in (tmp_path / "new").iterdir()] == [
        "scores.parquet"
    ]

    shuffled = fingerprint_of(model, processor, rows.shuffle(seed=0))
    assert shuffled == own
    fewer = fingerprint_of(model, processor, rows.select(range(20)))
    with pytest.raises(MiningError, match="another data set .36 rows, not 20"):
        read_scores(tmp_path / "new" / "scores.parquet", fewer)
    with torch.no_grad():
        weight = next(model.grounding_encoder.sam2_model.sam_mask_decoder.parameters())
        weight[0] += 1e-3
        changed = fingerprint_of(model, processor, rows)
        weight[0] -= 1e-3
    with pytest.raises(MiningError, match="another model .its weights differ"):
        read_scores(tmp_path / "new" / "scores.parquet", changed)


def test_masks_and_frames_are_part_of_the_data_set(network, rows):
    few = rows.select(range(3))
    own = fingerprint_of(*network, few)["dataset"]
    swapped = few.select([1, 0, 2]).select_columns("mask").flatten_indices()
    swapped = concatenate_datasets([few.remove_columns("mask").flatten_indices(), swapped], axis=1)
    assert fingerprint_of(*network, swapped)["dataset"] != own
    moved = few.remove_columns("frame_index").add_column("frame_index", [0, 2, 1])
    assert fingerprint_of(*network, moved)["dataset"] != own


def test_files_that_hold_no_scores_are_refused(tmp_path, scores):
    with pytest.raises(MiningError, match="cannot be read"):
        read_scores(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(MiningError, match="cannot be read"):
        read_scores(tmp_path / "text.parquet")
    scores.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(MiningError, match="holds no scores"):
        read_scores(tmp_path / "other.parquet")


# Candidates


def test_candidates_can_be_chosen(network, rows):
    few = rows.select(range(2))
    own = MaskSampler(embedding=0, field=0, tokens=False, thresholds=())
    found = score_dataset(*network, few, sampler=own, progress=False)
    assert (found["spread"] == 0).all() and (found["best_dice"] == found["dice"]).all()


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
        return Candidates(stacked, none[:, None], ("greedy",), none, none, none + 0.8)


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


# Without labels


@pytest.mark.parametrize("method", ["tracking", "neighbours"])
def test_without_labels_masks_are_not_read(network, method):
    model, processor = network
    rows = synthetic_dataset(1, 5, 64).select([0, 1, 2, 4])
    found = score_unlabelled(model, processor, rows, method=method, batch_size=2, progress=False)
    bare = score_unlabelled(model, processor, rows.remove_columns("mask"), method=method, batch_size=3, progress=False)
    pd.testing.assert_frame_equal(found, bare, atol=1e-5)
    assert found["consistency"].isna().tolist() == [False, False, False, True]  # the frame before it is missing
    assert found["consistency"].dropna().between(0, 1).all()


def test_the_same_frame_over_and_over_agrees_with_itself(network):
    model, processor = network
    rows = synthetic_dataset(1, 2, 64).select([0, 0, 0])
    for name, values in (("sample_id", ["a", "b", "c"]), ("frame_index", [0, 1, 2])):
        rows = rows.remove_columns(name).add_column(name, values)
    found = score_unlabelled(model, processor, rows, method="neighbours", progress=False)
    assert (found["consistency"] == 1).all() and (found["motion"].iloc[1:] == 0).all()


def test_what_cannot_be_judged_without_labels(network):
    rows = synthetic_dataset(1, 2, 64)
    with pytest.raises(MiningError, match="video_id"):
        score_unlabelled(*network, rows.remove_columns("video_id"), progress=False)
    with pytest.raises(MiningError, match="2 rows .*one phrase.*'v0000_f000'"):
        score_unlabelled(*network, rows.remove_columns("phrase"), progress=False)
    with pytest.raises(ValueError, match="method"):
        score_unlabelled(*network, rows, method="flow", progress=False)
