import io
import logging
import pickle

import av
import nibabel
import numpy as np
import pytest
from dicom_files import ramp, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.readers.clips import find_clips, is_clips
from sa2va_trl.data.readers.entries import Entry, Reading, Source, entry_row, rows_of
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.frames import count_frames


SIZE, TOTAL = (40, 24), 4
FRAMES = np.random.default_rng(0).integers(0, 256, (TOTAL, *SIZE[::-1]), dtype=np.uint8)
#: Nothing in the first frame, two objects in the last.
OBJECTS = np.zeros((TOTAL, *SIZE[::-1]), np.uint8)
for number in range(1, TOTAL):
    OBJECTS[number, 3 : 8 + number, 5:15] = 1
OBJECTS[3, 15:20, 25:36] = 2
AREAS = [[0], [60], [70], [80, 55]]


def save_pages(path, pages):
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(page) for page in pages]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def save_frames(folder, frames, name="{:04d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in frames.items() if isinstance(frames, dict) else enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(index))


def save_video(path, frames=FRAMES, rotated=False):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *frames.shape[:0:-1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, -1), "rgb24")))
        container.mux(stream.encode())
    if rotated:  # a display matrix of a quarter turn, as phones write it
        data = bytearray(path.read_bytes())
        at = data.find(b"tkhd") + 44
        matrix = np.array([0, 65536, 0, -65536, 0, 0, 0, 0, 0x40000000], ">i4").tobytes()
        data[at : at + 36] = matrix
        path.write_bytes(data)


