import io
import os
import zlib

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
from PIL.PngImagePlugin import PngInfo

from sa2va_trl.data import privacy
from sa2va_trl.data.near_duplicates import pixel_digest
from sa2va_trl.data.privacy import NameSearch, Pseudonyms, clean_picture, leaked, name_parts, names_below, read_key
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.pictures import decode_image, quiet_pillow


NAME = "DOE^JOHN"
# As each encoding that hospitals use has them.
SECRETS = [NAME, "Zhang^Weiming", "张伟明", "Müller^Jörg"]
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "gb18030")


@pytest.fixture(scope="module")
def picture():
    rows, columns = np.mgrid[0:40, 0:56]
    return PIL.Image.fromarray(np.stack([3 * rows + columns, rows * columns // 8, 4 * columns], -1).astype(np.uint8))


def saved(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def exif(orientation=1):
    found = PIL.Image.Exif()
    found[0x010E], found[0x013B], found[0x0112] = NAME, NAME, orientation
    return found


def with_segment(jpeg, marker, content):
    """A JPEG with a segment more, behind its first marker."""
    return jpeg[:2] + bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content + jpeg[2:]


def planted(image):
    """Pictures that hold the name where none of their pixels are."""
    name, plain = NAME.encode(), saved(image, "JPEG", quality=90)
    progressive = saved(image, "JPEG", quality=90, progressive=True, exif=exif(), icc_profile=b"x" * 128 + name)
    info = PngInfo()
    info.add_text("PatientName", NAME)
    info.add_text("Packed", NAME * 50, zip=True)
    info.add_itxt("Other", NAME)
    scan = progressive.rfind(b"\xff\xda")
    second = progressive[:scan] + b"\xff\xfe" + (len(name) + 2).to_bytes(2) + name + progressive[scan:]
    return {
        "exif": saved(image, "JPEG", quality=90, exif=exif(), comment=NAME),
        "turned": saved(image, "JPEG", quality=90, exif=exif(orientation=6)),
        "progressive": progressive,
        "between scans": second,
        "grey": saved(image.convert("L"), "JPEG", comment=NAME),
        "cmyk": saved(image.convert("CMYK"), "JPEG", comment=NAME),
        "app segments": with_segment(with_segment(with_segment(plain, 0xE1, name), 0xED, name), 0xEE, b"Adobe" + name),
        "JFIF with more": plain[:4] + (16 + 8).to_bytes(2) + plain[6:20] + name + plain[20:],
        "behind the end": plain + name,
        "a second picture behind it": plain + name + plain,
        "mpo": saved(image, "MPO", save_all=True, append_images=[image], exif=exif()),
        "png": saved(image, "PNG", pnginfo=info, exif=exif(), icc_profile=b"x" * 128 + name),
        "palette": saved(image.convert("P"), "PNG", pnginfo=info),
        "transparent": saved(image.convert("RGBA"), "PNG", pnginfo=info),
        "behind a png": saved(image, "PNG") + name,
        "tiff": saved(image, "TIFF", description=NAME, software=NAME),
        "webp": saved(image, "WEBP", lossless=True, exif=exif()),
        "gif": saved(image, "GIF", comment=NAME),
    }


def unpacked(data):
    """Everything that a picture's bytes say: themselves, and what of a PNG is compressed."""
    for place in range(len(data)):
        if data[place : place + 4] in (b"zTXt", b"iTXt", b"iCCP", b"IDAT"):
            for start in range(place + 4, min(place + 90, len(data))):
                try:
                    yield zlib.decompressobj().decompress(data[start:])
                except zlib.error:
                    continue
    yield data


def test_nothing_but_pixels_is_left_of_a_picture_and_these_are_the_same(picture):
    with quiet_pillow():
        for kind, data in planted(picture).items():
            assert any(NAME.encode() in part for part in unpacked(data)), kind
            clean = clean_picture({"bytes": data, "path": None})
            assert not any(NAME.encode() in part for part in unpacked(clean)), kind
            before, after = (decode_image({"bytes": own, "path": None}) for own in (data, clean))
            assert pixel_digest(before) == pixel_digest(after) and before.size == after.size, kind
            assert clean_picture({"bytes": clean, "path": None}) == clean or after.format != "JPEG", kind
            one = PIL.Image.open(io.BytesIO(clean))
            assert not one.getexif() and not {"exif", "comment", "icc_profile", "xmp"} & one.info.keys(), kind


def test_a_jpeg_that_lies_upright_keeps_its_pixels_as_they_are_compressed(picture):
    found = planted(picture)
    with quiet_pillow():
        for kind, data in found.items():
            is_kept = clean_picture({"bytes": data, "path": None})[:2] == b"\xff\xd8"
            assert is_kept == (data[:2] == b"\xff\xd8" and kind not in ("turned", "cmyk", "mpo")), kind


def test_a_file_is_read_as_its_bytes_are(picture, tmp_path):
    for kind, name in (("exif", "a.jpg"), ("png", "a.png")):
        data = planted(picture)[kind]
        (tmp_path / name).write_bytes(data)
        with quiet_pillow():
            assert clean_picture(tmp_path / name) == clean_picture({"bytes": data, "path": None})


def test_pictures_that_are_cut_off_or_too_deep_are_refused(picture):
    jpeg, png = saved(picture, "JPEG"), saved(picture, "PNG")
    deep = saved(PIL.Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)), "TIFF")
    with quiet_pillow():
        for data in (jpeg[:-40], jpeg[: len(jpeg) // 2], png[: len(png) // 2], deep, b"nothing", b"\xff\xd8\xff\xe0"):
            with pytest.raises(DatasetError):
                clean_picture({"bytes": data, "path": None})


def test_names_and_their_parts():
    found = name_parts(["DOE^JOHN_1950", "frame_0001.png", "images", "0001.png", "19500131", "ab"])
    assert found == {"doe^john_1950", "john", "frame_0001.png", "frame_0001", "0001.png", "19500131"}
    assert name_parts(["vessel", "LAD4"], harmless=["Vessel"]) == {"lad4"}
    assert leaked("The artery of John", found) == {"john"} and not leaked("a vessel", found)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_name_is_found_among_bytes_in_every_encoding(secret, encoding):
    search, noise = NameSearch(name_parts(SECRETS)), np.random.default_rng(0).bytes(50_000)
    for form in (secret, secret.upper(), secret.lower()):
        assert secret.casefold() in search(noise + form.encode(encoding) + noise)
    assert search(noise) == search(b"") == search(b"DOE") == set()


def test_many_names_are_looked_for_at_once():
    names = name_parts(f"patient_{number:06d}" for number in range(3000))
    assert NameSearch(names)(b"..patient_001234.patient_002999;") == {"patient_001234", "patient_002999"}


def test_names_that_are_no_utf_8_are_found_as_bytes_and_as_what_they_may_be():
    for encoding, name in (("latin-1", "Müllerova"), ("gb18030", "张伟明"), ("shift_jis", "田中太郎")):
        raw = name.encode(encoding)
        search = NameSearch(name_parts([os.fsdecode(raw + b".png")]))
        assert search(b"..." + raw + b"...") and search(name.encode()) and search(name.encode("utf-16-le"))
        assert not search(b"Someone else") and not search(b"\xff" * 99)


def test_letters_are_the_same_in_other_forms():
    search = NameSearch(name_parts(["Zo\u00eb Kru\u0308ger", "Weißmüller"]))
    for form in ("Zoe\u0308 Kru\u0308ger", "Zo\u00eb Kr\u00fcger", "WEISSMÜLLER", "Weißmüller"):
        assert search(form.encode())


@pytest.mark.parametrize("chunk", [16, 2**24])
def test_names_are_looked_for_in_all_of_a_folder(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(privacy, "_CHUNK", chunk)
    for place, content in {
        "clean.txt": b"Report of the john-dory, a fish; sojourns",
        "bytes.bin": b"\xff" * 90 + "Kowalski".encode("utf-16-be") + b"\xff",
        ".hidden/words.md": b"told by Anna.",
        "Kowalski/empty": b"",
        "a_anna_b.txt": b"",
        "joanna.txt": b"susanna",
    }.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(content)
    column = pyarrow.array(["Kowalskich"] * 3 + [None])
    table = pyarrow.table({"words": column, "cells": [[{"bytes": b"..kowalski", "path": None}]] * 4})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", compression="gzip")
    found = names_below(tmp_path, name_parts(["Kowalski", "anna"]))
    assert found.pop("Kowalski") == found.pop("Kowalski/empty") == {"kowalski"}
    assert found.pop("bytes.bin") == found.pop("rows.parquet") == {"kowalski"}
    assert found.pop("a_anna_b.txt") == {"anna"}
    assert found == {".hidden/words.md": {"anna"}}


def test_a_key_is_made_once_for_its_owner_alone(tmp_path):
    file = tmp_path / "new" / "key"
    key = read_key(file)
    assert len(key) == 32 and read_key(file) == key and file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["key"]
    assert read_key(tmp_path / "other") != key
    (tmp_path / "bad").write_text("mine")
    with pytest.raises(DatasetError, match="is no key of pseudonyms"):
        read_key(tmp_path / "bad")


def test_pseudonyms_depend_on_the_key_and_say_nothing_of_the_name():
    names = [f"P{number}" for number in range(500)]
    one, other = Pseudonyms(bytes(32)), Pseudonyms(bytes([1] * 32))
    found = [one("patient", name) for name in names]
    assert found == [Pseudonyms(bytes(32))("patient", name) for name in names] and len(set(found)) == 500
    assert not {*found} & {other("patient", name) for name in names}
    assert all(len(name) == len("patient-") + 12 for name in found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Vessel of JOHN", {"john"}),
        ("die Straße von Weiß", {"weiss"}),
        ("张伟明 的血管", {"张伟明"}),
        ("M\udcfcller", {"m\udcfcller"}),
        ("vessel", set()),
    ],
)
def test_one_search_finds_in_many_texts_what_each_name_is_in(text, found):
    names = name_parts(["DOE^JOHN", "Weiß", "张伟明", "M\udcfcller"])
    assert NameSearch(names, shortest=4).in_text(text) == leaked(text, names) == found
