"""DICOM segmentations as other readers see them, and as the package's own does."""

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from highdicom.seg import segread
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import generate_uid
from segmentations import SIZE, greys, write_run, write_series

from sa2va_trl import __version__
from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.dicom_seg import _CODES, _OTHER, check_dicom, property_of, write_dicom_seg
from sa2va_trl.data.export.folder import Images
from sa2va_trl.data.loading import find_sources
from sa2va_trl.data.readers.entries import Reading
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.clips import Picture, read_pictures
from sa2va_trl.media.frames import count_frames, frame_of


LABELS = ("vessel", "Führungsdraht 导丝")
KINDS = {
    "run": lambda folder: [write_run(folder / "IM0001")],
    "series": lambda folder: write_series(folder, [f"{number}.dcm" for number in range(5)]),
    "slices": lambda folder: write_series(folder, [f"{number}.dcm" for number in range(5)], is_placed=True),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder of five pictures of each kind."""
    found = {}
    for kind, write in KINDS.items():
        found[kind] = tmp_path_factory.mktemp(kind)
        write(found[kind])
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A new folder for each example of hypothesis."""
    return lambda: tmp_path_factory.mktemp("export")


def export(source, folder, objects):
    """`objects`: of each picture in the order of their names, or `None` of one that nobody has looked at."""
    images, kept = [], Images(folder, "dicom_seg")
    for picture, own in zip(read_pictures(source), objects, strict=True):
        if own is not None:
            images.append(Annotated(kept.keep(picture), picture.image.size, tuple(own), picture.frame))
    write_dicom_seg(folder, iter(images))
    return sorted((folder / "segmentations").iterdir())


def entries(folder, **reading):
    source = find_sources(folder, Reading(**reading))["train"]
    assert not source.problems
    return source.entries


def drawn(entry):
    return {one.label: one.draw(SIZE) for one in entry.objects}


def highdicoms(file, kept, number):
    """What highdicom reads of a picture: a mask a class. `kept` are the pictures of the export."""
    seg = segread(file)
    labels = {seg.get_segment_description(own).segment_label: own for own in seg.segment_numbers}
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in kept]
    if len(headers) == 1:
        get = {"source_sop_instance_uid": headers[0].SOPInstanceUID, "source_frame_numbers": [number + 1]}
        found = seg.get_pixels_by_source_frame(**get, assert_missing_frames_are_empty=True)
    else:
        get = {"source_sop_instance_uids": [headers[number].SOPInstanceUID]}
        found = seg.get_pixels_by_source_instance(**get, assert_missing_frames_are_empty=True)
    return {label: found[0, ..., list(labels).index(label)].astype(bool) for label in labels}


