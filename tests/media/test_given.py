"""Pictures as callers hand them over."""

import numpy as np
import pytest
from PIL import Image

from sa2va_trl.errors import DatasetError
from sa2va_trl.media.given import given_picture


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_an_image_an_array_and_a_file_are_one_picture(array, tmp_path):
    Image.fromarray(array).save(tmp_path / "picture.png")
    image = Image.fromarray(array)
    assert given_picture(image, "It") is image
    for value in (array, array[:, ::-1][:, ::-1], tmp_path / "picture.png", str(tmp_path / "picture.png")):
        assert np.array_equal(np.asarray(given_picture(value, "It")), array)
    grey = given_picture(array[..., 0], "It")
    assert grey.mode == "L" and np.array_equal(np.asarray(grey), array[..., 0])


def test_a_file_is_turned_upright(array, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "side.png", exif=exif)
    assert given_picture(tmp_path / "side.png", "It").size == (6, 9)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 4), np.uint16), r"It must be uint8 of shape \(H, W\) or \(H, W, 3\), got uint16 of shape"),
        (np.zeros((4, 4), bool), "got bool of shape"),
        (np.zeros((3, 4, 4), np.uint8), r"got uint8 of shape \(3, 4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 of shape \(4, 4, 4\)"),
        (np.zeros((0, 4), np.uint8), r"got uint8 of shape \(0, 4\)"),
        (None, "It must be a PIL image, the path of a file or an array, got NoneType"),
        (Image.new("I;16", (4, 4)), "It has more than 8 bits a channel"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(value, message):
    with pytest.raises(ValueError, match=message):
        given_picture(value, "It")


def test_files_that_are_no_picture_are_refused_by_name(array, tmp_path):
    with pytest.raises(FileNotFoundError, match="It: there is no file .*none.png"):
        given_picture(tmp_path / "none.png", "It")
    pages = [Image.fromarray(array), Image.fromarray(array[::-1])]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"It: .*pages\.tif holds several pictures. Give it as `video`"):
        given_picture(tmp_path / "pages.tif", "It")
    Image.fromarray(array.astype(np.uint16)[..., 0] * 256).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("deep.png", "text.png"):
        with pytest.raises(DatasetError, match=name):
            given_picture(tmp_path / name, "It")
