import logging
import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl.data import DatasetError
from sa2va_trl.media.clips import frame_name, is_clip, open_video, picture_names, read_media, read_pictures
from sa2va_trl.media.frames import count_frames
from sa2va_trl.media.suffixes import IMAGE_SUFFIXES


RNG = np.random.default_rng(0)
SIZE = (20, 12)


def picture(mode="L", size=SIZE):
    """Noise of a mode; of a palette, each index with a colour of its own."""
    shape = size[::-1] + {"RGB": (3,), "RGBA": (4,), "CMYK": (4,), "LA": (2,)}.get(mode, ())
    values = RNG.integers(0, 256, shape, dtype=np.uint8)
    if mode == "1":
        return Image.fromarray(values > 127)
    if mode == "P":
        image = Image.fromarray(values, "P")
        image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    if mode in ("RGBA", "LA"):
        values[..., -1] = 255
    return Image.fromarray(values, mode) if mode == "CMYK" else Image.fromarray(values)


def save_pages(path, pages, **options):
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return path


def read(path):
    return list(read_media(path))


def same(found, expected):
    assert found.mode == "RGB" and found.size == expected.size
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected.convert("RGB")))


# ---------------------------------------------------------------------------------------------------------------------
# Files of several pages
# ---------------------------------------------------------------------------------------------------------------------


