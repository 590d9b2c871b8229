"""docs/your_data.md, followed from top to bottom: one command for each format, on small odd files of that format."""

import csv
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import av
import nibabel
import numpy as np
import PIL.Image
import pytest
from datasets import load_dataset
from dicom_files import write_dicom
from prepared import shown, write_runs
from referring_sets import write_mevis, write_ref_youtube_vos, write_refcoco
from segmentations import SIZE, write_run
from tasks import run_task

from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.dicom_seg import write_dicom_seg
from sa2va_trl.data.loading import load_dataset_dict


PAGE = (Path(__file__).resolve().parents[1] / "docs" / "your_data.md").read_text()
COMMANDS = [
    shlex.split(line.replace("\\\n", " "))[2:]
    for line in re.findall(r"^sa2va-trl prepare_data (?:.*\\\n)*.*$", PAGE, re.MULTILINE)
]
# The folders of the page, and those of the shared files that they stand for; of the others, generated ones.
SHARED = {
    "my_coco": "coco",
    "my_yolo": "yolo",
    "my_cvat": "cvat",
    "my_labelme": "labelme",
    "my_label_studio": "label_studio",
    "nnUNet_raw/Dataset001_Vessels": "nnunet/Dataset001_L",
}

OBJECTS = np.zeros((3, 32, 40), dtype=np.uint8)
OBJECTS[1:, 4:10, 5:20], OBJECTS[2, 15:28, 22:36] = 1, 2


def run_of(number, frames=12):
    """A run of frames, each another picture."""
    return np.stack([np.asarray(shown(100 * number + frame)) for frame in range(frames)])


def write_dicom_runs(folder):
    for number, patient in enumerate(("DOE^JOHN", "ROE^JANE")):
        (folder / patient).mkdir(parents=True)
        write_dicom(folder / patient / "IM0001", run_of(number), bits=8, PatientID=patient, FrameTime=66)


