import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import line
from skimage.measure import label
from skimage.morphology import skeletonize
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss, sample_point
from transformers.models.mask2former.modeling_mask2former import dice_loss as mask2former_dice_loss

from sa2va_trl import losses
from sa2va_trl.losses import (
    dice_loss,
    language_modeling_loss,
    mask_bce_loss,
    same_class_neighbours,
    sample_points,
    scnp_loss,
    skeleton_recall_loss,
    soft_cldice_loss,
    soft_skeleton,
    tubed_skeleton,
)


MASK_LOSSES = [mask_bce_loss, dice_loss, soft_cldice_loss, skeleton_recall_loss, scnp_loss]
BOUNDED_LOSSES = [dice_loss, soft_cldice_loss, skeleton_recall_loss]


def random_batch(seed, n=3, size=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, size, size, generator=generator, dtype=dtype)
    targets = (torch.rand(n, size, size, generator=generator) > 0.6).to(torch.uint8)
    return logits, targets


def vessel_masks(size=48):
    """A straight, a slanted and a forked vessel, a few pixels wide."""
    masks = np.zeros((3, size, size), dtype=np.uint8)
    masks[0, size // 2, 4:-4] = 1
    masks[1][line(5, 5, size - 6, size // 2)] = 1
    masks[2][line(4, size // 2, size // 2, size // 2)] = 1
    masks[2][line(size // 2, size // 2, size - 5, 6)] = 1
    masks[2][line(size // 2, size // 2, size - 5, size - 6)] = 1
    cross = scipy.ndimage.generate_binary_structure(2, 1)
    return np.stack([scipy.ndimage.binary_dilation(mask, cross, iterations=2) for mask in masks]).astype(np.uint8)


def confident_logits(targets, scale):
    return scale * (2.0 * targets.float() - 1)


# What all mask losses have in common


@pytest.mark.parametrize("loss", MASK_LOSSES)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(3)))
def test_objects_are_independent(loss, seed, order):
    logits, targets = random_batch(seed)
    together = loss(logits, targets)
    assert together.shape == (3,) and together.dtype == torch.float32
    alone = torch.cat([loss(logits[i : i + 1], targets[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(loss(logits[list(order)], targets[list(order)]), together[list(order)])


@pytest.mark.parametrize("loss", MASK_LOSSES)
def test_loss_falls_as_the_logits_approach_the_target(loss):
    targets = torch.from_numpy(vessel_masks())
    values = torch.stack([loss(confident_logits(targets, scale), targets) for scale in (-3, -1, 0, 1, 3, 20)])
    assert (values.diff(dim=0) < 0).all()
    assert (values[-1] < 1e-3).all()


@pytest.mark.parametrize("loss", BOUNDED_LOSSES)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 100.0, 1e4]))
def test_bounded_losses_stay_within_zero_and_one(loss, seed, scale):
    logits, targets = random_batch(seed)
    values = loss(scale * logits, targets)
    assert (values >= -1e-6).all() and (values <= 1).all()


@pytest.mark.parametrize("loss", MASK_LOSSES)
@pytest.mark.parametrize("scale", [1.0, 1e4, -1e4])
@pytest.mark.parametrize("fill", [0, 1, None])
def test_values_and_gradients_are_finite(loss, scale, fill):
    _, targets = random_batch(0)
    if fill is not None:
        targets.fill_(fill)
    logits = confident_logits(targets, scale).requires_grad_()
    values = loss(logits, targets)
    values.sum().backward()
    assert values.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", MASK_LOSSES)
def test_a_descent_step_lowers_the_loss(loss):
    targets = torch.from_numpy(vessel_masks())
    logits = torch.randn(targets.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = loss(logits, targets)
    (gradient,) = torch.autograd.grad(before.sum(), logits)
    after = loss(logits - 0.1 * gradient / gradient.abs().max(), targets)
    assert (after < before).all()


@pytest.mark.parametrize("loss", MASK_LOSSES)
def test_half_precision_is_computed_in_float32(loss):
    targets = torch.from_numpy(vessel_masks())
    logits = torch.randn(targets.shape, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    values = loss(logits, targets)
    assert values.dtype == torch.float32
    assert torch.equal(values, loss(logits.detach().float(), targets))
    values.sum().backward()
    assert logits.grad.dtype == torch.bfloat16 and logits.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits, targets), values)


@pytest.mark.parametrize("loss", MASK_LOSSES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_target_dtype_does_not_matter(loss, dtype):
    logits, targets = random_batch(1)
    assert torch.equal(loss(logits, targets.to(dtype)), loss(logits, targets))


@pytest.mark.parametrize("loss", MASK_LOSSES)
def test_gradients_match_finite_differences(loss):
    _, targets = random_batch(2, n=2, size=6)
    # distinct, well separated logits: the min- and max-pooling of clDice has no gradient at ties
    logits = torch.linspace(-3, 3, 72, dtype=torch.float64)[torch.randperm(72)].reshape(2, 6, 6).requires_grad_()
    options = {"iterations": 2} if loss is soft_cldice_loss else {}
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, **options), (logits,))


@pytest.mark.parametrize("loss", MASK_LOSSES)
def test_no_objects(loss):
    logits = torch.zeros(0, 8, 8, requires_grad=True)
    values = loss(logits, torch.zeros(0, 8, 8, dtype=torch.uint8))
    assert values.shape == (0,)
    values.sum().backward()
    assert logits.grad.shape == (0, 8, 8)


@pytest.mark.parametrize("loss", [*MASK_LOSSES, sample_points])
def test_bad_shapes_are_named(loss):
    with pytest.raises(ValueError, match=r"\(2, 8, 8\).*\(2, 8, 9\)"):
        loss(torch.zeros(2, 8, 8), torch.zeros(2, 8, 9))
    with pytest.raises(ValueError, match=r"\(8,\).*\(8,\)"):
        loss(torch.zeros(8), torch.zeros(8))
    with pytest.raises(ValueError, match="without pixels"):
        loss(torch.zeros(2, 0, 8), torch.zeros(2, 0, 8))
    with pytest.raises(ValueError, match="swapped"):
        loss(torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8))


@pytest.mark.parametrize("loss", BOUNDED_LOSSES)
def test_eps_must_be_positive(loss):
    with pytest.raises(ValueError, match="`eps` must be positive, got 0"):
        loss(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), eps=0)


# Cross-entropy and Dice


def test_bce_matches_torch():
    logits, targets = random_batch(3)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float())
    torch.testing.assert_close(mask_bce_loss(logits, targets).mean(), expected)
    torch.testing.assert_close(mask_bce_loss(logits.flatten(1), targets.flatten(1)).mean(), expected)


def test_dice_loss_matches_mask2former():
    logits, targets = random_batch(4)
    logits, targets = logits.flatten(1), targets.flatten(1)
    expected = mask2former_dice_loss(logits, targets.float(), num_masks=1)
    torch.testing.assert_close(dice_loss(logits, targets).sum(), expected)


def test_dice_loss_matches_monai():
    losses = pytest.importorskip("monai.losses")
    logits, targets = random_batch(4)
    oracle = losses.DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")
    expected = oracle(logits[:, None], targets[:, None].float()).flatten()
    torch.testing.assert_close(dice_loss(logits, targets), expected)


def test_dice_loss_of_confident_masks_is_one_minus_dice():
    target, pred = torch.zeros(1, 10, 10), torch.zeros(1, 10, 10)
    target[:, :4] = 1  # 40 pixels
    pred[:, 2:5] = 1  # 30 pixels, 20 shared
    loss = dice_loss(confident_logits(pred, 1e3), target, eps=1e-6)
    torch.testing.assert_close(loss, torch.tensor([1 - 40 / 70]))
    empty = torch.zeros(1, 10, 10)
    assert dice_loss(confident_logits(empty, 1e3), empty).item() == 0


# Points


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    num_points=st.integers(1, 50),
    oversample_ratio=st.sampled_from([1.0, 2.5, 3.0]),
    importance_ratio=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
)
def test_points_match_mask2former(seed, num_points, oversample_ratio, importance_ratio):
    logits, targets = random_batch(seed % 100)
    torch.manual_seed(seed)
    points = Mask2FormerLoss.sample_points_using_uncertainty(
        None, logits[:, None], lambda x: -x.abs(), num_points, oversample_ratio, importance_ratio
    )
    expected = [sample_point(maps[:, None].float(), points, align_corners=False)[:, 0] for maps in (logits, targets)]
    torch.manual_seed(seed)
    actual = sample_points(logits, targets, num_points, oversample_ratio, importance_ratio)
    torch.testing.assert_close(actual, tuple(expected))


def test_points_interpolate_bilinearly():
    # on planes, the interpolated values give the coordinates back; an independent interpolation must agree at these
    size = 32
    ramp = torch.arange(size, dtype=torch.float64)
    logits = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)]) + 1
    noise = torch.rand(1, size, size, dtype=torch.float64).expand(2, size, size)

    def sample(targets):
        generator = torch.Generator().manual_seed(0)
        return sample_points(logits, targets, 500, importance_ratio=0.0, generator=generator)

    # the two objects have points of their own: read both coordinates off the targets
    x = sample(logits[:1].expand(2, -1, -1))[1] - 1
    y = sample(logits[1:].expand(2, -1, -1))[1] - 1
    point_logits, point_targets = sample(noise)
    inside = (sample(torch.ones_like(noise))[1] > 1 - 1e-6).numpy()  # not damped by the zeros outside of the map
    assert inside.mean() > 0.9
    coordinates = np.stack([y.numpy(), x.numpy()])
    for i in range(2):
        expected = scipy.ndimage.map_coordinates(noise[i].numpy(), coordinates[:, i], order=1)
        np.testing.assert_allclose(point_targets[i].numpy()[inside[i]], expected[inside[i]], atol=1e-5)
    torch.testing.assert_close(point_logits[0], x[0] + 1)
    torch.testing.assert_close(point_logits[1], y[1] + 1)


