"""Masks of clips: judged as those of single images, the frames of a file together."""

import shutil

import nibabel
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.data.loading import find_sources
from sa2va_trl.data.readers.clip_masks import MaskFrames, read_clip_mask
from sa2va_trl.data.readers.entries import Reading, objects_of, rows_of
from sa2va_trl.data.readers.mask_files import is_lossy
from sa2va_trl.errors import DatasetError


TOTAL, HEIGHT, WIDTH = 3, 24, 40
FRAMES = np.random.default_rng(0).integers(0, 256, (TOTAL, HEIGHT, WIDTH), dtype=np.uint8)
IDS = np.zeros((TOTAL, HEIGHT, WIDTH), dtype=np.uint8)
IDS[1:, 4:12, 5:15] = 1
IDS[2, 14:20, 22:36] = 2
EDGES = np.where(IDS > 0, 200, 0).astype(np.uint8)
EDGES[2, 3, 5:15], EDGES[2, 12, 5:15] = 90, 140


def pages(arrays, palette=None):
    found = [PIL.Image.fromarray(array) for array in arrays]
    for picture in found if palette else ():
        picture.putpalette(palette)
    return found


def save(path, arrays, palette=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = pages(arrays, palette)
    first.save(path, save_all=True, append_images=others, **options)


def coloured(ids):
    return np.array([(0, 0, 0), (0x55, 0xAA, 0xFF), (255, 0, 0)], dtype=np.uint8)[ids]


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "images" / "run.npy", FRAMES)
    return tmp_path


def areas(folder, reading=None):
    reading = reading or Reading()
    source = find_sources(folder, reading)["train"]
    assert not source.problems, source.problems
    found = [objects_of(entry, source.labels, reading, (WIDTH, HEIGHT), source.joins) for entry in source.entries]
    return [list(zip(own["phrases"], (int(mask.sum()) for mask in own["masks"]), strict=True)) for own in found]


def reasons(folder, reading=None):
    return [problem.reason for problem in find_sources(folder, reading or Reading())["train"].problems]


@pytest.mark.parametrize("form", ["tif", "npy", "nii.gz", "png", "webp"])
def test_grey_edges_below_white_are_no_objects(folder, form):
    path = folder / "masks" / f"run.{form}"
    if form == "npy":
        np.save(path, EDGES)
    elif form == "nii.gz":
        nibabel.save(nibabel.Nifti1Image(EDGES.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1])), path)
    else:
        save(path, EDGES, **({"lossless": True} if form == "webp" else {}))
    (reason,) = reasons(folder)
    assert "Grey edges of one object, or an id for each object?" in reason and str(path) not in reason
    at = Reading(mask_threshold=128)
    assert [[area for _, area in own] for own in areas(folder, at)] == [[0], [80], [80 + 84 + 10]]


@pytest.mark.parametrize("values", [1, 255])
def test_a_threshold_is_of_what_is_not_binary(folder, values):
    np.save(folder / "masks" / "run.npy", (IDS > 0) * np.uint8(values))
    at = Reading(mask_threshold=128)
    if values == 1:  # nothing by the threshold, and an object if the mask is binary
        (reason,) = reasons(folder, at)
        assert "is ambiguous: values 0 and 1 alone" in reason
    else:
        assert [[area for _, area in own] for own in areas(folder, at)] == [[0], [80], [164]]


