import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image
from mask_pictures import HEIGHT, WIDTH, png_of_16_bits
from stored_rows import SINGLE, huge_png, make

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.layout import normalize_row
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.clips import read_media
from sa2va_trl.media.pictures import decode_image, displayed_size, page_count, quiet_pillow, too_deep


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["a.tif", "a.jpg", "a.png", "behind the pixels"])
def test_the_size_as_displayed_is_that_of_the_decoded_image(tmp_path, orientation, form):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    picture, path = PIL.Image.new("RGB", (80, 40), 9), tmp_path / (form if "." in form else "a.png")
    if path.suffix == ".tif":
        picture.save(path, tiffinfo={274: orientation}, compression="tiff_lzw")
    else:
        picture.save(path, exif=exif)
    if form == "behind the pixels":
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    rows = Dataset.from_dict({"image": [str(path)]}, features=Features({"image": Image()}))
    undecoded = rows.cast_column("image", Image(decode=False))[0]["image"]
    for source in (path, undecoded, {"bytes": path.read_bytes(), "path": None}):
        assert displayed_size(source) == decode_image(source).size == rows[0]["image"].size
    assert displayed_size(rows[0]["image"]) == rows[0]["image"].size


def test_a_png_without_text_is_not_decoded_for_its_size():
    with quiet_pillow():
        assert displayed_size(huge_png(300, 200)) == (300, 200)


@pytest.mark.parametrize("kind", [1, 4])
def test_a_thumbnail_beside_the_picture_is_no_second_picture(tmp_path, kind):
    first, second = PIL.Image.new("L", (8, 6), 200), PIL.Image.new("L", (8, 6), 50)
    second.encoderinfo = {"tiffinfo": {254: kind}}
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    picture = PIL.Image.new("L", (8, 6), 90)
    picture.encoderinfo = {"tiffinfo": {254: 0}}
    first.save(tmp_path / "b.tif", save_all=True, append_images=[picture], tiffinfo={254: kind})
    assert decode_image(tmp_path / "a.tif").getpixel((0, 0)) == 200
    check_dataset(make(SINGLE, {"image": {"bytes": (tmp_path / "a.tif").read_bytes(), "path": None}}))
    ((_, image),) = read_media(tmp_path / "a.tif")
    assert image.getpixel((0, 0)) == (200, 200, 200), "what predict reads"
    with PIL.Image.open(tmp_path / "a.tif") as opened:
        opened.load()
        opened.putpixel((0, 0), 7)
        assert page_count(opened) == 1 and opened.getpixel((0, 0)) == 7
        opened.seek(1)
        assert page_count(opened) == 1 and opened.tell() == 1
    with pytest.raises(DatasetError, match="has a thumbnail or mask as its first page, its picture is page 1"):
        decode_image(tmp_path / "b.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_read_as_it_is_shown_or_refused(tmp_path, orientation, compression):
    """Pillow scrambles uncompressed TIFF files that lie on their side, and so does `datasets.Image`."""
    pixels = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: orientation}, compression=compression)
    rows = Dataset.from_dict({"image": [str(tmp_path / "a.tif")]}, features=Features({"image": Image()}))
    try:
        decode_image(tmp_path / "a.tif")
    except DatasetError as error:
        assert orientation >= 5 and compression == "raw" and f"(orientation {orientation})" in str(error)
        return
    turned = PIL.Image.fromarray(pixels)
    turned.getexif()[274] = orientation
    shown = np.asarray(PIL.ImageOps.exif_transpose(turned))
    for image in (decode_image(tmp_path / "a.tif"), rows[0]["image"]):
        assert np.array_equal(np.asarray(image), shown)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("I;16", "more than 8 bits a channel (mode I;16)"),
        ("I", "more than 8 bits"),
        ("F", "more than 8 bits"),
        ("LAB", "has mode LAB, which is not read: convert it to RGB"),
        ("HSV", "has mode HSV, which is not read"),
        ("RGB", None),
        ("CMYK", None),
        ("P", None),
    ],
)
def test_images_have_their_own_guard(mode, reason):
    fault = too_deep(PIL.Image.new(mode, (4, 3)))
    assert fault is None if reason is None else reason in fault


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_an_image_of_16_bits_in_each_channel_is_refused(colour_type, channels):
    """Of 12-bit values only the upper 8 of 16 bits would be left: a nearly black picture."""
    row = {"image": png_of_16_bits(colour_type, channels, 4095), "mask": PIL.Image.new("L", (WIDTH, HEIGHT))}
    with pytest.raises(DatasetError, match="image has 16 bits in each of several channels"):
        normalize_row({**row, "phrase": "vessel", "sample_id": "s"})
