"""How often a row is drawn: by what is known of it, and by the width of its vessels. Pure functions."""

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy import ndimage

from ..data.layout import row_layout
from ..data.masks import decode_mask
from ..errors import MiningError
from ..skeletons import skeleton
from .epoch_plan import draw


SAMPLE_BY = ("uniform", "spread", "hardness")
# Largest weight of a row, as a multiple of the mean weight: that of `HardSampleConfig.weight_cap`.
WEIGHT_CAP = 3.0
# The stages of a curriculum in their order, and the mean widths in pixels that part them: those of `dice_by_width`.
STAGES = ("thick", "medium", "thin")
EDGES = (4.0, 10.0)
# Share of an epoch that the classes have whose turn it is not, each.
FLOOR = 0.05


def sampling_weights(scores: pd.DataFrame, sample_by: str) -> np.ndarray:
    """
    How often rows are drawn, relative to each other.

    Args:
        scores (`pandas.DataFrame`):
            From [`~trainers.epoch_plan.match_scores`]: one row a dataset row; `dice` is NaN where it has no mask.
        sample_by (`str`): `"spread"` or `"hardness"`, see [`~trainers.SegGRPOConfig`].

    Returns:
        `np.ndarray` of shape `(rows,)`: not negative; 0 for rows without a mask and, with `"hardness"`, for those
        that are flagged for review, whose labels may be wrong.

    Raises:
        `ValueError`: the scores lack what is asked for, of all rows or of some.
        `MiningError`: no row has a positive weight.
    """
    column = {"spread": "reward_spread", "hardness": "dice"}[sample_by]
    if column not in scores:
        raise ValueError(
            f"sample_by={sample_by} needs a column {column!r}, which the scores lack: they are of an earlier version. "
            "Mine again, or use sample_by=hardness."
        )
    values, has_mask = scores[column].to_numpy(dtype=float), scores["dice"].notna().to_numpy()
    if gaps := int((np.isnan(values) & has_mask).sum()):
        raise ValueError(
            f"sample_by={sample_by} needs a {column!r} of each row; {gaps} of {has_mask.sum()} have none."
        )
    weights = np.where(has_mask, 1 - values if sample_by == "hardness" else values, 0.0)
    if sample_by == "hardness" and "review" in scores:
        weights[scores["review"].to_numpy(dtype=bool)] = 0.0
    if not weights.sum() > 0:
        why = "the candidate masks of each are all equally good" if sample_by == "spread" else "each has a Dice of 1"
        why += ", or is flagged for review" if sample_by == "hardness" and "review" in scores else ""
        raise MiningError(f"sample_by={sample_by} gives no row a weight: {why}. Use sample_by=uniform.")
    return weights


def choose_rows(weights: np.ndarray | None, rows: int, count: int, seed: int) -> np.ndarray:
    """
    The rows that training is limited to.

    Args:
        weights (`np.ndarray` of shape `(rows,)`, *optional*): from [`sampling_weights`].
        rows (`int`): of the data set.
        count (`int`): how many are kept.
        seed (`int`): of the choice where there are no weights.

    Returns:
        `np.ndarray`: row numbers, ascending: those of the largest weights, of equal ones the first; no row without a
        weight. Without weights rows at random.
    """
    if weights is None:
        return np.sort(np.random.default_rng(seed % 2**32).permutation(rows)[:count])
    first = np.argsort(-weights, kind="stable")[:count]
    return np.sort(first[weights[first] > 0])


def mask_widths(dataset: Dataset) -> np.ndarray:
    """
    The mean width of the vessels of each row, along the skeletons of all its masks.

    Args:
        dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`].

    Returns:
        `np.ndarray` of shape `(rows,)`: in pixels of the masks; NaN where a row has no mask or empty ones alone.
    """
    columns = [name for name in dataset.column_names if name in ("mask", "masks")]  # (no picture need be decoded)
    return np.array([_width(row_layout(row).masks) for row in dataset.select_columns(columns)], dtype=float)


