import io
import struct
import time
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, List, Value, concatenate_datasets

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.layout import normalize_row, read_masks, read_pair
from sa2va_trl.data.readers.folders import resolve_inside
from sa2va_trl.data.stored import plain_rows
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.clips import read_media
from sa2va_trl.media.pictures import decode_image, displayed_size, page_count, quiet_pillow


SINGLE = Features({"image": Image(), "mask": Image(mode="L"), "phrase": Value("string"), "sample_id": Value("string")})
CLIP = Features(
    {
        "images": List(Image()),
        "masks": List(Image(mode="L")),
        "phrases": List(Value("string")),
        "sample_id": Value("string"),
    }
)
CHAT = Features(
    {
        "image": Image(),
        "masks": List(Image(mode="L")),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "sample_id": Value("string"),
    }
)


def png(array):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.asarray(array, dtype=np.uint8)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def image(height=6, width=8):
    return png(np.full((height, width, 3), 90))


def mask(height=6, width=8, value=255):
    array = np.zeros((height, width))
    array[1:3, 2:5] = value
    return png(array)


def jpeg_file(path, height=64, width=64):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path)
    return path


def huge_png(width=30_000, height=30_000):
    """A PNG that is valid up to its header: nothing that decodes it can succeed."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return {"bytes": data, "path": None}


def deep_png():
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((6, 8), 3000, dtype=np.uint16)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def without_mode(feature):
    """An image column that is read as it is stored: `mode="L"` would convert a mask before anybody can look at it."""
    if isinstance(feature, List) and isinstance(feature.feature, Image):
        return List(Image())
    return Image() if isinstance(feature, Image) else feature


def make(features, *rows):
    """A dataset of rows that are legal but for what each row names; sample_ids are s0, s1, ..."""
    legal = {
        "image": image(),
        "images": [image(), image()],
        "mask": mask(),
        "masks": [mask(), mask()] if "images" in features else [mask()],
        "phrase": "vessel",
        "phrases": ["vessel"],
        "messages": chat("Sure, [SEG]."),
    }
    rows = [{**legal, "sample_id": f"s{number}", **row} for number, row in enumerate(rows)]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def chat(answer, question="Segment the vessel."):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def problems_of(dataset, **kwargs):
    with pytest.raises(DatasetError) as caught:
        check_dataset(dataset, **kwargs)
    return caught.value


class TestCheckDataset:
    def test_legal_rows_of_every_style_pass(self):
        check_dataset(make(SINGLE, {}, {"mask": mask(value=1)}, {"mask": mask(value=0)}))
        check_dataset(make(FEATURES, {}, {"masks": [mask(), mask()], "phrases": ["left", "right"]}))
        check_dataset(make(CLIP, {}, {"masks": [mask()] * 4, "phrases": ["left", "right"]}))
        check_dataset(make(CHAT, {}, {"masks": [], "messages": chat("A vessel.")}))
        check_dataset(make(CHAT, {"image": None, "masks": None, "messages": chat("It is one.")}))

    def test_styles_may_differ_from_row_to_row(self):
        mixed = concatenate_datasets(
            [make(SINGLE, {}), make(CLIP, {"sample_id": "b"}), make(CHAT, {"sample_id": "c"})]
        )
        check_dataset(mixed)
        assert [len(normalize_row(row)["masks"]) for row in mixed] == [1, 2, 1]

    @pytest.mark.parametrize(
        ("features", "row", "reason"),
        [
            (SINGLE, {"image": None}, "has no image"),
            (SINGLE, {"image": {"bytes": b"GIF99 no", "path": None}}, "image is unreadable"),
            (SINGLE, {"image": {"bytes": b"", "path": None}}, "image is unreadable"),
            (SINGLE, {"image": huge_png()}, "image is too large: 30000 x 30000"),
            (SINGLE, {"mask": huge_png()}, "mask 0 is too large: 30000 x 30000"),
            (SINGLE, {"mask": mask(8, 6)}, "mask 0 is 6 x 8, its image 8 x 6 (width x height)"),
            (SINGLE, {"mask": mask(value=2)}, "mask 0 is not binary: values 0, 2;"),
            (SINGLE, {"mask": mask(value=254)}, "mask 0 is not binary: values 0, 254;"),
            (SINGLE, {"mask": png(np.arange(48).reshape(6, 8))}, "0, 1, 2, 3, 4, 5, 6, 7, ... (48 values)"),
            (SINGLE, {"mask": png([[0, 1, 255, 0, 0, 0, 0, 0]] * 6)}, "mask 0 is not binary: values 0, 1, 255"),
            (SINGLE, {"mask": {"bytes": b"not a png", "path": None}}, "mask 0 is unreadable"),
            (SINGLE, {"mask": None}, "fewer masks than phrases: 0 masks, 1 phrases"),
            (SINGLE, {"phrase": None}, "has neither a phrase nor messages"),
            (SINGLE, {"phrase": "  "}, "phrase 0 is missing or empty"),
            (SINGLE, {"phrase": "a [SEG]"}, "phrase 0 holds the reserved token [SEG]"),
            (FEATURES, {"phrases": ["left", None], "masks": [mask()] * 2}, "phrase 1 is missing or empty"),
            (FEATURES, {"masks": [mask()] * 3}, "more masks than phrases: 3 masks, 1 phrases"),
            (FEATURES, {"phrases": ["left", "right"]}, "fewer masks than phrases: 1 masks, 2 phrases"),
            (FEATURES, {"masks": [mask(), mask(value=3)], "phrases": ["a", "b"]}, "mask 1 is not binary: values 0, 3"),
            (FEATURES, {"masks": [None]}, "mask 0 is missing (None)"),
            (FEATURES, {"masks": [], "phrases": []}, "has neither a phrase nor messages"),
            (CLIP, {"masks": [mask()]}, "fewer masks than phrases: 1 masks, 1 phrases x 2 frames = 2"),
            (CLIP, {"images": [image(), image(8, 6)]}, "frames of a clip differ in size: 6 x 8, 8 x 6"),
            (CLIP, {"images": [image(), None]}, "image 1 is missing (None)"),
            (CHAT, {"messages": chat("[SEG] and [SEG]")}, "fewer masks than [SEG] in the assistant turns: 1 masks, 2"),
            (CHAT, {"messages": chat("Nothing there.")}, "more masks than [SEG] in the assistant turns: 1 masks, 0"),
            (CHAT, {"image": None}, "has no image"),
            (CHAT, {"image": None, "masks": None}, "fewer masks than [SEG]"),
            (CHAT, {"messages": chat("[SEG]")[:1]}, "does not end with an assistant turn"),
            (CHAT, {"messages": chat("[SEG]")[1:]}, "message 0 is an assistant turn that follows no user turn"),
            (CHAT, {"messages": chat("[SEG]")[:1] + chat("[SEG]")}, "messages 0 and 1 are both user turns"),
            (CHAT, {"messages": [{"role": "human", "content": "a"}] + chat("[SEG]")}, "role 'human' in message 0"),
            (
                CHAT,
                {"messages": chat("[SEG]", "a") + [{"role": "system", "content": "b"}]},
                "message 2 is a system turn",
            ),
            (CHAT, {"messages": chat("[SEG]", "Answer with [SEG].")}, "[SEG] in message 0 (user)"),
            (CHAT, {"messages": chat(None), "masks": []}, "content of message 1 is neither a string nor typed parts"),
            (CHAT, {"messages": chat(""), "masks": []}, "message 1 (assistant) is empty"),
            (SINGLE, {"sample_id": None}, "sample_id is missing or empty"),
        ],
    )
    def test_bad_row_is_named_with_its_reason(self, features, row, reason):
        error = problems_of(make(features, {}, row, {}))
        assert [problem.row for problem in error.problems] == [1]
        assert "train_dataset: 1 of 3 rows cannot be used" in str(error)
        assert "row 1" in str(error)
        assert reason in str(error)

    def test_missing_and_truncated_files_are_named(self, tmp_path):
        whole = jpeg_file(tmp_path / "whole.jpg")
        truncated = tmp_path / "truncated.jpg"
        truncated.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        big_enough = mask(64, 64)
        rows = [{"image": str(path), "mask": big_enough} for path in (whole, truncated, tmp_path / "gone.jpg")]
        error = problems_of(make(SINGLE, *rows))
        assert [problem.row for problem in error.problems] == [1, 2]
        assert "truncated.jpg: image is unreadable or truncated" in str(error)
        assert "gone.jpg: image file is missing" in str(error)
        assert "whole.jpg" not in str(error)

    def test_all_bad_rows_are_reported_together(self):
        rows = [
            {},
            {"mask": mask(value=9)},
            {"phrase": ""},
            {"image": image(4, 4), "mask": mask(value=9)},
            {"sample_id": "s0"},
        ]
        error = problems_of(make(SINGLE, *rows), name="eval_dataset")
        assert [problem.row for problem in error.problems] == [1, 2, 3, 4]
        assert "eval_dataset: 4 of 5 rows" in str(error)
        both = error.problems[2].reason
        assert "its image 4 x 4" in both and "not binary" in both, "every reason of a row, not the first"
        assert "sample_id 's0': duplicate sample_id, first used in row 0" in str(error)

    def test_long_reports_are_cut_but_counted(self):
        error = problems_of(make(SINGLE, *[{"phrase": ""}] * 70))
        assert len(error.problems) == 70
        assert "row 49" in str(error) and "row 50" not in str(error)
        assert "... and 20 more" in str(error)

    @pytest.mark.parametrize("style", ["phrase", "messages"])
    def test_mixed_styles(self, style):
        both = Features({**SINGLE, "masks": List(Image()), "messages": CHAT["messages"]})
        off = {"masks": None, "messages": None}
        row = {"masks": [mask()]} if style == "phrase" else {"messages": chat("[SEG]"), "mask": mask()}
        error = problems_of(make(both, off, {**off, **row}))
        assert [problem.row for problem in error.problems] == [1]
        assert "mixes" in str(error) and f"`{style}`" in str(error)

    def test_image_and_images_in_one_row(self):
        error = problems_of(make(Features({**CLIP, "image": Image()}), {}))
        assert "mixes `image` and `images`" in str(error)

    def test_large_image_is_refused_from_its_header(self, monkeypatch):
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 89_000_000)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # 10,000 x 10,000 is above Pillow's own warning, 30,000 x 30,000 above its error
            error = problems_of(
                make(SINGLE, {"image": huge_png()}, {"image": huge_png(10_000, 10_000)}), max_pixels=10**7
            )
        assert time.perf_counter() - started < 5
        assert "30000 x 30000" in str(error) and "10000 x 10000" in str(error)
        assert "DecompressionBomb" not in str(error)
        assert PIL.Image.MAX_IMAGE_PIXELS == 89_000_000, "Pillow's limit must be back in place"

    def test_max_pixels_is_inclusive(self):
        check_dataset(make(SINGLE, {}), max_pixels=48)
        assert "the limit is 47" in str(problems_of(make(SINGLE, {}), max_pixels=47))

    def test_workers_change_nothing(self):
        dataset = make(SINGLE, *[{"phrase": ""} if number % 3 == 0 else {} for number in range(150)])
        problems = problems_of(dataset).problems
        assert [problem.row for problem in problems] == list(range(0, 150, 3))
        assert problems_of(dataset, num_proc=3).problems == problems

    def test_the_stored_rows_are_checked_whatever_the_format(self):
        bad = make(SINGLE, {}, {"phrase": ""}).with_transform(lambda batch: {"image": batch["image"]})
        assert [problem.row for problem in problems_of(bad).problems] == [1]

    def test_selected_rows_are_counted_in_the_selection(self):
        selection = make(SINGLE, {"phrase": ""}, {}, {"phrase": ""}).select([2, 1])
        assert [(problem.row, problem.sample_id) for problem in problems_of(selection).problems] == [(0, "s2")]

    def test_turned_image_is_compared_as_it_is_decoded(self):
        buffer = io.BytesIO()
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        PIL.Image.fromarray(np.zeros((8, 6, 3), dtype=np.uint8)).save(buffer, format="JPEG", exif=exif)
        turned = {"bytes": buffer.getvalue(), "path": None}
        dataset = make(SINGLE, {"image": turned})
        assert dataset[0]["image"].size == dataset[0]["mask"].size == (8, 6)
        check_dataset(dataset)

    def test_typed_content_parts(self):
        parts = [{"type": "image", "text": None}, {"type": "text", "text": "Where?"}]
        answer = [{"type": "text", "text": "[SEG]"}]
        rows = {
            "image": [image()],
            "masks": [[mask()]],
            "messages": [[{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]],
            "sample_id": ["a"],
        }
        dataset = Dataset.from_dict(rows).cast_column("image", Image()).cast_column("masks", List(Image()))
        check_dataset(dataset)


class TestDatasetLevel:
    def test_empty(self):
        with pytest.raises(DatasetError, match="eval_dataset is empty"):
            check_dataset(make(SINGLE), name="eval_dataset")

    @pytest.mark.parametrize(
        ("columns", "missing"),
        [
            (["image", "mask", "sample_id"], "`phrase` (goes with `mask`)"),
            (["image", "phrases", "sample_id"], "`masks` (goes with `phrases`)"),
            (["mask", "phrase", "sample_id"], "`image` (or `images`)"),
            (["image", "mask", "phrase"], "`sample_id`"),
            (["text"], "`masks` and `phrases`"),
        ],
    )
    def test_missing_columns(self, columns, missing):
        dataset = Dataset.from_dict({name: [None] for name in columns})
        with pytest.raises(DatasetError) as caught:
            check_dataset(dataset)
        assert missing in str(caught.value)
        assert "Accepted" in str(caught.value) and ", ".join(columns) in str(caught.value)

    def test_column_of_the_wrong_type(self):
        dataset = make(SINGLE, {}).remove_columns("image").add_column("image", ["a.png"])
        with pytest.raises(DatasetError, match=r"column `image` is .*cast_column"):
            check_dataset(dataset)
        dataset = make(FEATURES, {}).remove_columns("masks").add_column("masks", [[[0, 1]]])
        with pytest.raises(DatasetError, match=r"column `masks` is .*cast_column"):
            check_dataset(dataset)

    def test_rows_of_a_stream_are_left_alone(self):
        check_dataset(make(SINGLE, {"phrase": ""}).to_iterable_dataset())

    def test_columns_of_a_stream_are_checked_where_they_are_known(self):
        stream = make(SINGLE, {}).remove_columns("phrase").to_iterable_dataset()
        with pytest.raises(DatasetError, match="`phrase`"):
            check_dataset(stream)
        check_dataset(stream.map(lambda row: row))

    def test_dataset_dict_is_refused(self):
        with pytest.raises(TypeError, match="pass one split"):
            check_dataset(DatasetDict({"train": make(SINGLE, {})}))

    def test_speed(self):
        noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(noise).save(buffer, format="JPEG")
        row = {"image": {"bytes": buffer.getvalue(), "path": None}, "mask": mask(512, 512)}
        dataset = make(SINGLE, *[row] * 122)
        started = time.perf_counter()
        check_dataset(dataset)
        assert time.perf_counter() - started < 4, "1,220 such rows must take well under a minute"


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


class TestPlainRows:
    @pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", "pandas"])
    def test_formats_are_reset_and_rows_are_what_they_were(self, kind):
        dataset = make(FEATURES, {}, {})
        plain = plain_rows(dataset.with_format(kind, columns=["image"]))
        assert plain.format["type"] is None
        assert plain[1]["sample_id"] == "s1" and isinstance(plain[1]["image"], PIL.Image.Image)
        check_dataset(dataset.with_format(kind))

    def test_a_format_of_some_columns_is_reset(self):
        dataset = make(FEATURES, {}, {}).with_format(columns=["image"])
        assert set(plain_rows(dataset)[0]) == set(FEATURES)
        everything = make(FEATURES, {})
        assert plain_rows(everything) is everything

    def test_a_transform_stays(self):
        dataset = make(SINGLE, {}).with_transform(lambda batch: {**batch, "phrase": ["other"]})
        assert plain_rows(dataset) is dataset

    def test_undecoded_columns_are_decoded_row_by_row(self):
        dataset = make(CLIP, {})
        lazy = dataset.cast(
            Features({**CLIP, "images": List(Image(decode=False)), "masks": List(Image(mode="L", decode=False))})
        )
        assert isinstance(lazy[0]["images"][0], dict)
        check_dataset(lazy)
        one, other = (normalize_row(plain_rows(rows)[0]) for rows in (dataset, lazy))
        for name in ("images", "masks"):
            for a, b in zip(one[name], other[name], strict=True):
                assert np.array_equal(a, b)

    def test_a_stream_with_a_format(self):
        stream = make(SINGLE, {}).to_iterable_dataset()
        for kind in ("torch", "numpy", "arrow"):
            (row,) = plain_rows(stream.with_format(kind))
            assert normalize_row(row)["images"][0].size == (8, 6)

    def test_a_stream_of_unknown_features(self):
        def rows():
            yield {"image": PIL.Image.new("RGB", (8, 6)), "mask": np.eye(6, 8), "phrase": "a", "sample_id": "x"}

        (row,) = plain_rows(IterableDataset.from_generator(rows))
        with pytest.raises(DatasetError, match="'x' cannot be used: mask 0 is an array of float64"):
            normalize_row(row)


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


class TestResolveInside:
    def test_inside(self, tmp_path):
        assert resolve_inside(tmp_path, "a/../b/c.png") == tmp_path.resolve() / "b" / "c.png"

    def test_root_may_be_a_link(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert resolve_inside(tmp_path / "link", "a.png") == (tmp_path / "real" / "a.png").resolve()

    @pytest.mark.parametrize("relative", ["../a.png", "a/../../b.png", "/etc/passwd", "\\\\host\\a.png", "a\0b"])
    def test_outside(self, tmp_path, relative):
        with pytest.raises(DatasetError, match="path .* (leaves the dataset folder|is absolute|cannot be resolved)"):
            resolve_inside(tmp_path, relative)

    def test_neighbour_with_the_same_prefix(self, tmp_path):
        (tmp_path / "data").mkdir()
        with pytest.raises(DatasetError, match="leaves"):
            resolve_inside(tmp_path / "data", "../data2/a.png")

    def test_symbolic_link_out(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "secret.png").write_bytes(b"x")
        (tmp_path / "data" / "a.png").symlink_to(tmp_path / "secret.png")
        with pytest.raises(DatasetError, match="leaves the dataset folder"):
            resolve_inside(tmp_path / "data", "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["a.tif", "a.jpg", "a.png", "behind the pixels"])
def test_the_size_as_displayed_is_that_of_the_decoded_image(tmp_path, orientation, form):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    picture, path = PIL.Image.new("RGB", (80, 40), 9), tmp_path / (form if "." in form else "a.png")
    if path.suffix == ".tif":
        picture.save(path, tiffinfo={274: orientation}, compression="tiff_lzw")
    else:
        picture.save(path, exif=exif)
    if form == "behind the pixels":
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    rows = Dataset.from_dict({"image": [str(path)]}, features=Features({"image": Image()}))
    undecoded = rows.cast_column("image", Image(decode=False))[0]["image"]
    for source in (path, undecoded, {"bytes": path.read_bytes(), "path": None}):
        assert displayed_size(source) == decode_image(source).size == rows[0]["image"].size
    assert displayed_size(rows[0]["image"]) == rows[0]["image"].size


def test_a_png_without_text_is_not_decoded_for_its_size():
    with quiet_pillow():
        assert displayed_size(huge_png(300, 200)) == (300, 200)


@pytest.mark.parametrize("kind", [1, 4])
def test_a_thumbnail_beside_the_picture_is_no_second_picture(tmp_path, kind):
    first, second = PIL.Image.new("L", (8, 6), 200), PIL.Image.new("L", (8, 6), 50)
    second.encoderinfo = {"tiffinfo": {254: kind}}
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    picture = PIL.Image.new("L", (8, 6), 90)
    picture.encoderinfo = {"tiffinfo": {254: 0}}
    first.save(tmp_path / "b.tif", save_all=True, append_images=[picture], tiffinfo={254: kind})
    assert decode_image(tmp_path / "a.tif").getpixel((0, 0)) == 200
    check_dataset(make(SINGLE, {"image": {"bytes": (tmp_path / "a.tif").read_bytes(), "path": None}}))
    ((_, image),) = read_media(tmp_path / "a.tif")
    assert image.getpixel((0, 0)) == (200, 200, 200), "what predict reads"
    with PIL.Image.open(tmp_path / "a.tif") as opened:
        opened.load()
        opened.putpixel((0, 0), 7)
        assert page_count(opened) == 1 and opened.getpixel((0, 0)) == 7
        opened.seek(1)
        assert page_count(opened) == 1 and opened.tell() == 1
    with pytest.raises(DatasetError, match="has a thumbnail or mask as its first page, its picture is page 1"):
        decode_image(tmp_path / "b.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_read_as_it_is_shown_or_refused(tmp_path, orientation, compression):
    """Pillow scrambles uncompressed TIFF files that lie on their side, and so does `datasets.Image`."""
    pixels = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: orientation}, compression=compression)
    rows = Dataset.from_dict({"image": [str(tmp_path / "a.tif")]}, features=Features({"image": Image()}))
    try:
        decode_image(tmp_path / "a.tif")
    except DatasetError as error:
        assert orientation >= 5 and compression == "raw" and f"(orientation {orientation})" in str(error)
        return
    turned = PIL.Image.fromarray(pixels)
    turned.getexif()[274] = orientation
    shown = np.asarray(PIL.ImageOps.exif_transpose(turned))
    for image in (decode_image(tmp_path / "a.tif"), rows[0]["image"]):
        assert np.array_equal(np.asarray(image), shown)
