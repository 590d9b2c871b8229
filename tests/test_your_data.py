"""docs/your_data.md, followed from top to bottom: one command for each format, on small odd files of that format."""

import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import load_dataset
from prepared import shown, write_runs
from segmentations import SIZE, write_run
from tasks import run_task

from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.dicom_seg import write_dicom_seg


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
    run_task("prepare_data", *command, "--key_file", tmp_path / "key")
    data = load_dataset(os.path.abspath(command[command.index("--output_dir") + 1]), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in data.values() for row in split]
    assert rows and any(np.asarray(mask).any() for row in rows for mask in row["masks"])
    if "--splits" in command:
        assert set(data) == {"train", "test"}
    if "--classes" in command:
        assert {phrase for row in rows for phrase in row["phrases"]} == {"vessel", "catheter"}


def test_every_format_has_its_command():
    named = {command[command.index("--source") + 1] for command in COMMANDS}
    assert named >= SHARED.keys() | {"DIR", "my_masks", "my_dicom_seg"}
