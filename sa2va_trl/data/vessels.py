"""Coronary trees that are drawn at random: centre lines, radii, what each stretch is, and narrowings."""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from .tubes import REFERENCE_SIZE


#: What a segment of a tree is part of. A tree that has one main vessel, which is its trunk, has no first and second.
TRUNK, FIRST_MAIN, SECOND_MAIN, SIDE = range(4)
#: A vessel counts as narrowed where it has lost more than this share of its radius.
NARROWED = 0.25
_STEP = 1 / 64  # length of a centre-line segment, as a fraction of the frame
_GENERATIONS = 4  # trunk, main vessels, side branches, twigs


@dataclass(frozen=True)
class VesselTree:
    """
    Centre lines in units of the frame's width; radii in pixels of a 256 px frame.

    Args:
        points (`np.ndarray` of shape `(P, 2)`): (x, y), the root first.
        radii (`np.ndarray` of shape `(P,)`): as they are.
        whole (`np.ndarray` of shape `(P,)`): as they would be without narrowings.
        arc (`np.ndarray` of shape `(P,)`): way from the root along the vessels.
        fade (`np.ndarray` of shape `(P,)`): 0 inside the parent's lumen, so that a junction is not counted twice.
        branch (`np.ndarray` of shape `(P,)`): number of the branch that a point is of; its points are consecutive.
        segments (`np.ndarray` of shape `(S, 2)`): indices of the two ends.
        generation (`np.ndarray` of shape `(S,)`): 0 for what begins at the root.
        part (`np.ndarray` of shape `(S,)`): `TRUNK`, `FIRST_MAIN`, `SECOND_MAIN` or `SIDE`.
    """

    points: np.ndarray
    radii: np.ndarray
    whole: np.ndarray
    arc: np.ndarray
    fade: np.ndarray
    branch: np.ndarray
    segments: np.ndarray
    generation: np.ndarray
    part: np.ndarray