CLIPS = {
    "run.tif": lambda path: save_pages(path, FRAMES),
    "run.npy": lambda path: np.save(path, FRAMES),
    "run.nii.gz": lambda path: nibabel.save(nibabel.Nifti1Image(FRAMES.transpose(2, 1, 0), None), path),
    "run.mp4": save_video,
    "run": lambda path: write_dicom(path, FRAMES, bits=8),
    "run/": lambda path: save_frames(path, FRAMES),
}
WHOLE = {
    "run.tif": lambda path: save_pages(path, OBJECTS),
    "run.npy": lambda path: np.save(path, OBJECTS),
    "run.nii.gz": lambda path: nibabel.save(nibabel.Nifti1Image(OBJECTS.transpose(2, 1, 0), None), path),
    "run.nii": lambda path: nibabel.save(
        nibabel.Nifti1Image(OBJECTS.transpose(2, 1, 0)[::-1].astype(np.float32), np.diag([1, -1, 1, 1.0])), path
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    return tmp_path


def areas(rows):
    return [[int((np.asarray(mask) > 0).sum()) for mask in row] for row in rows["masks"]]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("mask", WHOLE)
def test_every_kind_of_clip_with_every_kind_of_masks(folder, clip, mask, caplog):
    CLIPS[clip](folder / "images" / clip)
    WHOLE[mask](folder / "masks" / mask)
    assert is_clips(folder)
    if clip.endswith(".nii.gz") and mask.endswith(".nii"):  # one says how it lies, the other does not
        with pytest.raises(DatasetError, match="run.nii: states no orientation and its image one by which it is turn"):
            load_dataset_dict(folder)
        return
    rows = load_dataset_dict(folder, phrase="artery")["train"]
    assert areas(rows) == AREAS and rows["phrases"][:] == [["artery"] * len(own) for own in AREAS]
    np.testing.assert_array_equal(np.asarray(rows[3]["masks"][0]) > 0, OBJECTS[3] == 1)
    np.testing.assert_array_equal(np.asarray(rows[3]["masks"][1]) > 0, OBJECTS[3] == 2)
    assert rows["frame_index"][:] == [0, 1, 2, 3] and len(set(rows["video_id"])) == 1
    assert len(set(rows["sample_id"])) == 4 and all("run" in name for name in rows["sample_id"])
    if clip != "run.mp4":
        np.testing.assert_array_equal([np.asarray(image.convert("L")) for image in rows["image"]], FRAMES)
    check_dataset(rows)
    assert "left out" not in caplog.text


def test_facts_of_dicom_and_videos_are_columns(folder):
    path = write_dicom(folder / "images" / "a.dcm", FRAMES, bits=8, FrameTime=50, RepresentativeFrameNumber=3)
    save_video(folder / "images" / "b.mp4")
    for name in "ab":
        save_pages(folder / "masks" / f"{name}.tif", OBJECTS)
    rows = load_dataset_dict(folder)["train"]
    assert rows["frame_time_ms"][:] == [50.0] * 4 + [100.0] * 4
    assert rows["patient_id"][:] == ["ROE-17"] * 4 + [None] * 4
    assert rows["representative_frame"][:] == [2] * 4 + [None] * 4
    assert rows["burned_in_text"][0] == "unknown" and rows["video_id"][4] == "b"
    assert rows["sample_id"][:] == [f"{name}_f0000{index}" for name in "ab" for index in range(4)]
    assert path.name not in "".join(rows["video_id"])


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", ["{}/{:04d}.png", "{}/frame_{:d}.png", "{}_f{:05d}.png"])
def test_single_masks_are_those_of_their_numbers_and_other_frames_are_left_out(folder, clip, name, caplog):
    if clip == "run/" and "frame_" in name:
        save_frames(folder / "images" / "run", FRAMES, "frame_{:d}.png")
    else:
        CLIPS[clip](folder / "images" / clip)
    for index in (1, 3):
        path = folder / "masks" / name.format("run", index)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((OBJECTS[index] > 0) * np.uint8(255)).save(path)
    if clip == "run/" and name.startswith("{}_f"):
        with pytest.raises(DatasetError, match="has no frame for the mask run_f00001.png: they"):
            rows_of(find_clips(folder, Reading())["train"], Reading())
        return
    with caplog.at_level(logging.WARNING):
        rows = load_dataset_dict(folder)["train"]
    assert rows["frame_index"][:] == [1, 3] and areas(rows) == [[60], [135]]
    assert "left out, 2 frames without a mask, of clips that have some" in caplog.text


def test_an_empty_mask_is_a_negative(folder):
    np.save(folder / "images" / "run.npy", FRAMES)
    save_frames(folder / "masks" / "run", {2: np.zeros(SIZE[::-1], np.uint8)})
    rows = load_dataset_dict(folder)["train"]
    assert rows["frame_index"][:] == [2] and areas(rows) == [[0]]


def test_a_turned_video_has_masks_of_what_players_show(folder):
    save_video(folder / "images" / "run.mp4", rotated=True)
    turned = np.rot90(OBJECTS, -1, axes=(1, 2))
    save_pages(folder / "masks" / "run.tif", turned)
    rows = load_dataset_dict(folder)["train"]
    assert rows[0]["image"].size == SIZE[::-1] and areas(rows) == AREAS
    save_pages(folder / "masks" / "run.tif", OBJECTS)
    with pytest.raises(DatasetError, match=r"mask run.tif is 40 x 24, its image 24 x 40 \(width x height\)"):
        load_dataset_dict(folder)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"run.tif": OBJECTS[:3]}, r"run.npy: has 4 frames, its mask run.tif has 3"),
        ({"run.tif": OBJECTS, "run.tiff": OBJECTS}, r"run.npy: has several masks: run.tif, run.tiff"),
        ({"run/0004.png": OBJECTS[3:]}, r"has no frame for the mask run/0004.png: numbers count from 0 to 3"),
        ({"run/best.png": OBJECTS[3:]}, r"has no frame for the mask run/best.png"),
        ({"run/01.png": OBJECTS[3:], "run/1.png": OBJECTS[3:]}, r"has two masks of frame 1: 01.png and 1.png"),
        ({"run.tif": OBJECTS, "walk.tif": OBJECTS}, r"walk.tif: is a mask of no clip"),
        ({"run.tif": np.minimum(OBJECTS, 1) * FRAMES}, r"run.tif: is not binary: values 0, .*Say mask_threshold"),
    ],
)
def test_masks_that_do_not_fit_are_named(folder, masks, message):
    np.save(folder / "images" / "run.npy", FRAMES)
    for name, pages in masks.items():
        save_pages(folder / "masks" / name, pages)
    with pytest.raises(DatasetError, match=message):
        load_dataset_dict(folder)


