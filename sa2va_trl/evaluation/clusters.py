"""What is resampled, tested and counted: patients, or else videos, or else pictures, or else samples themselves."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd


# From the widest on: the column that names them, and what they are.
_KINDS = {"patient_id": "patients", "video_id": "videos", "picture": "pictures"}


class Clusters(NamedTuple):
    """
    Numbers of images, summed by cluster. The same images in another order, or clusters of other names, give the same.

    Args:
        sums (`np.ndarray` of shape `(clusters,)`): of a cluster's numbers.
        sizes (`np.ndarray` of shape `(clusters,)`): how many those are.
    """

    sums: np.ndarray
    sizes: np.ndarray

    @property
    def mean(self) -> float:
        """Over images."""
        return float(self.sums.sum() / self.sizes.sum())

    def left_out(self) -> np.ndarray:
        """
        Returns:
            `np.ndarray` of shape `(clusters,)`: means over the images of all clusters but one (the jackknife).
        """
        return (self.sums.sum() - self.sums) / (self.sizes.sum() - self.sizes)

    def standard_error(self) -> float:
        """
        Of the mean over images, by the jackknife over clusters (Efron and Tibshirani, 1993, formula 11.5): with one
        image a cluster, `std / sqrt(n)`.

        Returns:
            `float`: in the unit of the numbers; NaN for a single cluster.
        """
        count = len(self.sums)
        if count == 1:
            return float("nan")
        others = self.left_out()
        return float(np.sqrt((count - 1) / count * ((others - others.mean()) ** 2).sum()))


def by_cluster(values: Sequence[float], clusters: Sequence[Hashable] | None = None, name: str = "values") -> Clusters:
    """
    Args:
        values (`Sequence[float]`): one finite number an image.
        clusters (`Sequence`, *optional*): one label an image; by default every image is its own cluster.
        name (`str`, *optional*, defaults to `"values"`): what errors call the numbers.

    Returns:
        `Clusters`.

    Raises:
        `ValueError`: `values` is empty, not one-dimensional or not finite, or `clusters` has another length or a
            missing label.
    """
    values = check_values(values, name)
    codes = np.arange(len(values)) if clusters is None else _codes(clusters, len(values))
    sums, sizes = np.bincount(codes, values), np.bincount(codes)
    order = np.lexsort((sums, sizes))  # the same images in another order draw the same resamples
    return Clusters(sums[order], sizes[order])


def check_values(values: Sequence[float], name: str = "values") -> np.ndarray:
    """
    Args:
        values (`Sequence[float]`): one number an image.
        name (`str`, *optional*, defaults to `"values"`): what errors call them.

    Returns:
        `np.ndarray` of shape `(images,)`, float64.

    Raises:
        `ValueError`: there are none, they have not one dimension, or some are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"`{name}` must be a sequence of at least one number, got shape {values.shape}.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(values)} `{name}` are not finite, the first at index {bad[0]} ({values[bad[0]]}): "
            "leave such images out, or give them their worst value, before summarizing."
        )
    return values


def sample_clusters(samples: pd.DataFrame) -> list[Hashable] | None:
    """
    What the samples of a table are resampled by: patients, or else videos, or else pictures, or else themselves.

    Args:
        samples (`pandas.DataFrame`):
            One row a sample, with `sample_id` and, where they are known, `patient_id` and `video_id`; `picture` where
            several samples are of one.

    Returns:
        `list`: one label a sample; a sample of which none of these is known counts as its own. `None` for a table that
        has no such column.
    """
    groups = [samples[name] for name in _KINDS if name in samples]
    if not groups:
        return None
    return pd.concat([*groups, samples["sample_id"]], axis=1).bfill(axis=1).iloc[:, 0].tolist()


def cluster_name(samples: pd.DataFrame) -> str:
    """
    What [`sample_clusters`] are, in a word.

    Args:
        samples (`pandas.DataFrame`): one row a sample.

    Returns:
        `str`: `"patients"`, `"videos"`, `"pictures"` or `"images"`, whichever the first rows that have any are grouped
        by.
    """
    for column, name in _KINDS.items():
        if column in samples and samples[column].notna().any():
            return name
    return "images"


def _codes(clusters: Sequence[Hashable], length: int) -> np.ndarray:
    labels = list(clusters)
    if len(labels) != length:
        raise ValueError(f"`clusters` must hold one label a value, got {len(labels)} labels for {length} values.")
    missing = [index for index, cluster in enumerate(labels) if cluster is None or cluster != cluster]
    if missing:
        raise ValueError(
            f"{len(missing)} of {length} `clusters` are missing (None or NaN), the first at index {missing[0]}: "
            "give every image a label, or leave `clusters` out."
        )
    codes = {cluster: code for code, cluster in enumerate(dict.fromkeys(labels))}
    return np.array([codes[cluster] for cluster in labels])
