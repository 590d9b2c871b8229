"""DICOM pictures and segmentations that are generated for tests."""

import numpy as np
from dicom_files import CT, write_dicom
from pydicom.uid import generate_uid


SIZE = (21, 13)  # neither a whole number of bytes a frame nor a row
STUDY = generate_uid()


def greys(frames=1, size=SIZE, seed=0):
    """Pictures unlike each other: `(frames, height, width)`, 8 bits in 16."""
    return np.random.default_rng(seed).integers(0, 256, (frames, *size[::-1]), dtype=np.uint16)


def write_run(path, frames=5, seed=0, **elements):
    """A run of X-ray angiography, of several frames and without a place in space."""
    return write_dicom(path, greys(frames, seed=seed), bits=8, **{"StudyInstanceUID": STUDY, **elements})


def write_series(folder, names, seed=100, is_placed=False, **elements):
    """A series of files of single frames: of angiography, or slices of CT, which have a place in space."""
    own = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": generate_uid()}
    if is_placed:
        own |= {"kind": CT, "FrameOfReferenceUID": generate_uid(), "PositionReferenceIndicator": ""}
        own |= {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1], "SliceThickness": 2}
    paths = []
    for number, name in enumerate(names):
        place = {"ImagePositionPatient": [0, 0, 2 * number]} if is_placed else {}
        facts = {"bits": 8, "InstanceNumber": number + 1, **own, **place, **elements}
        paths.append(write_dicom(folder / name, greys(seed=seed + number), **facts))
    return paths
