"""Weights of rows: by what scores say of them, and by the width of their vessels."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, Features, List
from datasets import Image as ImageFeature
from PIL import Image
from rows import every_kind
from score_tables import table

from sa2va_trl.errors import MiningError
from sa2va_trl.metrics import measure
from sa2va_trl.trainers.row_sampling import (
    FLOOR,
    choose_rows,
    drawn_rows,
    mask_widths,
    sampling_weights,
    stage_of,
    stage_weights,
    width_classes,
)


def line(width, size=64):
    """A horizontal vessel of this many pixels across."""
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[20 : 20 + width, 8:56] = 255
    return Image.fromarray(mask)


def test_spread_and_hardness_weigh_rows_and_those_without_a_mask_are_never_drawn():
    scores = table(dice=[0.9, 0.2, np.nan, 0.5], reward_spread=[0.1, 0.0, np.nan, 0.3])
    assert sampling_weights(scores, "spread").tolist() == [0.1, 0.0, 0.0, 0.3]
    assert sampling_weights(scores, "hardness") == pytest.approx([0.1, 0.8, 0.0, 0.5])
    counts = Counter(drawn_rows(sampling_weights(scores, "spread"), 40, epoch=0, seed=0))
    assert counts == {0: 10, 3: 30}


def test_scores_that_give_no_weights():
    with pytest.raises(ValueError, match="needs a column 'reward_spread', .* Mine again, or use sample_by=hardness"):
        sampling_weights(table(dice=[0.5]), "spread")
    with pytest.raises(MiningError, match="all equally good"):
        sampling_weights(table(dice=[0.5], reward_spread=[0.0]), "spread")


def test_the_largest_are_kept_and_without_weights_some_at_random():
    weights = np.array([0.1, 0.0, 0.4, 0.3, 0.4])
    assert choose_rows(weights, 5, 3, seed=0).tolist() == [2, 3, 4]
    assert choose_rows(weights, 5, 5, seed=0).tolist() == [0, 2, 3, 4]  # never one without a weight
    some = [tuple(choose_rows(None, 20, 5, seed)) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2] and len(set(some[0])) == 5 and list(some[0]) == sorted(some[0])


def test_draws_are_of_seed_and_epoch_alone():
    weights = np.arange(1.0, 9.0)
    plans = [drawn_rows(weights, 8, epoch, seed) for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert plans[0] == plans[1] and plans[0] != plans[2] and plans[0] != plans[3]


def test_widths_are_those_that_are_measured_along_the_skeleton():
    features = Features({"masks": List(ImageFeature(mode="L"))})
    masks = [[line(3)], [line(7)], [line(15)], [line(0)], [], [line(3), line(15)]]
    widths = mask_widths(Dataset.from_list([{"masks": entry} for entry in masks], features=features))
    for width, (mask, *_) in zip(widths[:3], masks[:3], strict=True):
        expected = measure(np.zeros((64, 64)), np.asarray(mask) > 0)["thickness"]
        assert width == pytest.approx(expected)
    assert np.isnan(widths[3:5]).all() and widths[0] < widths[5] < widths[2]
    assert width_classes(widths).tolist() == [2, 1, 0, -1, -1, 1]


def test_widths_of_rows_of_every_kind():
    widths = mask_widths(every_kind())
    assert np.isnan(widths).tolist() == [False, False, False, True, True, False]


def test_stages_share_the_epochs_out():
    classes = np.array([0, 1, 2, -1])
    assert [stage_of(epoch, 6, classes) for epoch in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [stage_of(epoch, 4, classes) for epoch in range(4)] == [0, 0, 1, 2]
    assert [stage_of(epoch, 2, np.array([2, 0, 2])) for epoch in range(2)] == [0, 2]
    with pytest.raises(ValueError, match="an epoch for each of thick, medium, thin, and the run has 2"):
        stage_of(0, 2, classes)
    with pytest.raises(ValueError, match="no effect: of the training rows all are thin"):
        stage_of(0, 3, np.array([2, 2, -1]))


def test_a_stage_draws_its_own_class_and_a_floor_of_the_others():
    classes = np.array([0] * 10 + [1] * 40 + [2] * 30 + [-1] * 20)
    for stage in range(3):
        weights = stage_weights(classes, stage)
        assert weights.sum() == pytest.approx(1) and (weights > 0).all()
        shares = [weights[classes == kind].sum() for kind in (-1, 0, 1, 2)]
        others = [0.8 * (1 - 2 * FLOOR if kind == stage else FLOOR) for kind in range(3)]
        assert shares == pytest.approx([0.2, *others])
        drawn = classes[drawn_rows(weights, 400, 0, 0)]
        assert Counter(drawn.tolist())[stage] == pytest.approx(400 * 0.8 * 0.9, abs=45)


def test_within_a_class_rows_keep_their_weights():
    classes, own = np.array([0, 0, 2, 2]), np.array([1.0, 3.0, 0.0, 2.0])
    weights = stage_weights(classes, 0, own)
    assert weights == pytest.approx([0.95 / 4, 0.95 * 3 / 4, 0.0, 0.05])


def test_rows_that_are_flagged_for_review_are_not_drawn():
    scores = table(dice=[0.0, 0.6, 0.8], review=[True, False, False])
    assert sampling_weights(scores, "hardness") == pytest.approx([0.0, 0.4, 0.2])


def test_a_spread_that_is_missing_is_said():
    with pytest.raises(ValueError, match="needs a 'reward_spread' of each row; 1 of 2 have none"):
        sampling_weights(table(dice=[0.9, 0.2], reward_spread=[0.1, np.nan]), "spread")
