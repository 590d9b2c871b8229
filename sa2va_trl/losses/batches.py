"""The mask losses of a batch, whose rows count alike."""

import torch

from ..mask_logits import resize_mask_logits
from .masks import dice_loss, mask_bce_loss, sample_points
from .topology import scnp_loss, skeleton_recall_loss, soft_cldice_loss


def mask_shares(row_index: torch.Tensor, rows: int) -> torch.Tensor:
    """
    How much each mask of a batch counts: the masks of a row alike, and all rows of the batch alike, those without
    masks too.

    Args:
        row_index (`torch.LongTensor` of shape `(masks,)`): the row of each mask.
        rows (`int`): of the batch.

    Returns:
        `torch.Tensor` of shape `(masks,)`, float32, positive; the shares of a row add up to `1 / rows`.
    """
    # (`bincount` asks the values for the size of its result, which tensors that only have shapes do not know.)
    counts = (row_index == torch.arange(rows, device=row_index.device)[:, None]).sum(1).clamp(min=1)
    return 1 / (counts[row_index] * rows)


def mask_losses(
    logits: torch.Tensor,
    iou_scores: torch.Tensor,
    masks: torch.Tensor,
    row_index: torch.Tensor,
    rows: int,
    skeletons: torch.Tensor | None = None,
    *,
    mask_weight: float = 2.0,
    dice_weight: float = 0.5,
    skeleton_recall_weight: float = 0.0,
    cldice_weight: float = 0.0,
    scnp_weight: float = 0.0,
    iou_weight: float = 0.0,
    num_points: int = 12544,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
    cldice_iterations: int = 10,
) -> dict[str, torch.Tensor]:
    """
    The mask losses of a batch, without their weights: a weight only says whether a loss is computed.

    Args:
        logits (`torch.Tensor` of shape `(masks, h, w)`): drawn masks, brought to the grid of `masks` bilinearly.
        iou_scores (`torch.Tensor` of shape `(masks,)`): what the model expects of them, in [0, 1].
        masks (`torch.Tensor` of shape `(masks, H, W)`): targets, {0, 1}.
        row_index (`torch.LongTensor` of shape `(masks,)`): the row of each mask.
        rows (`int`): of the batch, those without masks too.
        skeletons (`torch.Tensor` of shape `(masks, H, W)`, *optional*):
            From [`tubed_skeleton`] of the targets, for the skeleton recall loss.
        mask_weight, dice_weight (`float`, *optional*, default to 2.0 and 0.5):
            Of `mask_loss` ([`mask_bce_loss`]) and `dice_loss`, which are computed together where one of them is not 0.
        skeleton_recall_weight, cldice_weight, scnp_weight (`float`, *optional*, default to 0.0):
            Of `skeleton_recall_loss`, `cldice_loss` ([`soft_cldice_loss`]) and `scnp_loss`.
        iou_weight (`float`, *optional*, defaults to 0.0):
            Of `iou_loss`, the squared difference of `iou_scores` and the IoU that the masks have at a logit of 0.
        num_points, oversample_ratio, importance_ratio (*optional*):
            Of [`sample_points`], for `mask_loss` and `dice_loss`; with 0 points they see every pixel.
        cldice_iterations (`int`, *optional*, defaults to 10): of [`soft_cldice_loss`].

    Returns:
        `dict[str, torch.Tensor]`: scalars by name, averaged over the masks of a row and then over all rows. Without
        masks they are 0 and still functions of `logits`: ZeRO-3 wants the backward passes of all processes to run
        alike.

    Raises:
        `ValueError`: another number of masks than was drawn, or the skeleton recall loss without `skeletons`.

    Example:

        ```python
        >>> import torch
        >>> from sa2va_trl.losses import mask_losses

        >>> masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
        >>> masks[:, 8:24] = 1
        >>> logits = 40.0 * masks - 20
        >>> losses = mask_losses(logits, torch.ones(2), masks, torch.tensor([0, 0]), rows=2, num_points=0)
        >>> {name: round(value.item(), 4) for name, value in losses.items()}
        {'mask_loss': 0.0, 'dice_loss': 0.0}

        ```
    """
    if len(logits) != len(masks):
        raise ValueError(f"The conversations hold {len(logits)} [SEG] for {len(masks)} masks.")
    logits = resize_mask_logits(logits, masks.shape[-2:])
    values = {}
    if mask_weight or dice_weight:
        points, targets = logits, masks
        if num_points:
            points, targets = sample_points(logits, masks, num_points, oversample_ratio, importance_ratio)
        values["mask_loss"] = mask_bce_loss(points, targets)
        values["dice_loss"] = dice_loss(points, targets)
    if skeleton_recall_weight:
        if skeletons is None:
            raise ValueError("skeleton_recall_weight needs `skeletons`, those of the masks.")
        values["skeleton_recall_loss"] = skeleton_recall_loss(logits, skeletons)
    if cldice_weight:
        values["cldice_loss"] = soft_cldice_loss(logits, masks, cldice_iterations)
    if scnp_weight:
        values["scnp_loss"] = scnp_loss(logits, masks)
    if iou_weight:
        predicted, target = (logits > 0).flatten(1), masks.bool().flatten(1)
        union = (predicted | target).sum(1)
        achieved = torch.where(union > 0, (predicted & target).sum(1) / union.clamp(min=1), 1.0)
        values["iou_loss"] = (iou_scores - achieved) ** 2
    share = mask_shares(row_index, rows)
    return {name: (value * share).sum() for name, value in values.items()}
