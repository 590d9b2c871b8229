"""DICOM segmentations (SEG objects): one for each file of several frames, and one for each series of single ones."""

import io
import logging
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import BadRow, DatasetError
from ...media.dicom import count_dicom, no_picture, read_header, reading
from ...media.suffixes import kind_of, stem_of
from .annotated import Annotated


if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)
_NAME = "sa2va_trl"
_NEEDED = ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")
# What has to be there, and may be empty (type 2 of the modules of patient and study).
_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
# Of some of them, the only values that highdicom takes; others are left empty.
_TIME = r"\d\d(\d\d(\d\d(\.\d{1,6})?)?)?"
_FORMS = {"PatientSex": "[MFO]", "PatientBirthDate": r"\d{8}", "StudyDate": r"\d{8}", "StudyTime": _TIME}
_LONGEST_LABEL = 64  # of an LO
# The words of a class, and the codes (SNOMED CT) of its category and type, by pydicom's names; the first that fits.
_CODES = (
    (("coronary",), ("AnatomicalStructure", "CoronaryArtery")),
    (("artery", "arteries", "arterial"), ("AnatomicalStructure", "Artery")),
    (("vein", "veins", "venous"), ("AnatomicalStructure", "Vein")),
    (("vessel", "vessels", "vascular"), ("AnatomicalStructure", "BloodVessel")),
    (("diaphragm",), ("AnatomicalStructure", "Diaphragm")),
    (("catheter", "catheters"), ("PhysicalObject", "Catheter")),
    (("guidewire", "wire"), ("PhysicalObject", "GuideWire")),
    (("stent", "stents"), ("PhysicalObject", "Stent")),
    (("stenosis", "stenoses"), ("MorphologicallyAbnormalStructure", "Stenosis")),
)
_OTHER = ("Tissue", "Tissue")


class _Source(NamedTuple):
    """The pictures that one segmentation is made of: a header for each file; its frames in one of several."""

    headers: tuple["Dataset", ...]
    frames: int


def property_of(label: str) -> tuple[str, str]:
    """
    The category and the type of what a class is, for a segment.

    Args:
        label (`str`): the class.

    Returns:
        `tuple[str, str]`: pydicom's names of codes of SNOMED CT; `Tissue` for both where no word of the class is
            known, as 3D Slicer does.

    Example:

    ```python
    >>> from sa2va_trl.data.export.dicom_seg import property_of

    >>> property_of("Left coronary artery"), property_of("guide wire"), property_of("LAD")
    (('AnatomicalStructure', 'CoronaryArtery'), ('PhysicalObject', 'GuideWire'), ('Tissue', 'Tissue'))

    ```
    """
    words = set(label.lower().replace("-", " ").replace("_", " ").split())
    return next((codes for known, codes in _CODES if words & set(known)), _OTHER)


