"""Files of masks, whole and damaged."""

import io

import nibabel
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl.data.readers.mask_files import draw_mask_file, nifti_fault, read_mask_file
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.pictures import quiet_pillow


LABELS = np.zeros((12, 17), dtype=np.uint8)
LABELS[1:5, 2:7], LABELS[6:11, 9:15] = 1, 2


def draw(path, names, size=(17, 12)):
    return draw_mask_file(size, path, frozenset(names), None, frozenset(), 10**6)


def test_an_object_is_drawn_from_the_file_as_it_is_then(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, LABELS)
    np.testing.assert_array_equal(draw(path, {"2"}), LABELS == 2)
    np.testing.assert_array_equal(draw(path, {"1", "2"}), LABELS > 0)
    np.save(path, np.vstack([LABELS, LABELS[:1]])[1:].astype(np.int64))
    np.testing.assert_array_equal(draw(path, {"2"})[:-1], LABELS[1:] == 2)
    with pytest.raises(DatasetError, match=r"mask a\.npy is 17 x 12, its image 12 x 17"):
        draw(path, {"2"}, (12, 17))
    path.unlink()
    with pytest.raises(DatasetError, match=r"mask a\.npy file is missing"):
        draw(path, {"2"})


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([[Bomb(), Bomb()]], dtype=object), "damaged"),
        (np.zeros((3, 12, 17), np.uint8), "holds 3 frames"),
        (np.zeros((12, 17), np.complex64), "expected one number a pixel"),
        (LABELS / 2, "Choose the threshold"),
    ],
)
def test_arrays_that_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match=reason):
        read_mask_file(tmp_path / "a.npy")


@pytest.mark.parametrize("array", [LABELS, LABELS[None], LABELS[..., None], LABELS.astype(np.int64)])
def test_shapes_of_arrays(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_mask_file(tmp_path / "a.npy").numbers, LABELS)
    with pytest.raises(DatasetError, match="too large: 17 x 12 pixels, the limit is 100"):
        read_mask_file(tmp_path / "a.npy", max_pixels=100)


def test_webp_says_whether_it_lost_anything(tmp_path):
    colours = PIL.Image.fromarray(np.stack([LABELS == 1, LABELS == 2, LABELS > 9], -1).astype(np.uint8) * 255)
    exif = PIL.Image.Exif()
    exif[0x010E] = "a"
    for options in ({}, {"exif": exif}):  # with more than pixels, chunks are in a list
        colours.save(tmp_path / "a.webp", lossless=True, **options)
        assert read_mask_file(tmp_path / "a.webp").names == ("#00FF00", "#FF0000")
        colours.save(tmp_path / "a.webp", quality=90, **options)
        with pytest.raises(DatasetError, match="JPEG, or as lossy"):
            read_mask_file(tmp_path / "a.webp")


# ---------------------------------------------------------------------------------------------------------------------
# How NIfTI lies
# ---------------------------------------------------------------------------------------------------------------------

LPS, RAS, SILENT = np.diag([-1.0, -1, 1, 1]), np.diag([2.0, 2, 2, 1]), None


def write_nifti(path, array, affine):
    nibabel.save(nibabel.Nifti1Image(array.T, affine), path)
    return path


@pytest.mark.parametrize(
    ("image", "mask", "fault"),
    [
        (LPS, LPS, None),
        (LPS, RAS, None),
        (SILENT, SILENT, None),
        (RAS, SILENT, "states no orientation"),
        (SILENT, RAS, "states no orientation"),
        ("png", LPS, None),
        ("png", SILENT, "may lie on its side"),
        (SILENT, "png", "may lie on its side"),
    ],
)
def test_it_is_known_how_a_mask_lies_on_its_image(tmp_path, image, mask, fault):
    square = LABELS[:12, :12]
    files = []
    for name, affine in (("image", image), ("mask", mask)):
        path = tmp_path / f"{name}{'.png' if isinstance(affine, str) else '.nii'}"
        if isinstance(affine, str):
            PIL.Image.fromarray(square).save(path)
        else:
            # The same picture, written by programs that turn the axes round or do not.
            turned = affine is RAS
            write_nifti(path, square[::-1, ::-1] if turned else square, affine)
        files.append(path)
    found = nifti_fault(*files)
    assert found is None if fault is None else fault in found
    if fault is None:
        np.testing.assert_array_equal(read_mask_file(files[1]).numbers, square)


def test_of_no_square_one_knows(tmp_path):
    PIL.Image.fromarray(LABELS).save(tmp_path / "a.png")
    assert nifti_fault(tmp_path / "a.png", write_nifti(tmp_path / "a.nii", LABELS, SILENT)) is None


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------

SUFFIXES = [".png", ".gif", ".bmp", ".tif", ".pgm", ".webp", ".npy", ".nii", ".nii.gz"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    palette = PIL.Image.fromarray(LABELS, "P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    np.save(folder / "a.npy", LABELS)
    for suffix in (".nii", ".nii.gz"):
        write_nifti(folder / f"a{suffix}", LABELS, LPS)
    PIL.Image.fromarray(LABELS).save(folder / "a.png")
    PIL.Image.fromarray(LABELS).save(folder / "a.tif", compression="tiff_lzw")
    PIL.Image.fromarray(LABELS).save(folder / "a.pgm")
    for suffix in (".gif", ".bmp"):
        palette.save(folder / f"a{suffix}")
    palette.convert("RGB").save(folder / "a.webp", lossless=True)
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in SUFFIXES}


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_leaves_a_mask(tmp_path_factory, samples, suffix, data):
    whole = samples[suffix]
    content = bytearray(whole)
    cut = data.draw(st.booleans())
    if cut:
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 0 if cut else 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(content)
    with quiet_pillow():
        try:
            found = read_mask_file(path, max_pixels=10**5)
        except DatasetError as error:
            assert str(path) not in str(error)
            return
    assert found.numbers.max(initial=0) <= len(found.names) <= 256
    if cut:  # behind the pixels there may be something
        shape = LABELS > 0 if suffix == ".webp" else LABELS
        np.testing.assert_array_equal(found.numbers > 0 if suffix == ".webp" else found.numbers, shape)


def test_nothing_is_no_mask(tmp_path):
    for suffix in SUFFIXES:
        (tmp_path / f"a{suffix}").write_bytes(b"")
        with pytest.raises(DatasetError, match=r"unreadable|damaged"), quiet_pillow():
            read_mask_file(tmp_path / f"a{suffix}")
        with pytest.raises(DatasetError, match="missing"):
            read_mask_file(tmp_path / f"b{suffix}")
    buffer = io.BytesIO()
    PIL.Image.new("1", (2000, 400)).save(buffer, format="PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(DatasetError, match="too large: 2000 x 400"), quiet_pillow():
        read_mask_file(tmp_path / "a.png", max_pixels=10**5)
