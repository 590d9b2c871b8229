"""Readers of annotated folders, one file a format; [`~data.loading.load_dataset_dict`] finds the right one."""

from importlib import import_module
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return getattr(import_module(f"sa2va_trl.{_MOVED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
