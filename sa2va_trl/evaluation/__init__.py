from .evaluator import evaluate
from .overlays import film_strip, overlay
from .predictions import predict_probabilities, read_predictions, stored_features
from .results import aggregate, score
from .statistics import (
    bootstrap_ci,
    bootstrap_interval,
    compare,
    comparison_table,
    effect_size,
    holm,
    minimum_detectable_difference,
    paired_difference,
    sample_clusters,
    sign_flip_p,
    smallest_p,
    summarize,
)


__all__ = [
    "aggregate",
    "bootstrap_ci",
    "bootstrap_interval",
    "compare",
    "comparison_table",
    "effect_size",
    "evaluate",
    "film_strip",
    "holm",
    "minimum_detectable_difference",
    "overlay",
    "paired_difference",
    "predict_probabilities",
    "read_predictions",
    "sample_clusters",
    "score",
    "sign_flip_p",
    "smallest_p",
    "stored_features",
    "summarize",
]
