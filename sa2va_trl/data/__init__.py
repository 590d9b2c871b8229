"""Rows: read, checked, prompted and put into batches."""

from typing import TYPE_CHECKING

from ..errors import DatasetError
from .augment import Augmentation
from .loading import load_dataset_dict
from .readers.mask_folder import read_mask_folder
from .readers.sa2va_json import read_sa2va_json
from .scenes import named_dataset, named_splits, structure_dataset
from .splits import check_no_leakage, group_folds, group_split
from .synthetic import synthetic_dataset, synthetic_splits


if TYPE_CHECKING:
    from .checks import check_dataset
    from .collator import SegCollator

__all__ = [
    "Augmentation",
    "DatasetError",
    "SegCollator",
    "check_dataset",
    "check_no_leakage",
    "group_folds",
    "group_split",
    "load_dataset_dict",
    "named_dataset",
    "named_splits",
    "read_mask_folder",
    "read_sa2va_json",
    "structure_dataset",
    "synthetic_dataset",
    "synthetic_splits",
]


def __getattr__(name: str) -> object:
    # These need torch and the network's code, which processes that only read and write files need not have.
    if name == "SegCollator":
        from .collator import SegCollator as value
    elif name == "check_dataset":
        from .checks import check_dataset as value
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
