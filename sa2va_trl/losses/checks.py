"""What the losses ask of their arguments."""

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float32, or in float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def check_eps(eps: float) -> None:
    """
    Raises:
        `ValueError`: `eps` is not positive.
    """
    if not eps > 0:
        raise ValueError(f"`eps` must be positive, got {eps}: without it the loss of an empty mask is 0 / 0.")


def prepare(logits: torch.Tensor, targets: torch.Tensor, spatial: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Check what a loss is given.

    Args:
        logits (`torch.Tensor` of shape `(masks, H, W)` or `(masks, points)`): of any floating type.
        targets (`torch.Tensor` of the same shape): in [0, 1].
        spatial (`bool`, *optional*, defaults to `False`): whether the loss needs maps of shape `(masks, H, W)`.

    Returns:
        Both in at least float32.

    Raises:
        `ValueError`: shapes that differ or have another number of dimensions.
    """
    shapes = f"`logits` {tuple(logits.shape)} and `targets` {tuple(targets.shape)}"
    if logits.shape != targets.shape:
        raise ValueError(f"Shapes of {shapes} differ.")
    if logits.dim() < 2 or (spatial and logits.dim() != 3):
        raise ValueError(f"Expected shape {'(N, H, W)' if spatial else '(N, P) or (N, H, W)'}, got {shapes}.")
    if 0 in logits.shape[1:]:
        raise ValueError(f"An object without pixels has no loss, got {shapes}.")
    if not logits.is_floating_point():
        raise ValueError(f"`logits` must be floating point, got {logits.dtype}: are logits and targets swapped?")
    logits = at_least_float32(logits)
    return logits, targets.to(logits.dtype)
