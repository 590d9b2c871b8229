"""
One generated X-ray coronary angiography run with geometrically exact masks.

A run is one branching vessel tree, drawn as tapering tubes around smooth centre lines. Motion acts on the centre-line
points, so mask and image come from the same geometry and agree exactly. Contrast agent flows in from the root and
washes out, a catheter (dark, not in the vessels' mask), ribs, spine and diaphragm distract, and one contiguous stretch
of every run is made hard on purpose (faint contrast, motion blur, fewer photons). The generator therefore knows what a
difficulty-mining method should find.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage

from .hospitals import HOSPITALS, PLAIN, Hospital
from .structures import structure_masks
from .surroundings import catheter_line, collimator, sigmoid
from .tubes import REFERENCE_SIZE, tubes
from .vessels import NARROWED, VesselTree, main_sides, make_tree, narrowed, runs_to


# A piece of vessel belongs to the mask when the contrast agent fills more than this share of it.
VISIBLE_FILLING = 0.3
#: What a run can show: vessels alone are asked for, or several structures, some of which may be missing.
SCENES = ("plain", "named")
# Washed-out vessels keep at least this filling, so a branch that has once been filled stays in the mask.
_RESIDUAL_FILLING = 0.5
# Less of it once an injection has gone by: from nearly nothing to half.
_RESIDUAL_OF_INJECTION = (0.05, 0.5)
# Where the heart is widest, of the phase of its beat: there sin(x) + 0.3 sin(2 x) is least.
_END_DIASTOLE = -np.arccos((np.sqrt(3.88) - 1) / 2.4)
_MIN_RADIUS = 0.8  # pixels of the actual frame: thinner tubes could slip between pixel centres
# Of named scenes: how many have a catheter and a diaphragm, and how many 0, 1, 2 and 3 narrowings (or fewer, where the
# tree has no room for them).
_WITH_CATHETER, _WITH_DIAPHRAGM, _WITH_NARROWINGS = 0.7, 0.7, (0.25, 0.35, 0.25, 0.15)


@dataclass(frozen=True)
class SyntheticVideo:
    """
    One generated run and everything that is known about it.

    Args:
        frames (`np.ndarray` of shape `(T, H, W)`, uint8):
            Grey values; vessels are darker than their surroundings.
        masks (`np.ndarray` of shape `(T, H, W)`, uint8):
            1 where the pixel's centre lies inside a tube whose filling exceeds `VISIBLE_FILLING`, else 0.
        hard (`np.ndarray` of shape `(T,)`, bool):
            The frames of the hard stretch: one contiguous block, shorter than the run (none in a run of one frame).
        filling (`np.ndarray` of shape `(T,)`, float64):
            Mean filling of the whole tree in [0, 1], weighted by projected vessel area.
        contrast (`np.ndarray` of shape `(T,)`, float64):
            Log-intensity absorbed by a completely filled 5 px radius (at 256 px) in each frame; lower in hard frames.
        points (`np.ndarray` of shape `(T, P, 2)`, float64):
            Centre-line points as (x, y) in pixels, pixel centres at integers; they may lie outside the frame.
        segments (`np.ndarray` of shape `(S, 2)`, int64):
            Indices into `points`: the two ends of every tube segment.
        radii (`np.ndarray` of shape `(P,)`, float64):
            Tube radius in pixels at every point, linear along a segment.
        visible (`np.ndarray` of shape `(T, S)`, bool):
            Segments that are in the mask, frame by frame.
        part (`np.ndarray` of shape `(S,)`, int64):
            What each segment is of: [`~data.vessels.TRUNK`], `FIRST_MAIN`, `SECOND_MAIN` or `SIDE`.
        narrow (`np.ndarray` of shape `(S,)`, bool):
            Segments that have lost more than `NARROWED` of their radius at both ends.
        sides (`tuple[int, ...]`):
            The part that is the left main branch, and the right one; empty where there are none.
        runs_to (`str` or `None`):
            Side that the main vessel runs to, where it can be told: `"left"` or `"right"`.
        catheter (`np.ndarray` of shape `(T, C, 2)`, float64):
            Its centre line, as `points`; `C` is 0 where there is none.
        catheter_radius (`float`):
            In pixels.
        dome (`np.ndarray` of shape `(T, W)`, float64):
            Row below which the diaphragm is, for each column; infinite where there is none.
        opening (`np.ndarray` of shape `(H, W)`, bool):
            What no collimator hides.
        beat (`np.ndarray` of shape `(T,)`, float64):
            Phase of the heart's beat in cycles, in [0, 1): 0 at end-diastole, where the heart is widest and at rest,
            just before it contracts.
        beat_period (`float`):
            Frames of a beat.
        breath (`np.ndarray` of shape `(T, 2)`, float64):
            How far breathing has moved the heart, as (x, y) in pixels.
    """

    frames: np.ndarray
    masks: np.ndarray
    hard: np.ndarray
    filling: np.ndarray
    contrast: np.ndarray
    points: np.ndarray
    segments: np.ndarray
    radii: np.ndarray
    visible: np.ndarray
    part: np.ndarray
    narrow: np.ndarray
    sides: tuple[int, ...]
    runs_to: str | None
    catheter: np.ndarray
    catheter_radius: float
    dome: np.ndarray
    opening: np.ndarray
    beat: np.ndarray
    beat_period: float
    breath: np.ndarray

    @cached_property
    def structures(self) -> dict[str, np.ndarray]:
        """
        The mask of every structure that can be asked for, from [`~data.structures.structure_masks`]: `(T, H, W)` uint8
        by name, drawn when they are first asked for.
        """
        return structure_masks(self)


class _Motion:
    """Heart beat and breathing as a smooth warp of the plane; coordinates in units of the frame's width."""

    def __init__(self, rng: np.random.Generator):
        self.centre = rng.uniform(0.45, 0.6, 2)
        self.beat_period = rng.uniform(9, 14)  # frames
        self.beat_phase = rng.uniform(0, 2 * np.pi)
        self.squeeze = rng.uniform(0.025, 0.045)
        self.twist = rng.uniform(-0.03, 0.03)
        self.swing = rng.uniform(-0.01, 0.01, 2)
        self.breath_period = rng.uniform(40, 70)
        self.breath_phase = rng.uniform(0, 2 * np.pi)
        self.breath_depth = rng.uniform(0.01, 0.03)
        self.breath_slant = rng.uniform(-0.3, 0.3)

    def breath(self, time: float) -> np.ndarray:
        wave = np.sin(2 * np.pi * time / self.breath_period + self.breath_phase)
        return self.breath_depth * wave * np.array([self.breath_slant, 1.0])

    def beat(self, time: np.ndarray) -> np.ndarray:
        """Phase in cycles, at the heart's centre, 0 at end-diastole."""
        return (time / self.beat_period + (self.beat_phase - _END_DIASTOLE) / (2 * np.pi)) % 1

    def __call__(self, points: np.ndarray, time: float) -> np.ndarray:
        offset = points - self.centre
        # The wave runs over the heart instead of moving it as one piece.
        phase = 2 * np.pi * time / self.beat_period + self.beat_phase - 1.5 * offset[:, 1]
        beat = np.sin(phase) + 0.3 * np.sin(2 * phase)
        turned = np.stack([-offset[:, 1], offset[:, 0]], axis=1)
        moved = offset * (1 - self.squeeze * beat[:, None]) + self.twist * beat[:, None] * turned
        return self.centre + moved + self.swing * beat[:, None] + self.breath(time)


