from .evaluator import aggregate, evaluate, predict_probabilities, read_predictions, score, stored_features
from .overlays import film_strip, overlay
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
