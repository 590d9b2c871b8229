import io
import json
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import CT, XA, dicom, ramp, table, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_windowing

from sa2va_trl.errors import DatasetError
from sa2va_trl.media import dicom as module
from sa2va_trl.media.dicom import count_dicom, dicom_facts, dicom_frames, dicom_people, no_picture
from sa2va_trl.media.frames import frames_of


OWN = Path(pydicom.__file__).parent / "data" / "test_files"
UID = pydicom.uid


def read(path, **options):
    return [np.asarray(frame) for frame in dicom_frames(path, **options)]


def shown(tmp_path, values, **elements):
    return read(write_dicom(tmp_path / "run.dcm", values, **elements))


def grey(share):
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# From stored values to grey
# ---------------------------------------------------------------------------------------------------------------------


def test_reference_files_are_what_their_truth_says(shared):
    folder = shared / "data" / "formats"
    truth = json.loads((folder / "truth.json").read_text())["files"]
    cases = {name: case for name, case in truth.items() if name.startswith("dicom/")}
    assert len(cases) == 8
    for name, case in cases.items():
        if case["frames"] == 0:
            assert no_picture(folder / name) in ("has no pixels", "is a secondary capture")
            continue
        frames = read(folder / name)
        assert len(frames) == count_dicom(folder / name) == case["frames"] and no_picture(folder / name) is None
        for place, value in case["pixels"].items():
            assert abs(float(frames[0][tuple(map(int, place.split(",")))]) - value) <= case["tolerance"], (name, place)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(1000, 700), (2048.5, 4096), (100, 1), (-50, 900)])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_a_window_is_that_of_the_standard_and_comes_before_the_inversion(
    tmp_path, function, centre, width, photometric
):
    values = ramp()
    elements = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    (found,) = shown(tmp_path, values, photometric=photometric, **elements)
    # pydicom gives 0 to 4095 of 12 bits
    expected = grey(apply_windowing(values[0], dicom(values, **elements)) / 4095)
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    np.testing.assert_allclose(found.astype(int), expected, atol=1)
    assert len(np.unique(found)) > 1


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_without_a_window_the_stored_bits_are_shown_of_every_frame(tmp_path, bits, signed):
    values = ramp(3, bits=bits, signed=signed)
    frames = shown(tmp_path, values, bits=bits)
    low = -(2 ** (bits - 1)) if signed else 0
    for frame, own in zip(frames, values, strict=True):
        np.testing.assert_array_equal(frame, grey((own.astype(float) - low) / (2**bits - 1)))
    assert frames[0].max() == 255 and frames[2].max() < 255 or signed


def test_bits_above_the_stored_ones_are_no_part_of_a_value(tmp_path):
    values = ramp()
    expected = shown(tmp_path, values)
    np.testing.assert_array_equal(shown(tmp_path, values | 0xA000), expected)


@pytest.mark.parametrize(("slope", "intercept"), [(-1, 4095), (-2, 0), (0.5, -1000)])
def test_a_negative_slope_turns_grey_round(tmp_path, slope, intercept):
    values = ramp()
    (found,) = shown(tmp_path, values, kind=CT, RescaleSlope=slope, RescaleIntercept=intercept)
    share = values[0] / 4095
    np.testing.assert_allclose(found.astype(int), grey(1 - share if slope < 0 else share), atol=1)
    # A window is of the values after it.
    window = {
        "WindowCenter": slope * 1000 + intercept,
        "WindowWidth": abs(slope) * 600,
        "VOILUTFunction": "LINEAR_EXACT",
    }
    (found,) = shown(tmp_path, values, kind=CT, RescaleSlope=slope, RescaleIntercept=intercept, **window)
    share = (values[0] - 1000.0) / 600 + 0.5
    np.testing.assert_allclose(found.astype(int), grey(1 - share if slope < 0 else share), atol=1)


@pytest.mark.parametrize("kind", [XA, "1.2.840.10008.5.1.4.1.1.12.2", "1.2.840.10008.5.1.4.1.1.12.1.1", CT])
def test_a_modality_lut_is_not_for_showing_x_ray_angiography(tmp_path, kind):
    values = ramp()
    lut = table([65535 - 16 * value for value in range(4096)], 0, ModalityLUTType="US")
    (found,) = shown(tmp_path, values, kind=kind, ModalityLUTSequence=lut)
    (plain,) = shown(tmp_path, values, kind=kind)
    expected = 255 - plain.astype(int) if kind == CT else plain
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


