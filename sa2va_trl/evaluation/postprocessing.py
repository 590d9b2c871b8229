"""
Which threshold and post-processing together are best, searched on the maps of one split by successive halving, and
what they gain on another.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..data.layout import normalize_row
from ..errors import DatasetError
from ..metrics import cldice, confusion_counts, dice
from ..motion import backward_flows
from ..postprocessing import (
    IDENTITY,
    TEMPORAL,
    Postprocessing,
    bridge_gaps,
    close_gaps,
    draw_row,
    drop_small,
    least_pixels,
)
from .clusters import sample_clusters
from .differences import paired_difference, summarize
from .halving import Halving, successive_halving
from .results import grey_frames, row_identifiers
from .thresholds import ONE_VALUE, refuse_masks, sort_map


def dice_of_masks(mask: np.ndarray, target: np.ndarray) -> float:
    """[`~metrics.dice`] of two bool masks of shape `(H, W)`."""
    return dice(confusion_counts(mask, target))


#: What can be searched for.
METRICS = {"dice": dice_of_masks, "cldice": cldice}
#: What is tried by default.
THRESHOLDS = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SPACE = {
    "hysteresis": (1.0, 0.5, 0.25),
    "closing_radius": (0, 3),
    "bridge_length": (0, 15),
    "min_share": (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.005),
}
#: And, of clips.
CLIPS = ({}, {"majority_frames": 3}, {"majority_frames": 5}, {"exponential_weight": 0.5}, {"flow_weight": 0.5})
# Of the first round at least, so that what is dropped there is not dropped for one of them.
FIRST_CLUSTERS = 5


class Candidate(NamedTuple):
    """
    A way to draw masks.

    Args:
        threshold (`float`): in (0, 1).
        settings ([`~postprocessing.Postprocessing`]): beside it.
    """

    threshold: float
    settings: Postprocessing


def make_candidates(
    thresholds: Sequence[float] = THRESHOLDS,
    space: dict[str, Sequence[float]] = SPACE,
    clips: Sequence[dict[str, float]] = ({},),
) -> list[Candidate]:
    """
    Every combination, the simplest first, since of equal ones the first is chosen: by the number of settings that do
    something, then by how near the threshold is to 0.5.

    Args:
        thresholds (`Sequence[float]`, *optional*): in (0, 1).
        space (`dict`, *optional*): for settings of [`~postprocessing.Postprocessing`] the values to try.
        clips (`Sequence[dict]`, *optional*): ways to smooth clips, of which `CLIPS` are some; none by default.

    Returns:
        `list[Candidate]`: no two alike.

    Raises:
        `ValueError`: as [`~postprocessing.Postprocessing`], or a threshold outside (0, 1).
    """
    if bad := [threshold for threshold in thresholds if not 0 < threshold < 1]:
        raise ValueError(f"thresholds must lie between 0 and 1, got {bad}.")
    found = {
        Candidate(float(threshold), Postprocessing.from_dict({**dict(zip(space, values, strict=True)), **smoothing}))
        for threshold, smoothing, *values in itertools.product(thresholds, clips, *space.values())
    }
    return sorted(found, key=lambda one: (len(one.settings.to_dict()), abs(one.threshold - 0.5), _order(one)))


def _order(one: Candidate) -> tuple:
    """What is alike up to the last step stands together, so that the steps before it are done once."""
    threshold, own = one
    smoothing = tuple(getattr(own, name) for name in TEMPORAL)
    return smoothing, threshold, own.hysteresis, own.closing_radius, own.bridge_length, own.min_size, own.min_share


# One image, many candidates


class Kept(NamedTuple):
    """
    What a score of a row depends on.

    Args:
        maps (`np.ndarray` of shape `(objects x frames, H, W)`): probabilities.
        targets (`np.ndarray` of shape `(objects x frames, H, W)`): bool.
        flows (`np.ndarray` of shape `(frames - 1, 2, H, W)`, *optional*): of a clip that may be smoothed along them.
        frames (`int`): of a clip; of an image 1.
    """

    maps: np.ndarray
    targets: np.ndarray
    flows: np.ndarray | None
    frames: int

    @classmethod
    def of(cls, row: dict, maps: np.ndarray, needs_motion: bool = False) -> "Kept":
        """From a row with its probabilities; with the flows of a clip if `needs_motion`."""
        layout = normalize_row(row)
        frames, flows = len(layout["images"]), None
        if needs_motion and frames > 1:
            flows = backward_flows(grey_frames(layout))
        return cls(maps, np.stack([np.asarray(mask) > 0 for mask in layout["masks"]]), flows, frames)


def score_candidates(kept: Kept, candidates: Sequence[Candidate], metric: str = "dice") -> np.ndarray:
    """
    Score many candidates on one row, each as if it were the only one: the mean over its masks. What several have in
    common is drawn once.

    Args:
        kept ([`Kept`]): the row.
        candidates (`Sequence[Candidate]`): to score.
        metric (`str`, *optional*, defaults to `"dice"`): one of `METRICS`.

    Returns:
        `np.ndarray` of shape `(candidates,)`.
    """
    measure, area = METRICS[metric], kept.targets[0].size

    @lru_cache(1)
    def raw(threshold: float, settings: Postprocessing) -> np.ndarray:
        return draw_row(kept.maps, threshold, settings, kept.frames, kept.flows)

    @lru_cache(1)
    def closed(threshold: float, settings: Postprocessing, radius: int) -> list[np.ndarray]:
        return [close_gaps(mask, radius) for mask in raw(threshold, settings)]

    @lru_cache(1)
    def bridged(threshold: float, settings: Postprocessing, radius: int, length: int) -> list[np.ndarray]:
        return [bridge_gaps(mask, length) for mask in closed(threshold, settings, radius)]

    @lru_cache(1)
    def value(threshold: float, settings: Postprocessing, radius: int, length: int, least: int) -> float:
        masks = [drop_small(mask, least) for mask in bridged(threshold, settings, radius, length)]
        return float(np.mean([measure(mask, target) for mask, target in zip(masks, kept.targets, strict=True)]))

    values = np.empty(len(candidates))
    for place in sorted(range(len(candidates)), key=lambda place: _order(candidates[place])):
        threshold, own = candidates[place]
        first = Postprocessing(own.hysteresis, **{name: getattr(own, name) for name in TEMPORAL})
        values[place] = value(threshold, first, own.closing_radius, own.bridge_length, least_pixels(own, area))
    return values


# The search


def _refuse_masks(row: dict, maps: np.ndarray) -> bool:
    """A `DatasetError` where a map is a mask; whether one of them has more than one value."""
    varies = False
    for own in maps:
        ordered = sort_map(own, np.zeros(own.shape, dtype=bool))
        refuse_masks(row["sample_id"], ordered)
        varies |= bool(ordered.everything[0] < ordered.everything[-1])
    return varies


class KeptMaps:
    """
    Probabilities and targets of a split in files, so that memory holds those of one row.

    Args:
        predictions (iterable): rows and probabilities, of [`~evaluation.predict_probabilities`] for example.
        folder (`Path`): to keep them in; empty.
        needs_motion (`bool`, *optional*, defaults to `False`): keep flows of clips too.

    Raises:
        `DatasetError`: no rows, maps that are masks already, or maps of one value each.
    """

    def __init__(self, predictions: Iterable[tuple[dict, np.ndarray]], folder: Path, needs_motion: bool = False):
        self.folder, identifiers, varies = folder, [], False
        self.positive = False
        for row, maps in predictions:
            varies |= _refuse_masks(row, maps)
            kept = Kept.of(row, maps, needs_motion)
            self.positive |= bool(kept.targets.any())
            arrays = {name: value for name, value in kept._asdict().items() if value is not None}
            np.savez(folder / f"{len(identifiers)}.npz", **arrays)
            identifiers.append(row_identifiers(row))
        if not identifiers:
            raise DatasetError("The dataset has no row with a mask, so there is nothing to score.")
        if not varies:
            raise DatasetError(ONE_VALUE)
        self.samples = pd.DataFrame(identifiers)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Kept:
        with np.load(self.folder / f"{place}.npz") as found:
            flows = found["flows"] if "flows" in found else None
            return Kept(found["maps"], found["targets"], flows, int(found["frames"]))

    @property
    def clusters(self) -> list[Hashable]:
        """What rounds of the search take together: patients, or else videos, or else images."""
        return sample_clusters(self.samples) or list(range(len(self)))


def search(
    kept: KeptMaps,
    candidates: Sequence[Candidate],
    metric: str = "dice",
    always: Sequence[Candidate] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda images, candidates: None,
) -> Halving:
    """
    Score candidates on a split by successive halving, see [`~evaluation.halving.successive_halving`]. The first round
    has at least five patients, and as many candidates are scored on all of them as that leaves.

    Args:
        kept ([`KeptMaps`]): of the split.
        candidates (`Sequence[Candidate]`): the simplest first, from [`make_candidates`].
        metric (`str`, *optional*, defaults to `"dice"`): one of `METRICS`.
        always (`Sequence[Candidate]`, *optional*): of them, those that are never dropped.
        seed (`int`, *optional*, defaults to 0): of the order in which patients are taken.
        progress (`Callable`, *optional*): told before an image is scored how many images and candidates the round has.

    Returns:
        [`~evaluation.halving.Halving`]: places among `candidates`.
    """
    places = {one: place for place, one in enumerate(candidates)}

    def score(which: list[int], images: list[int]) -> np.ndarray:
        columns = []
        for image in images:
            progress(len(images), len(which))
            columns.append(score_candidates(kept[image], [candidates[place] for place in which], metric))
        return np.stack(columns, axis=1)

    clusters = kept.clusters
    rounds = 0
    while len(set(clusters)) / 2 ** (rounds + 1) >= FIRST_CLUSTERS:
        rounds += 1
    finalists = max(-(-len(candidates) // 2**rounds), 4)
    return successive_halving(
        len(candidates), score, clusters, kept=[places[one] for one in always], finalists=finalists, seed=seed
    )


class Choice(NamedTuple):
    """
    What a search has chosen.

    Args:
        one ([`Candidate`]): the best.
        value (`float`): its mean over all images that it was chosen on, which flatters it.
        found ([`~evaluation.halving.Halving`]): how.
        searched (`int`): candidates.
    """

    one: Candidate
    value: float
    found: Halving
    searched: int


def choose(
    predictions: Iterable[tuple[dict, np.ndarray]],
    candidates: Sequence[Candidate],
    metric: str = "dice",
    folder: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda images, candidates: None,
) -> dict[str, Choice]:
    """
    The best threshold alone, the best post-processing of masks at 0.5, and the best of both together.

    Args:
        predictions (iterable): rows of a split and their probabilities; read once.
        candidates (`Sequence[Candidate]`): the simplest first, with 0.5 and other thresholds alone among them.
        metric, seed, progress: as [`search`].
        folder (`Path`, *optional*): to make a temporary folder for the maps in.

    Returns:
        `dict[str, Choice]`: `"threshold"`, `"postprocessing"` and `"both"`.

    Raises:
        `DatasetError`: as [`KeptMaps`], or masks that are all empty.
    """
    alone = [one for one in candidates if one.settings.is_identity]
    at_half = [one for one in candidates if one.threshold == 0.5]
    for left in Path(folder).glob(".maps_*") if folder is not None else ():  # by a call that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".maps_", dir=folder) as made:
        kept = KeptMaps(predictions, Path(made), any(one.settings.needs_motion for one in candidates))
        if not kept.positive:
            raise DatasetError("the masks are all empty, so the best setting is one that draws nothing.")
        options = {"metric": metric, "seed": seed, "progress": progress}
        results = {}
        for name, some, always in (
            ("threshold", alone, alone),
            ("postprocessing", at_half, at_half[:1]),
            ("both", candidates, None),
        ):
            always = [Candidate(0.5, IDENTITY), results["threshold"].one] if always is None else always
            found = search(kept, some, always=always, **options)
            best = some[found.best]
            results[name] = Choice(best, found.rounds[-1].means[0], found, len(some))
    return results


# The report


def gains(
    predictions: Iterable[tuple[dict, np.ndarray]], choices: dict[str, Choice], metric: str = "dice"
) -> list[dict]:
    """
    What has been chosen, on the images of another split: in one pass, each against 0.5 and against the best threshold
    alone.

    Args:
        predictions (iterable): rows of the split and their probabilities.
        choices (`dict[str, Choice]`): of [`choose`].
        metric (`str`, *optional*, defaults to `"dice"`): that they were chosen by.

    Returns:
        `list[dict]`, ready for JSON: `name`, `threshold`, `postprocessing`, `METRICS`, each as
        [`~evaluation.summarize`], and `gain` and `gain_over_threshold`, [`~evaluation.paired_difference`] of the
        metric to 0.5 and to the best threshold alone (`None` of these themselves).

    Raises:
        `DatasetError`: maps that are masks already.
    """
    candidates = [Candidate(0.5, IDENTITY), *(choice.one for choice in choices.values())]
    needs_motion = any(one.settings.needs_motion for one in candidates)
    samples, values = [], {name: [] for name in METRICS}
    for row, maps in predictions:
        _refuse_masks(row, maps)
        kept = Kept.of(row, maps, needs_motion)
        for name in METRICS:
            values[name].append(score_candidates(kept, candidates, name))
        samples.append(row_identifiers(row))
    clusters = sample_clusters(pd.DataFrame(samples))
    tables = {name: np.stack(own, axis=1) for name, own in values.items()}
    own, names = tables[metric], ["0.5", *choices]
    threshold = own[names.index("threshold")]
    return [
        {
            "name": name,
            "threshold": one.threshold,
            "postprocessing": one.settings.to_dict(),
            **{measured: summarize(table[place], clusters) for measured, table in tables.items()},
            "gain": None if place == 0 else paired_difference(own[0], own[place], clusters),
            "gain_over_threshold": (
                None if name in ("0.5", "threshold") else paired_difference(threshold, own[place], clusters)
            ),
        }
        for place, (name, one) in enumerate(zip(names, candidates, strict=True))
    ]
