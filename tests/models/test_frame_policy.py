import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa2va_trl.models.frame_policy import select_frames


COUNTS = st.integers(1, 60)


@given(total=COUNTS, count=COUNTS)
def test_uniform_frames_span_the_clip_evenly(total, count):
    frames = select_frames("uniform", total, count)
    assert frames == sorted(set(frames)) and len(frames) == min(count, total)
    assert frames[0] == 0 and (count == 1 or frames[-1] == total - 1)
    steps = np.diff(frames)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@given(total=COUNTS, count=COUNTS)
def test_first_frames_are_the_beginning(total, count):
    assert select_frames("first", total, count) == list(range(total))[:count]


def test_uniform_frames_of_sa2va_i():
    assert select_frames("uniform", 100, 5) == [0, 24, 49, 74, 99]
    assert select_frames("uniform", 3, 12) == [0, 1, 2]


@given(total=COUNTS, count=COUNTS)
def test_starts_are_where_equal_parts_begin(total, count):
    frames = select_frames("starts", total, count)
    assert frames == sorted(set(frames)) and len(frames) == min(count, total) and frames[0] == 0
    ends = [*frames[1:], total]
    lengths = [end - start for start, end in zip(frames, ends, strict=True)]
    assert max(lengths) - min(lengths) <= 1


def test_starts_are_the_frames_of_sasasa2va():
    # As `[int(i * len(video) / 100) for i in range(100)]` of its code, of which repeated frames are one here.
    for total in (7, 100, 101, 250):
        assert select_frames("starts", total, 100) == sorted({int(i * total / 100) for i in range(100)})
    assert select_frames("starts", 10, 5) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("last", 5, 2), "'first' or 'starts', got 'last'"),
        (("first", 0, 2), "at least one frame"),
        (("uniform", 5, 0), "at least one frame"),
    ],
)
def test_select_frames_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_frames(*arguments)