def _filling(rng: np.random.Generator, arc: np.ndarray, num_frames: int) -> np.ndarray:
    """Filling in [0, 1] of every centre-line point in every frame, shape `(T, P)`: a front in, a tail out."""
    reach = arc.max()
    time = np.linspace(0, 1, num_frames)[:, None] if num_frames > 1 else np.full((1, 1), 0.5)
    start = rng.uniform(0.45, 0.65) * reach
    front = start + (1.25 * reach - start) * time / rng.uniform(0.15, 0.28)
    tail = 1.4 * reach * (time - rng.uniform(0.65, 0.8)) / rng.uniform(0.3, 0.4)
    arrived = sigmoid((front - arc) / 0.05)
    gone = sigmoid((tail - arc) / 0.1)
    return arrived * (1 - (1 - _RESIDUAL_FILLING) * gone)


def _injection(rng: np.random.Generator, arc: np.ndarray, num_frames: int) -> np.ndarray:
    """As `_filling`, of a whole injection: nothing at first, and not much at the end."""
    reach = arc.max()
    time = np.linspace(0, 1, num_frames)[:, None] if num_frames > 1 else np.full((1, 1), 0.5)
    front = 1.3 * reach * (time - rng.uniform(0.06, 0.16)) / rng.uniform(0.12, 0.25)
    tail = 1.3 * reach * (time - rng.uniform(0.55, 0.75)) / rng.uniform(0.15, 0.3)
    arrived = sigmoid((front - arc - 0.1 * reach) / 0.03)
    gone = sigmoid((tail - arc) / 0.1)
    return arrived * (1 - (1 - rng.uniform(*_RESIDUAL_OF_INJECTION)) * gone)


