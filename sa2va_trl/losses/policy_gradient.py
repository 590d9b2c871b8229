"""Policy gradients of groups of sampled masks: advantages, the clipped surrogate, divergences and local credit."""

import torch
import torch.nn.functional as F


ADVANTAGES = ("group", "rloo", "batch", "value")
SCALES = ("none", "group", "batch")


def advantages(
    rewards: torch.Tensor,
    kind: str = "group",
    scale: str = "none",
    eps: float = 1e-4,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    How much better a sampled mask is than what stands for the expected reward.

    Args:
        rewards (`torch.Tensor` of shape `(groups, K)`): of K masks of each group.
        kind (`str`, *optional*, defaults to `"group"`):
            What is taken off: the mean of the group (`"group"`, GRPO, arXiv 2402.03300), the mean of the others of the
            group (`"rloo"`, arXiv 2402.14740), which is K / (K - 1) times as much, the mean of all groups (`"batch"`,
            arXiv 2501.03262), or what a value head expects of the group (`"value"`, PPO, arXiv 1707.06347, of an
            episode of one step).
        scale (`str`, *optional*, defaults to `"none"`):
            What it is divided by: nothing (Dr. GRPO, arXiv 2503.20783), the standard deviation of the group, or that
            of all rewards, with `K - 1` (or their number less one) in the denominator as in TRL.
        eps (`float`, *optional*, defaults to 1e-4): added to the standard deviation, as in TRL.
        values (`torch.Tensor` of shape `(groups,)`, *optional*): what is expected of each group, with `"value"` alone.

    Returns:
        `torch.Tensor` of shape `(groups, K)`; zeros for a group without spread unless `kind` is `"batch"` or
        `"value"`.

    Raises:
        `ValueError`: an unknown `kind` or `scale`, fewer than two masks a group where the group is the baseline, or
            values without `"value"` or the other way round.

    Example:

        ```python
        >>> import torch
        >>> from sa2va_trl.losses import advantages

        >>> advantages(torch.tensor([[0.25, 0.75], [1.0, 1.0]]))
        tensor([[-0.2500,  0.2500],
                [ 0.0000,  0.0000]])

        ```
    """
    if kind not in ADVANTAGES:
        raise ValueError(f"`kind` must be one of {', '.join(ADVANTAGES)}, got {kind!r}.")
    if scale not in SCALES:
        raise ValueError(f"`scale` must be one of {', '.join(SCALES)}, got {scale!r}.")
    count = rewards.shape[1]
    if kind in ("batch", "value") and scale == "group":
        raise ValueError(f"kind={kind!r} is not of one group, so scale='group' has no meaning: use 'batch'.")
    if (kind == "value") != (values is not None):
        raise ValueError("kind='value' and `values` go together.")
    if count < 2 and kind not in ("batch", "value"):
        raise ValueError(f"{kind!r} advantages need at least two masks a group, got {count}.")
    if kind == "batch":
        found = rewards - rewards.mean()
    elif kind == "value":
        found = rewards - values.detach()[:, None]
    else:
        found = rewards - rewards.mean(1, keepdim=True)
        # (Equal rewards leave a rounding error, which a small deviation would blow up.)
        found = torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), torch.zeros_like(found), found)
    if kind == "rloo":
        found = found * count / (count - 1)
    if scale == "group":
        found = found / (rewards.std(1, keepdim=True) + eps)
    elif scale == "batch" and rewards.numel() > 1:
        found = found / (rewards.std() + eps)
    return found


def clipped_surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, epsilon: float = 0.2, epsilon_high: float | None = None
) -> torch.Tensor:
    """
    PPO's loss of one action (arXiv 1707.06347, equation 7), to be minimised: `-min(r A, clip(r, 1 - epsilon, 1 +
    epsilon_high) A)` with the ratio `r` of the policy's density to the one that has drawn the action.

    Args:
        log_ratio (`torch.Tensor`): logarithm of `r`; 0 at the first iteration.
        advantages (`torch.Tensor`): of the same shape; no gradient reaches them.
        epsilon (`float`, *optional*, defaults to 0.2): in (0, 1).
        epsilon_high (`float`, *optional*): above 0 (arXiv 2503.14476); `epsilon` by default.

    Returns:
        `torch.Tensor` of the same shape.

    Raises:
        `ValueError`: `epsilon` or `epsilon_high` out of range.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    if not 0 < epsilon < 1 or not high > 0:
        raise ValueError(f"epsilon must lie between 0 and 1 and epsilon_high above 0, got {epsilon} and {high}.")
    ratio, advantages = log_ratio.exp(), advantages.detach()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + high) * advantages)


def clip_fractions(
    log_ratio: torch.Tensor, advantages: torch.Tensor, epsilon: float = 0.2, epsilon_high: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where the surrogate has no gradient.

    Args:
        log_ratio, advantages, epsilon, epsilon_high: as of [`clipped_surrogate`].

    Returns:
        The share of actions whose ratio is below the lower bound with a negative advantage, and of those above the
        upper one with a positive advantage; each of shape `()`.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = log_ratio.detach().exp()
    low, above = (ratio < 1 - epsilon) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
    return low.float().mean(), above.float().mean()


def value_loss(values: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """
    Squared error of what was expected of masks, PPO's loss of its value head (arXiv 1707.06347, equation 9) without a
    clip.

    Args:
        values (`torch.Tensor` of shape `(groups,)`): what is expected of each group.
        rewards (`torch.Tensor` of shape `(groups, K)`): of its masks.

    Returns:
        `torch.Tensor` of shape `(groups,)`: the mean over its masks.
    """
    return (values[:, None] - rewards).square().mean(1)


def gaussian_kl(mean: torch.Tensor, reference: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """
    Kullback-Leibler divergence of two Gaussians of one isotropic deviation: `|mean - reference|^2 / (2 std^2)`, in
    nats. It is the mean of `log p(x) - log q(x)` over what the first one draws.

    Args:
        mean, reference (`torch.Tensor` of shape `(masks, C)`): of the policy and the reference.
        std (`torch.Tensor` of shape `(masks,)`): positive.

    Returns:
        `torch.Tensor` of shape `(masks,)`, float32.
    """
    return (mean.float() - reference.float()).square().sum(-1) / (2 * std.float().square())


def bernoulli_kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """
    Kullback-Leibler divergence of independent pixels, averaged over them, in nats.

    Args:
        logits, reference (`torch.Tensor` of shape `(masks, h, w)`): of the policy and the reference.

    Returns:
        `torch.Tensor` of shape `(masks,)`, float32.
    """
    logits, reference = logits.float(), reference.float()
    chance = logits.sigmoid()
    gap = chance * (F.logsigmoid(logits) - F.logsigmoid(reference))
    gap = gap + (1 - chance) * (F.logsigmoid(-logits) - F.logsigmoid(-reference))
    return gap.flatten(1).mean(1)


def region_surrogate(
    logits: torch.Tensor, candidates: torch.Tensor, greedy: torch.Tensor, credit: torch.Tensor
) -> torch.Tensor:
    """
    Loss of sampled masks under independent pixels, where they differ from the greedy mask and nowhere else: `-sum_i
    A_i log p(y_i) / n` over the n pixels of the difference, each with its own credit. Divided by n, a mask that
    differs in few pixels counts as much as one that differs in many (RN-DPO, arXiv 2601.23222).

    Args:
        logits (`torch.Tensor` of shape `(masks, h, w)`): of the policy.
        candidates (`torch.Tensor` of shape `(masks, K, h, w)`): sampled masks, {0, 1}.
        greedy (`torch.Tensor` of shape `(masks, h, w)`): the policy's own mask when they were sampled, {0, 1}.
        credit (`torch.Tensor` that broadcasts to `(masks, K, h, w)`): advantages, of masks or of their pixels.

    Returns:
        `torch.Tensor` of shape `(masks, K)`; zeros, which are still functions of `logits`, of a mask that equals the
        greedy one.
    """
    candidates = candidates.to(logits.dtype)
    differs = (candidates != greedy[:, None].to(logits.dtype)).to(logits.dtype)
    own = logits[:, None].expand_as(candidates)
    log_prob = -F.binary_cross_entropy_with_logits(own, candidates, reduction="none")
    weighted = -(credit.detach() * log_prob * differs).flatten(2).sum(2)
    return weighted / differs.flatten(2).sum(2).clamp(min=1)