def test_points_fall_on_the_uncertain_band():
    logits = torch.full((2, 64, 64), -8.0)
    logits[:, :30] = 8.0
    logits[:, 30:34] = torch.tensor([3.0, 1.0, -1.0, -3.0])[:, None]  # the band: one sixteenth of the map
    targets = torch.zeros_like(logits)
    targets[:, 29:35] = 1
    generator = torch.Generator().manual_seed(0)
    in_band = sample_points(logits, targets, 400, oversample_ratio=16.0, generator=generator)[1] > 0.5
    assert (in_band[:, :300].float().mean(1) > 0.9).all()
    assert (in_band[:, 300:].float().mean(1) < 0.25).all()


def test_points_are_deterministic_and_carry_the_gradient_of_the_logits_only():
    logits, targets = random_batch(5)
    logits.requires_grad_()
    first = sample_points(logits, targets, 100, generator=torch.Generator().manual_seed(1))
    torch.rand(10)  # the global generator is not used
    second = sample_points(logits, targets, 100, generator=torch.Generator().manual_seed(1))
    other = sample_points(logits, targets, 100, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == first[1].shape == (3, 100)
    assert first[0].requires_grad and not first[1].requires_grad
    (mask_bce_loss(*first) + dice_loss(*first)).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_points_of_no_objects():
    logits = torch.zeros(0, 8, 8, requires_grad=True)
    point_logits, point_targets = sample_points(logits, torch.zeros(0, 8, 8), 12)
    assert point_logits.shape == point_targets.shape == (0, 12)
    mask_bce_loss(point_logits, point_targets).sum().backward()
    assert logits.grad.shape == (0, 8, 8)


@pytest.mark.parametrize("option", [{"num_points": 0}, {"oversample_ratio": 0.5}, {"importance_ratio": 1.5}])
def test_bad_sampling_options_are_named(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        sample_points(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), **option)


def test_points_need_maps():
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        sample_points(torch.zeros(2, 64), torch.zeros(2, 64))


# Skeletons


def reference_soft_skeleton(image, iterations):
    cross = scipy.ndimage.generate_binary_structure(2, 1)

    def erode(x):
        return scipy.ndimage.grey_erosion(x, footprint=cross, mode="constant", cval=np.inf)

    def residue(x):
        opened = scipy.ndimage.grey_dilation(erode(x), size=(3, 3), mode="constant", cval=-np.inf)
        return np.maximum(x - opened, 0)

    skeleton = residue(image)
    for _ in range(iterations):
        image = erode(image)
        skeleton = skeleton + np.maximum(residue(image) - skeleton * residue(image), 0)
    return skeleton


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), height=st.integers(1, 20), width=st.integers(1, 20), iterations=st.integers(0, 6))
def test_soft_skeleton_matches_morphology(seed, height, width, iterations):
    image = scipy.ndimage.uniform_filter(np.random.default_rng(seed).random((height, width)), 3)
    actual = soft_skeleton(torch.from_numpy(image)[None], iterations)[0].numpy()
    np.testing.assert_allclose(actual, reference_soft_skeleton(image, iterations), atol=1e-12)
    assert (actual >= 0).all() and (actual <= image + 1e-12).all()