PAGED = [
    *(("tif", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")),
    ("tiff", "L", {"compression": "tiff_deflate"}),
    ("tif", "L", {"compression": "packbits"}),
    ("gif", "L", {}),
    *(("png", mode, {}) for mode in ("1", "L", "LA", "RGB", "RGBA")),
    ("webp", "RGB", {"lossless": True}),
    ("webp", "RGBA", {"lossless": True}),
]


@pytest.mark.parametrize(("suffix", "mode", "options"), PAGED)
def test_every_page_is_a_frame(tmp_path, suffix, mode, options):
    pages = [picture(mode) for _ in range(4)]
    path = save_pages(tmp_path / f"run.{suffix}", pages, **options)
    assert is_clip(path)
    found = read(path)
    assert [name for name, _ in found] == [f"run_f0000{index}" for index in range(4)]
    for (_, image), page in zip(found, pages, strict=True):
        same(image, page)
    with open_video(path) as clip:
        assert len(clip) == 4
        for index in (3, 0, 2):
            same(clip[index], pages[index])
    assert [(found.file, found.frame) for found in read_pictures(path)] == [(path, index) for index in range(4)]


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_one_picture_is_no_clip(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    page = picture("1" if suffix == ".pbm" else "RGB" if suffix == ".ppm" else "L")
    page.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    assert not is_clip(path)
    ((name, image),) = read(path)
    assert name == "a" and image.size == SIZE
    with open_video(path) as clip:
        assert len(clip) == 1
        same(clip[0], image)
    if suffix not in (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"):  # not lossless
        same(image, page)


def test_content_and_not_the_suffix_says_what_has_pages(tmp_path):
    pages = [picture() for _ in range(3)]
    path = save_pages(tmp_path / "run.png", pages, format="TIFF")
    assert is_clip(path) and len(read(path)) == 3


def test_of_a_photo_with_another_beside_it_the_photo_is_read(tmp_path):
    photo, thumbnail = Image.new("RGB", SIZE, (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    path = save_pages(tmp_path / "photo.jpg", [photo, thumbnail], format="MPO")
    assert Image.open(path).n_frames == 2 and not is_clip(path)
    ((name, image),) = read(path)
    assert name == "photo" and image.size == SIZE and image.getpixel((3, 3))[0] > 150


@pytest.mark.parametrize(("kind", "frames"), [(0, 3), (1, 2), (4, 2)])
def test_thumbnails_and_masks_among_the_pages_of_a_tiff_are_no_frames(tmp_path, kind, frames):
    pages = [picture() for _ in range(3)]
    pages[1].encoderinfo = {"tiffinfo": {254: kind}}
    path = save_pages(tmp_path / "scan.tif", pages)
    found = read(path)
    assert len(found) == frames
    same(found[-1][1], pages[2])


@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
@pytest.mark.parametrize("pages", [1, 2])
def test_pages_stand_upright(tmp_path, pages, compression):
    pages = [picture() for _ in range(pages)]
    path = save_pages(tmp_path / "run.tif", pages, tiffinfo={274: 6}, compression=compression)  # turned clockwise
    for (_, image), page in zip(read(path), pages, strict=True):
        same(image, page.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([picture(), picture(size=(20, 13))], r"frame 1 is 20 x 13, the first 20 x 12; .* must have one size"),
        ([picture(), Image.fromarray(np.full((12, 20), 4000, np.uint16))], r"page 1 has more than 8 bits .*I;16"),
        ([picture(), Image.fromarray(np.zeros((12, 20), np.float32))], r"page 1 has more than 8 bits .*mode F"),
    ],
)
def test_pages_that_are_no_frames_of_a_clip_are_refused_by_name(tmp_path, pages, message):
    path = save_pages(tmp_path / "run.tif", pages)
    with pytest.raises(DatasetError, match=rf"run\.tif.*{message}"):
        next(read_media(path))  # before the first is given out
    if "one size" in message:
        return  # a clip's, not of pictures that are read one by one
    with pytest.raises(DatasetError, match=rf"run\.tif.*{message}"), open_video(path):
        pass


def test_a_page_that_is_too_large_is_refused(tmp_path, monkeypatch):
    path = save_pages(tmp_path / "run.tif", [picture(), picture()])
    monkeypatch.setattr("sa2va_trl.media.clips.MAX_PIXELS", 239)
    with pytest.raises(DatasetError, match=r"run\.tif .* page 0 is too large: 20 x 12 pixels, the limit is 239"):
        read(path)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_a_file_of_several_pages_that_is_cut_off_is_refused(tmp_path, suffix, share):
    path = save_pages(tmp_path / f"run.{suffix}", [picture() for _ in range(5)])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    for attempt in (lambda: next(read_media(path)), lambda: open_video(path).__enter__()):
        with pytest.raises(DatasetError, match=rf"run\.{suffix} cannot be read"):
            attempt()


# ---------------------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------------------


def test_a_folder_names_what_it_leaves_out_and_passes_over_hidden_files(tmp_path, caplog):
    folder = tmp_path / "input"
    folder.mkdir()
    for name in ("b.png", "a.WEBP", "c.jfif"):
        picture().save(folder / name)
    for name in ("scan.dcm", "phone.heic", "notes.txt", "film.mp4", "no suffix"):
        (folder / name).touch()
    for name in ("._b.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png"):
        (folder / name).write_bytes(b"none")
    for name in ("deeper", "folder.png", ".cache"):
        (folder / name).mkdir()
        picture().save(folder / name / "d.png")
    with caplog.at_level(logging.WARNING):
        assert [name for name, _ in read_media(folder)] == ["a", "b", "c"]
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{folder}: left out") and "\n" not in message
    left = message.partition("by its own path: ")[2].split(", ")
    assert left == ["deeper/", "film.mp4", "folder.png/", "no suffix", "notes.txt", "phone.heic", "scan.dcm"]


def test_a_folder_of_images_alone_says_nothing(tmp_path, caplog):
    picture().save(tmp_path / "a.png")
    (tmp_path / ".DS_Store").touch()
    assert len(read(tmp_path)) == 1 and not caplog.records


@pytest.mark.parametrize("names", [(), ("._a.png",), ("a.dcm", "film.mp4", "deeper/")])
def test_a_folder_without_images_is_refused_with_what_it_holds(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(DatasetError, match="holds no images") as error:
        read(tmp_path)
    assert ("it holds a.dcm, deeper/, film.mp4" in str(error.value)) == (len(names) == 3)


def test_links_are_followed(tmp_path):
    real = tmp_path / "store"
    real.mkdir()
    page = picture()
    page.save(real / "1f3a", format="PNG")  # as DVC and the Hub's cache name files
    folder = tmp_path / "fold"
    folder.mkdir()
    (folder / "a.png").symlink_to(real / "1f3a")
    (tmp_path / "link").symlink_to(folder)
    ((name, image),) = read(tmp_path / "link")
    assert name == "a"
    same(image, page)
    (folder / "b.png").symlink_to(real / "gone")
    with pytest.raises(DatasetError, match=r"1 of 2 images cannot be used:\n.*b\.png cannot be read: file is missing"):
        read(folder)


def test_pages_in_a_folder_are_pictures_like_the_others(tmp_path):
    pages = [picture() for _ in range(3)]
    save_pages(tmp_path / "b.tif", pages)
    pages[0].save(tmp_path / "a.png")
    pages[2].save(tmp_path / "b_f00001.png")  # the name of a page
    found = read(tmp_path)
    assert [name for name, _ in found] == ["a", "b.tif_f00000", "b.tif_f00001", "b.tif_f00002", "b_f00001.png"]
    for (_, image), page in zip(found, [pages[0], *pages, pages[2]], strict=True):
        same(image, page)


def test_all_bad_files_of_a_folder_are_named_before_a_picture_is_given_out(tmp_path):
    picture().save(tmp_path / "a.png")
    save_pages(tmp_path / "b.tif", [picture(), picture(size=(4, 4))])
    (tmp_path / "c.gif").write_text("none")
    with pytest.raises(DatasetError, match="2 of 3 images cannot be used") as error:
        next(read_media(tmp_path))
    assert "b.tif: frame 1 is 4 x 4" in str(error.value) and "c.gif cannot be read" in str(error.value)


STEMS = st.sampled_from(["a", "b", "a.png", "a.tif", "a_f00000", "a_f00001", "a.tif_f00000", "a.png_f00001", "ab"])
FILES = st.dictionaries(
    st.tuples(STEMS, st.sampled_from([".png", ".tif", ".jpg"])).map("".join),
    st.one_of(st.none(), st.integers(2, 3)),
    max_size=12,
)


@given(FILES)
def test_no_two_pictures_of_a_folder_share_a_name(files):
    paths, counts = [Path(name) for name in files], list(files.values())

    def pictures(names):
        return [
            picture
            for name, count in zip(names, counts, strict=True)
            for picture in ([name] if count is None else [frame_name(name, index) for index in range(count)])
        ]

    names = picture_names(paths, counts)
    assert len(set(pictures(names))) == len(pictures(names))
    assert all(name in (path.stem, path.name) for name, path in zip(names, paths, strict=True))
    stems = pictures([path.stem for path in paths])
    if len(set(stems)) == len(stems):
        assert names == [path.stem for path in paths]
    # The order in which a folder lists its files changes nothing.
    order = list(range(len(paths)))[::-1]
    assert picture_names([paths[i] for i in order], [counts[i] for i in order]) == names[::-1]


def test_what_is_neither_image_nor_video_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*none\.png"):
        read(tmp_path / "none.png")
    (tmp_path / "scan.raw").touch()
    with pytest.raises(DatasetError, match=r"scan\.raw is neither an image nor a video by its suffix.*\.gif"):
        read(tmp_path / "scan.raw")


# ---------------------------------------------------------------------------------------------------------------------
# Videos
# ---------------------------------------------------------------------------------------------------------------------


def write_clip(path, frames=20, codec="mpeg4", pix_fmt="yuv420p", faststart=True, seconds_of_sound=0, early=0):
    """Moving noise at 10 frames a second; `early` frames lie before the clip's beginning (an edit list)."""
    av = pytest.importorskip("av")
    noise = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    options = {"movflags": "faststart"} if faststart and path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, pix_fmt
        sound = (
            container.add_stream("aac" if path.suffix == ".mp4" else "pcm_s16le", rate=8000)
            if seconds_of_sound
            else None
        )
        packets = []
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 3 * index, 1), format="rgb24")
            frame.pts = index
            packets += stream.encode(frame)
        for packet in [*packets, *stream.encode()]:
            packet.pts, packet.dts = packet.pts - early, packet.dts - early
            container.mux(packet)
        for index in range(10 * seconds_of_sound):
            part = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.float32), format="fltp", layout="mono")
            if path.suffix != ".mp4":
                part = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            part.rate, part.pts = 8000, 800 * index
            container.mux(sound.encode(part))
        if sound is not None:
            container.mux(sound.encode())
    return path


def show_as(path, matrix):
    """Write a display matrix (a, b, c, d) into the header, as phones do."""
    a, b, c, d = (int(65536 * entry) for entry in matrix)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 4 + 20 + 16
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)


MATRICES = {
    "0": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "90 and mirrored": (0, 1, 1, 0),
    "180 and mirrored": (1, 0, 0, -1),
    "270 and mirrored": (0, -1, -1, 0),
    "270, twice as large": (0, -2, 2, 0),
    "none": (0, 0, 0, 0),
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_phone_videos_stand_upright(tmp_path, kind, suffix):
    path = write_clip(tmp_path / f"phone{suffix}", frames=2)
    stored = [np.asarray(image) for _, image in read(path)]
    show_as(path, MATRICES[kind])
    a, b, c, d = np.sign(MATRICES[kind]) if any(MATRICES[kind]) else (1, 0, 0, 1)
    # Every pixel (x, y) goes to (ax + cy, bx + dy), moved so that the least is 0.
    y, x = np.mgrid[0:60, 0:80]
    columns, rows = a * x + c * y, b * x + d * y
    columns, rows = columns - columns.min(), rows - rows.min()
    expected = []
    for frame in stored:
        turned = np.zeros((rows.max() + 1, columns.max() + 1, 3), np.uint8)
        turned[rows, columns] = frame
        expected.append(turned)
    for (_, image), frame in zip(read(path), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image), frame)
    with open_video(path) as clip:
        for index, frame in enumerate(expected):
            np.testing.assert_array_equal(np.asarray(clip[index]), frame)


def test_a_clip_that_leans_is_refused(tmp_path):
    path = write_clip(tmp_path / "phone.mp4", frames=2)
    show_as(path, (0.866, 0.5, -0.5, 0.866))
    with pytest.raises(DatasetError, match=r"phone\.mp4: its frames are to be shown turned by 30 degrees"):
        read(path)


CLIPS = {
    "mp4": {},
    "mp4, index behind": {"faststart": False},
    "mp4, frames out of order": {"codec": "libx264"},
    "mp4, cut by an edit list": {"early": 4},
    "mp4, out of order and cut": {"codec": "libx264", "early": 4},
    "mp4, with longer sound": {"seconds_of_sound": 4},
    "mov": {},
    "mkv": {},
    "mkv, with longer sound": {"seconds_of_sound": 4},
    "webm": {"codec": "libvpx"},
    "avi": {},
    "avi, jpegs": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


@pytest.mark.parametrize("kind", CLIPS)
def test_a_sound_clip_is_read_in_whole_and_says_nothing(tmp_path, caplog, kind):
    path = write_clip(tmp_path / f"clip.{kind.split(',')[0]}", **CLIPS[kind])
    found = read(path)
    assert [name for name, _ in found] == [f"clip_f{index:05d}" for index in range(20 - CLIPS[kind].get("early", 0))]
    assert count_frames(path) == len(found)
    assert not caplog.records


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["mp4", "mov", "avi", "mkv", "mkv, with longer sound", "webm"])
def test_a_clip_that_ends_early_says_so_once(tmp_path, caplog, kind, share):
    path = write_clip(tmp_path / f"clip.{kind.split(',')[0]}", **{**CLIPS[kind], "frames": 40})
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    count = len(read(path))
    assert 0 < count < 40
    (message,) = [record.getMessage() for record in caplog.records if "ends early" in record.getMessage()]
    assert message.startswith(f"{path} ends early: ")
    if kind.startswith(("mkv", "webm")):
        assert f"({count} frames) of the 4.0" in message
    else:
        assert f": {count} frames could be read of the 40 that" in message
    caplog.clear()
    with open_video(path) as clip:
        assert len(clip) == count
    assert len([record for record in caplog.records if "ends early" in record.getMessage()]) == 1
    with pytest.raises(DatasetError, match=rf"{path.name} ends early: .*{count} frames"):  # of a data set
        count_frames(path)


def test_a_clip_whose_decoder_gives_up_says_at_which_frame(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", codec="libx264")
    data = path.read_bytes()
    path.write_bytes(data[: int(0.8 * len(data))])
    with pytest.raises(DatasetError, match=r"clip\.mp4 is damaged: frame (\d+) cannot be read") as error:
        next(read_media(path))
    frame = int(str(error.value).partition("frame ")[2].split()[0])
    assert 5 < frame < 16
    with pytest.raises(DatasetError, match=rf"clip\.mp4 is damaged: frame {frame} cannot be read"), open_video(path):
        pass


def test_frames_that_the_decoder_has_patched_up_are_named(tmp_path, caplog):
    av = pytest.importorskip("av")
    path = write_clip(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0)][7]
    data = bytearray(path.read_bytes())
    start, length = packet.pos + packet.size // 2, packet.size // 4
    data[start : start + length] = b"\x55" * length
    path.write_bytes(data)
    assert len(read(path)) == 20
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path} is damaged: its decoder has patched up frame 7;")
    with pytest.raises(DatasetError, match="its decoder has patched up frame 7;"):
        count_frames(path)


