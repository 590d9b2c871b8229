import logging

import numpy as np
import PIL.Image
import pytest
from annotated_folders import HEIGHT, WIDTH, arrays, write_image, write_mask, write_pairs
from datasets import Dataset

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.readers.mask_folder import read_mask_folder
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.clips import read_media
from sa2va_trl.media.suffixes import IMAGE_SUFFIXES


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


class TestNames:
    def test_dots_in_names_are_kept(self, tmp_path):
        write_pairs(tmp_path, "pat3.1", "1.2.840.17", "plain")
        assert read_mask_folder(tmp_path)["sample_id"] == ["1.2.840.17", "pat3.1", "plain"]

    def test_names_that_look_alike_pair(self, tmp_path):
        write_image(tmp_path / "image" / "u\u0308.png")  # as macOS writes it
        write_mask(tmp_path / "mask" / "\u00fc.png")
        assert len(read_mask_folder(tmp_path)) == 1
