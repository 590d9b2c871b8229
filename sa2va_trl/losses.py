"""Loss functions of mask and language training.

Every mask loss takes logits and returns one value an object, shape `(N,)`, and `language_modeling_loss` one a row, so
that the caller chooses how objects and rows are averaged. All of them compute in float32 (float64 if given float64)
whatever the precision of the model, accept `N = 0`, and have finite gradients however confident the logits.

Mask targets may be `bool`, integer or floating point with values in [0, 1]. The range is not checked here, because
that would make the host wait for the accelerator at every step: masks are checked when the dataset is read.
"""

import numpy as np
import torch
import torch.nn.functional as F
from skimage.morphology import diamond, dilation, skeletonize


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
        ValueError: if the shapes differ, have fewer than two dimensions, or an object has no pixels.
    """
    logits, targets = _prepare(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).mean(1)


def dice_loss(logits: torch.Tensor, targets: torch.Tensor, eps: float = 1.0) -> torch.Tensor:
    """
    Soft Dice loss with first-power denominators, `1 - (2 sum(p g) + eps) / (sum(p) + sum(g) + eps)` for `p =
    sigmoid(logits)`, as in the official Sa2VA training code.

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
        ValueError: if the shapes differ, have fewer than two dimensions, an object has no pixels, or `eps` is not
        positive.
    """
    _check_eps(eps)
    logits, targets = _prepare(logits, targets)
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (probabilities * targets).sum(1)
    return 1 - (2 * overlap + eps) / (probabilities.sum(1) + targets.sum(1) + eps)


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
        ValueError: if the shapes differ or are not `(N, H, W)`, or an option is out of its range.
    """
    if num_points < 1 or oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
        raise ValueError(
            "`num_points` and `oversample_ratio` must be at least 1 and `importance_ratio` within [0, 1], got "
            f"num_points={num_points}, oversample_ratio={oversample_ratio}, importance_ratio={importance_ratio}."
        )
    logits, targets = _prepare(logits, targets, spatial=True)
    num_uncertain = int(importance_ratio * num_points)

    with torch.no_grad():
        candidates = _uniform_points(logits, int(oversample_ratio * num_points), generator)
        uncertainty = -_interpolate(logits, candidates).abs()
        chosen = uncertainty.topk(num_uncertain, dim=1).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        points = torch.cat([uncertain, _uniform_points(logits, num_points - num_uncertain, generator)], dim=1)
        point_targets = _interpolate(targets, points)
    return _interpolate(logits, points), point_targets


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
        ValueError: if `probabilities` is not a floating-point tensor of three dimensions, or `iterations` is negative.
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
        ValueError: if the shapes differ or are not `(N, H, W)`, or `eps` or `iterations` is out of its range.
    """
    _check_eps(eps)
    logits, targets = _prepare(logits, targets, spatial=True)
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
        ValueError: if `masks` has fewer than two dimensions or `radius` is negative.
    """
    if masks.ndim < 2:
        raise ValueError(f"`masks` must have shape (..., H, W), got {tuple(masks.shape)}.")
    if radius < 0:
        raise ValueError(f"`radius` must not be negative, got {radius}.")
    if isinstance(masks, torch.Tensor):
        skeletons = tubed_skeleton((masks != 0).cpu().numpy(), radius)
        return torch.from_numpy(skeletons).to(masks.device)
    foreground = masks != 0
    tubes = np.zeros(masks.shape, dtype=np.uint8)
    for index in np.ndindex(masks.shape[:-2]):
        tubes[index] = dilation(skeletonize(foreground[index]), diamond(radius)) & foreground[index]
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
        ValueError: if the shapes differ, have fewer than two dimensions, an object has no pixels, or `eps` is not
        positive.
    """
    _check_eps(eps)
    logits, skeletons = _prepare(logits, skeletons)
    return 1 - _covered_share(skeletons, logits.sigmoid(), eps)


def language_modeling_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    """
    Cross-entropy of each row, averaged over its supervised tokens.

    Nothing is shifted here: `labels[:, t]` is the target of `logits[:, t]`. Only the supervised positions are
    converted to float32, so a long prompt costs no second copy of its logits.

    Args:
        logits (`torch.Tensor` of shape `(B, T, V)`):
            Token logits.
        labels (`torch.Tensor` of shape `(B, T)`, int64):
            Target token ids, already aligned with the logits.
        ignore_index (`int`, *optional*, defaults to `-100`):
            Label of the positions that are not supervised.

    Returns:
        `torch.Tensor` of shape `(B,)`, values in [0, inf). A row without supervised tokens gives 0 and zero gradients.

    Raises:
        ValueError: if the shapes are not `(B, T, V)` and `(B, T)`.
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            "`logits` must have shape (B, T, V) and `labels` (B, T), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    supervised = labels != ignore_index
    losses = F.cross_entropy(_at_least_float32(logits[supervised]), labels[supervised], reduction="none")
    rows = supervised.nonzero()[:, 0]
    totals = losses.new_zeros(len(labels)).index_add(0, rows, losses)
    return totals / supervised.sum(1).clamp(min=1)


