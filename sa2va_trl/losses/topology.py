"""Losses of what a mask connects."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from skimage.morphology import diamond, dilation

from ..skeletons import skeletons
from .checks import check_eps, prepare
from .masks import dice_loss, mask_bce_loss


def soft_skeleton(probabilities: torch.Tensor, iterations: int) -> torch.Tensor:
    """
    Differentiable skeleton by iterated min- and max-pooling (Shit et al., CVPR 2021, arXiv 2003.07311, algorithm 1).

    Args:
        probabilities (`torch.Tensor` of shape `(N, H, W)`):
            Floating-point maps in [0, 1].
        iterations (`int`):
            Erosions. Must be at least half the width in pixels of the widest structure: the centreline of anything
            wider is not part of the result.

    Returns:
        `torch.Tensor` of shape `(N, H, W)`, values in [0, 1].

    Raises:
        `ValueError`: `probabilities` is not a floating-point tensor of three dimensions, or `iterations` is negative.
    """
    if probabilities.dim() != 3 or not probabilities.is_floating_point():
        raise ValueError(
            f"`probabilities` must be a floating-point tensor of shape (N, H, W), got {probabilities.dtype} of shape "
            f"{tuple(probabilities.shape)}."
        )
    if iterations < 0:
        raise ValueError(f"`iterations` must not be negative, got {iterations}.")
    eroded = probabilities[:, None]  # pooling takes an empty batch only with a channel dimension
    skeleton = torch.zeros_like(eroded)
    for _ in range(iterations + 1):
        smaller = _soft_erode(eroded)
        opened = F.max_pool2d(smaller, 3, stride=1, padding=1)
        ridge = F.relu(eroded - opened)
        skeleton = skeleton + ridge * (1 - skeleton)  # fuzzy union: stays within [0, 1]
        eroded = smaller
    return skeleton[:, 0]


def soft_cldice_loss(
    logits: torch.Tensor, targets: torch.Tensor, iterations: int = 10, eps: float = 1.0
) -> torch.Tensor:
    """
    Soft clDice loss (Shit et al., CVPR 2021, arXiv 2003.07311): one minus the harmonic mean of how much of the
    predicted skeleton lies within the target and how much of the target's skeleton within the prediction.

    It says nothing about the width of a structure, so it is an addition to `dice_loss`, not a replacement. Its cost in
    time and memory grows with `iterations`; `skeleton_recall_loss` is the cheap alternative.

    Args:
        logits (`torch.Tensor` of shape `(N, H, W)`):
            Mask logits.
        targets (`torch.Tensor`, same shape):
            Masks in [0, 1].
        iterations (`int`, *optional*, defaults to `10`):
            Iterations of `soft_skeleton`, at least half the width in pixels of the widest vessel on this grid.
        eps (`float`, *optional*, defaults to `1.0`):
            Smoothing of both ratios, in pixels; must be positive.

    Returns:
        `torch.Tensor` of shape `(N,)`, values in [0, 1).

    Raises:
        `ValueError`: the shapes differ or are not `(N, H, W)`, or `eps` or `iterations` is out of its range.
    """
    check_eps(eps)
    logits, targets = prepare(logits, targets, spatial=True)
    probabilities = logits.sigmoid()
    predicted_skeleton = soft_skeleton(probabilities, iterations)
    with torch.no_grad():
        target_skeleton = soft_skeleton(targets, iterations)
    precision = _covered_share(predicted_skeleton, targets, eps)
    sensitivity = _covered_share(target_skeleton, probabilities, eps)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def tubed_skeleton(masks: torch.Tensor | np.ndarray, radius: int = 2) -> torch.Tensor | np.ndarray:
    """
    Skeletons of masks, thickened by `radius` pixels and cut to the mask (Kirchhoff et al., ECCV 2024, arXiv
    2404.03010). Computed on the CPU, meant for the data loader.

    Args:
        masks (`torch.Tensor` or `np.ndarray` of shape `(..., H, W)`):
            Masks; anything but 0 is foreground.
        radius (`int`, *optional*, defaults to `2`):
            Thickening in pixels (city-block distance); 0 keeps the bare skeleton.

    Returns:
        `torch.Tensor` or `np.ndarray`, as given: uint8 {0, 1}, same shape (and device). All zero where the mask is
        empty, never all zero elsewhere.

    Raises:
        `ValueError`: `masks` has fewer than two dimensions or `radius` is negative.
    """
    if masks.ndim < 2:
        raise ValueError(f"`masks` must have shape (..., H, W), got {tuple(masks.shape)}.")
    if radius < 0:
        raise ValueError(f"`radius` must not be negative, got {radius}.")
    if isinstance(masks, torch.Tensor):
        return torch.from_numpy(tubed_skeleton((masks != 0).cpu().numpy(), radius)).to(masks.device)
    foreground = masks != 0
    planes = foreground.reshape(math.prod(masks.shape[:-2]), *masks.shape[-2:])
    tubes = skeletons(planes).reshape(masks.shape).astype(np.uint8)
    for index in np.ndindex(masks.shape[:-2]):
        tubes[index] = dilation(tubes[index], diamond(radius)) & foreground[index]
    return tubes


def skeleton_recall_loss(logits: torch.Tensor, skeletons: torch.Tensor, eps: float = 1.0) -> torch.Tensor:
    """
    Share of the target's skeleton that the prediction misses, `1 - (sum(p s) + eps) / (sum(s) + eps)` (Kirchhoff et
    al., ECCV 2024, arXiv 2404.03010). It never punishes a false positive, so it is an addition to `dice_loss`, not a
    replacement.

    Args:
        logits (`torch.Tensor` of shape `(N, P)` or `(N, H, W)`):
            Mask logits.
        skeletons (`torch.Tensor`, same shape):
            Skeletons of the target masks, from `tubed_skeleton`. The loss of an empty one is 0.
        eps (`float`, *optional*, defaults to `1.0`):
            Smoothing, in pixels; must be positive.

    Returns:
        `torch.Tensor` of shape `(N,)`, values in [0, 1).

    Raises:
        `ValueError`: the shapes differ, have fewer than two dimensions, an object has no pixels, or `eps` is not
        positive.
    """
    check_eps(eps)
    logits, skeletons = prepare(logits, skeletons)
    return 1 - _covered_share(skeletons, logits.sigmoid(), eps)


def same_class_neighbours(logits: torch.Tensor, targets: torch.Tensor, size: int = 3) -> torch.Tensor:
    """
    Logits replaced by the worst of their neighbourhood: in the foreground the smallest logit of the foreground around,
    in the background the largest of the background around (SCNP, Valverde et al., CVPR 2026, arXiv 2603.18671).
    Gradients so reach the worst pixel first, as often as it has neighbours of its own class.

    Args:
        logits (`torch.Tensor` of shape `(N, H, W)`):
            Mask logits.
        targets (`torch.Tensor`, same shape):
            Masks in [0, 1]; above 0.5 is foreground.
        size (`int`, *optional*, defaults to `3`):
            Side of the square neighbourhood in pixels, odd; 1 changes nothing.

    Returns:
        `torch.Tensor` of shape `(N, H, W)`, at least float32.

    Raises:
        `ValueError`: the shapes differ or are not `(N, H, W)`, or `size` is not odd and positive.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"`size` must be odd and positive, got {size}.")
    logits, targets = prepare(logits, targets, spatial=True)
    inside, lowest = targets > 0.5, torch.finfo(logits.dtype).min

    def highest_around(maps: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        others_out = torch.where(own, maps, lowest)[:, None]
        return F.max_pool2d(others_out, size, stride=1, padding=size // 2)[:, 0]

    return torch.where(inside, -highest_around(-logits, inside), highest_around(logits, ~inside))


def scnp_loss(logits: torch.Tensor, targets: torch.Tensor, size: int = 3, eps: float = 1.0) -> torch.Tensor:
    """
    Cross-entropy plus Dice loss of [`same_class_neighbours`], the loss that SCNP (Valverde et al., CVPR 2026, arXiv
    2603.18671) was published with: in place of those of the logits themselves, or in addition to them.

    Args:
        logits, targets, size: as of [`same_class_neighbours`].
        eps (`float`, *optional*, defaults to `1.0`):
            Smoothing of `dice_loss`, in pixels; must be positive.

    Returns:
        `torch.Tensor` of shape `(N,)`, values in [0, inf).

    Raises:
        `ValueError`: the shapes differ or are not `(N, H, W)`, or `size` or `eps` is out of its range.
    """
    worst = same_class_neighbours(logits, targets, size)
    return mask_bce_loss(worst, targets) + dice_loss(worst, targets, eps)


def _covered_share(skeletons: torch.Tensor, masks: torch.Tensor, eps: float) -> torch.Tensor:
    skeletons, masks = skeletons.flatten(1), masks.flatten(1)
    return ((skeletons * masks).sum(1) + eps) / (skeletons.sum(1) + eps)


def _soft_erode(maps: torch.Tensor) -> torch.Tensor:
    """Minimum over a pixel and its four neighbours."""
    vertical = -F.max_pool2d(-maps, (3, 1), stride=1, padding=(1, 0))
    horizontal = -F.max_pool2d(-maps, (1, 3), stride=1, padding=(0, 1))
    return torch.minimum(vertical, horizontal)
