import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sa2va_trl.data.frame_signals import measure_frames


def picture(lines=0, size=128, shift=0.0):
    """A grey slope with dark lines."""
    rows, columns = np.mgrid[:size, :size] / size
    grey = 140 + 60 * columns + 10 * np.sin(9 * rows + 7 * columns)
    for line in range(lines):
        grey = grey * (1 - 0.35 * np.exp(-0.5 * ((rows - 0.15 - 0.2 * line - shift) * 128 / 1.8) ** 2))
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def test_more_lines_are_more_ridges_and_a_slope_is_none():
    ridges = measure_frames([picture(lines) for lines in range(4)]).ridges
    assert (np.diff(ridges[:, 2:6], axis=0) > 0.01).all() and ridges[0, 3] == 0


def test_maps_are_where_ridges_are():
    places = measure_frames([picture(1)]).maps[0].reshape(24, 24)
    row = int((0.15 * 128 - 4) / 5)
    assert places[row].min() > 10 * places[row + 3 :].max()


def test_exposure_changes_no_ridge():
    bright, dim = measure_frames([picture(3), (picture(3) * 0.6).astype(np.uint8)]).ridges
    assert np.abs(bright - dim)[2:].max() < 0.03


def test_shift_adds_up():
    still = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(160, 160)), 4)
    still = 128 + 400 * still
    clip = [np.clip(still[20 - step : 148 - step, 16:144], 0, 255).astype(np.uint8) for step in (0, 1, 2, 3, 2)]
    np.testing.assert_allclose(measure_frames(clip).shift[:, 0] * 128, [0, 1, 2, 3, 2], atol=0.3)
    assert np.abs(measure_frames(clip).shift[:, 1] * 128).max() < 0.3


def test_blur_is_less_sharp():
    grainy = np.random.default_rng(0).integers(0, 255, (128, 128), dtype=np.uint8)
    sharpness = measure_frames([grainy, ndimage.gaussian_filter(grainy, 3)]).sharpness
    assert sharpness[1] < 0.5 * sharpness[0]


def test_size_matters_little():
    one, other = (measure_frames([picture(2, size)]) for size in (128, 512))
    np.testing.assert_allclose(one.ridges, other.ridges, atol=0.03)
    assert one.maps.shape == other.maps.shape == (1, 576)


def test_frames_are_read_one_at_a_time():
    alive = []

    class Frame(np.ndarray):
        def __del__(self):
            alive.pop()

    def frames():
        for _ in range(20):
            frame = np.zeros((64, 64), np.uint8).view(Frame)
            alive.append(None)
            assert len(alive) <= 3
            yield frame

    assert len(measure_frames(frames()).spread) == 20


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4)), np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_what_is_no_grey_picture_is_refused_by_its_number(bad):
    with pytest.raises(ValueError, match="Frame 1 must be a grey picture"):
        measure_frames([np.zeros((4, 4), np.uint8), bad])


def test_no_frame_is_refused():
    with pytest.raises(ValueError, match="no frame"):
        measure_frames([])


def test_pictures_in_colour_are_made_grey():
    grey = Image.fromarray(picture(2))
    for one, other in zip(measure_frames([grey]), measure_frames([grey.convert("RGB")]), strict=True):
        np.testing.assert_array_equal(one, other)