def test_of_several_windows_the_first_is_taken_and_the_log_says_so_once(tmp_path, caplog):
    values = ramp(2)
    (one, _) = shown(tmp_path, values, WindowCenter=1000, WindowWidth=500)
    path = write_dicom(tmp_path / "two.dcm", values, WindowCenter=[1000, 3000], WindowWidth=[500, 10])
    with caplog.at_level(logging.WARNING):
        (found, _), _ = read(path), read(path)
    np.testing.assert_array_equal(found, one)
    assert [record.message for record in caplog.records] == [
        f"{path} has 2 windows: the first, centre 1000 and width 500, is used."
    ]


@pytest.mark.parametrize("width", [0, -5])
def test_a_window_without_width_is_none(tmp_path, width, caplog):
    path = write_dicom(tmp_path / f"none{width}.dcm", ramp(), WindowCenter=1000, WindowWidth=width)
    with caplog.at_level(logging.WARNING):
        (found,) = read(path)
    np.testing.assert_array_equal(found, shown(tmp_path, ramp())[0])
    assert "which is none: all stored values are shown" in caplog.text


@pytest.mark.parametrize(("bits", "packed"), [(8, True), (8, False), (12, False), (16, False)])
def test_a_voi_lut_is_looked_up(tmp_path, bits, packed):
    values, top = ramp(), 2**bits - 1
    lut = table(np.rint(np.linspace(top, 0, 1000)), 1500, bits, packed)
    (found,) = shown(tmp_path, values, VOILUTSequence=lut, WindowCenter=1, WindowWidth=2)
    share = 1 - (np.clip(values[0].astype(float), 1500, 2499) - 1500) / 999
    np.testing.assert_allclose(found.astype(int), grey(share), atol=1)


def test_frames_of_an_enhanced_object_have_windows_of_their_own(tmp_path):
    def group(centre):
        window, item = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = centre, 500
        item.FrameVOILUTSequence = [window]
        return item

    values = np.concatenate([ramp(), ramp()])
    kind = "1.2.840.10008.5.1.4.1.1.12.1.1"
    groups = [group(1000), group(3000)]
    first, second = shown(tmp_path, values, kind=kind, PerFrameFunctionalGroupsSequence=groups)
    np.testing.assert_array_equal(first, shown(tmp_path, ramp(), WindowCenter=1000, WindowWidth=500)[0])
    np.testing.assert_array_equal(second, shown(tmp_path, ramp(), WindowCenter=3000, WindowWidth=500)[0])
    both = shown(tmp_path, values, kind=kind, SharedFunctionalGroupsSequence=[group(1000)])
    np.testing.assert_array_equal(both[1], first)


def test_a_subtraction_mask_is_not_applied(tmp_path):
    item = pydicom.Dataset()
    item.MaskOperation, item.MaskFrameNumbers = "AVG_SUB", [1]
    for found, expected in zip(
        shown(tmp_path, ramp(3), MaskSubtractionSequence=[item]), shown(tmp_path, ramp(3)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_colours_are_rgb_whatever_they_are_stored_as(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), dtype=np.uint8)
    for found, own in zip(shown(tmp_path, colours, bits=8, photometric="RGB"), colours, strict=True):
        np.testing.assert_array_equal(found, own)
    deep = colours.astype(np.uint16) * 257
    for found, own in zip(shown(tmp_path, deep, bits=16, photometric="RGB"), colours, strict=True):
        np.testing.assert_array_equal(found, own)


def test_palettes_are_looked_up(tmp_path):
    palette = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, scale in (("Red", 1), ("Green", 2), ("Blue", 3))
        for part, value in (
            ("Descriptor", [256, 0, 16]),
            ("Data", (np.arange(256) * scale % 256 * 257).astype("<u2").tobytes()),
        )
    }
    values = ramp(bits=8).astype(np.uint8)
    (found,) = shown(tmp_path, values, bits=8, photometric="PALETTE COLOR", **palette)
    np.testing.assert_array_equal(found, np.stack([values[0] * np.uint8(k) for k in (1, 2, 3)], -1))


# ---------------------------------------------------------------------------------------------------------------------
# Transfer syntaxes
# ---------------------------------------------------------------------------------------------------------------------


def as_syntax(dataset, syntax):
    buffer = io.BytesIO()
    if syntax.is_compressed and syntax != UID.DeflatedExplicitVRLittleEndian:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    big = syntax == UID.ExplicitVRBigEndian
    if big:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    pydicom.dcmwrite(
        buffer, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=not big, enforce_file_format=True
    )
    return buffer.getvalue()


