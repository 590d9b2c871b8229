"""
One generated X-ray coronary angiography run with geometrically exact vessel masks.

A run is one branching vessel tree, drawn as tapering tubes around smooth centre lines. Motion acts on the centre-line
points, so mask and image come from the same geometry and agree exactly. Contrast agent flows in from the root and
washes out, a catheter (dark, not in the mask), ribs, spine and diaphragm distract, and one contiguous stretch of every
run is made hard on purpose (faint contrast, motion blur, fewer photons). The generator therefore knows what a
difficulty-mining method should find.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import interpolate, ndimage


# A piece of vessel belongs to the mask when the contrast agent fills more than this share of it.
VISIBLE_FILLING = 0.3
# Washed-out vessels keep at least this filling, so a branch that has once been filled stays in the mask.
_RESIDUAL_FILLING = 0.5
_REFERENCE_SIZE = 256  # radii below are in pixels of a frame this wide
_MIN_RADIUS = 0.8  # pixels of the actual frame: thinner tubes could slip between pixel centres
_STEP = 1 / 64  # length of a centre-line segment, as a fraction of the frame
_GENERATIONS = 4  # trunk, main vessels, side branches, twigs
_REFERENCE_RADIUS = 5.0  # a filled tube of this radius absorbs `contrast`, in log intensity


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


@dataclass(frozen=True)
class _Tree:
    """Centre lines in units of the frame's width; radii in pixels of a 256 px frame."""

    points: np.ndarray  # (P, 2)
    radii: np.ndarray  # (P,)
    arc: np.ndarray  # (P,) way from the root along the vessels
    fade: np.ndarray  # (P,) 0 inside the parent's lumen, so that a junction is not counted twice
    segments: np.ndarray  # (S, 2)
    generation: np.ndarray  # (S,)


