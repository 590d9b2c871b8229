"""The structures of a generated angiogram that can be asked for, and their masks, from the geometry alone."""

from typing import TYPE_CHECKING

import numpy as np

from .tubes import paint_tubes
from .vessels import FIRST_MAIN, SECOND_MAIN, SIDE, TRUNK


if TYPE_CHECKING:
    from .angiography import SyntheticVideo


VESSEL, CATHETER, LEFT, RIGHT = "blood vessel", "catheter", "left main branch", "right main branch"
TRUNK_NAME, SIDES, NARROWING, DIAPHRAGM = "main trunk", "side branches", "narrowing", "diaphragm"
#: By the phrase that each is usually asked for with.
STRUCTURES = (VESSEL, CATHETER, LEFT, RIGHT, TRUNK_NAME, SIDES, NARROWING, DIAPHRAGM)
#: What a picture may lack, so that one can ask for it and be told so. The others are of every tree that has them.
OPTIONAL = (CATHETER, NARROWING, DIAPHRAGM)


def structure_masks(video: "SyntheticVideo") -> dict[str, np.ndarray]:
    """
    The masks of a run's structures. A pixel belongs to one by its centre:

    - `"blood vessel"`: the tree, as far as contrast fills it (`video.masks`).
    - `"main trunk"`: from the root to where two main vessels part, or the one main vessel of a tree that has no two.
    - `"left main branch"`, `"right main branch"`: of the two main vessels the one that lies further left or right in
      the picture, without their branches and what the trunk covers. Missing of trees with one main vessel, and where
      the sides cannot be told apart ([`~data.vessels.main_sides`]).
    - `"side branches"`: all that sprouts from trunk and main vessels, with their own branches, without what those
      cover. With trunk and main vessels they are the whole tree.
    - `"narrowing"`: stretches of filled vessel that have lost more than a quarter of their radius, as narrow as they
      are.
    - `"catheter"`: its tube, whole, also where it lies over vessels.
    - `"diaphragm"`: everything below its edge, whatever lies over it.

    What a collimator hides is in no mask.

    Args:
        video (`SyntheticVideo`): of either scene.

    Returns:
        `dict[str, np.ndarray]`: `(T, H, W)` uint8 {0, 1} by name, in the order of `STRUCTURES`; all 0 where there is
        none in a frame.
    """
    parts = (TRUNK, FIRST_MAIN, SECOND_MAIN, SIDE)
    num_frames, size = video.frames.shape[:2]
    found = {name: np.zeros(video.frames.shape, dtype=np.uint8) for name in STRUCTURES}
    found[VESSEL][:] = video.masks
    ends = np.arange(max(video.catheter.shape[1] - 1, 0))
    tube = np.stack([ends, ends + 1], axis=1)
    tube_radii = np.full(video.catheter.shape[1], video.catheter_radius)
    rows = np.arange(size)[:, None]
    for index in range(num_frames):
        points, visible = video.points[index], video.visible[index]
        tree = (points, video.radii, video.segments, size)
        colour = np.where(visible, video.part, -1)
        trunk, first, second, side = paint_tubes(*tree, colour, len(parts))
        mains = {FIRST_MAIN: first & ~trunk, SECOND_MAIN: second & ~trunk}
        found[TRUNK_NAME][index] = trunk
        found[SIDES][index] = side & ~(trunk | first | second)
        for name, part in zip((LEFT, RIGHT), video.sides, strict=False):
            found[name][index] = mains[part]
        narrow = np.where(visible & video.narrow, 0, -1)
        found[NARROWING][index] = paint_tubes(*tree, narrow, 1)[0]
        found[CATHETER][index] = paint_tubes(video.catheter[index], tube_radii, tube, size, 0 * ends, 1)[0]
        found[DIAPHRAGM][index] = rows > video.dome[index]
    if not video.sides:
        del found[LEFT], found[RIGHT]
    return {name: masks * video.opening for name, masks in found.items()}
