import json
import os

import pytest

from sa2va_trl.files import name_bytes, printable, replaced_together, whole_file, write_json


NAMES = ["a", "b", "list.json"]


def write(folder, content, names=NAMES):
    for name in names:
        if name.endswith(".json"):
            (folder / name).write_text(content)
        else:
            (folder / name).mkdir()
            (folder / name / content).write_text(content)


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def whole(content):
    return {f"a/{content}": content, f"b/{content}": content, "list.json": content}


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path):
    folder = tmp_path / "deep" / "output"
    with replaced_together(folder, NAMES) as new:
        write(new, "first")
        assert not folder.exists()
    assert files(folder) == whole("first") and [path.name for path in folder.parent.iterdir()] == ["output"]
    (folder / "notes.txt").write_text("mine")
    with replaced_together(folder, NAMES) as new:
        write(new, "second")
        assert files(folder).items() > whole("first").items()
    assert files(folder) == {**whole("second"), "notes.txt": "mine"}
    reference = tmp_path / "reference"
    reference.mkdir()
    assert (folder / "a").stat().st_mode == reference.stat().st_mode  # not that of a temporary folder


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    with pytest.raises(error), replaced_together(tmp_path / "new", NAMES) as new:
        write(new, "half", NAMES[:2])
        raise error
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, "first")
    with pytest.raises(error), replaced_together(tmp_path, NAMES) as new:
        write(new, "half", NAMES[:2])
        raise error
    assert files(tmp_path) == whole("first")
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


@pytest.mark.parametrize("earlier", [NAMES, ["b"], []])
@pytest.mark.parametrize("step", range(6))
def test_a_failure_while_places_are_taken_puts_all_back(tmp_path, monkeypatch, step, earlier):
    folder = tmp_path / "output"
    folder.mkdir()
    write(folder, "first", earlier)
    before, steps, rename = files(folder), [], type(folder).rename

    def interrupted(self, target):
        steps.append(self.name)
        if len(steps) == step + 1:
            if step % 2:  # before, or just after a file has moved
                rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", interrupted)
    if step >= len(NAMES) + len(earlier):
        with replaced_together(folder, NAMES) as new:
            write(new, "second")
        assert files(folder) == whole("second")
        return
    with pytest.raises(KeyboardInterrupt), replaced_together(folder, NAMES) as new:
        write(new, "second")
    assert files(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(earlier)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "metrics.json"
    write_json(path, {"dice": {"mean": 0.5}})
    assert json.loads(path.read_text()) == {"dice": {"mean": 0.5}}
    write_json(path, [1, 2])
    assert json.loads(path.read_text()) == [1, 2]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == [1, 2]
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.json"]


def test_a_reader_never_meets_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"old": True})
    original, seen = type(path).write_text, []

    def watched(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        seen.append((self.parent == path.parent, json.loads(path.read_text())))
        return result

    monkeypatch.setattr(type(path), "write_text", watched)
    write_json(path, {"new": True})
    assert seen == [(True, {"old": True})]  # written beside, on the same file system, before it replaces
    assert json.loads(path.read_text()) == {"new": True}


def test_what_was_there_stays_where_writing_fails(tmp_path):
    (tmp_path / "scores").write_text("old")
    with pytest.raises(OSError, match="full"), whole_file(tmp_path / "scores") as temporary:
        temporary.write_text("ne")
        raise OSError("full")
    assert [file.name for file in tmp_path.iterdir()] == ["scores"]
    assert (tmp_path / "scores").read_text() == "old"
    with whole_file(tmp_path / "scores") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "scores").read_text() == "old"
    assert (tmp_path / "scores").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_names_are_the_bytes_that_they_are_on_disk_and_can_be_shown():
    for raw in (b"plain", "Müller".encode(), b"M\xfcller \xe5\xbc", "张".encode("gb18030")):
        assert name_bytes(os.fsdecode(raw)) == raw
        printable(os.fsdecode(raw)).encode()
    assert printable("Müller 张") == "Müller 张" and printable("M\udcfcller \ud800") == r"M\xfcller \xed\xa0\x80"
