"""Hard samples: scores, what is hard, and runs of hard frames."""

from ..errors import MiningError
from ..sampling import default_sampler
from .runs import THRESHOLD, check_frames, check_options, on_the_grid, temporal_clusters, usual_step, videos
from .score_files import FORMAT, METRICS, fingerprint_of, read_scores, save_scores
from .scoring import score_dataset
from .selection import (
    AGREEMENT,
    BUCKETS,
    CAUSES,
    UNCLEAR,
    buckets,
    describe_clusters,
    hard_threshold,
    likely_cause,
    mark_clusters,
    mine,
    review_reasons,
    select_hard,
    summary,
)
from .unlabelled import predict_unlabelled, score_unlabelled


__all__ = [
    "AGREEMENT",
    "BUCKETS",
    "CAUSES",
    "FORMAT",
    "METRICS",
    "MiningError",
    "THRESHOLD",
    "UNCLEAR",
    "buckets",
    "check_frames",
    "check_options",
    "default_sampler",
    "describe_clusters",
    "fingerprint_of",
    "hard_threshold",
    "likely_cause",
    "mark_clusters",
    "mine",
    "on_the_grid",
    "predict_unlabelled",
    "read_scores",
    "review_reasons",
    "save_scores",
    "score_dataset",
    "score_unlabelled",
    "select_hard",
    "summary",
    "temporal_clusters",
    "usual_step",
    "videos",
]
