"""Who is held out in which fold, and what each fold learns from."""

import json
from collections import Counter

import pytest
from datasets import Dataset, DatasetDict, Image, List
from PIL import Image as Pillow
from prepared import shown

from sa2va_trl.data import load_dataset_dict
from sa2va_trl.errors import DatasetError
from sa2va_trl.scripts.folds import (
    digest_of,
    in_words,
    make_folds,
    pooled_rows,
    record_folds,
    with_masks,
    write_folds,
    write_pairs,
)


def picture(value):
    return Pillow.new("L", (4, 4), value)


def rows(patients, **columns):
    number = len(patients)
    own = {"sample_id": [f"s{place}" for place in range(number)], "patient_id": patients}
    own |= {"image": [picture(place) for place in range(number)], "mask": [picture(255)] * number}
    data = Dataset.from_dict({**own, "phrase": ["vessel"] * number, **columns})
    pictures = [name for name in ("image", "mask", "chosen_mask", "rejected_mask") if name in data.column_names]
    for name in pictures:
        data = data.cast_column(name, Image())
    return data


TEN = rows([f"p{number // 2}" for number in range(20)])


@pytest.mark.parametrize("share", [None, 0.25])
def test_splits_of_a_fold_share_no_patient(share):
    folds = make_folds(TEN, 5, None, share, 0)
    assert (folds.by, folds.groups, len(folds.splits)) == ("patient_id", "patients", 5)
    for number, own in enumerate(folds.splits):
        assert list(own) == (["train", "test"] if share is None else ["train", "validation", "test"])
        assert sorted(sum(folds.ids(number).values(), [])) == sorted(TEN["sample_id"])
        patients = [set(split["patient_id"]) for split in own.values()]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 10
        assert len(own["test"]) == 4 and folds.count(number, "test") == 2
        assert share is None or len(own["validation"]) == 4
    held_out = Counter(sum((folds.ids(number)["test"] for number in range(5)), []))
    assert held_out == Counter(TEN["sample_id"])


@pytest.mark.parametrize("by", ["sample_id", "video_id"])
def test_frames_that_look_alike_are_held_out_together_where_no_patient_is_known(by, capsys):
    pictures = [shown(scene).point(lambda value, dim=dim: value * dim) for scene in range(8) for dim in (1, 0.9)]
    cells = {"image": pictures, "mask": [Pillow.new("L", (40, 32), 255)] * 16}
    videos = {"video_id": [f"v{number}" for number in range(16)]} if by == "video_id" else {}
    data = rows([None] * 16, **cells, **videos)
    for share in (None, 0.25):
        folds = make_folds(data, 4, None, share, 0)
        assert folds.by == by
        for number in range(4):
            for ids in folds.ids(number).values():
                scenes = Counter(int(name[1:]) // 2 for name in ids)
                assert set(scenes.values()) == {2}
    assert "of which some look alike: these stay together, 8 groups" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="8 groups in .* are too few for 9 folds"):
        make_folds(data, 9, None, None, 0)
    assert len(make_folds(data, 16, None, None, 0, accept_alike=True).splits) == 16


def test_a_patient_who_would_be_on_both_sides_is_an_error():
    data = rows(["p", "p", "q", "q"], video_id=["v", "w", "x", "y"])
    with pytest.raises(DatasetError, match="train of fold0 and test of fold0 overlap: both have"):
        make_folds(data, 4, "video_id", None, 0)


def test_too_few_patients():
    with pytest.raises(DatasetError, match="10 groups .* are too few for 11 folds.*\n.*--by, another number"):
        make_folds(TEN, 11, None, None, 0)
    with pytest.raises(DatasetError, match="fold0 leaves one of the patients to learn from.*--eval_strategy no"):
        make_folds(rows(["p", "q"]), 2, None, 0.2, 0)
    with pytest.raises(DatasetError, match="1 rows have no group(.|\n)*row 1: patient_id is missing(.|\n)*--by"):
        make_folds(rows(["p", None, "q"]), 2, None, None, 0)


