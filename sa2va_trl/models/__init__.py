from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from .configuration import Sa2VAConfig, Sa2VAGroundingConfig
from .grounding import GroundingEncoder
from .modeling import Sa2VAForConditionalGeneration, Sa2VAOutput, SegFeatures, Segmentation
from .processing import Sa2VAProcessor
from .tiny import tiny_sa2va


AutoConfig.register("sa2va_grounding", Sa2VAGroundingConfig)
AutoConfig.register("sa2va", Sa2VAConfig)
AutoModelForImageTextToText.register(Sa2VAConfig, Sa2VAForConditionalGeneration)
# TRL loads a model that is given by name through this class.
AutoModelForCausalLM.register(Sa2VAConfig, Sa2VAForConditionalGeneration)
AutoProcessor.register(Sa2VAConfig, Sa2VAProcessor)

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
