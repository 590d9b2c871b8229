"""Adapters, what trains in them, and the base that they belong to."""

from .official_trainer import apply_delta, read_delta
from .peft_model import SegPeftModel, load_adapter, merge_adapter
from .presets import get_peft_config, trainable_table


__all__ = [
    "SegPeftModel",
    "apply_delta",
    "get_peft_config",
    "load_adapter",
    "merge_adapter",
    "read_delta",
    "trainable_table",
]