def test_rows_need_an_identifier_of_their_own():
    one = TEN.select(range(4))
    assert len(pooled_rows(DatasetDict(train=one, validation=TEN.select(range(4, 20))))) == 20
    with pytest.raises(
        DatasetError, match="2 rows of train and validation have the sample_id of another one \\('s2', 's3'\\)"
    ):
        pooled_rows(DatasetDict(train=one, validation=TEN.select(range(2, 8))))


def test_other_folds_in_the_same_folder_are_refused(tmp_path):
    file = tmp_path / "folds.json"
    for _ in range(2):
        record_folds(file, make_folds(TEN, 5, None, None, 0), "data", None, "a")
    for folds, name, synthetic in (
        (make_folds(TEN, 5, None, None, 1), "data", None),
        (make_folds(TEN, 4, None, None, 0), "data", None),
        (make_folds(TEN, 5, None, 0.2, 0), "data", None),
        (make_folds(TEN, 5, None, None, 0), "other", None),
        (make_folds(TEN, 5, None, None, 0), "data", {"size": 96}),
    ):
        with pytest.raises(ValueError, match="was begun with other data or folds"):
            record_folds(file, folds, name, synthetic, "a")


def test_rows_or_pairs_that_have_changed_are_refused(tmp_path):
    file, folds = tmp_path / "folds.json", make_folds(TEN, 5, None, None, 0)
    record_folds(file, folds, "data", None, "a", {"pairs (train)": "b"})
    record_folds(file, folds, "data", None, "a", {"more": "c"})  # of a configuration that was added
    record_folds(file, folds, "data", None, "a")
    assert json.loads(file.read_text())["pairs"] == {"pairs (train)": "b", "more": "c"}
    with pytest.raises(ValueError, match="^data changed since .* their images, masks or texts are others"):
        record_folds(file, folds, "data", None, "x", {"more": "c"})
    with pytest.raises(ValueError, match="^data and more changed since"):
        record_folds(file, folds, "data", None, "x", {"pairs (train)": "b", "more": "x"})
    with pytest.raises(ValueError, match="^pairs \\(train\\) changed since"):
        record_folds(file, folds, "data", None, "a", {"pairs (train)": "x"})


def test_a_digest_tells_images_masks_texts_and_pairs_apart():
    pair = {"chosen_mask": [picture(255)], "rejected_mask": [picture(0)], "chosen_reward": [0.9]}
    variants = [
        rows(["p"]),
        rows(["p"], image=[picture(1)]),
        rows(["p"], mask=[picture(0)]),
        rows(["p"], phrase=["other"]),
        rows(["q"]),
        rows(["p"], **pair),
        rows(["p"], **{**pair, "chosen_mask": [picture(0)]}),
        rows(["p"], **{**pair, "rejected_mask": [picture(255)]}),
        rows(["p"], **{**pair, "chosen_reward": [0.8]}),
    ]
    assert len({digest_of(data) for data in variants}) == len(variants)
    assert digest_of(rows(["p"])) == digest_of(variants[0])
    assert digest_of(TEN) != digest_of(TEN.select([1, 0, *range(2, 20)]))


def test_rows_without_masks_are_held_out_but_not_scored():
    masks = [[picture(255)] if place % 2 else [] for place in range(8)]
    data = rows([f"p{place // 2}" for place in range(8)], masks=masks).remove_columns(["mask"])
    data = data.cast_column("masks", List(Image()))
    assert with_masks(data) == ["s1", "s3", "s5", "s7"]
    folds = make_folds(data, 2, None, None, 0)
    for number in range(2):
        held_out = folds.ids(number)["test"]
        assert len(held_out) == 4 and folds.scored[number] == [name for name in held_out if int(name[1:]) % 2]
    assert "4 of the 8 images have no mask to be scored by" in " ".join(in_words(folds, ["train"], None))
    assert "no mask" not in " ".join(in_words(make_folds(TEN, 5, None, None, 0), ["train"], None))
    with pytest.raises(DatasetError, match="None of the 1 rows that fold\\d holds out has a mask to be scored by"):
        make_folds(data, 8, "sample_id", None, 0)


