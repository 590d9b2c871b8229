"""
Which frames of generated cine runs the samplers choose, against what is known of the runs: phases of the contrast
agent, period and phase of the heart beat, frames of the hard stretch. And how long it takes.

    OMP_NUM_THREADS=1 python recipes/benchmarks/frame_samplers.py

Every run is of a whole injection (before it, inflow, filled, wash-out), beats every 9 to 14 frames, breathes every 40
to 70, and has its hard stretch: faint contrast, motion blur and fewer photons for a quarter to two fifths of it, which
may be anywhere. Half of the runs have other scenes, a quarter come from the second hospital. "Filled" is from where
the tree first holds 90 % of the agent that it ever holds to where it last does; a frame of the inflow comes before and
has at least 10 %; one of the wash-out comes after.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va_trl.data.angiography import SyntheticVideo, generate_video
from sa2va_trl.data.frame_phases import FPS, heart_beat
from sa2va_trl.data.frame_samplers import SAMPLERS, sample_frames
from sa2va_trl.data.frame_signals import FrameSignals, measure_frames
from sa2va_trl.data.near_duplicates import thumbnail
from sa2va_trl.files import write_json


#: What must be reached: shares of the runs, and times faster than real time.
GOALS = {"contrast": 0.95, "cardiac": 0.9, "diverse": 1.0, "speed": 20.0}


def generated(number: int, frames: int, size: int, seed: int) -> SyntheticVideo:
    """A run: every second one plain, the others of named scenes, of the two hospitals by turns."""
    other = {"scene": "named", "hospital": 1 + number // 2 % 2} if number % 2 else {}
    return generate_video(seed, number, frames, size, injection=True, **other)


def contrast_figures(video: SyntheticVideo, signals: FrameSignals, count: int) -> dict[str, float]:
    """Whether each phase has a frame, how many are of the filled one, and whether the key frame is."""
    level = video.filling / video.filling.max()
    full = np.flatnonzero(level >= 0.9)
    sample = sample_frames(signals, count, "contrast")
    chosen = np.array(sample.frames)
    inflow = ((chosen < full[0]) & (level[chosen] >= 0.1)).any()
    filled = (chosen >= full[0]) & (chosen <= full[-1])
    return {
        "three phases": float(inflow and filled.any() and (chosen > full[-1]).any()),
        "filled share": float(filled.mean()),
        "key frame filled": float(full[0] <= sample.report["key_frame"] <= full[-1]),
    }


def cardiac_figures(video: SyntheticVideo, signals: FrameSignals, count: int) -> dict[str, float]:
    """Error of the period, of the phase, and how well chosen frames spread over the cycle and over breathing."""
    beat = heart_beat(signals)
    error = np.inf if beat.period is None else abs(beat.period - video.beat_period)
    figures = {"period within 1 frame": float(error <= 1), "period found": float(beat.period is not None)}
    if beat.period is None:
        return figures
    off = (beat.phase - video.beat + 0.5) % 1 - 0.5
    frames = np.array(sample_frames(signals, count, "cardiac").frames)
    evenly = np.array(sample_frames(signals, count, "uniform").frames)
    return figures | {
        "error of the period (frames)": error,
        "end-diastole within 1.5 frames": float(abs(np.median(off)) * video.beat_period <= 1.5),
        "error of the phase (frames)": float(np.median(np.abs(off)) * video.beat_period),
        "correlation of breathing": float(np.corrcoef(beat.breath, video.breath[:, 1])[0, 1]),
        "largest gap in the cycle": _gap(video.beat[frames]),
        "largest gap in the cycle, uniform": _gap(video.beat[evenly]),
        "breathing covered": float(np.ptp(video.breath[frames, 1]) / np.ptp(video.breath[:, 1])),
    }


def _gap(phase: np.ndarray) -> float:
    """The largest part of a cycle without a frame."""
    phase = np.sort(phase)
    return float(np.diff(np.append(phase, phase[0] + 1)).max())


def appearance(looks: np.ndarray, frames: list[int]) -> tuple[float, float]:
    """Share of the variance that is explained by the nearest frame chosen, and the largest distance from it."""
    away = np.min([np.linalg.norm(looks - looks[frame], axis=1) for frame in frames], axis=0)
    return 1 - float((away**2).sum() / ((looks - looks.mean(axis=0)) ** 2).sum()), float(away.max())


def diverse_figures(video: SyntheticVideo, signals: FrameSignals, count: int) -> dict[str, float]:
    """Variance of appearance covered, beside that of as many uniform frames."""
    looks = np.stack([thumbnail(Image.fromarray(frame)) for frame in video.frames])
    own, radius = appearance(looks, sample_frames(signals, count, "diverse").frames)
    even, even_radius = appearance(looks, sample_frames(signals, count, "uniform").frames)
    return {
        "more variance than uniform": float(own > even),
        "variance": own,
        "variance, uniform": even,
        "least gain of variance": own - even,
        "radius over uniform's": radius / even_radius,
    }


def damaged(video: SyntheticVideo, rng: np.random.Generator) -> tuple[np.ndarray, set[int]]:
    """Frames of which one is black, one is a flash and one is torn."""
    frames = video.frames.copy()
    places = rng.permutation(np.arange(1, len(frames) // 4 - 1))[:3] * 4
    frames[places[0]] = 0
    frames[places[1]] = np.minimum(frames[places[1]].astype(int) + 200, 255)
    half = frames.shape[1] // 2
    frames[places[2], half:] = np.roll(frames[places[2], half:], frames.shape[2] // 3, axis=1)
    return frames, set(map(int, places))


def floor_figures(video: SyntheticVideo, number: int) -> dict[str, float]:
    """Whether spoiled frames are left out, and only they."""
    frames, bad = damaged(video, np.random.default_rng(number))
    left = sample_frames(frames, 8).report["left_out"]
    out = {frame for reason, own in left.items() if reason != "repeats" for frame in own}
    return {"spoiled frames left out": len(out & bad) / len(bad), "other frames left out": float(len(out - bad))}


def still(video: SyntheticVideo, number: int) -> np.ndarray:
    """A run in which nothing beats: one frame that breathes, with fresh noise."""
    from scipy import ndimage

    rng, frame = np.random.default_rng(number), video.frames[len(video.frames) // 2].astype(np.float32)
    size, depth = len(frame), 0.02 * len(frame)
    waves = depth * np.sin(2 * np.pi * np.arange(len(video.frames)) / rng.uniform(40, 70) + rng.uniform(0, 6))
    moved = [ndimage.shift(frame, (wave, 0), order=1, mode="nearest") for wave in waves]
    noise = rng.normal(0, 6, (len(moved), size, size))
    return np.clip(np.rint(np.stack(moved) + noise), 0, 255).astype(np.uint8)


def speeds(count: int, seed: int) -> dict[str, float]:
    """Times faster than real time, of 60 frames of 512 x 512 pixels, measuring included."""
    frames = generate_video(seed, 0, 60, 512, injection=True).frames
    found = {}
    for sampler in SAMPLERS:
        runs = []
        for _ in range(3):
            start = time.process_time()
            sample_frames(frames, count, sampler)
            runs.append(time.process_time() - start)
        found[sampler] = len(frames) / FPS / float(np.median(runs))
    return found


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the runs that have a figure; least ones by their least."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: float(min(own) if name.startswith("least") else np.mean(own)) for name, own in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/frame_samplers"), help="where figures go")
    parser.add_argument("--runs", type=int, default=100, help="generated runs")
    parser.add_argument("--frames", type=int, default=80, help="frames of each")
    parser.add_argument("--size", type=int, default=256, help="side of the frames")
    parser.add_argument("--count", type=int, default=8, help="frames chosen of each")
    parser.add_argument("--seed", type=int, default=11, help="of the runs")
    args = parser.parse_args()

    rows: dict[str, list[dict[str, float]]] = {}
    for number in range(args.runs):
        video = generated(number, args.frames, args.size, args.seed)
        signals = measure_frames(video.frames)
        for name, figures in (
            (f"contrast, {args.count} frames", contrast_figures(video, signals, args.count)),
            ("contrast, 3 frames", contrast_figures(video, signals, 3)),
            ("cardiac", cardiac_figures(video, signals, args.count)),
            *((f"diverse, {count} frames", diverse_figures(video, signals, count)) for count in (4, args.count, 16)),
        ):
            rows.setdefault(name, []).append(figures)
        shares = {name: float(video.hard[sample_frames(signals, args.count, name).frames].mean()) for name in SAMPLERS}
        rows.setdefault("share of hard frames", []).append({"all frames": float(video.hard.mean()), **shares})
        if number % 4 == 0:  # measuring anew takes its time
            rows.setdefault("floor", []).append(floor_figures(video, number))
            beat = heart_beat(measure_frames(still(video, number)))
            rows.setdefault("nothing beats", []).append({"period found": float(beat.period is not None)})
    results = {name: summary(own) for name, own in rows.items()}
    results["times faster than real time"] = speeds(args.count, args.seed)
    for name, own in results.items():
        print(f"{name} ({len(rows[name])} runs)" if name in rows else name)
        for figure, value in own.items():
            print(f"    {figure:<36}{value:8.3f}")
    reached = {
        "contrast": results[f"contrast, {args.count} frames"]["three phases"],
        "cardiac": results["cardiac"]["period within 1 frame"],
        "diverse": min(results[name]["more variance than uniform"] for name in results if name.startswith("diverse")),
        "speed": min(results["times faster than real time"].values()),
    }
    for name, goal in GOALS.items():
        print(f"{name:<10}{reached[name]:8.3f}   goal {goal:g}{'' if reached[name] >= goal else '   NOT REACHED'}")
    write_json(args.output_dir / "frame_samplers.json", {"about": vars(args) | {"output_dir": None}, **results})


if __name__ == "__main__":
    main()
