"""What is hard, by which name, and where it is written down."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from score_tables import table

from sa2va_trl.mining.hardness import HARD_BELOW, decided, one_limit, what_is_hard
from sa2va_trl.mining.runs import check_options, temporal_clusters
from sa2va_trl.mining.score_files import read_scores, save_scores
from sa2va_trl.mining.selection import buckets, hard_limit, mark_clusters, mine, select_hard, summary


PRINTS = {"format": 1, "model": {"weights": "some"}, "dataset": "these", "rows": 4}


def scores():
    frames = {"video_id": ["a"] * 4, "frame_index": [0, 1, 2, 3]}
    return table(dice=[0.2, 0.3, 0.7, 0.9], **frames)


@pytest.mark.parametrize(
    "call",
    [
        lambda **limit: temporal_clusters([0.2, 0.3, 0.7, 0.9], **limit),
        lambda **limit: hard_limit(scores(), **limit),
        lambda **limit: select_hard(scores(), **limit).tolist(),
        lambda **limit: buckets(scores(), **limit),
        lambda **limit: mark_clusters(scores(), **limit).tolist(),
        lambda **limit: mine(scores(), **limit)["hard"].tolist(),
        lambda **limit: summary(mine(scores(), 0.5), **limit),
    ],
    ids=["temporal_clusters", "hard_limit", "select_hard", "buckets", "mark_clusters", "mine", "summary"],
)
def test_the_earlier_keyword_means_the_same(call, recwarn):
    assert call(threshold=0.8) == call(hard_below=0.8) != call(hard_below=0.25)
    with pytest.raises(TypeError, match="earlier name of hard_below"):
        call(threshold=0.8, hard_below=0.8)
    assert not recwarn.list


def test_options_are_checked_under_both_names():
    for name in ("threshold", "hard_below"):
        with pytest.raises(ValueError, match="hard_below and worst both say"):
            check_options(**{name: 0.5, "worst": 0.2})
    assert one_limit(None, 0.6) == one_limit(0.6, None) == one_limit(0.6, 0.6) == 0.6
    assert one_limit(None, None) is None
    with pytest.raises(ValueError, match="hard_below=0.5 and threshold=0.6"):
        one_limit(0.5, 0.6)


def test_options_come_before_the_record_and_that_before_the_default():
    assert what_is_hard(None, None) == {"hard_below": HARD_BELOW}
    assert what_is_hard(None, None, {"worst": 0.2}) == {"worst": 0.2}
    assert what_is_hard(0.5, None, {"worst": 0.2}) == {"hard_below": 0.5}
    assert what_is_hard(None, 0.1, {"hard_below": 0.5}) == {"worst": 0.1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, {"hard_below": 0.75}), ({"hard_below": 0.5}, {"hard_below": 0.5}), ({"worst": 0.25}, {"worst": 0.25})],
)
def test_scores_carry_what_was_decided_to_the_file_and_back(tmp_path, options, expected):
    mined = mine(scores(), **options)
    assert decided(mined) == expected and decided(scores()) is None
    save_scores(mined, tmp_path / "scores.parquet", PRINTS)
    read = read_scores(tmp_path / "scores.parquet", PRINTS)
    assert decided(read) == expected
    assert list(read) == list(mined) and read["hard"].tolist() == mined["hard"].tolist()
    # What was mined again is decided anew.
    assert decided(mine(read, 0.3)) == {"hard_below": 0.3}
    metadata = json.loads(pq.read_schema(tmp_path / "scores.parquet").metadata[b"sa2va_trl.mining"])
    assert metadata == {**PRINTS, "hard": {"by": "dice", **expected}}


def test_a_file_of_an_earlier_version_says_nothing(tmp_path):
    mined = mine(scores(), 0.5)
    mined.attrs.clear()
    save_scores(mined, tmp_path / "scores.parquet", PRINTS)
    assert decided(read_scores(tmp_path / "scores.parquet", PRINTS)) is None


def test_a_decision_by_another_column_is_none_about_dice(tmp_path):
    mined = mine(scores().assign(consistency=np.linspace(0, 1, 4)), 0.5, by="consistency")
    assert decided(mined) is None and decided(mined, "consistency") == {"hard_below": 0.5}
