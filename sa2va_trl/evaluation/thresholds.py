"""
Thresholds: what each of them gives, from one sort a map, which is best, and rules that take one for every map.

A mask is `probabilities > threshold`, so its pixel counts depend only on how many probabilities lie above the
threshold, within the target and in all, and these are places in two sorted lists. Nothing is rounded or binned: the
comparisons are those of `probabilities > threshold`, in the maps' own precision, and so the counts are exact.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from ..data.layout import normalize_row
from ..errors import DatasetError
from ..metrics import Counts, dice, iou, precision, recall
from .results import row_identifiers
from .statistics import paired_difference, sample_clusters, summarize


#: The thresholds that are tried: 0.01 to 0.99.
THRESHOLDS = tuple(step / 100 for step in range(1, 100))
#: What is measured at each of them.
SWEPT = {"dice": dice, "iou": iou, "recall": recall, "precision": precision}
RESAMPLES = 5000
#: Of maps that no threshold parts.
ONE_VALUE = "Every map holds one value throughout: a threshold draws all of a map or nothing of it."


class SortedMap(NamedTuple):
    """
    A map of probabilities and its target, as far as thresholds care.

    Args:
        everything (`np.ndarray` of shape `(pixels,)`): all probabilities, in [0, 1], ascending.
        inside (`np.ndarray` of shape `(pixels of the target,)`): those within the target, ascending.
    """

    everything: np.ndarray
    inside: np.ndarray

    def counts(self, thresholds: Sequence[float]) -> Counts:
        """The confusion matrix of `probabilities > threshold` for each threshold, arrays of integers."""
        # As NumPy compares an array with a number: in the array's precision.
        cuts = np.asarray(thresholds, dtype=self.everything.dtype)
        drawn = len(self.everything) - np.searchsorted(self.everything, cuts, side="right")
        tp = len(self.inside) - np.searchsorted(self.inside, cuts, side="right")
        fp, fn = drawn - tp, len(self.inside) - tp
        return Counts(tp, fp, fn, len(self.everything) - tp - fp - fn)

    def has_two_values(self) -> bool:
        """Whether the map holds two values and no third, as a mask does."""
        first, last = self.everything[[0, -1]]
        return first < last and np.searchsorted(self.everything, first, side="right") == np.searchsorted(
            self.everything, last, side="left"
        )


def sort_map(probabilities: np.ndarray, target: np.ndarray) -> SortedMap:
    """
    Args:
        probabilities (`np.ndarray` of shape `(H, W)`): in [0, 1].
        target (`np.ndarray` of shape `(H, W)`): bool.

    Returns:
        [`SortedMap`].
    """
    return SortedMap(np.sort(probabilities, axis=None), np.sort(probabilities[target]))


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """
    Probabilities whose log-odds are divided by a temperature (Guo et al., ICML 2017, arXiv 1706.04599). Their order
    stays, and so does 0.5.

    Args:
        probabilities (`np.ndarray` or `float`): in [0, 1].
        temperature (`float`): above 0; above 1 takes them towards 0.5.

    Returns:
        `np.ndarray` or `float`: float64; at temperature 1 what was given.
    """
    if temperature == 1:
        return probabilities
    return expit(logit(np.asarray(probabilities, dtype=np.float64)) / temperature)


# Rules that take a threshold of its own for every map. They say how many pixels to draw.


def dice_optimal_pixels(ordered: np.ndarray) -> int:
    """
    How many of the most probable pixels to draw for the highest expected Dice.

    Where pixels are independent given the image, the mask of highest expected Dice holds the most probable ones (Dai
    and Li, JMLR 24, 2023, arXiv 2206.13086), and with many pixels the expected Dice of the first k is
    `2 sum of the first k / (k + sum of all)`, both sums of probabilities. Its maximum draws the pixels above half of
    itself (Lipton et al., ECML PKDD 2014, arXiv 1402.1892). No pixel is drawn where the target is empty, and Dice 1
    with an empty mask, with a probability above that. It asks for calibrated probabilities.

    Args:
        ordered (`np.ndarray` of shape `(pixels,)`): in [0, 1], ascending.

    Returns:
        `int`.
    """
    total = float(ordered.sum(dtype=np.float64))
    # What is drawn exceeds half of the best value, and so half of any: the others need not be looked at.
    some = max(len(ordered) - int(np.searchsorted(ordered, 0.5, side="right")), 1)
    reached = float(ordered[-some:].sum(dtype=np.float64)) / max(some + total, 1)
    candidates = ordered[np.searchsorted(ordered, 0.999999 * reached) :][::-1]
    expected = 2 * np.cumsum(candidates, dtype=np.float64) / (np.arange(1, len(candidates) + 1) + total)
    best = int(expected.argmax())
    if min(1 - ordered[-1], np.exp(-total)) < expected[best]:  # neither of which the probability below exceeds
        return best + 1
    with np.errstate(divide="ignore"):
        empty = np.exp(np.log1p(-ordered.astype(np.float64)).sum())
    return 0 if empty >= expected[best] else best + 1


def area_pixels(ordered: np.ndarray) -> int:
    """
    How many of the most probable pixels to draw for a mask as large as its target is expected to be: the sum of the
    probabilities, as nearly as pixels of equal probability allow, which are drawn together or not at all.

    Args:
        ordered (`np.ndarray` of shape `(pixels,)`): in [0, 1], ascending.

    Returns:
        `int`.
    """
    area = float(ordered.sum(dtype=np.float64))
    nearest = min(max(round(area), 1), len(ordered))
    value = ordered[-nearest]
    fewer = len(ordered) - int(np.searchsorted(ordered, value, side="right"))
    more = len(ordered) - int(np.searchsorted(ordered, value, side="left"))
    return min((fewer, more), key=lambda pixels: abs(pixels - area))


def threshold_for(ordered: np.ndarray, pixels: int) -> float:
    """
    Args:
        ordered (`np.ndarray` of shape `(pixels,)`): probabilities, ascending.
        pixels (`int`): how many to draw.

    Returns:
        `float`: `probabilities > threshold` draws as many; fewer where the last are as probable as the next one.
    """
    return float(ordered[-pixels - 1]) if pixels < len(ordered) else -1.0


#: The rules, by what they are called.
RULES = {"highest expected Dice": dice_optimal_pixels, "expected area": area_pixels}


# One pass


@dataclass
class Sweep:
    """
    What one pass over predictions has found.

    Args:
        thresholds (`tuple[float, ...]`): that were tried.
        samples (`pandas.DataFrame`): identifiers, one row an image.
        values (`dict[str, np.ndarray]`): for each of `SWEPT` an array of shape `(images, thresholds)`.
        rules (`dict[str, dict[str, np.ndarray]]`): for each rule and each of `SWEPT` an array of shape `(images,)`.
    """

    thresholds: tuple[float, ...]
    samples: pd.DataFrame
    values: dict[str, np.ndarray]
    rules: dict[str, dict[str, np.ndarray]]

    @property
    def clusters(self) -> list[Hashable] | None:
        """What intervals resample, as everywhere: patients, or else videos, or else images."""
        return sample_clusters(self.samples)

    def at(self, threshold: float) -> dict[str, np.ndarray]:
        """For each of `SWEPT` the values of the images at one of the thresholds."""
        place = self.thresholds.index(threshold)
        return {name: values[:, place] for name, values in self.values.items()}


def sweep(
    predictions: Iterable[tuple[dict, np.ndarray]],
    thresholds: Sequence[float] = THRESHOLDS,
    temperature: float | None = None,
    on_map: Callable[[SortedMap], None] | None = None,
) -> Sweep:
    """
    Score predictions at many thresholds, and by `RULES`, in one pass that keeps no map. Each value is that of
    [`~evaluation.score`] at that threshold: the mean over an image's masks.

    Args:
        predictions (iterable): rows and probabilities, of [`~evaluation.predict_probabilities`] for example.
        thresholds (`Sequence[float]`, *optional*, defaults to `THRESHOLDS`): in (0, 1).
        temperature (`float`, *optional*): with one, `RULES` are also tried on probabilities that it has calibrated.
        on_map (`Callable`, *optional*): called with every [`SortedMap`], such as the `add` of
            [`~evaluation.calibration.Calibration`].

    Returns:
        [`Sweep`].

    Raises:
        `DatasetError`: no rows, maps that are masks already, or maps of one value each.
        `ValueError`: a threshold outside (0, 1).

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.data import synthetic_dataset
        >>> from sa2va_trl.evaluation.thresholds import best_threshold, sweep

        >>> dataset = synthetic_dataset(num_videos=1, frames_per_video=4, size=64)
        >>> maps = [np.asarray(row["mask"])[None] / 255 * 0.3 + np.random.default_rng(0).random((1, 64, 64)) * 0.2
        ...     for row in dataset]
        >>> found = sweep(zip(dataset, maps))
        >>> found.values["dice"].shape, best_threshold(found)["threshold"]
        ((4, 99), 0.3)

        ```
    """
    thresholds = tuple(float(threshold) for threshold in thresholds)
    if not thresholds or not all(0 < threshold < 1 for threshold in thresholds):
        raise ValueError(f"thresholds must lie between 0 and 1, got {thresholds}.")
    temperatures = {"": 1.0} if temperature is None else {"": 1.0, ", calibrated": temperature}
    rules = [f"{name}{suffix}" for suffix in temperatures for name in RULES]
    identifiers, rows, varies = [], [], False
    for row, probabilities in predictions:
        measured = []
        targets = [np.asarray(mask) > 0 for mask in normalize_row(row)["masks"]]
        for one, target in zip(probabilities, targets, strict=True):
            ordered = sort_map(one, target)
            refuse_masks(row["sample_id"], ordered)
            varies |= bool(ordered.everything[0] < ordered.everything[-1])
            levels = [tempered(ordered.everything, value) for value in temperatures.values()]
            cuts = [threshold_for(ordered.everything, rule(own)) for own in levels for rule in RULES.values()]
            counts = ordered.counts((*thresholds, *cuts))
            measured.append([metric(counts) for metric in SWEPT.values()])
            if on_map is not None:
                on_map(ordered)
        # (Masks last and in one piece of memory, so that NumPy adds them up as it adds up a list.)
        rows.append(np.ascontiguousarray(np.moveaxis(measured, 0, -1)).mean(-1))
        identifiers.append(row_identifiers(row))
    if not rows:
        raise DatasetError("The dataset has no row with a mask, so there is nothing to score.")
    if not varies:
        raise DatasetError(ONE_VALUE)
    table = np.stack(rows, axis=1)  # metrics, images, thresholds and rules
    count = len(thresholds)
    return Sweep(
        thresholds,
        pd.DataFrame(identifiers),
        {name: table[number, :, :count] for number, name in enumerate(SWEPT)},
        {
            rule: {name: table[number, :, count + place] for number, name in enumerate(SWEPT)}
            for place, rule in enumerate(rules)
        },
    )


def refuse_masks(sample_id: str, ordered: SortedMap) -> None:
    """
    Args:
        sample_id (`str`): of the map.
        ordered ([`SortedMap`]): the map.

    Raises:
        `DatasetError`: it is a mask already.
    """
    if not ordered.has_two_values():
        return
    low, high = ordered.everything[[0, -1]]
    raise DatasetError(
        f"The map of sample_id {sample_id!r} is binary: it holds {low:g} and {high:g} and nothing between them. It is "
        "a mask, made with some threshold already: every other one gives the same mask and the same Dice, which says "
        "nothing of the model. Give the probabilities that it was made of: a model, or a folder of maps as "
        "SAMPLE_ID.npy (sa2va-trl predict writes such) or as grey SAMPLE_ID.png."
    )


# What is made of it


def resampled_means(
    values: np.ndarray, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> np.ndarray | None:
    """
    Means over images under a cluster bootstrap (see [`~evaluation.bootstrap_ci`]) in which all columns see the same
    resamples.

    Args:
        values (`np.ndarray` of shape `(images, columns)`): finite numbers.
        clusters (`Sequence`, *optional*): one label an image.
        seed (`int`, *optional*, defaults to 0): of the resampling.

    Returns:
        `np.ndarray` of shape `(resamples, columns)`; `None` for a single cluster, of which no spread can be told.
    """
    codes = np.arange(len(values)) if clusters is None else pd.factorize(np.asarray(clusters, dtype=object))[0]
    count = codes.max() + 1
    if count == 1:
        return None
    sums, sizes = np.zeros((count, values.shape[1])), np.bincount(codes)
    np.add.at(sums, codes, values)
    rng, means = np.random.default_rng(seed), np.empty((RESAMPLES, values.shape[1]))
    block = max(1, 2**22 // count)
    for start in range(0, RESAMPLES, block):
        stop = min(start + block, RESAMPLES)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=stop - start)
        means[start:stop] = drawn @ sums / (drawn @ sizes)[:, None]
    return means


def curves(found: Sweep) -> dict[str, dict[str, list[float]]]:
    """
    Macro means over thresholds, with pointwise 95 % bands (percentiles of the cluster bootstrap).

    Args:
        found ([`Sweep`]): of one split.

    Returns:
        `dict`: for each of `SWEPT` the lists `mean`, `low` and `high`, one number a threshold; `low` and `high` are
        `None` for a single patient.
    """
    result = {}
    for name, values in found.values.items():
        means = resampled_means(values, found.clusters)
        band = [None, None] if means is None else np.quantile(means, (0.025, 0.975), axis=0).tolist()
        result[name] = {"mean": macro(values).tolist(), "low": band[0], "high": band[1]}
    return result


def macro(values: np.ndarray) -> np.ndarray:
    """Means over images, of shape `(thresholds,)`, each as NumPy has it of the column alone."""
    return np.ascontiguousarray(values.T).mean(1)


def best_threshold(found: Sweep, metric: str = "dice") -> dict:
    """
    The threshold with the highest mean over images; of several, the one nearest to 0.5.

    Args:
        found ([`Sweep`]): of the split to choose on.
        metric (`str`, *optional*, defaults to `"dice"`): one of `SWEPT`.

    Returns:
        `dict`, ready for JSON: `metric`, `threshold`, `ci95` (of the choice: the 95 % range of what resamples of the
        patients would have chosen, `[None, None]` for a single one), `value` (the mean there), `gain`
        ([`~evaluation.paired_difference`] to 0.5, on the images that it was chosen on, which flatters it; `None` where
        0.5 was not tried) and `n` (images).
    """
    values, thresholds = found.values[metric], np.array(found.thresholds)
    draws = resampled_means(values, found.clusters)
    # Equal means may differ in their last bit.
    bias = 1e-12 * np.abs(thresholds - 0.5)
    chosen = int((macro(values) - bias).argmax())
    ci95 = [None, None]
    if draws is not None:
        ci95 = np.quantile(thresholds[(draws - bias).argmax(1)], (0.025, 0.975), method="nearest").tolist()
    return {
        "metric": metric,
        "threshold": found.thresholds[chosen],
        "ci95": ci95,
        "value": float(macro(values)[chosen]),
        "gain": paired_difference(found.at(0.5)[metric], values[:, chosen], found.clusters)
        if 0.5 in found.thresholds
        else None,
        "n": len(values),
    }


def rule_table(found: Sweep, chosen: float, chosen_on: str) -> list[dict]:
    """
    A threshold of 0.5, the chosen one and every rule on the images of a split, each against 0.5.

    Args:
        found ([`Sweep`]): of the split to report on, with 0.5 and the chosen threshold among its thresholds.
        chosen (`float`): the threshold that another split has chosen.
        chosen_on (`str`): its name.

    Returns:
        `list[dict]`, ready for JSON: `rule`; `threshold`, `None` where every map has its own; `SWEPT`, each as
        [`~evaluation.summarize`]; and `gain`, [`~evaluation.paired_difference`] of Dice to 0.5, `None` of 0.5 itself.
    """
    clusters, plain = found.clusters, found.at(0.5)
    lines = [
        ("0.5", 0.5, plain),
        (f"{chosen:g}, chosen on {chosen_on}", chosen, found.at(chosen)),
        *((f"{name}, per image", None, values) for name, values in found.rules.items()),
    ]
    return [
        {
            "rule": rule,
            "threshold": threshold,
            **{name: summarize(values[name], clusters) for name in SWEPT},
            "gain": None if values is plain else paired_difference(plain["dice"], values["dice"], clusters),
        }
        for rule, threshold, values in lines
    ]