def test_ids_and_colours_may_have_names(folder):
    names = {"1": "vessel", "2": "catheter"}
    save(folder / "masks" / "run.tif", IDS, palette=[0, 0, 0, 9, 99, 199, 200, 10, 0])
    expected = [[("vessel", 0), ("catheter", 0)], [("vessel", 80)], [("vessel", 80), ("catheter", 84)]]
    assert areas(folder, Reading(classes=names)) == expected
    assert areas(folder, Reading(classes={"2": "catheter"})) == [[("catheter", 0)]] * 2 + [[("catheter", 84)]]
    assert areas(folder) == [[("blood vessel", own) for own in row] for row in ([0], [80], [80, 84])]
    save(folder / "masks" / "run.tif", coloured(IDS))
    assert areas(folder, Reading(classes={"#55aaff": "vessel", "#FF0000": "catheter"})) == expected
    joined = Reading(classes={"#55aaff": "vessel", "#FF0000": "vessel"})
    assert areas(folder, joined) == [[("vessel", 0)], [("vessel", 80)], [("vessel", 164)]]
    with pytest.raises(DatasetError, match="no mask has any of 7; there are #55AAFF, #FF0000"):
        find_sources(folder, Reading(classes={"7": "vessel"}))
    with pytest.raises(DatasetError, match="classes of masks are ids or colours"):
        find_sources(folder, Reading(classes={"LAD": "vessel"}))


def test_frames_of_a_gif_are_told_apart_by_their_colours(folder):
    save(folder / "masks" / "run.gif", coloured(IDS))
    assert [[area for _, area in own] for own in areas(folder)] == [[0], [80], [80, 84]]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: [*pages(IDS[:2]), *pages(coloured(IDS[2:]))], "has a page 2 of mode RGB, the first of mode L"),
        (
            lambda: [*pages(IDS[:2], [0, 0, 0, 9, 99, 199]), *pages(IDS[2:], [9, 9, 9])],
            "has a page 2 of another palette",
        ),
        (
            lambda: [page.convert("CMYK") for page in pages(coloured(IDS))],
            "has mode CMYK, which is not read as a mask",
        ),
    ],
)
def test_pages_that_are_not_alike(folder, made, reason):
    first, *others = made()
    first.save(folder / "masks" / "run.tif", save_all=True, append_images=others)
    (found,) = reasons(folder)
    assert reason in found


def test_masks_of_single_frames_are_judged_as_those_of_images(folder, tmp_path):
    """A folder of pairs and a folder of frames, of the same files: the same objects, or the same reason."""
    made = {
        "edges.png": lambda path: pages(EDGES[2:])[0].save(path),
        "ids.png": lambda path: pages(IDS[2:])[0].save(path),
        "lossy.jpg": lambda path: pages(IDS[2:] * np.uint8(120))[0].save(path),
        "palette.png": lambda path: pages(IDS[2:], [0, 0, 0, 9, 99, 199, 200, 10, 0])[0].save(path),
        "colours.png": lambda path: pages(coloured(IDS[2:]))[0].save(path),
        "float.tif": lambda path: pages([IDS[2] / np.float32(2)])[0].save(path),
        "labels.nii": lambda path: nibabel.save(nibabel.Nifti1Image(IDS[2].T.astype(np.float32), None), path),
    }
    (tmp_path / "pairs" / "image").mkdir(parents=True)
    (tmp_path / "pairs" / "mask").mkdir()
    (tmp_path / "clips" / "images").mkdir(parents=True)
    for name, write in made.items():
        stem, _, suffix = name.partition(".")
        write(tmp_path / "pairs" / "mask" / name)
        PIL.Image.fromarray(FRAMES[2]).save(tmp_path / "pairs" / "image" / f"{stem}.png")
        np.save(tmp_path / "clips" / "images" / f"{stem}.npy", FRAMES)
        (tmp_path / "clips" / "masks" / stem).mkdir(parents=True)
        shutil.copy(tmp_path / "pairs" / "mask" / name, tmp_path / "clips" / "masks" / stem / f"2.{suffix}")
    for reading in (Reading(), Reading(mask_threshold=0.5), Reading(mask_threshold=100)):
        found = {}
        for kind in ("pairs", "clips"):
            source = find_sources(tmp_path / kind, reading)["train"]
            entries = {entry.name.split(".")[0].split("_f0")[0]: entry for entry in source.entries}
            told = {name: objects_of(entry, (), reading, (WIDTH, HEIGHT))["masks"] for name, entry in entries.items()}
            told = {name: [mask.tobytes() for mask in masks] for name, masks in told.items()}
            for problem in source.problems:
                name = problem.file.split("/")[-2 if kind == "clips" else -1].split(".")[0]
                told[name] = problem.reason.removeprefix(f"mask {name}.{made_suffix(made, name)} ")
            found[kind] = told
        assert len(found["pairs"]) == len(made) and found["pairs"] == found["clips"]


