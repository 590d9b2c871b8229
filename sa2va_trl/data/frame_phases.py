"""Contrast agent, heart beat and breathing of a clip, found in what was measured of its frames."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage, signal

from .frame_signals import FrameSignals


#: Frames a second of a usual cine angiogram.
FPS = 15.0
#: Beats a minute that are looked for. Slower ones could not be told from breathing in a clip of some seconds.
BEATS = (54.0, 180.0)
# The pass band of a heart, in seconds: slower is breathing and contrast agent, faster is noise.
_SLOW, _FAST = 4 / 3, 4 / 15
# Maps that change by no more than this, squared, stand still.
_STILL = 1e-12
# A period counts where frames that lie it apart agree by so much more than filtered noise would.
_BEATING = 0.03
# Of the highest peak: an earlier one so high is the period, and the highest a multiple of it.
_FIRST_PEAK = 0.4
# Of the curve's rise: the vessels count as filled from here on, and as wanting agent again below.
_FILLED, _EMPTYING, _ARRIVING, _STOPPING = 0.8, 0.8, 0.2, 0.25
# The curve's rise over its noise from which on it is one.
_RISE = 4.5
_SHORTEST = 8
_PHASES = np.arange(48) / 48


class ContrastPhases(NamedTuple):
    """
    The course of the contrast agent through `T` frames.

    Args:
        curve (`np.ndarray` of shape `(T,)`): share of the picture that is vessel, smoothed.
        found (`bool`): whether it changes at all. Where it does not, all frames are of no phase.
        inflow, filled, washout (`range`): frames of each phase, in this order; empty where the clip has none.
        key_frame (`int`): centre of the longest run above the median of the curve.
    """

    curve: np.ndarray
    found: bool
    inflow: range
    filled: range
    washout: range
    key_frame: int


class HeartBeat(NamedTuple):
    """
    Heart beat and breathing of `T` frames.

    Args:
        period (`float` or `None`): frames of a beat; `None` where there is none to be found.
        phase (`np.ndarray` of shape `(T,)`): in cycles, in [0, 1), 0 at end-diastole; NaN without a period.
        motion (`np.ndarray` of shape `(T,)`): how fast the vessels go, 1 on average.
        breath (`np.ndarray` of shape `(T,)`): slow part of the picture's shift downwards, in shares of its height.
    """

    period: float | None
    phase: np.ndarray
    motion: np.ndarray
    breath: np.ndarray


def contrast_phases(ridges: np.ndarray) -> ContrastPhases:
    """
    Inflow, filled vessels and wash-out, from how much of the picture is vessel.

    Of the strengths at which ridges were counted the lowest is used whose curve stands out of its own noise nearly as
    well as the best one's: a low one counts faint vessels fully, so that the curve is of their length and less of how
    dark they are. The key frame is the centre of the longest run above the median, and not the frame of the maximum,
    which noise and motion decide.

    Args:
        ridges (`np.ndarray` of shape `(T, strengths)`): as in [`~data.frame_signals.FrameSignals`].

    Returns:
        [`ContrastPhases`]. No course is found in fewer than 8 frames, and where the curve's rise drowns in its noise.
    """
    curves = [_smooth(column) for column in ridges.T]
    pairs = zip(ridges.T, curves, strict=True)
    noise = [np.std(np.diff(column - curve)) if len(curve) > 1 else 0.0 for column, curve in pairs]
    rise = np.array([np.ptp(np.quantile(curve, (0.03, 0.9))) for curve in curves])
    clear = rise / (np.array(noise) + 1e-4)
    curve = curves[int(np.flatnonzero(clear >= 0.6 * clear.max())[0])]
    total, key_frame = len(curve), _middle_of_longest(curve > np.median(curve))
    if total < _SHORTEST or clear.max() < _RISE:
        return ContrastPhases(curve, False, range(0), range(0), range(0), key_frame)

    low, high = np.quantile(curve, (0.03, 0.9))
    level = (curve - low) / (high - low)
    first = int(np.flatnonzero(level >= _FILLED)[0])
    last = int(np.flatnonzero(level >= _EMPTYING)[-1])
    early = np.flatnonzero(level[:first] < _ARRIVING)
    # A clip that begins in its inflow has not been below.
    arrival = int(early[-1]) + 1 if early.size else 0
    # The rise ends where it first comes to a halt, if only for a while: vessels may be full and seen faintly.
    slope, stop = np.diff(level), arrival
    while stop < first and slope[stop] >= _STOPPING * slope[arrival : stop + 1].max():
        stop += 1
    inflow = range(arrival, min(max(stop, arrival + 1), first))
    return ContrastPhases(curve, True, inflow, range(first, last + 1), range(last + 1, total), key_frame)


def _smooth(curve: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter1d(ndimage.median_filter(curve, 5, mode="nearest"), 1.5, mode="nearest")


def _middle_of_longest(inside: np.ndarray) -> int:
    """Middle of the longest run of `True`, the first of equal ones; of the whole where there is none."""
    runs, count = ndimage.label(inside)
    if not count:
        return (len(inside) - 1) // 2
    places = np.flatnonzero(runs == 1 + int(np.bincount(runs.ravel())[1:].argmax()))
    return int(places[0] + places[-1]) // 2


def heart_beat(signals: FrameSignals, fps: float = FPS) -> HeartBeat:
    """
    Period and phase of the beat, and breathing, without an ECG.

    The maps of ridges are filtered to the pass band of a heart, in time. The period is the first high peak of their
    autocorrelation: the frames that lie it apart look alike. The course of the maps along their main direction (as
    Panayiotou et al., Medical Physics 41, 2014, gate X-ray runs by principal components) gives each frame its phase.
    Averaged over all beats, the vessels go fastest in systole; where they come to rest before it is end-diastole.
    Breathing is what is slow in the shift of the whole picture.

    Args:
        signals ([`~data.frame_signals.FrameSignals`]): of the clip.
        fps (`float`, *optional*, defaults to 15.0): frames a second, which says what is slow and what is fast.

    Returns:
        [`HeartBeat`]. There is no period in a clip of fewer than two beats, at rates outside of `BEATS`, and where
        nothing beats.
    """
    maps, total = signals.maps.astype(np.float64), len(signals.maps)
    breath = ndimage.gaussian_filter1d(signals.shift[:, 0], _SLOW / 5 * fps, mode="nearest")
    shortest, longest = 60 * fps / BEATS[1], 60 * fps / BEATS[0]
    if total < max(2 * shortest, _SHORTEST) or fps * _FAST <= 2:
        return HeartBeat(None, np.full(total, np.nan), _pace(maps, total), breath)
    maps = _band(maps, fps * _SLOW, fps * _FAST, order=2)
    motion = _pace(maps, 2 * round(longest) + 1)
    period = _period(maps, fps, shortest, longest)
    if period is None:
        return HeartBeat(None, np.full(total, np.nan), motion, breath)
    phase, inner = _cycles(maps, period), slice(round(period / 2), -round(period / 2))
    return HeartBeat(period, (phase - _end_diastole(phase[inner], motion[inner])) % 1, motion, breath)


def _band(values: np.ndarray, slow: float, fast: float, order: int) -> np.ndarray:
    """What goes on with periods between two lengths in frames, without delay."""
    sections = signal.butter(order, [2 / slow, 2 / fast], "band", output="sos")
    return signal.sosfiltfilt(sections, values, axis=0, padlen=min(len(values) - 1, 2 * round(slow)))


def _agreement(values: np.ndarray, furthest: int) -> np.ndarray:
    """Autocorrelation at lags from 0 on."""
    power = (values * values).mean()
    return np.array([(values[: len(values) - lag] * values[lag:]).mean() / power for lag in range(furthest + 1)])


def _period(maps: np.ndarray, fps: float, shortest: float, longest: float) -> float | None:
    if (maps * maps).mean() < _STILL:
        return None
    furthest = min(int(np.ceil(longest)) + 1, len(maps) // 2)
    # Filtering makes noise agree with itself.
    pulse = np.zeros((1 + 2 * len(maps), 1))
    pulse[len(maps)] = 1
    noise = _agreement(np.pad(_band(pulse, fps * _SLOW, fps * _FAST, order=2), ((0, furthest), (0, 0))), furthest)
    excess = _agreement(maps, furthest) - noise
    peaks = [
        lag
        for lag in range(max(int(shortest), 1), furthest)
        if excess[lag - 1] <= excess[lag] > excess[lag + 1] and excess[lag] > _BEATING
    ]
    if not peaks:
        return None
    lag = next(lag for lag in peaks if excess[lag] >= _FIRST_PEAK * excess[peaks].max())
    before, here, after = excess[lag - 1 : lag + 2]
    period = float(lag + (before - after) / (2 * (before - 2 * here + after)))
    return period if shortest <= period <= longest else None


def _cycles(maps: np.ndarray, period: float) -> np.ndarray:
    """Phase of each frame in cycles, rising by 1 a beat, from wherever."""
    # Of the two products of the maps with themselves the smaller one tells the main direction.
    if len(maps) <= maps.shape[1]:
        strength, directions = np.linalg.eigh(maps @ maps.T)
        main = directions[:, -1] * np.sqrt(max(strength[-1], 0.0))
    else:
        main = maps @ np.linalg.eigh(maps.T @ maps)[1][:, -1]
    course = _band(main, 1.6 * period, period / 1.6, order=1)
    phase = np.unwrap(np.angle(signal.hilbert(course)) / (2 * np.pi), period=1)
    phase = phase if phase[-1] >= phase[0] else -phase
    # It bends at both ends, where there is nothing beyond to tell it by.
    end = round(period / 2)
    phase[:end] = phase[end] + np.arange(-end, 0) / period
    phase[-end:] = phase[-end - 1] + np.arange(1, end + 1) / period
    return phase


def _pace(maps: np.ndarray, window: int) -> np.ndarray:
    """How fast maps change, over what is usual around."""
    if len(maps) < 2:
        return np.ones(len(maps))
    change = np.linalg.norm(np.gradient(maps, axis=0), axis=1)
    usual = ndimage.uniform_filter1d(change, min(window, len(maps)), mode="nearest")
    return np.divide(change, usual, out=np.ones_like(change), where=usual > 1e-9)


def _end_diastole(phase: np.ndarray, motion: np.ndarray) -> float:
    """Phase at which motion is least before it is greatest, averaged over beats."""
    near = np.exp(16 * (np.cos(2 * np.pi * (phase[:, None] - _PHASES)) - 1))
    mean = (near * motion[:, None]).sum(axis=0) / np.maximum(near.sum(axis=0), 1e-12)
    place = int(mean.argmax())
    for _ in range(len(mean)):
        if mean[place - 1] >= mean[place]:
            break
        place = (place - 1) % len(mean)
    return float(_PHASES[place])