def test_frames_of_a_video_must_have_one_size(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.avi"
    parts = []
    for size in ((80, 60), (80, 60), (40, 30)):
        single = tmp_path / "one.avi"
        with av.open(str(single), "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p"
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((*size[::-1], 3), np.uint8), format="rgb24"))
            )
            container.mux(stream.encode())
        with av.open(str(single)) as container:
            parts.append(bytes(next(container.demux(video=0))))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "yuvj420p"
        for index, part in enumerate(parts):
            packet = av.Packet(part)
            packet.stream, packet.pts, packet.dts, packet.time_base = (
                stream,
                index,
                index,
                Fraction(1, 10),
            )
            container.mux(packet)
    with pytest.raises(DatasetError, match=r"clip\.avi: frame 2 is 40 x 30, the first 80 x 60"):
        next(read_media(path))
    with open_video(path) as clip:  # which is for inference
        assert [frame.size for frame in clip] == [(80, 60), (80, 60), (40, 30)]


def test_what_open_video_gives_out_is_a_video(tmp_path):
    with open_video(save_pages(tmp_path / "run.tif", [picture(), picture()])) as clip, open_video(clip) as again:
        assert again is clip and list(again) == [clip[0], clip[1]]


# ---------------------------------------------------------------------------------------------------------------------
# What open_video takes
# ---------------------------------------------------------------------------------------------------------------------


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
        ([Image.new("L", (8, 8)), Image.new("I;16", (8, 8))], "Frame 1 has more than 8 bits a channel"),
        ([Image.new("L", (8, 8)), np.zeros((8, 8, 4), np.uint8)], r"Frame 1 must be uint8 .* got uint8 of shape \(8,"),
        ([Image.new("L", (8, 8)), np.zeros((8, 8))], "Frame 1 must be uint8 .* got float64"),
        ([Image.new("L", (8, 8)), 3], "Frame 1 must be a PIL image, the path of a file or an array, got int"),
        (Image.new("RGB", (8, 8)), "list of pictures"),
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


@pytest.mark.parametrize("held", [False, True])
def test_frames_of_a_list_are_pictures_of_any_kind_and_size(tmp_path, held):
    grey, wide = np.full((6, 8), 7, np.uint8), picture("RGB", (20, 10))
    picture("RGB", (12, 14)).save(tmp_path / "tall.png")
    frames = [grey, wide] if held else [grey, wide, tmp_path / "tall.png", str(tmp_path / "tall.png")]
    with open_video(frames) as clip:
        assert [frame.size for frame in clip] == [(8, 6), (20, 10), (12, 14), (12, 14)][: len(frames)]
        assert np.array_equal(np.asarray(clip[0].convert("L")), grey)
        assert list(clip[1].convert("RGB").getdata()) == list(wide.convert("RGB").getdata())
    with pytest.raises(FileNotFoundError, match="Frame 1: there is no file"), open_video([wide, tmp_path / "no.png"]):
        pass