def _width(masks: list) -> float:
    widths = [np.empty(0)]
    for mask in masks:
        # Padded, or a vessel that is cut off by the border would seem to grow thicker there.
        drawn = np.pad(np.asarray(decode_mask(mask)) > 0, 1)
        if drawn.any():
            widths.append(2 * ndimage.distance_transform_edt(drawn)[skeleton(drawn)])
    widths = np.concatenate(widths)
    return float(widths.mean()) if len(widths) else np.nan


def width_classes(widths: np.ndarray) -> np.ndarray:
    """
    Args:
        widths (`np.ndarray` of shape `(rows,)`): from [`mask_widths`].

    Returns:
        `np.ndarray` of shape `(rows,)`: positions in `STAGES`; -1 for rows without a width.
    """
    classes = len(EDGES) - np.searchsorted(EDGES, widths)
    return np.where(np.isnan(widths), -1, classes)


def stage_of(epoch: int, epochs: int, classes: np.ndarray) -> int:
    """
    The class whose turn it is: those that there are share the epochs out, the thickest first.

    Args:
        epoch (`int`): from 0.
        epochs (`int`): of the run.
        classes (`np.ndarray`): from [`width_classes`].

    Returns:
        `int`: a position in `STAGES`.

    Raises:
        `ValueError`: there is one class only, or there are fewer epochs than classes.
    """
    present = np.unique(classes[classes >= 0])
    if len(present) < 2:
        found = f"all are {STAGES[present[0]]}" if len(present) else "none has a mask"
        raise ValueError(
            f"curriculum=thickness has no effect: of the training rows {found} (mean widths are cut at "
            f"{' and '.join(f'{edge:g}' for edge in EDGES)} pixels)."
        )
    if epochs < len(present):
        raise ValueError(
            f"curriculum=thickness needs an epoch for each of {', '.join(STAGES[entry] for entry in present)}, and "
            f"the run has {epochs}: raise num_train_epochs."
        )
    return int(present[min(epoch * len(present) // epochs, len(present) - 1)])


def stage_weights(classes: np.ndarray, stage: int, weights: np.ndarray | None = None) -> np.ndarray:
    """
    How often rows are drawn in a stage. The set of rows is never smaller than without a curriculum: the classes whose
    turn it is not have `FLOOR` of the drawn rows each, and rows without a width as many as without a curriculum.

    Args:
        classes (`np.ndarray` of shape `(rows,)`): from [`width_classes`].
        stage (`int`): from [`stage_of`].
        weights (`np.ndarray` of shape `(rows,)`, *optional*): of the rows within their class; all alike by default.

    Returns:
        `np.ndarray` of shape `(rows,)`, with a sum of 1.
    """
    weights = np.ones(len(classes)) if weights is None else weights
    sums = {kind: weights[classes == kind].sum() for kind in np.unique(classes)}
    none = sums.pop(-1, 0.0) / weights.sum()
    present = [kind for kind, total in sums.items() if total > 0]
    others = [kind for kind in present if kind != stage]
    shares = dict.fromkeys(others, FLOOR)
    if stage in present:
        shares[stage] = 1 - FLOOR * len(others)
    scale = (1 - none) / sum(shares.values())
    found = np.zeros(len(classes))
    for kind, share in shares.items():
        chosen = classes == kind
        found[chosen] = scale * share * weights[chosen] / sums[kind]
    chosen = classes == -1
    found[chosen] = weights[chosen] / weights.sum()
    return found


def drawn_rows(weights: np.ndarray, length: int, epoch: int, seed: int) -> list[int]:
    """
    Rows in proportion to their weights: the same on every process and in every run.

    Args:
        weights (`np.ndarray` of shape `(rows,)`): not negative, not all 0.
        length (`int`): how many are drawn.
        epoch (`int`): from 0.
        seed (`int`): of all epochs.

    Returns:
        `list[int]`: each as often as expected, rounded up or down, in random order.
    """
    return draw(weights, length, np.random.default_rng([seed % 2**32, epoch])).tolist()
