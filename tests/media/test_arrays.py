import gzip

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.errors import DatasetError
from sa2va_trl.media.arrays import NiftiFrames, nifti_frames, npy_frames, open_npy
from sa2va_trl.media.clips import read_media
from sa2va_trl.media.frames import count_frames, frames_of


FRAMES = np.random.default_rng(0).integers(0, 256, (3, 12, 20), dtype=np.uint8)


def write_nifti(path, voxels, affine=None, **header):
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def read(path):
    return [np.asarray(frame) for frame in nifti_frames(path)]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(20, 12, 3), (20, 12, 1, 3), (20, 12, 1, 1, 3)])
def test_frames_of_a_nifti_file_are_along_its_last_axis(tmp_path, suffix, shape):
    path = write_nifti(tmp_path / f"run{suffix}", FRAMES.transpose(2, 1, 0).reshape(shape))
    np.testing.assert_array_equal(read(path), FRAMES)
    assert count_frames(path) == len(NiftiFrames(path)) == 3
    assert [name for name, _ in read_media(path)] == ["run_f00000", "run_f00001", "run_f00002"]
    np.testing.assert_array_equal(np.asarray(next(nifti_frames(path, start=2))), FRAMES[2])


@pytest.mark.parametrize("shape", [(20, 12), (20, 12, 1), (20, 12, 1, 1)])
def test_a_nifti_picture_is_one_picture(tmp_path, shape):
    path = write_nifti(tmp_path / "one.nii.gz", FRAMES[0].T.reshape(shape))
    np.testing.assert_array_equal(read(path), FRAMES[:1])
    assert [name for name, _ in read_media(path)] == ["one"]


@pytest.mark.parametrize("columns", ["L", "R"])
@pytest.mark.parametrize("rows", ["P", "A", "I", "S"])
@pytest.mark.parametrize("code", ["sform", "qform"])
def test_pictures_lie_as_dicom_shows_them_whatever_the_order_of_the_voxels(tmp_path, columns, rows, code):
    """The same frames, stored with either axis turned round, and the affine saying so: one picture."""
    voxels = FRAMES.transpose(2, 1, 0)
    affine = np.eye(4)
    affine[:3, 0] = (-0.5 if columns == "L" else 0.5, 0, 0)
    affine[:3, 1] = {"P": (0, -0.5, 0), "A": (0, 0.5, 0), "I": (0, 0, -0.5), "S": (0, 0, 0.5)}[rows]
    affine[:3, 2] = (0, 0, 1) if rows in "PA" else (0, 1, 0)
    if columns == "R":
        voxels = voxels[::-1]
    if rows in "AS":
        voxels = voxels[:, ::-1]
    image = nibabel.Nifti1Image(voxels, None)
    (image.set_sform if code == "sform" else image.set_qform)(affine, 1)
    nibabel.save(image, tmp_path / "run.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "run.nii.gz"), FRAMES)


@pytest.mark.parametrize("affine", [None, "identity", "no codes"])
def test_a_file_that_knows_of_no_patient_is_shown_as_it_lies(tmp_path, affine):
    image = nibabel.Nifti1Image(FRAMES.transpose(2, 1, 0), None if affine is None else np.diag([2, 2, 1, 1.0]))
    if affine == "identity":
        image.set_sform(np.eye(4), 2)
    elif affine == "no codes":
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "run.nii")
    np.testing.assert_array_equal(read(tmp_path / "run.nii"), FRAMES)


def test_all_frames_have_one_window(tmp_path, caplog):
    values = FRAMES.astype(np.int16).transpose(2, 1, 0)
    np.testing.assert_array_equal(read(write_nifti(tmp_path / "a.nii", values)), FRAMES)  # as they are
    values = values * 4 - 100
    (low, high) = values.min(), values.max()
    path = write_nifti(tmp_path / "b.nii.gz", values)
    expected = np.rint((FRAMES * 4.0 - 100 - low) / (high - low) * 255)
    np.testing.assert_allclose(np.asarray(read(path)).astype(int), expected, atol=1)
    assert "b.nii.gz: shown from -100 to 920, the range of the whole file" in caplog.text
    path = write_nifti(tmp_path / "c.nii", values.astype(np.float32), cal_min=0, cal_max=400)
    expected = np.rint(np.clip((FRAMES * 4.0 - 100) / 400, 0, 1) * 255)
    np.testing.assert_allclose(np.asarray(read(path)).astype(int), expected, atol=1)


