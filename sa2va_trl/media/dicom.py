"""DICOM pictures as a viewer shows them: one frame at a time, every frame through the same window."""

import logging
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from ..errors import DatasetError
from .dicom_grey import class_of, group_of, numbers_of, shown_picture
from .pictures import MAX_PIXELS
from .suffixes import has_dicom_preamble


if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)
_PREAMBLE = 132
_UNDEFINED = 0xFFFFFFFF
_MAX_INFLATED = 1 << 31
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: SOP classes of segmentations: BINARY or FRACTIONAL, and LABELMAP.
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_DOSES = "1.2.840.10008.5.1.4.1.1.481.2"
_DIRECTORY = "1.2.840.10008.1.3.10"
_PEOPLE = ("PatientName", "OtherPatientNames", "PatientID", "OtherPatientIDs")
# Pillow comes with this package, so that lossy pictures are the same everywhere.
_FIRST_DECODERS = ("pillow", "pydicom", "pylibjpeg", "pyjpegls", "gdcm")


class _Pixels(NamedTuple):
    """Where the pixels of a file lie: the keyword of their element, its VR, its value's place and its length."""

    keyword: str
    vr: str
    place: int
    length: int


def _need_pydicom() -> None:
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ImportError("DICOM needs pydicom: pip install 'sa2va_trl[dicom]'.") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """
    Without pydicom's warnings; what it raises becomes the one error of data. (Not around a `yield` of frames.)

    Args:
        path (`Path`): of the file that is read.

    Raises:
        `DatasetError`: with the file.
    """
    told, passed_on = logging.getLogger("pydicom"), logging.getLogger("pydicom").propagate
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told.propagate = False
            yield
    except (DatasetError, ImportError):
        raise
    except Exception as error:  # what is damaged raises nearly anything
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(
            f"{path} cannot be read: is damaged, or no DICOM file ({type(error).__name__}: {reason})"
        ) from error
    finally:
        told.propagate = passed_on


