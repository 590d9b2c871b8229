import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa2va_trl.rewards import RankNormalizer


values = st.lists(st.floats(-10, 10) | st.sampled_from([0.0, 0.5, 1.0]), max_size=8)


@given(st.lists(values, max_size=4), st.integers(1, 9))
def test_ranks_are_what_a_loop_says(batches, size):
    ranks, last = RankNormalizer(size), []
    for batch in batches:
        kept = last[max(len(last) + len(batch) - size, 0) :]
        history = kept + batch
        expected = [
            (sum(other < value for other in history) + 0.5 * sum(other == value for other in history)) / len(history)
            for value in batch
        ]
        found = ranks(batch)
        np.testing.assert_allclose(found, expected)
        assert all(type(value) is float and 0 < value < 1 for value in found)
        last = history[-size:]


def test_ranks_do_not_know_the_scale_nor_the_order_within_a_batch():
    drawn = np.random.default_rng(0).random(64)
    one, other = RankNormalizer(256), RankNormalizer(256)
    for batch in drawn.reshape(4, 16):
        np.testing.assert_allclose(one(batch), other(np.exp(9 * batch[::-1]))[::-1])


def test_over_a_history_ranks_are_spread_evenly():
    crowded = 0.95 + 0.01 * np.random.default_rng(0).random(1000) ** 2
    found = np.array(RankNormalizer(1000)(crowded))
    np.testing.assert_allclose(np.sort(found), (np.arange(1000) + 0.5) / 1000)


def test_it_goes_on_from_its_state():
    rng = np.random.default_rng(1)
    whole, first = RankNormalizer(20), RankNormalizer(20)
    for _ in range(3):
        batch = rng.random(9)
        assert whole(batch) == first(batch)
    second = RankNormalizer(20)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    batch = rng.random(9)
    assert second(batch) == whole(batch) != RankNormalizer(20)(batch)
    with pytest.raises(ValueError, match="history was of 20 rewards, this one is of 21"):
        RankNormalizer(21).load_state_dict(first.state_dict())


def test_what_has_no_rank_is_refused():
    with pytest.raises(ValueError, match="only finite rewards"):
        RankNormalizer()([0.5, float("nan")])
    with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
        RankNormalizer(0)
    assert RankNormalizer()([]) == []
