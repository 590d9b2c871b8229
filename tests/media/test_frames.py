import multiprocessing
import threading

import av
import nibabel
import numpy as np
import pytest
from dicom_files import ramp, write_dicom
from PIL import Image

from sa2va_trl.errors import DatasetError
from sa2va_trl.media import frames as module
from sa2va_trl.media.clips import is_clip, open_video, read_pictures
from sa2va_trl.media.frames import count_frames, frame_of, frames_of
from sa2va_trl.media.suffixes import kind_of, stem_of
from sa2va_trl.media.video import video_frame_time


FRAMES = np.stack([np.roll(np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) // 13, 5 * i, 1) for i in range(6)])
FRAMES = (FRAMES % 256).astype(np.uint8)


def write_video(path, frames=FRAMES, rate=15):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = np.repeat(frame[..., None], 3, -1) if frame.ndim == 2 else frame
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same six frames in files of every kind; the video's are what its codec makes of them."""
    folder = tmp_path_factory.mktemp("files")
    pages = [Image.fromarray(frame) for frame in FRAMES]
    pages[0].save(folder / "run.tif", save_all=True, append_images=pages[1:])
    pages[0].save(folder / "run.png", save_all=True, append_images=pages[1:])
    np.save(folder / "run.npy", FRAMES)
    nibabel.save(nibabel.Nifti1Image(FRAMES.transpose(2, 1, 0), None), folder / "run.nii.gz")
    write_dicom(folder / "IM0001", FRAMES, bits=8)
    write_video(folder / "run.mp4")
    return {kind_of(path) + path.suffix: path for path in sorted(folder.iterdir())}


KINDS = ["image.tif", "image.png", "npy.npy", "nifti.gz", "dicom", "video.mp4"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_door_for_every_kind(files, kind, monkeypatch):
    path = files[kind]
    found = list(frames_of(path))
    assert len(found) == count_frames(path) == 6 and is_clip(path)
    assert {frame.mode for frame in found} == {"RGB" if kind == "video.mp4" else "L"}
    if kind != "video.mp4":
        np.testing.assert_array_equal(found, FRAMES)
    np.testing.assert_array_equal(list(frames_of(path, start=4)), found[4:])
    for index in (3, 1, 5, 0):
        np.testing.assert_array_equal(frame_of(path, index), found[index])
    pictures = list(read_pictures(path))
    assert [picture.name for picture in pictures] == [f"{stem_of(path)}_f0000{index}" for index in range(6)]
    assert all(picture.image.mode == "RGB" for picture in pictures)
    with open_video(path) as clip:
        np.testing.assert_array_equal(clip[2], found[2].convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_that_are_not_there_are_named(files, kind):
    for index in (6, 60):
        with pytest.raises(DatasetError, match=rf"has no frame {index}: it has 6"):
            frame_of(files[kind], index)
    with pytest.raises(DatasetError, match="has no frame -1"):
        frame_of(files[kind], -1)


@pytest.fixture
def openings(monkeypatch):
    """Which files are opened, and at which frame they begin."""
    found = []

    def watched(path, start=0, *args, **options):
        found.append((path.name, start))
        return frames_of(path, start, *args, **options)

    module._held.positions.clear()
    monkeypatch.setattr(module, "frames_of", watched)
    return found


def test_asked_for_in_their_order_frames_are_decoded_once_also_by_turns(files, openings):
    for index in range(6):
        for kind in ("video.mp4", "dicom", "image.tif"):
            frame_of(files[kind], index)
    assert openings == [("run.mp4", 0), ("IM0001", 0), ("run.tif", 0)]


def test_a_chosen_few_of_a_video_are_decoded_once_others_from_where_they_are(files, openings):
    for index in (1, 4, 5):
        frame_of(files["video.mp4"], index)
        frame_of(files["dicom"], index)
    frame_of(files["video.mp4"], 2)
    assert openings == [("run.mp4", 1), ("IM0001", 1), ("IM0001", 4), ("run.mp4", 2)]


def test_few_files_stay_open_and_what_changes_is_read_anew(tmp_path, openings):
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", FRAMES[:2])
        frame_of(tmp_path / f"{number}.npy", 0)
    assert len(module._held.positions) == 4
    np.save(tmp_path / "5.npy", FRAMES[2:5])
    np.testing.assert_array_equal(frame_of(tmp_path / "5.npy", 1), FRAMES[3])
    with pytest.raises(FileNotFoundError):
        frame_of(tmp_path / "6.npy", 0)


def test_threads_do_not_share_what_is_open(files):
    frame_of(files["video.mp4"], 0)
    expected, found = list(frames_of(files["video.mp4"])), {}

    def read(number):
        found[number] = [np.asarray(frame_of(files["video.mp4"], index)) for index in range(6)]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for frames in found.values():
        np.testing.assert_array_equal(frames, expected)


def _next_frames(paths, queue):
    queue.put([np.asarray(frame_of(path, 3)) for path in paths])


def test_a_process_that_is_forked_reads_for_itself(files):
    paths = [files["dicom"], files["video.mp4"]]
    expected = [np.asarray(list(frames_of(path))[3]) for path in paths]
    for path in paths:
        frame_of(path, 2)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_next_frames, args=(paths, queue))
    child.start()
    for path, frame, own in zip(paths, queue.get(timeout=60), expected, strict=True):
        np.testing.assert_array_equal(frame, own)
        np.testing.assert_array_equal(frame_of(path, 3), own)
    child.join()


def test_kinds_are_told_by_name_and_dicom_by_content(tmp_path):
    names = {
        "a.PNG": "image",
        "a.MOV": "video",
        "a.dcm": "dicom",
        "a.nii": "nifti",
        "b.NII.GZ": "nifti",
        "a.npy": "npy",
    }
    names |= {"a.gz": None, "a.txt": None, "IM0001": None}
    assert {name: kind_of(tmp_path / name) for name in names} == names
    for name in ("IM0001", "1.2.840.113", "a.raw"):
        write_dicom(tmp_path / name, ramp())
        assert kind_of(tmp_path / name) == "dicom" and stem_of(tmp_path / name) == name
        assert len(list(read_pictures(tmp_path / name))) == 1
    assert kind_of(tmp_path) is None
    with pytest.raises(DatasetError, match=r"a\.txt is neither an image nor a video .* nor DICOM .*\.nii"):
        frames_of(tmp_path / "a.txt")


def test_a_folder_of_dicom_is_read_and_what_is_no_picture_is_named(tmp_path, caplog):
    write_dicom(tmp_path / "1.2.840.1", ramp(2))
    write_dicom(tmp_path / "1.2.840.2", ramp())
    write_dicom(tmp_path / "shot.dcm", ramp(), kind="1.2.840.10008.5.1.4.1.1.7")
    (tmp_path / "notes.dcm").write_text("no DICOM")
    np.save(tmp_path / "probabilities.npy", np.zeros((4, 4)))
    np.save(tmp_path / "picture.npy", FRAMES[0])
    names = [picture.name for picture in read_pictures(tmp_path)]
    assert names == ["1.2.840.1_f00000", "1.2.840.1_f00001", "1.2.840.2", "picture"]
    assert "notes.dcm, probabilities.npy, shot.dcm (is a secondary capture)" in caplog.text


def test_the_time_between_frames_of_a_video(files, tmp_path):
    assert video_frame_time(files["video.mp4"]) == pytest.approx(1000 / 15)
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="cannot be read as a video"):
        video_frame_time(tmp_path / "a.mp4")


def test_a_video_that_is_too_large_is_refused(files):
    with pytest.raises(DatasetError, match=r"run\.mp4 is too large: 64 x 48 pixels, the limit is 3,071"):
        next(frames_of(files["video.mp4"], max_pixels=3071))
