"""
Sources of which a file is cut off or has turned bits, as the tasks read them: an error that says what is wrong, or
rows that are right. `SA2VA_TRL_EXAMPLES=1000` looks longer.
"""

import os
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import datasets
import nibabel
import numpy as np
import pytest
from annotated_folders import entry, write_json, write_metadata, write_pairs
from annotation_formats import damaged
from dicom_files import write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.loading import find_sources
from sa2va_trl.data.readers.entries import Reading, rows_of
from sa2va_trl.errors import DatasetError


EXAMPLES = int(os.environ.get("SA2VA_TRL_EXAMPLES", 15))
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 32), dtype=np.uint8)
OBJECTS = np.zeros_like(FRAMES)
OBJECTS[1:, 2:5, 3:9] = 1


def clip(folder, suffix, write):
    """A clip and its masks, a page a frame."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    write(folder / "images" / f"run{suffix}")
    pages = [Image.fromarray(page) for page in OBJECTS]
    pages[0].save(folder / "masks" / "run.tif", save_all=True, append_images=pages[1:])


def video(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, -1), "rgb24")))
        container.mux(stream.encode())


def nifti(path, values=FRAMES):
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1])), path)


def nnunet(folder):
    for place, name, values in (("imagesTr", "a_0000", FRAMES[:1]), ("labelsTr", "a", OBJECTS[1:2])):
        (folder / place).mkdir()
        nifti(folder / place / f"{name}.nii.gz", values)
    stated = '{"channel_names": {"0": "XR"}, "labels": {"background": 0, "vessel": 1}, "file_ending": ".nii.gz"'
    (folder / "dataset.json").write_text(f'{stated}, "numTraining": 1}}')


def metadata(folder):
    write_pairs(folder, "a", "b", names=("images", "masks"))
    write_metadata(folder / "images", *({"file_name": f"{name}.png", "phrases": ["x"]} for name in "ab"))


def prepared(folder, write="to_parquet", name="train-00000-of-00001.parquet"):
    write_pairs(folder.parent / "pairs", "a", "b")
    rows = find_sources(folder.parent / "pairs", Reading())["train"]
    getattr(rows_of(rows, Reading()), write)(folder / name)


KINDS = {
    "mp4": lambda folder: clip(folder, ".mp4", video),
    "avi": lambda folder: clip(folder, ".avi", video),
    "mkv": lambda folder: clip(folder, ".mkv", video),
    "dicom": lambda folder: clip(folder, "", lambda path: write_dicom(path, FRAMES, bits=8)),
    "nifti": lambda folder: clip(folder, ".nii", nifti),
    "nifti, packed": lambda folder: clip(folder, ".nii.gz", nifti),
    "nnunet": nnunet,
    "sa2va_json": lambda folder: write_json(folder, entry(), entry("b.png")),
    "image_metadata": metadata,
    "prepared": prepared,
    "prepared, saved": lambda folder: prepared(folder, "save_to_disk", "."),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each kind a folder, and what its files hold, one of which is damaged in a copy each time."""
    found = {}
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("cache")
    for kind, write in KINDS.items():
        folder = tmp_path_factory.mktemp("source") / "data"
        folder.mkdir()
        write(folder)
        found[kind] = folder, {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    yield lambda kind: found[kind]
    datasets.config.HF_DATASETS_CACHE = before


def judge(folder):
    """Whether there are rows, which are right then, or an error that says why not."""
    try:
        splits = [rows_of(source, Reading()) for source in find_sources(folder, Reading()).values()]
        for rows in splits:
            check_dataset(rows)  # before which nobody decodes pictures that are files
    except (DatasetError, ValueError) as error:
        assert len(str(error)) > 10
        return False
    for rows in splits:
        for row in rows:
            assert len(row["masks"]) == len(row["phrases"])
            assert all(mask.size == row["image"].size and {*np.unique(mask)} <= {0, 255} for mask in row["masks"])
    return any(map(len, splits))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_read(folders, kind):
    assert judge(folders(kind)[0])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_files_that_are_cut_off_or_have_turned_bits(folders, kind, seed):
    whole, files = folders(kind)
    chosen = random.Random(seed)
    path = chosen.choice(list(files))
    with TemporaryDirectory(dir=whole.parent) as place:  # anew: Arrow files stay mapped, and must not change then
        folder = Path(place) / "data"
        shutil.copytree(whole, folder)
        (folder / path.relative_to(whole)).write_bytes(damaged(files[path], chosen))
        judge(folder)
