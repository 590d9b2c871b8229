"""From the values that a DICOM file stores to what a viewer shows."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import DatasetError


if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)
_X_RAY = "1.2.840.10008.5.1.4.1.1.12."  # XA, XRF, their enhanced forms


def class_of(dataset: "Dataset") -> str:
    """The SOP class of a file, empty where it says none."""
    return str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")


def shown_picture(path: Path, dataset: "Dataset", index: int, values: np.ndarray) -> Image.Image:
    """
    A frame as [`~media.dicom.dicom_frames`] says that it is shown.

    Args:
        path (`Path`): of the file, for messages.
        dataset (`pydicom.Dataset`): its elements.
        index (`int`): of the frame.
        values (`np.ndarray` of shape `(height, width)` or `(height, width, 3)`): as stored, but YBR as RGB.

    Returns:
        `PIL.Image.Image`: mode `L` or `RGB`.

    Raises:
        `DatasetError`: with the file; a photometric interpretation or VOI LUT function that is not known.
    """
    from pydicom.pixels.processing import apply_color_lut

    kind, stored = dataset.PhotometricInterpretation, int(dataset.BitsStored)
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)[..., :3]
        return Image.fromarray(values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8))
    if values.ndim == 3:
        if stored != 8 or values.dtype != np.uint8:
            values = np.rint(values.clip(0, 2**stored - 1) * (255 / (2**stored - 1))).astype(np.uint8)
        return Image.fromarray(values)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DatasetError(f"{path} cannot be read: photometric interpretation {kind!r} is not read")
    shown = _shown_range(dataset, stored)
    values = values.clip(*shown)
    if stored > 16:
        return Image.fromarray(_to_grey(path, dataset, index, values.astype(np.int64), shown))
    # Of each value that can be stored once: a table is quicker than floating point for every pixel.
    table = _to_grey(path, dataset, index, np.arange(shown[0], shown[1] + 1), shown)
    return Image.fromarray(table[values.astype(np.int32) - shown[0]])


def _shown_range(dataset: "Dataset", bits: int) -> tuple[int, int]:
    """The smallest and largest value that the stored bits can hold."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation == 1 else (0, 2**bits - 1)


def _to_grey(path: Path, dataset: "Dataset", index: int, values: np.ndarray, shown: tuple[int, int]) -> np.ndarray:
    """Stored values as uint8 grey of a frame."""
    low, high = map(float, shown)
    if "ModalityLUTSequence" in dataset:
        if not class_of(dataset).startswith(_X_RAY):
            values, high = _looked_up(dataset.ModalityLUTSequence[0], values, dataset)
            low = 0.0
    else:
        place = group_of(dataset, index, "PixelValueTransformationSequence", "RescaleSlope")
        slope, intercept = float(place.get("RescaleSlope") or 1), float(place.get("RescaleIntercept") or 0)
        values = values * slope + intercept
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    place = group_of(dataset, index, "FrameVOILUTSequence", "WindowCenter")
    grey = None
    if tables := place.get("VOILUTSequence"):
        if len(tables) > 1:
            _say_once(f"{path} has several VOI LUTs: the first is used.")
        values, high = _looked_up(tables[0], values, dataset)
        low = 0.0
    else:
        grey = _windowed(path, place, values)
    grey = (values - low) / (high - low) if grey is None else grey
    grey = np.rint(grey.clip(0, 1) * 255).astype(np.uint8)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _looked_up(table: "Dataset", values: np.ndarray, dataset: "Dataset") -> tuple[np.ndarray, float]:
    """Values through a LUT (PS3.3 C.11.1.1 and C.11.2.1.1), and the largest that it can give."""
    length, first, bits = map(int, table.LUTDescriptor)
    length = length or 65536
    if first > 32767 and dataset.PixelRepresentation == 1:  # written unsigned
        first -= 65536
    data = table.LUTData
    if isinstance(data, bytes):  # of 8 bits, one or two of them in a word
        word = "u1" if bits <= 8 and len(data) < 2 * length else "<u2" if dataset.original_encoding[1] else ">u2"
        data = np.frombuffer(data, word)
    data = np.asarray(data)
    if len(data) < length or not 1 <= bits <= 16:
        raise ValueError(f"a LUT of {length} entries of {bits} bits holds {len(data)}")
    return data[(np.rint(values).astype(np.int64) - first).clip(0, length - 1)].astype(float), 2.0**bits - 1


def group_of(dataset: "Dataset", index: int, name: str, keyword: str) -> "Dataset":
    """Where an element of a frame stands: in its own functional group, in the shared one, or in the file itself."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (own[index : index + 1], (dataset.get("SharedFunctionalGroupsSequence") or [])[:1]):
        for group in groups:
            if (found := group.get(name)) and (keyword in found[0] or "VOILUTSequence" in found[0]):
                return found[0]
    return dataset


def numbers_of(place: "Dataset", keyword: str) -> list[float]:
    """The numbers of an element; none where it is missing, empty or not numbers."""
    from pydicom.multival import MultiValue

    try:
        value = place.get(keyword)
        values = value if isinstance(value, MultiValue | list) else [] if value is None or value == "" else [value]
        numbers = [float(value) for value in values]
    except (ValueError, TypeError):
        return []
    return numbers if np.isfinite(numbers).all() else []


def _windowed(path: Path, place: "Dataset", values: np.ndarray) -> np.ndarray | None:
    """Values through the first window (PS3.3 C.11.2.1.2 and C.11.2.1.3), 0 to 1 and beyond; `None` without one."""
    centres, widths = numbers_of(place, "WindowCenter"), numbers_of(place, "WindowWidth")
    if not centres or not widths:
        return None
    centre, width, function = centres[0], widths[0], str(place.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DatasetError(f"{path} cannot be read: its VOI LUT function {function!r} is not known")
    if width < 1 and (function == "LINEAR" or width <= 0):
        _say_once(f"{path} states a window of width {width:g}, which is none: all stored values are shown.")
        return None
    if len(centres) > 1:
        _say_once(f"{path} has {len(centres)} windows: the first, centre {centre:g} and width {width:g}, is used.")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width == 1:
        return (values > centre - 0.5).astype(float)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


@lru_cache(maxsize=4096)
def _say_once(text: str) -> None:
    """A line in the log that would come again with every frame and every reading of a file."""
    logger.warning("%s", text)
