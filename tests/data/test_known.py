import io
import os
from collections import Counter

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from stored_rows import CLIP, SINGLE, make, png

from sa2va_trl.data import checks
from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.known import content_key
from sa2va_trl.errors import DatasetError


def noise():
    return png(np.random.default_rng().integers(0, 256, (6, 8, 3)))


def stored(picture):
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def read(monkeypatch):
    """How many rows were decoded since it was last asked for."""
    found, read_pictures = Counter(), checks.read_pictures

    def watch(*args, **kwargs):
        found["rows"] += 1
        return read_pictures(*args, **kwargs)

    monkeypatch.setattr(checks, "read_pictures", watch)
    return lambda: found.pop("rows", 0)


SETS = {
    "the same": lambda rows: rows,
    "selected": lambda rows: rows.select([2, 0]),
    "shuffled": lambda rows: rows.shuffle(seed=1),
    "mapped": lambda rows: rows.map(lambda row: {"sample_id": row["sample_id"] + "x"}),
    "with a format": lambda rows: rows.with_format("numpy"),
    "with a transform": lambda rows: rows.with_transform(lambda batch: batch),  # (rows are checked as stored)
    "joined": lambda rows: concatenate_datasets([rows, make(SINGLE, {"sample_id": "new"})]),
    "renamed": lambda rows: rows.remove_columns("phrase").add_column("phrase", ["b"] * 3),
}


@pytest.mark.parametrize("change", SETS)
def test_what_was_found_good_is_not_decoded_again_in_any_set(read, change):
    check_dataset(make(SINGLE, {}))
    rows = make(SINGLE, *({"image": noise()} for _ in range(3)))
    read()
    check_dataset(rows)
    assert read() == 3
    check_dataset(SETS[change](rows), name="eval_dataset")
    assert read() == 0


def test_bad_rows_are_decoded_each_time(read):
    rows = make(SINGLE, {"image": noise()}, {"image": png(np.full((4, 4, 3), 90))}, {"image": noise()})
    for decoded in (3, 1):
        with pytest.raises(DatasetError, match="1 of 3 rows") as caught:
            check_dataset(rows)
        assert read() == decoded and caught.value.problems[0].row == 1


def test_what_is_wrong_with_its_text_is_found_in_a_row_of_good_pictures(read):
    image = noise()
    check_dataset(make(SINGLE, {"image": image}))
    read()
    with pytest.raises(DatasetError, match="phrase 0 is missing or empty"):
        check_dataset(make(SINGLE, {"image": image, "phrase": " "}))
    with pytest.raises(DatasetError, match="duplicate sample_id"):
        check_dataset(make(SINGLE, *[{"image": image, "sample_id": "a"}] * 2))
    assert read() == 0


def test_options_that_matter_are_told_apart(read):
    image, alpha = noise(), PIL.Image.fromarray(np.stack([np.full((6, 8), 255)] * 2, -1).astype(np.uint8), "LA")
    alpha.putpixel((0, 0), (255, 0))
    features = Features({**SINGLE, "mask": Image()})
    check_dataset(make(features, {"image": image, "mask": {"bytes": stored(alpha), "path": None}}))
    with pytest.raises(DatasetError, match="would be read wrongly"):
        check_dataset(make(SINGLE, {"image": image, "mask": {"bytes": stored(alpha), "path": None}}))
    with pytest.raises(DatasetError, match="too large"):
        check_dataset(make(features, {"image": image, "mask": {"bytes": stored(alpha), "path": None}}), max_pixels=47)


def test_which_picture_is_image_and_which_mask_is_told_apart(read):
    grey = [png(np.full((6, 8), value)) for value in (0, 255)]
    check_dataset(make(CLIP, {"images": grey, "masks": grey, "phrases": ["a"]}))
    read()
    check_dataset(make(CLIP, {"images": grey[:1], "masks": [*grey[1:], *grey], "phrases": ["a", "b", "c"]}))
    assert read() == 1


FILES = Features(
    {"image": Image(), "masks": List(Image()), "phrases": List(Value("string")), "sample_id": Value("string")}
)


def of_files(*paths):
    rows = [
        {"image": str(path), "masks": [noise_mask()], "phrases": ["a"], "sample_id": str(number)}
        for number, path in enumerate(paths)
    ]
    return Dataset.from_list(rows, features=FILES)


def noise_mask():
    return png(np.eye(6, 8) * 255)


def test_a_file_that_changes_is_decoded_again(tmp_path, read):
    path = tmp_path / "a.png"
    path.write_bytes(noise()["bytes"])
    rows = of_files(path)
    check_dataset(rows)
    check_dataset(of_files(path))
    assert read() == 1
    state = path.stat()
    path.write_bytes(path.read_bytes()[:-20].ljust(state.st_size, b"\0"))  # as long, and damaged
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(DatasetError, match="unreadable or truncated"):
        check_dataset(rows)
    path.unlink()
    with pytest.raises(DatasetError, match="file is missing"):
        check_dataset(rows)


def test_folders_that_share_a_fingerprint_are_checked_each(tmp_path, read):
    """`datasets` gives two loaded folders of one name one fingerprint."""
    good, bad = make(SINGLE, {"image": noise()}), make(SINGLE, {"image": png(np.full((4, 4, 3), 90))})
    bad._fingerprint = good._fingerprint
    check_dataset(good)
    with pytest.raises(DatasetError, match="its image 4 x 4"):
        check_dataset(bad)


def test_without_a_content_that_can_be_known_there_is_no_key(tmp_path):
    assert content_key([{"bytes": b"a", "path": None}]) == content_key([{"bytes": b"a", "path": "a.png"}])
    assert content_key([{"bytes": b"a", "path": None}]) != content_key([{"bytes": b"b", "path": None}])
    assert content_key([{"bytes": b"ab", "path": None}]) != content_key(
        [{"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}]
    )
    assert content_key([{"bytes": b"a", "path": None}], 1) != content_key([{"bytes": b"a", "path": None}], 2)
    for picture in (
        None,
        PIL.Image.new("L", (1, 1)),
        {"bytes": None, "path": None},
        {"bytes": None, "path": "https://host/a.png"},
        {"bytes": None, "path": str(tmp_path / "none.png")},
    ):
        assert content_key([picture]) is None
