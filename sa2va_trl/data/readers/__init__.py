"""Readers of annotated folders, one file a format; [`~data.loading.load_dataset_dict`] finds the right one."""

from ..._moved import looked_up
from .image_metadata import read_image_metadata
from .mask_folder import read_mask_folder
from .sa2va_json import read_sa2va_json


__all__ = ["read_image_metadata", "read_mask_folder", "read_sa2va_json"]

# What could be imported from here before it had a file of its own.
_MOVED = {
    "IMAGE_SUFFIXES": "media.suffixes",
    "SPLITS": "data.readers.folders",
    "load_dataset_dict": "data.loading",
    "normalize_phrase": "data.prompts",
    "polygons_to_mask": "data.masks",
}
__getattr__ = looked_up(__name__, _MOVED)
