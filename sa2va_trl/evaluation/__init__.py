from .evaluator import aggregate, evaluate, predict_probabilities, read_predictions, score, stored_features
from .overlays import film_strip, overlay
from .statistics import bootstrap_ci, summarize


__all__ = [
    "aggregate",
    "bootstrap_ci",
    "evaluate",
    "film_strip",
    "overlay",
    "predict_probabilities",
    "read_predictions",
    "stored_features",
    "score",
    "summarize",
]
