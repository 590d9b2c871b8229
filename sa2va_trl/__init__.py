"""Post-train Sa2VA on your own masks with the Hugging Face stack."""

from . import _moved  # noqa: F401
from .data import SegCollator
from .models import (
    GroundingEncoder,
    Sa2VAConfig,
    Sa2VAForConditionalGeneration,
    Sa2VAGroundingConfig,
    Sa2VAOutput,
    Sa2VAProcessor,
    SegFeatures,
    Segmentation,
    tiny_sa2va,
)
from .preferences.dataset import build_preferences
from .sampling import MaskSampler
from .trainers import (
    HardSampleConfig,
    HardSampleTrainer,
    SegDPOConfig,
    SegDPOTrainer,
    SegSFTConfig,
    SegSFTTrainer,
)


__version__ = "0.1.0"

__all__ = [
    "GroundingEncoder",
    "HardSampleConfig",
    "HardSampleTrainer",
    "MaskSampler",
    "Sa2VAConfig",
    "Sa2VAForConditionalGeneration",
    "Sa2VAGroundingConfig",
    "Sa2VAOutput",
    "Sa2VAProcessor",
    "SegCollator",
    "SegDPOConfig",
    "SegDPOTrainer",
    "SegFeatures",
    "SegSFTConfig",
    "SegSFTTrainer",
    "Segmentation",
    "build_preferences",
    "tiny_sa2va",
]