class _TreeBuilder:
    """Grows branches from points of earlier ones."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.branches = []

    def grow(self, start, heading, length, bend, radii, generation, arc=0.0, parent_radius=0.0):
        """Add a smooth branch that turns by `bend` radians along its length, and return it (None if too short)."""
        rng = self.rng
        count = max(int(round(length / _STEP)), 2)
        u = np.linspace(0, 1, count + 1)
        wiggle = sum(
            amplitude * np.sin(2 * np.pi * (frequency * u + rng.uniform()))
            for amplitude, frequency in ((rng.uniform(0.12, 0.32), 0.8), (rng.uniform(0.06, 0.2), 2.1))
        )
        headings = heading + bend * u + (wiggle - wiggle[0])
        steps = _STEP * np.stack([np.cos(headings[:-1]), np.sin(headings[:-1])], axis=1)
        points = np.concatenate([[start], start + np.cumsum(steps, axis=0)])
        # A branch ends where it leaves the picture.
        outside = np.flatnonzero((np.abs(points - 0.5) > 0.53).any(axis=1))
        stop = outside[0] + 1 if outside.size else len(points)
        if stop < 4:
            return None
        way = u * length
        parent = parent_radius / _REFERENCE_SIZE
        branch = {
            "points": points[:stop],
            "headings": headings[:stop],
            "radii": (radii[0] + (radii[1] - radii[0]) * u**0.8)[:stop],
            "arc": (arc + way)[:stop],
            "fade": (np.clip((way - 0.5 * parent) / parent, 0, 1) if parent else np.ones_like(way))[:stop],
            "generation": generation,
        }
        self.branches.append(branch)
        return branch

    def sprout(self, parent, count, length_range, first=0.15, last=0.9, sides=(-1, 1)):
        """Add side branches, alternating between `sides`, and return those that fit into the picture."""
        rng = self.rng
        children = []
        side = rng.integers(len(sides))
        slots = np.linspace(first, last, count + 1)
        for low, high in itertools.pairwise(slots):
            at = int(rng.uniform(low, high) * (len(parent["points"]) - 1))
            sign = sides[side % len(sides)]
            side += 1
            radius = parent["radii"][at]
            start = min(radius * rng.uniform(0.66, 0.82), 3.6)
            length = rng.uniform(*length_range) * (1 - 0.35 * at / len(parent["points"]))
            child = self.grow(
                parent["points"][at],
                parent["headings"][at] + sign * rng.uniform(0.6, 1.1),
                length,
                -sign * rng.uniform(-0.1, 0.7),
                (max(start, 1.8), max(0.66 * start, 1.4)),
                min(parent["generation"] + 1, _GENERATIONS - 1),
                parent["arc"][at],
                radius,
            )
            if child is not None:
                children.append(child)
        return children

    def build(self):
        offsets = np.cumsum([0] + [len(branch["points"]) for branch in self.branches])
        segments, generation = [], []
        for offset, branch in zip(offsets[:-1], self.branches, strict=True):
            first = offset + np.arange(len(branch["points"]) - 1)
            segments.append(np.stack([first, first + 1], axis=1))
            generation.append(np.full(len(first), branch["generation"]))
        joined = {
            key: np.concatenate([branch[key] for branch in self.branches])
            for key in ("points", "radii", "arc", "fade")
        }
        return _Tree(**joined, segments=np.concatenate(segments), generation=np.concatenate(generation))


def _narrow(rng, branch):
    """Put a stenosis on a branch: a short stretch that loses up to half of its radius."""
    position = np.linspace(0, 1, len(branch["radii"]))
    dent = np.exp(-0.5 * ((position - rng.uniform(0.2, 0.7)) / 0.035) ** 2)
    branch["radii"] = branch["radii"] * (1 - rng.uniform(0.25, 0.5) * dent)


def _draw_tree(rng: np.random.Generator) -> _Tree:
    """A left (trunk, two main vessels) or a right (one C-shaped vessel that forks) coronary tree, in a random view."""
    builder = _TreeBuilder(rng)
    radius = rng.uniform(4.8, 6.0)
    if rng.uniform() < 0.6:
        root = np.array([rng.uniform(0.20, 0.32), rng.uniform(0.16, 0.27)])
        heading = rng.uniform(0.05, 0.55)
        trunk = builder.grow(root, heading, rng.uniform(0.07, 0.12), 0.1, (radius, 0.95 * radius), 0)
        end, angle, arc = trunk["points"][-1], trunk["headings"][-1], trunk["arc"][-1]
        mains = []
        for turn, bend, length in (
            (rng.uniform(-0.45, -0.2), rng.uniform(0.8, 1.4), rng.uniform(0.70, 0.88)),
            (rng.uniform(0.5, 0.9), rng.uniform(-0.1, 0.6), rng.uniform(0.50, 0.66)),
        ):
            start = radius * rng.uniform(0.7, 0.85)
            branch = builder.grow(end, angle + turn, length, bend, (start, 0.5 * start), 1, arc, radius)
            mains.append(branch)
        side_branches = builder.sprout(mains[0], rng.integers(4, 6), (0.22, 0.38))
        side_branches += builder.sprout(mains[1], rng.integers(2, 4), (0.18, 0.30))
    else:
        root = np.array([rng.uniform(0.30, 0.42), rng.uniform(0.15, 0.25)])
        heading = rng.uniform(2.4, 2.9)
        length = rng.uniform(0.80, 0.95)
        main = builder.grow(root, heading, length, -rng.uniform(2.3, 2.8), (radius, 0.6 * radius), 0)
        mains = [main]
        end, angle, arc = main["points"][-1], main["headings"][-1], main["arc"][-1]
        for turn in (rng.uniform(-0.55, -0.25), rng.uniform(0.2, 0.5)):
            start = main["radii"][-1] * 0.85
            branch = builder.grow(
                end, angle + turn, rng.uniform(0.25, 0.4), -turn, (start, 0.55 * start), 1, arc, main["radii"][-1]
            )
            if branch is not None:
                mains.append(branch)
        side_branches = builder.sprout(main, rng.integers(4, 6), (0.20, 0.36), first=0.1, last=0.85, sides=(-1, -1, 1))
        for branch in mains[1:]:
            side_branches += builder.sprout(branch, 1, (0.12, 0.2), first=0.3)
    for branch in side_branches:
        builder.sprout(branch, rng.integers(1, 3), (0.10, 0.19), first=0.3, last=0.8)
    if rng.uniform() < 0.5:
        _narrow(rng, mains[rng.integers(len(mains))])

    tree = builder.build()
    points = tree.points - 0.5
    angle = rng.uniform(-0.25, 0.25)
    points = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    if rng.uniform() < 0.5:
        points[:, 0] *= -1
    points = points * rng.uniform(0.92, 1.02) + 0.5
    return _Tree(points, tree.radii, tree.arc, tree.fade, tree.segments, tree.generation)


def _make_tree(rng: np.random.Generator) -> _Tree:
    """Of three drawn trees the one that shows most of itself: a view that cuts off the tree would not be recorded."""
    trees = [_draw_tree(rng) for _ in range(3)]
    shown = [tree.radii[(np.abs(tree.points - 0.5) < 0.47).all(axis=1)].sum() for tree in trees]
    return trees[int(np.argmax(shown))]


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

    def __call__(self, points: np.ndarray, time: float) -> np.ndarray:
        offset = points - self.centre
        # The wave runs over the heart instead of moving it as one piece.
        phase = 2 * np.pi * time / self.beat_period + self.beat_phase - 1.5 * offset[:, 1]
        beat = np.sin(phase) + 0.3 * np.sin(2 * phase)
        turned = np.stack([-offset[:, 1], offset[:, 0]], axis=1)
        moved = offset * (1 - self.squeeze * beat[:, None]) + self.twist * beat[:, None] * turned
        return self.centre + moved + self.swing * beat[:, None] + self.breath(time)


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _filling(rng: np.random.Generator, arc: np.ndarray, num_frames: int) -> np.ndarray:
    """Filling in [0, 1] of every centre-line point in every frame, shape `(T, P)`: a front in, a tail out."""
    reach = arc.max()
    time = np.linspace(0, 1, num_frames)[:, None] if num_frames > 1 else np.full((1, 1), 0.5)
    start = rng.uniform(0.45, 0.65) * reach
    front = start + (1.25 * reach - start) * time / rng.uniform(0.15, 0.28)
    tail = 1.4 * reach * (time - rng.uniform(0.65, 0.8)) / rng.uniform(0.3, 0.4)
    arrived = _sigmoid((front - arc) / 0.05)
    gone = _sigmoid((tail - arc) / 0.1)
    return arrived * (1 - (1 - _RESIDUAL_FILLING) * gone)


def _hard_stretch(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """One contiguous block of about a quarter to two fifths of the run."""
    hard = np.zeros(num_frames, dtype=bool)
    if num_frames > 1:
        length = int(np.clip(round(rng.uniform(0.22, 0.4) * num_frames), 1, num_frames - 1))
        first = int(rng.integers(num_frames - length + 1))
        hard[first : first + length] = True
    return hard


def _along(values, segments, u):
    """Values at `u` in [0, 1] of the way between the two ends of each segment, shape `(S, h, w)` like `u`."""
    first, last = values[segments].astype(np.float32).T
    return first[:, None, None] + u * (last - first)[:, None, None]


def _tubes(points, radii, segments, size, weight=None, layer=None, solid=None):
    """
    Rasterise tapering tubes, each segment in its own small window.

    Args:
        points (`np.ndarray` of shape `(P, 2)`): (x, y) in pixels.
        radii (`np.ndarray` of shape `(P,)`): in pixels.
        segments (`np.ndarray` of shape `(S, 2)`): indices of the two ends.
        size (`int`): width and height of the picture.
        weight (`np.ndarray` of shape `(P,)`, *optional*): factor on the absorption, linear along a segment.
        layer (`np.ndarray` of shape `(S,)`, *optional*): tubes in one layer merge, those of different layers add up.
        solid (`np.ndarray` of shape `(S,)`, bool, *optional*): segments that count for `inside`; all by default.

    Returns:
        `tuple`: `inside` (H, W) bool, whether the pixel's centre lies in a `solid` segment, and `absorption` (H, W)
        float32 relative to a tube of the reference radius.
    """
    scale = size / _REFERENCE_SIZE
    weight = np.ones(len(points)) if weight is None else weight
    layer = np.zeros(len(segments), dtype=np.int64) if layer is None else layer
    num_layers = int(layer.max(initial=0)) + 1
    a, b = points[segments[:, 0]], points[segments[:, 1]]
    reach = np.maximum(radii[segments[:, 0]], radii[segments[:, 1]]) + 0.5 * np.abs(b - a).max(axis=1) + 1
    pad = int(np.ceil(2 * reach.max())) + 2
    width = size + 2 * pad
    inside = np.zeros(width * width, dtype=bool)
    absorption = np.zeros(num_layers * width * width, dtype=np.float32)
    in_picture = ((np.minimum(a, b) < size + reach[:, None]) & (np.maximum(a, b) > -1 - reach[:, None])).all(axis=1)

    # Thin and thick segments get windows of different sizes: most of the tree is thin.
    cut = np.median(reach)
    for chosen in (in_picture & (reach <= cut), in_picture & (reach > cut)):
        index = np.flatnonzero(chosen)
        if not index.size:
            continue
        half = int(np.ceil(reach[index].max()))
        side = np.arange(2 * half + 1)
        start, end = a[index].astype(np.float32), b[index].astype(np.float32)
        corner = np.rint(0.5 * (start + end)).astype(np.int64) - half
        corner = np.clip(corner, -pad, size + pad - len(side))
        x = (corner[:, 0, None] + side)[:, None, :]
        y = (corner[:, 1, None] + side)[:, :, None]
        direction = end - start
        squared = np.maximum((direction**2).sum(axis=1), 1e-6)
        direction_x, direction_y = (direction / squared[:, None]).T[:, :, None, None]
        px = x.astype(np.float32) - start[:, 0, None, None]
        py = y.astype(np.float32) - start[:, 1, None, None]
        u = np.clip(px * direction_x + py * direction_y, 0, 1)
        distance = (px - u * direction[:, 0, None, None]) ** 2 + (py - u * direction[:, 1, None, None]) ** 2

        chord = _along(radii, segments[index], u) ** 2 - distance
        hit = chord > 0
        pixel = ((y + pad) * width + (x + pad))[hit]
        inside[pixel if solid is None else pixel[np.broadcast_to(solid[index][:, None, None], hit.shape)[hit]]] = True
        # Beer-Lambert would be linear in the chord; the exponent stands for the display curve of an X-ray system,
        # which lifts small vessels.
        value = _along(weight, segments[index], u)[hit] * (np.sqrt(chord[hit]) / (_REFERENCE_RADIUS * scale)) ** 0.7
        lane = np.broadcast_to(layer[index][:, None, None], hit.shape)[hit]
        np.maximum.at(absorption, lane * width * width + pixel, value)
    crop = slice(pad, pad + size)
    inside = inside.reshape(width, width)[crop, crop]
    return inside, absorption.reshape(num_layers, width, width).sum(axis=0)[crop, crop]


def _smooth_noise(rng, size, cells):
    """Noise of unit variance whose features are about `size / cells` pixels wide."""
    knots, grid = np.arange(cells + 3), np.linspace(1, cells + 1, size)
    rows = interpolate.CubicSpline(knots, rng.standard_normal((len(knots), len(knots))))(grid)
    field = interpolate.CubicSpline(knots, rows, axis=1)(grid)
    return (field - field.mean()) / (field.std() + 1e-6)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Log attenuation of everything that does not move with the heart: soft tissue, spine, ribs."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    tilt = rng.uniform(-0.25, 0.25, 2)
    field = tilt[0] * (x - 0.5) + tilt[1] * (y - 0.5)
    for cells, amplitude in ((2, 0.14), (5, 0.07), (14, 0.03), (40, 0.018)):
        field += amplitude * _smooth_noise(rng, size, cells)
    # Heart shadow: a soft dark ellipse.
    centre = rng.uniform(0.4, 0.6, 2)
    field += 0.12 * _sigmoid((0.38 - np.hypot((x - centre[0]) * 0.9, y - centre[1])) / 0.06)
    # Spine: a dark band, vertebra by vertebra.
    spine = rng.uniform(-0.05, 1.05) + rng.uniform(-0.15, 0.15) * (y - 0.5)
    vertebrae = 0.75 + 0.25 * np.cos(2 * np.pi * (y * rng.uniform(4, 5.5) + rng.uniform()))
    field += rng.uniform(0.08, 0.16) * vertebrae * _sigmoid((0.09 - np.abs(x - spine)) / 0.015)
    # Ribs: curved bands with denser rims.
    slope, curve = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)
    spacing, phase = rng.uniform(0.22, 0.3), rng.uniform()
    level = (y - slope * (x - 0.5) - curve * (x - 0.5) ** 2) / spacing + phase
    to_rib = np.abs(level - np.floor(level) - 0.5) * spacing
    half = rng.uniform(0.028, 0.042)
    rim = np.exp(-0.5 * ((to_rib - half) / 0.006) ** 2)
    field += rng.uniform(0.05, 0.10) * (_sigmoid((half - to_rib) / 0.006) + 0.5 * rim)
    return field.astype(np.float32)


def _catheter(rng: np.random.Generator, root: np.ndarray):
    """Centre line (C, 2) from the picture's edge to the root, and the share (C,) it takes of the root's motion."""
    entry = np.array([np.clip(root[0] + rng.uniform(-0.25, 0.25), 0.05, 0.95), -0.06])
    sag = root + np.array([rng.uniform(-0.14, 0.14), -rng.uniform(0.02, 0.10)])
    u = np.linspace(0, 1, 24)[:, None]
    line = (1 - u) ** 3 * entry + 3 * (1 - u) ** 2 * u * (entry + [0, 0.12]) + 3 * (1 - u) * u**2 * sag + u**3 * root
    return line, u[:, 0] ** 1.5


def check_integer(name: str, value: Any, minimum: int) -> None:
    """
    Refuse what is no whole number of at least `minimum`.

    Raises:
        `ValueError`: naming it by `name`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, but is {value!r}.")


