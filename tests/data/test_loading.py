import json
import logging
import os
from pathlib import Path

import pytest
from annotated_folders import (
    arrays,
    entry,
    write_image,
    write_json,
    write_mask,
    write_pairs,
)
from datasets import DatasetDict

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.readers.entries import Reading
from sa2va_trl.data.readers.mask_folder import read_mask_folder
from sa2va_trl.data.readers.sa2va_json import read_sa2va_json
from sa2va_trl.data.splits import check_no_leakage
from sa2va_trl.data.synthetic import synthetic_dataset
from sa2va_trl.errors import DatasetError


SHARED = Path(os.environ.get("SA2VA_TRL_SHARED", Path(__file__).parents[2] / ".." / "shared"))


@pytest.fixture
def prepared(tmp_path):
    """Two small splits, their pixels in the rows."""
    source = write_pairs(tmp_path / "source", "a", "b", "c")
    dataset = read_mask_folder(source)
    return DatasetDict({"train": dataset.select([0, 1]), "validation": dataset.select([2])})


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

    @pytest.mark.parametrize("read", [load_dataset_dict, lambda folder: find_sources(folder, Reading())])
    def test_a_folder_that_fits_two_formats_is_refused_in_one_way(self, tmp_path, read):
        write_json(tmp_path, {"images": [], "annotations": [], "categories": []}, images=["a.png"])
        file = tmp_path / "annotations.json"
        file.write_text(json.dumps(json.loads(file.read_text())[0]))
        write_pairs(tmp_path, "a", names=("images", "masks"))
        with pytest.raises(DatasetError, match=r"may be coco or mask_folder: say which with --format") as caught:
            read(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert len(find_sources(tmp_path, Reading(), "mask_folder")["train"].entries) == 1

    @pytest.mark.parametrize("read", [load_dataset_dict, lambda folder: find_sources(folder, Reading())])
    def test_splits_of_several_formats_are_read_each_by_its_own(self, tmp_path, prepared, read):
        for number in (1, 2):
            shape = {"label": "vessel", "points": [[1, 1], [5, 1], [5, 5]], "shape_type": "polygon"}
            own = {"shapes": [shape], "imagePath": f"{number}.png", "imageWidth": 12, "imageHeight": 8, "version": "5"}
            write_image(tmp_path / "train" / f"{number}.png", 12, 8)
            (tmp_path / "train" / f"{number}.json").write_text(json.dumps(own))
        (tmp_path / "val").mkdir()
        prepared["validation"].to_parquet(tmp_path / "val" / "rows.parquet")
        write_pairs(tmp_path / "test", "a", "b", "d")
        found = read(tmp_path)
        sizes = {split: len(getattr(own, "entries", own)) for split, own in found.items()}
        assert sizes == {"train": 2, "validation": 1, "test": 3}
        (tmp_path / "test").rename(tmp_path / "gone")
        (tmp_path / "test").mkdir()
        with pytest.raises(DatasetError, match="test holds no known format, the other splits do"):
            read(tmp_path)

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
            "sa2va_trl.data.synthetic.synthetic_splits",
            lambda phrase, seed: seen.update(phrase=phrase, seed=seed) or DatasetDict(),
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
