import numpy as np
import pytest
from PIL import Image

from sa2va_trl.evaluation.frame_timeline import frame_timeline, save_timeline


def report(**given):
    return {
        "sampler": "contrast",
        "asked": 3,
        "total": 30,
        "frames": [4, 12, 25],
        "reasons": [],
        "left_out": {"blank": [7]},
        "signals": {"contrast": np.linspace(0, 0.3, 30).tolist()},
        "key_frame": 12,
        "phases": {"inflow": [2, 6], "filled": [7, 20], "washout": None},
        **given,
    }


def words(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts}, figure.axes[0].get_title(loc="left")


def test_chosen_frames_lie_on_the_signal():
    figure = frame_timeline(report())
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert dots[0].get_xdata().tolist() == [4, 12, 25]
    np.testing.assert_allclose(dots[0].get_ydata(), np.linspace(0, 0.3, 30)[[4, 12, 25]])
    assert [line.get_xdata() for line in axes.lines if line.get_marker() == "D"] == [[12]]
    assert words(figure) == ({"inflow", "filled"}, "contrast: 3 of 30 frames\nleft out: 1 blank")


def test_every_signal_has_a_row_and_gaps_are_gaps():
    phase = [(0.1 * frame) % 1 for frame in range(29)] + [None]
    given = {"sampler": "cardiac", "signals": {"motion": [1.0] * 30, "phase": phase}, "period": 10.04, "phases": None}
    figure = frame_timeline(report(**given))
    assert len(figure.axes) == 2 and words(figure)[1].startswith("cardiac: 3 of 30 frames, a beat every 10.0")
    drawn = figure.axes[1].lines[3].get_ydata()
    assert np.isnan(drawn[[9, 19, 29]]).all() and np.isfinite(drawn[:9]).all()


@pytest.mark.parametrize("total", [1, 30])
def test_without_signals_there_is_a_line_of_time(tmp_path, total):
    frames = [0] if total == 1 else [0, 29]
    given = report(total=total, frames=frames, signals={}, left_out={}, key_frame=None, phases=None, reasons=["why"])
    save_timeline(tmp_path / "new" / "timeline.png", given)
    assert Image.open(tmp_path / "new" / "timeline.png").width == 9 * 150
    assert words(frame_timeline(given))[1].endswith("\nwhy")