LOSSLESS = [
    *(UID.ImplicitVRLittleEndian, UID.ExplicitVRBigEndian, UID.DeflatedExplicitVRLittleEndian),
    *(UID.RLELossless, UID.JPEG2000Lossless),
]


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
def test_every_transfer_syntax_gives_the_same_picture(tmp_path, syntax):
    values, window = ramp(3, (40, 36)), {"WindowCenter": 1500, "WindowWidth": 2000}
    expected = shown(tmp_path, values, **window)
    path = tmp_path / "run"
    path.write_bytes(as_syntax(dicom(values, **window), syntax))
    found = read(path)
    assert len(found) == count_dicom(path) == 3
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)
    np.testing.assert_array_equal(read(path, start=2)[0], expected[2])


@pytest.mark.parametrize(
    ("plain", "others"),
    [
        ("MR_small.dcm", ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless"]),
        ("MR_small.dcm", ["MR_small_expb", "MR_small_jpeg_ls_lossless", "MR_small_padded"]),
        ("SC_rgb_rle.dcm", ["SC_rgb_jpeg_gdcm", "SC_rgb_gdcm_KY", "SC_rgb_rle_16bit"]),
    ],
)
def test_pydicoms_own_files_of_one_picture_are_one_picture(plain, others):
    expected = read(OWN / plain)
    for name in others:
        np.testing.assert_array_equal(read(OWN / f"{name}.dcm"), expected, err_msg=name)


@pytest.mark.parametrize("name", ["+eb+cr", "+eb+cy+n1", "+eb+cy+np", "+eb+cy+s2"])
def test_pydicoms_lossy_files_have_the_same_colours(name):
    (expected,), (found,) = read(OWN / "SC_rgb_rle.dcm"), read(OWN / f"SC_rgb_dcmtk_{name}.dcm")
    inside = np.s_[5::10]  # bars of one colour
    np.testing.assert_allclose(found[inside].astype(int), expected[inside].astype(int), atol=6)


def test_pydicoms_own_clips_are_read_frame_by_frame():
    path = OWN / "examples_ybr_color.dcm"
    assert count_dicom(path) == 30
    found = np.asarray(next(dicom_frames(path, start=7)))
    np.testing.assert_allclose(found.astype(int), pydicom.pixels.pixel_array(path, index=7).astype(int), atol=4)
    assert len(read(OWN / "SC_rgb_rle_2frame.dcm")) == 2


def test_a_syntax_without_a_decoder_names_the_package(monkeypatch):
    from pydicom.pixels.decoders.base import Decoder

    needs = ["pylibjpeg - requires pylibjpeg>=2.0 and pylibjpeg-libjpeg>=2.1"]
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    monkeypatch.setattr(Decoder, "missing_dependencies", property(lambda self: needs))
    with pytest.raises(DatasetError, match=r"JPEG Lossless.*pip install 'sa2va_trl\[dicom\]' .*pylibjpeg-libjpeg>=2"):
        read(OWN / "SC_rgb_jpeg_gdcm.dcm")


def test_a_syntax_that_nothing_decodes_is_named(tmp_path):
    dataset = dicom(ramp())
    dataset.PixelData = encapsulate([b"\0\0\1\xb3" * 10])
    dataset.file_meta.TransferSyntaxUID = UID.MPEG2MPML
    dataset.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    with pytest.raises(DatasetError, match=r"film\.dcm .*nothing decodes its transfer syntax \(MPEG2"):
        read(tmp_path / "film.dcm")


def test_files_without_preamble_and_meta_are_read(tmp_path):
    path = tmp_path / "run.dcm"
    with path.open("wb") as file:
        dataset = dicom(ramp(2))
        del dataset.file_meta
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[:4] == b"\x08\x00\x16\x00"  # the SOP class
    for own, other in zip(read(path), shown(tmp_path, ramp(2)), strict=True):
        np.testing.assert_array_equal(own, other)


# ---------------------------------------------------------------------------------------------------------------------
# What is no picture, or not to be trusted
# ---------------------------------------------------------------------------------------------------------------------


def test_what_is_no_picture_is_named(tmp_path):
    stub = dicom(ramp())
    del stub.PixelData
    stub.save_as(tmp_path / "stub.dcm", enforce_file_format=True)
    assert no_picture(tmp_path / "stub.dcm") == "has no pixels"
    with pytest.raises(DatasetError, match=r"stub\.dcm cannot be read: has no pixels"):
        read(tmp_path / "stub.dcm")
    capture = write_dicom(tmp_path / "capture.dcm", ramp(), kind="1.2.840.10008.5.1.4.1.1.7.2")
    assert no_picture(capture) == "is a secondary capture" and len(read(capture)) == 1
    assert no_picture(OWN / "liver_1frame.dcm") == "is a segmentation, not a picture"
    assert no_picture(OWN / "rtdose.dcm") == "is a grid of doses, not a picture"
    assert no_picture(OWN / "test-SR.dcm") == "has no pixels"
    assert no_picture(OWN / "dicomdirtests" / "DICOMDIR") == "is a directory of other files (DICOMDIR)"
    (tmp_path / "text.dcm").write_text("no DICOM at all, but long enough for a header " * 20)
    with pytest.raises(DatasetError, match=r"text\.dcm cannot be read"):
        no_picture(tmp_path / "text.dcm")


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Rows": 65535, "Columns": 65535}, r"too large: 65535 x 65535 pixels, the limit is 100,000,000"),
        ({"NumberOfFrames": 2_000_000_000}, r"is cut off, or its header is wrong: 2000000000 frames of 20 x 12"),
        ({"Rows": 13}, r"take 520 bytes, 480 are there"),
        ({"Rows": 0}, r"states 20 x 0 pixels"),
        ({"BitsStored": 17}, r"17 of 16 bits"),
        ({"HighBit": 15}, r"its highest bit is 15 of 12"),
        ({"PhotometricInterpretation": "CMYK"}, r"photometric interpretation 'CMYK' is not read"),
        ({"VOILUTFunction": "CUBIC", "WindowCenter": 1, "WindowWidth": 2}, r"function 'CUBIC' is not known"),
    ],
)
def test_a_header_that_states_too_much_is_refused_before_anything_is_allocated(tmp_path, elements, message):
    path = write_dicom(tmp_path / "run.dcm", ramp(), **elements)
    with pytest.raises(DatasetError, match=rf"run\.dcm .*{message}"):
        read(path)


