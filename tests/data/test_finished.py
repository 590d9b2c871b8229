import json

import pytest
from prepared import write_runs

from sa2va_trl.data.finished import check_output, made_before, names_nobody, put_in_place, state_of
from sa2va_trl.data.selections import write_selection
from sa2va_trl.errors import DatasetError


KEY = bytes(range(32))


def placed(folder, output, state=None):
    """A data set of one file of rows, as if it had been written."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"rows")
    put_in_place(folder, output, {"splits": {}}, "card", state)
    return output


def test_a_place_that_is_taken_or_inside_of_the_source_is_refused(tmp_path):
    source = write_runs(tmp_path / "source", patients=1)
    for place in (source, source / "out", source / "image" / ".." / "new"):
        with pytest.raises(DatasetError, match="is there already|lies inside of the source"):
            check_output(place, source)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(DatasetError, match="lies inside of the source"):
        check_output(tmp_path / "link" / "out", source)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", source)
    placed(tmp_path / "part", tmp_path / "empty")
    assert json.loads((tmp_path / "empty" / "dataset_report.json").read_text()) == {"splits": {}}
    with pytest.raises(DatasetError, match="is there already"):
        check_output(tmp_path / "empty", source)


def test_a_data_set_is_known_again_while_it_is_what_was_made(tmp_path):
    assert made_before(tmp_path / "out", "one") is None
    out = placed(tmp_path / "part", tmp_path / "out", "one")
    check_output(out, tmp_path / "source")
    (out / "README.md").write_text("a better card")
    assert made_before(out, "one") == {"splits": {}}
    with pytest.raises(DatasetError, match="made with other options"):
        made_before(out, "two")
    rows = out / "data" / "train-00000-of-00001.parquet"
    for change in (lambda: rows.write_bytes(b"others"), rows.unlink, (out / "dataset_report.json").unlink):
        change()
        with pytest.raises(DatasetError, match="has been changed"):
            made_before(out, "one")
        rows.write_bytes(b"rows")


def test_rows_name_nobody_where_they_are_generated_on_the_hub_or_made_so(tmp_path):
    for name in ("raw", "kept", "made"):
        (tmp_path / name).mkdir()
    (tmp_path / "kept" / "dataset_report.json").write_text('{"names": "keep"}')
    (tmp_path / "made" / "dataset_report.json").write_text('{"names": "pseudonyms"}')
    write_selection(tmp_path / "chosen", str(tmp_path / "made"), ["train"], {})
    found = {name: names_nobody(str(tmp_path / name)) for name in ("raw", "kept", "made", "chosen")}
    assert found == {"raw": False, "kept": False, "made": True, "chosen": True}
    assert names_nobody("synthetic") and names_nobody("owner/name")


def test_a_state_is_of_options_files_and_key_and_of_no_place(tmp_path):
    source = write_runs(tmp_path / "source", patients=1)
    found = [state_of(source, {"seed": 0}, KEY)]
    source = source.rename(tmp_path / "moved")
    assert state_of(source, {"seed": 0}, KEY) == found[0]
    found += [state_of(source, {"seed": 1}, KEY), state_of(source, {"seed": 0}, None)]
    (source / "mask" / "P00_f0.png").rename(source / "mask" / "other.png")
    found.append(state_of(source, {"seed": 0}, KEY))
    (source / "mask" / "other.png").touch()
    found.append(state_of(source, {"seed": 0}, KEY))
    assert len(set(found)) == 5
