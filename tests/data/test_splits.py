import io
import logging

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import shown

from sa2va_trl.data.masks import encode_mask
from sa2va_trl.data.near_duplicates import ALIKE, near_duplicates
from sa2va_trl.data.sightings import sights_of
from sa2va_trl.data.splits import check_no_leakage, check_pictures, group_column, group_folds, group_split
from sa2va_trl.data.stored import iter_undecoded
from sa2va_trl.errors import DatasetError


def rows(patients, videos=None):
    columns = {"sample_id": [f"{patient}-{number}" for number, patient in enumerate(patients)], "patient_id": patients}
    if videos is not None:
        columns["video_id"] = videos
    return Dataset.from_dict(columns)


class TestLeakage:
    def test_disjoint(self):
        check_no_leakage(rows(["a", "b"]), rows(["c"]))

    def test_every_shared_column_is_named_with_examples(self):
        train = rows(["a", "b", "b"], ["v1", "v2", "v3"])
        with pytest.raises(DatasetError) as caught:
            check_no_leakage(train, rows(["b", "c"], ["v3", "v9"]), ("train", "test"))
        message = str(caught.value)
        assert "train and test overlap" in message
        assert "1 patient_id ('b')" in message and "1 video_id ('v3')" in message
        assert "sample_id" not in message

    @pytest.mark.parametrize("column", ["patient_id", "video_id", "sample_id"])
    def test_each_column_alone(self, column):
        one = Dataset.from_dict({column: ["x", "y"]})
        with pytest.raises(DatasetError, match=f"1 {column} \\('y'\\)"):
            check_no_leakage(one, Dataset.from_dict({column: ["y", "z"]}))

    def test_none_is_no_group(self):
        check_no_leakage(rows(["a", None]), Dataset.from_dict({"sample_id": ["q"], "patient_id": [None]}))

    def test_selection_counts_only_its_rows(self):
        dataset = rows(["a", "a", "b"])
        check_no_leakage(dataset.select([0, 1]), dataset.select([2]))
        with pytest.raises(DatasetError, match="patient_id"):
            check_no_leakage(dataset.select([0]), dataset.select([1, 2]))

    def test_names_like_frames_of_the_same_patients_are_warned_of(self, caplog):
        train, test = ({"sample_id": [f"P{p}_f{f}" for p in "12" for f in own]} for own in ((1, 2), (3, 4)))
        check_no_leakage(Dataset.from_dict(train), Dataset.from_dict(test))
        assert "train and validation: names look like frames of the same patients" in caplog.text
        caplog.clear()
        check_no_leakage(*(Dataset.from_dict({**own, "video_id": own["sample_id"]}) for own in (train, test)))
        assert not caplog.text

    def test_nothing_to_compare_is_said(self, caplog):
        check_no_leakage(Dataset.from_dict({"a": [1]}), Dataset.from_dict({"a": [1]}))
        assert "cannot be checked" in caplog.text


def pictures(*numbers, prefix="a", path=None, change=1, others=()):
    """Rows of pictures, in another contrast by `change`, and others; -1 is a blank one."""
    cells = list(map(encode_mask, others))
    for number in numbers:
        factor = change if number >= 0 else 0
        cell = encode_mask(shown(max(number, 0)).point(lambda value, factor=factor: value * factor))
        if path is not None:
            (path / f"{prefix}{number}.png").write_bytes(cell["bytes"])
            cell = {"bytes": None, "path": str(path / f"{prefix}{number}.png")}
        cells.append(cell)
    columns = {"image": cells, "sample_id": [f"{prefix}{place}" for place in range(len(cells))]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "sample_id": Value("string")}))


class TestSharedImages:
    def test_equal_images_under_other_names_are_an_error(self):
        check_no_leakage(pictures(1, 2), pictures(3, prefix="b"))
        with pytest.raises(DatasetError, match=r"overlap: 2 images are in several of them .*row 1 of .* \(b0\)"):
            check_no_leakage(pictures(1, 2), pictures(2, 3, 1, prefix="b"), accept_alike=True)
        check_no_leakage(pictures(1, 2), pictures(2, 3, 1, prefix="b"), images=False)

    def test_in_another_kind_of_file(self, tmp_path):
        other = pictures(2, prefix="b")
        buffer = io.BytesIO()
        shown(2).convert("RGB").save(buffer, "BMP")
        other = Dataset.from_dict({**other[:], "image": [{"bytes": buffer.getvalue(), "path": None}]}, other.features)
        with pytest.raises(DatasetError, match=r"1 images .*row 1 of train \(a1\) is row 0 of validation \(b0\)"):
            check_no_leakage(pictures(1, 2, path=tmp_path), other)
        rows = pictures(1, 2, 3, path=tmp_path)
        (tmp_path / "a1.png").unlink()  # which the check of rows reports
        check_no_leakage(rows, pictures(1, prefix="b"))

    def test_those_that_show_nothing_may_be_equal(self):
        check_no_leakage(pictures(1, -1), pictures(-1, 2, prefix="b"))

    def test_selections_and_formats_are_seen_through(self):
        rows = pictures(1, 2, 3)
        check_no_leakage(rows.select([2, 0]), pictures(2, prefix="b").with_format("numpy"))
        with pytest.raises(DatasetError, match=r"row 0 of train \(a2\) is row 0 of"):
            check_no_leakage(rows.select([2, 0]).with_transform(lambda batch: batch), pictures(3, prefix="b"))

    def test_frames_of_clips(self):
        cells = [cell for batch in iter_undecoded(pictures(1, 2, 3)) for cell in (row["image"] for row in batch)]
        features = Features({"images": List(Image()), "sample_id": Value("string")})
        clips = Dataset.from_dict({"images": [cells[:1], cells[1:]], "sample_id": ["x", "y"]}, features=features)
        with pytest.raises(DatasetError, match=r"row 1 of train \(y\) is row 0 of validation \(b0\)"):
            check_no_leakage(clips, pictures(3, 4, prefix="b"))