def _hard_stretch(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """One contiguous block of about a quarter to two fifths of the run."""
    hard = np.zeros(num_frames, dtype=bool)
    if num_frames > 1:
        length = int(np.clip(round(rng.uniform(0.22, 0.4) * num_frames), 1, num_frames - 1))
        first = int(rng.integers(num_frames - length + 1))
        hard[first : first + length] = True
    return hard


def check_integer(name: str, value: Any, minimum: int) -> None:
    """
    Refuse what is no whole number of at least `minimum`.

    Raises:
        `ValueError`: naming it by `name`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, but is {value!r}.")


def check_hospital(hospital: Any) -> None:
    """
    Refuse what is no hospital.

    Raises:
        `ValueError`: with the hospitals there are.
    """
    if isinstance(hospital, bool) or hospital not in HOSPITALS:
        raise ValueError(f"`hospital` must be one of {', '.join(map(str, HOSPITALS))}, but is {hospital!r}.")


def generate_video(
    seed: int,
    video: int,
    num_frames: int = 16,
    size: int = 256,
    scene: str = "plain",
    hospital: int = 1,
    injection: bool = False,
) -> SyntheticVideo:
    """
    Generate one angiography run. The result depends on the arguments alone.

    The mask holds every piece of the tree whose filling exceeds `VISIBLE_FILLING` (0.3): a branch that the contrast
    front has not reached is background, and once filled it stays in the mask, since wash-out never takes the filling
    below 0.5. Inflow takes about the first fifth of the run, wash-out the last third; heart beat and breathing run in
    frames, so a longer run shows more beats.

    Args:
        seed (`int`):
            Non-negative seed of the whole collection.
        video (`int`):
            Non-negative number of the run in the collection; it alone (with `seed`) picks anatomy, motion and noise.
        num_frames (`int`, *optional*, defaults to `16`):
            Frames in the run, at least 1.
        size (`int`, *optional*, defaults to `256`):
            Width and height in pixels, at least 32. Vessel radii scale with it, with a floor of 0.8 px.
        scene (`str`, *optional*, defaults to `"plain"`):
            `"plain"` always has a catheter and at most one mild narrowing. `"named"` is another run, made to be asked
            about: some have no catheter, no diaphragm or no narrowing, others up to three narrowings, and deep ones.
        hospital (`int`, *optional*, defaults to `1`):
            Number of a hospital of [`~data.hospitals.HOSPITALS`]. The second has thinner, more tortuous vessels in a
            closer view, fainter contrast, coarser noise, brighter pictures, wires in place of ribs, and a collimator
            that hides the edges, of masks too; of named scenes alone.
        injection (`bool`, *optional*, defaults to `False`):
            Whether the run is of a whole injection: it begins before the agent has come, and at its end 5 to 50 % of
            the agent are left, so that masks grow from nothing and may shrink again. All else is as without.

    Returns:
        [`SyntheticVideo`]

    Raises:
        `ValueError`: If an argument is not an integer in its range, or no scene or hospital; the message names it.

    Example:

        ```python
        >>> from sa2va_trl.data.angiography import generate_video

        >>> video = generate_video(seed=0, video=0, num_frames=2, size=64, scene="named", hospital=2)
        >>> video.frames.shape, video.masks.shape
        ((2, 64, 64), (2, 64, 64))
        >>> [name for name, masks in video.structures.items() if not masks.any()]
        ['catheter', 'narrowing']

        ```
    """
    for name, value, minimum in (("seed", seed, 0), ("video", video, 0), ("num_frames", num_frames, 1)):
        check_integer(name, value, minimum)
    check_integer("size", size, 32)
    check_hospital(hospital)
    if scene not in SCENES:
        raise ValueError(f"`scene` must be one of {', '.join(SCENES)}, but is {scene!r}.")
    if scene == "plain" and hospital != 1:
        raise ValueError(f"`hospital` must be 1 with scene 'plain', but is {hospital}; scene 'named' has others.")
    return _film(_draw_run(seed, video, num_frames, size, scene, hospital, injection))


@dataclass(frozen=True)
class _Catheter:
    line: np.ndarray  # (C, 2) in units of the frame's width
    follows: np.ndarray  # (C,) share of the root's motion
    radius: float  # in pixels
    density: float


@dataclass(frozen=True)
class _Run:
    """What is drawn of a run before its first frame."""

    size: int
    look: Hospital
    tree: VesselTree
    radii: np.ndarray
    narrow: np.ndarray
    motion: _Motion
    filling: np.ndarray
    hard: np.ndarray
    contrast: np.ndarray
    photons: float
    shutter: float
    brightness: float
    still: np.ndarray
    catheter: _Catheter | None
    dome: np.ndarray | None  # (W,) height of its edge in units of the frame's width
    blades: np.ndarray | None  # (H, W) distance from the collimator's edge
    detector: np.random.SeedSequence


def _draw_run(
    seed: int, video: int, num_frames: int, size: int, scene: str, hospital: int, injection: bool = False
) -> _Run:
    # Independent streams: a change to the noise, say, leaves the anatomy alone. Named scenes are other runs than the
    # plain ones of the same number, so that none of them has been seen by who has seen those.
    named = scene == "named"
    look = HOSPITALS[hospital] if named else PLAIN
    streams = np.random.SeedSequence([int(seed), int(video)] + [int(hospital)] * named).spawn(8)
    detector = streams.pop(4)
    anatomy, dynamics, scenery, course, presence, lesions, blades = map(np.random.default_rng, streams)
    if named:
        zoom, thickness = presence.uniform(*look.zoom), presence.uniform(*look.thickness)
        tree = make_tree(anatomy, look.corkscrew, thickness, dented=False, zoom=zoom, within=0.43)
        tree = narrowed(tree, lesions, int(lesions.choice(len(_WITH_NARROWINGS), p=_WITH_NARROWINGS)))
    else:
        tree = make_tree(anatomy)
    motion = _Motion(dynamics)
    # A whole injection draws from a stream of its own, spawned after all others.
    whole = np.random.default_rng(course.bit_generator.seed_seq.spawn(1)[0])
    filling = _filling(course, tree.arc, num_frames)
    if injection:
        filling = _injection(whole, tree.arc, num_frames)
    hard = _hard_stretch(course, num_frames)
    still = look.background(scenery, size)
    line, follows = catheter_line(scenery, tree.points[0])
    scale = size / REFERENCE_SIZE
    catheter_radius = max(scenery.uniform(*look.catheter_radius) * scale, _MIN_RADIUS)
    catheter = _Catheter(line, follows, catheter_radius, scenery.uniform(*look.catheter_density))
    dome_height, dome_centre, dome_curve = (
        scenery.uniform(0.72, 1.1),
        scenery.uniform(0.2, 0.8),
        scenery.uniform(0.2, 0.6),
    )
    if named:
        dome_height = presence.uniform(0.7, 0.88)
    dome = dome_height + dome_curve * (np.linspace(0, 1, size, dtype=np.float32) - dome_centre) ** 2
    brightness = scenery.uniform(*look.brightness)
    base_contrast, photons = course.uniform(*look.contrast), course.uniform(*look.photons)
    faint, shutter = course.uniform(0.5, 0.65), course.uniform(0.6, 0.9)
    radii, whole = (np.maximum(values * scale, _MIN_RADIUS) for values in (tree.radii, tree.whole))
    return _Run(
        size=size,
        look=look,
        tree=tree,
        radii=radii,
        narrow=(radii < (1 - NARROWED) * whole)[tree.segments].all(axis=1),
        motion=motion,
        filling=filling,
        hard=hard,
        contrast=base_contrast * np.where(hard, faint, 1.0),
        photons=photons,
        shutter=shutter,
        brightness=brightness,
        still=still,
        catheter=None if named and presence.uniform() >= _WITH_CATHETER else catheter,
        dome=None if named and presence.uniform() >= _WITH_DIAPHRAGM else dome,
        blades=collimator(blades, size) if look.collimated else None,
        detector=detector,
    )


def _film(run: _Run) -> SyntheticVideo:
    """The frames of a run, and what is known of them."""
    size, look, tree, motion, hard, radii = run.size, run.look, run.tree, run.motion, run.hard, run.radii
    num_frames = len(hard)
    detector = np.random.default_rng(run.detector)

    def place(points, time):
        return motion(points, time) * size - 0.5

    frames = np.empty((num_frames, size, size), dtype=np.uint8)
    masks = np.empty_like(frames)
    points = np.stack([place(tree.points, time) for time in range(num_frames)])
    visible = run.filling[:, tree.segments].mean(axis=2) > VISIBLE_FILLING
    dome = np.full((num_frames, size), np.inf)
    catheter = np.empty((num_frames, 0 if run.catheter is None else len(run.catheter.line), 2))
    for index in range(num_frames):
        weight = run.filling[index] * tree.fade
        tube = (radii, tree.segments, size, weight, tree.generation, visible[index])
        masks[index], vessels = tubes(points[index], *tube)
        if hard[index]:
            # A hard frame is exposed for most of the frame time, an easy one for an instant. The mask is mid-exposure.
            for shift in (-0.5 * run.shutter, 0.5 * run.shutter, -0.25 * run.shutter, 0.25 * run.shutter):
                vessels = vessels + tubes(place(tree.points, index + shift), *tube)[1]
            vessels = vessels / 5

        breath = motion.breath(index)
        moved = ndimage.shift(run.still, 0.5 * breath[::-1] * size, order=1, mode="nearest")
        attenuation = moved
        if run.dome is not None:
            column = np.linspace(0, 1, size, dtype=np.float32)
            attenuation = moved + look.dome_density * sigmoid(
                (column[:, None] - run.dome - 1.5 * breath[1]) / look.dome_edge
            )
            dome[index] = (run.dome + 1.5 * breath[1]) * (size - 1)
        attenuation = attenuation + run.contrast[index] * vessels
        if run.catheter is not None:
            tip_shift = motion(tree.points[:1], index) - tree.points[:1]
            line = (run.catheter.line + run.catheter.follows[:, None] * tip_shift) * size - 0.5
            ends = np.stack([np.arange(len(line) - 1), np.arange(1, len(line))], axis=1)
            _, device = tubes(line, np.full(len(line), run.catheter.radius), ends, size)
            attenuation = attenuation + run.catheter.density * device
            catheter[index] = line
        frames[index] = _expose(run, attenuation, bool(hard[index]), detector)

    opening = np.ones((size, size), dtype=bool) if run.blades is None else run.blades > 0
    return SyntheticVideo(
        frames=frames,
        masks=masks if run.blades is None else masks * opening,
        hard=hard,
        filling=(run.filling * radii).sum(axis=1) / radii.sum(),
        contrast=run.contrast,
        points=points,
        segments=tree.segments,
        radii=radii,
        visible=visible,
        part=tree.part,
        narrow=run.narrow,
        sides=main_sides(tree),
        runs_to=runs_to(tree),
        catheter=catheter,
        catheter_radius=0.0 if run.catheter is None else run.catheter.radius,
        dome=dome,
        opening=opening,
        beat=motion.beat(np.arange(num_frames)),
        beat_period=float(motion.beat_period),
        breath=np.stack([motion.breath(time) * size for time in range(num_frames)]),
    )


def _expose(run: _Run, attenuation: np.ndarray, hard: bool, detector: np.random.Generator) -> np.ndarray:
    """Grey values (H, W), uint8, of what a detector sees behind an attenuation."""
    look, size = run.look, run.size
    signal = np.exp(-attenuation.astype(np.float32))
    signal = ndimage.gaussian_filter(signal, look.blur[hard] * max(size / REFERENCE_SIZE, 0.5))
    if run.blades is not None:
        # Little gets through the blades, and some is scattered behind them.
        signal = signal * (0.06 + 0.94 * sigmoid(run.blades.astype(np.float32) / 0.0025))
    # Photon noise: Poisson in its Gaussian limit, spread a little by the detector.
    dose = run.photons * (0.65 if hard else 1.0)
    noise = ndimage.gaussian_filter(detector.standard_normal((size, size), dtype=np.float32), look.grain)
    seen = signal + np.sqrt(signal / dose) * noise * look.noise
    if look.sharpening:
        seen = seen + look.sharpening * (seen - ndimage.gaussian_filter(seen, 2.5 * size / REFERENCE_SIZE))
    if look.gamma != 1:
        seen = np.maximum(seen, 0) ** look.gamma
    return np.clip(np.rint(run.brightness * seen), 0, 255)