def test_nifti_colours(tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (20, 12, 1, 3), dtype=np.uint8)
    voxels = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    (found,) = nifti_frames(write_nifti(tmp_path / "a.nii", voxels))
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), colours[:, :, 0].transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.zeros((4, 5, 6, 7), np.uint8), r"holds 4 x 5 x 6 x 7 voxels; read are pictures"),
        (np.zeros((4, 5, 2), np.complex64), r"complex"),
        (np.full((4, 5, 2), np.nan, np.float32), r"no numbers"),
    ],
)
def test_what_is_no_nifti_picture_is_refused(tmp_path, voxels, message):
    path = write_nifti(tmp_path / "run.nii.gz", voxels)
    with pytest.raises(DatasetError, match=rf"run\.nii\.gz .*{message}"):
        read(path)


def test_a_nifti_header_that_states_too_much_is_refused(tmp_path):
    path = write_nifti(tmp_path / "run.nii", FRAMES.transpose(2, 1, 0))
    data = bytearray(path.read_bytes())
    data[46:48] = (30000).to_bytes(2, "little")  # frames
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="is cut off, or its header is wrong: it states 7,200,000 bytes"):
        read(path)
    with pytest.raises(DatasetError, match="too large: 20 x 12 pixels, the limit is 239"):
        NiftiFrames(write_nifti(tmp_path / "b.nii", FRAMES.transpose(2, 1, 0)), max_pixels=239)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (FRAMES, FRAMES),
        (FRAMES[0], FRAMES[:1]),
        (FRAMES[0] > 100, np.where(FRAMES[:1] > 100, 255, 0)),
        (FRAMES.astype(np.int64), FRAMES),
        (np.stack([FRAMES] * 3, -1), np.stack([FRAMES] * 3, -1)),
        (np.stack([FRAMES[0]] * 3, -1), np.stack([FRAMES[:1]] * 3, -1)),
        (np.asfortranarray(FRAMES), FRAMES),
    ],
)
def test_frames_of_an_array_file(tmp_path, array, expected):
    np.save(tmp_path / "run.npy", array)
    np.testing.assert_array_equal([np.asarray(frame) for frame in npy_frames(tmp_path / "run.npy")], expected)
    assert len(open_npy(tmp_path / "run.npy")) == count_frames(tmp_path / "run.npy") == len(expected)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[Bomb(), Bomb()]], dtype=object), r"damaged"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"an array of shape \(2, 3, 4, 5\)"),
        (np.zeros(7, np.uint8), r"an array of shape \(7,\)"),
        (np.zeros((0, 4, 4), np.uint8), r"an array of shape \(0, 4, 4\)|damaged"),
        (np.full((4, 4), 0.5), r"frame 0 is an array of float64 from 0.5 to 0.5"),
        (np.full((4, 4), 4000, np.uint16), r"frame 0 is an array of uint16 from 4000 to 4000"),
    ],
)
def test_what_is_no_array_of_pictures_is_refused(tmp_path, array, message):
    np.save(tmp_path / "run.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match=rf"run\.npy cannot be read: .*{message}"):
        list(npy_frames(tmp_path / "run.npy"))


def test_an_array_file_that_states_too_much_is_refused(tmp_path):
    path = tmp_path / "run.npy"
    np.save(path, FRAMES)
    content = path.read_bytes()
    for damaged in (content.replace(b"(3, 12, 20)", b"(9, 99, 20)"), content[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match="damaged or cut off"):
            open_npy(path)
    with path.open("wb") as file:
        np.savez(file, FRAMES)  # an archive by the wrong name
    with pytest.raises(DatasetError, match="damaged or cut off"):
        open_npy(path)
    np.save(path, FRAMES)
    with pytest.raises(DatasetError, match="too large: 20 x 12 pixels, the limit is 239"):
        open_npy(path, max_pixels=239)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    np.save(folder / "a.npy", FRAMES)
    write_nifti(folder / "a.nii", FRAMES.astype(np.int16).transpose(2, 1, 0))
    (folder / "a.nii.gz").write_bytes(gzip.compress((folder / "a.nii").read_bytes(), mtime=0))
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in (".npy", ".nii", ".nii.gz")}


@pytest.mark.parametrize("suffix", [".npy", ".nii", ".nii.gz"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_is_one_error_or_as_many_pictures_as_stated(tmp_path_factory, samples, suffix, data):
    content = bytearray(samples[suffix])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(content)
    try:
        frames = list(frames_of(path))
        assert len(frames) == count_frames(path) and all(frame.mode in ("L", "RGB") for frame in frames)
    except DatasetError as error:
        assert "damaged" in str(error)
