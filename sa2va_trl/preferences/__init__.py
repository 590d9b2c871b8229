"""Preference pairs of masks."""

from ..sampling import Candidates, MaskSampler, gaussian_log_prob
from .corruptions import CORRUPTIONS, bridged_vessels, broken_branch, dilated, eroded, lost_branches
from .dataset import PREFERENCE_FEATURES, build_preferences, check_preferences, one_object_a_row, save_preferences
from .pairs import (
    CHOSEN,
    REJECTED,
    MaskPair,
    MinedPairs,
    check_online,
    disagreement_regions,
    make_pair,
    mine_pairs,
    stitch,
)


__all__ = [
    "CHOSEN",
    "CORRUPTIONS",
    "Candidates",
    "MaskPair",
    "MaskSampler",
    "MinedPairs",
    "PREFERENCE_FEATURES",
    "REJECTED",
    "bridged_vessels",
    "broken_branch",
    "build_preferences",
    "check_online",
    "check_preferences",
    "dilated",
    "disagreement_regions",
    "eroded",
    "gaussian_log_prob",
    "lost_branches",
    "make_pair",
    "mine_pairs",
    "one_object_a_row",
    "save_preferences",
    "stitch",
]
