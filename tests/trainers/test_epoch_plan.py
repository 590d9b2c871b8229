"""Which rows an epoch of hard-sample training holds, how often, and in which order."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.data import DatasetError, synthetic_dataset
from sa2va_trl.trainers.epoch_plan import (
    capped,
    check_columns,
    draw,
    match_scores,
    plan_epoch,
    row_weights,
    select_rows,
)


def table(dice, **columns):
    return pd.DataFrame({"dice": np.asarray(dice, dtype=float), **columns})


def rng(seed=0):
    return np.random.default_rng(seed)


# Hard and ordinary rows


def test_hard_rows_lie_below_the_threshold_and_no_row_is_both():
    hard, ordinary = select_rows(table([0.2, 0.75, 0.7499, np.nan, 0.9]))
    assert hard.tolist() == [True, False, True, False, False]
    assert ordinary.tolist() == [False, True, False, False, True]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=30, unique=True), st.floats(0.2, 0.8))
def test_the_worst_share_is_the_lowest_dice(dice, worst):
    hard, ordinary = select_rows(table([*dice, np.nan]), worst=worst)
    assert hard.sum() == round(worst * len(dice)) and ordinary.sum() == len(dice) - hard.sum()
    assert np.asarray(dice)[hard[:-1]].max() < np.asarray(dice)[ordinary[:-1]].min()


def test_the_share_wins_over_the_limit():
    scores = pd.DataFrame({"dice": [0.1, 0.5, 0.6, 0.7]})
    assert np.array_equal(select_rows(scores, 0.75, 0.25)[0], select_rows(scores, worst=0.25)[0])


def test_rows_for_review_are_left_out_unless_asked_for():
    scores = table([0.1, 0.2, 0.9, 0.95], review=[True, False, False, True])
    hard, ordinary = select_rows(scores)
    assert hard.tolist() == [False, True, False, False] and ordinary.tolist() == [False, False, True, False]
    hard, ordinary = select_rows(scores, include_review=True)
    assert hard.tolist() == [True, True, False, False] and ordinary.tolist() == [False, False, True, True]


@pytest.mark.parametrize(("threshold", "what"), [(0.05, "none"), (0.95, "all")])
def test_a_threshold_that_tells_nothing_apart_says_what_would(threshold, what):
    dice = np.linspace(0.1, 0.9, 9)
    with pytest.raises(ValueError, match=rf"hard_below={threshold} selects {what} of 9 samples.*0\.2601 selects 2"):
        select_rows(table(dice), threshold)
    hard, _ = select_rows(table(dice), 0.2601)
    assert hard.sum() == 2


def test_nothing_left_to_train_on_is_said():
    with pytest.raises(ValueError, match="flagged for review"):
        select_rows(table([0.1, 0.9], review=[True, True]))


# Weights


def test_all_hard_rows_count_alike_by_default():
    assert row_weights(table([0.1, 0.7])).tolist() == [1, 1]


def test_weights_grow_with_the_error_up_to_the_cap():
    weights = row_weights(table([0.7, 0.5, 0.1]), "dice")
    assert weights[1] / weights[0] == pytest.approx(0.5 / 0.3) and weights.mean() == pytest.approx(1)
    capped = row_weights(table([0.9] * 9 + [0.0]), "dice", weight_cap=2.0)
    assert capped.max() == 2.0 and capped[:9] == pytest.approx(0.1 / 0.19)


def test_spread_weighs_rows_that_the_policy_can_change():
    weights = row_weights(table([0.5, 0.5, 0.1], spread=[0.2, 0.1, 0.0]), "spread", weight_cap=10)
    assert weights.tolist() == pytest.approx([2, 1, 0])
    with pytest.raises(ValueError, match="difficulty=spread gives no hard row a weight"):
        row_weights(table([0.5, 0.5], spread=[0.0, 0.0]), "spread")


def test_every_cluster_counts_alike_and_a_row_outside_is_one_of_its_own():
    weights = row_weights(table([0.1] * 6, cluster=["a/0", "a/0", "a/0", "b/0", None, None]), "cluster")
    assert weights[:3].sum() == pytest.approx(weights[3])
    assert weights[3] == weights[4] == weights[5]
    assert row_weights(table([0.1] * 2, cluster=[None, None]), "cluster").tolist() == [1, 1]


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30).filter(lambda w: sum(w) > 1e-3), st.integers(0, 100))
def test_draws_come_as_often_as_expected(weights, count):
    weights = np.array(weights)
    drawn = draw(weights, count, rng())
    assert len(drawn) == count
    expected = weights / weights.sum() * count
    found = np.bincount(drawn, minlength=len(weights))
    assert (found >= np.floor(expected - 1e-6)).all() and (found <= np.ceil(expected + 1e-6)).all()


def test_draws_are_not_biased_by_position():
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    found = np.mean([np.bincount(draw(weights, 3, rng(seed)), minlength=4) for seed in range(2000)], axis=0)
    assert found == pytest.approx(3 * weights / 10, abs=0.05)


def test_draws_of_one_row_do_not_stand_together():
    drawn = draw(np.ones(4), 400, rng())
    assert np.mean(drawn[1:] == drawn[:-1]) == pytest.approx(0.25, abs=0.1)


# Plans


def plan(dice, length, epoch=0, **options):
    scores = dice if isinstance(dice, pd.DataFrame) else table(dice)
    return plan_epoch(scores, *select_rows(scores), length, epoch, **options)


def test_an_epoch_holds_every_hard_row_and_its_share_of_ordinary_ones():
    dice = [0.1, 0.9, 0.8, 0.2, 0.85, 0.3, 0.95, 0.4]
    rows = Counter(plan(dice, 8))
    assert {row: rows[row] for row in (0, 3, 5, 7)} == dict.fromkeys((0, 3, 5, 7), 1)
    assert sum(rows[row] for row in (1, 2, 4, 6)) == 4
    assert sorted(plan(dice, 4, easy_share=0.0)) == [0, 3, 5, 7]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_every_stretch_holds_its_share(share):
    dice = np.linspace(0, 1, 40)
    is_easy = np.array(plan(dice, 60, easy_share=share)) >= 30
    for start in range(0, 60, 10):
        assert abs(is_easy[start : start + 10].sum() - 10 * share) <= 1


def test_a_plan_is_a_function_of_seed_and_epoch():
    dice = np.linspace(0, 1, 40)
    assert plan(dice, 60, epoch=3, seed=7) == plan(dice, 60, epoch=3, seed=7)
    assert len({tuple(plan(dice, 60, epoch=epoch, seed=seed)) for epoch in range(3) for seed in range(3)}) == 9


@pytest.mark.parametrize("curriculum", ["difficulty", "thickness"])
def test_a_curriculum_goes_from_easy_and_thick_to_hard_and_thin(curriculum):
    scores = table(np.linspace(0, 1, 40), thickness=rng(1).permutation(40))
    rows = np.array(plan(scores, 60, curriculum=curriculum))
    hard = rows[rows < 30]
    values = scores["dice" if curriculum == "difficulty" else "thickness"].to_numpy()[hard]
    assert len(hard) == 30 and len(set(hard.tolist())) == 30
    first, second, third = np.split(values, 3)
    assert first.min() > second.max() > second.min() > third.max()
    assert not (np.diff(first) < 0).all()  # shuffled within a band
    assert (rows >= 30).sum() == 30


def test_empty_masks_which_have_no_thickness_come_last():
    scores = table(np.linspace(0, 0.7, 9), thickness=[np.nan, 1, 2, np.nan, 3, 4, 5, 6, 7])
    scores = pd.concat([scores, table([0.9], thickness=[np.nan])], ignore_index=True)
    check_columns(scores, SimpleNamespace(difficulty="threshold", curriculum="thickness", include_review=False))
    rows = plan(scores, 9, curriculum="thickness", easy_share=0.0)
    assert set(rows[:3]) == {6, 7, 8} and set(rows[3:6]) == {2, 4, 5} and set(rows[6:]) == {0, 1, 3}


def test_columns_with_gaps_are_refused():
    scores = table([0.1, 0.2, np.nan], spread=[0.1, np.nan, np.nan], thickness=[np.nan] * 3, cluster=[None] * 3)
    args = {"difficulty": "threshold", "curriculum": "none", "include_review": False}
    check_columns(scores, SimpleNamespace(**{**args, "difficulty": "cluster"}))
    for options, message in (
        ({"difficulty": "spread"}, "difficulty=spread needs a 'spread' of each row; 1 of 2 have none"),
        ({"curriculum": "thickness"}, "curriculum=thickness needs a 'thickness' of each row; 2 of 2 have none"),
        ({"include_review": True}, "include_review=True needs a column 'review'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_columns(scores, SimpleNamespace(**{**args, **options}))


# Scores and rows


@pytest.fixture(scope="module")
def data():
    return synthetic_dataset(num_videos=2, frames_per_video=3, size=64)


def scores_of(data, **columns):
    return pd.DataFrame({"sample_id": data["sample_id"], "dice": np.linspace(0.5, 0.9, len(data)), **columns})


def test_scores_are_matched_by_sample_id(data):
    scores = scores_of(data, review=[False] * 5 + [True])
    matched = match_scores(scores.sample(frac=1, random_state=1), data)
    assert matched["dice"].tolist() == scores["dice"].tolist()
    assert matched["review"].tolist() == scores["review"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores.drop(columns="dice"), "no column dice"),
        (lambda scores: scores.iloc[1:], "lack 1 of 6 rows"),
        (lambda scores: pd.concat([scores, scores.iloc[:1]]), "1 sample_id more than once"),
        (
            lambda scores: scores.assign(sample_id="x" + scores["sample_id"]),
            "6 of 6 sample_id that train_dataset lacks",
        ),
        (lambda scores: scores.assign(dice=[1.5, *scores["dice"][1:]]), r"1 scores have a dice outside of \[0, 1\]"),
        (lambda scores: scores.assign(dice=[np.nan, *scores["dice"][1:]]), "1 scores have a dice outside"),
    ],
)
def test_scores_of_other_rows_are_refused(data, change, message):
    with pytest.raises(DatasetError, match=message):
        match_scores(change(scores_of(data)), data)


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=60).filter(any),
    st.floats(1, 10),
)
def test_no_capped_weight_is_more_than_its_multiple_of_the_mean(weights, cap):
    weights = np.array(weights)
    found = capped(weights, cap)
    assert found.mean() == pytest.approx(1) and ((found > 0) == (weights > 0)).all()
    positive = int((weights > 0).sum())
    assert found.max() <= max(cap, len(weights) / positive) * (1 + 1e-9)
    order = np.argsort(weights, kind="stable")
    assert (np.diff(found[order]) >= -1e-9 * cap).all()  # none overtakes another
    free = (found < cap * (1 - 1e-9)) & (weights > 0)
    if positive * cap > len(weights) and free.any():
        shares = found[free] / weights[free]
        assert shares == pytest.approx(np.full(len(shares), shares[0]))


def test_a_heavy_row_is_not_the_whole_epoch():
    assert capped(np.array([1e6] + 99 * [1.0]), 3.0) == pytest.approx([3.0] + 99 * [97 / 99])


@pytest.mark.parametrize("value", [-1.0, np.inf])
def test_a_spread_that_is_none_is_refused(value):
    data = Dataset.from_dict({"sample_id": ["a", "b"]})
    scores = pd.DataFrame({"sample_id": ["a", "b"], "dice": [0.5, 0.5], "reward_spread": [0.1, value]})
    with pytest.raises(DatasetError, match="1 scores have a reward_spread below 0 or infinite, such as 'b'"):
        match_scores(scores, data)