@pytest.mark.parametrize("width", [3, 5, 9])
def test_soft_skeleton_needs_half_the_width(width):
    bar = torch.zeros(1, 40, 80)
    bar[:, 15 : 15 + width, 10:70] = 1
    centre = (0, 15 + width // 2, slice(25, 55))
    assert (soft_skeleton(bar, width // 2 - 1)[centre] == 0).all()
    assert (soft_skeleton(bar, (width + 1) // 2)[centre] == 1).all()


def test_soft_skeleton_refuses_other_input():
    with pytest.raises(ValueError, match=r"torch.uint8 of shape \(1, 8, 8\)"):
        soft_skeleton(torch.zeros(1, 8, 8, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8\)"):
        soft_skeleton(torch.zeros(1, 1, 8, 8), 3)
    with pytest.raises(ValueError, match="-1"):
        soft_skeleton(torch.zeros(1, 8, 8), -1)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), iterations=st.integers(0, 5))
def test_cldice_loss_matches_its_definition(seed, iterations):
    logits, targets = random_batch(seed)
    expected = []
    for logit, target in zip(logits.double().numpy(), targets.double().numpy(), strict=True):
        pred = 1 / (1 + np.exp(-logit))
        pred_skeleton, target_skeleton = (reference_soft_skeleton(x, iterations) for x in (pred, target))
        precision = ((pred_skeleton * target).sum() + 1) / (pred_skeleton.sum() + 1)
        sensitivity = ((target_skeleton * pred).sum() + 1) / (target_skeleton.sum() + 1)
        expected.append(1 - 2 / (1 / precision + 1 / sensitivity))
    torch.testing.assert_close(soft_cldice_loss(logits, targets, iterations), torch.tensor(expected).float())


def test_cldice_loss_minds_gaps_not_widths():
    target = torch.from_numpy(vessel_masks())
    thinner = torch.from_numpy(scipy.ndimage.binary_erosion(target.numpy(), np.ones((1, 3, 3))).astype(np.uint8))
    gap = target.clone()
    gap[:, 28:34, :] = 0  # through the slanted and the forked vessel
    gap[0, :, 20:26] = 0
    loss_thinner = soft_cldice_loss(confident_logits(thinner, 20), target)
    loss_gap = soft_cldice_loss(confident_logits(gap, 20), target)
    assert (loss_gap > 2 * loss_thinner).all()
    # for the Dice loss, it is the other way round
    assert (dice_loss(confident_logits(gap, 20), target) < dice_loss(confident_logits(thinner, 20), target)).all()


def test_cldice_loss_matches_monai():
    losses = pytest.importorskip("monai.losses")
    logits, targets = random_batch(6)
    # `smooth` goes into the denominator of the harmonic mean, which needs none
    oracle = losses.SoftclDiceLoss(iter_=4, smooth_nr=1.0, smooth_dr=1.0, smooth=1e-8, sigmoid=True, reduction="none")
    expected = oracle(logits[:, None], targets[:, None].float())
    torch.testing.assert_close(soft_cldice_loss(logits, targets, iterations=4, eps=1.0), expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1, 3, 5]))
def test_same_class_neighbours_match_a_search_of_every_pixel(seed, size):
    logits, targets = random_batch(seed, size=9)
    found, reach = same_class_neighbours(logits, targets, size), size // 2
    for number, row, column in np.ndindex(*logits.shape):
        rows, columns = (slice(max(at - reach, 0), at + reach + 1) for at in (row, column))
        inside = bool(targets[number, row, column])
        own = logits[number, rows, columns][targets[number, rows, columns] == inside]
        assert found[number, row, column] == (own.min() if inside else own.max())


def test_scnp_blames_the_worst_pixel_for_its_neighbours():
    target = torch.zeros(1, 7, 9, dtype=torch.uint8)
    target[0, 3] = 1  # a vessel of one pixel, with a gap in the middle
    logits = confident_logits(target, 4)
    logits[0, 3, 4], logits[0, 3, [3, 5]] = -4, 5
    logits.requires_grad_()
    scnp_loss(logits, target).sum().backward()
    moved = logits.grad[0, 3].abs()
    assert moved[4] > 10 * moved[[0, 1, 2, 6, 7, 8]].max()
    assert (moved[[3, 5]] == 0).all()  # what is right beside a gap waits for it
    plain = logits.detach().clone().requires_grad_()
    (mask_bce_loss(plain, target) + dice_loss(plain, target)).sum().backward()
    assert moved[4] > 2.5 * plain.grad[0, 3, 4].abs()  # three pixels' worth


def test_scnp_of_a_neighbourhood_of_one_is_cross_entropy_and_dice():
    logits, targets = random_batch(3)
    expected = mask_bce_loss(logits, targets) + dice_loss(logits, targets)
    torch.testing.assert_close(scnp_loss(logits, targets, size=1), expected)
    for size in (0, 2, -1):
        with pytest.raises(ValueError, match=f"odd and positive, got {size}"):
            same_class_neighbours(logits, targets, size)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), radius=st.integers(0, 4), density=st.floats(0, 1))
