import pytest
from prepared import shown

from sa2va_trl.data.preparing import Item
from sa2va_trl.data.readers.entries import Entry, Reading
from sa2va_trl.data.thinning import thinned
from sa2va_trl.errors import DatasetError


def items_of(folder, *entries):
    """Items of (name, facts), each a picture of its own."""
    found = []
    for number, (name, facts) in enumerate(entries):
        shown(number).save(folder / f"{name}.png")
        found.append(Item(Entry(f"{name}.png", folder / f"{name}.png", facts=facts), 0, number, None))
    return found


def test_clips_are_thinned_in_the_order_of_time_and_images_of_none_stay(tmp_path):
    facts = [{"video_id": "v", "frame_index": (number + 4) % 9, "frame_time_ms": 40.0} for number in range(9)]
    frames = [(f"f{number}", own) for number, own in enumerate(facts)]
    items = items_of(tmp_path, *frames, ("alone", {}), ("w0", {"video_id": "w"}))
    seen = []
    left, reports = thinned(items, Reading(), "uniform", 2, seen.append)
    assert [item.entry.name for item in left] == ["f4.png", "f5.png", "alone.png", "w0.png"]
    assert sum(seen) == 10
    assert [(video, report["total"], report["frames"]) for video, report in reports] == [
        ("v", 9, [0, 8]),
        ("w", 1, [0]),
    ]
    assert [item.number for item in left] == [4, 5, 9, 10]


def test_a_source_without_clips_and_frames_that_cannot_be_read_are_errors(tmp_path):
    items = items_of(tmp_path, ("a", {"video_id": "v"}), ("b", {"video_id": "v"}))
    with pytest.raises(DatasetError, match="there is no clip"):
        thinned(items_of(tmp_path, ("c", {})), Reading(), "uniform", 2)
    with pytest.raises(ValueError, match="must be one of uniform, contrast"):
        thinned(items, Reading(), "best", 2)
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="a frame cannot be used") as error:
        thinned(items, Reading(), "uniform", 2)
    assert error.value.problems[0].file == "b.png"
