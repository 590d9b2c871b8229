"""Folders of several splits and formats, and options that a format has no use for."""

import json
import logging

import numpy as np
import pytest
import yaml
from annotated_folders import SQUARE, entry, write_image, write_json, write_mask, write_pairs
from datasets import Dataset
from dicom_files import write_dicom
from PIL import Image
from prepared import shown
from referring_sets import write_mevis, write_ref_youtube_vos
from segmentations import SIZE, write_run

from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.dividing import splits_of
from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.dicom_seg import write_dicom_seg
from sa2va_trl.data.loading import FORMATS as KNOWN
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.preparing import Plan, items_of, look_at
from sa2va_trl.data.readers.entries import Reading
from sa2va_trl.data.splits import check_no_leakage
from sa2va_trl.data.workers import Workers
from sa2va_trl.errors import DatasetError


FRAMES = np.random.default_rng(0).integers(0, 256, (3, 8, 12), dtype=np.uint8)
MASKS = np.zeros((3, 8, 12), dtype=np.uint8)
MASKS[:, 1:4, 2:6] = 255


def write_clip(folder, name="run", frames=FRAMES, masks=MASKS, images="images"):
    for kind, array in ((images, frames), ("masks", masks)):
        if array is not None:
            path = folder / kind / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    return folder


def write_tiff(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others)


# ---------------------------------------------------------------------------------------------------------------------
# Splits of several formats
# ---------------------------------------------------------------------------------------------------------------------


def write_tiff_clip(folder):
    write_tiff(folder / "images" / "run.tif", FRAMES)
    write_tiff(folder / "masks" / "run.tif", MASKS)


@pytest.mark.parametrize("write", [write_clip, write_tiff_clip])
@pytest.mark.parametrize("splits", [("train", "test"), ("test", "train")])
def test_each_split_is_read_by_the_format_that_it_has(tmp_path, write, splits):
    write_pairs(tmp_path / splits[0], "a", "b", names=("images", "masks"))
    write(tmp_path / splits[1])
    found = find_sources(tmp_path, Reading())
    assert [len(found[split].entries) for split in splits] == [2, 3]
    assert not any(source.problems for source in found.values())
    data = load_dataset_dict(tmp_path)
    assert [len(data[split]) for split in splits] == [2, 3]
    for row in (row for split in splits for row in data[split]):
        np.testing.assert_array_equal(np.asarray(row["masks"][0]), MASKS[0])


def test_splits_of_videos_and_dicom_do_not_become_one_source(tmp_path):
    write_pairs(tmp_path / "train", "a")
    (tmp_path / "test").mkdir()
    write_dicom(tmp_path / "test" / "IM0001", FRAMES, bits=8)
    found = find_sources(tmp_path, Reading())
    assert {split: source.annotated for split, source in found.items()} == {"train": True, "test": False}
    with pytest.raises(DatasetError, match="test holds pictures without masks"):
        load_dataset_dict(tmp_path)


COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}


def test_a_format_that_says_its_splits_is_that_of_its_own_alone(tmp_path):
    write_image(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "annotations.json").write_text(json.dumps(COCO))
    write_clip(tmp_path / "test")
    found = find_sources(tmp_path, Reading())
    assert {split: len(source.entries) for split, source in found.items()} == {"train": 1, "test": 3}


def test_a_split_that_the_format_of_the_folder_leaves_out_is_refused(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "annotations.json").write_text(json.dumps(COCO))
    write_clip(tmp_path / "test")
    for read in (load_dataset_dict, lambda folder: find_sources(folder, Reading())):
        with pytest.raises(DatasetError, match=r"is read as coco, which leaves out test/, and that is clips"):
            read(tmp_path)


def test_clips_beside_those_of_splits_are_refused(tmp_path):
    write_clip(tmp_path / "train", images="videos")
    write_dicom(tmp_path / "IM0001", FRAMES, bits=8)
    with pytest.raises(DatasetError, match=r"holds clips, and beside them folders of splits \(train\)"):
        find_sources(tmp_path, Reading())
    other = tmp_path / "other"
    write_clip(other, "train/run", images="videos")
    write_clip(other, "walk", images="videos")
    with pytest.raises(DatasetError, match=r"other/videos holds clips, and beside them folders of splits \(train\)"):
        find_sources(other, Reading())


# ---------------------------------------------------------------------------------------------------------------------
# Names of videos
# ---------------------------------------------------------------------------------------------------------------------


def videos(folder):
    found = find_sources(folder, Reading())
    return {split: sorted({entry.facts["video_id"] for entry in own.entries}) for split, own in found.items()}


def test_a_video_is_its_path(tmp_path):
    for name in ("a/run1", "b/run1", "run1"):
        write_clip(tmp_path, name)
    assert videos(tmp_path) == {"train": ["a/run1", "b/run1", "run1"]}