def test_tubed_skeleton_is_a_thickened_skeleton_within_the_mask(seed, radius, density):
    noise = np.random.default_rng(seed).random((2, 14, 17))
    mask = scipy.ndimage.median_filter((noise < density).astype(np.uint8), (1, 3, 3))
    tubes = tubed_skeleton(mask, radius)
    assert tubes.dtype == np.uint8 and tubes.shape == mask.shape
    for tube, one in zip(tubes, mask, strict=True):
        skeleton = skeletonize(one > 0)
        if one.any():
            # within `radius` city-block steps of the skeleton
            near = scipy.ndimage.distance_transform_cdt(~skeleton, metric="taxicab") <= radius
            np.testing.assert_array_equal(tube, near & (one > 0))
            assert tube.any()
        else:
            assert not tube.any()


def test_tubed_skeleton_keeps_the_kind_and_the_components():
    masks = vessel_masks()
    tubes = tubed_skeleton(masks, radius=1)
    assert [label(tube, connectivity=2).max() for tube in tubes] == [1, 1, 1]
    assert (tubes.sum((1, 2)) < masks.sum((1, 2))).all()
    for dtype in (torch.uint8, torch.bool, torch.float32):
        as_tensor = tubed_skeleton(torch.from_numpy(masks).to(dtype), radius=1)
        assert as_tensor.dtype == torch.uint8
        np.testing.assert_array_equal(as_tensor.numpy(), tubes)
    np.testing.assert_array_equal(tubed_skeleton(masks * 255, radius=1), tubes)
    np.testing.assert_array_equal(tubed_skeleton(torch.from_numpy(masks * 255), radius=1).numpy(), tubes)
    np.testing.assert_array_equal(tubed_skeleton(masks[0], radius=1), tubes[0])
    np.testing.assert_array_equal(tubed_skeleton(masks[None], radius=1), tubes[None])
    assert tubed_skeleton(torch.zeros(0, 8, 8)).shape == (0, 8, 8)
    with pytest.raises(ValueError, match=r"\(8,\)"):
        tubed_skeleton(np.zeros(8))
    with pytest.raises(ValueError, match="-1"):
        tubed_skeleton(masks, radius=-1)