def test_folds_open_as_data_sets(tmp_path):
    DatasetDict(train=TEN.select(range(8)), validation=TEN.select(range(8, 20))).save_to_disk(tmp_path / "data")
    folds = make_folds(TEN, 5, None, 0.25, 0)
    write_folds(tmp_path, folds, str(tmp_path / "data"), ["train", "validation"])
    for number in range(5):
        data = load_dataset_dict(tmp_path / f"fold{number}" / "data")
        assert {split: own["sample_id"][:] for split, own in data.items()} == folds.ids(number)


@pytest.mark.parametrize("by", ["patient_id", "sample_id"])
def test_a_fold_learns_from_pairs_of_its_training_rows_alone(tmp_path, by):
    data = TEN if by == "patient_id" else TEN.remove_columns("patient_id")
    pairs = DatasetDict(
        train=data.select([*range(20), *range(20)]).map(
            lambda row, place: {"sample_id": row["sample_id"] + ("#0:greedy" if place % 2 else ":dilated")},
            with_indices=True,
        )
    )
    pairs.save_to_disk(tmp_path / "pairs")
    folds = make_folds(data, 5, None, 0.25, 0)
    folder = tmp_path / "fold1" / "pairs"
    write_pairs(folder, pairs, str(tmp_path / "pairs"), "train", folds, 1)
    found = load_dataset_dict(folder)["train"]["sample_id"]
    train = folds.ids(1)["train"]
    assert Counter(name.split(":")[0].split("#")[0] for name in found) == Counter(2 * train)
    with pytest.raises(DatasetError, match="has no pair of the rows that fold1 trains on"):
        few = DatasetDict(train=pairs["train"].select([TEN["sample_id"][:].index(folds.ids(1)["test"][0])]))
        write_pairs(folder, few, "few", "train", folds, 1)
    with pytest.raises(DatasetError, match=f"no column {by}"):
        write_pairs(folder, DatasetDict(train=Dataset.from_dict({"n": [1]})), "few", "train", folds, 1)


def test_pairs_are_of_the_groups_that_their_column_says_whatever_these_are_called(tmp_path):
    hospitals = [place // 5 for place in range(20)]
    numbered = TEN.add_column("hospital", hospitals).remove_columns("patient_id")
    folds = make_folds(numbered, 4, "hospital", None, 0)
    pairs = DatasetDict(train=numbered)
    pairs.save_to_disk(tmp_path / "pairs")
    write_pairs(tmp_path / "own", pairs, str(tmp_path / "pairs"), "train", folds, 0)
    assert load_dataset_dict(tmp_path / "own")["train"]["sample_id"][:] == folds.ids(0)["train"]
    # A pair of nobody is of no training row, and a patient "p0:1" is another one than "p0".
    for name, other in (("none", None), ("other", "p0:1")):
        data = rows([other, "p0", "p1"])
        DatasetDict(train=data).save_to_disk(tmp_path / name)
        folds = make_folds(rows(["p2", "p0", "p1"]), 3, "patient_id", None, 0)
        held_out = next(number for number in range(3) if folds.splits[number]["test"]["patient_id"][0] == "p2")
        write_pairs(tmp_path / "own", DatasetDict(train=data), str(tmp_path / name), "train", folds, held_out)
        assert load_dataset_dict(tmp_path / "own")["train"]["patient_id"][:] == ["p0", "p1"]


def test_names_that_look_like_frames_of_patients_are_warned_of(capsys):
    names = [f"P{patient}_f{frame}" for patient in range(3) for frame in range(4)]
    make_folds(rows([None] * 12, sample_id=names), 3, None, None, 0)
    assert "WARNING: names look like frames of patients or clips (many begin with 'P2')" in capsys.readouterr().out
    make_folds(rows(list("aaaabbbbcccc"), sample_id=names), 3, None, None, 0)
    assert "WARNING" not in capsys.readouterr().out
