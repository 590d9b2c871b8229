"""
Means over images and differences between models, with intervals and tests that respect patients.

The face of `clusters`, `intervals`, `significance`, `power`, `differences` and `comparison`.
"""

from .clusters import cluster_name, sample_clusters
from .comparison import compare, comparison_table
from .differences import paired_difference, summarize
from .intervals import Interval, bootstrap_ci, bootstrap_interval
from .power import effect_size, minimum_detectable_difference
from .significance import holm, sign_flip_p, smallest_p


__all__ = [
    "Interval",
    "bootstrap_ci",
    "bootstrap_interval",
    "cluster_name",
    "compare",
    "comparison_table",
    "effect_size",
    "holm",
    "minimum_detectable_difference",
    "paired_difference",
    "sample_clusters",
    "sign_flip_p",
    "smallest_p",
    "summarize",
]
