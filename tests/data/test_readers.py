import json
import logging
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.masks import polygons_to_mask
from sa2va_trl.data.prompts import normalize_phrase
from sa2va_trl.data.readers.mask_folder import read_mask_folder
from sa2va_trl.data.readers.sa2va_json import read_sa2va_json
from sa2va_trl.data.splits import check_no_leakage
from sa2va_trl.data.synthetic import synthetic_dataset
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.clips import read_media
from sa2va_trl.media.suffixes import IMAGE_SUFFIXES


SHARED = Path(os.environ.get("SA2VA_TRL_SHARED", Path(__file__).parents[2] / ".." / "shared"))
SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]  # columns 2-5, rows 1-3: 12 pixels
WIDTH, HEIGHT = 12, 8


def write_image(path, width=WIDTH, height=HEIGHT, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((height, width), value, dtype=np.uint8)).save(path)
    return path


def write_mask(path, width=WIDTH, height=HEIGHT, value=255):
    array = np.zeros((height, width), dtype=np.uint8)
    array[1:4, 2:6] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(path)
    return path


def entry(name="a.png", **changes):
    return {"image": name, "mask": [[SQUARE]], "text": ["vessel"], **changes}


def write_json(folder, *entries, images=None):
    """Write annotations.json, and the images that it names unless told which."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in {e["image"] for e in entries} if images is None else images:
        write_image(folder / "images" / name)
    (folder / "annotations.json").write_text(json.dumps(entries))
    return folder


def write_pairs(folder, *stems, names=("image", "mask")):
    for stem in stems:
        write_image(folder / names[0] / f"{stem}.png")
        write_mask(folder / names[1] / f"{stem}.png")
    return folder


def arrays(dataset):
    return [[np.asarray(mask) for mask in masks] for masks in dataset["masks"]]


class TestPhrase:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [("  Blood Vessel. ", "blood vessel"), ("a..", "a."), ("LAD . ", "lad"), ("ends. here", "ends. here")],
    )
    def test_as_the_official_loader(self, text, expected):
        assert normalize_phrase(text) == expected

    @pytest.mark.parametrize("text", ["", "  ", ".", " . "])
    def test_empty(self, text):
        with pytest.raises(DatasetError, match="is empty"):
            normalize_phrase(text)


POLYGON = st.lists(st.tuples(st.integers(-2, 50), st.integers(-2, 34)), min_size=3, max_size=7).map(
    # off the grid: no pixel's centre lies on a corner, where inside and outside are a matter of taste
    lambda points: [value / 4 + 0.03 for point in points for value in point]
)


class TestPolygons:
    def test_pixel_convention(self):
        mask = polygons_to_mask([SQUARE], (WIDTH, HEIGHT))
        expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
        expected[1:4, 2:6] = True
        assert mask.dtype == bool and np.array_equal(mask, expected)

    def test_whole_image_and_tolerance(self):
        assert polygons_to_mask([[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]], (WIDTH, HEIGHT)).all()
        assert polygons_to_mask(
            [[-1, -1, WIDTH + 1, -1, WIDTH + 1, HEIGHT + 1, -1, HEIGHT + 1]], (WIDTH, HEIGHT)
        ).all()

    def test_area_of_a_disc(self):
        angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        disc = np.stack([64 + 40 * np.cos(angles), 50 + 40 * np.sin(angles)], axis=1)
        mask = polygons_to_mask([disc.ravel().tolist()], (128, 100))
        assert mask.sum() == pytest.approx(np.pi * 1600, rel=0.005)
        rows, columns = np.nonzero(mask)
        assert columns.mean() + 0.5 == pytest.approx(64, abs=0.05)  # not shifted by half a pixel
        assert rows.mean() + 0.5 == pytest.approx(50, abs=0.05)

    @settings(max_examples=60, deadline=None)
    @given(POLYGON)
    def test_even_odd_rule_of_an_independent_ray_caster(self, polygon):
        mask = polygons_to_mask([polygon], (WIDTH, HEIGHT))
        x, y = np.array(polygon[0::2]), np.array(polygon[1::2])
        following_x, following_y = np.roll(x, -1), np.roll(y, -1)
        for row in range(HEIGHT):
            for column in range(WIDTH):
                px, py = column + 0.5, row + 0.5
                crosses = (y > py) != (following_y > py)
                with np.errstate(divide="ignore", invalid="ignore"):
                    at = x + (py - y) / (following_y - y) * (following_x - x)
                distance = np.abs(at[crosses] - px)
                if len(distance) and distance.min() < 1e-9:
                    continue  # on an edge
                assert mask[row, column] == (np.count_nonzero(crosses & (at > px)) % 2 == 1)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(POLYGON, max_size=4), st.randoms(use_true_random=False))
    def test_joined_by_or(self, polygons, random):
        joined = polygons_to_mask(polygons, (WIDTH, HEIGHT))
        separate = [polygons_to_mask([polygon], (WIDTH, HEIGHT)) for polygon in polygons]
        assert np.array_equal(joined, np.any([np.zeros((HEIGHT, WIDTH), bool), *separate], axis=0))
        shuffled = list(polygons)
        random.shuffle(shuffled)
        assert np.array_equal(joined, polygons_to_mask(shuffled, (WIDTH, HEIGHT)))
        assert np.array_equal(joined, polygons_to_mask(polygons + shuffled, (WIDTH, HEIGHT)))


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


class TestMaskFolder:
    @pytest.mark.parametrize("names", [("image", "mask"), ("images", "masks")])
    def test_columns(self, tmp_path, names):
        dataset = read_mask_folder(write_pairs(tmp_path, "b", "a", names=names), phrase="Coronary artery.")
        assert dataset.features == FEATURES
        assert dataset["sample_id"][:] == ["a", "b"]
        assert dataset["phrases"][:] == [["coronary artery"]] * 2
        assert [masks[0].sum() for masks in arrays(dataset)] == [255 * 12] * 2
        check_dataset(dataset)

    def test_suffixes_and_modes(self, tmp_path):
        write_image(tmp_path / "image" / "a.JPG")
        write_image(tmp_path / "image" / "b.tif")
        write_image(tmp_path / "image" / "c.bmp")
        write_image(tmp_path / "image" / "sub" / "c.jpeg")
        (tmp_path / "image" / "notes.txt").write_text("x")
        (tmp_path / "image" / ".hidden.png").write_bytes(b"x")
        write_mask(tmp_path / "mask" / "a.png", value=1)  # 0/1
        for name, mode in (("b", "1"), ("c", "RGBA"), ("sub/c", "P")):
            path = write_mask(tmp_path / "mask" / f"{name}.png")
            PIL.Image.open(path).convert(mode).save(path)
        dataset = read_mask_folder(tmp_path)
        assert dataset["sample_id"][:] == ["a", "b", "c", "sub_c"]
        for masks in arrays(dataset):
            assert set(np.unique(masks[0])) == {0, 255} and masks[0].sum() == 255 * 12
        assert dataset["phrases"][0] == ["blood vessel"]
        check_dataset(dataset)

    def test_empty_mask_is_legal(self, tmp_path):
        write_pairs(tmp_path, "a")
        write_mask(tmp_path / "mask" / "a.png", value=0)
        check_dataset(read_mask_folder(tmp_path))

    def test_all_bad_pairs_are_reported_together(self, tmp_path):
        write_pairs(tmp_path, "good", "size", "values", "two", "broken", "cut")
        write_image(tmp_path / "image" / "lonely.png")
        write_mask(tmp_path / "mask" / "orphan.png")
        write_mask(tmp_path / "mask" / "size.png", width=20)
        write_mask(tmp_path / "mask" / "values.png", value=128)
        write_image(tmp_path / "image" / "two.jpg")
        (tmp_path / "image" / "broken.png").write_bytes(b"nothing")
        whole = (tmp_path / "mask" / "cut.png").read_bytes()
        (tmp_path / "mask" / "cut.png").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DatasetError) as caught:
            read_mask_folder(tmp_path)
        found = {problem.file: problem.reason for problem in caught.value.problems}
        expected = {
            "image/lonely.png": "has no mask: expected mask/lonely.png",
            "mask/orphan.png": "has no image: expected image/orphan.png",
            "image/size.png": "mask size.png is 20 x 8, its image 12 x 8",
            "image/values.png": "mask values.png is not binary: values 0, 128",
            "image/two.jpg": "has several images: two.jpg, two.png",
            "image/broken.png": "image is unreadable",
            "image/cut.png": "mask cut.png is unreadable",
        }
        assert found.keys() == expected.keys()
        for file, reason in expected.items():
            assert reason in found[file]
            assert file in str(caught.value)
        assert "7 of 8 pairs" in str(caught.value)

    def test_large_image_is_refused_from_its_header(self, tmp_path):
        write_pairs(tmp_path, "a")
        with pytest.raises(DatasetError, match="image is too large: 12 x 8 pixels, the limit is 50"):
            read_mask_folder(tmp_path, max_pixels=50)

    def test_links_in_the_users_own_folder_are_followed(self, tmp_path):
        write_pairs(tmp_path / "all", "a", "b", "sub/c")
        write_pairs(tmp_path / "fold", "own")
        for kind in ("image", "mask"):
            (tmp_path / "fold" / kind / "b.png").symlink_to(tmp_path / "all" / kind / "b.png")
            (tmp_path / "fold" / kind / "linked").symlink_to(tmp_path / "all" / kind / "sub")
        dataset = read_mask_folder(tmp_path / "fold")
        assert dataset["sample_id"][:] == ["b", "c", "own"]
        check_dataset(dataset)
        (tmp_path / "whole").mkdir()
        for kind in ("image", "mask"):
            (tmp_path / "whole" / kind).symlink_to(tmp_path / "all" / kind)
        assert read_mask_folder(tmp_path / "whole")["sample_id"][:] == ["a", "b", "c"]

    def test_links_in_a_circle_are_named_and_not_followed(self, tmp_path, caplog):
        write_pairs(tmp_path / "d", "a", "sub/b")
        for kind in ("image", "mask"):
            (tmp_path / "d" / kind / "sub" / "round").symlink_to(tmp_path / "d" / kind)
        (tmp_path / "d" / "image" / "up").symlink_to(tmp_path)
        with caplog.at_level(logging.WARNING):
            assert read_mask_folder(tmp_path / "d")["sample_id"][:] == ["a", "b"]
        assert "not followed: sub/round, up" in caplog.text

    def test_a_link_to_nowhere_is_named(self, tmp_path):
        write_pairs(tmp_path, "a", "b")
        (tmp_path / "image" / "b.png").unlink()
        (tmp_path / "image" / "b.png").symlink_to(tmp_path / "gone.png")
        with pytest.raises(DatasetError, match="image/b.png: image file is missing"):
            read_mask_folder(tmp_path)

    @pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".mpo"}) + [".TIF", ".Jfif"])
    def test_every_suffix_is_read_here_and_by_predict(self, tmp_path, suffix):
        shape = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        shape[1:4, 2:6] = 255
        for kind, array in (("image", shape + 0), ("mask", shape)):
            (tmp_path / kind).mkdir()
            options = {"lossless": True} if suffix == ".webp" else {}
            # JPEG cannot hold a mask with edges
            flat = suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")
            picture = PIL.Image.fromarray(array if not flat else shape * 0)
            (picture.convert("1") if suffix == ".pbm" else picture).save(tmp_path / kind / f"a{suffix}", **options)
        (row,) = read_mask_folder(tmp_path)
        assert np.array_equal(np.asarray(row["masks"][0]), shape * (not flat))
        assert [name for name, _ in read_media(tmp_path / "image")] == ["a"]

    def test_files_of_another_kind_are_named(self, tmp_path, caplog):
        write_pairs(tmp_path, "a", "sub/b")
        for name in ("image/notes.txt", "image/scan.dcm", "image/sub/a.json", "mask/.DS_Store", "image/Thumbs.db"):
            (tmp_path / name).write_bytes(b"x")
        with caplog.at_level(logging.WARNING):
            assert len(read_mask_folder(tmp_path)) == 2
        assert "image: left out, not of a kind that is read: notes.txt, scan.dcm, sub/a.json." in caplog.text
        assert "DS_Store" not in caplog.text and "Thumbs" not in caplog.text

    @pytest.mark.parametrize(("image", "mask"), [("x.heic", "x.png"), ("x.png", "x.npy"), ("x.dcm", "x.npy")])
    def test_half_a_pair_of_another_kind_is_refused(self, tmp_path, image, mask):
        write_pairs(tmp_path, "a")
        write_image(tmp_path / "image" / "x.png").rename(tmp_path / "image" / image)
        write_mask(tmp_path / "mask" / "x.png").rename(tmp_path / "mask" / mask)
        with pytest.raises(DatasetError, match="1 of 2 pairs") as caught:
            read_mask_folder(tmp_path)
        for kind, name in (("image", image), ("mask", mask)):
            assert (f"{kind}/{name} is of a kind that is not read" in str(caught.value)) == (not name.endswith("png"))

    def test_a_folder_without_a_kind_that_is_read_says_what_it_holds(self, tmp_path):
        (tmp_path / "image").mkdir()
        (tmp_path / "mask").mkdir()
        (tmp_path / "image" / "a.dcm").write_bytes(b"x")
        with pytest.raises(DatasetError, match="holds no image .*hold: a.dcm"):
            read_mask_folder(tmp_path)

    @pytest.mark.parametrize(
        ("images", "masks", "reason"),
        [
            (["21_training", "22_training"], ["21_manual1", "22_manual1"], "mask '21_manual1' to '21_training'"),
            (["1", "12"], ["1_mask", "12_mask"], "all images end in '' and all masks in '_mask': .*'12_mask' to '12'"),
            (["a-x"], ["a-y"], "mask 'a-y' to 'a-x'"),
            (["a", "b"], ["a_mask", "c_mask"], "has no mask"),
            (["a", "a_mask"], ["a_mask"], "has no mask"),
        ],
    )
    def test_names_that_differ_in_their_ends(self, tmp_path, images, masks, reason):
        for name in images:
            write_image(tmp_path / "image" / f"{name}.png")
        for name in masks:
            write_mask(tmp_path / "mask" / f"{name}.png")
        with pytest.raises(DatasetError, match=reason):
            read_mask_folder(tmp_path)

    def test_two_pairs_of_folders(self, tmp_path):
        write_pairs(tmp_path, "a")
        write_pairs(tmp_path, "b", names=("images", "masks"))
        with pytest.raises(DatasetError, match="both image/ with mask/ and images/ with masks/"):
            load_dataset_dict(tmp_path)

    @pytest.mark.parametrize("suffix", [".tif", ".gif", ".png", ".webp"])
    def test_a_file_of_several_pages_is_refused(self, tmp_path, suffix):
        write_pairs(tmp_path, "a")
        pages = [PIL.Image.new("L", (WIDTH, HEIGHT), 60 * number) for number in range(3)]
        for kind in ("image", "mask"):
            (tmp_path / kind / "a.png").unlink()
            pages[0].save(tmp_path / kind / f"a{suffix}", save_all=True, append_images=pages[1:])
        with pytest.raises(DatasetError, match="image holds 3 pictures: split it.*mask a.* holds 3 pictures"):
            read_mask_folder(tmp_path)
        write_mask(tmp_path / "mask.png")
        rows = {"image": [str(tmp_path / "image" / f"a{suffix}")], "masks": [[str(tmp_path / "mask.png")]]}
        stored = Dataset.from_dict({**rows, "phrases": [["a"]], "sample_id": ["a"]}, features=FEATURES)
        with pytest.raises(DatasetError, match="image holds 3 pictures"):
            check_dataset(stored)

    def test_the_photo_of_an_mpo_is_read(self, tmp_path):
        write_pairs(tmp_path, "a")
        (tmp_path / "image" / "a.png").unlink()
        photo, preview = (PIL.Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
        photo.save(tmp_path / "image" / "a.jpg", format="MPO", save_all=True, append_images=[preview])
        dataset = read_mask_folder(tmp_path)
        check_dataset(dataset)
        assert np.asarray(dataset[0]["image"])[0, 0, 0] > 200

    def test_no_pair_of_folders(self, tmp_path):
        (tmp_path / "image").mkdir()
        with pytest.raises(FileNotFoundError, match="neither image/ and mask/ nor images/ and masks/"):
            read_mask_folder(tmp_path)
        (tmp_path / "mask").mkdir()
        with pytest.raises(DatasetError, match="holds no image"):
            read_mask_folder(tmp_path)

    def test_what_is_linked_twice_is_read_once(self, tmp_path, caplog):
        write_pairs(tmp_path, "all/a", "all/b", "c")
        for kind in ("image", "mask"):
            (tmp_path / kind / "fold1").symlink_to("all")
            (tmp_path / kind / "d.png").symlink_to("c.png")
        with caplog.at_level(logging.WARNING):
            dataset = read_mask_folder(tmp_path)
        assert dataset["sample_id"][:] == ["a", "b", "c"]
        assert "links to an image and a mask that are read already: d.png, fold1/a.png, fold1/b.png." in caplog.text

    def test_one_mask_of_two_images_and_two_masks_of_one_are_no_copies(self, tmp_path, caplog):
        write_pairs(tmp_path, "first/a", "b")
        (tmp_path / "image" / "second").symlink_to("first")
        write_mask(tmp_path / "mask" / "second" / "a.png", value=0)
        write_image(tmp_path / "image" / "c.png")
        (tmp_path / "mask" / "c.png").symlink_to("b.png")
        with caplog.at_level(logging.WARNING):
            assert len(read_mask_folder(tmp_path)) == 4
        assert not caplog.text

    def test_empty_phrase(self, tmp_path):
        with pytest.raises(DatasetError, match="phrase ' ' is empty"):
            read_mask_folder(write_pairs(tmp_path, "a"), phrase=" ")


@pytest.fixture
def prepared(tmp_path):
    """Two small splits, their pixels in the rows."""
    source = write_pairs(tmp_path / "source", "a", "b", "c")
    dataset = read_mask_folder(source)
    return DatasetDict({"train": dataset.select([0, 1]), "validation": dataset.select([2])})


def write_metadata(folder, *rows, name="metadata.jsonl"):
    if name.endswith(".csv"):
        text = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    else:
        text = "\n".join(map(json.dumps, rows))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


class TestMetadataInTheImageFolder:
    @pytest.mark.parametrize("names", [("image", "mask"), ("images", "masks")])
    @pytest.mark.parametrize("file", ["metadata.jsonl", "metadata.csv"])
    @pytest.mark.parametrize("split", ["", "train"])
    def test_phrases_and_masks(self, tmp_path, names, file, split):
        write_pairs(tmp_path / split, "a", "b", names=names)
        write_mask(tmp_path / split / names[1] / "b.png", value=0)
        rows = [
            {
                "file_name": "a.png",
                "mask_file_name": f"../{names[1]}/b.png",
                "phrase": "guide catheter",
                "patient_id": 7,
            },
            {"file_name": "b.png", "mask_file_name": f"../{names[1]}/a.png", "phrase": "LAD", "patient_id": 8},
        ]
        write_metadata(tmp_path / split / names[0], *rows, name=file)
        dataset = load_dataset_dict(tmp_path)["train"]
        assert dataset["phrases"][:] == [["guide catheter"], ["LAD"]]
        assert dataset["sample_id"][:] == ["a", "b"]
        assert [str(value) for value in dataset["patient_id"]] == ["7", "8"]
        assert [masks[0].sum() for masks in arrays(dataset)] == [0, 12 * 255], "the masks that it names"
        check_dataset(dataset)

    def test_masks_of_the_same_name_where_it_names_none(self, tmp_path, caplog):
        write_pairs(tmp_path, "a", "sub/b", "c", names=("images", "masks"))
        write_metadata(
            tmp_path / "images", {"file_name": "sub/b.png", "phrases": ["x"]}, {"file_name": "a.png", "phrases": ["y"]}
        )
        with caplog.at_level(logging.WARNING):
            dataset = read_mask_folder(tmp_path)
        assert dataset["sample_id"][:] == ["b", "a"] and dataset["phrases"][:] == [["x"], ["y"]]
        check_dataset(dataset)
        assert "images: left out, not named in metadata.jsonl: c.png." in caplog.text

    def test_without_phrases_the_option_names_the_object(self, tmp_path):
        write_pairs(tmp_path, "a", names=("images", "masks"))
        write_metadata(tmp_path / "images", {"file_name": "a.png", "patient_id": "p"})
        assert load_dataset_dict(tmp_path)["train"]["phrases"][0] == ["blood vessel"]
        assert load_dataset_dict(tmp_path, phrase="Artery.")["train"]["phrases"][0] == ["artery"]

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"file_name": "../../out.png", "phrase": "x"}, "leaves the dataset folder"),
            ({"file_name": "/etc/passwd", "phrase": "x"}, "is absolute"),
            ({"file_name": "link.png", "phrase": "x"}, "leaves the dataset folder .* it is a link"),
            ({"phrase": "x"}, "names no image"),
            ({"file_name": "lonely.png", "phrase": "x"}, "names no mask .* masks/ holds 0 of its name"),
            ({"file_name": "a.png", "phrase": 3}, "phrases must be a list of text"),
            ({"file_name": "a.png", "mask_file_name": 3, "phrase": "x"}, "path 3 is not a string"),
            ({"file_name": "a.png", "masks_file_names": "a.png", "phrase": "x"}, "must be a list of paths"),
            ({"image": "a.png", "phrase": "x"}, "`image` is not read as a path: write `file_name`"),
            ({"images": ["a.png"], "phrase": "x"}, "`images` is not read as a path: write `file_names`"),
            ({"file_name": "a.png", "mask": "../masks/a.png"}, "`mask` is not read as a path: write `mask_file_name`"),
            ({"file_name": "a.png", "masks": ["/a.png"]}, "`masks` is not read as a path: write `masks_file_names`"),
            ({"file_name": "a.png", "chosen_mask": "a.png"}, "write `chosen_mask_file_name`"),
            ({"file_name": 5, "phrase": "x"}, "path 5 is not a string"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, row, reason):
        write_pairs(tmp_path / "d", "a", names=("images", "masks"))
        write_image(tmp_path / "d" / "images" / "lonely.png")
        (tmp_path / "d" / "images" / "link.png").symlink_to(write_image(tmp_path / "out.png"))
        write_metadata(tmp_path / "d" / "images", {"file_name": "a.png", "phrase": "x"}, row)
        with pytest.raises(DatasetError, match=f"row 1.*{reason}"):
            load_dataset_dict(tmp_path / "d")

    def test_a_comma_without_quotes(self, tmp_path):
        write_pairs(tmp_path, "a", names=("images", "masks"))
        (tmp_path / "images" / "metadata.csv").write_text("file_name,phrase\na.png,left, proximal\n")
        with pytest.raises(DatasetError, match="row 0, a.png: has more fields than the header .* quote a value"):
            load_dataset_dict(tmp_path)

    def test_any_character_of_a_phrase(self, tmp_path):
        write_pairs(tmp_path, "a", names=("images", "masks"))
        phrase = "left\u2028main\x85stem"
        text = json.dumps({"file_name": "a.png", "phrase": phrase}, ensure_ascii=False)
        (tmp_path / "images" / "metadata.jsonl").write_bytes(f"{text}\r\n\r\n".encode())
        assert load_dataset_dict(tmp_path)["train"]["phrases"][0] == [phrase]

    def test_a_table_that_cannot_be_read(self, tmp_path):
        write_pairs(tmp_path, "a", names=("images", "masks"))
        (tmp_path / "images" / "metadata.parquet").write_bytes(b"no table")
        with pytest.raises(DatasetError, match="metadata.parquet cannot be read"):
            load_dataset_dict(tmp_path)

    def test_two_metadata_files(self, tmp_path):
        write_pairs(tmp_path, "a", names=("images", "masks"))
        for name in ("metadata.jsonl", "metadata.csv"):
            write_metadata(tmp_path / "images", {"file_name": "a.png", "phrase": "x"}, name=name)
        with pytest.raises(DatasetError, match="found images/metadata.jsonl, images/metadata.csv; keep one"):
            load_dataset_dict(tmp_path)

    def test_a_bad_line(self, tmp_path):
        write_pairs(tmp_path, "a", names=("images", "masks"))
        (tmp_path / "images" / "metadata.jsonl").write_text('{"file_name": "a.png", "phrase": "x"}\n{no}\n')
        with pytest.raises(DatasetError, match="metadata.jsonl: invalid JSON at line 2"):
            load_dataset_dict(tmp_path)

    def test_beside_annotations_it_is_named(self, tmp_path, caplog):
        write_json(tmp_path, entry())
        write_metadata(tmp_path / "images", {"file_name": "a.png", "phrase": "x"})
        with caplog.at_level(logging.WARNING):
            assert load_dataset_dict(tmp_path)["train"]["phrases"][0] == ["vessel"]
        assert "not read, since annotations.json is: images/metadata.jsonl." in caplog.text


class TestLoadDatasetDict:
    def test_folder_without_splits(self, tmp_path):
        assert list(load_dataset_dict(write_pairs(tmp_path / "pairs", "a"))) == ["train"]
        loaded = load_dataset_dict(str(write_json(tmp_path / "json", entry())))
        assert loaded["train"]["phrases"][0] == ["vessel"]

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_split_folders(self, tmp_path, name):
        write_json(tmp_path / "train", entry("a.png"), entry("b.png"))
        write_pairs(tmp_path / name, "c")
        write_json(tmp_path / "test", entry("d.png"))
        (tmp_path / "other").mkdir()
        loaded = load_dataset_dict(tmp_path, phrase="Artery")
        assert {split: rows["sample_id"][:] for split, rows in loaded.items()} == {
            "train": ["a", "b"],
            "validation": ["c"],
            "test": ["d"],
        }
        assert loaded["validation"]["phrases"][0] == ["artery"]
        assert loaded["test"]["phrases"][0] == ["vessel"], "the data's own phrase comes first"

    def test_sub_folders_that_are_not_read_are_named(self, tmp_path, caplog):
        for name in ("train", "val", "fold2"):
            write_pairs(tmp_path / name, "a")
        with caplog.at_level(logging.WARNING):
            assert list(load_dataset_dict(tmp_path)) == ["train", "validation"]
        assert "left out, each a dataset that can be named by itself: fold2." in caplog.text

    def test_equal_names_in_two_splits_are_told_apart(self, tmp_path):
        for split in ("train", "test"):
            write_pairs(tmp_path / split, "0001")
        loaded = load_dataset_dict(tmp_path)
        assert loaded["test"]["sample_id"][:] == ["test_0001"]
        check_no_leakage(loaded["train"], loaded["test"])

    def test_bad_rows_of_all_splits_together(self, tmp_path):
        write_json(tmp_path / "train", entry("a.png", text=[]))
        write_json(tmp_path / "test", entry("b.png", text=[]))
        with pytest.raises(DatasetError) as caught:
            load_dataset_dict(tmp_path)
        assert "a.png" in str(caught.value) and "b.png" in str(caught.value)
        assert len(caught.value.problems) == 2

    def test_save_to_disk(self, tmp_path, prepared):
        prepared.save_to_disk(tmp_path / "dict")
        prepared["train"].save_to_disk(tmp_path / "one")
        loaded = load_dataset_dict(tmp_path / "dict")
        assert {split: rows["sample_id"][:] for split, rows in loaded.items()} == {
            "train": ["a", "b"],
            "validation": ["c"],
        }
        one = load_dataset_dict(tmp_path / "one")
        assert list(one) == ["train"] and len(one["train"]) == 2
        check_dataset(loaded["train"])
        check_dataset(one["train"])

    def test_parquet(self, tmp_path, prepared):
        (tmp_path / "out" / "data").mkdir(parents=True)
        for split, rows in prepared.items():
            rows.to_parquet(tmp_path / "out" / "data" / f"{split}-00000-of-00001.parquet")
        loaded = load_dataset_dict(tmp_path / "out")
        assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2, "validation": 1}
        assert loaded["train"].features == FEATURES
        check_dataset(loaded["train"])

    def test_image_folder_with_metadata(self, tmp_path):
        write_pairs(tmp_path / "d" / "train", "a", "b", names=("images", "masks"))
        rows = [
            {"image_file_name": f"images/{n}.png", "masks_file_names": [f"masks/{n}.png"], "phrases": ["LAD"]}
            for n in "ab"
        ]
        (tmp_path / "d" / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        loaded = load_dataset_dict(tmp_path / "d")
        assert loaded["train"]["phrases"][:] == [["LAD"]] * 2
        assert loaded["train"].features["masks"].feature.mode is None, "nothing is converted before it is judged"
        assert loaded["train"]["sample_id"][:] == ["train_a", "train_b"], "made from the files' names"
        check_dataset(loaded["train"])

    @pytest.mark.parametrize("column", ["mask_file_name", "masks_file_names"])
    def test_phrase_for_prepared_data_that_has_none(self, tmp_path, column):
        write_pairs(tmp_path / "d" / "train", "a", names=("images", "masks"))
        mask = "masks/a.png" if column == "mask_file_name" else ["masks/a.png", "masks/a.png"]
        row = {"image_file_name": "images/a.png", column: mask, "sample_id": "x"}
        (tmp_path / "d" / "train" / "metadata.jsonl").write_text(json.dumps(row))
        with pytest.raises(DatasetError, match="phrase"):
            check_dataset(load_dataset_dict(tmp_path / "d")["train"])
        loaded = load_dataset_dict(tmp_path / "d", phrase="Blood vessel.")["train"]
        assert loaded[0].get("phrase", loaded[0].get("phrases")) in ("blood vessel", ["blood vessel"] * 2)
        assert loaded[0]["sample_id"] == "x"
        check_dataset(loaded)

    def test_broken_prepared_folder_says_why(self, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "x.parquet").write_bytes(b"no parquet")
        with pytest.raises(DatasetError, match="datasets.load_dataset failed: .*[Pp]arquet"):
            load_dataset_dict(tmp_path)

    def test_unknown_format_says_what_was_looked_for(self, tmp_path):
        (tmp_path / "pictures").mkdir()
        with pytest.raises(DatasetError) as caught:
            load_dataset_dict(tmp_path)
        for wanted in (
            "annotations.json",
            "image/",
            "metadata.jsonl",
            "Parquet",
            "dataset_dict.json",
            "Found: pictures",
        ):
            assert wanted in str(caught.value)

    def test_one_split_in_no_known_format(self, tmp_path):
        write_pairs(tmp_path / "train", "a")
        (tmp_path / "test").mkdir()
        with pytest.raises(DatasetError, match="test holds no known format"):
            load_dataset_dict(tmp_path)

    def test_two_names_for_one_split(self, tmp_path):
        for name in ("val", "validation"):
            write_pairs(tmp_path / name, "a")
        with pytest.raises(DatasetError, match="both val/ and validation/"):
            load_dataset_dict(tmp_path)

    @pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nowhere", "a/b/c", "../x", "~nobody/x"])
    def test_missing_path(self, name):
        with pytest.raises(FileNotFoundError, match="does not exist.*not the id of a dataset on the Hub"):
            load_dataset_dict(name)

    def test_hub_id_that_cannot_be_opened(self, monkeypatch):
        def fail(name):
            raise ConnectionError("offline")

        monkeypatch.setattr("datasets.load_dataset", fail)
        with pytest.raises(
            FileNotFoundError, match="'user/vessels' is neither an existing folder.*nor a dataset on the Hub.*offline"
        ):
            load_dataset_dict("user/vessels")

    def test_hub_id(self, monkeypatch, prepared):
        renamed = DatasetDict({"train": prepared["train"], "val": prepared["validation"]})
        monkeypatch.setattr("datasets.load_dataset", lambda name: renamed if name == "user/vessels" else None)
        assert list(load_dataset_dict("user/vessels")) == ["train", "validation"]

    def test_file_instead_of_folder(self, tmp_path):
        write_json(tmp_path, entry())
        with pytest.raises(DatasetError, match="is a file; give the folder"):
            load_dataset_dict(tmp_path / "annotations.json")

    def test_options_of_the_generator_need_the_generator(self, tmp_path):
        with pytest.raises(ValueError, match="num_videos: only for the dataset 'synthetic'"):
            load_dataset_dict(write_pairs(tmp_path, "a"), num_videos=3)

    def test_synthetic_passes_its_options(self, monkeypatch):
        seen = {}
        monkeypatch.setattr(
            "sa2va_trl.data.synthetic.synthetic_splits", lambda **kwargs: seen.update(kwargs) or DatasetDict()
        )
        assert load_dataset_dict("synthetic", phrase="Artery.", seed=7) == DatasetDict()
        assert seen == {"seed": 7, "phrase": "artery"}


@pytest.mark.skipif(not (SHARED / "data" / "arcade").is_dir(), reason=f"no real images in {SHARED / 'data'}")
class TestRealImages:
    def test_arcade(self):
        splits = {name: read_sa2va_json(SHARED / "data" / "arcade" / name) for name in ("val", "test")}
        assert {name: len(rows) for name, rows in splits.items()} == {"val": 40, "test": 60}
        for rows in splits.values():
            check_dataset(rows)
            covered = [(masks[0] > 0).mean() for masks in arrays(rows)]
            assert 0.001 < min(covered) and max(covered) < 0.2

    def test_arcade_lists_140_images_for_training(self):
        assert len(read_sa2va_json(SHARED / "data" / "arcade" / "train")) == 140

    def test_rossa(self):
        rows = load_dataset_dict(SHARED / "data" / "rossa")["train"]
        assert len(rows) == 40
        check_dataset(rows)
        assert all(masks[0].any() for masks in arrays(rows))


def test_prepared_folders_of_one_name_are_not_mixed_up(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: rows.parquet\n---\n"
    for number in (0, 1):
        folder = tmp_path / str(number) / "data"
        folder.mkdir(parents=True)
        synthetic_dataset(num_videos=1, frames_per_video=1, size=64, first_video=number).to_parquet(
            folder / "rows.parquet"
        )
        (folder / "README.md").write_text(card)
    ids = [load_dataset_dict(tmp_path / str(number) / "data")["train"]["sample_id"][0] for number in (0, 1)]
    assert ids == ["v0000_f000", "v0001_f000"]


class TestNames:
    def test_dots_in_names_are_kept(self, tmp_path):
        write_pairs(tmp_path, "pat3.1", "1.2.840.17", "plain")
        assert read_mask_folder(tmp_path)["sample_id"] == ["1.2.840.17", "pat3.1", "plain"]

    def test_names_that_look_alike_pair(self, tmp_path):
        write_image(tmp_path / "image" / "u\u0308.png")  # as macOS writes it
        write_mask(tmp_path / "mask" / "\u00fc.png")
        assert len(read_mask_folder(tmp_path)) == 1

    @pytest.mark.parametrize("phrase", ["the [SEG]", "<image>", "a <IMG_CONTEXT>", "x<|im_end|>"])
    def test_reserved_tokens_do_not_hide_in_lower_case(self, phrase):
        with pytest.raises(DatasetError, match="reserved token"):
            normalize_phrase(phrase)


class TestSplitsWithinFolders:
    def test_a_folder_a_split_below_images_is_refused(self, tmp_path):
        for split in ("train", "val"):
            write_image(tmp_path / "images" / split / "a.png")
            write_mask(tmp_path / "masks" / split / "a.png")
        with pytest.raises(DatasetError, match="put the split first: train/images/ and train/masks/"):
            load_dataset_dict(tmp_path)

    def test_one_folder_as_two_splits_is_refused(self, tmp_path):
        write_pairs(tmp_path / "all", "a", "b")
        for split in ("train", "val"):
            (tmp_path / split).symlink_to("all")
        with pytest.raises(DatasetError, match="one and the same folder"):
            load_dataset_dict(tmp_path)


@pytest.mark.parametrize("column", ["text", "caption", "label"])
def test_phrases_under_another_name_are_refused(tmp_path, column):
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}.png")
        write_mask(tmp_path / "masks" / f"{name}.png")
    lines = [json.dumps({"file_name": f"{name}.png", column: name}) for name in ("a", "b")]
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=f"no `phrase`.*`{column}`"):
        load_dataset_dict(tmp_path)
    assert load_dataset_dict(tmp_path, phrase="vessel")["train"]["phrases"] == [["vessel"], ["vessel"]]


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
