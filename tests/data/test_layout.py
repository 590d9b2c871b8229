import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List
from stored_rows import CHAT, CLIP, SINGLE, chat, deep_png, image, make, mask, png, problems_of, without_mode

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.layout import normalize_row, read_masks, read_pair
from sa2va_trl.data.stored import plain_rows
from sa2va_trl.errors import DatasetError


class TestNormalizeRow:
    def test_single_object(self):
        row = normalize_row(make(SINGLE, {"mask": mask(value=1)})[0])
        assert row["phrases"] == ["vessel"] and row["messages"] is None and row["sample_id"] == "s0"
        assert [value.size for value in row["images"]] == [(8, 6)]
        assert row["masks"][0].mode == "L"
        assert set(np.unique(row["masks"][0])) == {0, 255}, "0/1 masks come out as 0/255"
        assert np.asarray(row["masks"][0]).sum() == 6 * 255

    def test_empty_mask_stays_empty(self):
        assert normalize_row(make(SINGLE, {"mask": mask(value=0)})[0])["masks"][0].getextrema() == (0, 0)

    def test_clip_is_object_major(self):
        masks = [png(np.full((6, 8), 255 * (number == 2))) for number in range(4)]
        row = normalize_row(make(CLIP, {"masks": masks, "phrases": ["left", "right"]})[0])
        frames = len(row["images"])
        assert row["masks"][1 * frames + 0].getextrema() == (255, 255)
        assert [value.getextrema()[1] for value in row["masks"]] == [0, 0, 255, 0]

    def test_text_only(self):
        row = normalize_row(make(CHAT, {"image": None, "masks": None, "messages": chat("Yes.")})[0])
        assert row["images"] == [] and row["masks"] == [] and row["phrases"] is None
        assert row["messages"] == chat("Yes.")

    @pytest.mark.parametrize(
        ("features", "row", "reason"),
        [
            (SINGLE, {"mask": mask(8, 6)}, "mask 0 is 6 x 8, its image 8 x 6"),
            (SINGLE, {"mask": mask(value=2)}, "mask 0 is not binary: values 0, 2"),
            (SINGLE, {"image": deep_png()}, "image 0 has more than 8 bits a channel"),
            (SINGLE, {"phrase": "a <image>"}, "phrase 0 holds the reserved token"),
            (FEATURES, {"masks": [mask(), mask(value=7)], "phrases": ["a", "b"]}, "mask 1 is not binary"),
            (CLIP, {"images": [image(), image(8, 6)]}, "frames of a clip differ in size"),
            (CLIP, {"images": [image(), deep_png()]}, "image 1 has more than 8 bits"),
            (CHAT, {"messages": chat("Nothing there.")}, "more masks than"),
        ],
    )
    def test_what_the_check_refuses_is_refused_here_decoded_or_not(self, features, row, reason):
        dataset = make(features, row)
        assert reason in str(problems_of(dataset))
        unconverted = Features({name: without_mode(feature) for name, feature in features.items()})
        (undecoded,) = plain_rows(dataset.to_iterable_dataset())
        for found in (dataset.cast(unconverted)[0], undecoded):
            with pytest.raises(DatasetError, match="sample_id 's0' cannot be used") as caught:
                normalize_row(found)
            assert reason in str(caught.value)

    @pytest.mark.parametrize("kind", ["bytes", "dict", "path", "array", "tensor", "nested lists"])
    def test_every_form_of_an_image_is_taken(self, tmp_path, kind):
        picture = PIL.Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3))
        drawn = PIL.Image.fromarray(255 * np.eye(6, 8, dtype=np.uint8))
        for name, value in (("picture", picture), ("mask", drawn)):
            value.save(tmp_path / f"{name}.png")
        forms = {
            "bytes": lambda name: (tmp_path / f"{name}.png").read_bytes(),
            "dict": lambda name: {"bytes": None, "path": str(tmp_path / f"{name}.png")},
            "path": lambda name: tmp_path / f"{name}.png",
            "array": lambda name: np.asarray({"picture": picture, "mask": drawn}[name]),
            "tensor": lambda name: torch.from_numpy(np.array({"picture": picture, "mask": drawn}[name])),
            "nested lists": lambda name: np.asarray({"picture": picture, "mask": drawn}[name]).tolist(),
        }
        row = {"image": forms[kind]("picture"), "mask": forms[kind]("mask"), "phrase": "vessel", "sample_id": "a"}
        found = normalize_row(row)
        assert np.array_equal(found["images"][0], picture) and np.array_equal(found["masks"][0], drawn)

    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (np.eye(6, 8, dtype=bool), 255),
            (np.eye(6, 8, dtype=np.uint8), 255),
            (np.eye(6, 8, dtype=np.int64)[..., None], 255),
            (np.eye(6, 8), "array of float64 from 0.0 to 1.0; expected bool or whole numbers"),
            (300 * np.eye(6, 8, dtype=np.int32), "array of int32 from 0 to 300"),
            (-np.eye(6, 8, dtype=np.int8), "array of int8 from -1 to 0"),
            (7 * np.eye(6, 8, dtype=np.uint8), "not binary"),
            (np.eye(6, 8, dtype=bool)[None], "shape (1, 6, 8); expected (H, W) or (H, W, 3): move the channels"),
            (np.zeros((0, 8), dtype=bool), "shape (0, 8)"),
            ([[0, 1], [1]], "is a list, not an image"),
        ],
    )
    def test_masks_as_arrays(self, array, expected):
        picture = PIL.Image.new("RGB", (8, 6))
        row = {"image": picture, "masks": [array], "phrases": ["vessel"], "sample_id": "a"}
        if isinstance(expected, int):
            assert np.array_equal(normalize_row(row)["masks"][0], expected * np.eye(6, 8, dtype=np.uint8))
        else:
            with pytest.raises(DatasetError) as caught:
                normalize_row(row)
            assert "'a' cannot be used: mask 0 " in str(caught.value) and expected in str(caught.value)

    def test_stacks_of_arrays_are_lists(self):
        row = {
            "images": np.zeros((2, 6, 8, 3), np.uint8),
            "masks": np.ones((4, 6, 8), bool),
            "phrases": np.array(["left", "right"]),
            "sample_id": "a",
        }
        found = normalize_row(row)
        assert [len(found[name]) for name in ("images", "masks", "phrases")] == [2, 4, 2]
        for value in ("vessel", PIL.Image.new("L", (8, 6)), 5):
            with pytest.raises(DatasetError, match="`masks` is a .*, not a list"):
                normalize_row({**row, "masks": value})

    @pytest.mark.filterwarnings("ignore:Downcasting array dtype")
    def test_arrays_in_columns_are_refused_with_a_fix_that_works(self):
        rows = [{"image": np.zeros((6, 8, 3), np.uint8), "masks": [np.eye(6, 8, dtype=np.uint8)]}]
        dataset = Dataset.from_list([{**row, "phrases": ["vessel"], "sample_id": "a"} for row in rows])
        with pytest.raises(DatasetError, match=r"column `image` is .*cast_column\(\"image\", datasets.Image\(\)\)"):
            check_dataset(dataset)
        dataset = dataset.cast_column("image", Image())
        with pytest.raises(DatasetError, match=r"cast_column\(\"masks\", datasets.List\(datasets.Image\(\)\)\)"):
            check_dataset(dataset)
        dataset = dataset.cast_column("masks", List(Image()))
        check_dataset(dataset)
        assert np.array_equal(normalize_row(dataset[0])["masks"][0], 255 * np.eye(6, 8))

    def test_illegal_row_is_named(self):
        with pytest.raises(DatasetError, match="'s0' cannot be used: fewer masks than phrases"):
            normalize_row(make(FEATURES, {"phrases": ["a", "b"]})[0])


