"""
What is done to a map of probabilities to make a mask of it, beyond a threshold: small components go, gaps are closed
or bridged, pixels of a lower threshold are kept where they hang on ones of the higher, clips are smoothed in time.

A setting acts in this order: probabilities are smoothed over frames, thresholds drawn, masks put to the vote of their
neighbours; then, in every frame, gaps are closed, ends bridged, and last small components dropped, so that pieces
which the steps before have joined stay. Everything is at the image's own size.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.filters import apply_hysteresis_threshold
from skimage.measure import label
from skimage.morphology import isotropic_closing

from .motion import carried
from .skeletons import RING, foreground_box, skeleton, skeleton_ends


#: The settings that act between the frames of a clip.
TEMPORAL = ("majority_frames", "exponential_weight", "flow_weight")
#: Two ends point at each other if neither has to turn by more than this to reach the other, in degrees.
MOST_TURN = 45
# How far back from its end a skeleton is followed to see where it points, in pixels; along thick vessels further,
# since the skeleton of a blunt end may turn to one of its corners. What is no longer than the second points nowhere.
FOLLOWED, SHORTEST = 8, 3


@dataclass(frozen=True)
class Postprocessing:
    """
    How masks are made of probabilities, beside the threshold. By default with the threshold alone.

    Lengths are in pixels of the image. The size of components can also be given as a share of the image's area, which
    means the same for images of any size: a model draws on a grid of its own that is stretched to the image, and its
    specks grow with the image. With both, both must be reached.

    Args:
        hysteresis (`float`, *optional*, defaults to 1.0):
            A second threshold as a share of the first, above 0; 1 for none. Pixels above the lower one belong to the
            mask where they are connected (4-connectivity) to one above the threshold. (A share, so that it fits
            whatever threshold is given.)
        closing_radius (`int`, *optional*, defaults to 0): of a disc, in pixels: gaps that it does not fit into close.
        bridge_length (`int`, *optional*, defaults to 0): longest gap to bridge between two ends, in pixels.
        min_size (`int`, *optional*, defaults to 0): of a component (8-connectivity), in pixels; smaller ones go.
        min_share (`float`, *optional*, defaults to 0.0): likewise, as a share of the image's area, below 1.
        majority_frames (`int`, *optional*, defaults to 1):
            Of a clip, frames whose masks vote on the one in their middle: odd. At the ends of a clip there are fewer.
        exponential_weight (`float`, *optional*, defaults to 0.0):
            Of a clip, weight of what the frames before say: a smoothed map is this much of the smoothed one before it
            and the rest its own; in [0, 1).
        flow_weight (`float`, *optional*, defaults to 0.0):
            Likewise, with the map before it carried along by the motion of the picture.

    Raises:
        `ValueError`: a value of the wrong type or out of its range, or more than one way of smoothing in time.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.postprocessing import Postprocessing, draw_mask

        >>> probabilities = np.zeros((5, 8))
        >>> probabilities[2] = [0.9, 0.9, 0.4, 0.9, 0.1, 0.1, 0.1, 0.7]
        >>> draw_mask(probabilities, 0.5, Postprocessing(hysteresis=0.6, min_size=2))[2].astype(int).tolist()
        [1, 1, 1, 1, 0, 0, 0, 0]

        ```
    """

    hysteresis: float = 1.0
    closing_radius: int = 0
    bridge_length: int = 0
    min_size: int = 0
    min_share: float = 0.0
    majority_frames: int = 1
    exponential_weight: float = 0.0
    flow_weight: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            value, kinds = getattr(self, field.name), (int,) if field.type is int else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                kind = "an integer" if field.type is int else "a number"
                raise ValueError(f"{field.name} of a post-processing must be {kind}, got {value!r}.")
        ranges = {
            "hysteresis": (0 < self.hysteresis <= 1, "above 0 and at most 1"),
            "min_share": (0 <= self.min_share < 1, "at least 0 and below 1"),
            "majority_frames": (self.majority_frames > 0 and self.majority_frames % 2 == 1, "odd and above 0"),
            "exponential_weight": (0 <= self.exponential_weight < 1, "at least 0 and below 1"),
            "flow_weight": (0 <= self.flow_weight < 1, "at least 0 and below 1"),
            **{
                name: (getattr(self, name) >= 0, "at least 0")
                for name in ("closing_radius", "bridge_length", "min_size")
            },
        }
        for name, (is_within, must) in ranges.items():
            if not is_within:
                raise ValueError(f"{name} of a post-processing must be {must}, got {getattr(self, name)}.")
        if len(ways := [name for name in TEMPORAL if name in self.to_dict()]) > 1:
            raise ValueError(f"{' and '.join(ways)} are ways to smooth a clip: a post-processing takes one of them.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Postprocessing":
        """
        Args:
            values (`Mapping`): by name; what is left out has its default.

        Returns:
            [`Postprocessing`].

        Raises:
            `ValueError`: no mapping, an unknown name, or as the class.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"A post-processing must be names with values, got {values!r}.")
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in values if name not in names]:
            raise ValueError(f"A post-processing has no {', '.join(map(str, unknown))}, only {', '.join(names)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, float | int]:
        """What differs from the defaults: nothing of the identity."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    @property
    def is_identity(self) -> bool:
        """Whether the mask is what exceeds the threshold and nothing else."""
        return not self.to_dict()

    @property
    def is_temporal(self) -> bool:
        """Whether the masks of a clip depend on each other."""
        return any(name in self.to_dict() for name in TEMPORAL)

    @property
    def needs_motion(self) -> bool:
        """Whether a clip's masks also depend on its pictures."""
        return self.flow_weight > 0

    def __str__(self) -> str:
        return json.dumps(self.to_dict()) if not self.is_identity else "none"


#: Nothing but the threshold.
IDENTITY = Postprocessing()


def draw_mask(probabilities: np.ndarray, threshold: float, settings: Postprocessing = IDENTITY) -> np.ndarray:
    """
    The mask of one map.

    Args:
        probabilities (`np.ndarray` of shape `(H, W)`): in [0, 1].
        threshold (`float`): in (0, 1).
        settings ([`Postprocessing`], *optional*): what acts between frames has nothing to do here.

    Returns:
        `np.ndarray` of shape `(H, W)`: bool; without settings `probabilities > threshold`.
    """
    return cleaned(exceeding(probabilities, threshold, settings.hysteresis), settings)


def draw_clip(
    probabilities: np.ndarray,
    threshold: float,
    settings: Postprocessing = IDENTITY,
    flows: np.ndarray | None = None,
) -> np.ndarray:
    """
    The masks of one object of a clip.

    Args:
        probabilities (`np.ndarray` of shape `(T, H, W)`): in [0, 1], in the order of the frames.
        threshold (`float`): in (0, 1).
        settings ([`Postprocessing`], *optional*): of one frame alone, what [`draw_mask`] says.
        flows (`np.ndarray` of shape `(T - 1, 2, H, W)`, *optional*):
            From [`~motion.backward_flows`], where `settings.needs_motion`.

    Returns:
        `np.ndarray` of shape `(T, H, W)`: bool.

    Raises:
        `ValueError`: flows are needed, and there is not one for every two neighbouring frames.
    """
    smooth = smoothed(probabilities, settings, flows)
    masks = np.stack([exceeding(one, threshold, settings.hysteresis) for one in smooth])
    masks = majority(masks, settings.majority_frames)
    return np.stack([cleaned(mask, settings) for mask in masks])


def draw_row(
    probabilities: np.ndarray,
    threshold: float,
    settings: Postprocessing = IDENTITY,
    frames: int = 1,
    flows: np.ndarray | None = None,
) -> np.ndarray:
    """
    The masks of a row of a dataset: every object of an image or a clip.

    Args:
        probabilities (`np.ndarray` of shape `(objects x frames, H, W)`): frames of an object one after the other.
        threshold (`float`): in (0, 1).
        settings ([`Postprocessing`], *optional*): as [`draw_clip`].
        frames (`int`, *optional*, defaults to 1): of the clip.
        flows (`np.ndarray` of shape `(frames - 1, 2, H, W)`, *optional*): as [`draw_clip`].

    Returns:
        `np.ndarray` of shape `(objects x frames, H, W)`: bool.

    Raises:
        `ValueError`: as [`draw_clip`].
    """
    if settings.is_identity or not len(probabilities):
        return probabilities > threshold
    objects = probabilities.reshape(-1, frames, *probabilities.shape[1:])
    return np.concatenate([draw_clip(one, threshold, settings, flows) for one in objects])


# The steps, in their order


def smoothed(probabilities: np.ndarray, settings: Postprocessing, flows: np.ndarray | None = None) -> np.ndarray:
    """
    The maps of a clip, each with what the frames before it say.

    Args:
        probabilities (`np.ndarray` of shape `(T, H, W)`): in [0, 1].
        settings ([`Postprocessing`]): `exponential_weight` or `flow_weight` of it.
        flows (`np.ndarray` of shape `(T - 1, 2, H, W)`, *optional*): as [`draw_clip`]. What comes from outside the
            frame says nothing.

    Returns:
        `np.ndarray` of shape `(T, H, W)`: in [0, 1]; what was given where there is no weight.

    Raises:
        `ValueError`: as [`draw_clip`].
    """
    weight = settings.flow_weight or settings.exponential_weight
    if not weight or len(probabilities) < 2:
        return probabilities
    if settings.needs_motion and (flows is None or len(flows) != len(probabilities) - 1):
        got = "none" if flows is None else len(flows)
        raise ValueError(f"flow_weight needs {len(probabilities) - 1} flows of the clip's frames, got {got}.")
    smooth = [probabilities[0]]
    for number, own in enumerate(probabilities[1:]):
        before = smooth[-1]
        if settings.needs_motion:
            before = carried(before, flows[number], order=1, outside=math.nan)
            before = np.where(np.isnan(before), own, before)
        smooth.append((1 - weight) * own + weight * before)
    return np.stack(smooth)


def exceeding(probabilities: np.ndarray, threshold: float, hysteresis: float = 1.0) -> np.ndarray:
    """
    What exceeds the threshold and, with hysteresis, what exceeds the lower one and is connected to that.

    Args:
        probabilities (`np.ndarray` of shape `(H, W)`): in [0, 1].
        threshold (`float`): in (0, 1).
        hysteresis (`float`, *optional*, defaults to 1.0): the lower threshold as a share of it.

    Returns:
        `np.ndarray` of shape `(H, W)`: bool.
    """
    if hysteresis == 1:
        return probabilities > threshold
    return apply_hysteresis_threshold(probabilities, hysteresis * threshold, threshold)


def majority(masks: np.ndarray, frames: int) -> np.ndarray:
    """
    The masks of a clip by the vote of their neighbours.

    Args:
        masks (`np.ndarray` of shape `(T, H, W)`): bool.
        frames (`int`): odd: a mask itself and as many before it as after it, as far as there are.

    Returns:
        `np.ndarray` of shape `(T, H, W)`: bool; pixels that are in more than half of those masks, or in the mask and
        half of them.
    """
    if frames == 1:
        return masks
    reach, count = frames // 2, len(masks)
    windows = [masks[max(middle - reach, 0) : min(middle + reach + 1, count)] for middle in range(count)]
    # At the ends of a clip there may be as many for as against: the frame itself decides.
    return np.stack([2 * window.sum(0) + own > len(window) for window, own in zip(windows, masks, strict=True)])


def cleaned(mask: np.ndarray, settings: Postprocessing) -> np.ndarray:
    """
    The steps that act on one mask: closing, bridging, dropping.

    Args:
        mask (`np.ndarray` of shape `(H, W)`): bool.
        settings ([`Postprocessing`]): `closing_radius`, `bridge_length`, `min_size` and `min_share` of it.

    Returns:
        `np.ndarray` of shape `(H, W)`: bool.
    """
    mask = bridge_gaps(close_gaps(mask, settings.closing_radius), settings.bridge_length)
    return drop_small(mask, least_pixels(settings, mask.size))


def least_pixels(settings: Postprocessing, area: int) -> int:
    """How many pixels a component must have in an image of this area, in pixels."""
    return max(settings.min_size, math.ceil(settings.min_share * area - 1e-9))


def close_gaps(mask: np.ndarray, radius: int) -> np.ndarray:
    """
    A mask with what a disc of this radius does not fit into beside it (morphological closing). Outside the image there
    is nothing, as far as the disc reaches, so that the border draws nothing to it.

    Args:
        mask (`np.ndarray` of shape `(H, W)`): bool.
        radius (`int`): in pixels.

    Returns:
        `np.ndarray` of shape `(H, W)`: bool, with every pixel of the mask.
    """
    if radius == 0 or not mask.any():
        return mask
    box = foreground_box(mask)
    padded = isotropic_closing(np.pad(mask[box], 2 * radius + 1), radius)
    inner = slice(2 * radius + 1, -(2 * radius + 1))
    closed = mask.copy()
    # Whatever closing adds lies in the convex hull of the mask, and so in its box.
    closed[box] = padded[inner, inner]
    return closed


def drop_small(mask: np.ndarray, least: int) -> np.ndarray:
    """
    A mask without its small components (8-connectivity).

    Args:
        mask (`np.ndarray` of shape `(H, W)`): bool.
        least (`int`): pixels that a component must have to stay.

    Returns:
        `np.ndarray` of shape `(H, W)`: bool.
    """
    if least <= 1:
        return mask
    labels = label(mask, connectivity=2)
    stays = np.bincount(labels.ravel()) >= least
    stays[0] = False
    return stays[labels]


def bridge_gaps(mask: np.ndarray, length: int) -> np.ndarray:
    """
    A mask whose components are joined where two ends of their skeletons are near and point at each other: neither
    turns by more than `MOST_TURN` degrees. The nearest ends are joined first, every end once, and only parts that are
    not joined yet. A bridge is as wide at its ends as the parts are there.

    Args:
        mask (`np.ndarray` of shape `(H, W)`): bool.
        length (`int`): of the longest gap, in pixels between the parts.

    Returns:
        `np.ndarray` of shape `(H, W)`: bool, with every pixel of the mask.
    """
    if length == 0 or not mask.any():
        return mask
    box = foreground_box(mask)
    part = np.pad(mask[box], 1)
    spine, depth = skeleton(part), ndimage.distance_transform_edt(part)
    ends = skeleton_ends(spine)
    depths, owner = depth[tuple(ends.T)], label(part, connectivity=2)[tuple(ends.T)]
    if len(set(owner.tolist())) < 2:
        return mask
    # From the skeletons' ends to the parts' it is their depths, less half a pixel each.
    pairs = cKDTree(ends).query_pairs(length + 2 * float(depths.max()), output_type="ndarray")
    gaps = np.linalg.norm(ends[pairs[:, 0]] - ends[pairs[:, 1]], axis=1) - depths[pairs].sum(1) + 1
    near = (gaps <= length) & (owner[pairs[:, 0]] != owner[pairs[:, 1]])
    pairs = pairs[near][np.argsort(gaps[near], kind="stable")]
    looks = {end: _look(ends[end], spine, depth) for end in np.unique(pairs).tolist()}
    used, result = set(), part.copy()
    for one, other in pairs.tolist():
        way = (ends[other] - ends[one]) / np.linalg.norm(ends[other] - ends[one])
        if owner[one] == owner[other] or used & {one, other} or None in (looks[one], looks[other]):
            continue
        least = math.cos(math.radians(MOST_TURN))
        if looks[one][0] @ way < least or looks[other][0] @ -way < least:
            continue
        _draw_bridge(result, (ends[one], looks[one][1]), (ends[other], looks[other][1]))
        owner[owner == owner[other]] = owner[one]
        used |= {one, other}
    bridged = mask.copy()
    bridged[box] = result[1:-1, 1:-1]
    return bridged


def _look(end: np.ndarray, spine: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Which way an end points (a unit vector), and the half width there; `None` of what is too short to point."""
    place, seen, path = tuple(end.tolist()), {tuple(end.tolist())}, [tuple(end.tolist())]
    while len(path) <= max(FOLLOWED, 3 * depth[place]):
        row, column = path[-1]
        near = [(row + down, column + right) for down, right in RING]
        near = [other for other in near if spine[other] and other not in seen]
        if not near:
            break
        seen.update(near)
        # (Of a corner's two pixels the one beside, from which the other is passed.)
        path.append(min(near, key=lambda other: abs(other[0] - row) + abs(other[1] - column)))
    if len(path) <= SHORTEST:
        return None
    way = np.subtract(path[0], path[-1]).astype(np.float64)
    return way / np.linalg.norm(way), float(np.median([depth[other] for other in path]))


def _draw_bridge(mask: np.ndarray, one: tuple[np.ndarray, float], other: tuple[np.ndarray, float]) -> None:
    """Fill a stroke between two places whose half width goes from that of the one to that of the other."""
    (start, first), (stop, last) = one, other
    reach = math.ceil(max(first, last))
    low = np.maximum(np.minimum(start, stop) - reach, 0)
    high = np.minimum(np.maximum(start, stop) + reach + 1, mask.shape)
    places = np.moveaxis(np.indices(high - low), 0, -1) + low
    along = np.clip((places - start) @ (stop - start) / ((stop - start) @ (stop - start)), 0, 1)
    away = np.linalg.norm(places - (start + along[..., None] * (stop - start)), axis=-1)
    mask[low[0] : high[0], low[1] : high[1]] |= away < first + (last - first) * along