def test_skeleton_recall_counts_what_is_missed():
    skeletons = torch.zeros(3, 10, 10, dtype=torch.uint8)
    skeletons[:2, 5] = 1  # 10 pixels; the third has none
    pred = torch.zeros(3, 10, 10)
    pred[:, :, :4] = 1
    pred[1] = 1
    loss = skeleton_recall_loss(confident_logits(pred, 1e3), skeletons, eps=1.0)
    torch.testing.assert_close(loss, torch.tensor([1 - (4 + 1) / (10 + 1), 0.0, 0.0]))


def test_skeleton_recall_has_no_gradient_off_the_skeleton():
    skeletons = tubed_skeleton(torch.from_numpy(vessel_masks()), radius=1)
    logits = torch.zeros(skeletons.shape, requires_grad=True)
    skeleton_recall_loss(logits, skeletons).sum().backward()
    assert (logits.grad[skeletons == 1] < 0).all() and (logits.grad[skeletons == 0] == 0).all()


# Language


def random_tokens(seed, rows=3, length=7, vocabulary=11):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, length, vocabulary, generator=generator)
    labels = torch.randint(vocabulary, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.5] = -100
    return logits, labels


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31))
def test_language_loss_matches_torch(seed):
    logits, labels = random_tokens(seed)
    values = language_modeling_loss(logits, labels)
    for row in range(3):
        if (labels[row] != -100).any():
            torch.testing.assert_close(values[row], torch.nn.CrossEntropyLoss()(logits[row], labels[row]))
        else:
            assert values[row] == 0