def soft_dice(probabilities: torch.Tensor, masks: torch.Tensor, eps: float = 1.0) -> torch.Tensor:
    """
    Dice of a probability map with a mask, `(2 sum(p m) + eps) / (sum(p) + sum(m) + eps)`.

    Args:
        probabilities (`torch.Tensor` of shape `(N, P)` or `(N, H, W)`): in [0, 1].
        masks (`torch.Tensor`): of the same shape, {0, 1}.
        eps (`float`, *optional*, defaults to 1.0): makes two empty masks equal.

    Returns:
        `torch.Tensor` of shape `(N,)`, at least float32, in (0, 1].

    Raises:
        `ValueError`: shapes that differ, or `eps` is not positive.
    """
    probabilities, masks = (tensor.flatten(1) for tensor in _prepare(probabilities, masks))
    _check_eps(eps)
    return (2 * (probabilities * masks).sum(1) + eps) / (probabilities.sum(1) + masks.sum(1) + eps)


PREFERENCE_SCORES = ("dice", "log_dice", "region")
PREFERENCE_LOSSES = ("sigmoid", "hinge", "ipo", "robust")


def mask_rewards(
    logits: torch.Tensor,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    score: str,
    reference_logits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Implicit rewards of a preferred and a rejected mask under a deterministic map of logits, before `beta`.

    `"dice"` is the soft Dice of the predicted probabilities with each mask and `"log_dice"` its logarithm; with a
    reference, the reference's own value is taken off. `"region"` is the log-likelihood ratio of pixel-wise Bernoulli
    distributions, summed over the pixels where the two masks differ and divided by their number (RN-DPO, arXiv
    2601.23222): there, the difference of both rewards is the mean of `±(logit - reference logit)`, so that only
    disputed pixels get a gradient. Without a reference its logits count as zero.

    Args:
        logits (`torch.Tensor` of shape `(N, P)` or `(N, H, W)`): of the policy.
        chosen, rejected (`torch.Tensor`): of the same shape, {0, 1}.
        score (`str`): `"dice"`, `"log_dice"` or `"region"`.
        reference_logits (`torch.Tensor`, *optional*): like `logits`, of the reference; no gradient reaches it.

    Returns:
        Rewards of `chosen` and of `rejected`, each of shape `(N,)`, at least float32. Of a pair without disputed
        pixels, `"region"` gives zeros that are still functions of `logits`.

    Raises:
        `ValueError`: an unknown score, or shapes that differ.
    """
    if score not in PREFERENCE_SCORES:
        raise ValueError(f"`score` must be one of {', '.join(PREFERENCE_SCORES)}, got {score!r}.")
    policy, chosen = (tensor.flatten(1) for tensor in _prepare(logits, chosen))
    rejected = _prepare(logits, rejected)[1].flatten(1)
    reference = None
    if reference_logits is not None:
        reference = _prepare(logits, reference_logits.detach())[1].flatten(1)
    if score == "region":
        disputed = (chosen != rejected).to(policy.dtype)
        area = disputed.sum(1).clamp(min=1)

        def reward(mask):
            # log p(mask) of a Bernoulli with these logits is minus its cross-entropy.
            log_ratio = -F.binary_cross_entropy_with_logits(policy, mask, reduction="none")
            base = torch.zeros_like(policy) if reference is None else reference
            log_ratio = log_ratio + F.binary_cross_entropy_with_logits(base, mask, reduction="none")
            return (log_ratio * disputed).sum(1) / area

        return reward(chosen), reward(rejected)

    def reward(mask):
        value = soft_dice(policy.sigmoid(), mask)
        base = None if reference is None else soft_dice(reference.sigmoid(), mask)
        if score == "log_dice":
            value, base = value.log(), None if base is None else base.log()
        return value if base is None else value - base

    return reward(chosen), reward(rejected)


def preference_loss(
    margins: torch.Tensor, loss_type: str = "sigmoid", beta: float = 0.1, label_smoothing: float = 0.0
) -> torch.Tensor:
    """
    Loss of a margin between a preferred and a rejected sample, as in `trl.DPOTrainer`.

    Args:
        margins (`torch.Tensor` of shape `(N,)`): reward of the chosen minus reward of the rejected, before `beta`.
        loss_type (`str`, *optional*, defaults to `"sigmoid"`):
            `"sigmoid"` (DPO, arXiv 2305.18290), `"hinge"` (SLiC, arXiv 2305.10425), `"ipo"` (arXiv 2310.12036) or
            `"robust"` (arXiv 2403.00409: unbiased where a known share of preferences is wrong).
        beta (`float`, *optional*, defaults to 0.1): positive.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of preferences that is wrong, in [0, 0.5), with `"robust"`.

    Returns:
        `torch.Tensor` of shape `(N,)`.

    Raises:
        `ValueError`: an unknown type, `beta` not positive, or `label_smoothing` out of range or without `"robust"`.
    """
    if loss_type not in PREFERENCE_LOSSES:
        raise ValueError(f"`loss_type` must be one of {', '.join(PREFERENCE_LOSSES)}, got {loss_type!r}.")
    if not beta > 0:
        raise ValueError(f"`beta` must be positive, got {beta}.")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"`label_smoothing` must lie in [0, 0.5), got {label_smoothing}.")
    if label_smoothing and loss_type != "robust":
        raise ValueError(f"`label_smoothing` has no effect with loss_type={loss_type!r}, only with 'robust'.")
    if loss_type == "hinge":
        return F.relu(1 - beta * margins)
    if loss_type == "ipo":
        return (margins - 1 / (2 * beta)) ** 2
    right, wrong = -F.logsigmoid(beta * margins), -F.logsigmoid(-beta * margins)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_eps(eps: float) -> None:
    if not eps > 0:
        raise ValueError(f"`eps` must be positive, got {eps}: without it the loss of an empty mask is 0 / 0.")


def _prepare(logits: torch.Tensor, targets: torch.Tensor, spatial: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = f"`logits` {tuple(logits.shape)} and `targets` {tuple(targets.shape)}"
    if logits.shape != targets.shape:
        raise ValueError(f"Shapes of {shapes} differ.")
    if logits.dim() < 2 or (spatial and logits.dim() != 3):
        raise ValueError(f"Expected shape {'(N, H, W)' if spatial else '(N, P) or (N, H, W)'}, got {shapes}.")
    if 0 in logits.shape[1:]:
        raise ValueError(f"An object without pixels has no loss, got {shapes}.")
    if not logits.is_floating_point():
        raise ValueError(f"`logits` must be floating point, got {logits.dtype}: are logits and targets swapped?")
    logits = _at_least_float32(logits)
    return logits, targets.to(logits.dtype)


def _uniform_points(maps: torch.Tensor, num_points: int, generator: torch.Generator | None) -> torch.Tensor:
    """Points (N, P, 2) in [0, 1), x before y."""
    device = maps.device if generator is None else generator.device
    return torch.rand(len(maps), num_points, 2, generator=generator, device=device).to(maps)


def _interpolate(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values (N, P) of maps (N, H, W) at points (N, P, 2) in [0, 1], where 0 and 1 are the outer edges of the map."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps[:, None], grid, mode="bilinear", align_corners=False)[:, 0, :, 0]


def _covered_share(skeletons: torch.Tensor, masks: torch.Tensor, eps: float) -> torch.Tensor:
    skeletons, masks = skeletons.flatten(1), masks.flatten(1)
    return ((skeletons * masks).sum(1) + eps) / (skeletons.sum(1) + eps)


def _soft_erode(maps: torch.Tensor) -> torch.Tensor:
    """Minimum over a pixel and its four neighbours."""
    vertical = -F.max_pool2d(-maps, (3, 1), stride=1, padding=(1, 0))
    horizontal = -F.max_pool2d(-maps, (1, 3), stride=1, padding=(0, 1))
    return torch.minimum(vertical, horizontal)
