import logging

import numpy as np
import PIL.Image
import pytest
from prepared import shown

from sa2va_trl.data.dividing import check_splits, groups_of, splits_of
from sa2va_trl.data.near_duplicates import ALIKE, near_duplicates, pixel_digest, thumbnail
from sa2va_trl.data.preparing import Item, Look, Plan
from sa2va_trl.data.readers.entries import Entry
from sa2va_trl.errors import DatasetError


BLANK = shown(0).point(lambda value: 0)


def seen(*pictures):
    """Items with their looks and thumbnails, of (name, picture, facts[, split])."""
    items, looks = [], []
    for number, (name, picture, facts, *split) in enumerate(pictures):
        items.append(Item(Entry(name, None, facts=facts), 0, number, split[0] if split else None))
        looks.append(Look(None, picture.size, 0.1, pixel_digest(picture)))
    return items, looks, np.stack([thumbnail(picture) for _, picture, *_ in pictures])


def brighter(number):
    return shown(number).point(lambda value: value * 0.9 + 12)


def patient(name):
    return {"patient_id": name}


def video(name):
    return {"video_id": name}


def parted(groups):
    """Rows of each group."""
    return sorted([row for row, own in enumerate(groups) if own == group] for group in set(groups))


def test_patients_are_kept_together_before_videos_and_these_before_what_looks_alike():
    both = seen(("a", shown(1), {**patient("x"), **video("1")}), ("b", shown(2), {**patient("x"), **video("2")}))
    assert groups_of(*both, "auto") == ("patient_id", ["/a/000000000"] * 2)
    assert parted(groups_of(*both, "video_id")[1]) == [[0], [1]]
    by, groups = groups_of(*seen(("a", shown(1), video("1")), ("b", shown(2), video("1"))), "auto")
    assert by == "video_id" and parted(groups) == [[0, 1]]
    by, groups = groups_of(*seen(("a", shown(1), {}), ("b", shown(2), {}), ("c", brighter(1), {})), "auto")
    assert by == "near_duplicates" and parted(groups) == [[0, 2], [1]]


def test_videos_that_look_alike_are_together_unless_that_is_accepted():
    own = seen(("a", shown(1), video("1")), ("b", shown(2), video("2")), ("c", brighter(1), video("3")))
    assert parted(groups_of(*own, "video_id")[1]) == [[0, 2], [1]]
    assert parted(groups_of(*own, "video_id", accept_alike=True)[1]) == [[0], [1], [2]]


def test_equal_pictures_are_together_and_say_so_but_for_those_that_show_nothing(caplog):
    pictures = [("a", shown(1), patient("x")), ("b", shown(1), patient("y")), ("c", BLANK, patient("z"))]
    own = seen(*pictures, ("d", BLANK, patient("w")))
    with caplog.at_level(logging.WARNING):
        assert parted(groups_of(*own, "auto")[1]) == [[0, 1], [2], [3]]
    assert "1 pictures are there under several patient_ids (a and b, ...)" in caplog.text
    assert parted(groups_of(*own, "sample_id")[1]) == [[0, 1], [2], [3]]


@pytest.mark.parametrize("level", [120, 255])
def test_dark_frames_with_one_bright_pixel_join_nobody(caplog, level):
    first = PIL.Image.new("L", (512, 512))
    first.putpixel((30, 40), level)
    own = [
        (f"{number}/{frame}", picture, patient(str(number)))
        for number in range(6)
        for frame, picture in enumerate((first, shown(number)))
    ]
    plan = Plan(shares={"train": 4, "test": 2})
    by, splits = splits_of(*seen(*own), plan)
    assert by == "patient_id" and splits.count("test") == 4 and not caplog.text


def test_rows_without_the_group_that_is_asked_for_are_named():
    own = seen(("a", shown(1), patient("x")), ("b", shown(2), {}))
    with pytest.raises(DatasetError, match="1 of 2 images have none") as error:
        groups_of(*own, "auto")
    assert error.value.problems[0].file == "b"
    with pytest.raises(ValueError, match="split_by must be one of"):
        groups_of(*own, "patient")