def test_all_bad_clips_are_named_together(folder):
    for name in ("a", "b"):
        np.save(folder / "images" / f"{name}.npy", FRAMES)
        save_pages(folder / "masks" / f"{name}.tif", OBJECTS[:2])
    (folder / "images" / "c.dcm").write_bytes(b"\0" * 128 + b"DICM and no more")
    (source,) = find_clips(folder, Reading()).values()
    assert [problem.file.rpartition("/")[2] for problem in source.problems] == ["c.dcm", "a.npy", "b.npy"]
    with pytest.raises(DatasetError, match="3 of 3"):
        rows_of(source, Reading())


def test_names_of_masks_may_have_a_suffix(folder):
    np.save(folder / "images" / "run.npy", FRAMES)
    save_pages(folder / "masks" / "run_gt.tif", OBJECTS)
    reading = Reading(mask_suffix="_gt")
    assert areas(rows_of(find_clips(folder, reading)["train"], reading)) == AREAS


def test_clips_without_masks_are_to_be_annotated_and_no_negatives(tmp_path, caplog):
    (tmp_path / "patient 1" / "study").mkdir(parents=True)
    write_dicom(tmp_path / "patient 1" / "study" / "IM0001", FRAMES, bits=8)
    write_dicom(tmp_path / "patient 1" / "study" / "IM0002", FRAMES[:1], bits=8, InstanceNumber=5)
    write_dicom(tmp_path / "shot.dcm", ramp(), kind="1.2.840.10008.5.1.4.1.1.7")
    save_video(tmp_path / "film.mp4")
    (tmp_path / "notes.txt").write_text("...")
    assert is_clips(tmp_path)
    (source,) = find_clips(tmp_path, Reading()).values()
    assert not source.annotated and not source.problems and len(source.entries) == 9
    assert source.entries[-1].facts["frame_index"] == 5 and source.entries[-1].frame is None
    assert "passed over: shot.dcm (is a secondary capture)" in caplog.text and "notes.txt" in caplog.text
    with pytest.raises(DatasetError, match="holds pictures without masks, which nothing can be trained on"):
        load_dataset_dict(tmp_path)
    (asked,) = find_clips(tmp_path, Reading(secondary_captures=True)).values()
    assert len(asked.entries) == 10
    for entry in pickle.loads(pickle.dumps(asked.entries)):
        image = Image.open(io.BytesIO(entry_row(entry, "a", 0, Source(tmp_path, []), Reading())["image"]["bytes"]))
        assert image.format == "PNG" and not image.info


def test_clips_without_masks_among_others_are_left_out_and_named(folder, caplog):
    np.save(folder / "images" / "run.npy", FRAMES)
    np.save(folder / "images" / "walk.npy", FRAMES)
    save_pages(folder / "masks" / "run.tif", OBJECTS)
    assert len(load_dataset_dict(folder)["train"]) == 4
    assert "left out, clips without masks: walk." in caplog.text


def test_masks_of_no_clip_at_all_are_an_error(folder):
    np.save(folder / "images" / "run.npy", FRAMES)
    with pytest.raises(DatasetError, match="masks: holds no mask of any clip"):
        load_dataset_dict(folder)


def test_single_pictures_may_lie_among_clips(folder):
    np.save(folder / "images" / "run.npy", FRAMES)
    save_pages(folder / "masks" / "run.tif", OBJECTS)
    for kind, array in (("images", FRAMES), ("masks", OBJECTS)):
        Image.fromarray(array[1]).save(folder / kind / "a.png")
    rows = load_dataset_dict(folder)["train"]
    assert areas(rows) == [[60], *AREAS] and rows["video_id"][:2] == [None, "run"] and rows["sample_id"][0] == "a"


