"""DICOM files that are generated for tests."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid


XA, CT = XRayAngiographicImageStorage, CTImageStorage


def ramp(frames=1, size=(20, 12), bits=12, signed=False):
    """Values of all the bits, another share of them in each frame: `(frames, height, width)`."""
    values = np.linspace(0, 2**bits - 1, size[0] * size[1]).reshape(size[::-1])
    values = np.stack([values * (frames - index) / frames for index in range(frames)])
    return (np.rint(values) - (2 ** (bits - 1) if signed else 0)).astype(np.int16 if signed else np.uint16)


def table(values, first, bits=16, packed=False, **more):
    """A LUT of a sequence: from the stored value `first` on; `packed`, two values of 8 bits in each word."""
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new("LUTData", "OW", np.asarray(values, "u1" if packed else "<u2").tobytes())
    for name, value in more.items():
        setattr(item, name, value)
    return Sequence([item])


def dicom(values, kind=XA, bits=12, photometric="MONOCHROME2", **elements):
    """
    A dataset of values `(frames, height, width)`, of colours `(frames, height, width, 3)`; `elements` by keyword,
    those that are `None` left out.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.PatientID = generate_uid(), "ROE-17"
    dataset.Rows, dataset.Columns = values.shape[1:3]
    if len(values) > 1:
        dataset.NumberOfFrames = len(values)
    dataset.SamplesPerPixel = 3 if values.ndim == 4 else 1
    if values.ndim == 4:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = values.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    dataset["PixelData"].VR = "OW"
    return dataset


def write_dicom(path, values, **elements):
    """Write [`dicom`] to a file."""
    dicom(values, **elements).save_as(path, enforce_file_format=True)
    return path
