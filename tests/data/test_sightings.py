import numpy as np
from annotated_folders import write_image
from datasets import Dataset, Features, Image, Value
from prepared import shown

from sa2va_trl.data import sightings
from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.masks import encode_mask
from sa2va_trl.data.near_duplicates import pixel_digest, thumbnail
from sa2va_trl.data.sightings import sights_of


def rows(*cells):
    features = Features({"image": Image(), "mask": Image(), "phrase": Value("string"), "sample_id": Value("string")})
    mask = encode_mask(np.ones((32, 40), dtype=bool))
    columns = {"image": list(cells), "mask": [mask] * len(cells), "phrase": ["a"] * len(cells)}
    return Dataset.from_dict({**columns, "sample_id": list(map(str, range(len(cells))))}, features=features)


def test_what_is_seen_is_what_the_pictures_are():
    found = sights_of(rows(*(encode_mask(shown(number)) for number in (1, 2, 1))), num_proc=2)
    assert found.rows == [0, 1, 2] and found.digests == [pixel_digest(shown(number)) for number in (1, 2, 1)]
    assert np.allclose(found.thumbnails, [thumbnail(shown(number)) for number in (1, 2, 1)], atol=1e-6)


def test_each_picture_is_decoded_once_whoever_looks(monkeypatch):
    cells = [encode_mask(shown(number)) for number in (31, 32)]
    dataset, decoded = rows(*cells), []
    real = sightings.decode_image
    monkeypatch.setattr(sightings, "decode_image", lambda value: decoded.append(value) or real(value))
    assert len(sights_of(dataset).rows) == 2 == len(decoded)
    assert len(sights_of(dataset.select([1])).rows) == 1 and len(decoded) == 2
    checked = rows(encode_mask(shown(33)), encode_mask(shown(34)))
    check_dataset(checked)  # which decodes all of them, in its own way
    assert sights_of(checked).digests == [pixel_digest(shown(33)), pixel_digest(shown(34))] and len(decoded) == 2


def test_a_file_that_changes_is_seen_again(tmp_path):
    file = write_image(tmp_path / "a.png", value=90)
    dataset = rows({"path": str(file), "bytes": None})
    first = sights_of(dataset).digests
    shown(3).save(file)
    assert sights_of(dataset).digests == [pixel_digest(shown(3))] != first


def test_pictures_that_cannot_be_decoded_and_rows_without_any_are_passed_over():
    found = sights_of(rows({"path": None, "bytes": b"nothing"}, encode_mask(shown(1))))
    assert found.rows == [1] and found.thumbnails.shape == (1, 1024)
    empty = sights_of(Dataset.from_dict({"sample_id": ["a"]}))
    assert empty.rows == [] and empty.thumbnails.shape == (0, 1024)