class TestPairsAndMasksAlone:
    def pair(self, **changed):
        chosen, rejected = PIL.Image.new("L", (8, 6), 255), PIL.Image.new("L", (8, 6))
        return {"chosen_mask": chosen, "rejected_mask": rejected, "sample_id": "a", **changed}

    def test_a_pair_or_none(self):
        assert [value.getextrema()[1] for value in read_pair(self.pair(), (8, 6))] == [255, 0]
        assert read_pair({"sample_id": "a", "chosen_mask": None}, (8, 6)) == []

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"rejected_mask": None}, "rejected_mask is missing"),
            ({"chosen_mask": None}, "chosen_mask is missing"),
            ({"chosen_mask": PIL.Image.new("L", (8, 7))}, "chosen_mask is 8 x 7, its image 8 x 6"),
            ({"rejected_mask": PIL.Image.new("L", (8, 6), 3)}, "rejected_mask is not binary: values 3"),
            ({"rejected_mask": np.ones((6, 8), bool)}, "equal"),
            ({"rejected_mask": np.ones((6, 8))}, "rejected_mask is an array of float64"),
        ],
    )
    def test_what_is_no_pair(self, changed, reason):
        with pytest.raises(DatasetError, match=reason):
            read_pair(self.pair(**changed), (8, 6))

    def test_masks_without_their_image(self):
        row = make(FEATURES, {"masks": [mask(), mask(value=1)], "phrases": ["a", "b"]}).remove_columns("image")[0]
        assert [value.getextrema()[1] for value in read_masks(row)] == [255, 255]
        with pytest.raises(DatasetError, match="'s0' cannot be used: mask 1 is not binary"):
            read_masks({**row, "masks": [row["masks"][0], PIL.Image.new("L", (8, 6), 9)]})
        with pytest.raises(DatasetError, match="masks differ in size"):
            read_masks({**row, "masks": [row["masks"][0], PIL.Image.new("L", (6, 8))]})