def generate_video(seed: int, video: int, num_frames: int = 16, size: int = 256) -> SyntheticVideo:
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

    Returns:
        [`SyntheticVideo`]

    Raises:
        `ValueError`: If an argument is not an integer in its range; the message names it.
    """
    for name, value, minimum in (("seed", seed, 0), ("video", video, 0), ("num_frames", num_frames, 1)):
        check_integer(name, value, minimum)
    check_integer("size", size, 32)

    # Independent streams: a change to the noise, say, leaves the anatomy alone.
    streams = np.random.SeedSequence([int(seed), int(video)]).spawn(5)
    anatomy, dynamics, scene, course, detector = (np.random.default_rng(stream) for stream in streams)
    tree = _make_tree(anatomy)
    motion = _Motion(dynamics)
    filling = _filling(course, tree.arc, num_frames)
    hard = _hard_stretch(course, num_frames)
    still = _background(scene, size)
    catheter, follows = _catheter(scene, tree.points[0])
    scale = size / _REFERENCE_SIZE
    radii = np.maximum(tree.radii * scale, _MIN_RADIUS)
    catheter_radii = np.full(len(catheter), max(scene.uniform(1.8, 2.4) * scale, _MIN_RADIUS))
    catheter_segments = np.stack([np.arange(len(catheter) - 1), np.arange(1, len(catheter))], axis=1)
    catheter_density = scene.uniform(0.28, 0.45)
    dome_height, dome_centre, dome_curve = scene.uniform(0.72, 1.1), scene.uniform(0.2, 0.8), scene.uniform(0.2, 0.6)
    brightness = scene.uniform(125, 165)
    base_contrast, photons = course.uniform(0.42, 0.56), course.uniform(260, 380)
    faint, shutter = course.uniform(0.5, 0.65), course.uniform(0.6, 0.9)
    contrast = base_contrast * np.where(hard, faint, 1.0)
    column = np.linspace(0, 1, size, dtype=np.float32)
    dome = dome_height + dome_curve * (column - dome_centre) ** 2

    def place(points, time):
        return motion(points, time) * size - 0.5

    frames = np.empty((num_frames, size, size), dtype=np.uint8)
    masks = np.empty_like(frames)
    points = np.stack([place(tree.points, time) for time in range(num_frames)])
    visible = filling[:, tree.segments].mean(axis=2) > VISIBLE_FILLING
    for index in range(num_frames):
        weight = filling[index] * tree.fade
        tubes = (radii, tree.segments, size, weight, tree.generation, visible[index])
        masks[index], vessels = _tubes(points[index], *tubes)
        if hard[index]:
            # A hard frame is exposed for most of the frame time, an easy one for an instant. The mask is mid-exposure.
            for shift in (-0.5 * shutter, 0.5 * shutter, -0.25 * shutter, 0.25 * shutter):
                vessels = vessels + _tubes(place(tree.points, index + shift), *tubes)[1]
            vessels = vessels / 5
        tip_shift = motion(tree.points[:1], index) - tree.points[:1]
        tube = (catheter + follows[:, None] * tip_shift) * size - 0.5
        _, device = _tubes(tube, catheter_radii, catheter_segments, size)

        breath = motion.breath(index)
        moved = ndimage.shift(still, 0.5 * breath[::-1] * size, order=1, mode="nearest")
        diaphragm = 0.3 * _sigmoid((column[:, None] - dome - 1.5 * breath[1]) / 0.012)
        attenuation = moved + diaphragm + contrast[index] * vessels + catheter_density * device
        signal = np.exp(-attenuation.astype(np.float32))
        signal = ndimage.gaussian_filter(signal, (1.2 if hard[index] else 0.8) * max(scale, 0.5))
        # Photon noise: Poisson in its Gaussian limit, spread a little by the detector.
        dose = photons * (0.65 if hard[index] else 1.0)
        noise = ndimage.gaussian_filter(detector.standard_normal((size, size), dtype=np.float32), 0.5)
        grey = brightness * (signal + np.sqrt(signal / dose) * noise * 1.6)
        frames[index] = np.clip(np.rint(grey), 0, 255)

    return SyntheticVideo(
        frames=frames,
        masks=masks,
        hard=hard,
        filling=(filling * radii).sum(axis=1) / radii.sum(),
        contrast=contrast,
        points=points,
        segments=tree.segments,
        radii=radii,
        visible=visible,
    )
