"""DICOM segmentations of other programs: written with highdicom, changed, damaged."""

import os
import pickle
import random

import highdicom
import numpy as np
import pydicom
import pytest
from annotation_formats import damaged, read, same
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.sr.codedict import codes
from pydicom.uid import JPEGLSLossless, RLELossless, SegmentationStorage, generate_uid
from segmentations import SIZE, write_run, write_series

from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.dicom_seg import write_dicom_seg
from sa2va_trl.data.loading import find_sources, load_dataset_dict
from sa2va_trl.data.readers.clips import is_clips
from sa2va_trl.data.readers.dicom_seg import find_dicom_seg, is_dicom_seg
from sa2va_trl.data.readers.entries import Reading, rows_of
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.dicom_seg import is_segmentation


EXAMPLES = int(os.environ.get("SA2VA_TRL_EXAMPLES", 15))
SHAPE = SIZE[::-1]
NONE = np.zeros(SHAPE, dtype=bool)
SQUARE, OTHER, RIM = NONE.copy(), NONE.copy(), NONE.copy()
SQUARE[2:9, 3:12], OTHER[4:11, 13:20], RIM[5:8, 10:15] = True, True, True  # the last overlaps both


def described(*labels):
    return [
        highdicom.seg.SegmentDescription(number, label, codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for number, label in enumerate(labels, start=1)
    ]


def write_slices(folder, masks, kind="BINARY", labels=("vessel", "catheter"), name="seg.dcm", pictures=(), **options):
    """Slices and their segmentation as highdicom writes it: `masks` of shape `(slices, height, width[, classes])`."""
    names = [f"{number}.dcm" for number in range(len(masks))]
    pictures = pictures or write_series(folder, names, is_placed=True)
    headers = [pydicom.dcmread(path) for path in pictures]
    for header in headers:
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"):
            setattr(header, keyword, "")
        header.StudyTime, header.Modality = "", "CT"
    seg = highdicom.seg.Segmentation(
        headers,
        np.asarray(masks),
        kind,
        described(*labels),
        generate_uid(),
        100,
        generate_uid(),
        1,
        "maker",
        "model",
        "1",
        "0",
        **options,
    )
    seg.save_as(folder / name)
    return pictures


def write_marked(folder, name="seg.dcm", labels=("vessel", "catheter"), change=None, frames=5):
    """A run and its segmentation of four frames: the first with both classes, the third with the first class."""
    place = folder / "made"
    (place / "images").mkdir(parents=True)
    path = folder / "run"
    if not path.exists():
        write_run(path, frames=frames)
    (place / "images" / "run").write_bytes(path.read_bytes())
    own = [(Found(labels[0], SQUARE), Found(labels[1], OTHER)), (), (Found(labels[0], RIM),), ()]
    write_dicom_seg(place, [Annotated("images/run", SIZE, found, frame) for frame, found in enumerate(own)])
    seg = pydicom.dcmread(place / "segmentations" / "run.dcm")
    if change:
        change(seg)
    seg.save_as(folder / name)
    for file in (place / "images" / "run", place / "segmentations" / "run.dcm"):
        file.unlink()
    for empty in ("images", "segmentations", "."):
        (place / empty).rmdir()
    return folder / name


def faults(folder, **reading):
    with pytest.raises(DatasetError) as caught:
        read(find_dicom_seg, folder, **reading)
    return str(caught.value)


def sources(item):
    return item.DerivationImageSequence[0].SourceImageSequence


# ---------------------------------------------------------------------------------------------------------------------
# What is read
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_has_rows_for_the_frames_that_are_spoken_of(tmp_path, caplog):
    write_marked(tmp_path)
    assert is_dicom_seg(tmp_path) and not is_clips(tmp_path)
    found = read(find_dicom_seg, tmp_path)["train"]
    assert list(found) == [f"run_f0000{number}" for number in range(4)]
    assert same(found["run_f00000"], {"vessel": SQUARE, "catheter": OTHER})
    assert same(found["run_f00001"], {"vessel": NONE, "catheter": NONE})
    assert same(found["run_f00002"], {"vessel": RIM})
    assert "left out, 1 frames that no segmentation speaks of" in caplog.text
    entry = pickle.loads(pickle.dumps(find_dicom_seg(tmp_path, Reading())["train"].entries[0]))
    assert np.array_equal(entry.objects[0].draw(SIZE), SQUARE)
    uid = pydicom.dcmread(tmp_path / "run").SOPInstanceUID
    assert entry.facts == {"video_id": uid, "patient_id": "ROE-17", "frame_index": 0, "burned_in_text": "unknown"}
    rows = load_dataset_dict(str(tmp_path), phrase="all")["train"]
    assert rows["phrases"][0] == ["all"] and rows["image"][0].size == SIZE


def test_without_frame_numbers_all_frames_of_a_run_are_spoken_of(tmp_path):
    def change(seg):
        del seg.SourceImageSequence

    write_marked(tmp_path, change=change)
    found = read(find_dicom_seg, tmp_path)["train"]
    assert len(found) == 5 and same(found["run_f00004"], {"vessel": NONE, "catheter": NONE})


def test_without_any_list_only_frames_with_a_mask_are_spoken_of(tmp_path):
    def change(seg):
        del seg.SourceImageSequence, seg.ReferencedSeriesSequence

    write_marked(tmp_path, change=change)
    assert list(read(find_dicom_seg, tmp_path)["train"]) == ["run_f00000", "run_f00002"]


COMPRESSED = [(kind, syntax) for kind in ("LABELMAP", "FRACTIONAL") for syntax in (None, RLELossless, JPEGLSLossless)]


@pytest.mark.parametrize(("kind", "syntax"), [("BINARY", None), *COMPRESSED])
def test_every_type_and_compression(tmp_path, kind, syntax):
    masks = np.zeros((3, *SHAPE, 2), dtype=bool)
    masks[0, ..., 0], masks[0, ..., 1], masks[2, ..., 1] = SQUARE, OTHER, RIM
    options = {} if syntax is None else {"transfer_syntax_uid": syntax}
    values, reading = masks, {}
    if kind == "FRACTIONAL":
        values, reading = np.where(masks, 0.6, 0.4), {"mask_threshold": 0.5}
    write_slices(tmp_path, values, kind, **options)
    found = read(find_dicom_seg, tmp_path, **reading)["train"]
    assert same(found["0"], {"vessel": SQUARE, "catheter": OTHER}) and same(found["2"], {"catheter": RIM})
    assert same(found["1"], {"vessel": NONE, "catheter": NONE})
    if kind == "FRACTIONAL":
        found = read(find_dicom_seg, tmp_path, mask_threshold=0.7)["train"]
        assert not any(mask.any() for row in found.values() for mask in row.values())
        assert "say with mask_threshold where an object begins" in faults(tmp_path)
        assert "above 0 and up to 1, not 128" in faults(tmp_path, mask_threshold=128)
    else:
        with pytest.raises(ValueError, match="^mask_threshold has no effect on segmentations that are not FRACTIONAL"):
            read(find_dicom_seg, tmp_path, mask_threshold=0.5)


def test_classes_are_chosen_and_merged(tmp_path):
    write_marked(tmp_path)
    found = read(find_dicom_seg, tmp_path, classes={"vessel": "thing", "catheter": "thing"})["train"]
    assert same(found["run_f00000"], {"thing": SQUARE | OTHER})
    found = read(find_dicom_seg, tmp_path, classes=["catheter"])["train"]
    assert same(found["run_f00000"], {"catheter": OTHER}) and same(found["run_f00002"], {"catheter": NONE})
    with pytest.raises(DatasetError, match="has no class wire"):
        read(find_dicom_seg, tmp_path, classes=["wire"])


def test_segments_of_one_label_are_instances(tmp_path):
    masks = np.stack([SQUARE, OTHER], axis=-1)[None]
    write_slices(tmp_path, masks, labels=("vessel", "vessel"))
    (source,) = find_dicom_seg(tmp_path, Reading()).values()
    assert [one.label for one in source.entries[0].objects] == ["vessel"] * 2
    assert same(read(find_dicom_seg, tmp_path)["train"]["0"], {"vessel": SQUARE | OTHER})


def test_several_segmentations_of_one_picture_are_joined_unless_they_draw_one_class(tmp_path):
    pictures = write_slices(tmp_path, SQUARE[None, ..., None], labels=("vessel",))
    write_slices(tmp_path, OTHER[None, ..., None], labels=("catheter",), name="z.dcm", pictures=pictures)
    assert same(read(find_dicom_seg, tmp_path)["train"]["0"], {"vessel": SQUARE, "catheter": OTHER})
    write_slices(tmp_path, RIM[None, ..., None], labels=("vessel",), name="zz.dcm", pictures=pictures)
    assert f"{tmp_path / 'zz.dcm'}: draws 'vessel' on 0.dcm, as does {tmp_path / 'seg.dcm'}: keep one" in faults(
        tmp_path
    )


def test_splits_are_folders_and_segmentations_may_lie_anywhere(tmp_path):
    (tmp_path / "segmentations").mkdir()
    for split in ("train", "val"):
        (tmp_path / split / "deep").mkdir(parents=True)
        pictures = write_series(tmp_path / split / "deep", [f"{split}.dcm"], is_placed=True)
        labels = ("vessel",) if split == "train" else ("catheter",)
        write_slices(tmp_path / "segmentations", SQUARE[None, ..., None], labels=labels, name=split, pictures=pictures)
    found = find_sources(tmp_path, Reading())
    assert list(found) == ["train", "validation"]
    assert [entry.name for source in found.values() for entry in source.entries] == [
        "train/deep/train.png",
        "val/deep/val.png",
    ]
    assert {source.labels for source in found.values()} == {("vessel", "catheter")}  # of both: files train and val
    write_slices(tmp_path, SQUARE[None, ..., None], labels=("vessel",))
    with pytest.raises(DatasetError, match=r"holds pictures in train, val and beside those, the first .*0\.dcm"):
        find_sources(tmp_path, Reading())


def write_split_series(folder):
    """`train/` with a segmentation of its own, `val/` with one in `seg/` beside it."""
    for split, place in (("train", "train"), ("val", "seg")):
        for own in (split, place):
            (folder / own).mkdir(exist_ok=True)
        pictures = write_series(folder / split, ["IM"], is_placed=True)
        write_slices(
            folder / place, SQUARE[None, ..., None], labels=("vessel",), name=f"{split}.dcm", pictures=pictures
        )


def test_a_segmentation_beside_splits_counts_also_where_a_split_has_its_own(tmp_path):
    write_split_series(tmp_path)
    for found in (find_sources(tmp_path, Reading()), load_dataset_dict(str(tmp_path))):
        assert list(found) == ["train", "validation"]
    found = find_sources(tmp_path, Reading())
    assert all(source.annotated and [len(one.objects) for one in source.entries] == [1] for source in found.values())
    (tmp_path / "seg" / "val.dcm").unlink()
    with pytest.raises(DatasetError, match="is read as dicom_seg, which leaves out val/, and that is clips"):
        find_sources(tmp_path, Reading())


def test_a_segmentation_beside_splits_of_several_formats_is_named(tmp_path, caplog):
    write_split_series(tmp_path)
    np.save(tmp_path / "val" / "run.npy", np.zeros((2, *SHAPE), np.uint8))
    found = find_sources(tmp_path, Reading())
    assert {split: source.annotated for split, source in found.items()} == {"train": True, "validation": False}
    assert "left out, each a dataset that can be named by itself: seg." in caplog.text
    assert "no annotations in validation, while other splits have some" in caplog.text


def test_a_picture_that_names_a_segmentation_is_none(tmp_path):
    study = pydicom.Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = SegmentationStorage, generate_uid()
    path = write_run(tmp_path / "run", ReferencedImageSequence=pydicom.Sequence([study]))
    assert SegmentationStorage.encode() in path.read_bytes()[:1024]
    assert not is_segmentation(path) and is_clips(tmp_path) and not is_dicom_seg(tmp_path)
    write_marked(tmp_path)
    assert is_segmentation(tmp_path / "seg.dcm")
    assert len(read(find_dicom_seg, tmp_path)["train"]) == 4


def test_what_is_left_out_is_named(tmp_path, caplog):
    write_marked(tmp_path)
    write_run(tmp_path / "other", seed=9)
    write_run(tmp_path / "capture", kind="1.2.840.10008.5.1.4.1.1.7.2")
    Image.new("L", SIZE).save(tmp_path / "mask.png")
    assert len(read(find_dicom_seg, tmp_path)["train"]) == 4
    for text in (
        "no segmentation speaks of: other",
        "capture (is a secondary capture)",
        "of a kind that is read: mask",
    ):
        assert text in caplog.text


def test_a_secondary_capture_is_read_where_it_is_asked_for(tmp_path):
    write_run(tmp_path / "run", kind="1.2.840.10008.5.1.4.1.1.7.2")
    write_marked(tmp_path)
    assert len(read(find_dicom_seg, tmp_path, secondary_captures=True)["train"]) == 4
    assert "draws on 1 pictures that are not there, or are no pictures" in faults(tmp_path)


def test_folders_without_segmentations_are_clips(tmp_path):
    write_run(tmp_path / "run")
    assert is_clips(tmp_path) and not is_dicom_seg(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be used
# ---------------------------------------------------------------------------------------------------------------------


def per_frame(function):
    """A change of the description of the second frame."""
    return lambda seg: function(seg.PerFrameFunctionalGroupsSequence[1])


def doubled(group):
    sources(group).append(sources(group)[0])


def spread(group):
    sources(group)[0].ReferencedFrameNumber = [1, 2]


def set_source(**elements):
    def change(group):
        for name, value in elements.items():
            setattr(sources(group)[0], name, value)

    return per_frame(change)


def set_own(**elements):
    def change(seg):
        for name, value in elements.items():
            setattr(seg, name, value)

    return change


def same_place(seg):
    second, third = seg.PerFrameFunctionalGroupsSequence[1:]
    sources(second)[0].ReferencedFrameNumber = 1
    second.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
    del third


def overlap(seg):
    seg.PixelData = b"\xff" * len(seg.PixelData)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_source(ReferencedSOPInstanceUID="1.2.3"), "draws on 1 pictures that are not there"),
        (set_source(ReferencedFrameNumber=6), "its frame 2 lies on frame 6 of run, which has 5"),
        (set_source(ReferencedFrameNumber=0), "its frame 2 names the frame 0 of a picture; they count from 1"),
        (set_source(ReferencedFrameNumber=None), "its frame 2 does not say which frame of run it lies on"),
        (set_source(SpatialLocationsPreserved="NO"), "its frame 2 does not lie on its picture as it is"),
        (set_source(ReferencedSOPInstanceUID=None), "its frame 2 names a picture without its SOPInstanceUID"),
        (per_frame(doubled), "its frame 2 names 2 pictures that it is made of"),
        (per_frame(spread), "its frame 2 is made of 2 frames of a picture"),
        (per_frame(lambda group: group.pop("DerivationImageSequence")), "its frame 2 names no pictures"),
        (per_frame(lambda group: group.pop("SegmentIdentificationSequence")), "its frame 2 is of the segment None"),
        (lambda seg: seg.SegmentSequence.pop(0), "is of the segment 1, which is not described"),
        (lambda seg: seg.pop("SegmentSequence"), "describes no segment"),
        (
            lambda seg: seg.SegmentSequence[0].pop("SegmentLabel"),
            "its segment 1 has no SegmentNumber or no SegmentLabel",
        ),
        (lambda seg: setattr(seg.SegmentSequence[0], "SegmentNumber", 2), "has two segments of the number 2"),
        (lambda seg: seg.PerFrameFunctionalGroupsSequence.pop(), "has 3 frames, and describes 2"),
        (set_own(SegmentationType="SURFACE"), "its SegmentationType is 'SURFACE'"),
        (set_own(SegmentationType="LABELMAP"), "its SegmentationType is 'LABELMAP'"),
        (set_own(Rows=12), "is 21 x 12 (width x height), its picture run 21 x 13"),
        (set_own(Rows=15000, Columns=15000), "is too large"),
        (set_own(NumberOfFrames=4), "is cut off, or its header is wrong"),
        (set_own(BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=bytes(820)), "is BINARY with 1 values of 8 bits"),
        (same_place, "is the second of the segment 1 on this picture"),
        (overlap, "states that its segments do not overlap"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file(tmp_path, change, reason):
    file = write_marked(tmp_path, change=change)
    found = faults(tmp_path)
    assert f"{file}: " in found and reason in found


def test_all_bad_files_are_named_at_once(tmp_path):
    write_marked(tmp_path, "a.dcm", change=set_own(Rows=12))
    write_marked(tmp_path, "b.dcm", change=lambda seg: seg.pop("SegmentSequence"))
    file = write_marked(tmp_path, "c.dcm")
    file.write_bytes(file.read_bytes()[:-40])
    (tmp_path / "again").write_bytes((tmp_path / "run").read_bytes())
    found = faults(tmp_path)
    assert all(f"{tmp_path / name}: " in found for name in ("a.dcm", "b.dcm", "c.dcm")) and "keep one" in found


def test_numbers_that_a_labelmap_does_not_describe_are_refused(tmp_path):
    write_slices(tmp_path, np.stack([SQUARE, OTHER], axis=-1)[None], "LABELMAP")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    seg.SegmentSequence.pop()
    seg.save_as(tmp_path / "seg.dcm")
    assert "its frame 1 holds 2, which is the number of no segment" in faults(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder for each type; its segmentation is written anew each time."""
    found = {}
    masks = np.stack([SQUARE, OTHER], axis=-1)[None]
    for kind in ("BINARY", "LABELMAP", "FRACTIONAL", "run"):
        folder = tmp_path_factory.mktemp(kind)
        if kind == "run":
            write_marked(folder)
        else:
            write_slices(folder, masks.astype(float) if kind == "FRACTIONAL" else masks, kind)
        found[kind] = folder, (folder / "seg.dcm").read_bytes()
    return found


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL", "run"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_files_that_are_cut_off_or_have_turned_bits(written, kind, seed):
    folder, content = written[kind]
    (folder / "seg.dcm").write_bytes(damaged(content, random.Random(seed)))
    reading = Reading(mask_threshold=0.5 if kind == "FRACTIONAL" else None)
    try:
        (rows,) = (rows_of(source, reading) for source in find_dicom_seg(folder, reading).values())
    except DatasetError as error:
        assert str(folder) in str(error) and len(str(error)) > len(str(folder)) + 10
        return
    for row in rows:
        assert row["image"].size == SIZE and len(row["masks"]) == len(row["phrases"]) > 0
        assert all(mask.size == SIZE and {*np.unique(mask)} <= {0, 255} for mask in row["masks"])
