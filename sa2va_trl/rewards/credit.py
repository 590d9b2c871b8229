"""
Where in the image a reward comes from: to first order, for credit that is local.

Two views of the same expansion. A **cell map** is of one mask: what the reward gains where a pixel becomes
foreground. **Credit** is of the masks of a group: how much of each one's reward, seen from the group's mean, lies in
each cell of a grid. Credits are used as advantages are, so that a candidate is praised for the branch that it found,
and blamed elsewhere, where one number for a million pixels is mostly noise.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from ..metrics import Counts, dice
from ..skeletons import skeletons
from .samples import one_target, planes


def dice_cell_map(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """
    What Dice gains where a pixel becomes foreground, the others being as they are: Dice with the pixel on, less Dice
    with it off. This is exact, no first order, and with `g` the pixel's target and TP, A those of the other pixels
    `2 (TP + g) / (A + 1 + G) - 2 TP / (A + G)`: the bracket of the local-expectation gradient (Titsias and
    Lázaro-Gredilla, NeurIPS 2015).

    Args:
        pred (`np.ndarray` of shape `(H, W)`): predicted mask, anything but 0 is foreground.
        target (`np.ndarray` of shape `(H, W)`): likewise.

    Returns:
        `np.ndarray` of shape `(H, W)`: float64 in [-1, 1]; where nothing is foreground, -1: Dice of two empty masks
        is 1.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`.
    """
    pred, target = _pair(pred, target)
    tp, area, size = int((pred & target).sum()), int(pred.sum()), int(target.sum())
    # There are but four kinds of pixels.
    gain = np.empty((2, 2))
    for on in (0, 1):
        for real in (0, 1):
            others_tp, others = tp - on * real, area - on
            gain[on, real] = _dice(others_tp + real, others + 1, size) - _dice(others_tp, others, size)
    return gain[pred.astype(int), target.astype(int)]


def cldice_cell_map(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """
    What centreline Dice gains, to first order and with both skeletons held fixed, where a pixel becomes foreground.

    With `P` the share of the predicted skeleton within the target and `T` the share of the target's skeleton within
    the prediction, a pixel of the target's skeleton gives `2 P² / (P + T)² / |S_target|`, covered or not, and a pixel
    of the predicted skeleton (as one more of its kind) `2 T² / (P + T)² · (g - P) / |S_pred|`: positive within the
    target, negative outside. Elsewhere it is 0. That another mask has another skeleton is what this leaves out.

    Args:
        pred (`np.ndarray` of shape `(H, W)`): predicted mask, anything but 0 is foreground.
        target (`np.ndarray` of shape `(H, W)`): likewise.

    Returns:
        `np.ndarray` of shape `(H, W)`: float64; all 0 if a mask is empty or neither skeleton touches the other mask,
        where the harmonic mean has no derivative.

    Raises:
        `ValueError`: the shapes differ or are not `(H, W)`.
    """
    pred, target = _pair(pred, target)
    ours, theirs = skeletons(np.stack([pred, target]))
    own, covered = (ours & target).sum(), (theirs & pred).sum()
    by_hit, by_length, by_covered = _cldice_slopes(own, ours.sum(), covered, theirs.sum())
    return by_hit * (ours & target) + by_length * ours + by_covered * theirs


def dice_credit(
    pred_masks: np.ndarray, target: np.ndarray, grid: tuple[int, int] = (16, 16), neighbours: bool = True
) -> np.ndarray:
    """
    How much of each candidate's Dice lies where: the first-order expansion around the group's mean,
    `(2 TP_c - D̄ A_c) / (Ā + G)` of a cell's true positives and area, with the mean area `Ā` and `D̄` the Dice of the
    group's mean counts.

    Args:
        pred_masks (`np.ndarray` of shape `(K, H, W)`): the group's masks, anything but 0 is foreground.
        target (`np.ndarray` of shape `(H, W)`): likewise.
        grid (`tuple[int, int]`, *optional*, defaults to `(16, 16)`):
            Cells along the height and the width, at most as many as pixels. They differ by a pixel where the sides do
            not divide.
        neighbours (`bool`, *optional*, defaults to `True`):
            Whether a cell's credit is the sum over it and the up to 8 cells around it.

    Returns:
        `np.ndarray` of shape `(K, *grid)`: float64. Without neighbours, cells add up to what the candidate's Dice is
        to first order, but for a constant of the group. All 0 where there is no foreground.

    Raises:
        `ValueError`: the shapes do not fit, there are no masks, or more cells than pixels.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.rewards import dice_credit

        >>> target = np.zeros((4, 4), dtype=bool)
        >>> target[:2] = True
        >>> masks = np.stack([target, np.ones((4, 4), dtype=bool)])
        >>> dice_credit(masks, target, grid=(2, 1), neighbours=False)[:, :, 0].round(3).tolist()
        [[0.48, 0.0], [0.48, -0.32]]

        ```
    """
    preds, target = _group(pred_masks, target)
    hits, areas = _sums(preds & target, grid), _sums(preds, grid)
    tp, area = hits.sum() / len(preds), areas.sum() / len(preds)
    total = area + target.sum()
    if not total:
        return np.zeros_like(hits)
    return _around((2 * hits - 2 * tp / total * areas) / total, neighbours)


def cldice_credit(
    pred_masks: np.ndarray, target: np.ndarray, grid: tuple[int, int] = (16, 16), neighbours: bool = True
) -> np.ndarray:
    """
    How much of each candidate's centreline Dice lies where: the first-order expansion around the group's mean,
    `2 T̄² / (P̄ + T̄)² · (h_c - P̄ n_c) / n̄ + 2 P̄² / (P̄ + T̄)² · t_c / |S_target|`. Of a cell, `n_c` is the length of the
    candidate's skeleton, `h_c` that within the target and `t_c` the length of the target's skeleton within the
    candidate; `P̄` and `T̄` are the two shares ([`cldice_cell_map`]) of the group's mean lengths. Here each candidate
    has its own skeleton.

    Args:
        pred_masks, target, grid, neighbours: as of [`dice_credit`].

    Returns:
        `np.ndarray` of shape `(K, *grid)`: float64; all 0 where the target or all candidates are empty, or no skeleton
        touches the other mask.

    Raises:
        `ValueError`: the shapes do not fit, there are no masks, or more cells than pixels.
    """
    preds, target = _group(pred_masks, target)
    thinned = skeletons(np.concatenate([preds, target[None]]))
    ours, theirs = thinned[:-1], thinned[-1]
    hits, lengths, covered = (_sums(masks, grid) for masks in (ours & target, ours, theirs & preds))
    means = [part.sum() / len(preds) for part in (hits, lengths, covered)]
    by_hit, by_length, by_covered = _cldice_slopes(*means, theirs.sum())
    return _around(by_hit * hits + by_length * lengths + by_covered * covered, neighbours)


#: The rewards of `REWARDS` that have local credit.
CREDITS: dict[str, Callable[..., np.ndarray]] = {"dice": dice_credit, "cldice": cldice_credit}


def _dice(tp: float, area: float, size: float) -> float:
    return dice(Counts(tp, area - tp, size - tp, 0))


def _cldice_slopes(hit: float, length: float, covered: float, target_length: float) -> tuple[float, float, float]:
    """
    Derivatives of centreline Dice by the length of the predicted skeleton within the target, by its whole length, and
    by the length of the target's skeleton within the prediction.
    """
    if not length or not target_length or not hit + covered:
        return 0.0, 0.0, 0.0
    p, t = hit / length, covered / target_length
    by_p, by_t = 2 * (t / (p + t)) ** 2, 2 * (p / (p + t)) ** 2
    return by_p / length, -by_p * p / length, by_t / target_length


def _pair(pred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    preds, target = _group(np.asarray(pred)[None], target)
    return preds[0], target


def _group(pred_masks: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    preds, (target,) = planes(pred_masks), one_target(target)
    if preds.ndim != 3 or target.ndim != 2 or not len(preds) or preds.shape[1:] != target.shape:
        raise ValueError(f"masks of shape {preds.shape} do not fit a target of {target.shape}: (K, H, W) and (H, W).")
    return preds, target


def _sums(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Foreground of masks, `(K, H, W)`, in the cells of a grid: float64, `(K, *grid)`."""
    places = []
    for cells, side in zip(grid, masks.shape[1:], strict=True):
        if not 1 <= cells <= side:
            raise ValueError(f"a side of {side} pixels has from 1 to {side} cells, not {cells}.")
        places.append(np.searchsorted(np.arange(cells) * side // cells, np.arange(side), side="right") - 1)
    # Of which cell a pixel is. Foreground is little, and counted one by one.
    cell = (places[0][:, None] * grid[1] + places[1]).reshape(-1)
    counts = [np.bincount(cell[np.flatnonzero(mask)], minlength=grid[0] * grid[1]) for mask in masks]
    return np.stack(counts).astype(float).reshape(-1, *grid)


def _around(cells: np.ndarray, neighbours: bool) -> np.ndarray:
    return ndimage.correlate(cells, np.ones((1, 3, 3)), mode="constant") if neighbours else cells