@pytest.mark.parametrize("form", ["npy", "tif"])
def test_paths_that_two_splits_have_get_the_split_in_front(tmp_path, form, caplog):
    for split, names in (("train", ["P1/run1", "P2/run1"]), ("test", ["P1/run1", "P3/run1"])):
        for name in names:
            if form == "npy":
                write_clip(tmp_path / split, name)
            else:
                write_tiff(tmp_path / split / "images" / f"{name}.tif", FRAMES)
                write_tiff(tmp_path / split / "masks" / f"{name}.tif", MASKS)
    with caplog.at_level(logging.WARNING):
        assert videos(tmp_path) == {"train": ["P2/run1", "train/P1/run1"], "test": ["P3/run1", "test/P1/run1"]}
    assert "clips of the same name, which are taken for different videos: P1/run1." in caplog.text
    rows = load_dataset_dict(tmp_path)
    assert {split: sorted(set(own["video_id"])) for split, own in rows.items()} == videos(tmp_path)


def test_what_dicom_says_is_one_video_in_two_splits_stays_one(tmp_path):
    uid = "1.2.840.99.1"
    for split in ("train", "test"):
        (tmp_path / split / "images").mkdir(parents=True)
        # Named after the run, as many systems do.
        write_dicom(tmp_path / split / "images" / uid, FRAMES, bits=8, SOPInstanceUID=uid)
    assert videos(tmp_path) == {"train": [uid], "test": [uid]}


def write_dicom_run(folder, frames, uid):
    (folder / "images").mkdir(parents=True)
    write_dicom(folder / "images" / "IM1", frames, bits=8, SOPInstanceUID=uid, PatientID="")
    write_tiff(folder / "masks" / "IM1.tif", np.zeros_like(frames))


def split(folder):
    """What the check of splits says of a folder."""
    sources = find_sources(folder, Reading())
    items, found = items_of(sources), list(sources.values())
    looks, thumbnails = look_at(items, found, Reading(), Workers(1))
    return splits_of(items, looks, thumbnails, Plan())[1]


def test_the_check_of_splits_neither_joins_strangers_nor_misses_one(tmp_path):
    runs = [np.stack([np.asarray(shown(100 * run + frame)) for frame in range(3)]) for run in range(2)]
    for part, run in zip(("train", "test"), runs, strict=True):
        write_clip(tmp_path / "strangers" / part, "P1/run1", run, np.zeros_like(run))
        write_clip(tmp_path / "copies" / part, "P1/run1", runs[0], np.zeros_like(run))
        write_clip(tmp_path / "renamed" / part, f"{part} run", runs[0], np.zeros_like(run))
        write_dicom_run(tmp_path / "one" / part, run, "1.2.840.99.1")
    assert split(tmp_path / "strangers") == ["train"] * 3 + ["test"] * 3
    rows = load_dataset_dict(tmp_path / "strangers")
    check_no_leakage(rows["train"], rows["test"], images=True)
    for name in ("copies", "renamed"):
        with pytest.raises(DatasetError, match="splits share 3 pictures"):
            split(tmp_path / name)
    with pytest.raises(DatasetError, match=r"splits share 1 video_id \(1.2.840.99.1\)"):
        split(tmp_path / "one")


# ---------------------------------------------------------------------------------------------------------------------
# Options that cannot take effect
# ---------------------------------------------------------------------------------------------------------------------


def write_coco(folder):
    write_image(folder / "a.png")
    one = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE]}
    named = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [one]}
    (folder / "annotations.json").write_text(json.dumps({**named, "categories": [{"id": 1, "name": "vessel"}]}))


def write_yolo(folder):
    write_image(folder / "images" / "a.png")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "images", "names": ["vessel"]}))


def write_cvat(folder):
    write_image(folder / "images" / "a.png")
    points = '<polygon label="vessel" points="2,1;6,1;6,4" occluded="0" z_order="0"/>'
    image = f'<image id="0" name="a.png" width="12" height="8">{points}</image>'
    (folder / "annotations.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")


def write_labelme(folder):
    write_image(folder / "a.png")
    shape = {"label": "vessel", "points": [[2, 1], [6, 1], [6, 4]], "shape_type": "polygon", "group_id": None}
    said = {"version": "5.0", "flags": {}, "shapes": [shape], "imagePath": "a.png", "imageData": None}
    (folder / "a.json").write_text(json.dumps({**said, "imageHeight": 8, "imageWidth": 12}))


def write_label_studio(folder):
    write_image(folder / "a.png")
    value = {"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["vessel"], "closed": True}
    region = {"id": "x", "type": "polygonlabels", "value": value, "original_width": 12, "original_height": 8}
    region |= {"image_rotation": 0, "from_name": "label", "to_name": "image"}
    task = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 1, "result": [region]}], "predictions": []}
    (folder / "export.json").write_text(json.dumps([task]))


def write_nnunet(folder):
    write_image(folder / "imagesTr" / "a_0000.png")
    write_mask(folder / "labelsTr" / "a.png", value=1)
    said = {"labels": {"background": 0, "vessel": 1}, "channel_names": {"0": "x"}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps({**said, "numTraining": 1}))


def write_metadata_folder(folder):
    write_pairs(folder, "a", names=("images", "masks"))
    (folder / "images" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "phrase": "vessel"}))


