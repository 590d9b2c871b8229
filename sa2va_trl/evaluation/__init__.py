from .evaluator import evaluate
from .overlays import film_strip, overlay
from .predictions import predict_probabilities, read_predictions, stored_features
from .results import aggregate, score
from .statistics import bootstrap_ci, compare, comparison_table, holm, paired_difference, sample_clusters, summarize


__all__ = [
    "aggregate",
    "bootstrap_ci",
    "compare",
    "comparison_table",
    "evaluate",
    "film_strip",
    "holm",
    "overlay",
    "paired_difference",
    "predict_probabilities",
    "read_predictions",
    "sample_clusters",
    "stored_features",
    "score",
    "summarize",
]
