"""Readers of annotated folders, one file a format; [`~data.loading.load_dataset_dict`] finds the right one."""

from ...media.suffixes import IMAGE_SUFFIXES  # noqa: F401  (could be imported from here)
from ..masks import polygons_to_mask
from ..prompts import normalize_phrase
from .folders import SPLITS
from .image_metadata import read_image_metadata
from .mask_folder import read_mask_folder
from .sa2va_json import read_sa2va_json


__all__ = [
    "SPLITS",
    "normalize_phrase",
    "polygons_to_mask",
    "read_image_metadata",
    "read_mask_folder",
    "read_sa2va_json",
]


def __getattr__(name: str):
    if name == "load_dataset_dict":  # it was defined here; what it needs imports this package
        from ..loading import load_dataset_dict

        return load_dataset_dict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
