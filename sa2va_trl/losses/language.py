"""The loss of an answer's tokens."""

import torch
import torch.nn.functional as F

from .checks import at_least_float32


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
        `ValueError`: the shapes are not `(B, T, V)` and `(B, T)`.
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            "`logits` must have shape (B, T, V) and `labels` (B, T), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    supervised = labels != ignore_index
    losses = F.cross_entropy(at_least_float32(logits[supervised]), labels[supervised], reduction="none")
    rows = supervised.nonzero()[:, 0]
    totals = losses.new_zeros(len(labels)).index_add(0, rows, losses)
    return totals / supervised.sum(1).clamp(min=1)
