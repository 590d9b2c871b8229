import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl.data import DatasetError
from sa2va_trl.media.clips import open_video
from sa2va_trl.models.frame_policy import select_frames


COUNTS = st.integers(1, 60)


@given(total=COUNTS, count=COUNTS)
def test_uniform_frames_span_the_clip_evenly(total, count):
    frames = select_frames("uniform", total, count)
    assert frames == sorted(set(frames)) and len(frames) == min(count, total)
    assert frames[0] == 0 and (count == 1 or frames[-1] == total - 1)
    steps = np.diff(frames)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@given(total=COUNTS, count=COUNTS)
def test_first_frames_are_the_beginning(total, count):
    assert select_frames("first", total, count) == list(range(total))[:count]


def test_uniform_frames_of_sa2va_i():
    assert select_frames("uniform", 100, 5) == [0, 24, 49, 74, 99]
    assert select_frames("uniform", 3, 12) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("last", 5, 2), "'uniform' or 'first', got 'last'"),
        (("first", 0, 2), "at least one frame"),
        (("uniform", 5, 0), "at least one frame"),
    ],
)
def test_select_frames_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_frames(*arguments)


def write_video(path, frames, audio_only=False):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        if audio_only:
            stream = container.add_stream("pcm_s16le", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            sound.rate = 8000
            container.mux(stream.encode(sound))
        else:
            stream = container.add_stream("ffv1", rate=5)  # without loss
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def array():
    return np.random.default_rng(0).integers(0, 256, (4, 12, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["list", "array", "path", "string"])
def test_every_kind_of_video_gives_its_frames_in_any_order(tmp_path, array, kind):
    video = {"list": [Image.fromarray(frame) for frame in array], "array": array}.get(kind)
    if video is None:
        video = write_video(tmp_path / "clip.mkv", array)
        video = str(video) if kind == "string" else video
    with open_video(video) as frames:
        assert len(frames) == 4
        for index in (3, 0, 2):
            assert np.array_equal(np.asarray(frames[index]), array[index])


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells what is resident")
def test_a_file_is_not_held_in_memory(tmp_path):
    def resident():  # mapped files included
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    one = np.full((240, 320, 3), 100, dtype=np.uint8)
    path = write_video(tmp_path / "long.mkv", np.broadcast_to(one, (300, *one.shape)))
    before = resident()
    with open_video(path) as frames:
        for index in range(300):
            frames[index]
        assert resident() - before < 100 * one.nbytes


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "has no frames"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], "must have one size; found 8 x 8, 8 x 9"),
        ([Image.new("L", (8, 8)), Image.new("I;16", (8, 8))], "Frame 1 has more than 8 bits a channel"),
        ([np.zeros((8, 8, 3), np.uint8)], "list of PIL images"),
        (Image.new("RGB", (8, 8)), "list of PIL images"),
        (np.zeros((2, 8, 8, 3)), "must be uint8 .* got float64 of shape"),
        (np.zeros((8, 8, 3), np.uint8), r"got uint8 of shape \(8, 8, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"got uint8 of shape \(2, 3, 8, 8\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "has no frames"),
    ],
)
def test_open_video_refuses(video, message):
    with pytest.raises(ValueError, match=message), open_video(video):
        pass


def test_unreadable_files_are_refused(tmp_path, array):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.mp4"), open_video(tmp_path / "none.mp4"):
        pass
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(DatasetError, match=r"text\.mp4 cannot be read as a video"), open_video(tmp_path / "text.mp4"):
        pass
    sound = write_video(tmp_path / "sound.mkv", None, audio_only=True)
    with pytest.raises(DatasetError, match=r"sound\.mkv"), open_video(sound):
        pass


def test_a_file_whose_frames_differ_in_size_is_refused(monkeypatch, tmp_path):
    pictures = [Image.new("RGB", (8, 6)), Image.new("RGB", (6, 8))]
    monkeypatch.setattr("sa2va_trl.media.clips._frames", lambda path: iter(pictures))
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(DatasetError, match="frame 1 is 6 x 8, the first 8 x 6"), open_video(tmp_path / "clip.mp4"):
        pass