def test_the_limit_is_the_callers(tmp_path):
    path = write_dicom(tmp_path / "run.dcm", ramp())
    assert len(read(path, max_pixels=240)) == 1
    with pytest.raises(DatasetError, match="the limit is 239"):
        read(path, max_pixels=239)


def test_compressed_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.dcm"
    data = as_syntax(dicom(ramp(2, (40, 36))), UID.JPEG2000Lossless)
    place = data.index(b"\xff\x4f\xff\x51") + 8
    path.write_bytes(data[:place] + (60000).to_bytes(4, "big") + data[place + 4 :])
    with pytest.raises(DatasetError, match=r"frame 0 is compressed as 60000 x 36 pixels, the header states 40 x 36"):
        read(path)
    dataset = dicom(ramp(2))
    dataset.NumberOfFrames = 10**9
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"] * 2)
    dataset.file_meta.TransferSyntaxUID = UID.JPEGLosslessSV1
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(DatasetError, match="states 1000000000 frames, and has"):
        count_dicom(path)
    monkeypatch.setattr(module, "_MAX_INFLATED", 100_000)
    path.write_bytes(as_syntax(dicom(np.zeros((1, 400, 400), np.uint16)), UID.DeflatedExplicitVRLittleEndian))
    with pytest.raises(DatasetError, match="inflates to more than 100,000 bytes"):
        read(path)


def test_frames_are_decoded_when_they_are_asked_for(tmp_path):
    path = tmp_path / "run.dcm"
    data = as_syntax(dicom(ramp(4, (40, 36))), UID.JPEG2000Lossless)
    place = data.rindex(b"\xff\x4f\xff\x51")
    path.write_bytes(data[: place + 40] + b"\0" * 60 + data[place + 100 :])  # the last frame
    frames = dicom_frames(path)
    for expected in read(write_dicom(tmp_path / "whole", ramp(4, (40, 36))))[:3]:
        np.testing.assert_array_equal(np.asarray(next(frames)), expected)
    with pytest.raises(DatasetError, match=r"run\.dcm"):
        next(frames)


