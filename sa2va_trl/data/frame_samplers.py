"""
Which frames of a clip enter a dataset.

Every sampler is a pure function of what was measured of the frames ([`~data.frame_signals.measure_frames`]), of the
frames that may be chosen, and of how many are wanted; none draws anything at random. [`sample_frames`] is all of it in
one call: it measures, leaves out what cannot be used, chooses, and reports.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from ..models.frame_policy import select_frames
from .frame_phases import FPS, contrast_phases, heart_beat
from .frame_signals import FrameSignals, measure_frames


#: Frames whose looks correlate by so much with the last one that was kept repeat it.
ALIKE = 0.9999
# The floor, in shares of the clip's medians, and how much less a frame agrees with both of its neighbours than usual.
_LEAST_SPREAD, _LEAST_SHARPNESS = 0.25, 0.5
_STRANGER, _LEAST_STRANGE = 10, 0.02
# A look (256 grey values of mean 0) of less than this length is a plain grey.
_NO_CONTRAST = 1e-2
# Of the frames of `contrast`, those of inflow and of wash-out each.
_SHARE_OF_A_PASSAGE = 0.2
_ROUNDS = 50
# What motion and time weigh beside appearance, whose variance is 1.
_MOTION_WEIGHT, _TIME_WEIGHT = 0.1, 0.1


class Chosen(NamedTuple):
    """
    What a sampler says.

    Args:
        frames (`list[int]`): in rising order.
        reasons (`list[str]`): what the clip did not allow, and what was done in its place.
        signals (`dict`): by name, a number for every frame (`None` where there is none) that it went by.
        facts (`dict`): single findings: `key_frame`, `period`, `phases`.
    """

    frames: list[int]
    reasons: list[str]
    signals: dict[str, list[float | None]]
    facts: dict[str, Any]


class FrameSample(NamedTuple):
    """
    Frames chosen from a clip.

    Args:
        frames (`list[int]`): in rising order; fewer than asked for where the clip has no more.
        report (`dict`): plain data for JSON and [`~evaluation.frame_timeline.frame_timeline`]: `sampler`, `asked`,
            `total`, `frames`, `reasons`, `left_out` (numbers of frames by reason), `signals` (a number a frame by
            name) and what the sampler found (`key_frame`, `phases`, `period`).
    """

    frames: list[int]
    report: dict[str, Any]


def sample_frames(
    frames: Iterable[np.ndarray | Image.Image] | FrameSignals,
    count: int,
    sampler: str = "uniform",
    fps: float = FPS,
    floor: bool = True,
    alike: float | None = ALIKE,
) -> FrameSample:
    """
    Choose frames of a clip. The result depends on the arguments alone.

    Quality is a floor and not a goal: a frame is left out where nothing can be seen in it ([`unusable`]), and all
    others are equal, so that motion blur and faint contrast stay as frequent as they are. Frames that repeat the one
    before are left out as well.

    Args:
        frames (iterable of `np.ndarray` of shape `(H, W)`, uint8, or of `PIL.Image.Image`):
            In the order of time; read once, one at a time. Or what was measured of them, to choose again.
        count (`int`): frames wanted, at least 1. A clip that has no more to choose from is taken whole.
        sampler (`str`, *optional*, defaults to `"uniform"`): one of `SAMPLERS`.
        fps (`float`, *optional*, defaults to 15.0): frames a second.
        floor (`bool`, *optional*, defaults to `True`): whether unusable frames are left out.
        alike (`float`, *optional*, defaults to `ALIKE`):
            Correlation from which on a frame repeats the last one that was kept; `None` keeps repeats.

    Returns:
        [`FrameSample`]

    Raises:
        `ValueError`: an option out of its range, no frame, or one that is not a grey picture of 8 bits.

    Example:

        ```python
        >>> from sa2va_trl.data.angiography import generate_video
        >>> from sa2va_trl.data.frame_samplers import sample_frames

        >>> clip = generate_video(seed=0, video=0, num_frames=60, size=64, injection=True).frames
        >>> sample = sample_frames(clip, 6, "contrast")
        >>> len(sample.frames), sample.report["reasons"]
        (6, [])
        >>> sample_frames(clip[:1], 6, "contrast").report["reasons"]
        ['1 frame to choose from, no more than the 6 asked for: all taken']

        ```
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"`count` must be an integer of at least 1, but is {count!r}.")
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler` must be one of {', '.join(SAMPLERS)}, but is {sampler!r}.")
    if not 0 < fps < np.inf:
        raise ValueError(f"`fps` must be above 0, but is {fps!r}.")
    if alike is not None and not 0 < alike <= 1:
        raise ValueError(f"`alike` must be above 0 and at most 1, but is {alike!r}.")
    signals = frames if isinstance(frames, FrameSignals) else measure_frames(frames)
    bad = unusable(signals) if floor else {}
    signals = _bridged(signals, sorted(bad))
    left_out: dict[str, list[int]] = {}
    for frame, reason in bad.items():
        left_out.setdefault(reason, []).append(frame)
    free = [frame for frame in range(len(signals.spread)) if frame not in bad]
    if alike is not None and (again := repeats(signals, free, alike)):
        left_out["repeats"] = again
        free = sorted(set(free) - set(again))

    chosen = SAMPLERS[sampler](signals, free, int(count), fps)
    reasons = chosen.reasons
    if len(free) <= count:
        things = "1 frame" if len(free) == 1 else f"{len(free)} frames"
        reasons = [f"{things} to choose from, no more than the {count} asked for: all taken"]
        chosen = chosen._replace(frames=free)
    report = {
        "sampler": sampler,
        "asked": int(count),
        "total": len(signals.spread),
        "frames": chosen.frames,
        "reasons": reasons,
        "left_out": left_out,
        "signals": chosen.signals,
        **chosen.facts,
    }
    return FrameSample(chosen.frames, report)


def uniform(signals: FrameSignals, free: list[int], count: int, fps: float = FPS) -> Chosen:
    """
    Frames at equal distances from the first to the last, as Sa2VA sees a clip in inference: one rule in training and
    inference was worth 11.6 J&F on MeViS (Sa2VA-i, arXiv 2509.19082).

    Args:
        signals ([`~data.frame_signals.FrameSignals`]): of the clip.
        free (`list[int]`): frames that may be chosen, in rising order, at least one.
        count (`int`): frames wanted, at least 1.
        fps (`float`, *optional*, defaults to 15.0): not needed here.

    Returns:
        [`Chosen`]
    """
    return Chosen(_spread(free, count), [], {}, {})


def contrast(signals: FrameSignals, free: list[int], count: int, fps: float = FPS) -> Chosen:
    """
    Frames of inflow, filled vessels and wash-out, most of them filled: a fifth of each passage, at least one, the
    others filled, evenly within each phase. One frame is the key frame; two are that and one of the inflow.

    The phases are [`~data.frame_phases.contrast_phases`]'s, from the vesselness of Sato et al. (1998) over time, as
    key frames of angiograms are found by it and by dark pixels (arXiv 2101.12505; arXiv 2601.17429).

    Args:
        signals, free, count, fps: as in [`uniform`].

    Returns:
        [`Chosen`], with `key_frame` and `phases` (first and last frame of each, or `None`) among its facts.
    """
    found = contrast_phases(signals.ridges)
    key_frame = _nearest(free, found.key_frame)
    facts = {"key_frame": key_frame, "phases": None}
    traces = {"contrast": _plain(found.curve)}
    if not found.found:
        reason = "no change of contrast found, spread uniformly"
        return Chosen(_spread(free, count), [reason], traces, facts)

    phases = {"inflow": found.inflow, "filled": found.filled, "washout": found.washout}
    facts["phases"] = {name: [own[0], own[-1]] if len(own) else None for name, own in phases.items()}
    reasons = []
    if not len(found.inflow):
        reasons.append("no inflow found: the clip begins with filled vessels")
    if not len(found.washout):
        reasons.append("no wash-out found: the clip ends with filled vessels")
    places = {name: [frame for frame in free if frame in own] for name, own in phases.items()}
    passage = max(1, int(_SHARE_OF_A_PASSAGE * count))
    wanted = {"inflow": passage if count > 1 else 0, "washout": passage if count > 2 else 0}
    wanted["filled"] = count - sum(min(number, len(places[name])) for name, number in wanted.items())
    frames = _around(places["filled"], wanted["filled"], key_frame)
    for name in ("inflow", "washout"):
        frames += _centres(places[name], wanted[name])
    # Phases that are shorter than their share leave the rest to the others.
    rest = [frame for phase in places.values() for frame in phase if frame not in frames]
    frames += _spread(sorted(rest), count - len(frames))
    rest = [frame for frame in free if frame not in frames]
    return Chosen(sorted(frames + _spread(rest, count - len(frames))), reasons, traces, facts)


def cardiac(signals: FrameSignals, free: list[int], count: int, fps: float = FPS) -> Chosen:
    """
    Frames spread over the cycle of the heart, from end-diastole on: of those that come within half a frame of a wanted
    phase the one whose breathing, and then whose time, is furthest from what has been chosen.

    Phase and breathing are [`~data.frame_phases.heart_beat`]'s: end-diastole is where motion comes to rest before
    systole (ECG-free gating of angiograms by motion: arXiv 2110.02844, arXiv 1811.02797).

    Args:
        signals, free, count, fps: as in [`uniform`].

    Returns:
        [`Chosen`], with `period` (frames of a beat, or `None`) among its facts.
    """
    beat = heart_beat(signals, fps)
    traces = {"motion": _plain(beat.motion), "phase": _plain(beat.phase), "breathing": _plain(beat.breath)}
    facts = {"period": beat.period}
    if beat.period is None:
        return Chosen(_spread(free, count), ["no period found, spread uniformly"], traces, facts)

    depth = max(float(np.ptp(beat.breath)), 1e-9)
    where = np.stack([beat.breath / depth, 0.01 * np.arange(len(beat.breath)) / len(beat.breath)], axis=1)
    chosen: list[int] = []
    for target in np.arange(min(count, len(free))) / count:
        rest = np.array([frame for frame in free if frame not in chosen])
        off = np.abs((beat.phase[rest] - target + 0.5) % 1 - 0.5)
        close = rest[off <= max(float(off.min()) + 1e-9, 0.5 / beat.period)]
        if chosen:
            far = np.linalg.norm(where[close][:, None] - where[chosen][None], axis=2).min(axis=1)
            chosen.append(int(close[far.argmax()]))
        else:
            chosen.append(int(rest[off.argmin()]))
    return Chosen(sorted(chosen), [], traces, facts)


def diverse(signals: FrameSignals, free: list[int], count: int, fps: float = FPS) -> Chosen:
    """
    Frames that stand for the whole clip in appearance, motion and time: those that leave least of its variance, where
    every frame is taken for the nearest one chosen.

    The search begins with the farthest points (Gonzalez, Theoretical Computer Science 38, 1985: each next frame is the
    furthest from all before), which alone would take the oddest frames and few of the faint ones, and with the uniform
    frames. From both it goes on as Lloyd's (IEEE Transactions on Information Theory 28, 1982), with the frame nearest
    to the mean of its group in place of the mean, and takes the better end; so it is never worse than uniform.

    Args:
        signals, free, count, fps: as in [`uniform`].

    Returns:
        [`Chosen`], with the distance of each frame from the nearest one chosen among its signals.
    """
    motion = _smooth_motion(signals.maps)
    lengths = np.linalg.norm(signals.looks, axis=1, keepdims=True)
    looks = np.divide(signals.looks, lengths, out=np.zeros_like(signals.looks), where=lengths > _NO_CONTRAST)
    parts = (looks, 1.0), (motion, _MOTION_WEIGHT), (np.arange(len(motion), dtype=float), _TIME_WEIGHT)
    place = np.concatenate([weight * _standard(part.reshape(len(motion), -1)) for part, weight in parts], axis=1)
    own = place[free]
    if not np.ptp(looks[free], axis=0).any():
        return Chosen(_spread(free, count), ["all frames look the same, spread uniformly"], {}, {})
    starts = _farthest(own, min(count, len(free))), _spread(list(range(len(free))), count)
    chosen = min(
        (_settled(own, start) for start in starts), key=lambda found: float((_distance(own, found) ** 2).sum())
    )
    traces = {"distance": _plain(_distance(place, [free[index] for index in chosen])), "motion": _plain(motion)}
    return Chosen(sorted(free[index] for index in chosen), [], traces, {})


def _smooth_motion(maps: np.ndarray) -> np.ndarray:
    """How much maps change from frame to frame, shape `(T,)`."""
    if len(maps) < 2:
        return np.zeros(len(maps))
    return ndimage.gaussian_filter1d(np.linalg.norm(np.gradient(maps, axis=0), axis=1), 1.0, mode="nearest")


def _distance(place: np.ndarray, chosen: list[int]) -> np.ndarray:
    """Of each point from the nearest one chosen."""
    return np.min([np.linalg.norm(place - place[index], axis=1) for index in chosen], axis=0)


def _farthest(place: np.ndarray, count: int) -> list[int]:
    """The point furthest from the mean, and then each time the one furthest from all chosen."""
    chosen = [int(np.linalg.norm(place - place.mean(axis=0), axis=1).argmax())]
    distance = _distance(place, chosen)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(place - place[chosen[-1]], axis=1))
    return chosen


def _settled(place: np.ndarray, chosen: list[int]) -> list[int]:
    """Points chosen anew, each the nearest to the mean of those that are nearest to it, until nothing changes."""
    for _ in range(_ROUNDS):
        nearest = np.argmin([np.linalg.norm(place - place[index], axis=1) for index in chosen], axis=0)
        after = []
        for group, index in enumerate(chosen):
            members = np.flatnonzero(nearest == group)
            if len(members):
                middle = place[members].mean(axis=0)
                index = int(members[np.linalg.norm(place[members] - middle, axis=1).argmin()])
            after.append(index)
        if after == chosen:
            break
        chosen = after
    return sorted(set(chosen))


#: By name, as options have it.
SAMPLERS: dict[str, Callable[[FrameSignals, list[int], int, float], Chosen]] = {
    "uniform": uniform,
    "contrast": contrast,
    "cardiac": cardiac,
    "diverse": diverse,
}


def unusable(signals: FrameSignals) -> dict[int, str]:
    """
    Frames below the floor, in which nothing can be seen or that are no picture of the clip.

    Args:
        signals ([`~data.frame_signals.FrameSignals`]): of the clip.

    Returns:
        `dict[int, str]`: in rising order, and why: `"blank"` (grey values spread by less than a quarter of the
        median), `"smeared"` (less than half as sharp as the median) or `"unlike its neighbours"` (a flash, a torn
        frame: it differs from both neighbours ten times as much as is usual, and more than they do from each other).
    """
    reasons: dict[int, str] = {}
    agree = _agreement(signals.looks)
    usual = float(np.median(1 - agree)) if len(agree) else 0.0
    strange = max(_STRANGER * usual, _LEAST_STRANGE)
    for frame in range(len(signals.spread)):
        near = [1 - agree[pair] for pair in (frame - 1, frame) if 0 <= pair < len(agree)]
        if signals.spread[frame] < _LEAST_SPREAD * np.median(signals.spread):
            reasons[frame] = "blank"
        elif signals.sharpness[frame] < _LEAST_SHARPNESS * np.median(signals.sharpness):
            reasons[frame] = "smeared"
        elif len(near) == 2 and min(near) > strange:
            if 1 - _correlation(signals.looks[frame - 1], signals.looks[frame + 1]) < min(near) / 2:
                reasons[frame] = "unlike its neighbours"
    return reasons


def repeats(signals: FrameSignals, frames: list[int], alike: float = ALIKE) -> list[int]:
    """
    Frames that repeat the last one before them that does not.

    Args:
        signals ([`~data.frame_signals.FrameSignals`]): of the clip.
        frames (`list[int]`): in rising order.
        alike (`float`, *optional*, defaults to `ALIKE`): correlation of their looks.

    Returns:
        `list[int]`: in rising order; never the first of `frames`.
    """
    found, kept = [], None
    for frame in frames:
        if kept is not None and _correlation(signals.looks[kept], signals.looks[frame]) >= alike:
            found.append(frame)
        else:
            kept = frame
    return found


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two looks; 1 for two without any contrast, 0 where one has none."""
    lengths = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    if min(lengths) < _NO_CONTRAST:
        return float(max(lengths) < _NO_CONTRAST)
    return float(one @ other) / (lengths[0] * lengths[1])


def _agreement(looks: np.ndarray) -> np.ndarray:
    return np.array([_correlation(*pair) for pair in zip(looks, looks[1:], strict=False)])


def _bridged(signals: FrameSignals, bad: list[int]) -> FrameSignals:
    """With what lies between the neighbours in place of what was measured of some frames."""
    total = len(signals.spread)
    good = np.setdiff1d(np.arange(total), bad)
    if not bad or not len(good):
        return signals
    # A bad frame spoils its own step and the one after it.
    steps = np.diff(signals.shift, axis=0, prepend=signals.shift[:1])
    steps[[frame for one in bad for frame in (one, one + 1) if frame < total]] = 0
    after = np.searchsorted(good, bad)
    low, high = good[np.maximum(after - 1, 0)], good[np.minimum(after, len(good) - 1)]
    share = np.where(high > low, (np.array(bad) - low) / np.maximum(high - low, 1), 0.0)[:, None]

    def bridge(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[bad] = (1 - share) * values[low] + share * values[high]
        return values

    return signals._replace(
        ridges=bridge(signals.ridges),
        maps=bridge(signals.maps),
        looks=bridge(signals.looks),
        shift=np.cumsum(steps, axis=0),
    )


def _spread(frames: list[int], count: int) -> list[int]:
    """Some of different frames, from the first to the last."""
    if count < 1 or not frames:
        return []
    return [frames[place] for place in select_frames("uniform", len(frames), count)]


def _centres(frames: list[int], count: int) -> list[int]:
    """Some of different frames: the middle of each of `count` equal parts."""
    count = min(count, len(frames))
    return [frames[int((place + 0.5) * len(frames) / count)] for place in range(count)]


def _around(frames: list[int], count: int, key_frame: int) -> list[int]:
    """As `_centres`, with the key frame, if it is one of them, in place of the nearest."""
    found = _centres(frames, count)
    if found and key_frame in frames and key_frame not in found:
        found[found.index(_nearest(found, key_frame))] = key_frame
    return found


def _nearest(frames: list[int], frame: int) -> int:
    return min(frames, key=lambda other: abs(other - frame))


def _standard(values: np.ndarray) -> np.ndarray:
    """About its mean, with a total variance of 1; zeros where nothing differs."""
    values = values - values.mean(axis=0)
    size = float(np.sqrt((values**2).sum(axis=1).mean()))
    return values / size if size > 1e-6 else np.zeros_like(values)


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
