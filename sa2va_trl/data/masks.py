"""What a mask says; see [`~media.masks`], which rewards judge by as well."""

from ..media.masks import binary_mask, mask_values


__all__ = ["binary_mask", "mask_values"]
