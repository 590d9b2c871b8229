"""A predicted mask beside its target, with what several metrics need of them, found once."""

import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree
from skimage.measure import label

from ..skeletons import foreground_box, skeleton, skeletons
from .segmentation import Counts, as_bool, check_masks


# Height and width of a pixel, in any unit.
Spacing = tuple[float, float]


class Contour(NamedTuple):
    """
    Pieces of a contour.

    Args:
        places (`np.ndarray` of shape `(n, 2)`): where they are, in the unit of the spacing.
        lengths (`np.ndarray` of shape `(n,)`): how long they are, in the same unit.
    """

    places: np.ndarray
    lengths: np.ndarray


class MeasuredMask:
    """
    A mask, and what is found of it when it is first asked for.

    Args:
        mask (`np.ndarray` of shape `(H, W)`): bool, without foreground on its border.
        spacing (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`): height and width of a pixel.
        thin (`Callable[[], np.ndarray]`, *optional*): gives the skeleton, where masks are thinned together.
    """

    def __init__(
        self, mask: np.ndarray, spacing: Spacing = (1.0, 1.0), thin: Callable[[], np.ndarray] | None = None
    ) -> None:
        self.mask, self.spacing, self._thin = mask, spacing, thin

    @classmethod
    def together(cls, masks: np.ndarray, spacing: Spacing = (1.0, 1.0)) -> list["MeasuredMask"]:
        """
        Several masks, which are thinned at once when the first skeleton is asked for: that takes less time.

        Args:
            masks (`np.ndarray` of shape `(N, H, W)`): bool, without foreground on their borders.
            spacing (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`): height and width of a pixel.
        """
        thinned = cache(lambda: skeletons(masks))
        return [cls(mask, spacing, lambda number=number: thinned()[number]) for number, mask in enumerate(masks)]

    @cached_property
    def is_empty(self) -> bool:
        """Whether there is no foreground."""
        return not self.mask.any()

    @cached_property
    def components(self) -> tuple[np.ndarray, int]:
        """Components of the foreground (8-connectivity), labelled from 1, `(H, W)`; and how many."""
        return label(self.mask, connectivity=2, return_num=True)

    @cached_property
    def backgrounds(self) -> tuple[np.ndarray, int]:
        """Components of the background (4-connectivity): 1 is what surrounds the mask, holes begin at 2."""
        return label(~self.mask, connectivity=1, return_num=True)

    @cached_property
    def skeleton(self) -> np.ndarray:
        """The centreline ([`~skeletons.skeleton`]): bool, `(H, W)`."""
        return self._thin() if self._thin else skeleton(self.mask)

    @cached_property
    def centres(self) -> np.ndarray:
        """Row and column of the skeleton's pixels, `(n, 2)`."""
        return np.argwhere(self.skeleton)

    @cached_property
    def widths(self) -> np.ndarray:
        """
        Width at the skeleton's pixels in the order of `centres`, in the unit of the spacing: twice the distance to the
        background, as [`~metrics.frames.measure`] has it.
        """
        # The nearest pixel of the background touches the foreground, so that only such ones need to be asked.
        near = np.zeros_like(self.mask)
        near[1:] |= self.mask[:-1]
        near[:-1] |= self.mask[1:]
        near[:, 1:] |= self.mask[:, :-1]
        near[:, :-1] |= self.mask[:, 1:]
        around = np.argwhere(near & ~self.mask)
        return 2 * nearest(around * self.spacing, self.centres * self.spacing)

    @cached_property
    def contour(self) -> Contour:
        """
        The line between foreground and background, as DeepMind's `surface-distance` draws it (Nikolov et al., JMIR
        2021, arXiv 1809.04430): a piece wherever four pixels meet that are not all alike, as long as the line that
        parts them (marching squares).
        """
        pixels = self.mask.astype(np.uint8)
        code = 8 * pixels[:-1, :-1] + 4 * pixels[:-1, 1:] + 2 * pixels[1:, :-1] + pixels[1:, 1:]
        places = np.argwhere((code > 0) & (code < 15))
        height, width = self.spacing
        lengths = np.full(16, math.hypot(height, width) / 2)  # one pixel is unlike the three others
        lengths[[0b0011, 0b1100]] = width
        lengths[[0b0101, 0b1010]] = height
        lengths[[0b0110, 0b1001]] *= 2
        return Contour(places * self.spacing, lengths[code[tuple(places.T)]])


