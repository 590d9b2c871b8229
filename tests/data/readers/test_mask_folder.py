import json
import logging
import pickle
import shutil

import nibabel
import numpy as np
import PIL.Image
import pytest
from annotated_folders import HEIGHT, WIDTH, arrays, write_image, write_mask, write_pairs
from datasets import Dataset

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.readers.entries import Reading
from sa2va_trl.data.readers.mask_folder import find_mask_folder, is_mask_folder, read_mask_folder
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
        assert "7 of 8 images or annotations" in str(caught.value)

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

    @pytest.mark.parametrize(("image", "mask"), [("x.heic", "x.png"), ("x.png", "x.mha"), ("x.dcm", "x.mha")])
    def test_half_a_pair_of_another_kind_is_refused(self, tmp_path, image, mask):
        write_pairs(tmp_path, "a")
        write_image(tmp_path / "image" / "x.png").rename(tmp_path / "image" / image)
        write_mask(tmp_path / "mask" / "x.png").rename(tmp_path / "mask" / mask)
        with pytest.raises(DatasetError, match="1 of 2 images or annotations") as caught:
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
            (["a-x"], ["a-y"], "mask 'a-y' to 'a-x'"),
            (["a_1", "b_1"], ["a_2", "b_2"], "do they belong together.*mask 'a_2' to 'a_1'"),
            (["a", "b"], ["a_mask", "c_mask"], "has no mask"),
            (["a", "a_mask"], ["a_mask"], "has no mask"),
        ],
    )
    def test_names_that_do_not_pair(self, tmp_path, images, masks, reason):
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

    def test_layout(self, tmp_path):
        assert is_mask_folder(write_pairs(tmp_path / "pairs", "a"))
        (tmp_path / "pairs" / "image" / "metadata.jsonl").write_text("{}")
        assert not is_mask_folder(tmp_path / "pairs")
        assert not is_mask_folder(tmp_path)
        assert find_sources(write_pairs(tmp_path / "train", "a").parent / "train", Reading())["train"].entries
        write_pairs(tmp_path / "both" / "train", "a")
        write_pairs(tmp_path / "both" / "test", "b")
        assert set(find_sources(tmp_path / "both", Reading())) == {"train", "test"}

    def test_empty_phrase(self, tmp_path):
        with pytest.raises(DatasetError, match="phrase ' ' is empty"):
            read_mask_folder(write_pairs(tmp_path, "a"), phrase=" ")


