import zipfile

import numpy as np
import pytest
from PIL import Image
from referring_sets import FRAMES, HEIGHT, WIDTH, write_mevis

from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation.submission import check_submittable, read_masks, write_masks, zip_masks


@pytest.fixture
def rows(tmp_path):
    return load_dataset_dict(write_mevis(tmp_path / "set"))["valid_u"]


def masks(seed):
    return np.random.default_rng(seed).random((4, HEIGHT, WIDTH)) > 0.5


def test_what_is_written_for_a_server_is_read_again(tmp_path, rows):
    check_submittable(rows, "submission")
    for number, row in enumerate(rows):
        write_masks(tmp_path / "out", row, masks(number))
    for server, top in (("mevis", ""), ("ref_youtube_vos", "Annotations/")):
        zip_masks(tmp_path / "out", tmp_path / "submission.zip", server)
        names = zipfile.ZipFile(tmp_path / "submission.zip").namelist()
        assert names == [f"{top}{v}/{e}/{f}.png" for v in ("v0", "v1") for e in "012" for f in FRAMES]
    picture = Image.open(tmp_path / "out" / "Annotations" / "v1" / "2" / "00005.png")
    assert picture.mode == "L" and ((np.asarray(picture) == 255) == masks(5)[1]).all()
    for place in (tmp_path / "out", tmp_path / "out" / "Annotations"):
        found = list(read_masks(place, rows))
        assert [row["sample_id"] for row, _ in found] == rows["sample_id"]
        assert all((own == masks(number)).all() for number, (_, own) in enumerate(found))


def test_what_is_missing_or_no_mask_is_said(tmp_path, rows):
    for number, row in enumerate(rows):
        write_masks(tmp_path / "out", row, masks(number))
    file = tmp_path / "out" / "Annotations" / "v0" / "1" / "00010.png"
    Image.new("L", (9, 9)).save(file)
    with pytest.raises(DatasetError, match="00010.png: is 9 x 9, its image 64 x 48"):
        list(read_masks(tmp_path / "out", rows))
    file.unlink()
    with pytest.raises(DatasetError, match="lacks 1 masks, the first v0/1/00010.png"):
        next(read_masks(tmp_path / "out", rows))


def test_rows_without_names_are_no_submission(rows):
    with pytest.raises(DatasetError, match="exp_id is missing: read the set as"):
        check_submittable(rows.remove_columns("exp_id"), "submission")
    with pytest.raises(DatasetError, match="two rows are of one expression"):
        check_submittable(rows.select([0, 0]), "submission")
    for name in ("../0", "..", "."):
        odd = rows.remove_columns("exp_id").add_column("exp_id", [name, *"12345"])
        with pytest.raises(DatasetError, match=f"'{name}' cannot name a folder"):
            check_submittable(odd, "submission")