def made_suffix(made, name):
    return next(own.partition(".")[2] for own in made if own.startswith(f"{name}."))


def test_all_bad_masks_of_a_clip_are_named(folder):
    for index in (0, 2):
        save(folder / "masks" / "run" / f"{index}.png", EDGES[2:])
    save(folder / "masks" / "run" / "1.png", IDS[1:2])
    problems = find_sources(folder, Reading())["train"].problems
    assert [problem.file.rpartition("/")[2] for problem in problems] == ["0.png", "2.png"]


@pytest.mark.parametrize("names", ["run.nii", "run/1.nii"])
def test_it_must_be_known_how_a_mask_in_nifti_lies(folder, names):
    square = np.random.default_rng(0).integers(0, 256, (TOTAL, 24, 24), dtype=np.uint8)
    np.save(folder / "images" / "run.npy", square)
    path = folder / "masks" / names
    path.parent.mkdir(exist_ok=True)
    values = IDS[:, :, :24].transpose(2, 1, 0) if "/" not in names else IDS[1, :, :24].T
    nibabel.save(nibabel.Nifti1Image(values, None), path)
    (reason,) = reasons(folder)
    assert "may lie on its side" in reason
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])), path)
    assert not reasons(folder)


def test_labels_in_floating_point_are_labels_in_every_frame(tmp_path):
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(IDS.transpose(2, 1, 0).astype(np.float32), None), path)
    assert read_clip_mask(path).frames == [(), ("1",), ("1", "2")]
    shares = IDS.transpose(2, 1, 0).astype(np.float32)
    shares[6, 5, 2] = 0.5  # the other frames alone would be labels
    nibabel.save(nibabel.Nifti1Image(shares, None), path)
    with pytest.raises(DatasetError, match="Probabilities"):
        read_clip_mask(path)
    assert read_clip_mask(path, 1).frames == [(), (None,), (None,)]


def test_an_animation_says_whether_it_lost_anything(tmp_path):
    path = tmp_path / "a.webp"
    save(path, coloured(IDS), lossless=True)
    assert len(MaskFrames(path)) == TOTAL and not is_lossy("WEBP", path)
    save(path, coloured(IDS), quality=90)
    assert is_lossy("WEBP", path)
    with pytest.raises(DatasetError, match="JPEG, or as lossy"):
        read_clip_mask(path)


def test_rows_have_the_objects(folder):
    save(folder / "masks" / "run.tif", IDS)
    reading = Reading(classes=["1"])
    rows = rows_of(find_sources(folder, reading)["train"], reading)
    assert rows["phrases"][:] == [["1"]] * 3
    np.testing.assert_array_equal(np.asarray(rows[2]["masks"][0]) > 0, IDS[2] == 1)


SUFFIXES = [".tif", ".gif", ".png", ".webp", ".npy", ".nii", ".nii.gz"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    place = tmp_path_factory.mktemp("samples")
    np.save(place / "a.npy", IDS)
    for suffix in (".nii", ".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(IDS.transpose(2, 1, 0), None), place / f"a{suffix}")
    save(place / "a.tif", IDS, compression="tiff_lzw")
    save(place / "a.png", IDS)
    save(place / "a.gif", coloured(IDS))
    save(place / "a.webp", coloured(IDS), lossless=True)
    return {suffix: (place / f"a{suffix}").read_bytes() for suffix in SUFFIXES}


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_leaves_a_mask(tmp_path_factory, samples, suffix, data):
    content = bytearray(samples[suffix])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(content)
    try:
        found = read_clip_mask(path, max_pixels=10**5)
    except DatasetError as error:
        assert str(path) not in str(error)
        return
    assert len(found.frames) >= 1 and {name for own in found.frames for name in own} == found.pixels.keys()
