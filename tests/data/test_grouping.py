import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.data.grouping import alike, ids_by_pattern, look_grouped_across, looks_grouped, share_out
from sa2va_trl.errors import DatasetError


def test_patients_are_searched_for_in_names():
    names = ["run/P07_f001.png", "P12_f001.png"]
    assert ids_by_pattern(names, r"(P\d+)_") == ids_by_pattern(names, r"P\d+") == ["P07", "P12"]
    with pytest.raises(DatasetError, match="2 of 3 names do not say the patient") as error:
        ids_by_pattern([*names, "12_x.png"], r"^(\d*)_")
    assert [problem.file for problem in error.value.problems] == names
    with pytest.raises(ValueError, match="is no regular expression"):
        ids_by_pattern(names, "(P")


def test_a_pattern_fills_in_what_nothing_else_says():
    names = ["P07_f1.png", "P07_f2.png", "run.dcm", "P12_f1.png"]
    assert ids_by_pattern(names, r"(P\d+)_", ["P07", None, "DOE", None]) == ["P07", "P07", "DOE", "P12"]
    with pytest.raises(ValueError, match="has no effect: the source says who is in each"):
        ids_by_pattern(names, r"(P\d+)_", list("abcd"))
    with pytest.raises(DatasetError, match="2 of 4 names do not say the patient") as error:
        ids_by_pattern([*names[:3], "x.png"], r"(P\d+)_", ["DOE", None, "DOE", None])
    first, second = error.value.problems
    assert "finds 'P07' in its name, and the source says 'DOE'" in first.reason and second.file == "x.png"


def test_names_of_two_splits_that_look_like_frames_of_the_same_clips():
    one, other = ["P07_f001.png", "P12_f003.png", "P07_f004.png"], ["P12_f001.png", "P13_f2.png", "P12_f2.png"]
    assert look_grouped_across(one, other) == "P12"
    assert look_grouped_across(one, ["P13_f1.png", "P13_f2.png"]) is None
    assert look_grouped_across(["row1", "row2"], ["row3"]) is None  # one beginning says nothing


def test_the_published_numbers_are_met_as_near_as_groups_allow():
    groups = [str(row * 36 // 1220) for row in range(1220)]  # 36 videos of 33 or 34 frames
    found = share_out(groups, np.random.default_rng(0).random(1220), {"train": 1000, "test": 220})
    assert abs(found.count("test") - 220) < 34 and len(set(zip(groups, found, strict=True))) == 36


@pytest.mark.parametrize(
    ("names", "start"),
    [
        (["P07_f001.png", "P07_f002.png", "P12_f001.png", "P12_f2.png"], "P12"),
        (["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"], "b/"),
        (["001.png", "002.png", "img_3.png"], None),  # numbers alone
        (["train1.png", "train2.png", "train3.png"], None),  # one beginning says nothing
        (["ann.png", "bob.png", "cyd.png", "dan.png"], None),  # as many beginnings as names
        ([], None),
    ],
)
def test_names_that_look_like_frames_of_clips(names, start):
    assert looks_grouped(names) == start


@pytest.mark.parametrize("images", [5, 700])  # one block and several
def test_what_looks_alike_is_a_cluster_directly_or_through_others(images):
    # A walk around a circle, each a step from the next, and others far away.
    angle = np.arange(images) * 0.1
    walk = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    order = np.random.default_rng(0).permutation(images + 1)
    vectors = np.concatenate([walk, [[0, 0, 1]]]).astype(np.float32)[order]
    clusters = np.array(alike(vectors, 0.99))
    lonely = order == images
    assert len(set(clusters[~lonely])) == 1 and len(set(clusters)) == 2
    assert len(set(alike(vectors[::2] if images == 5 else vectors, 0.9999))) >= 3
    assert len(set(alike(np.zeros((3, 4), dtype=np.float32), 0.5))) == 3  # nothing is seen in them


ROWS = st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), min_size=1, max_size=120)
SHARES = st.dictionaries(st.sampled_from("abcd"), st.floats(0.02, 1000), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(ROWS, SHARES, st.integers(0, 3), st.randoms())
def test_properties_of_sharing_out(rows, shares, seed, random):
    groups, areas = [str(group) for group, _ in rows], [area for _, area in rows]
    if len(set(groups)) < len(shares):
        with pytest.raises(DatasetError, match="are too few for"):
            share_out(groups, areas, shares, seed)
        return
    found = share_out(groups, areas, shares, seed)
    assert set(found) == set(shares)  # none is empty
    of = dict(zip(groups, found, strict=True))
    assert all(of[group] == split for group, split in zip(groups, found, strict=True))  # no group is in two
    largest = max(groups.count(group) for group in of)
    for split, share in shares.items():
        aim = len(rows) * share / sum(shares.values())
        assert found.count(split) < aim + largest + 1e-6
        assert found.count(split) > aim - len(shares) * largest - 1e-6
    order = list(range(len(rows)))
    random.shuffle(order)
    again = share_out([groups[row] for row in order], [areas[row] for row in order], shares, seed)
    assert again == [found[row] for row in order]  # whatever the order of the rows


def test_numbers_of_rows_are_met_where_groups_allow():
    rng = np.random.default_rng(0)
    found = share_out([str(number) for number in range(1220)], rng.random(1220), {"train": 1000, "test": 220})
    assert (found.count("train"), found.count("test")) == (1000, 220)


@pytest.mark.parametrize("seed", range(5))
def test_each_split_has_its_part_of_small_and_large_masks(seed):
    areas = np.random.default_rng(0).lognormal(size=1200)
    groups = [str(row // 4) for row in range(1200)]
    found = np.array(share_out(groups, areas, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed))
    mean = np.array([areas[row // 4 * 4 : row // 4 * 4 + 4].mean() for row in range(1200)])
    thirds = np.digitize(mean, np.quantile(mean, [1 / 3, 2 / 3]))
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        parts = [np.mean(found[thirds == third] == split) for third in range(3)]
        assert np.allclose(parts, share, atol=0.03), (split, parts)
    assert list(found) != share_out(groups, areas, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed + 1)


@pytest.mark.parametrize("shares", [{}, {"a": 0}, {"a": 1, "b": -1}, {"a": float("nan")}, {"a": float("inf")}])
def test_shares_are_above_0(shares):
    with pytest.raises(ValueError, match="must have shares above 0"):
        share_out(["a", "b"], [0, 0], shares)