class TestObjects:
    """What a mask tells apart is in tests/media/test_mask_objects.py; here, what becomes of it."""

    @pytest.fixture
    def folder(self, tmp_path):
        """Ids 1 and 2, then 2 alone, then nothing."""
        write_pairs(tmp_path, "a", "b", "c")
        pixels = np.zeros((3, HEIGHT, WIDTH), dtype=np.uint8)
        pixels[0, 1:3, 2:4], pixels[:2, 5:7, 6:10] = 1, 2
        for name, own in zip("abc", pixels, strict=True):
            PIL.Image.fromarray(own).save(tmp_path / "mask" / f"{name}.png")
        return tmp_path

    def test_ids_without_names_are_instances(self, folder):
        rows = read_mask_folder(folder)
        assert rows["phrases"][:] == [["blood vessel"] * 2, ["blood vessel"], ["blood vessel"]]
        assert [[mask.sum() // 255 for mask in masks] for masks in arrays(rows)] == [[4, 8], [8], [0]]
        check_dataset(rows)
        source = find_mask_folder(folder, Reading())["train"]
        assert source.labels == () and [len(entry.objects) for entry in source.entries] == [2, 1, 0]
        again = pickle.loads(pickle.dumps(source.entries[0]))  # it goes to other processes
        assert again.objects[1].draw((WIDTH, HEIGHT)).sum() == 8

    def test_ids_with_names_are_classes(self, folder, caplog):
        rows = read_mask_folder(folder, reading=Reading(classes={"1": "vessel", "2": "catheter"}))
        assert rows["phrases"][:] == [["vessel", "catheter"], ["catheter"], ["vessel", "catheter"]]
        assert [[mask.sum() // 255 for mask in masks] for masks in arrays(rows)] == [[4, 8], [8], [0, 0]]
        joined = read_mask_folder(folder, reading=Reading(classes={"1": "vessel", "2": "vessel"}))
        assert [[mask.sum() // 255 for mask in masks] for masks in arrays(joined)] == [[12], [8], [0]]
        with caplog.at_level(logging.WARNING):
            one = read_mask_folder(folder, reading=Reading(classes={"1": "vessel"}))
        assert [[mask.sum() // 255 for mask in masks] for masks in arrays(one)] == [[4], [0], [0]]
        assert "left out, classes that are not asked for: 2" in caplog.text

    def test_colours_with_names_are_classes(self, folder):
        red, green = PIL.Image.new("RGB", (WIDTH, HEIGHT)), PIL.Image.new("RGB", (WIDTH, HEIGHT), "white")
        red.paste("#FF0000", (0, 0, 3, 4))
        green.paste("#00FF00", (0, 0, 2, 1))
        for name, picture in zip("abc", (red, green, red), strict=True):
            picture.save(folder / "mask" / f"{name}.png")
        with pytest.raises(DatasetError, match=r"b\.png is not binary: .*None of them is black"):
            read_mask_folder(folder)
        rows = read_mask_folder(folder, reading=Reading(classes={"#ff0000": "vessel", "#00FF00": "catheter"}))
        assert rows["phrases"][:] == [["vessel"], ["catheter"], ["vessel"]]
        assert [[mask.sum() // 255 for mask in masks] for masks in arrays(rows)] == [[12], [2], [12]]

    @pytest.mark.parametrize(
        ("classes", "reason"),
        [
            ({"3": "stent", "#00FF00": "wire"}, "no mask has any of 3, #00FF00; there are 1, 2"),
            ({"vessel": "vessel"}, "ids or colours.*got 'vessel'"),
            ({"0": "vessel"}, "which is the background"),
            (["1", "01"], "twice"),
        ],
    )
    def test_classes_that_are_none_are_refused(self, folder, classes, reason):
        with pytest.raises(DatasetError, match=reason):
            read_mask_folder(folder, reading=Reading(classes=classes))

    def test_a_class_in_no_mask_is_named(self, folder, caplog):
        with caplog.at_level(logging.WARNING):
            read_mask_folder(folder, reading=Reading(classes={"1": "vessel", "2": "wire", "3": "stent"}))
        assert "in no mask: 3. There are 1, 2." in caplog.text

    def test_a_threshold_is_one_object(self, folder):
        soft = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
        PIL.Image.fromarray(soft).save(folder / "mask" / "a.png")
        with pytest.raises(
            DatasetError, match="1 of 3 images or annotations.*\n.*Grey edges of one object, or an id .*mask_threshold"
        ):
            read_mask_folder(folder)
        (folder / "mask" / "a.png").unlink()
        PIL.Image.fromarray(soft).save(folder / "mask" / "a.jpg", quality=95)
        with pytest.raises(DatasetError, match="is a JPEG"):
            read_mask_folder(folder)
        rows = read_mask_folder(folder, reading=Reading(mask_threshold=128))
        np.testing.assert_array_equal(arrays(rows)[0][0] > 0, soft >= 128)
        with pytest.raises(DatasetError, match="give either"):
            read_mask_folder(folder, reading=Reading(mask_threshold=128, classes={"1": "vessel"}))

    @pytest.mark.parametrize("suffix", [".npy", ".nii", ".nii.gz", ".gif", ".pgm", ".ppm", ".webp", ".tif"])
    def test_kinds_of_files(self, tmp_path, suffix):
        write_pairs(tmp_path, "a")
        (tmp_path / "mask" / "a.png").unlink()
        shape = np.zeros((HEIGHT, WIDTH), dtype=bool)
        shape[1:4, 2:6] = True
        path = tmp_path / "mask" / f"a{suffix}"
        if suffix == ".npy":
            np.save(path, shape)
        elif suffix.startswith(".nii"):
            nibabel.save(nibabel.Nifti1Image(shape.T.astype(np.float32), None), path)
        else:
            picture = PIL.Image.fromarray(shape.astype(np.uint8) * 255)
            picture = picture.convert("RGB") if suffix == ".ppm" else picture
            picture.save(path, **({"lossless": True} if suffix == ".webp" else {}))
        rows = read_mask_folder(tmp_path)
        np.testing.assert_array_equal(arrays(rows)[0][0] > 0, shape)
        assert rows["sample_id"][:] == ["a"]

    def test_images_in_nifti(self, tmp_path):
        grey = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
        for kind, pixels in (("image", grey), ("mask", (grey > 40).astype(np.uint8))):
            (tmp_path / kind).mkdir()
            nibabel.save(
                nibabel.Nifti1Image(pixels.T[..., None], np.diag([1, 1, 1, 1.0]) * 2), tmp_path / kind / "a.nii.gz"
            )
        (row,) = read_mask_folder(tmp_path)
        assert row["sample_id"] == "a"
        shown = np.asarray(row["image"])
        np.testing.assert_array_equal(np.asarray(row["masks"][0]) > 0, shown > 40)
        nibabel.save(nibabel.Nifti1Image(np.stack([grey.T] * 3, -1), None), tmp_path / "image" / "a.nii.gz")
        with pytest.raises(DatasetError, match=r"image/a\.nii\.gz: image holds 3 frames"):
            read_mask_folder(tmp_path)

    def test_every_example_of_other_programs(self, shared, tmp_path):
        formats = shared / "data" / "formats"
        truth = json.loads((formats / "truth.json").read_text())
        shapes = {name: np.array([[c == "#" for c in row] for row in truth[name]]) for name in ("mask", "second")}
        thresholds = {"masks/float.tif": 0.5, "masks/antialiased.png": 128}
        for number, (name, wanted) in enumerate(truth["files"].items()):
            folder = formats / name
            if name.startswith("masks/"):
                folder = tmp_path / str(number)
                for kind, file in (("image", formats / "masks" / "image.png"), ("mask", formats / name)):
                    (folder / kind).mkdir(parents=True)
                    shutil.copy(file, folder / kind / f"a{file.suffix}")
            elif name != "suffixes":
                continue
            if name in thresholds:
                with pytest.raises(DatasetError, match="mask_threshold"):
                    read_mask_folder(folder)
            rows = read_mask_folder(folder, reading=Reading(mask_threshold=thresholds.get(name)))
            assert len(rows) == wanted.get("rows", 1)
            for masks in arrays(rows):
                np.testing.assert_array_equal(np.array(masks) > 0, [shapes[own] for own in wanted["objects"]])

    def test_real_pairs(self, shared):
        source = find_mask_folder(shared / "data" / "rossa", Reading())["train"]
        assert not source.problems and [len(entry.objects) for entry in source.entries] == [1] * 40


class TestNames:
    def test_a_suffix_of_masks(self, tmp_path, caplog):
        write_pairs(tmp_path, "a", "b")
        for name in "ab":
            (tmp_path / "mask" / f"{name}.png").rename(tmp_path / "mask" / f"{name}_gt.png")
        write_mask(tmp_path / "mask" / "a_other.png")
        with pytest.raises(DatasetError, match="has no mask: expected mask/a.png"):
            read_mask_folder(tmp_path)
        with caplog.at_level(logging.WARNING):
            rows = read_mask_folder(tmp_path, reading=Reading(mask_suffix="_gt"))
        assert rows["sample_id"][:] == ["a", "b"]
        assert "left out, names without mask_suffix '_gt': a_other.png" in caplog.text
        (tmp_path / "mask" / "b_gt.png").unlink()
        with pytest.raises(DatasetError, match="has no mask: expected mask/b_gt.png"):
            read_mask_folder(tmp_path, reading=Reading(mask_suffix="_gt"))
        with pytest.raises(DatasetError, match="no mask has a name that ends in mask_suffix='_seg'"):
            read_mask_folder(tmp_path, reading=Reading(mask_suffix="_seg"))

    @pytest.mark.parametrize(
        ("images", "masks", "suffix"),
        [
            (["21_training", "22_training"], ["21_manual1", "22_manual1"], None),
            (["21_training", "22_training"], ["21_manual1", "22_manual1"], "_manual1"),
            (["1", "12"], ["1_mask", "12_mask"], None),
            (["1_0000", "2_0000"], ["1", "2"], None),
            (["sub/1", "sub/2"], ["sub/1-seg", "sub/2-seg"], None),
        ],
    )
    def test_ends_of_names_that_differ(self, tmp_path, images, masks, suffix, caplog):
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            write_image(tmp_path / "image" / f"{image}.png", width=12 + number)
            write_mask(tmp_path / "mask" / f"{mask}.png", width=12 + number)
        with caplog.at_level(logging.WARNING):
            rows = read_mask_folder(tmp_path, reading=Reading(mask_suffix=suffix))
        assert len(rows) == 2 and "paired by name without what all images end in" in caplog.text

    def test_a_mask_that_is_missing_is_the_only_fault_where_names_end_unlike(self, tmp_path):
        for name in ("P1_a", "P1_b", "P2_a", "P2_b"):
            write_image(tmp_path / "image" / f"{name}.png")
            if name != "P2_a":
                write_mask(tmp_path / "mask" / f"{name}_mask.png")
        with pytest.raises(DatasetError, match="1 of 4 images or annotations") as caught:
            read_mask_folder(tmp_path)
        (problem,) = caught.value.problems
        assert "P2_a" in str(problem) and "has no mask" in str(problem)

    def test_dots_in_names_are_kept(self, tmp_path):
        write_pairs(tmp_path, "pat3.1", "1.2.840.17", "plain")
        assert read_mask_folder(tmp_path)["sample_id"] == ["1.2.840.17", "pat3.1", "plain"]

    def test_names_that_look_alike_pair(self, tmp_path):
        write_image(tmp_path / "image" / "u\u0308.png")  # as macOS writes it
        write_mask(tmp_path / "mask" / "\u00fc.png")
        assert len(read_mask_folder(tmp_path)) == 1
