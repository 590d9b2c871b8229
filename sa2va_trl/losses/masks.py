"""Losses of a mask pixel by pixel or point by point."""

import torch
import torch.nn.functional as F

from .checks import check_eps, prepare


def mask_bce_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Binary cross-entropy, averaged over the pixels (or sampled points) of each object.

    Args:
        logits (`torch.Tensor` of shape `(N, P)` or `(N, H, W)`):
            Mask logits.
        targets (`torch.Tensor`, same shape):
            Masks in [0, 1]; fractional values, as `sample_points` gives at borders, are allowed.

    Returns:
        `torch.Tensor` of shape `(N,)`, values in [0, inf).

    Raises:
        `ValueError`: the shapes differ, have fewer than two dimensions, or an object has no pixels.
    """
    logits, targets = prepare(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).mean(1)


def dice_loss(logits: torch.Tensor, targets: torch.Tensor, eps: float = 1.0) -> torch.Tensor:
    """
    Soft Dice loss with first-power denominators, as in the official Sa2VA training code:
    `1 - (2 sum(p g) + eps) / (sum(p) + sum(g) + eps)` for `p = sigmoid(logits)`.

    Args:
        logits (`torch.Tensor` of shape `(N, P)` or `(N, H, W)`):
            Mask logits.
        targets (`torch.Tensor`, same shape):
            Masks in [0, 1].
        eps (`float`, *optional*, defaults to `1.0`):
            Smoothing, in pixels; must be positive. It makes the loss of an empty prediction of an empty mask 0.

    Returns:
        `torch.Tensor` of shape `(N,)`, values in [0, 1).

    Raises:
        `ValueError`: the shapes differ, have fewer than two dimensions, an object has no pixels, or `eps` is not
        positive.
    """
    check_eps(eps)
    logits, targets = prepare(logits, targets)
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (probabilities * targets).sum(1)
    return 1 - (2 * overlap + eps) / (probabilities.sum(1) + targets.sum(1) + eps)


def soft_dice(probabilities: torch.Tensor, masks: torch.Tensor, eps: float = 1.0) -> torch.Tensor:
    """
    Dice coefficient of a probability map with a mask, `(2 sum(p m) + eps) / (sum(p) + sum(m) + eps)`.

    Args:
        probabilities (`torch.Tensor` of shape `(N, P)` or `(N, H, W)`): in [0, 1].
        masks (`torch.Tensor`): of the same shape, {0, 1}.
        eps (`float`, *optional*, defaults to 1.0): makes two empty masks equal.

    Returns:
        `torch.Tensor` of shape `(N,)`, at least float32, in (0, 1].

    Raises:
        `ValueError`: shapes that differ, or `eps` is not positive.
    """
    probabilities, masks = (tensor.flatten(1) for tensor in prepare(probabilities, masks))
    check_eps(eps)
    return (2 * (probabilities * masks).sum(1) + eps) / (probabilities.sum(1) + masks.sum(1) + eps)


def sample_points(
    logits: torch.Tensor,
    targets: torch.Tensor,
    num_points: int = 12544,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Logits and targets at random points, most of them where the prediction is uncertain (PointRend, Kirillov et al.,
    CVPR 2020, arXiv 1912.08193; with the defaults of Mask2Former and of the official Sa2VA training code).

    `oversample_ratio * num_points` points are drawn uniformly for each object; the `importance_ratio * num_points`
    with the smallest `|logit|` are kept, and fresh uniform points make up the rest. The choice carries no gradient.
    Values are interpolated bilinearly, with zeros outside of the map as in the reference implementations: a point
    within half a pixel of the map's edge is damped towards logit 0 and target 0 alike.

    Args:
        logits (`torch.Tensor` of shape `(N, H, W)`):
            Mask logits.
        targets (`torch.Tensor`, same shape):
            Masks in [0, 1].
        num_points (`int`, *optional*, defaults to `12544`):
            Points an object, P.
        oversample_ratio (`float`, *optional*, defaults to `3.0`):
            Candidates drawn for each point, at least 1.
        importance_ratio (`float`, *optional*, defaults to `0.75`):
            Share of the points that are the most uncertain candidates, in [0, 1].
        generator (`torch.Generator`, *optional*):
            Source of randomness. It may live on another device than the logits: the points are drawn on its own.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: logits and targets at the points, both of shape `(N, P)`; only the first
        has a gradient. The uncertain points come first.

    Raises:
        `ValueError`: the shapes differ or are not `(N, H, W)`, or an option is out of its range.
    """
    if num_points < 1 or oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
        raise ValueError(
            "`num_points` and `oversample_ratio` must be at least 1 and `importance_ratio` within [0, 1], got "
            f"num_points={num_points}, oversample_ratio={oversample_ratio}, importance_ratio={importance_ratio}."
        )
    logits, targets = prepare(logits, targets, spatial=True)
    num_uncertain = int(importance_ratio * num_points)

    with torch.no_grad():
        candidates = _uniform_points(logits, int(oversample_ratio * num_points), generator)
        uncertainty = -_interpolate(logits, candidates).abs()
        chosen = uncertainty.topk(num_uncertain, dim=1).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        points = torch.cat([uncertain, _uniform_points(logits, num_points - num_uncertain, generator)], dim=1)
        point_targets = _interpolate(targets, points)
    return _interpolate(logits, points), point_targets


def _uniform_points(maps: torch.Tensor, num_points: int, generator: torch.Generator | None) -> torch.Tensor:
    """Points (N, P, 2) in [0, 1), x before y."""
    device = maps.device if generator is None else generator.device
    return torch.rand(len(maps), num_points, 2, generator=generator, device=device).to(maps)


def _interpolate(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values (N, P) of maps (N, H, W) at points (N, P, 2) in [0, 1], where 0 and 1 are the outer edges of the map."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps[:, None], grid, mode="bilinear", align_corners=False)[:, 0, :, 0]
