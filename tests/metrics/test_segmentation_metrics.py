import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import label as scipy_label
from skimage.draw import line
from skimage.morphology import thin

from sa2va_trl.metrics import (
    Counts,
    accuracy,
    betti0_error,
    betti0_score,
    cldice,
    confusion_counts,
    dice,
    iou,
    precision,
    recall,
    segmentation_metrics,
    specificity,
)


OVERLAP = [dice, iou, precision, recall, specificity, accuracy]
EMPTY, FULL = np.zeros((4, 5), dtype=bool), np.ones((4, 5), dtype=bool)


@st.composite
def mask_pairs(draw, max_side=8):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=max_side))
    return tuple(
        draw(hnp.arrays(draw(st.sampled_from([bool, np.uint8])), shape, elements=st.integers(0, 1))) for _ in "pt"
    )


counts = st.builds(Counts, *[st.integers(0, 2) | st.integers(0, 1000)] * 4)  # small ones for the edges


# Counts


@given(mask_pairs())
def test_counts_match_a_loop(pair):
    pred, target = pair
    expected = {(1, 1): 0, (1, 0): 0, (0, 1): 0, (0, 0): 0}
    for index in np.ndindex(pred.shape):
        expected[int(pred[index]), int(target[index])] += 1
    actual = confusion_counts(pred, target)
    assert actual == Counts(expected[1, 1], expected[1, 0], expected[0, 1], expected[0, 0])
    assert all(type(count) is int for count in actual)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_dtype_of_masks_does_not_matter(dtype):
    rng = np.random.default_rng(0)
    pred, target = rng.random((2, 9, 9)) > 0.5
    assert confusion_counts(pred.astype(dtype), target) == confusion_counts(pred, target.astype(dtype))
    assert cldice(pred.astype(dtype), target) == cldice(pred, target)


# Overlap


@given(mask_pairs())
def test_overlap_metrics_are_related(pair):
    pred, target = pair
    there, back = segmentation_metrics(pred, target), segmentation_metrics(target, pred)
    assert list(there) == ["dice", "iou", "precision", "recall", "specificity", "accuracy"]
    assert all(type(value) is float and 0 <= value <= 1 for value in there.values())
    for symmetric in ("dice", "iou", "accuracy"):
        assert there[symmetric] == back[symmetric]
    assert there["precision"] == back["recall"]
    assert there["dice"] == pytest.approx(2 * there["iou"] / (1 + there["iou"]))
    if there["precision"] + there["recall"]:
        harmonic = 2 * there["precision"] * there["recall"] / (there["precision"] + there["recall"])
        assert there["dice"] == pytest.approx(harmonic)
    else:
        assert there["dice"] == 0
    assert (there["dice"] == 1) == (pred == target).all()


@given(mask_pairs(), st.randoms(use_true_random=False))
def test_overlap_does_not_depend_on_where_the_pixels_are(pair, random):
    pred, target = pair
    order = list(range(pred.size))
    random.shuffle(order)
    shuffled = [mask.ravel()[order] for mask in pair]
    assert segmentation_metrics(*shuffled) == segmentation_metrics(pred, target)


@given(mask_pairs())
def test_specificity_is_the_recall_of_the_background(pair):
    pred, target = pair
    if not target.all():
        inverted = segmentation_metrics(1 - pred.astype(int), 1 - target.astype(int))
        assert segmentation_metrics(pred, target)["specificity"] == inverted["recall"]


def test_known_values():
    values = [metric(Counts(tp=6, fp=2, fn=4, tn=88)) for metric in OVERLAP]
    assert values == pytest.approx([12 / 18, 6 / 12, 6 / 8, 6 / 10, 88 / 90, 94 / 100])


