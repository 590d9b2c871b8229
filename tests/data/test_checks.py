import io
import time
import warnings

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, concatenate_datasets
from stored_rows import (
    CHAT,
    CLIP,
    SINGLE,
    chat,
    huge_png,
    image,
    jpeg_file,
    make,
    mask,
    png,
    problems_of,
)

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.layout import normalize_row
from sa2va_trl.errors import DatasetError


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
