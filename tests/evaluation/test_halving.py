"""The search by successive halving: what it costs, what it keeps, and that it finds what is best."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.evaluation.halving import successive_halving


def _table(values):
    return lambda which, images: values[np.ix_(which, images)]


@given(
    count=st.integers(1, 40), images=st.integers(1, 40), groups=st.integers(1, 12), seed=st.integers(0, 5),
    finalists=st.integers(1, 6), eta=st.integers(2, 4),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_last_round_has_all_images_and_the_best_of_its_candidates(count, images, groups, seed, finalists, eta):
    rng = np.random.default_rng(seed)
    values, clusters = rng.random((count, images)), rng.integers(groups, size=images).tolist()
    asked = np.zeros((count, images), dtype=int)

    def score(which, rows):
        asked[np.ix_(which, rows)] += 1
        return values[np.ix_(which, rows)]

    found = successive_halving(count, score, clusters, finalists=finalists, eta=eta, seed=seed)

    assert asked.max() == 1 and (np.isfinite(found.values) == (asked == 1)).all()
    last = found.rounds[-1]
    assert last.images == images and last.clusters == len(set(clusters))
    assert 0 in last.candidates
    if len(set(clusters)) >= eta:  # of fewer no round could drop any
        assert len(last.candidates) <= finalists + 1
    assert found.best == max(last.candidates, key=lambda candidate: values[candidate].mean())
    assert last.means == sorted(last.means, reverse=True)
    for one, other in zip(found.rounds, found.rounds[1:], strict=False):
        assert set(other.candidates) <= set(one.candidates) and other.images >= one.images


def test_a_candidate_that_is_best_on_every_image_is_found():
    quality = np.random.default_rng(0).permutation(64) / 64
    noise = np.random.default_rng(1).random(30) * 10  # of images, the same for all candidates

    found = successive_halving(64, _table(quality[:, None] + noise), clusters=range(30))

    assert found.best == quality.argmax()
    assert found.scored < 0.4 * 64 * 30


def test_images_of_a_patient_come_together():
    clusters = [0, 1, 2, 3] * 5
    rounds = []
    successive_halving(
        16, lambda which, rows: rounds.append(rows) or np.zeros((len(which), len(rows))), clusters, finalists=4
    )
    for rows in rounds:
        assert all(sum(clusters[row] == label for row in rows) in (0, 5) for label in range(4))


def test_every_round_has_new_patients():
    found = successive_halving(146, _table(np.random.default_rng(0).random((146, 60))), [row % 6 for row in range(60)])
    assert [each.clusters for each in found.rounds] == [2, 3, 6]
    counts = [len(each.candidates) for each in found.rounds]
    assert counts[0] == 146 and counts[-1] == 5 and counts[1] == pytest.approx(146 / np.sqrt(146 / 4), abs=2)


def test_of_equal_ones_the_first_wins():
    assert successive_halving(9, _table(np.zeros((9, 8))), clusters=range(8)).best == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"count": 0}, "nothing to search"),
        ({"clusters": []}, "nothing to search"),
        ({"eta": 1}, "eta must be at least 2"),
        ({"finalists": 0}, "finalists at least 1"),
        ({"kept": (5,)}, r"kept names \[5\], of 3"),
        ({"score": lambda which, rows: np.zeros(3)}, "finite numbers, got shape"),
        ({"score": lambda which, rows: np.full((len(which), len(rows)), np.nan)}, "finite numbers"),
    ],
)
def test_bad_arguments(options, message):
    given = {"count": 3, "score": _table(np.zeros((3, 4))), "clusters": range(4), **options}
    with pytest.raises(ValueError, match=message):
        successive_halving(**given)
