"""Mask logits on another grid."""

import torch
import torch.nn.functional as F


def resize_mask_logits(mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Mask logits on a grid of another size, bilinearly.

    Args:
        mask_logits (`torch.Tensor` of shape `(masks[, candidates], h, w)`): floating point.
        size (`tuple[int, int]`): height and width.

    Returns:
        `torch.Tensor` of shape `(masks[, candidates], height, width)`: the same tensor where nothing changes, and even
        without masks a function of it.
    """
    if mask_logits.shape[-2:] == tuple(size):
        return mask_logits
    if len(mask_logits) == 0:
        return mask_logits.new_zeros((*mask_logits.shape[:-2], *size)) + mask_logits.sum()
    planes = mask_logits[:, None] if mask_logits.dim() == 3 else mask_logits
    resized = F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    return resized[:, 0] if mask_logits.dim() == 3 else resized


def mask_probabilities(mask_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """
    What a model's logits say of each pixel, calibrated where its config has a temperature.

    Args:
        mask_logits (`torch.Tensor`): of any shape.
        temperature (`float`, *optional*, defaults to 1.0): `mask_temperature` of the model's config.

    Returns:
        `torch.Tensor` of that shape, in [0, 1]: `sigmoid(mask_logits / temperature)`.
    """
    return (mask_logits if temperature == 1 else mask_logits / temperature).sigmoid()


def upsample_mask_logits(mask_logits: torch.Tensor, image_size: int, output_size: tuple[int, int]) -> torch.Tensor:
    """
    Bring mask logits to an image's own size the way Sa2VA does: to SAM 2's square, then to the image, both bilinear.

    Args:
        mask_logits (`torch.Tensor` of shape `(masks, h, w)`): logits on the decoder's grid or already on the square.
        image_size (`int`): side of SAM 2's square.
        output_size (`tuple[int, int]`): height and width of the image.

    Returns:
        `torch.Tensor` of shape `(masks, height, width)`, float32 logits.
    """
    square = resize_mask_logits(mask_logits.float(), (image_size, image_size))
    return resize_mask_logits(square, output_size)
