"""What rows are known by on disk: feature stores, checkpoints and score files of before have to be found again."""

from dataclasses import dataclass

from datasets import Dataset, Features, Image, List, Value

from sa2va_trl.data.augment import Augmentation
from sa2va_trl.features.rows import row_keys, row_sizes, view_key
from sa2va_trl.mining.score_files import fingerprint_of
from sa2va_trl.trainers.resuming import rows_digest


QUESTION, ANSWER = "Please segment the {phrase}.", "Sure, [SEG]."
FEATURES = Features(
    {
        "image": Image(),
        "images": List(Image()),
        "mask": Image(),
        "masks": List(Image()),
        "phrase": Value("string"),
        "phrases": List(Value("string")),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "sample_id": Value("string"),
        "video_id": Value("string"),
        "frame_index": Value("int32"),
    }
)


def stored(grey):
    """(Bytes that no version of an encoder changes.)"""
    return {"bytes": b"P5 4 3 255\n" + bytes([grey]) * 12, "path": None}


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def recorded(folder):
    """A row of every style."""
    (folder / "d.pgm").write_bytes(stored(40)["bytes"])
    file = {"bytes": None, "path": str(folder / "d.pgm")}
    pair = {"phrases": ["left", "right"]}
    rows = [
        {"image": stored(10), "mask": stored(255), "phrase": "vessel", "sample_id": "a"},
        {"image": stored(20), "masks": [stored(0), stored(255)], **pair, "sample_id": "b", "video_id": "v"},
        {"images": [stored(10), stored(20)], "masks": [stored(255)] * 4, **pair, "sample_id": "c"},
        {"image": file, "masks": [file], "messages": turns("Where is it?", "Here: [SEG]."), "sample_id": "d"},
        {"messages": turns("Is there one?", "No."), "sample_id": "e"},
    ]
    rows[1]["frame_index"] = 3
    return Dataset.from_list([{name: row.get(name) for name in FEATURES} for row in rows], features=FEATURES)


# As they were written by the version that first had each of them.
KEYS = [
    "e5929362e853487c344c1b30965dd67d",
    "a9942d18e7f93daa836479ef98ee75e3",
    "9f7701d390e90689a8025d9898ff7133",
    "db99d987c472be0cdc70d6ed3fda31e7",
    "7a96ea47a65e3a70f456b3a951299995",
]
SIZES = [(1, 1), (1, 2), (2, 2), (1, 1), (0, 0)]
RESUMED = {"count": 5, "digest": "dbbc47f2a90b02153a78630eb0341612"}
SCORED = "d244b67e7290a331f842d04b3ffb215b704739eadee276d52d1533d23d8f52e1"
VIEWED = "6610ede41f524a97dda9ac4d7727eaf6"


@dataclass
class Drawn:
    """What a key of a view takes of a collator."""

    augmentation: Augmentation | None
    seed: int = 3
    view: int = 1


def test_what_is_written_on_disk_is_what_it_always_was(tmp_path, tiny):
    rows = recorded(tmp_path)
    assert row_keys(rows, QUESTION, ANSWER) == KEYS and row_sizes(rows) == SIZES
    assert view_key(KEYS[0], Drawn(Augmentation(flip=0.5)), 7) == VIEWED
    assert view_key(KEYS[0], Drawn(None), 7) == KEYS[0]
    assert rows_digest(rows) == RESUMED
    for order in (rows, rows.select([3, 1, 4, 0, 2])):
        found = fingerprint_of(*tiny, order)
        assert (found["dataset"], found["rows"]) == (SCORED, 5)