def _version() -> str:
    try:
        return version(_NAME)
    except PackageNotFoundError:  # run from its folder
        return "unknown"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what highdicom and pydicom say of values in the source's own header."""
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    before = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def check_dicom(files: Sequence[Path]) -> None:
    """
    Whether a segmentation can be made of files, before anything is predicted: one without objects is.

    Args:
        files (`list[Path]`): of the pictures.

    Raises:
        `ImportError`: highdicom is not installed.
        `DatasetError`: with every file that is no DICOM picture, or lacks what DICOM demands of a source.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ImportError("DICOM segmentations need highdicom: pip install 'sa2va_trl[dicom]'.") from error
    problems: list[BadRow] = []
    headers: dict[str, Dataset] = {}
    for file in files:
        try:
            if not file.is_file() or kind_of(file) != "dicom":
                what = "DICOM file" if file.is_file() else "file"
                raise DatasetError(f"is no {what}, so that no DICOM segmentation can be made of it")
            header = _header(file)
            if header.SOPInstanceUID in headers:
                raise DatasetError("has the SOPInstanceUID of another file: leave one out")
            headers[header.SOPInstanceUID] = header
        except DatasetError as error:
            problems.append(BadRow(None, None, str(file), str(error)))
    for source in _sources(headers.values()):
        try:
            places = {(str(header.SOPInstanceUID), 0) for header in source.headers}
            with _quiet():
                _segmentation(source, {}, places, ["object"]).save_as(io.BytesIO(), enforce_file_format=True)
        except Exception as error:  # highdicom raises nearly anything for a header that is not as it has to be
            reason = f"no DICOM segmentation can be made of it ({type(error).__name__}: {error})"
            problems.append(BadRow(None, None, source.headers[0].filename, reason))
    if problems:
        raise DatasetError(f"{len(problems)} of {len(files)} files cannot be exported as dicom_seg:", problems)


def _header(file: Path) -> "Dataset":
    """A header with all that is asked of it."""
    reason = no_picture(file)
    if reason and reason != "is a secondary capture":
        raise DatasetError(reason)
    count_dicom(file)  # after all that a header may get wrong
    header = read_header(file)
    if missing := [name for name in _NEEDED if not header.get(name)]:
        raise DatasetError(f"does not state {', '.join(missing)}")
    with reading(file):
        for name in _EMPTY:
            if name not in header:
                setattr(header, name, "")
        for name, form in _FORMS.items():
            if not re.fullmatch(form, str(header.get(name) or "")):
                setattr(header, name, "")
        header.decode()  # what is copied is written in another encoding
    header.filename = str(file)
    return header


def _frames(header: "Dataset") -> int:
    return int(header.get("NumberOfFrames") or 1)


def _sources(headers: Iterable["Dataset"]) -> list[_Source]:
    """What goes into one segmentation each: a file of several frames, or the single ones of a series and size."""
    found: dict[tuple, list[Dataset]] = {}
    for header in headers:
        key = (header.SOPInstanceUID,)
        if _frames(header) == 1:
            space = header.get("FrameOfReferenceUID"), "ImagePositionPatient" in header
            key = (header.StudyInstanceUID, header.SeriesInstanceUID, header.Rows, header.Columns, *space)
        found.setdefault(key, []).append(header)
    return [_Source(tuple(own), _frames(own[0])) for own in found.values()]


def write_dicom_seg(folder: Path, images: Iterable[Annotated]) -> None:
    """
    Write `segmentations/`, which [`~data.readers.dicom_seg.find_dicom_seg`] reads to the same masks, of the pictures
    in `images/`: BINARY, a segment a class, in which objects of one class in a picture are one. Classes that nothing
    is of in a segmentation are left out of it; where nothing is at all, each has one frame that is empty, since there
    is no segmentation without.

    They hold patient and study as the source states them.

    Args:
        folder (`Path`): of the export; the DICOM files lie there.
        images (iterable of [`Annotated`]): taken one at a time. All masks are kept in memory, compressed.

    Raises:
        `DatasetError`: there is an image that [`check_dicom`] refuses, or two with one SOPInstanceUID.
    """
    headers: dict[str, Dataset] = {}
    files: dict[str, str] = {}
    seen: set[tuple[str, int]] = set()
    masks: dict[tuple[str, int], dict[str, bytes]] = {}
    labels: dict[str, None] = {}
    for image in images:
        if image.image not in headers:
            headers[image.image] = header = _header(folder / image.image)
            first = files.setdefault(str(header.SOPInstanceUID), image.image)
            if first != image.image:  # their masks would be on one of them
                raise DatasetError(f"{folder / image.image} has the SOPInstanceUID of {first}: leave one out")
        header = headers[image.image]
        place = (str(header.SOPInstanceUID), image.frame or 0)
        seen.add(place)
        for label, mask, _ in image.objects:
            labels.setdefault(label)
            if mask.any():
                own = masks.setdefault(place, {})
                joined = mask | _unpacked(own[label], mask.shape) if label in own else mask
                own[label] = zlib.compress(np.packbits(joined).tobytes(), 1)
    (folder / "segmentations").mkdir()
    taken: set[str] = set()
    for source in _sources(headers.values()):
        instances = {str(header.SOPInstanceUID) for header in source.headers}
        looked_at = {place for place in seen if place[0] in instances}
        own = {place: masks[place] for place in looked_at if place in masks}
        present = {label for found in own.values() for label in found}
        chosen = [label for label in labels if label in present] or list(labels)
        if not chosen:
            logger.warning("%s: no segmentation, since there is no class.", source.headers[0].filename)
            continue
        name = stem_of(source.headers[0].filename)
        while name in taken:
            name += "_"
        taken.add(name)
        with _quiet():
            made = _segmentation(source, own, looked_at, chosen)
            made.save_as(folder / "segmentations" / f"{name}.dcm", enforce_file_format=True)


def _unpacked(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def _descriptions(labels: Sequence[str]) -> list["Dataset"]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=_NAME, version=_version(), family=codes.DCM.ArtificialIntelligence
    )
    found, taken = [], set()
    for number, label in enumerate(labels, start=1):
        short = label.replace("\\", "/")[:_LONGEST_LABEL].strip()  # of an LO, a backslash ends the value
        while short in taken:
            short = f"{short[: _LONGEST_LABEL - 8]} {number}"
        taken.add(short)
        category, kind = (getattr(codes.SCT, name) for name in property_of(label))
        own = SegmentDescription(number, short, category, kind, "AUTOMATIC", algorithm)
        if short != label:
            own.SegmentDescription = label[:1024]
            logger.warning("The class %r is called %r in DICOM.", label, short)
        found.append(own)
    return found


def _segmentation(
    source: _Source,
    masks: Mapping[tuple[str, int], Mapping[str, bytes]],
    looked_at: set[tuple[str, int]],
    labels: Sequence[str],
) -> "Dataset":
    """The segmentation of a source: masks by (SOPInstanceUID, frame) and class, of the frames that were looked at."""
    from highdicom import UID
    from highdicom.seg import Segmentation
    from highdicom.spatial import get_image_coordinate_system

    header = source.headers[0]
    facts = {
        "segmentation_type": "BINARY",
        "segment_descriptions": _descriptions(labels),
        "series_instance_uid": UID(),
        "series_number": int(header.get("SeriesNumber") or 0) % 1000 + 1000,
        "sop_instance_uid": UID(),
        "instance_number": 1,
        "manufacturer": _NAME,
        "manufacturer_model_name": _NAME,
        "software_versions": _version(),
        "device_serial_number": "0",
        "content_label": "SEGMENTATION",
        "content_description": "Masks that a model has drawn",
        "series_description": "Masks that a model has drawn",
    }
    shape = int(header.Rows), int(header.Columns)
    places = [(str(own.SOPInstanceUID), frame) for own in source.headers for frame in range(source.frames)]
    system = get_image_coordinate_system(header)
    is_placed = system is not None and system.value == "PATIENT"
    if is_placed and (len(source.headers) == 1 or "NumberOfFrames" not in header):
        drawn = np.zeros((len(places), *shape, len(labels)), dtype=bool)
        for index, place in enumerate(places):
            for label, packed in masks.get(place, {}).items():
                drawn[index, ..., labels.index(label)] = _unpacked(packed, shape)
        made = Segmentation(source_images=source.headers, pixel_array=drawn, **facts)
    else:
        made = _without_positions(source, masks, sorted(looked_at, key=places.index), labels, facts)
    made.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    if source.frames > 1 and len(looked_at) < source.frames:  # the others are not empty: nobody has looked at them
        made.SourceImageSequence = deepcopy(list(made.SourceImageSequence))
        made.SourceImageSequence[0].ReferencedFrameNumber = sorted(frame + 1 for _, frame in looked_at)
    return made


def _without_positions(
    source: _Source,
    masks: Mapping[tuple[str, int], Mapping[str, bytes]],
    looked_at: Sequence[tuple[str, int]],
    labels: Sequence[str],
    facts: Mapping[str, Any],
) -> "Dataset":
    """
    A segmentation of pictures that have no place in space, as X-ray angiography. The standard asks for none where each
    frame names the picture that it was made of (PS3.3 A.51: Derivation Image in place of Plane Position). highdicom
    takes one plain frame alone then, and of the classes of several frames only those that have functional groups. So
    it makes all but the frames, of a header that says that it is of one (as of a computed radiograph), and the frames
    and references are put in here. They are told apart by their turn (Temporal Position Index).
    """
    from highdicom import UID
    from highdicom.seg import Segmentation
    from pydicom.datadict import tag_for_keyword
    from pydicom.pixels.utils import pack_bits
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code
    from pydicom.uid import ComputedRadiographyImageStorage

    first = deepcopy(source.headers[0])
    for name in ("NumberOfFrames", "ImagePositionPatient", "ImageOrientationSlide"):
        first.pop(name, None)
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        first.pop(name, None)
    first.SOPClassUID = ComputedRadiographyImageStorage
    shape = int(first.Rows), int(first.Columns)
    blank = np.zeros((1, *shape, len(labels)), dtype=bool)
    made = Segmentation(source_images=[first], pixel_array=blank, omit_empty_frames=False, **facts)

    classes = {str(header.SOPInstanceUID): str(header.SOPClassUID) for header in source.headers}
    turns = {place: turn for turn, place in enumerate(looked_at, start=1)}
    found = [
        (number, label, place)
        for number, label in enumerate(labels, start=1)
        for place in looked_at
        if label in masks.get(place, ())
    ] or [(number, label, looked_at[0]) for number, label in enumerate(labels, start=1)]
    groups, drawn, overlap = [], [], False
    total: dict[tuple[str, int], np.ndarray] = {}
    for number, label, place in found:
        packed = masks.get(place, {}).get(label)
        mask = np.zeros(shape, dtype=bool) if packed is None else _unpacked(packed, shape)
        overlap |= bool((mask & total.get(place, False)).any())
        total[place] = mask | total.get(place, False)
        drawn.append(mask.ravel())
        picture = _reference(classes[place[0]], place[0])
        if source.frames > 1:
            picture.ReferencedFrameNumber = place[1] + 1
        picture.SpatialLocationsPreserved = "YES"
        picture.PurposeOfReferenceCodeSequence = [_code(codes.DCM.SourceImageForImageProcessingOperation)]
        derivation = _item(
            DerivationCodeSequence=[_code(Code("113076", "DCM", "Segmentation"))],  # (pydicom's is the modality's)
            SourceImageSequence=[picture],
        )
        groups.append(
            _item(
                FrameContentSequence=[
                    _item(TemporalPositionIndex=turns[place], DimensionIndexValues=[number, turns[place]])
                ],
                DerivationImageSequence=[derivation],
                SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=number)],
            )
        )

    references = [_reference(kind, instance) for instance, kind in classes.items()]
    made.SourceImageSequence = references
    made.ReferencedSeriesSequence = [
        _item(SeriesInstanceUID=first.SeriesInstanceUID, ReferencedInstanceSequence=deepcopy(references))
    ]
    organization = UID()
    made.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    made.DimensionIndexSequence = [
        _item(
            DimensionIndexPointer=tag_for_keyword(pointer),
            FunctionalGroupPointer=tag_for_keyword(group),
            DimensionOrganizationUID=organization,
            DimensionDescriptionLabel=label,
        )
        for pointer, group, label in (
            ("ReferencedSegmentNumber", "SegmentIdentificationSequence", "Segment Number"),
            ("TemporalPositionIndex", "FrameContentSequence", "Frame"),
        )
    ]
    made.SegmentsOverlap = "YES" if overlap else "NO"
    made.PerFrameFunctionalGroupsSequence = groups
    made.NumberOfFrames = len(groups)
    made.PixelData = pack_bits(np.concatenate(drawn).astype(np.uint8))
    made["PixelData"].VR = "OB"
    return made


def _item(**elements: Any) -> "Dataset":
    from pydicom import Dataset

    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def _reference(kind: str, instance: str) -> "Dataset":
    return _item(ReferencedSOPClassUID=kind, ReferencedSOPInstanceUID=instance)


def _code(code: Any) -> "Dataset":
    return _item(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning)
