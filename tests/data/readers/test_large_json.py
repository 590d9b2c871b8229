import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa2va_trl.data.readers import large_json
from sa2va_trl.data.readers.large_json import members, value_at
from sa2va_trl.errors import DatasetError


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | ASCII,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ASCII, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("large") / "masks.json"


@given(st.dictionaries(ASCII, VALUES, max_size=5), st.sampled_from((None, 2)), st.integers(1, 40))
def test_members_are_those_of_json_whatever_is_read_at_a_time(file, content, indent, chunk):
    file.write_text(json.dumps(content, indent=indent))
    usual, large_json._CHUNK = large_json._CHUNK, chunk
    try:
        found = [*members(file)]
    finally:
        large_json._CHUNK = usual
    assert {name: value for name, value, _ in found} == content and len(found) == len(content)
    assert all(value_at(file, place) == value for _, value, place in found)


def test_a_mask_at_a_time_is_in_memory(file, monkeypatch):
    monkeypatch.setattr(large_json, "_CHUNK", 1000)
    file.write_text(json.dumps({str(number): ["x" * 90] * 3 for number in range(200)}))
    kept = []

    class Watched(large_json._Text):
        def more(self, count):
            found = super().more(count)
            kept.append(len(self.text))
            return found

    Watched.more.__defaults__ = (1000,)
    monkeypatch.setattr(large_json, "_Text", Watched)
    assert len([*members(file)]) == 200
    assert max(kept) < 3000 < file.stat().st_size / 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "at byte 0: expected '{', found '\\['"),
        ('{"a": [1, 2', "invalid JSON at byte"),
        ('{"a": 1 "b": 2}', "at byte 8: expected ',', found '\"'"),
        ('{"a": 1', "expected ',', found 'its end'"),
        ('{"a": nul}', "invalid JSON at byte 6"),
        ("{1: 2}", "1 is no name"),
        ("", "at byte 0: expected '{', found 'its end'"),
    ],
)
def test_what_is_no_json_is_refused(file, text, words):
    file.write_text(text)
    with pytest.raises(DatasetError, match=words):
        [*members(file)]


def test_a_file_that_has_changed_is_refused(file):
    file.write_text('{"a": [1, 2, 3]}')
    ((_, _, place),) = members(file)
    file.write_text('{"a": {"b": "c"}')
    with pytest.raises(DatasetError, match="masks.json has changed"):
        value_at(file, place)
    with pytest.raises(DatasetError, match="cannot be read"):
        [*members(file.parent / "none.json")]