def pydicoms(file, kept, number):
    """The same, of pydicom alone."""
    seg = pydicom.dcmread(file)
    values = seg.pixel_array.reshape(-1, *SIZE[::-1])
    labels = {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence}
    found = {label: np.zeros(SIZE[::-1], dtype=bool) for label in labels.values()}
    own = pydicom.dcmread(kept[0 if len(kept) == 1 else number], stop_before_pixels=True).SOPInstanceUID
    for group, mask in zip(seg.PerFrameFunctionalGroupsSequence, values, strict=True):
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
        is_here = item.ReferencedSOPInstanceUID == own and item.get("ReferencedFrameNumber", number + 1) == number + 1
        if is_here:
            # (highdicom from 0.28 on says what all frames share once.)
            shared = seg.SharedFunctionalGroupsSequence[0]
            said = group if "SegmentIdentificationSequence" in group else shared
            segment = said.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            found[labels[segment]] |= mask.astype(bool)
    return found


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 2**32))
@settings(max_examples=4, deadline=None)
def test_masks_come_back_and_are_the_same_to_others(place, sources, kind, seed):
    random, folder = np.random.default_rng(seed), place()
    masks = random.random((5, 2, *SIZE[::-1])) < random.choice([0, 0.001, 0.5, 1], (5, 2, 1, 1))
    objects = [[Found(label, mask, 0.5) for label, mask in zip(LABELS, own, strict=True)] for own in masks]
    (file,) = export(sources[kind], folder, objects)
    found = entries(folder)
    assert [entry.size for entry in found] == [SIZE] * 5
    kept = sorted((folder / "images").iterdir())
    for number, (entry, own) in enumerate(zip(found, masks, strict=True)):
        expected = {label: mask for label, mask in zip(LABELS, own, strict=True) if mask.any()}
        others = [drawn(entry), highdicoms(file, kept, number), pydicoms(file, kept, number)]
        for read in others:
            read = {label: mask for label, mask in read.items() if mask.any()}
            assert read.keys() == expected.keys()
            assert all(np.array_equal(read[label], mask) for label, mask in expected.items())
    seg = pydicom.dcmread(file)
    described = [item.SegmentLabel for item in seg.SegmentSequence]
    assert described == [label for number, label in enumerate(LABELS) if masks[:, number].any()] or not masks.any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_segmentation_says_of_itself(place, sources, kind):
    folder, mask = place(), np.ones(SIZE[::-1], dtype=bool)
    objects = [[Found("Blood vessel", mask), Found("Blood vessel", ~mask)]] * 2 + [[Found("LAD", mask)]] * 3
    (file,) = export(sources[kind], folder, objects)
    seg = pydicom.dcmread(file)
    assert (seg.SegmentationType, seg.Modality, seg.SegmentsOverlap) == ("BINARY", "SEG", "NO")
    assert seg.PatientID == "ROE-17" and seg.StudyInstanceUID == segread(file).StudyInstanceUID
    assert seg.SpecificCharacterSet == "ISO_IR 192" and "FrameOfReferenceUID" not in seg or kind == "slices"
    first, second = seg.SegmentSequence
    for item in seg.SegmentSequence:
        assert (item.SegmentAlgorithmType, item.SegmentAlgorithmName) == ("AUTOMATIC", "sa2va_trl")
        assert item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == __version__
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Blood Vessel"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeValue == "85756007"
    named = [item.ReferencedSOPInstanceUID for item in seg.SourceImageSequence]
    own = [item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert len(named) == len(set(named)) == (1 if kind == "run" else 5) and named == own
    index = [group.FrameContentSequence[0].DimensionIndexValues for group in seg.PerFrameFunctionalGroupsSequence]
    if kind == "slices":  # by their places in space
        assert sorted(position for _, position in index) == [1, 2, 3, 4, 5]
    else:
        assert index == [[1, 1], [1, 2], [2, 3], [2, 4], [2, 5]]
    assert kind == "slices" or "PlanePositionSequence" not in seg.PerFrameFunctionalGroupsSequence[0]


def test_overlapping_segments_are_said_to_overlap(place, sources):
    mask = np.eye(*SIZE[::-1], dtype=bool)
    for kind in ("run", "slices"):
        (file,) = export(sources[kind], place(), [[Found("a", mask), Found("b", mask)]] * 5)
        assert pydicom.dcmread(file).SegmentsOverlap == "YES"


def test_frames_that_nobody_has_looked_at_are_left_out_and_not_empty(place, sources):
    mask = np.eye(*SIZE[::-1], dtype=bool)
    folder = place()
    (file,) = export(sources["run"], folder, [None, [Found("vessel", mask)], None, [], [Found("vessel", ~mask)]])
    found = entries(folder)
    assert [entry.frame for entry in found] == [1, 3, 4] and found[1].objects == ()
    assert pydicom.dcmread(file).SourceImageSequence[0].ReferencedFrameNumber == [2, 4, 5]
    folder = place()
    export(sources["series"], folder, [None, [Found("vessel", mask)], None, [], []])
    assert [len(entry.objects) for entry in entries(folder)] == [1, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_which_nothing_is_stays_one(place, sources, kind):
    folder, nothing = place(), np.zeros(SIZE[::-1], dtype=bool)
    (file,) = export(sources[kind], folder, [[Found("vessel", nothing)], *([[]] * 4)])
    source = find_sources(folder, Reading())["train"]
    assert source.labels == ("vessel",) and [entry.objects for entry in source.entries] == [()] * 5
    assert pydicom.dcmread(file).NumberOfFrames == (5 if kind == "slices" else 1)


def test_without_any_class_there_is_no_segmentation_and_the_log_says_so(place, sources, caplog):
    assert export(sources["run"], place(), [[]] * 5) == []
    assert "no segmentation, since there is no class" in caplog.text


def test_several_runs_and_series_are_apart(place, tmp_path):
    write_run(tmp_path / "IM1", seed=1)
    write_run(tmp_path / "IM2", frames=2, seed=2)
    write_series(tmp_path, ["a.dcm", "b.dcm"])
    folder = place()
    masks = [np.random.default_rng(number).random(SIZE[::-1]) > 0.5 for number in range(9)]
    files = export(tmp_path, folder, [[Found("vessel", mask)] for mask in masks])
    assert [file.name for file in files] == ["IM1.dcm", "IM2.dcm", "a.dcm"]
    assert all(np.array_equal(drawn(one)["vessel"], mask) for one, mask in zip(entries(folder), masks, strict=True))


def test_files_of_one_name_stay_apart(place, tmp_path):
    """Also of one size and time: the masks of one patient are not on the pictures of another."""
    folder, masks = place(), np.zeros((3, *SIZE[::-1]), dtype=bool)
    kept, images = Images(folder, "dicom_seg"), []
    for number, mask in enumerate(masks):
        mask[number] = True
        (tmp_path / str(number)).mkdir()
        uids = {"SOPInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.3.{number}"}
        path = write_run(tmp_path / str(number) / "IM1", 1, number, PatientID=str(number) * 3, **uids)
        header = pydicom.dcmread(path)
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.save_as(path)
        os.utime(path, (1, 1))
        (picture,) = read_pictures(path)
        images.append(Annotated(kept.keep(picture), SIZE, (Found("vessel", mask),)))
        assert kept.keep(picture) == images[-1].image
    assert len({path.stat().st_size for path in tmp_path.glob("*/IM1")}) == 1
    assert [image.image for image in images] == ["images/IM1", "images/IM1-2", "images/IM1-3"]
    write_dicom_seg(folder, images)
    found = entries(folder)
    assert [entry.facts["patient_id"] for entry in found] == ["000", "111", "222"]
    assert all(np.array_equal(drawn(own)["vessel"], mask) for own, mask in zip(found, masks, strict=True))
    for number, image in enumerate(images):
        assert (folder / image.image).read_bytes() == (tmp_path / str(number) / "IM1").read_bytes()


def test_three_hundred_files_of_one_name(place, tmp_path):
    kept, file, image = Images(place(), "dicom_seg"), tmp_path / "IM0001", Image.new("RGB", SIZE)
    names = []
    for number in range(300):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / file.name).write_text(str(number))
        names.append(kept.keep(Picture("IM0001", tmp_path / str(number) / file.name, None, image)))
    assert names == ["images/IM0001", *(f"images/IM0001-{number}" for number in range(2, 301))]
    assert [(kept.folder / name).read_text() for name in names] == [str(number) for number in range(300)]


def test_two_pictures_of_one_uid_are_refused_rather_than_mixed_up(place, tmp_path):
    folder, path = place(), write_run(tmp_path / "IM1", frames=1)
    (folder / "images").mkdir()
    for name in ("a", "b"):
        shutil.copyfile(path, folder / "images" / name)
    with pytest.raises(DatasetError, match=r"images/b has the SOPInstanceUID of images/a: leave one out"):
        write_dicom_seg(folder, [Annotated(f"images/{name}", SIZE, ()) for name in ("a", "b")])


@pytest.mark.parametrize(
    ("charset", "name"), [("GB18030", "王^小东"), ("ISO_IR 100", "Müller^Jörg"), (None, "Roe^Jane")]
)
def test_the_patient_is_that_of_the_source_in_any_encoding(place, tmp_path, charset, name):
    other = pydicom.Dataset()
    other.PatientID, other.IssuerOfPatientID = "17", name
    facts = {"PatientName": name, "SpecificCharacterSet": charset, "PatientSex": "F", "PatientBirthDate": "19500102"}
    facts |= {"OtherPatientIDsSequence": [other], "AccessionNumber": "A1", "StudyDescription": name}
    path = write_run(tmp_path / "IM1", frames=2, **facts)
    (file,) = export(tmp_path, place(), [[Found("vessel", np.eye(*SIZE[::-1], dtype=bool))]] * 2)
    seg, source = pydicom.dcmread(file), pydicom.dcmread(path)
    assert seg.OtherPatientIDsSequence[0].IssuerOfPatientID == name
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientSex",
        "PatientBirthDate",
        "AccessionNumber",
        "StudyDescription",
    ):
        assert seg[keyword].value == source[keyword].value != ""
    assert seg.StudyInstanceUID == source.StudyInstanceUID and seg.SeriesInstanceUID != source.SeriesInstanceUID