class TestImagesThatLookAlike:
    def test_are_an_error_unless_accepted(self, caplog):
        own = pictures(1, 2), pictures(3, 1, prefix="b", change=0.9)
        with pytest.raises(DatasetError, match=r"1 or more pairs .*row 0 of train \(a0\) looks like row 1 of"):
            check_no_leakage(*own)
        with caplog.at_level(logging.WARNING):
            check_no_leakage(*own, accept_alike=True)
        assert "1 or more pairs of images look alike" in caplog.text

    def test_of_two_known_patients_are_named_in_the_log(self, caplog):
        own = pictures(1, 2), pictures(3, 1, prefix="b", change=0.9)
        both = [rows.add_column("patient_id", names) for rows, names in zip(own, ("xy", "zz"), strict=True)]
        with caplog.at_level(logging.WARNING):
            check_no_leakage(*both)
        assert "row 0 of train (a0) looks like row 1 of validation (b1)" in caplog.text
        half = own[1].add_column("patient_id", ["z", None])
        with pytest.raises(DatasetError, match="nothing says that they are of two patients"):
            check_no_leakage(both[0], half)

    def test_many_of_known_patients_do_not_hide_one_of_unknown_ones(self):
        """Two hundred pairs are listed, the most alike ones; all of these are of known patients."""
        known = [pictures(*[1] * 20, prefix=name, change=change) for name, change in (("a", 1), ("b", 0.9))]
        known = [rows.add_column("patient_id", [f"p{n}"] * 20) for n, rows in enumerate(known)]
        less_alike = [shown(2), PIL.Image.blend(shown(2), shown(5), 0.1)]
        lone = [pictures(prefix=name, others=[own]) for name, own in zip("cd", less_alike, strict=True)]
        both = {
            split: concatenate_datasets([*own]) for split, *own in zip(("train", "test"), known, lone, strict=True)
        }
        seen = np.concatenate([sights_of(rows).thumbnails for rows in both.values()])
        listed = near_duplicates(seen, ["train"] * 21 + ["test"] * 21, ALIKE)
        assert len(listed) == 200 and (20, 41) not in [pair[:2] for pair in listed] and seen[20] @ seen[41] > ALIKE
        with pytest.raises(DatasetError, match=r"1 or more pairs .*\(c0\) looks like .*\(d0\)"):
            check_pictures(both)


PATIENTS = st.lists(st.sampled_from([f"p{number}" for number in range(12)]), min_size=3, max_size=40).filter(
    lambda values: len(set(values)) >= 3
)


