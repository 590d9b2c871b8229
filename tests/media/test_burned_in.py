import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from sa2va_trl.data.synthetic import generate_video
from sa2va_trl.media.burned_in import static_text


@pytest.fixture(scope="module")
def runs():
    return [[Image.fromarray(frame).convert("L") for frame in generate_video(5, n, 4, 256).frames] for n in range(2)]


def written(frame, text, place=(10, 200), size=12, fill=255):
    frame = frame.copy()
    ImageDraw.Draw(frame).text(place, text, fill=fill, font=ImageFont.load_default(size))
    return frame


@pytest.mark.parametrize("size", [11, 16, 24])
def test_a_name_over_a_run_is_found_where_it_stands(runs, size):
    for frames in runs:
        left, top, right, bottom = static_text([written(frame, "ROE^JANE 1950", size=size) for frame in frames])[0]
        assert 8 <= left <= 14 and 200 <= top and bottom <= 202 + 1.3 * size and right > left + 4 * size


def test_nothing_is_found_in_runs_without_text(runs):
    for frames in runs:
        assert static_text(frames) == [] and static_text(frames[:1]) == []


def test_what_moves_or_changes_is_no_text(runs):
    moving = [written(frame, "ROE^JANE 1950", (10 + 9 * n, 180 + 7 * n)) for n, frame in enumerate(runs[0])]
    assert static_text(moving) == []
    assert static_text(moving[:1]) != []  # of one frame, nobody can tell
    blinking = [written(frame, "ROE^JANE 1950", fill=255 if n % 2 else 60) for n, frame in enumerate(runs[0])]
    assert static_text(blinking) == []


def test_bright_shapes_are_no_text():
    frame = np.zeros((200, 200), np.uint8)
    frame[20:60, 20:160] = 255  # a plate
    frame[100] = 255  # a line
    frame[150:158, 20:23] = frame[150:158, 40:43] = 255  # two marks
    assert static_text([frame, frame]) == []


def test_two_lines_are_two(runs):
    frames = [written(written(frame, "ROE^JANE"), "1950-01-02", (120, 20)) for frame in runs[0]]
    assert [box[1] > 100 for box in static_text(frames)] == [True, False]


def test_frames_that_are_none_are_refused():
    with pytest.raises(ValueError, match="no frames"):
        static_text([])
    with pytest.raises(ValueError, match="must have one size"):
        static_text([np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8)])
