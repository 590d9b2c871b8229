import json
import logging

import pytest
from annotated_folders import (
    arrays,
    entry,
    write_image,
    write_json,
    write_mask,
    write_metadata,
    write_pairs,
)

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.readers.entries import FACTS, Reading, rows_of
from sa2va_trl.data.readers.mask_folder import read_mask_folder
from sa2va_trl.errors import DatasetError


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


class TestKnownColumns:
    SAID = {
        "patient_id": 17,
        "video_id": "run",
        "frame_index": 3,
        "frame_time_ms": 66.5,
        "pixel_spacing_mm": 0.2,
        "imager_pixel_spacing_mm": 1,
        "representative_frame": 0,
        "burned_in_text": "no",
    }

    @pytest.mark.parametrize("file", ["metadata.jsonl", "metadata.csv"])
    def test_they_have_their_types(self, tmp_path, file):
        assert self.SAID.keys() == FACTS.keys()
        write_pairs(tmp_path, "a", "b", names=("images", "masks"))
        empty = dict.fromkeys(self.SAID, "" if file.endswith("csv") else None)
        rows = {"file_name": "a.png", **self.SAID}, {"file_name": "b.png", **empty}
        write_metadata(tmp_path / "images", *rows, name=file)
        (source,) = find_sources(tmp_path, Reading()).values()
        expected = {**self.SAID, "patient_id": "17"}
        for found in (rows_of(source, Reading()), load_dataset_dict(tmp_path)["train"]):
            assert {name: found.features[name] for name in FACTS} == FACTS
            assert {name: found[0][name] for name in FACTS} == expected
            assert {found[1][name] for name in FACTS} == {None}
        assert {name: type(value) for name, value in source.entries[0].facts.items()} == {
            name: {"string": str, "int64": int, "float64": float}[feature.dtype] for name, feature in FACTS.items()
        }

    def test_what_other_programs_make_of_whole_numbers(self, tmp_path):
        write_pairs(tmp_path, "a", "b", names=("images", "masks"))
        rows = {"file_name": "a.png", "frame_index": "3.0"}, {"file_name": "b.png", "frame_index": " 4"}
        write_metadata(tmp_path / "images", *rows, name="metadata.csv")
        assert load_dataset_dict(tmp_path)["train"]["frame_index"][:] == [3, 4]

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            ("frame_index", "third", "`frame_index` must be a whole number, not 'third'"),
            ("frame_index", "3.5", "`frame_index` must be a whole number, not '3.5'"),
            ("frame_time_ms", "66 ms", "`frame_time_ms` must be a number, not '66 ms'"),
            ("pixel_spacing_mm", "nan", "`pixel_spacing_mm` must be a number, not 'nan'"),
            ("representative_frame", True, "`representative_frame` must be a whole number, not True"),
            ("pixel_spacing_mm", [0.2, 0.2], r"`pixel_spacing_mm` must be a number, not \[0.2, 0.2\]"),
            ("patient_id", ["P1"], r"`patient_id` must be a text, not \['P1'\]"),
        ],
    )
    def test_what_is_none_is_named_with_its_row(self, tmp_path, column, value, reason):
        write_pairs(tmp_path, "a", "b", names=("images", "masks"))
        rows = {"file_name": "a.png", column: None}, {"file_name": "b.png", column: value}
        if isinstance(value, str):
            write_metadata(tmp_path / "images", {**rows[0], column: ""}, rows[1], name="metadata.csv")
        else:
            write_metadata(tmp_path / "images", *rows)
        with pytest.raises(DatasetError, match=f"row 1.*b.png: {reason}"):
            load_dataset_dict(tmp_path)
