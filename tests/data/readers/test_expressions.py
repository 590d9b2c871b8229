import tracemalloc
from functools import partial

import datasets
import numpy as np
import pytest
from PIL import Image
from referring_sets import write_ref_youtube_vos

from sa2va_trl.data.readers import expressions
from sa2va_trl.data.readers.expressions import Expression, ExpressionSet, Video, clip_rows, frame_source
from sa2va_trl.errors import BadRow, DatasetError


SIZE = 20_000  # bytes of a mask, as they are made to be here


def drawn(size, frame):
    return np.full(size[::-1], frame % 2 == 0)


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A split of many clips of one picture, each mask of which takes its room."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(
        expressions, "encode_mask", lambda mask: {"bytes": np.random.default_rng(0).bytes(SIZE), "path": None}
    )
    file = tmp_path / "set" / "frame.png"
    file.parent.mkdir()
    Image.new("L", (8, 6)).save(file)

    def of(count, frames=5):
        names = tuple(map(str, range(frames)))
        texts = (Expression("0", "this", drawn), Expression("1", "that", drawn))
        videos = [Video(f"v{number}", names, (file,) * frames, texts) for number in range(count)]
        return ExpressionSet(tmp_path / "meta.json", videos, [], True)

    return of, file.parent


def test_a_split_of_a_hundred_clips_is_not_in_memory(many):
    of, folder = many
    tracemalloc.start()
    try:
        rows = clip_rows({"test": of(100)}, folder)["test"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = 100 * 2 * 5 * SIZE
    assert len(rows) == 200 and rows.data.nbytes > whole
    assert peak < whole / 2  # a batch of rows, several times over while it is written


def test_rows_of_a_set_with_faults_are_not_kept(many):
    of, folder = many
    found = of(2)
    with pytest.raises(DatasetError, match="v7: video: gone"):
        clip_rows({"test": found._replace(problems=[BadRow(0, None, "v7", "video: gone")])}, folder)
    video = found.videos[0]
    bad = video._replace(files=(folder / "none.png",) * 5)
    with pytest.raises(DatasetError, match="1 of 4 images"):
        clip_rows({"test": found._replace(videos=[bad, found.videos[1]])}, folder)
    assert not [*folder.parent.glob("cache/**/*.arrow")]
    with pytest.raises(DatasetError, match="holds no expressions"):
        clip_rows({"test": found._replace(videos=[])}, folder)
    assert len(clip_rows({"test": found}, folder)["test"]) == 4


def test_frames_of_a_video_share_its_name_and_have_their_number(many):
    of, _ = many
    source = frame_source(of(2, frames=3))
    assert [entry.facts for entry in source.entries][3:] == [
        {"video_id": "v1", "frame_index": number} for number in range(3)
    ]
    assert source.videos == {"v0", "v1"} and source.entries[0].name == "v0/0.png"
    found = [own.draw((2, 1)).any() for entry in source.entries[:3] for own in entry.objects]
    assert found == [True, True, False, False, True, True]


def test_a_frame_of_another_suffix_is_found(tmp_path):
    folder = write_ref_youtube_vos(tmp_path / "rvos")
    videos = folder / "valid" / "JPEGImages"
    for file in videos.rglob("*.jpg"):
        file.rename(file.with_suffix(".jpeg"))
    found, problems = expressions.read_meta(
        folder / "meta_expressions" / "valid" / "meta_expressions.json", videos, lambda *_: partial(drawn)
    )
    assert len(found) == 2 and not problems and found[0].files[0].suffix == ".jpeg"