def test_classes_that_dicom_cannot_hold_are_shortened(place, sources, caplog):
    mask = np.eye(*SIZE[::-1], dtype=bool)
    long = "the long " * 12
    objects = [Found(f"{long}{number}", mask) for number in range(3)] + [Found("a\\b", ~mask)]
    folder = place()
    (file,) = export(sources["run"], folder, [objects] * 5)
    described = pydicom.dcmread(file).SegmentSequence
    labels = [item.SegmentLabel for item in described]
    assert len(set(labels)) == 4 and max(map(len, labels)) <= 64 and labels[-1] == "a/b"
    assert [item.SegmentDescription for item in described] == [own.label for own in objects]
    assert caplog.text.count("is called") == 4
    assert np.array_equal(drawn(entries(folder)[0])["a/b"], ~mask)


def test_codes_are_of_the_dictionary():
    from pydicom.sr.codedict import codes

    for category, kind in (*(own for _, own in _CODES), _OTHER):
        assert getattr(codes.SCT, category).scheme_designator == getattr(codes.SCT, kind).scheme_designator == "SCT"
    assert property_of("Blood_Vessel") == ("AnatomicalStructure", "BloodVessel")
    assert property_of("revessel") == ("Tissue", "Tissue")


# ---------------------------------------------------------------------------------------------------------------------
# What is refused before anything is predicted
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_dicom_pictures_can_be_exported(sources, kind):
    check_dicom(sorted(sources[kind].iterdir()))


