import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from score_tables import table

from sa2va_trl.errors import MiningError
from sa2va_trl.mining.runs import on_the_grid, temporal_clusters, usual_step, videos


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
        ({"hard_below": float("nan")}, "hard_below"),
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
