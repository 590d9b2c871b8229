import numpy as np
import pydicom
import pytest
from segmentations import SIZE, write_run

from sa2va_trl.data.export.annotated import Annotated, Found
from sa2va_trl.data.export.dicom_seg import write_dicom_seg
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.clips import folder_images
from sa2va_trl.media.dicom import SEGMENTATIONS, no_picture
from sa2va_trl.media.dicom_seg import Place, is_segmentation, read_segmentation, segment_values


MASK = np.eye(*SIZE[::-1], dtype=bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three frames, and the segmentation of its first two; only the second shows something."""
    found = tmp_path_factory.mktemp("dicom")
    (found / "images").mkdir()
    write_run(found / "images" / "run", frames=3)
    shown = [(), (Found("vessel", MASK),)]
    write_dicom_seg(found, [Annotated("images/run", SIZE, own, frame) for frame, own in enumerate(shown)])
    return found


def test_what_a_segmentation_says(folder):
    path = folder / "segmentations" / "run.dcm"
    instance = pydicom.dcmread(folder / "images" / "run").SOPInstanceUID
    found = read_segmentation(path)
    assert (found.type, found.size, found.labels, found.background) == ("BINARY", SIZE, {1: "vessel"}, 0)
    assert found.frames == ((Place(instance, 1), 1),) and found.named == {instance: frozenset({0, 1})}
    assert np.array_equal(segment_values(path, 0), MASK)


def test_segmentations_are_known_by_their_first_bytes(folder, tmp_path):
    path = folder / "segmentations" / "run.dcm"
    assert is_segmentation(path) and not is_segmentation(folder / "images" / "run")
    assert not is_segmentation(tmp_path / "nowhere")
    for kind in (*SEGMENTATIONS, SEGMENTATIONS[0] + ".1", SEGMENTATIONS[0] + "6"):
        write_run(tmp_path / "run", kind=kind)
        assert is_segmentation(tmp_path / "run") == (kind in SEGMENTATIONS)
        assert (no_picture(tmp_path / "run") is not None) == (kind in SEGMENTATIONS)
    write_run(tmp_path / "map", kind=SEGMENTATIONS[1])
    assert folder_images(tmp_path)[1] == ["map (is a segmentation, not a picture)"]


def test_a_picture_is_no_segmentation(folder):
    with pytest.raises(DatasetError, match="is no segmentation"):
        read_segmentation(folder / "images" / "run")