def _check_deflated(path: Path, file: BinaryIO) -> None:
    """Refuse a deflated file that would fill the memory; pydicom inflates it in one piece."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file.seek(0)
    if not has_dicom_preamble(path):
        return
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    file.seek(_PREAMBLE + 12 + meta.FileMetaInformationGroupLength)
    stream, total, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, file.read()
    while rest and total <= _MAX_INFLATED:
        total += len(stream.decompress(rest, 1 << 24))
        rest = stream.unconsumed_tail
    if total > _MAX_INFLATED:
        raise DatasetError(f"{path} cannot be read: inflates to more than {_MAX_INFLATED:,} bytes")


def _read(path: Path, file: BinaryIO) -> tuple["Dataset", _Pixels | None]:
    """All elements before the pixels, and where those are. Of a deflated file, the whole of it in memory."""
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    _check_deflated(path, file)
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    if not len(dataset.file_meta) and "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise DatasetError(f"{path} cannot be read: is no DICOM file")
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        file.seek(0)
        dataset = pydicom.dcmread(file, force=True)
        if "PixelData" not in dataset:
            return dataset, None
        return dataset, _Pixels("PixelData", dataset["PixelData"].VR, -1, len(dataset.PixelData))
    implicit, little = dataset.original_encoding
    if "TransferSyntaxUID" not in dataset.file_meta:
        uid = pydicom.uid
        native = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = native if little else uid.ExplicitVRBigEndian
    order, head = ("little" if little else "big"), file.read(8)
    if len(head) < 8:
        return dataset, None
    tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
    keyword = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}.get(tag)
    if keyword is None:
        return dataset, None
    implicit = not re.fullmatch(rb"[A-Z]{2}", head[4:6])  # some files change in their middle
    vr = "OW" if implicit else head[4:6].decode()
    length = int.from_bytes(head[4:] if implicit else file.read(4), order)
    return dataset, _Pixels(keyword, vr, file.tell(), length)


def read_header(path: str | os.PathLike) -> "Dataset":
    """
    The elements of a DICOM file without its pixels.

    Args:
        path (`str` or `os.PathLike`): of the file; the preamble may be missing.

    Returns:
        `pydicom.Dataset`

    Raises:
        `DatasetError`: it cannot be read.
        `ImportError`: pydicom is not installed (`pip install 'sa2va_trl[dicom]'`).
    """
    _need_pydicom()
    path = Path(path)
    with reading(path), path.open("rb") as file:
        return _read(path, file)[0]


def no_picture(path: str | os.PathLike) -> str | None:
    """
    Why a DICOM file is none of the pictures that a folder is read for; `None` where it is one.

    Args:
        path (`str` or `os.PathLike`): of the file.

    Returns:
        `str` or `None`: it is a stub without pixels, a directory, a report, a segmentation, or a secondary capture (a
            screenshot, mostly), which is read only where it is named by itself.

    Raises:
        `DatasetError`, `ImportError`: as [`read_header`].
    """
    _need_pydicom()
    path = Path(path)
    with reading(path), path.open("rb") as file:
        dataset, pixels = _read(path, file)
        return _no_picture(dataset, pixels) or _captured(dataset)


def _captured(dataset: "Dataset") -> str | None:
    return "is a secondary capture" if re.match(rf"{_SECONDARY_CAPTURE}(\.|$)", class_of(dataset)) else None


def _no_picture(dataset: "Dataset", pixels: _Pixels | None) -> str | None:
    kind = class_of(dataset)
    if kind == _DIRECTORY:
        return "is a directory of other files (DICOMDIR)"
    if kind in SEGMENTATIONS:
        return "is a segmentation, not a picture"
    if kind == _DOSES:
        return "is a grid of doses, not a picture"
    if pixels is None or pixels.length == 0:
        return "has no pixels"
    if pixels.keyword != "PixelData":
        return "has pixels of floating point, which is no picture"
    return None


def checked(path: Path, file: BinaryIO, max_pixels: int, is_picture: bool = True) -> tuple["Dataset", _Pixels, int]:
    """
    A header, after all that it may get wrong.

    Args:
        path (`Path`): of the file.
        file (`BinaryIO`): it, opened.
        max_pixels (`int`): the largest width x height accepted.
        is_picture (`bool`, *optional*, defaults to `True`): refuse what no viewer shows (segmentations, doses).

    Returns:
        The elements before the pixels, where those are, and the number of frames.

    Raises:
        `DatasetError`: with the file.
    """
    from pydicom.pixels.utils import get_expected_length, get_nr_frames

    dataset, pixels = _read(path, file)
    if fault := _no_picture(dataset, pixels) if is_picture or pixels is None or not pixels.length else None:
        raise DatasetError(f"{path} cannot be read: {fault}")
    missing = [
        name
        for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation")
        if dataset.get(name) in (None, "")
    ]
    dataset.setdefault("SamplesPerPixel", 1)
    dataset.setdefault("PixelRepresentation", 0)
    if missing:
        raise DatasetError(f"{path} cannot be read: it does not state {', '.join(missing)}")
    rows, columns, frames = int(dataset.Rows), int(dataset.Columns), int(get_nr_frames(dataset, warn=False))
    if rows < 1 or columns < 1 or frames < 1 or not 1 <= dataset.BitsStored <= dataset.BitsAllocated <= 32:
        raise DatasetError(
            f"{path} cannot be read: it states {columns} x {rows} pixels, {frames} frames, {dataset.BitsStored} of "
            f"{dataset.BitsAllocated} bits"
        )
    if rows * columns > max_pixels:
        raise DatasetError(
            f"{path} cannot be read: is too large: {columns} x {rows} pixels, the limit is {max_pixels:,}"
        )
    there = pixels.length if pixels.place < 0 else os.fstat(file.fileno()).st_size - pixels.place
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        if frames > there // 8:  # a frame has an item of its own, with 8 bytes before it
            raise DatasetError(f"{path} cannot be read: states {frames} frames, and has {there} bytes for them")
    else:
        if pixels.length == _UNDEFINED:
            raise DatasetError(f"{path} cannot be read: is compressed, and does not state how (transfer syntax)")
        if get_expected_length(dataset) > min(there, pixels.length):
            raise DatasetError(
                f"{path} is cut off, or its header is wrong: {frames} frames of {columns} x {rows} take "
                f"{get_expected_length(dataset):,} bytes, {min(there, pixels.length):,} are there"
            )
        if dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
            raise DatasetError(
                f"{path} cannot be read: its highest bit is {dataset.HighBit} of {dataset.BitsStored} that are stored"
            )
    return dataset, pixels, frames


def count_dicom(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> int:
    """
    How many frames a DICOM file has, by its header, as far as its length allows that.

    Args:
        path (`str` or `os.PathLike`): of the file.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Returns:
        `int`: at least 1.

    Raises:
        `DatasetError`, `ImportError`: as [`dicom_frames`].
    """
    _need_pydicom()
    path = Path(path)
    with reading(path), path.open("rb") as file:
        return checked(path, file, max_pixels)[2]


def dicom_frames(path: str | os.PathLike, start: int = 0, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """
    The frames of a DICOM file, decoded one at a time.

    Grey values go through the Modality LUT or rescale slope and intercept (a Modality LUT is for measuring, not for
    showing, in XA and XRF objects, and is left out there), then through the VOI LUT or the first window (PS3.3
    C.11.2: linear, exactly linear or sigmoid); without either, all values that the stored bits can hold are shown, so
    that frames stay comparable. MONOCHROME1 is inverted after that. Subtraction masks and overlays are not applied.

    Args:
        path (`str` or `os.PathLike`): of the file. A secondary capture is read, too.
        start (`int`, *optional*, defaults to 0): the first frame to give.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.

    Yields:
        `PIL.Image.Image`: mode `L`, or `RGB` where the file is in colour.

    Raises:
        `DatasetError`: with the file; it has no pixels, is damaged, cut off or too large, or there is no decoder for
            its compression (the message names the package).
        `ImportError`: pydicom is not installed (`pip install 'sa2va_trl[dicom]'`).
    """
    _need_pydicom()
    path = Path(path)
    with path.open("rb") as file:
        with reading(path):
            dataset, pixels, frames = checked(path, file, max_pixels)
            decode = frame_decoder(path, file, dataset, pixels, frames, start)
        for index in range(start, frames):
            with reading(path):
                picture = shown_picture(path, dataset, index, decode(index))
            yield picture


def frame_decoder(
    path: Path, file: BinaryIO, dataset: "Dataset", pixels: _Pixels, frames: int, start: int
) -> Callable[[int], np.ndarray]:
    """
    What gives the values of each frame from `start` on, called in their order.

    Args:
        path, file: as in [`checked`], which `dataset`, `pixels` and `frames` are of.
        start (`int`): the first frame.

    Returns:
        `Callable`: of the frame's number, from 0; an array of shape `(height, width)` or `(height, width, 3)`.

    Raises:
        `DatasetError`: nothing decodes the file.
    """
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.pixels import get_decoder
    from pydicom.pixels.utils import as_pixel_options

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DatasetError(
            f"{path} cannot be read: nothing decodes its transfer syntax ({syntax.name}); export it uncompressed"
        ) from None
    if not decoder.is_available:
        packages = "; or ".join(decoder.missing_dependencies)
        raise DatasetError(
            f"{path} cannot be read: no decoder of its transfer syntax ({syntax.name}) is installed: pip install "
            f"'sa2va_trl[dicom]' (it is in {packages})"
        )
    options = as_pixel_options(dataset, pixel_keyword=pixels.keyword, pixel_vr=pixels.vr, transfer_syntax_uid=syntax)
    if not syntax.is_encapsulated:
        source = dataset.PixelData if pixels.place < 0 else file

        def decode(index: int) -> np.ndarray:
            if pixels.place >= 0:
                file.seek(pixels.place)
            return decoder.as_array(source, index=index, **options)[0]

        return decode

    file.seek(pixels.place)
    offsets = options.pop("extended_offsets", None)
    streams = generate_frames(file, number_of_frames=frames, extended_offsets=offsets)
    for _ in range(start):
        next(streams, None)
    options["number_of_frames"] = 1
    plugins = sorted(decoder.available_plugins, key=lambda name: (*_FIRST_DECODERS, name).index(name))
    if "pydicom" in plugins:  # RLE; another decoder of it panics where data is damaged
        plugins = ["pydicom"]

    def decode(index: int) -> np.ndarray:
        stream = next(streams, None)
        if stream is None:
            raise DatasetError(f"{path} is cut off: frame {index} of {frames} is missing")
        size = _stream_size(stream)
        if size is not None and size != (dataset.Columns, dataset.Rows):
            raise DatasetError(
                f"{path} cannot be read: frame {index} is compressed as {size[0]} x {size[1]} pixels, the header "
                f"states {dataset.Columns} x {dataset.Rows}"
            )
        stream = encapsulate([stream])
        for plugin in plugins[:-1]:
            try:
                return decoder.as_array(stream, index=0, decoding_plugin=plugin, **options)[0]
            except Exception as error:  # not every decoder knows every form
                logger.debug("%s, frame %d: %s: %s", path, index, plugin, error)
        return decoder.as_array(stream, index=0, decoding_plugin=plugins[-1], **options)[0]

    return decode


def _stream_size(stream: bytes) -> tuple[int, int] | None:
    """(width, height) that a JPEG, JPEG-LS or JPEG 2000 stream states, which its decoder would allocate."""
    if (place := stream[:1024].find(b"\xff\x4f\xff\x51")) >= 0:  # JPEG 2000: SOC, SIZ; ends less offsets
        ends = [int.from_bytes(stream[place + at : place + at + 4], "big") for at in (8, 12, 16, 20)]
        return ends[0] - ends[2], ends[1] - ends[3]
    if stream[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(stream):
        marker = stream[place + 1]
        # Every start of a frame but those codes of the same range that are tables; 0xF7 is JPEG-LS's.
        if stream[place] != 0xFF or marker == 0xFF:
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            height, width = (int.from_bytes(stream[place + at : place + at + 2], "big") for at in (5, 7))
            return width, height
        else:
            place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return None


# ---------------------------------------------------------------------------------------------------------------------
# What is said of a file beside its pixels
# ---------------------------------------------------------------------------------------------------------------------


def dicom_facts(path: str | os.PathLike) -> dict[str, Any]:
    """
    What a DICOM file says of its pictures, under the names of columns. Identifiers are as they stand in the file.

    Args:
        path (`str` or `os.PathLike`): of the file.

    Returns:
        `dict`: what the file states of
        - `patient_id` (`str`): PatientID, or without one PatientName and PatientBirthDate;
        - `video_id` (`str`): SOPInstanceUID of a file of several frames, SeriesInstanceUID of one of a single frame;
        - `frame_time_ms` (`float`): milliseconds from one frame to the next;
        - `pixel_spacing_mm` (`float`): calibrated, in the patient; `imager_pixel_spacing_mm`: at the detector. Only
          where pixels are square;
        - `representative_frame` (`int`): the frame that stands for the run, counted from 0;
        - `frame_index` (`int`): of a file of a single frame, its InstanceNumber in the series;
        - `burned_in_text` (`str`): `"yes"`, `"no"`, or `"unknown"` where BurnedInAnnotation is missing.

    Raises:
        `DatasetError`, `ImportError`: as [`read_header`].
    """
    dataset = read_header(path)
    with reading(Path(path)):
        facts = {
            "patient_id": _patient(dataset),
            "video_id": _video_id(dataset),
            "frame_time_ms": _frame_time(dataset),
            "pixel_spacing_mm": _spacing(dataset, "PixelSpacing"),
            "imager_pixel_spacing_mm": _spacing(dataset, "ImagerPixelSpacing"),
            "representative_frame": _representative(dataset),
            "frame_index": _instance(dataset),
        }
        burned = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    facts = {name: value for name, value in facts.items() if value is not None}
    return {**facts, "burned_in_text": {"YES": "yes", "NO": "no"}.get(burned, "unknown")}


def dicom_people(path: str | os.PathLike) -> tuple[str, ...]:
    """
    Names and identifiers of the patient that a DICOM file states, each of them: what must not come out of it.

    Args:
        path (`str` or `os.PathLike`): of the file.

    Returns:
        `tuple[str, ...]`: PatientName, OtherPatientNames, PatientID, OtherPatientIDs, and those of
            OtherPatientIDsSequence.

    Raises:
        `DatasetError`, `ImportError`: as [`read_header`].
    """
    dataset = read_header(path)
    with reading(Path(path)):
        found = [
            str(value).strip(" ^")
            for own in (dataset, *(dataset.get("OtherPatientIDsSequence") or ()))
            for keyword in _PEOPLE
            if keyword in own
            for value in ([own[keyword].value] if own[keyword].VM < 2 else own[keyword].value)
            if value is not None
        ]
    return tuple(dict.fromkeys(filter(None, found)))


def _patient(dataset: "Dataset") -> str | None:
    if own := str(dataset.get("PatientID") or "").strip():
        return own
    name = str(dataset.get("PatientName") or "").strip(" ^")
    birth = str(dataset.get("PatientBirthDate") or "").strip()
    return "^".join(filter(None, (name, birth))) if name else None


def _video_id(dataset: "Dataset") -> str | None:
    from pydicom.pixels.utils import get_nr_frames

    own, series = dataset.get("SOPInstanceUID"), dataset.get("SeriesInstanceUID")
    chosen = own or series if get_nr_frames(dataset, warn=False) > 1 else series or own
    return str(chosen) if chosen else None


def _frame_time(dataset: "Dataset") -> float | None:
    if (time := numbers_of(dataset, "FrameTime")) and time[0] > 0:
        return time[0]
    if len(times := numbers_of(dataset, "FrameTimeVector")) > 1 and sum(times[1:]) > 0:
        return sum(times[1:]) / (len(times) - 1)  # the first is that of the first frame, 0
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        if (rate := numbers_of(dataset, keyword)) and rate[0] > 0:
            return 1000 / rate[0]
    return None


def _spacing(dataset: "Dataset", keyword: str) -> float | None:
    numbers = numbers_of(group_of(dataset, 0, "PixelMeasuresSequence", keyword), keyword)
    if len(numbers) != 2 or numbers[0] <= 0 or abs(numbers[0] - numbers[1]) > 1e-3 * numbers[0]:
        return None
    return numbers[0]


def _representative(dataset: "Dataset") -> int | None:
    from pydicom.pixels.utils import get_nr_frames

    numbers = numbers_of(dataset, "RepresentativeFrameNumber")
    return int(numbers[0]) - 1 if numbers and 1 <= numbers[0] <= get_nr_frames(dataset, warn=False) else None


def _instance(dataset: "Dataset") -> int | None:
    from pydicom.pixels.utils import get_nr_frames

    numbers = numbers_of(dataset, "InstanceNumber")
    return int(numbers[0]) if numbers and get_nr_frames(dataset, warn=False) == 1 else None
