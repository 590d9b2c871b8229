from .auto import register
from .configuration import Sa2VAConfig, Sa2VAGroundingConfig
from .grounding import GroundingEncoder
from .modeling import Sa2VAForConditionalGeneration
from .outputs import Sa2VAOutput, SegFeatures, Segmentation
from .processing import Sa2VAProcessor
from .tiny import tiny_sa2va


register()

__all__ = [
    "GroundingEncoder",
    "Sa2VAConfig",
    "Sa2VAForConditionalGeneration",
    "Sa2VAGroundingConfig",
    "Sa2VAOutput",
    "Sa2VAProcessor",
    "SegFeatures",
    "Segmentation",
    "tiny_sa2va",
]