def test_language_loss_of_rows_without_supervised_tokens():
    logits, labels = random_tokens(0)
    labels[1] = -100
    logits[1] = float("inf")  # what is ignored cannot spoil anything
    logits.requires_grad_()
    values = language_modeling_loss(logits, labels)
    values.sum().backward()
    assert values[1] == 0 and (values[[0, 2]] > 0).all()
    assert (logits.grad[1] == 0).all() and (logits.grad[[0, 2]][labels[[0, 2]] != -100].abs().sum(-1) > 0).all()

    logits = logits.detach().nan_to_num().requires_grad_()
    values = language_modeling_loss(logits, torch.full_like(labels, -100))
    values.sum().backward()
    assert (values == 0).all() and (logits.grad == 0).all()


def test_language_loss_in_half_precision_and_with_extreme_logits():
    logits, labels = random_tokens(1)
    low = logits.bfloat16().requires_grad_()
    values = language_modeling_loss(low, labels)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, language_modeling_loss(low.detach().float(), labels))
    values.sum().backward()
    assert low.grad.dtype == torch.bfloat16
    extreme = (1e4 * logits).requires_grad_()
    values = language_modeling_loss(extreme, labels)
    values.sum().backward()
    assert values.isfinite().all() and extreme.grad.isfinite().all()


def test_language_loss_gradients_match_finite_differences():
    logits, labels = random_tokens(2, rows=2, length=3, vocabulary=4)
    labels[0, 0] = 1
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: language_modeling_loss(x, labels), (logits,))


def test_language_loss_takes_another_ignore_index_and_empty_batches():
    logits, labels = random_tokens(3)
    expected = language_modeling_loss(logits, labels)
    labels[labels == -100] = 0
    labels_zero_ignored = language_modeling_loss(logits, labels, ignore_index=0)
    unspoilt = (random_tokens(3)[1] != 0).all(1)
    torch.testing.assert_close(labels_zero_ignored[unspoilt], expected[unspoilt])
    assert unspoilt.any()

    empty = torch.zeros(0, 5, 11, requires_grad=True)
    values = language_modeling_loss(empty, torch.zeros(0, 5, dtype=torch.long))
    values.sum().backward()
    assert values.shape == (0,) and empty.grad.shape == empty.shape


@pytest.mark.parametrize("shape", [(3, 6), (2, 7), (21,), (3, 7, 1)])
def test_language_loss_names_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"\(3, 7, 11\) and \(" + ", ".join(map(str, shape))):
        language_modeling_loss(torch.zeros(3, 7, 11), torch.zeros(shape, dtype=torch.long))


# Preferences over masks