def write_prepared(folder):
    row = {"image": [shown(0)], "masks": [[Image.fromarray(MASKS[0])]], "phrases": [["vessel"]], "sample_id": ["a"]}
    Dataset.from_dict(row, features=FEATURES).to_parquet(folder / "train.parquet")


def write_segmentation(folder):
    (folder / "images").mkdir()
    write_run(folder / "images" / "run")
    mask = np.zeros(SIZE[::-1], dtype=bool)
    mask[2:9, 3:12] = True
    write_dicom_seg(folder, [Annotated("images/run", SIZE, (Found("vessel", mask),), 0)])


def write_captions(folder):
    write_image(folder / "images" / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": 8, "width": 12, "caption": "the vessel above"}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "vessel"}]}
    (folder / "instances_refcoco_train.json").write_text(json.dumps(content))


WORDS = {"phrase": "Artery", "templates": ("the {phrase}",)}
OF_CLASSES = {**WORDS, "classes": ["vessel"], "instances": "separate"}
OF_MASKS = {"mask_suffix": "_gt", "mask_threshold": 128.0}
ALL = {**OF_CLASSES, **OF_MASKS, "secondary_captures": True}
# What has an effect, on the folder that is written.
FORMATS = {
    "coco": (write_coco, OF_CLASSES),
    "yolo": (write_yolo, OF_CLASSES),
    "cvat": (write_cvat, OF_CLASSES),
    "labelme": (write_labelme, OF_CLASSES),
    "label_studio": (write_label_studio, OF_CLASSES),
    "nnunet": (write_nnunet, OF_CLASSES),
    "prepared": (write_prepared, OF_CLASSES),
    "dicom_seg": (write_segmentation, {**OF_CLASSES, "secondary_captures": True}),
    "sa2va_json": (lambda folder: write_json(folder, entry()), OF_CLASSES),
    "image_metadata": (write_metadata_folder, OF_CLASSES),
    "mask_folder": (lambda folder: write_pairs(folder, "a"), {**WORDS, **OF_MASKS}),
    "mevis": (lambda folder: write_mevis(folder, ("v0",), split="train"), WORDS),
    "ref_youtube_vos": (lambda folder: write_ref_youtube_vos(folder, ("v0",), split="train"), WORDS),
    "refcoco": (write_captions, WORDS),
    "clips": (write_clip, {**WORDS, **OF_MASKS, "secondary_captures": True}),
}


def test_every_format_is_asked():
    assert FORMATS.keys() == KNOWN.keys()


@pytest.mark.parametrize("option", ALL)
@pytest.mark.parametrize("form", FORMATS)
def test_options_that_cannot_take_effect_raise(tmp_path, form, option):
    write, used = FORMATS[form]
    write(tmp_path)
    reading = Reading(**{option: ALL[option]})
    if option == "classes" and form in ("mask_folder", "clips"):  # ids and colours alone
        reading = Reading(classes={"255": "vessel"})
    elif option not in used:
        shown_as = "phrase_templates" if option == "templates" else option
        about = "masks without classes" if option == "instances" else f"the format {form}"
        if (form, option) == ("dicom_seg", "mask_threshold"):
            about = "segmentations that are not FRACTIONAL"
        with pytest.raises(ValueError, match=f"^{shown_as} has no effect on {about}") as caught:
            find_sources(tmp_path, reading)
        assert not isinstance(caught.value, DatasetError)
        return
    elif option == "mask_suffix":
        for path in [*tmp_path.glob("mask*/*")]:
            path.rename(path.with_stem(f"{path.stem}_gt"))
    (source,) = find_sources(tmp_path, reading).values()
    assert source.entries and not source.problems and source.annotated


@pytest.mark.parametrize("option", [name for name in ALL if name != "secondary_captures"])
def test_nothing_says_how_masks_are_read_where_there_are_none(tmp_path, option):
    write_dicom(tmp_path / "IM1", FRAMES, bits=8)
    given = {"1": "vessel"} if option == "classes" else ALL[option]
    shown_as = "phrase_templates" if option == "templates" else option
    with pytest.raises(ValueError, match=f"^{shown_as} has no effect on clips without masks"):
        find_sources(tmp_path, Reading(**{option: given}))
    assert find_sources(tmp_path, Reading(secondary_captures=True))


def test_instances_of_masks_need_classes(tmp_path):
    write_pairs(tmp_path, "a")
    found = find_sources(tmp_path, Reading(instances="separate", classes={"255": "vessel"}))
    assert found["train"].labels == ("255",)


def test_an_option_of_one_split_is_no_fault_of_the_other(tmp_path):
    write_pairs(tmp_path / "train", "a")
    write_clip(tmp_path / "test")
    assert find_sources(tmp_path, Reading(secondary_captures=True)).keys() == {"train", "test"}
    shown(0).save(tmp_path / "train" / "image" / "left.png")
    with pytest.raises(ValueError, match="instances has no effect on masks without classes"):
        find_sources(tmp_path, Reading(instances="join"))