def test_splits_are_read(tmp_path):
    for split, total in (("train", 4), ("val", 2)):
        (tmp_path / split / "videos").mkdir(parents=True)
        np.save(tmp_path / split / "videos" / "run.npy", FRAMES[:total])
        save_pages(tmp_path / split / "masks" / "run.tif", OBJECTS[:total])
    assert not is_clips(tmp_path) and is_clips(tmp_path / "train")
    data = load_dataset_dict(tmp_path)
    assert {name: len(rows) for name, rows in data.items()} == {"train": 4, "validation": 2}
    assert data["validation"]["sample_id"][:] == ["validation_run_f00000", "validation_run_f00001"]


@pytest.mark.parametrize(
    "names",
    [
        ("images/a.png", "masks/a.png"),
        ("images/a/x.png", "images/a/y.png", "masks/a/x.png", "masks/a/y.png"),
        ("images/a.png", "annotations.json"),
        ("images/a.dcm", "annotations.json"),
        ("films/readme.txt",),
        ("a.png", "b.png"),
        ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "dataset.json"),
        ("image/a.tif", "images/a.tif", "masks/a.tif"),
    ],
)
def test_other_layouts_are_left_to_their_readers(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FRAMES[0]).save(tmp_path / name, format="TIFF" if name.endswith("tif") else "PNG")
    assert not is_clips(tmp_path)


def test_frames_are_decoded_once_for_all_rows(folder, monkeypatch):
    from sa2va_trl.media import frames as door

    save_video(folder / "images" / "run.mp4")
    save_pages(folder / "masks" / "run.tif", OBJECTS)
    (source,) = find_clips(folder, Reading()).values()
    started, frames_of = [], door.frames_of

    def watched(*args, **options):
        started.append(args)
        return frames_of(*args, **options)

    monkeypatch.setattr(door, "frames_of", watched)
    assert len(rows_of(source, Reading())) == 4 and len(started) == 1


def test_an_entry_of_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="missing"):
        entry_row(Entry("a", tmp_path / "a.npy", (), 0), "a", 0, Source(tmp_path, []), Reading())
    np.save(tmp_path / "a.npy", FRAMES)
    with pytest.raises(DatasetError, match="image .*a.npy has no frame 9: it has 4"):
        entry_row(Entry("a", tmp_path / "a.npy", (), 9), "a", 0, Source(tmp_path, []), Reading())
    with pytest.raises(DatasetError, match="the limit is 100"):
        entry_row(Entry("a", tmp_path / "a.npy", (), 0), "a", 0, Source(tmp_path, []), Reading(max_pixels=100))


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_one_error_or_as_many_rows(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / "images" / "run.npy", FRAMES)
    WHOLE["run.tif"](folder / "masks" / "run.tif")
    path = folder / data.draw(st.sampled_from(["images/run.npy", "masks/run.tif"]))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    if not is_clips(folder):
        return
    try:
        rows = load_dataset_dict(folder)["train"]
    except DatasetError:
        return
    assert len(rows) == TOTAL and {image.size for image in rows["image"]} == {SIZE}


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_video_that_is_cut_off_is_named_and_can_be_mended(tmp_path, suffix):
    path = tmp_path / "images" / f"run{suffix}"
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    save_video(path, np.concatenate([FRAMES] * 10))
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    save_pages(tmp_path / "masks" / "run.tif", OBJECTS)
    np.save(tmp_path / "images" / "other.npy", FRAMES)
    save_pages(tmp_path / "masks" / "other.tif", OBJECTS)
    source = find_clips(tmp_path, Reading())["train"]
    (problem,) = source.problems
    assert problem.file == str(path) and "ends early" in problem.reason and "NEW.mkv" in problem.reason
    assert len(source.entries) == TOTAL

    whole = tmp_path / "images" / "mended.mkv"
    with av.open(str(path)) as old, av.open(str(whole), "w") as new:  # as the message says
        stream = new.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in old.decode(video=0):
            frame.pts = None
            new.mux(stream.encode(frame))
        new.mux(stream.encode())
    assert f"{count_frames(whole)} frames" in problem.reason


