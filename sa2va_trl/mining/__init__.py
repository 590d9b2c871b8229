"""Hard samples: scores, what is hard, and runs of hard frames."""

from ..errors import MiningError
from ..sampling import default_sampler
from .hardness import HARD_BELOW, decided
from .hardness import HARD_BELOW as THRESHOLD  # (its earlier name)
from .runs import check_frames, check_options, on_the_grid, temporal_clusters, usual_step, videos
from .score_files import SCORE_METRICS, SCORES_FORMAT, fingerprint_of, read_scores, save_scores, scores_for
from .score_files import SCORE_METRICS as METRICS  # (their earlier names)
from .score_files import SCORES_FORMAT as FORMAT
from .scoring import score_dataset
from .selection import (
    AGREEMENT,
    BUCKETS,
    CAUSES,
    UNCLEAR,
    buckets,
    describe_clusters,
    hard_limit,
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
    "HARD_BELOW",
    "METRICS",
    "MiningError",
    "SCORES_FORMAT",
    "SCORE_METRICS",
    "THRESHOLD",
    "UNCLEAR",
    "buckets",
    "check_frames",
    "check_options",
    "default_sampler",
    "decided",
    "describe_clusters",
    "fingerprint_of",
    "hard_limit",
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
    "scores_for",
    "select_hard",
    "summary",
    "temporal_clusters",
    "usual_step",
    "videos",
]