@pytest.mark.parametrize(
    ("pred", "target", "expected"),
    [
        (EMPTY, EMPTY, [1, 1, 1, 1, 1, 1]),
        (FULL, FULL, [1, 1, 1, 1, 1, 1]),
        (EMPTY, FULL, [0, 0, 0, 0, 1, 0]),
        (FULL, EMPTY, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_conventions_for_empty_masks(pred, target, expected):
    assert list(segmentation_metrics(pred, target).values()) == expected
    # the same in an array of counts
    stacked = Counts(*np.array([confusion_counts(pred, target)] * 2).T)
    assert [metric(stacked).tolist() for metric in OVERLAP] == [[value] * 2 for value in expected]


@pytest.mark.filterwarnings("error")  # no division by zero behind the scenes
@given(st.lists(counts, min_size=1, max_size=6))
def test_arrays_and_tensors_of_counts_match_scalars(rows):
    array = Counts(*np.array(rows).T)
    tensor = Counts(*torch.tensor(rows).T)
    for metric in OVERLAP:
        expected = [metric(row) for row in rows]
        assert all(type(value) is float for value in expected)
        np.testing.assert_allclose(metric(array), expected)
        assert metric(tensor).dtype == torch.float32
        torch.testing.assert_close(metric(tensor), torch.tensor(expected))
        torch.testing.assert_close(metric(Counts(*(count.float() for count in tensor))), torch.tensor(expected))


# Topology


@given(mask_pairs())
def test_cldice_is_symmetric_and_bounded(pair):
    pred, target = pair
    value = cldice(pred, target)
    assert type(value) is float and 0 <= value <= 1
    assert value == pytest.approx(cldice(target, pred))
    assert cldice(target, target) == 1
    if pred.any() != target.any():
        assert value == 0


def reference_cldice(pred, target):
    """From the definition, pixel by pixel, with the thinning of another algorithm (Guo and Hall, 1989)."""

    def share(skeleton, mask):
        pixels = np.argwhere(skeleton)
        return sum(bool(mask[tuple(pixel)]) for pixel in pixels) / len(pixels)

    topology_precision, topology_sensitivity = share(thin(pred), target), share(thin(target), pred)
    return 2 * topology_precision * topology_sensitivity / (topology_precision + topology_sensitivity)


def vessel(shift=0, gap=False, width=3):
    mask = np.zeros((64, 64), dtype=bool)
    rows, columns = line(4, 10, 58, 50)
    for offset in range(-(width // 2), width // 2 + 1):
        mask[rows, columns + shift + offset] = True
    if gap:
        mask[25:40] = False
    return mask


@pytest.mark.parametrize("options", [{"gap": True}, {"shift": 2}, {"width": 7}, {"width": 5, "gap": True}])
def test_cldice_agrees_with_another_thinning(options):
    # two thinning algorithms differ by a few pixels at the ends
    assert cldice(vessel(**options), vessel()) == pytest.approx(
        reference_cldice(vessel(**options), vessel()), abs=0.05
    )


def test_cldice_minds_gaps_and_shifts_not_widths():
    assert cldice(vessel(width=7), vessel()) > 0.95
    assert cldice(vessel(gap=True), vessel()) < 0.9
    assert cldice(vessel(shift=6), vessel()) == 0
    # Dice ranks them the other way round
    assert dice(confusion_counts(vessel(gap=True), vessel())) > dice(confusion_counts(vessel(width=7), vessel()))


def test_cldice_conventions_for_empty_masks():
    assert [cldice(EMPTY, EMPTY), cldice(EMPTY, FULL), cldice(FULL, EMPTY), cldice(FULL, FULL)] == [1, 0, 0, 1]


@given(mask_pairs(max_side=10))
def test_betti0_error_matches_scipy(pair):
    components = [scipy_label(mask, structure=np.ones((3, 3)))[1] for mask in pair]
    assert betti0_error(*pair) == abs(components[0] - components[1])


def test_betti0_error_joins_diagonal_neighbours():
    diagonal = np.eye(4, dtype=bool)
    split = diagonal.copy()
    split[1, 1] = False
    assert betti0_error(diagonal, diagonal) == 0
    assert betti0_error(split, diagonal) == betti0_error(diagonal, split) == 1
    assert betti0_error(np.zeros((4, 4)), diagonal) == 1
    assert type(betti0_error(split, diagonal)) is int


@given(mask_pairs(max_side=10))
def test_betti0_score_is_the_error_as_a_share_of_the_larger_number(pair):
    components = [scipy_label(mask, structure=np.ones((3, 3)))[1] for mask in pair]
    assert betti0_score(*pair) == pytest.approx(1 - betti0_error(*pair) / max(*components, 1))


def test_betti0_score_conventions_for_empty_masks():
    assert [betti0_score(EMPTY, EMPTY), betti0_score(EMPTY, FULL), betti0_score(FULL, EMPTY)] == [1, 0, 0]


# Bad input


@pytest.mark.parametrize("metric", [confusion_counts, segmentation_metrics, cldice, betti0_error, betti0_score])
def test_bad_masks_are_named(metric):
    with pytest.raises(ValueError, match=r"`pred` \(4, 5\) and `target` \(5, 4\)"):
        metric(EMPTY, EMPTY.T)
    with pytest.raises(ValueError, match=r"`pred` \(0, 5\)"):
        metric(EMPTY[:0], EMPTY[:0])
    with pytest.raises(ValueError, match="`target` must hold only 0 and 1, got uint8 values from 0 to 255"):
        metric(np.zeros((1, 2)), np.array([[0, 255]], dtype=np.uint8))
    with pytest.raises(ValueError, match="`pred` must hold only 0 and 1, got float64"):
        metric(np.full((4, 5), 0.7), EMPTY)
    with pytest.raises(ValueError, match="nan"):
        metric(np.full((4, 5), np.nan), EMPTY)


@pytest.mark.parametrize("metric", [cldice, betti0_error, betti0_score])
def test_topology_needs_planar_masks(metric):
    with pytest.raises(ValueError, match=r"shape \(H, W\).*\(1, 4, 5\)"):
        metric(EMPTY[None], EMPTY[None])