SAMPLES = {
    "native": as_syntax(dicom(ramp(2, (40, 36)), WindowCenter=1000, WindowWidth=500), UID.ExplicitVRLittleEndian),
    "rle": as_syntax(dicom(ramp(2, (40, 36))), UID.RLELossless),
    "j2k": as_syntax(dicom(ramp(2, (40, 36))), UID.JPEG2000Lossless),
    "deflated": as_syntax(dicom(ramp(2, (40, 36))), UID.DeflatedExplicitVRLittleEndian),
    "jpeg": (OWN / "SC_rgb_small_odd_jpeg.dcm").read_bytes(),
}


@pytest.mark.parametrize("kind", SAMPLES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damage_is_one_error_or_a_picture_of_the_stated_size(tmp_path_factory, kind, data):
    content = bytearray(SAMPLES[kind])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    path.write_bytes(content)
    try:
        frames, count = list(frames_of(path)), count_dicom(path)
        dicom_facts(path)
    except DatasetError as error:
        assert "damaged.dcm" in str(error)
        return
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    assert len(frames) == count and {frame.size for frame in frames} == {(header.Columns, header.Rows)}


# ---------------------------------------------------------------------------------------------------------------------
# Facts
# ---------------------------------------------------------------------------------------------------------------------


def test_facts_are_those_of_the_header(tmp_path):
    elements = {
        "FrameTime": 66.5,
        "RepresentativeFrameNumber": 2,
        "PixelSpacing": [0.2, 0.2],
        "ImagerPixelSpacing": [0.3, 0.3],
        "BurnedInAnnotation": "NO",
    }
    path = write_dicom(tmp_path / "run.dcm", ramp(3), **elements)
    assert dicom_facts(path) == {
        "patient_id": "ROE-17",
        "video_id": str(pydicom.dcmread(path).SOPInstanceUID),
        "frame_time_ms": 66.5,
        "pixel_spacing_mm": 0.2,
        "imager_pixel_spacing_mm": 0.3,
        "representative_frame": 1,
        "burned_in_text": "no",
    }


def test_a_file_of_one_frame_is_one_of_its_series(tmp_path):
    path = write_dicom(tmp_path / "run.dcm", ramp(), InstanceNumber=7, BurnedInAnnotation="YES")
    series = str(pydicom.dcmread(path).SeriesInstanceUID)
    expected = {"patient_id": "ROE-17", "video_id": series, "frame_index": 7, "burned_in_text": "yes"}
    assert dicom_facts(path) == expected


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"FrameTimeVector": [0, 40, 60]}, {"frame_time_ms": 50.0}),
        ({"CineRate": 20}, {"frame_time_ms": 50.0}),
        ({"FrameTime": 0, "RecommendedDisplayFrameRate": 10}, {"frame_time_ms": 100.0}),
        ({"PixelSpacing": [0.2, 0.4]}, {}),
        ({"RepresentativeFrameNumber": 9}, {}),
        ({"BurnedInAnnotation": ""}, {}),
        ({"PatientID": ""}, {}),
    ],
)
def test_what_is_not_stated_is_no_fact(tmp_path, elements, expected):
    facts = dicom_facts(write_dicom(tmp_path / "run.dcm", ramp(3), **elements))
    own = {name: value for name, value in facts.items() if name not in ("patient_id", "video_id", "burned_in_text")}
    assert own == expected and facts["burned_in_text"] == "unknown"
    assert ("patient_id" in facts) == ("PatientID" not in elements)


def test_without_an_id_a_patient_is_a_name_and_a_birth_date(tmp_path):
    named = {"PatientID": "", "PatientName": "DOE^JOHN", "PatientBirthDate": "19500101"}
    write_dicom(tmp_path / "a.dcm", ramp(), **named)
    assert dicom_facts(tmp_path / "a.dcm")["patient_id"] == "DOE^JOHN^19500101"
    write_dicom(tmp_path / "b.dcm", ramp(), **{**named, "PatientName": ""})
    assert "patient_id" not in dicom_facts(tmp_path / "b.dcm")


def test_all_names_and_identifiers_of_a_patient_are_given(tmp_path):
    other = pydicom.Dataset()
    other.PatientID = "AX-99"
    named = {"PatientID": "123456", "PatientName": "DOE^JOHN", "OtherPatientNames": ["ROE^JANE", "ROE^J"]}
    more = {"OtherPatientIDsSequence": pydicom.Sequence([other])}
    path = write_dicom(tmp_path / "a.dcm", ramp(), **named, **more)
    assert dicom_people(path) == ("DOE^JOHN", "ROE^JANE", "ROE^J", "123456", "AX-99")
    assert dicom_people(write_dicom(tmp_path / "b.dcm", ramp(), PatientID="", PatientName="")) == ()