class MaskPair:
    """
    A predicted mask beside its target: what the metrics of topology, boundary and shape are functions of, so that
    skeletons, components and contours are found once for all of them.

    Args:
        pred (`np.ndarray` of shape `(H, W)`):
            Predicted mask, `bool` or numbers 0 and 1.
        target (`np.ndarray` of shape `(H, W)`):
            Target mask.
        spacing (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
            Height and width of a pixel, such as in millimetres: the unit of distances and widths.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`, there are no pixels, a value is neither 0 nor 1, or a
            spacing that is not above 0.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.metrics import MaskPair, betti1_error, hd95

        >>> pred, target = np.zeros((2, 9, 9), dtype=bool)
        >>> target[2:7, 2:7] = pred[2:7, 2:8] = True
        >>> target[4, 4] = False
        >>> pair = MaskPair(pred, target)
        >>> betti1_error(pair), hd95(pair)
        (1, 2.0)

        ```
    """

    def __init__(self, pred: np.ndarray, target: np.ndarray, spacing: Spacing = (1.0, 1.0)) -> None:
        pred, target = check_masks(pred, target, planar=True)
        spacing = _check_spacing(spacing)
        # Everything but the counts only depends on the foreground and one pixel around it.
        box = foreground_box(pred | target)
        both = MeasuredMask.together(np.stack([np.pad(mask[box], 1) for mask in (pred, target)]), spacing)
        self._measure(*both, pred.size)

    @classmethod
    def group(cls, preds: np.ndarray, target: np.ndarray, spacing: Spacing = (1.0, 1.0)) -> list["MaskPair"]:
        """
        Several predictions beside one target, of which they share what is found.

        Args:
            preds (`np.ndarray` of shape `(K, H, W)`):
                Predicted masks, `bool` or numbers 0 and 1.
            target (`np.ndarray` of shape `(H, W)`):
                Target mask.
            spacing (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
                Height and width of a pixel.

        Returns:
            `list[MaskPair]`, which say the same as pairs that are made one by one.

        Raises:
            `ValueError`: as of one pair.
        """
        spacing = _check_spacing(spacing)
        if not len(preds):
            return []
        first, target = check_masks(preds[0], target, planar=True)
        checked, both = [first], first | target
        for pred in preds[1:]:
            if np.shape(pred) != target.shape:
                check_masks(pred, target, planar=True)  # which says so
            checked.append(as_bool(np.asarray(pred), "pred"))
            both |= checked[-1]
        box = foreground_box(both)
        padded = np.stack([np.pad(mask[box], 1) for mask in (*checked, target)])
        *measured, shared = MeasuredMask.together(padded, spacing)
        pairs = []
        for own in measured:
            pair = cls.__new__(cls)
            pair._measure(own, shared, target.size)
            pairs.append(pair)
        return pairs

    def _measure(self, pred: MeasuredMask, target: MeasuredMask, size: int) -> None:
        self.pred, self.target = pred, target
        tp = int(np.count_nonzero(pred.mask & target.mask))
        fp, fn = int(np.count_nonzero(pred.mask)) - tp, int(np.count_nonzero(target.mask)) - tp
        #: Pixels of both masks, of the whole image.
        self.counts: Counts = Counts(tp, fp, fn, size - tp - fp - fn)

    @cached_property
    def union(self) -> MeasuredMask:
        """What belongs to either mask."""
        return MeasuredMask(self.pred.mask | self.target.mask, self.pred.spacing)

    @cached_property
    def contour_distances(self) -> tuple[np.ndarray, np.ndarray]:
        """
        How far each piece of the prediction's contour is from the nearest one of the target's, and the other way
        round, in the unit of the spacing. If a mask is empty there are none.
        """
        ours, theirs = self.pred.contour.places, self.target.contour.places
        if not (len(ours) and len(theirs)):
            return np.empty(0), np.empty(0)
        return nearest(theirs, ours), nearest(ours, theirs)


def _check_spacing(spacing: Spacing) -> Spacing:
    spacing = tuple(map(float, spacing))
    if len(spacing) != 2 or not all(0 < side < math.inf for side in spacing):
        raise ValueError(f"`spacing` must be the height and the width of a pixel, above 0, got {spacing}.")
    return spacing


def nearest(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """
    Distance of each query to the nearest of some points. Where these are few, as along contours, this is as exact as a
    distance transform and takes a fraction of its time.

    Args:
        points (`np.ndarray` of shape `(m, 2)`): at least one.
        queries (`np.ndarray` of shape `(n, 2)`): in the same unit.

    Returns:
        `np.ndarray` of shape `(n,)`.
    """
    return cKDTree(points, balanced_tree=False, compact_nodes=False).query(queries)[0]
