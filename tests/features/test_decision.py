"""When features are read in place of images, and what is said of it."""

import pytest

from sa2va_trl.errors import FeatureError
from sa2va_trl.features.decision import Rows, decide_features
from sa2va_trl.features.store import FeatureStore


def never():
    raise AssertionError("looked at what need not be known")


def rows(folder, monkeypatch, there=(), free=1000):
    """Two rows of 100 bytes each."""
    store = FeatureStore(folder, {"weights": "some"})
    store.records = dict.fromkeys(there)
    monkeypatch.setattr(FeatureStore, "free", lambda self: free)
    return Rows(store, ["a", "b"], lambda keys: 100 * len(list(keys)))


def test_off_looks_at_nothing():
    assert decide_features("off", never, never) == (None, [], None)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="cache_features must be one of auto, on, off, got 'yes'"):
        decide_features("yes", never, never)


def test_reasons_against_are_all_named_and_the_weights_are_not_looked_at():
    decision = decide_features("auto", lambda: ["this", "that"], never)
    assert decision.rows is None and decision.message == "cache_features=auto: off, this; that."
    with pytest.raises(ValueError, match="(?s)cache_features=on is not possible here:.*  this.*  that"):
        decide_features("on", lambda: ["this", "that"], never)


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_what_is_missing_is_told(tmp_path, monkeypatch, mode):
    found = rows(tmp_path, monkeypatch, there=["a"])
    decision = decide_features(mode, list, lambda: found, why="nothing trains")
    assert decision.rows is found and decision.missing == ["b"]
    assert decision.message.startswith(f"cache_features={mode}: on, {'nothing trains; ' if mode == 'auto' else ''}0.0")
    assert "2 rows (100 bytes each)" in decision.message and "1 to compute" in decision.message
    full = rows(tmp_path, monkeypatch, there=["a", "b"], free=0)
    decision = decide_features(mode, list, lambda: full)
    assert decision.missing == [] and decision.message.endswith("; all there.")


def test_where_nothing_is_computed_one_missing_row_is_enough(tmp_path, monkeypatch):
    found = rows(tmp_path, monkeypatch, there=["a"])
    decision = decide_features("auto", list, lambda: found, compute=False)
    assert decision.rows is None
    assert decision.message == f"cache_features=auto: off, {tmp_path} lacks the features of 1 rows with this model."
    assert decide_features("on", list, lambda: found, compute=False).missing == ["b"]


def test_no_room_is_said_or_refused(tmp_path, monkeypatch):
    found = rows(tmp_path, monkeypatch, free=199)
    decision = decide_features("auto", list, lambda: found)
    assert decision.rows is None and "200 bytes are needed" in decision.message and "199 can be" in decision.message
    with pytest.raises(FeatureError, match="cache_features=on: .* 200 bytes are needed .* 199 can be written"):
        decide_features("on", list, lambda: found)
    enough = rows(tmp_path, monkeypatch, free=200)
    assert decide_features("on", list, lambda: enough).rows is enough
