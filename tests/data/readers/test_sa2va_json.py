import json
import logging
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from annotated_folders import (
    HEIGHT,
    SQUARE,
    WIDTH,
    arrays,
    entry,
    write_image,
    write_json,
)

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.readers.sa2va_json import read_sa2va_json
from sa2va_trl.errors import DatasetError


class TestSa2VAJson:
    def test_columns(self, tmp_path):
        other = [0, 0, 3, 0, 3, 2, 0, 2]
        write_json(
            tmp_path,
            entry("a.png", mask=[[SQUARE, other], [other]], text=["Left Artery.", " right "]),
            entry("b.png"),
        )
        dataset = read_sa2va_json(tmp_path)
        assert dataset.features == FEATURES
        assert dataset["sample_id"][:] == ["a", "b"]
        assert dataset["phrases"][:] == [["left artery", "right"], ["vessel"]]
        masks = arrays(dataset)
        assert masks[0][0].sum() == 255 * (12 + 6 - 1), "overlapping polygons are joined, not added"
        assert masks[0][1].sum() == 255 * 6
        assert set(np.unique(masks[0][0])) == {0, 255}
        assert Path(dataset[0]["image"].filename).samefile(tmp_path / "images" / "a.png"), (
            "the file itself, not a copy"
        )
        check_dataset(dataset)

    def test_mask_has_the_images_own_size(self, tmp_path):
        write_image(tmp_path / "images" / "a.png", width=30, height=20)
        (tmp_path / "annotations.json").write_text(json.dumps([entry()]))
        assert arrays(read_sa2va_json(tmp_path))[0][0].shape == (20, 30)

    @pytest.mark.parametrize(
        ("mask", "text", "sums"),
        [([], ["a", "b"], [0, 0]), ([[]], ["a"], [0]), ([[], [SQUARE]], ["a", "b"], [0, 12]), ([], None, [0])],
    )
    def test_objects_without_pixels_are_legal(self, tmp_path, mask, text, sums):
        dataset = read_sa2va_json(write_json(tmp_path, entry(mask=mask, text=text)), phrase="Vessel.")
        assert [mask.sum() // 255 for mask in arrays(dataset)[0]] == sums
        assert len(dataset[0]["phrases"]) == len(sums)
        check_dataset(dataset)

    def test_unwrapped_polygon_is_read_and_counted(self, tmp_path, caplog):
        write_json(tmp_path, entry("a.png", mask=[SQUARE]), entry("b.png"), entry("c.png", mask=[SQUARE]))
        with caplog.at_level(logging.WARNING):
            dataset = read_sa2va_json(tmp_path)
        assert [masks[0].sum() for masks in arrays(dataset)] == [255 * 12] * 3
        assert "2 entries have an object that is one polygon without a list around it" in caplog.text
        assert "(rows 0, 2)" in caplog.text

    def test_polygon_between_the_pixels_is_told(self, tmp_path, caplog):
        write_json(tmp_path, entry(mask=[[[2.1, 1.1, 2.3, 1.1, 2.2, 1.3]]]))
        with caplog.at_level(logging.WARNING):
            dataset = read_sa2va_json(tmp_path)
        assert arrays(dataset)[0][0].sum() == 0
        assert "1 entries have an object whose polygons hold no pixel's centre" in caplog.text

    def test_default_phrase(self, tmp_path):
        no_text = {"image": "a.png", "mask": [[SQUARE], [SQUARE]]}
        write_json(tmp_path, no_text, entry("b.png"))
        assert read_sa2va_json(tmp_path, phrase="Blood vessel.")["phrases"][:] == [["blood vessel"] * 2, ["vessel"]]
        with pytest.raises(DatasetError, match="row 0, a.png: `text` is missing; give `phrase`"):
            read_sa2va_json(tmp_path)

    def test_phrase_as_a_plain_string(self, tmp_path):
        assert read_sa2va_json(write_json(tmp_path, entry(text="A Vessel.")))["phrases"][0] == ["a vessel"]

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"mask": [[[1, 1, 5, 1, 5]]]}, "object 0, polygon 0 is ragged: 5 coordinates"),
            ({"mask": [[SQUARE, [3, 3]]]}, "object 0, polygon 1 has 1 point(s)"),
            ({"mask": [[[3, 3, 4, 4]]]}, "object 0, polygon 0 has 2 point(s)"),
            ({"mask": [[[]]]}, "object 0, polygon 0 has 0 point(s)"),
            (
                {"mask": [[[3, 3, 40, 3, 40, 5]]]},
                "object 0, polygon 0 leaves the image: x from 3 to 40, the image is 12 x 8",
            ),
            ({"mask": [[[3, -1.5, 5, 3, 4, 5]]]}, "leaves the image: y from -1.5 to 5"),
            ({"mask": [[[3, 3, float("nan"), 3, 4, 5]]]}, "object 0, polygon 0 holds nan, which is not finite"),
            ({"mask": [[[3, 3, float("inf"), 3, 4, 5]]]}, "holds inf"),
            ({"mask": [[[3, 3, "5", 3, 4, 5]]]}, "object 0, polygon 0 holds '5', which is not a number"),
            ({"mask": [[[3, 3, None, 3, 4, 5]]]}, "holds None, which is not a number"),
            ({"mask": [[[3, 3, True, 3, 4, 5]]]}, "holds True, which is not a number"),
            ({"mask": [[SQUARE, 7]]}, "object 0, polygon 1 is not a list of numbers but 7"),
            ({"mask": SQUARE}, "object 0 is not a list of polygons but 2"),
            ({"mask": {"size": [8, 12]}}, "`mask` must be a list of objects"),
            ({"mask": None}, "`mask` must be a list of objects, not None"),
            ({"mask": [[SQUARE], [SQUARE]]}, "more masks than phrases: 2 masks, 1 phrases"),
            ({"text": ["a", "b"]}, "fewer masks than phrases: 1 masks, 2 phrases"),
            ({"text": ["."]}, "text 0: phrase '.' is empty"),
            ({"text": [3]}, "text 0: is not a string but 3"),
            ({"text": []}, "`text` is empty"),
            ({"text": {"a": 1}}, "`text` must be a list of phrases"),
        ],
    )
    def test_bad_entry_is_named_with_its_reason(self, tmp_path, changes, reason):
        write_json(tmp_path, entry("good.png"), entry("bad.png", **changes))
        with pytest.raises(DatasetError) as caught:
            read_sa2va_json(tmp_path)
        assert [problem.row for problem in caught.value.problems] == [1]
        assert "annotations.json: 1 of 2 entries" in str(caught.value)
        assert "row 1, bad.png: " in str(caught.value)
        assert reason in str(caught.value)

    def test_images(self, tmp_path):
        write_image(tmp_path / "outside.png")
        (tmp_path / "d" / "images").mkdir(parents=True)
        (tmp_path / "d" / "images" / "broken.png").write_bytes(b"\x89PNG no")
        (tmp_path / "d" / "images" / "link.png").symlink_to(tmp_path / "outside.png")
        names = [
            "missing.png",
            "../../outside.png",
            str(tmp_path / "outside.png"),
            "link.png",
            "broken.png",
            "wide.png",
            "",
        ]
        write_image(tmp_path / "d" / "images" / "wide.png", width=300, height=4)
        write_json(tmp_path / "d", *[entry(name) for name in names], {"mask": []}, ["no"], images=[])
        with pytest.raises(DatasetError) as caught:
            read_sa2va_json(tmp_path / "d", max_pixels=1000)
        problems = caught.value.problems
        assert [problem.row for problem in problems] == list(range(len(names) + 2)), "all of them, together"
        for problem, reason in zip(
            problems,
            [
                "image file is missing",
                "leaves the dataset folder",
                "is absolute",
                "leaves the dataset folder",
                "image is unreadable",
                "image is too large: 300 x 4",
                "`image` must be a file name, not ''",
                "`image` must be a file name, not None",
                "is not an object but ['no']",
            ],
            strict=True,
        ):
            assert reason in problem.reason
            assert str(problem) in str(caught.value)

    @pytest.mark.parametrize("inside", ["store", "dvc"])
    def test_a_checkout_of_links_into_its_own_store(self, tmp_path, inside):
        """As `snapshot_download` and DVC leave a folder."""
        store = tmp_path / ("blobs" if inside == "store" else ".dvc/cache")
        folder = tmp_path / ("snapshots/1f3/data" if inside == "store" else "data")
        write_image(store / "5d4.png")
        write_json(folder, entry(), images=[])
        (folder / "images" / "a.png").symlink_to(store / "5d4.png")
        dataset = read_sa2va_json(folder)
        assert dataset["sample_id"][:] == ["a"]
        check_dataset(dataset)
        write_json(folder, entry("../../" + os.path.relpath(store / "5d4.png", folder.parent)), images=[])
        with pytest.raises(DatasetError, match="leaves the dataset folder"):
            read_sa2va_json(folder)

    def test_the_path_that_was_tried_is_named(self, tmp_path):
        write_json(tmp_path, entry("images/a.png"), entry("b.png"), images=["a.png"])
        with pytest.raises(DatasetError) as caught:
            read_sa2va_json(tmp_path)
        first, second = caught.value.problems
        assert (
            f"tried {tmp_path / 'images' / 'images' / 'a.png'}; " in first.reason and "write 'a.png'" in first.reason
        )
        assert second.reason.endswith(f"tried {tmp_path / 'images' / 'b.png'}")

    @pytest.mark.parametrize(
        "mask",
        [
            [[[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]],
            [[[0, 0, 1, 0, 1, 1, 0, 1]]],
            [[[0.2, 0.2, 0.4, 0.2, 0.4, 0.4]], [[0, 0, 1, 0, 1, 1]]],
        ],
    )
    def test_polygons_in_shares_of_the_image_are_refused(self, tmp_path, mask):
        write_json(tmp_path, entry("good.png"), entry("bad.png", mask=mask, text=["vessel"] * len(mask)))
        with pytest.raises(DatasetError) as caught:
            read_sa2va_json(tmp_path)
        (problem,) = caught.value.problems
        assert problem.row == 1
        assert "all coordinates lie in [0, 1], the image is 12 x 8" in problem.reason and "multiply" in problem.reason

    def test_an_object_in_the_first_pixel_is_legal_beside_another(self, tmp_path):
        first = [0, 0, 1, 0, 1, 1, 0, 1]
        write_json(tmp_path, entry(mask=[[first], [SQUARE]], text=["a", "b"]))
        assert [mask.sum() // 255 for mask in arrays(read_sa2va_json(tmp_path))[0]] == [1, 12]
        write_image(tmp_path / "small" / "images" / "a.png", width=3, height=2)
        write_json(tmp_path / "small", entry(mask=[[first]]), images=[])
        assert arrays(read_sa2va_json(tmp_path / "small"))[0][0].sum() == 255

    @pytest.mark.parametrize(("largest", "width", "warned"), [(100, 300, True), (101, 300, False), (100, 100, False)])
    def test_coordinates_up_to_100_are_warned_of_once(self, tmp_path, caplog, largest, width, warned):
        for name in ("a.png", "b.png"):
            write_image(tmp_path / "images" / name, width=width, height=90)
        small, large = [[[2, 1, 9, 1, 9, 8]]], [[[2, 1, min(largest, width), 1, 9, 80]]]
        write_json(tmp_path, entry("a.png", mask=small), entry("b.png", mask=large), images=[])
        with caplog.at_level(logging.WARNING):
            assert len(read_sa2va_json(tmp_path)) == 2
        assert caplog.text.count("per cent of the image") == warned

    def test_missing_mask_key(self, tmp_path):
        write_json(tmp_path, {"image": "a.png", "text": ["a"]})
        with pytest.raises(DatasetError, match="`mask` is missing"):
            read_sa2va_json(tmp_path)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('[\n{"image": "a.png",\n "mask": }]', "invalid JSON at line 3, column 10"),
            ("", "invalid JSON at line 1, column 1"),
            ('{"images": []}', "expected a list .* found dict"),
            ("3", "expected a list .* found int"),
            ("[]", "the list is empty"),
            ("[" * 100_000, "nested too deeply"),
        ],
    )
    def test_json_itself(self, tmp_path, text, reason):
        (tmp_path / "images").mkdir()
        (tmp_path / "annotations.json").write_text(text)
        with pytest.raises(DatasetError, match=f"annotations.json: .*{reason}"):
            read_sa2va_json(tmp_path)

    def test_not_utf8(self, tmp_path):
        write_json(tmp_path, entry())
        (tmp_path / "annotations.json").write_bytes(b'["\xff"]')
        with pytest.raises(DatasetError, match="annotations.json: not UTF-8"):
            read_sa2va_json(tmp_path)

    def test_missing_parts_of_the_layout(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="annotations.json is missing"):
            read_sa2va_json(tmp_path)
        (tmp_path / "annotations.json").write_text("[]")
        with pytest.raises(FileNotFoundError, match="images is missing"):
            read_sa2va_json(tmp_path)

    def test_sample_ids_are_unique_and_fit_for_file_names(self, tmp_path):
        names = ["p1/a.png", "p2/a.png", "p2/b.png", "c.png", "c.bmp", "d.png", "d.png", "d-2.png"]
        ids = read_sa2va_json(write_json(tmp_path, *map(entry, names)))["sample_id"][:]
        assert ids == ["p1_a", "p2_a", "b", "c.png", "c.bmp", "d.png", "d.png-2", "d-2"]

    def test_turned_photograph(self, tmp_path):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        (tmp_path / "images").mkdir()
        photo = PIL.Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
        photo.save(tmp_path / "images" / "a.jpg", exif=exif)
        (tmp_path / "annotations.json").write_text(json.dumps([entry("a.jpg")]))
        dataset = read_sa2va_json(tmp_path)
        assert dataset[0]["image"].size == dataset[0]["masks"][0].size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("polygon", [[0.1, 0.1, 1.02, 0.1, 0.5, 0.6], [-0.01, 0.1, 0.9, 0.1, 0.5, 0.6]])
def test_shares_a_little_out_of_the_image_are_refused(tmp_path, polygon):
    write_json(tmp_path, entry(mask=[[polygon]]))
    with pytest.raises(DatasetError, match="shares of the image"):
        read_sa2va_json(tmp_path)


def test_images_that_no_entry_names_are_named(tmp_path, caplog):
    write_json(tmp_path, entry(), images=["a.png", "b.png"])
    (tmp_path / "images" / "c.heic").write_bytes(b"")
    assert len(read_sa2va_json(tmp_path)) == 1
    assert "not named in annotations.json: b.png" in caplog.text and "c.heic" in caplog.text