class TestGroupSplit:
    @settings(max_examples=40, deadline=None)
    @given(PATIENTS, st.integers(0, 5), st.randoms(use_true_random=False))
    def test_partition_by_group(self, patients, seed, random):
        fractions = {"train": 0.6, "validation": 0.2, "test": 0.2}
        dataset = rows(patients)
        splits = group_split(dataset, fractions, seed=seed)
        assert list(splits) == list(fractions)
        # every row once, every group in one split, no split empty, rows in their order
        assert sorted(sum((split["sample_id"][:] for split in splits.values()), [])) == sorted(dataset["sample_id"])
        groups = {name: set(split["patient_id"]) for name, split in splits.items()}
        assert sum(map(len, groups.values())) == len(set(patients))
        assert all(groups.values())
        order = {sample_id: number for number, sample_id in enumerate(dataset["sample_id"])}
        for split in splits.values():
            positions = [order[sample_id] for sample_id in split["sample_id"]]
            assert positions == sorted(positions)
        for first in splits:
            for second in splits:
                if first != second:
                    check_no_leakage(splits[first], splits[second])
        # the same seed gives the same groups, in whatever order the rows come
        shuffled = list(patients)
        random.shuffle(shuffled)
        again = group_split(rows(shuffled), fractions, seed=seed)
        assert {name: set(split["patient_id"]) for name, split in again.items()} == groups

    def test_fractions_are_met_when_groups_are_small(self):
        dataset = rows([f"p{number // 4}" for number in range(800)])
        splits = group_split(dataset, {"train": 0.7, "validation": 0.1, "test": 0.2})
        sizes = {name: len(split) for name, split in splits.items()}
        for name, wanted in (("train", 560), ("validation", 80), ("test", 160)):
            assert abs(sizes[name] - wanted) <= 4

    def test_seed_matters(self):
        dataset = rows([f"p{number}" for number in range(40)])
        picks = {tuple(group_split(dataset, {"a": 0.5, "b": 0.5}, seed=seed)["a"]["patient_id"]) for seed in range(5)}
        assert len(picks) == 5

    def test_missing_column_names_those_there(self):
        with pytest.raises(DatasetError, match="no column 'hospital'.*sample_id, patient_id"):
            group_split(rows(["a", "b"]), {"train": 0.5, "test": 0.5}, by="hospital")

    def test_rows_without_a_group_are_all_named(self):
        with pytest.raises(DatasetError) as caught:
            group_split(rows(["a", None, "b", ""]), {"train": 0.5, "test": 0.5})
        assert [problem.row for problem in caught.value.problems] == [1, 3]
        assert "row 3: patient_id is missing or empty" in str(caught.value)

    def test_too_few_groups(self):
        with pytest.raises(DatasetError, match="1 groups in 'patient_id' are too few for 2 splits"):
            group_split(rows(["a", "a"]), {"train": 0.5, "test": 0.5})

    @pytest.mark.parametrize(
        "fractions", [{}, {"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 0.0}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}]
    )
    def test_bad_fractions(self, fractions):
        with pytest.raises(ValueError, match="fractions"):
            group_split(rows(["a", "b"]), fractions)


class TestGroupFolds:
    @settings(max_examples=60, deadline=None)
    @given(PATIENTS, st.integers(2, 3), st.integers(0, 5), st.randoms(use_true_random=False))
    def test_every_row_is_held_out_once_and_with_its_whole_group(self, patients, folds, seed, random):
        dataset = rows(patients)
        found = group_folds(dataset, folds, seed=seed)
        assert len(found) == folds and all(found)
        assert sorted(sum(found, [])) == list(range(len(patients)))
        assert all(own == sorted(own) for own in found)
        groups = [{patients[row] for row in own} for own in found]
        assert sum(map(len, groups)) == len(set(patients))
        # as many rows in each, up to one group
        largest = max(map(patients.count, patients))
        assert max(map(len, found)) - min(map(len, found)) <= largest
        # the same seed gives the same groups, in whatever order the rows come
        assert group_folds(dataset, folds, seed=seed) == found
        order = list(range(len(patients)))
        random.shuffle(order)
        again = group_folds(dataset.select(order), folds, seed=seed)
        assert [{patients[order[row]] for row in own} for own in again] == groups

    def test_large_groups_do_not_unbalance_the_folds(self):
        patients = sum(([f"p{size}"] * size for size in range(1, 21)), [])
        for seed in range(5):
            sizes = [len(own) for own in group_folds(rows(patients), 5, seed=seed)]
            assert sum(sizes) == 210 and max(sizes) - min(sizes) <= 6, sizes

    def test_seed_matters(self):
        dataset = rows([f"p{number}" for number in range(40)])
        assert len({str(group_folds(dataset, 5, seed=seed)) for seed in range(5)}) == 5

    def test_other_columns(self):
        dataset = rows(["a", "a", "b", "b"], ["v", "w", "x", "y"])
        assert sorted(map(len, group_folds(dataset, 3, by="video_id"))) == [1, 1, 2]

    def test_what_cannot_be_divided_is_refused(self):
        with pytest.raises(DatasetError, match="2 groups in 'patient_id' are too few for 3 folds"):
            group_folds(rows(["a", "b", "a"]), 3)
        with pytest.raises(ValueError, match="folds must be 2 or more, got 1"):
            group_folds(rows(["a", "b"]), 1)
        with pytest.raises(DatasetError, match="no column 'hospital'"):
            group_folds(rows(["a", "b"]), 2, by="hospital")
        with pytest.raises(DatasetError) as caught:
            group_folds(rows(["a", None, "b", ""]), 2)
        assert [problem.row for problem in caught.value.problems] == [1, 3]


def test_groups_are_patients_or_else_videos_or_else_samples():
    named = rows(["a", "b"], ["v", "w"])
    assert group_column(named) == "patient_id"
    assert group_column(rows([None, ""], ["v", "w"])) == "video_id"
    assert group_column(rows(["a", None], ["v", "w"])) == "patient_id"  # of which group_folds then says what it lacks
    assert group_column(named.remove_columns(["patient_id", "video_id"])) == "sample_id"
    with pytest.raises(DatasetError, match="nothing to group by"):
        group_column(Dataset.from_dict({"image": [1]}))