def test_splits_do_not_depend_on_the_order_of_the_rows():
    pictures = [(f"{number}.png", shown(number // 2), {}) for number in range(30)]
    plan = Plan(shares={"train": 2, "test": 1})
    by, found = splits_of(*seen(*pictures), plan)
    order = np.random.default_rng(0).permutation(30)
    again = splits_of(*seen(*[pictures[row] for row in order]), plan)
    assert by == "near_duplicates" and again == (by, [found[row] for row in order])
    assert found[::2] == found[1::2] and found.count("train") == 20


def test_the_splits_of_the_source_stand():
    own = seen(("a", shown(1), {}, "train"), ("a", shown(2), {}, "test"))
    assert splits_of(*own, Plan()) == ("source", ["train", "test"])
    assert splits_of(*seen(("a", shown(1), {}), ("b", shown(1), {})), Plan()) == ("none", ["train", "train"])


@pytest.mark.parametrize("column", ["patient_id", "video_id"])
def test_a_patient_or_video_in_two_splits_is_an_error(column):
    own = seen(("a", shown(1), {column: "x"}, "train"), ("b", shown(2), {column: "x"}, "test"))
    with pytest.raises(DatasetError, match=rf"splits share 1 {column} \(x\): split anew"):
        splits_of(*own, Plan(accept_alike=True))


def test_equal_pictures_of_two_splits_are_an_error_whoever_is_in_them():
    own = seen(("a", shown(1), patient("x"), "train"), ("b", shown(1), patient("y"), "test"))
    with pytest.raises(DatasetError, match="splits share 1 pictures") as error:
        splits_of(*own, Plan(accept_alike=True))
    assert [problem.file for problem in error.value.problems] == ["a", "b"]
    splits_of(*seen(("a", BLANK, {}, "train"), ("b", BLANK, {}, "test")), Plan())  # which show nothing
    splits_of(*seen(("a", shown(1), {}, "train"), ("b", shown(1), {}, "train"), ("c", shown(2), {}, "test")), Plan())


def test_what_looks_alike_is_an_error_unless_it_is_accepted_or_of_two_patients(caplog):
    own = seen(("a", shown(1), {}, "train"), ("b", brighter(1), {}, "test"), ("c", shown(2), {}, "test"))
    with pytest.raises(DatasetError, match="1 pairs of images look alike") as error:
        splits_of(*own, Plan())
    (problem,) = error.value.problems
    assert problem.file == "a" and problem.reason == "train: looks like b, test"
    half = seen(("a", shown(1), patient("x"), "train"), ("b", brighter(1), {}, "test"))
    with pytest.raises(DatasetError, match="look alike"):
        splits_of(*half, Plan())
    two = seen(("a", shown(1), patient("x"), "train"), ("b", brighter(1), patient("y"), "test"))
    for rows, plan in ((own, Plan(accept_alike=True)), (two, Plan())):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            splits_of(*rows, plan)
        assert "look alike (a and b, ...)" in caplog.text


def test_splits_by_sample_are_checked_as_well():
    own = seen(*((f"{number}", brighter(1) if number % 2 else shown(1), {}) for number in range(4)))
    with pytest.raises(DatasetError, match="look alike"):
        check_splits(*own, ["train", "test"] * 2)


def test_many_pairs_of_known_patients_do_not_hide_one_of_unknown_ones():
    known = [(f"k{n}", brighter(1) if n % 2 else shown(1), patient(f"p{n % 2}")) for n in range(42)]
    other = [("c", shown(2), {}), ("d", PIL.Image.blend(shown(2), shown(5), 0.1), {})]
    own = seen(*known, *other)
    listed = near_duplicates(own[2], ["train", "test"] * 22, ALIKE)
    assert len(listed) == 200 and (42, 43) not in [pair[:2] for pair in listed]
    with pytest.raises(DatasetError, match="1 pairs of images look alike") as error:
        check_splits(*own, ["train", "test"] * 22)
    (problem,) = error.value.problems
    assert problem.file == "c" and "looks like d" in problem.reason
