import json

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from sa2va_trl import tiny_sa2va
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.evaluation import evaluate, predict_probabilities, stored_features
from sa2va_trl.mining import (
    MiningError,
    fingerprint_of,
    measure,
    motion,
    on_the_grid,
    read_scores,
    save_scores,
    score_dataset,
    spread,
    temporal_clusters,
    tolerant_dice,
    usual_step,
    videos,
)
from sa2va_trl.preferences import MaskSampler


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


# Measurements


def disc(radius, centre=(32, 32), size=64):
    y, x = np.mgrid[:size, :size]
    return np.hypot(y - centre[0], x - centre[1]) <= radius


def test_measurements_of_a_drawn_bar():
    mask = np.zeros((64, 64), dtype=bool)
    mask[30:35, 10:54] = True
    grey = np.where(mask, 0.3, 0.6)
    values = measure(grey, mask)
    assert values["contrast"] == pytest.approx(0.5)
    assert values["area"] == pytest.approx(5 * 44 / 64**2)
    assert values["thickness"] == pytest.approx(5, abs=1)
    thin = np.zeros_like(mask)
    thin[31:34, 10:54] = True
    assert measure(grey, thin)["thickness"] < values["thickness"]


def test_measurements_go_the_way_of_what_they_measure():
    mask = disc(12)
    picture = np.where(mask, 0.3, 0.6)
    assert measure(gaussian_filter(picture, 3), mask)["sharpness"] < 0.5 * measure(picture, mask)["sharpness"]
    assert measure(picture, disc(12, (14, 32)))["border_distance"] < measure(picture, mask)["border_distance"]
    still, moved = motion(picture, picture), motion(np.roll(picture, 3, 0), picture)
    assert still == 0 and moved > 0
    assert np.isnan(motion(picture, picture[:32]))
    empty = measure(picture, np.zeros_like(mask))
    assert empty["area"] == 0 and all(np.isnan(empty[name]) for name in ("contrast", "thickness", "border_distance"))


@given(st.integers(0, 2**20), st.floats(0, 3))
def test_tolerant_dice(seed, tolerance):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(size=(2, 9, 9)) < rng.uniform(0, 0.5)
    value = tolerant_dice(a, b, tolerance)
    total = a.sum() + b.sum()
    plain = 2 * (a & b).sum() / total if total else 1.0
    assert value == tolerant_dice(b, a, tolerance)
    assert plain - 1e-12 <= value <= 1
    assert tolerant_dice(a, b, 0) == pytest.approx(plain)


def test_tolerance_forgives_a_shift_and_no_more():
    mask = disc(5)
    assert tolerant_dice(mask, np.roll(mask, 2, 0), 2) == 1
    assert tolerant_dice(mask, np.roll(mask, 20, 0), 2) == 0
    assert tolerant_dice(mask, np.zeros_like(mask), 2) == 0


def test_spread_is_the_mean_of_all_pairs():
    a, b = np.zeros((2, 1, 4), dtype=bool)
    a[0, :2], b[0, 1:3] = True, True
    assert spread(np.stack([a, a, b])) == pytest.approx(1 - (1 + 0.5 + 0.5) / 3)
    assert spread(np.stack([a])) == 0 and spread(np.zeros((3, 2, 2), dtype=bool)) == 0


def test_candidates_can_be_chosen(network, rows):
    few = rows.select(range(2))
    own = MaskSampler(embedding=0, field=0, tokens=False, thresholds=())
    found = score_dataset(*network, few, sampler=own, progress=False)
    assert (found["spread"] == 0).all() and (found["best_dice"] == found["dice"]).all()