def pair_of_masks(generator=None, n=3, size=6):
    chosen = torch.rand(n, size, size, generator=generator) > 0.5
    rejected = chosen ^ (torch.rand(n, size, size, generator=generator) > 0.7)
    return chosen.to(torch.uint8), rejected.to(torch.uint8)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_soft_dice_of_a_binary_map_is_its_dice(seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = pair_of_masks(generator)
    value = losses.soft_dice(one.float(), other, eps=1e-9)
    overlap = (one & other).flatten(1).sum(1).double()
    expected = 2 * overlap / (one.flatten(1).sum(1) + other.flatten(1).sum(1)).clamp(min=1e-9)
    assert torch.allclose(value.double(), expected, atol=1e-6)
    assert torch.equal(losses.soft_dice(torch.zeros(1, 4), torch.zeros(1, 4)), torch.ones(1))


@pytest.mark.parametrize("score", losses.PREFERENCE_SCORES)
def test_a_policy_that_is_its_reference_has_margin_zero_and_loss_log_two(score):
    chosen, rejected = pair_of_masks()
    logits = torch.randn(3, 6, 6)
    one, two = losses.mask_rewards(logits, chosen, rejected, score, logits.clone())
    assert torch.equal(one, torch.zeros(3)) and torch.equal(two, torch.zeros(3))
    assert torch.allclose(losses.preference_loss(one - two), torch.full((3,), math.log(2)))
    assert torch.allclose(losses.preference_loss(one - two, "robust", 2.0, 0.1), torch.full((3,), math.log(2)))


@pytest.mark.parametrize("loss_type", losses.PREFERENCE_LOSSES)
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("score", losses.PREFERENCE_SCORES)
def test_preference_gradients_are_those_of_finite_differences(score, with_reference, loss_type):
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = pair_of_masks(generator, n=2, size=4)
    logits = torch.randn(2, 4, 4, dtype=torch.double, generator=generator, requires_grad=True)
    reference = torch.randn(2, 4, 4, dtype=torch.double, generator=generator) if with_reference else None
    smoothing = 0.1 if loss_type == "robust" else 0.0

    def loss(logits):
        one, two = losses.mask_rewards(logits, chosen, rejected, score, reference)
        return losses.preference_loss(one - two, loss_type, beta=0.7, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, (logits,))


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_region_margin_is_linear_in_the_logits_of_disputed_pixels(seed):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = pair_of_masks(generator)
    logits = (4 * torch.randn(3, 6, 6, dtype=torch.double, generator=generator)).requires_grad_()
    reference = 4 * torch.randn(3, 6, 6, dtype=torch.double, generator=generator)
    one, two = losses.mask_rewards(logits, chosen, rejected, "region", reference)
    disputed = chosen != rejected
    sign = torch.where(chosen.bool(), 1.0, -1.0).double()
    area = disputed.flatten(1).sum(1).clamp(min=1)
    closed = ((logits - reference) * sign * disputed).flatten(1).sum(1) / area
    assert torch.allclose(one - two, closed)
    # The definition: log-likelihood ratios of Bernoulli pixels, from an independent implementation.
    policy, base = (torch.distributions.Bernoulli(logits=x) for x in (logits, reference))
    for reward, mask in ((one, chosen), (two, rejected)):
        ratio = policy.log_prob(mask.double()) - base.log_prob(mask.double())
        assert torch.allclose(reward, (ratio * disputed).flatten(1).sum(1) / area)
    (gradient,) = torch.autograd.grad(losses.preference_loss(one - two).sum(), logits)
    assert torch.equal(gradient[~disputed], torch.zeros_like(gradient[~disputed]))
    assert (gradient[disputed] != 0).all()
    assert torch.equal(gradient[disputed] < 0, chosen.bool()[disputed])  # descent raises what is chosen


def test_a_pair_without_dispute_teaches_nothing_and_stays_connected():
    logits = torch.randn(2, 3, 3, requires_grad=True)
    masks = (torch.rand(2, 3, 3) > 0.5).to(torch.uint8)
    one, two = losses.mask_rewards(logits, masks, masks, "region", torch.randn(2, 3, 3))
    losses.preference_loss(one - two).sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_no_gradient_reaches_the_reference():
    chosen, rejected = pair_of_masks()
    logits, reference = (torch.randn(3, 6, 6, requires_grad=True) for _ in range(2))
    for score in losses.PREFERENCE_SCORES:
        one, two = losses.mask_rewards(logits, chosen, rejected, score, reference)
        (one - two).sum().backward()
    assert logits.grad.abs().max() > 0 and reference.grad is None


@pytest.mark.parametrize(
    ("loss_type", "margin", "expected"),
    [
        ("sigmoid", 1.5, math.log(1 + math.exp(-3.0))),
        ("hinge", 0.2, 0.6),
        ("hinge", 0.7, 0.0),
        ("ipo", 0.2, (0.2 - 0.25) ** 2),
        ("robust", 1.5, (0.9 * math.log(1 + math.exp(-3.0)) - 0.1 * math.log(1 + math.exp(3.0))) / 0.8),
    ],
)
def test_preference_losses_by_hand(loss_type, margin, expected):
    smoothing = 0.1 if loss_type == "robust" else 0.0
    value = losses.preference_loss(torch.tensor([margin]), loss_type, beta=2.0, label_smoothing=smoothing)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_type": "kto"}, "`loss_type` must be one of"),
        ({"beta": 0.0}, "`beta` must be positive"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, r"\[0, 0.5\)"),
        ({"label_smoothing": 0.1}, "no effect with loss_type='sigmoid'"),
    ],
)
def test_preference_options_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.preference_loss(torch.zeros(1), **arguments)
    with pytest.raises(ValueError, match="`score` must be one of"):
        losses.mask_rewards(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4), "iou")