class _TreeBuilder:
    """
    Grows branches from points of earlier ones; `corkscrew` is the amplitude of their fine turns, in radians, and
    `thickness` the share of their radii that will be left of them.
    """

    def __init__(self, rng: np.random.Generator, corkscrew: float = 0.0, thickness: float = 1.0):
        self.rng = rng
        self.corkscrew = corkscrew
        self.thickness = thickness
        self.branches = []

    def grow(self, start, heading, length, bend, radii, generation, arc=0.0, parent_radius=0.0, part=SIDE):
        """Add a smooth branch that turns by `bend` radians along its length, and return it (None if too short)."""
        rng = self.rng
        count = max(int(round(length / _STEP)), 2)
        u = np.linspace(0, 1, count + 1)
        wiggle = sum(
            amplitude * np.sin(2 * np.pi * (frequency * u + rng.uniform()))
            for amplitude, frequency in ((rng.uniform(0.12, 0.32), 0.8), (rng.uniform(0.06, 0.2), 2.1))
        )
        if self.corkscrew:
            turns = length / rng.uniform(0.12, 0.2)
            wiggle = wiggle + self.corkscrew * rng.uniform(0.3, 1.0) * np.sin(2 * np.pi * (turns * u + rng.uniform()))
        headings = heading + bend * u + (wiggle - wiggle[0])
        steps = _STEP * np.stack([np.cos(headings[:-1]), np.sin(headings[:-1])], axis=1)
        points = np.concatenate([[start], start + np.cumsum(steps, axis=0)])
        # A branch ends where it leaves the picture.
        outside = np.flatnonzero((np.abs(points - 0.5) > 0.53).any(axis=1))
        stop = outside[0] + 1 if outside.size else len(points)
        if stop < 4:
            return None
        way = u * length
        parent = parent_radius * self.thickness / REFERENCE_SIZE
        radii = (radii[0] + (radii[1] - radii[0]) * u**0.8)[:stop]
        branch = {
            "points": points[:stop],
            "headings": headings[:stop],
            "radii": radii,
            "whole": radii,
            "arc": (arc + way)[:stop],
            "fade": (np.clip((way - 0.5 * parent) / parent, 0, 1) if parent else np.ones_like(way))[:stop],
            "generation": generation,
            "part": part,
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
        lengths = [len(branch["points"]) for branch in self.branches]
        offsets = np.cumsum([0] + lengths)
        segments = []
        for offset, length in zip(offsets[:-1], lengths, strict=True):
            first = offset + np.arange(length - 1)
            segments.append(np.stack([first, first + 1], axis=1))
        joined = {
            key: np.concatenate([branch[key] for branch in self.branches])
            for key in ("points", "radii", "whole", "arc", "fade")
        }
        of_segments = {
            key: np.concatenate(
                [np.full(n - 1, branch[key]) for n, branch in zip(lengths, self.branches, strict=True)]
            )
            for key in ("generation", "part")
        }
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        return VesselTree(**joined, branch=numbers, segments=np.concatenate(segments), **of_segments)


def _narrow(rng, branch):
    """Put a stenosis on a branch: a short stretch that loses up to half of its radius."""
    position = np.linspace(0, 1, len(branch["radii"]))
    dent = np.exp(-0.5 * ((position - rng.uniform(0.2, 0.7)) / 0.035) ** 2)
    branch["radii"] = branch["radii"] * (1 - rng.uniform(0.25, 0.5) * dent)


def _draw_tree(rng: np.random.Generator, corkscrew: float, thickness: float, dented: bool) -> VesselTree:
    """A left (trunk, two main vessels) or a right (one C-shaped vessel that forks) coronary tree, in a random view."""
    builder = _TreeBuilder(rng, corkscrew, thickness)
    radius = rng.uniform(4.8, 6.0)
    if rng.uniform() < 0.6:
        root = np.array([rng.uniform(0.20, 0.32), rng.uniform(0.16, 0.27)])
        heading = rng.uniform(0.05, 0.55)
        trunk = builder.grow(root, heading, rng.uniform(0.07, 0.12), 0.1, (radius, 0.95 * radius), 0, part=TRUNK)
        end, angle, arc = trunk["points"][-1], trunk["headings"][-1], trunk["arc"][-1]
        mains = []
        for part, turn, bend, length in (
            (FIRST_MAIN, rng.uniform(-0.45, -0.2), rng.uniform(0.8, 1.4), rng.uniform(0.70, 0.88)),
            (SECOND_MAIN, rng.uniform(0.5, 0.9), rng.uniform(-0.1, 0.6), rng.uniform(0.50, 0.66)),
        ):
            start = radius * rng.uniform(0.7, 0.85)
            branch = builder.grow(end, angle + turn, length, bend, (start, 0.5 * start), 1, arc, radius, part)
            mains.append(branch)
        side_branches = builder.sprout(mains[0], rng.integers(4, 6), (0.22, 0.38))
        side_branches += builder.sprout(mains[1], rng.integers(2, 4), (0.18, 0.30))
    else:
        root = np.array([rng.uniform(0.30, 0.42), rng.uniform(0.15, 0.25)])
        heading = rng.uniform(2.4, 2.9)
        length = rng.uniform(0.80, 0.95)
        bend = -rng.uniform(2.3, 2.8)
        main = builder.grow(root, heading, length, bend, (radius, 0.6 * radius), 0, part=TRUNK)
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
    if dented and rng.uniform() < 0.5:
        _narrow(rng, mains[rng.integers(len(mains))])

    tree = builder.build()
    points = tree.points - 0.5
    angle = rng.uniform(-0.25, 0.25)
    points = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    if rng.uniform() < 0.5:
        points[:, 0] *= -1
    points = points * rng.uniform(0.92, 1.02) + 0.5
    return replace(tree, points=points, radii=tree.radii * thickness, whole=tree.whole * thickness)


def make_tree(
    rng: np.random.Generator,
    corkscrew: float = 0.0,
    thickness: float = 1.0,
    dented: bool = True,
    zoom: float = 1.0,
    within: float = 0.47,
) -> VesselTree:
    """
    Of three drawn trees the one that shows most of itself: a view that cuts off the tree would not be recorded.

    Args:
        rng (`np.random.Generator`): source of every random number.
        corkscrew (`float`, *optional*, defaults to 0.0): largest amplitude of fine turns, in radians.
        thickness (`float`, *optional*, defaults to 1.0): factor on the radii alone.
        dented (`bool`, *optional*, defaults to `True`): whether every second tree has a mild narrowing.
        zoom (`float`, *optional*, defaults to 1.0): factor on everything, about the middle of the picture.
        within (`float`, *optional*, defaults to 0.47): how far from its middle the picture shows something.

    Returns:
        [`VesselTree`]
    """
    trees = [_zoomed(_draw_tree(rng, corkscrew, thickness, dented), zoom) for _ in range(3)]
    shown = [tree.radii[(np.abs(tree.points - 0.5) < within).all(axis=1)].sum() for tree in trees]
    return trees[int(np.argmax(shown))]


def _zoomed(tree: VesselTree, zoom: float) -> VesselTree:
    if zoom == 1:
        return tree
    points = (tree.points - 0.5) * zoom + 0.5
    return replace(tree, points=points, radii=tree.radii * zoom, whole=tree.whole * zoom, arc=tree.arc * zoom)


def narrowed(tree: VesselTree, rng: np.random.Generator, count: int, thickest: float = 2.4) -> VesselTree:
    """
    A tree with narrowings, each a stretch that loses half to three quarters of its radius. They lie where nothing
    joins or crosses, so that they can be seen, and well inside the picture; where there is no such place (left), there
    are fewer.

    Args:
        tree (`VesselTree`): without narrowings.
        rng (`np.random.Generator`): source of every random number.
        count (`int`): how many.
        thickest (`float`, *optional*, defaults to 2.4): least radius of a vessel that gets one, at 256 px.

    Returns:
        [`VesselTree`]
    """
    free, radii = _clear(tree) & (tree.whole >= thickest), tree.radii.copy()
    for _ in range(count):
        places = np.flatnonzero(free)
        depth, width = rng.uniform(0.5, 0.75), rng.uniform(0.03, 0.045)
        if not places.size:
            break
        place = rng.choice(places)
        own = tree.branch == tree.branch[place]
        way = (tree.arc - tree.arc[place]) / width
        # Flatter at its middle and steeper at its ends than a bell.
        radii = np.where(own, radii * (1 - depth * np.exp(-0.5 * way**4)), radii)
        free &= ~(own & (np.abs(tree.arc - tree.arc[place]) < 0.16))
    return replace(tree, radii=radii)


def main_sides(tree: VesselTree) -> tuple[int, ...]:
    """
    Which of the two main vessels lies further left in the picture, and which further right.

    Args:
        tree (`VesselTree`): as it is shown.

    Returns:
        `tuple[int, ...]`: `FIRST_MAIN` and `SECOND_MAIN`, the left one first; empty where there is one main vessel, or
        the middles of the two (of what the picture shows of them) are not clearly side by side: less than 10 % of the
        width apart, or less than half as far as they are one above the other.
    """
    middles = {part: _middle(tree, (part,)) for part in (FIRST_MAIN, SECOND_MAIN)}
    if any(middle is None for middle in middles.values()):
        return ()
    across, down = np.abs(middles[FIRST_MAIN] - middles[SECOND_MAIN])
    if across < max(0.1, 0.5 * down):
        return ()
    return tuple(sorted(middles, key=lambda part: middles[part][0]))


def runs_to(tree: VesselTree) -> str | None:
    """
    The side that the main vessel (trunk and main branches together) runs to from its root.

    Args:
        tree (`VesselTree`): as it is shown.

    Returns:
        `str` or `None`: `"left"` or `"right"` where its middle lies more than 10 % of the width on that side of the
        root, and so does nearly all of it; `None` where that cannot be said.
    """
    shown = _shown(tree, (TRUNK, FIRST_MAIN, SECOND_MAIN))
    across = shown[:, 0] - tree.points[0, 0]
    for side, way in (("left", -across), ("right", across)):
        if len(way) and way.mean() > 0.1 and (way > -0.01).mean() > 0.85:
            return side
    return None


def _shown(tree: VesselTree, parts: tuple[int, ...]) -> np.ndarray:
    """Ends of the segments of some parts that lie in the picture, shape `(N, 2)`."""
    points = tree.points[tree.segments[np.isin(tree.part, parts)][:, 1]]
    return points[(np.abs(points - 0.5) < 0.5).all(axis=1)]


def _middle(tree: VesselTree, parts: tuple[int, ...]) -> np.ndarray | None:
    points = _shown(tree, parts)
    return points.mean(axis=0) if len(points) else None


def _clear(tree: VesselTree, margin: float = 0.012, around: float = 0.05, beyond: float = 0.09) -> np.ndarray:
    """
    Points (P,) about which a stretch of the vessel (`around` either way) is free of other branches and inside the
    picture, and that are further than `beyond` from the ends of their branch.
    """
    far = np.linalg.norm(tree.points[:, None] - tree.points[None], axis=2)
    room = (tree.whole[:, None] + tree.whole[None]) / REFERENCE_SIZE + margin
    alone = ((far > room) | (tree.branch[:, None] == tree.branch[None])).all(axis=1)
    alone &= (np.abs(tree.points - 0.5) < 0.44).all(axis=1)
    clear = np.zeros_like(alone)
    for number in range(int(tree.branch[-1]) + 1):
        own = np.flatnonzero(tree.branch == number)
        arc = tree.arc[own]
        near = np.abs(arc[:, None] - arc[None]) <= around
        whole = (arc - beyond >= arc[0]) & (arc + beyond <= arc[-1])
        clear[own] = whole & (alone[own][None] | ~near).all(axis=1)
    return clear
