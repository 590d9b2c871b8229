"""What a mask says; see [`~mask_pixels`], which rewards judge by as well."""

from ..mask_pixels import binary_mask, mask_values


__all__ = ["binary_mask", "mask_values"]
