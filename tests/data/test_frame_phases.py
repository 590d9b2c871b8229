import numpy as np
import pytest

from sa2va_trl.data.frame_phases import contrast_phases, heart_beat
from sa2va_trl.data.frame_signals import FrameSignals


def ridges(curve, noise=0.002):
    """As measured of a clip in which a share of the picture is vessel."""
    rng = np.random.default_rng(0)
    return np.asarray(curve)[:, None] * np.linspace(1, 0.4, 9) + rng.normal(0, noise, (len(curve), 9))


def course(before=15, rise=10, full=30, fall=20):
    return np.concatenate(
        [np.full(before, 0.02), np.linspace(0.02, 0.2, rise), np.full(full, 0.2), np.linspace(0.2, 0.08, fall)]
    )


def test_phases_are_where_the_curve_puts_them():
    found = contrast_phases(ridges(course()))
    assert found.found
    assert 15 <= found.inflow[0] <= found.inflow[-1] < 25
    assert abs(found.filled[0] - 23) <= 2 and abs(found.filled[-1] - 57) <= 3
    assert (found.washout[0], found.washout[-1]) == (found.filled[-1] + 1, 74)


def test_the_key_frame_is_not_where_a_single_frame_is_darkest():
    curve = course()
    curve[70] = 0.4
    found = contrast_phases(ridges(curve))
    assert 30 <= found.key_frame <= 50


def test_a_faint_stretch_within_the_rise_does_not_hide_the_inflow():
    curve = course()
    curve[20:35] *= 0.6
    found = contrast_phases(ridges(curve))
    assert 15 <= found.inflow[0] and found.inflow[-1] < 25


@pytest.mark.parametrize("curve", [np.full(40, 0.2), np.zeros(40), np.full(1, 0.2), np.full(2, 0.2)])
def test_without_a_change_there_is_no_phase(curve):
    found = contrast_phases(ridges(curve))
    assert not found.found and not (len(found.inflow) or len(found.filled) or len(found.washout))
    assert 0 <= found.key_frame < len(curve)


@pytest.mark.parametrize(("part", "lacking"), [(slice(28, None), "inflow"), (slice(0, 50), "washout")])
def test_a_clip_may_lack_a_phase(part, lacking):
    found = contrast_phases(ridges(course()[part]))
    assert found.found and not getattr(found, lacking) and found.filled


def beating(total, period, noise=0.02, breathing=0.05, seed=0):
    """Signals of a clip whose maps beat, fast in systole, and breathe; and the phase that they are made of."""
    rng, time = np.random.default_rng(seed), np.arange(total)
    phase = time / period + 0.3
    # As of generated runs: widest, and at rest, 66 degrees before the middle of systole.
    angle = 2 * np.pi * phase - 1.156
    beat = np.sin(angle) + 0.3 * np.sin(2 * angle)
    breath = np.sin(2 * np.pi * time / 55)
    first, second = rng.normal(size=(2, 576))
    maps = 0.03 * beat[:, None] * first + breathing * breath[:, None] * second + rng.normal(0, noise, (total, 576))
    still = np.ones(total)
    shift = np.stack([0.02 * breath, np.zeros(total)], axis=1) + 0.002 * beat[:, None]
    return (
        FrameSignals(np.zeros((total, 9)), maps, shift, np.zeros((total, 256)), still, still, still),
        phase % 1,
        breath,
    )


@pytest.mark.parametrize("period", [6.4, 9.7, 13.2])
@pytest.mark.parametrize("noise", [0.005, 0.06])
def test_period_phase_and_breathing_are_found(period, noise):
    signals, phase, breath = beating(80, period, noise)
    found = heart_beat(signals)
    assert abs(found.period - period) < 0.5
    assert np.median(np.abs((found.phase - phase + 0.5) % 1 - 0.5)) * period < 1.2
    assert np.corrcoef(found.breath, breath)[0, 1] > 0.95


def test_end_diastole_is_a_minimum_of_motion():
    signals, _, _ = beating(120, 12, 0.005)
    found = heart_beat(signals)
    rest = np.minimum(found.phase, 1 - found.phase) < 0.05
    assert found.motion[rest].mean() < 0.7 * found.motion.mean()


def test_frames_a_second_say_what_a_beat_is():
    signals, _, _ = beating(160, 24.0, 0.01, breathing=0)
    assert abs(heart_beat(signals, fps=30).period - 24) < 1
    assert heart_beat(signals, fps=15).period is None or abs(heart_beat(signals, fps=15).period - 24) > 1


@pytest.mark.parametrize("total", [1, 2, 7, 40, 80])
def test_what_does_not_beat_has_no_period(total):
    signals, _, _ = beating(total, 10)
    noise = np.random.default_rng(1).normal(size=signals.maps.shape)
    for maps in (np.zeros_like(noise), noise):
        found = heart_beat(signals._replace(maps=maps))
        assert found.period is None and np.isnan(found.phase).all()
        assert np.isfinite(found.motion).all() and np.isfinite(found.breath).all()