def write_videos(folder):
    folder.mkdir()
    for number in range(2):
        with av.open(str(folder / f"run{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
            for frame in run_of(number):
                picture = av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, -1), "rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())


def write_nifti(folder):
    for kind, frames in (("images", run_of(0, 3)), ("masks", OBJECTS)):
        (folder / kind).mkdir(parents=True)
        for number in (1, 2):
            picture = nibabel.Nifti1Image(frames[number].T, np.diag([-1.0, -1, 1, 1]))
            nibabel.save(picture, folder / kind / f"{number:03}.nii.gz")


def write_clips(folder):
    for kind, frames in (("images", run_of(0, 3)), ("masks", OBJECTS)):
        (folder / kind / "P1").mkdir(parents=True)
        first, *others = map(PIL.Image.fromarray, frames)
        first.save(folder / kind / "P1" / "run.tif", save_all=True, append_images=others)


def write_sa2va(folder):
    (folder / "images").mkdir(parents=True)
    shown(0).save(folder / "images" / "001.png")
    one, two = [5, 4, 20, 4, 20, 10, 5, 10], [22, 15, 36, 15, 36, 28, 22, 28]
    said = [{"image": "001.png", "mask": [[one], [two]], "text": ["vessel", "catheter"]}]
    (folder / "annotations.json").write_text(json.dumps(said))


# What writes a folder of the page, and the areas of the masks of each of its rows, in any order.
GENERATED = {
    "my_dicom": (write_dicom_runs, [[]] * 16),
    "my_videos": (write_videos, [[]] * 16),
    "my_nifti": (write_nifti, [[90], [90, 182]]),
    "my_clips": (write_clips, [[0], [90], [90, 182]]),
    "my_sa2va": (write_sa2va, [[90, 182]]),
    "my_mevis": (lambda folder: write_mevis(folder, ("v0",)), [[0, 280, 280]] + [[256, 280, 536]] * 3),
    "my_rvos": (
        lambda folder: write_ref_youtube_vos(folder, ("v0",)),
        [[0, 0, 280, 280]] + [[256] * 2 + [280] * 2] * 3,
    ),
    "my_refcoco": (write_refcoco, [[256]] * 4 + [[280]] * 4),
}


def masks_of(folder, painted):
    """Images with one kind of mask: by `painted`, of a bool array with two objects."""
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    first, second = np.zeros((2, 32, 40), dtype=bool)
    first[4:10, 5:20], second[15:28, 22:36] = True, True
    for number in range(2):
        shown(number).save(folder / "image" / f"{number}.png")
        painted(first, second).save(folder / "mask" / f"{number}.png")
    return folder


def segmented(folder):
    """A run whose two frames have a segmentation."""
    (folder / "images").mkdir(parents=True)
    write_run(folder / "images" / "IM0001", frames=2)
    mask = np.zeros(SIZE[::-1], dtype=bool)
    mask[2:9, 3:12] = True
    images = [Annotated("images/IM0001", SIZE, (Found("vessel", mask),), frame) for frame in range(2)]
    write_dicom_seg(folder, images)


def source_for(command, folder, shared):
    name = command[command.index("--source") + 1]
    if name == "my_dicom_seg":
        segmented(folder)
        return
    if name in SHARED:
        shutil.copytree(shared / "data" / "formats" / SHARED[name], folder)
    elif name in GENERATED:
        GENERATED[name][0](folder)
    elif "#55AAFF" in " ".join(command):
        colours = np.array([(0, 0, 0), (0x55, 0xAA, 0xFF), (255, 0, 0)], dtype=np.uint8)
        masks_of(folder, lambda one, two: PIL.Image.fromarray(colours[one + 2 * two]))
    elif "--classes" in command:
        masks_of(folder, lambda one, two: PIL.Image.fromarray((one + 2 * two).astype(np.uint8)))
    else:
        write_runs(folder)


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_the_command_makes_a_data_set(tmp_path, monkeypatch, request, number):
    command = list(COMMANDS[number])
    needs = command[command.index("--source") + 1] in SHARED
    source = tmp_path / "source"
    source_for(command, source, request.getfixturevalue("shared") if needs else None)
    monkeypatch.chdir(tmp_path)
    command[command.index("--source") + 1] = str(source)
    if "--output_dir" not in command:
        command += ["--output_dir", "outputs/data"]
    key = () if "keep" in command else ("--key_file", tmp_path / "key")
    run_task("prepare_data", *command, *key)
    data = load_dataset(os.path.abspath(command[command.index("--output_dir") + 1]), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in data.values() for row in split]
    name = COMMANDS[number][COMMANDS[number].index("--source") + 1]
    if name in GENERATED:
        areas = [[int((np.asarray(mask) > 0).sum()) for mask in row["masks"]] for row in rows]
        assert sorted(areas) == GENERATED[name][1]
        assert all(row["image"].size in ((40, 32), (64, 48)) for row in rows)
    if name in ("my_dicom", "my_videos"):
        assert len({row["video_id"] for row in rows}) == 2 and rows[0]["frame_time_ms"] in (66, 100)
        return
    assert rows and any(np.asarray(mask).any() for row in rows for mask in row["masks"])
    if "--splits" in command:
        assert set(data) == {"train", "test"}
    if "--classes" in command:
        assert {phrase for row in rows for phrase in row["phrases"]} == {"vessel", "catheter"}


def test_every_format_has_its_command():
    named = {command[command.index("--source") + 1] for command in COMMANDS}
    assert named >= SHARED.keys() | GENERATED.keys() | {"DIR", "my_masks", "my_dicom_seg"}


def prepared(source, folder, *more):
    """What prepare_data makes of a source, by split, and of each row its file at the source."""
    table = folder / "names.csv"
    names = ("--key_file", folder / "key", "--names_table", table)
    run_task("prepare_data", "--source", source, "--output_dir", folder / "out", *names, *more)
    with open(table, newline="", encoding="utf-8") as stream:
        files = {row["sample_id"]: Path(row["image"]) for row in csv.DictReader(stream)}
    return load_dataset(str(folder / "out"), cache_dir=str(folder / "cache")), files


def same(row, expected):
    assert row["phrases"] == expected["phrases"] and len(row["masks"]) == len(expected["masks"])
    for one, other in zip([row["image"], *row["masks"]], [expected["image"], *expected["masks"]], strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_real_angiograms_in_sa2vas_layout(shared, tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        place, own = shared / "data" / "arcade" / split, tmp_path / "arcade" / split
        (own / "images").mkdir(parents=True)
        entries = json.loads((place / "annotations.json").read_text())[:count]
        (own / "annotations.json").write_text(json.dumps(entries))
        for entry in entries:
            shutil.copy(place / "images" / entry["image"], own / "images")
    data, files = prepared(tmp_path / "arcade", tmp_path)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "validation": 2, "test": 2}
    expected = {row["sample_id"]: row for split in load_dataset_dict(tmp_path / "arcade").values() for row in split}
    for split, rows in data.items():
        for row in rows:
            stem = files[row["sample_id"]].stem
            same(row, expected[f"{split}_{stem}" if f"{split}_{stem}" in expected else stem])
            assert 0.001 < (np.asarray(row["masks"][0]) > 0).mean() < 0.2


def test_real_retinas_as_images_with_masks(shared, tmp_path):
    place = shared / "data" / "rossa"
    names = sorted(path.name for path in (place / "image").iterdir())[:6]
    for kind in ("image", "mask"):
        (tmp_path / "rossa" / kind).mkdir(parents=True)
        for name in names:
            shutil.copy(place / kind / name, tmp_path / "rossa" / kind)
    more = "--phrase", "Retinal vessel", "--splits", '{"train": 4, "test": 2}'
    data, files = prepared(tmp_path / "rossa", tmp_path, *more)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "test": 2}
    rows = [row for split in data.values() for row in split]
    assert sorted(files[row["sample_id"]].name for row in rows) == names
    for row in rows:
        file = files[row["sample_id"]]
        image, mask = (PIL.Image.open(place / kind / file.name) for kind in ("image", "mask"))
        same(row, {"phrases": ["retinal vessel"], "image": image, "masks": [mask]})