def test_two_clips_of_one_name_are_refused(tmp_path):
    folder = tmp_path
    save_pages(folder / "images" / "run.tif", FRAMES)
    np.save(folder / "images" / "run.npy", FRAMES)
    save_pages(folder / "masks" / "run.tif", OBJECTS)
    (source,) = find_clips(folder, Reading()).values()
    assert any("is another clip with the name run" in problem.reason for problem in source.problems)


@pytest.mark.parametrize("is_copy", [True, False])
def test_two_runs_of_one_uid_are_no_one_clip(tmp_path, is_copy):
    """A copy, or the one UID that an anonymiser has given to all."""
    for number in range(2):
        write_dicom(tmp_path / f"IM{number}", FRAMES + number * (not is_copy), bits=8, SOPInstanceUID="1.2.3")
    source = find_clips(tmp_path, Reading())["train"]
    (problem,) = source.problems
    assert problem.file == str(tmp_path / "IM1")
    assert f"has the SOPInstanceUID of {tmp_path / 'IM0'}" in problem.reason
    assert [entry.image.name for entry in source.entries] == ["IM0"] * TOTAL


def test_files_of_one_series_are_one_clip(tmp_path):
    for number in range(3):
        write_dicom(tmp_path / f"IM{number}", FRAMES[:1], bits=8, SeriesInstanceUID="1.2.3", InstanceNumber=number + 1)
    source = find_clips(tmp_path, Reading())["train"]
    assert [entry.facts["video_id"] for entry in source.entries] == ["1.2.3"] * 3 and not source.problems


@pytest.mark.parametrize(
    ("numbers", "is_said"), [(([1, 2, 3], [1]), True), (([0, 1], [1, 2]), False), (([1, 2], [3]), False)]
)
def test_masks_that_seem_to_count_from_one_are_warned_of(folder, caplog, numbers, is_said):
    for name, own in zip("ab", numbers, strict=True):
        np.save(folder / "images" / f"{name}.npy", FRAMES)
        save_frames(folder / "masks" / name, {number: OBJECTS[3] for number in own}, "frame_{:03d}.png")
    source = find_clips(folder, Reading())["train"]
    assert [entry.frame for entry in source.entries] == [number for own in numbers for number in own]
    text = (
        "If frame_001.png is of the first frame, all of them lie one frame too late: rename each to the number before"
    )
    assert (text in caplog.text) == is_said


def test_folders_of_frames_that_count_from_one_are_as_they_are_named(folder, caplog):
    save_frames(folder / "images" / "run", dict(enumerate(FRAMES, start=1)))
    save_frames(folder / "masks" / "run", dict(enumerate(OBJECTS[:2], start=1)))
    source = find_clips(folder, Reading())["train"]
    assert [len(entry.objects) for entry in source.entries] == [0, 1] and "too late" not in caplog.text


def test_dicom_beside_tables_is_read_where_the_format_is_named(tmp_path, caplog):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write_dicom(tmp_path / split / "IM1", FRAMES, bits=8)
        (tmp_path / split / "labels.csv").write_text("file,stenosis\nIM1,1\n")
    for place in (tmp_path, tmp_path / "train"):
        with pytest.raises(
            DatasetError, match=r"train/labels\.csv.*: --format clips of .* passes that over"
        ) as caught:
            find_sources(place, Reading())
        assert ("val/labels.csv" in str(caught.value)) == (place == tmp_path)
    found = find_sources(tmp_path, Reading(), "clips")
    assert {split: len(source.entries) for split, source in found.items()} == {"train": TOTAL, "validation": TOTAL}
    assert "not of a kind that is read: labels.csv" in caplog.text