# The mask losses of a batch

WEIGHTS = ("mask_weight", "dice_weight", "skeleton_recall_weight", "cldice_weight", "scnp_weight", "iou_weight")


def drawn_batch():
    """Logits, predicted IoUs, masks on a finer grid, and the row of each mask."""
    logits = 3 * torch.sin(torch.arange(3 * 16 * 16).reshape(3, 16, 16) * 0.37)
    masks = (torch.cos(torch.arange(3 * 24 * 24).reshape(3, 24, 24) * 0.11) > 0.3).byte()
    return logits, torch.tensor([0.2, 0.5, 0.9]), masks, torch.tensor([0, 2, 2])


@pytest.mark.parametrize(
    ("num_points", "mask_loss", "dice"),
    [(0, 0.5601446628570557, 0.2729187309741974), (200, 0.4104825258255005, 0.2636168897151947)],
)
def test_mask_losses_are_what_they_have_always_been(num_points, mask_loss, dice):
    """Recorded when they were the trainer's (SCNP: when it came)."""
    logits, ious, masks, rows = drawn_batch()
    torch.manual_seed(0)
    found = losses.mask_losses(
        *(logits, ious, masks, rows, 4, tubed_skeleton(masks)),
        **dict.fromkeys(WEIGHTS, 1.0),
        num_points=num_points,
        cldice_iterations=3,
    )
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "mask_loss": mask_loss,
            "dice_loss": dice,
            "skeleton_recall_loss": 0.2460964024066925,
            "cldice_loss": 0.24283187091350555,
            "scnp_loss": 0.9939319491386414,
            "iou_loss": 0.052833691239356995,
        },
        rel=1e-5,
    )


def test_every_row_of_a_batch_counts_alike():
    rows = torch.tensor([0, 2, 2, 2])
    share = losses.mask_shares(rows, 4)
    torch.testing.assert_close(torch.zeros(4).index_add(0, rows, share), torch.tensor([0.25, 0, 0.25, 0]))
    assert share.unique().tolist() == pytest.approx([1 / 12, 1 / 4])


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_weight_says_which_losses_are_computed_and_not_how_much_they_count(weight):
    logits, ious, masks, rows = drawn_batch()
    skeletons = tubed_skeleton(masks)

    def found(value):
        weights = {**dict.fromkeys(WEIGHTS, 0.0), weight: value}
        return losses.mask_losses(logits, ious, masks, rows, 4, skeletons, **weights, num_points=0)

    names = {weight.replace("_weight", "_loss")}
    if weight in WEIGHTS[:2]:
        names = {"mask_loss", "dice_loss"}
    assert set(found(1.0)) == names and not found(0.0)
    for name, value in found(7.0).items():
        assert torch.equal(value, found(1.0)[name])


@pytest.mark.parametrize("size", [16, 24])
def test_mask_losses_without_masks_are_zero_and_have_a_gradient(size):
    logits, ious = torch.zeros(0, 16, 16, requires_grad=True), torch.zeros(0)
    masks, rows = torch.zeros(0, size, size, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)
    found = losses.mask_losses(logits, ious, masks, rows, 2, masks, **dict.fromkeys(WEIGHTS, 1.0))
    assert len(found) == 6 and all(value == 0 for value in found.values())
    sum(found.values()).backward()
    assert logits.grad is not None


def test_mask_losses_name_what_does_not_fit():
    logits, ious, masks, rows = drawn_batch()
    with pytest.raises(ValueError, match=r"hold 3 \[SEG\] for 2 masks"):
        losses.mask_losses(logits, ious, masks[:2], rows, 4)
    with pytest.raises(ValueError, match="needs `skeletons`"):
        losses.mask_losses(logits, ious, masks, rows, 4, skeleton_recall_weight=1.0)
