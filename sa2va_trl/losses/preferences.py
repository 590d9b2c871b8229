"""Losses of a preferred over a rejected mask."""

import torch
import torch.nn.functional as F

from .checks import prepare
from .masks import soft_dice


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
    policy, chosen = (tensor.flatten(1) for tensor in prepare(logits, chosen))
    rejected = prepare(logits, rejected)[1].flatten(1)
    reference = None
    if reference_logits is not None:
        reference = prepare(logits, reference_logits.detach())[1].flatten(1)
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