def test_odd_headers_can_be_exported(tmp_path):
    files = [
        write_dicom(
            tmp_path / "capture", greys(3), bits=8, kind="1.2.840.10008.5.1.4.1.1.7.2", StudyInstanceUID="1.2"
        ),
        write_dicom(tmp_path / "unknown", greys(3), bits=8, kind="1.2.3.4.5", StudyInstanceUID="1.2"),
        write_run(tmp_path / "odd", PatientSex="W", StudyTime="14:04:38", SeriesNumber=-3, PixelSpacing=[0.2, 0.2]),
    ]
    check_dicom(files)


OWN = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm", "ExplVR_BigEnd.dcm"])
def test_files_of_pydicom(place, name):
    folder, random = place(), np.random.default_rng(0)
    (folder / "images").mkdir()
    file = shutil.copy(OWN / name, folder / "images")
    check_dicom([Path(file)])
    count, size = count_frames(file), frame_of(file, 0).size
    masks = [random.random(size[::-1]) < 0.5 for _ in range(count)]
    frames = range(count) if count > 1 else [None]
    found = ((Found("vessel", mask),) for mask in masks)
    images = [Annotated(f"images/{name}", size, own, frame) for own, frame in zip(found, frames, strict=True)]
    write_dicom_seg(folder, images)
    found = find_sources(folder, Reading(secondary_captures=True))["train"].entries
    assert [entry.objects[0].draw(size).tobytes() for entry in found] == [mask.tobytes() for mask in masks]


def test_what_cannot_be_exported_is_named_all_at_once(tmp_path):
    Image.new("L", SIZE).save(tmp_path / "a.png")
    stub = write_run(tmp_path / "stub")
    content = pydicom.dcmread(stub)
    del content.PixelData
    content.save_as(stub)
    first = write_run(tmp_path / "first")
    (tmp_path / "again").write_bytes(first.read_bytes())
    files = [
        tmp_path / "a.png",
        tmp_path / "synthetic",
        write_dicom(tmp_path / "study", greys(), bits=8),
        stub,
        first,
        tmp_path / "again",
        write_run(tmp_path / "rows", Rows=0),
        *write_series(tmp_path, ["slice.dcm"], is_placed=True, ImageOrientationPatient=None),
    ]
    with pytest.raises(DatasetError) as caught:
        check_dicom(files)
    reasons = [str(problem) for problem in caught.value.problems]
    assert "7 of 8 files cannot be exported as dicom_seg" in str(caught.value) and len(reasons) == 7
    for name, reason in (
        ("a.png", "is no DICOM file"),
        ("synthetic", "is no file"),
        ("study", "does not state StudyInstanceUID"),
        ("stub", "has no pixels"),
        ("rows", "cannot be read: it states 21 x 0 pixels"),
        ("again", "has the SOPInstanceUID of another file"),
        ("slice.dcm", "no DICOM segmentation can be made of it"),
    ):
        assert any(f"/{name}: " in one and reason in one for one in reasons), (name, reasons)


def test_a_foreign_place_is_not_asked_for(place, tmp_path):
    """A frame of reference alone, without a position, is kept."""
    uid = generate_uid()
    write_run(tmp_path / "IM1", FrameOfReferenceUID=uid)
    (file,) = export(tmp_path, place(), [[Found("vessel", np.eye(*SIZE[::-1], dtype=bool))]] * 5)
    assert pydicom.dcmread(file).FrameOfReferenceUID == uid
