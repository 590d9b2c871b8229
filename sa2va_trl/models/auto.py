"""What transformers' Auto classes and pipelines make of a Sa2VA, native or as it is published."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoProcessor,
    PreTrainedConfig,
)

from .configuration import Sa2VAConfig, Sa2VAGroundingConfig
from .modeling import Sa2VAForConditionalGeneration
from .processing import Sa2VAProcessor


class UnsupportedTask(Exception):
    """A pipeline that Sa2VA does not fit. (No `ValueError`: `pipeline` would bury it under its own message.)"""


class PublishedSa2VAConfig(PreTrainedConfig):
    """
    What `AutoConfig` makes of a published checkpoint: its `config.json` as it stands, in `published`. By it the other
    Auto classes find this package, without remote code. The model's own config, [`Sa2VAConfig`], takes the tokenizer
    and the tensors' names too: it is `Sa2VAForConditionalGeneration.from_pretrained(...).config`.
    """

    model_type = "sa2va_chat"
    # (Not those of the file: they name remote code, or the class of the VLM, which would take this for its own.)
    auto_map = {}

    @classmethod
    def from_dict(
        cls, config_dict: dict, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> "PublishedSa2VAConfig | tuple[PublishedSa2VAConfig, dict]":
        """As in transformers. No keyword argument changes it: all are unused, and so go on to the model."""
        name = kwargs.pop("name_or_path", "")
        config = cls(name_or_path=name, architectures=[Sa2VAForConditionalGeneration.__name__])
        config.published = dict(config_dict)
        kwargs.pop("_from_auto", None)
        return (config, kwargs) if return_unused_kwargs else config


class _PublishedModel(Sa2VAForConditionalGeneration):
    config_class = PublishedSa2VAConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        return Sa2VAForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


class _MaskGeneration:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        raise UnsupportedTask(
            "The mask-generation pipeline asks for masks of everything, by points; Sa2VA is asked in words: "
            "Sa2VAForConditionalGeneration.from_pretrained(MODEL).segment(image=..., text=..., processor=...)."
        )


def register() -> None:
    """Make the Auto classes know both configs."""
    AutoConfig.register(Sa2VAGroundingConfig.model_type, Sa2VAGroundingConfig)
    AutoConfig.register(Sa2VAConfig.model_type, Sa2VAConfig)
    AutoConfig.register(PublishedSa2VAConfig.model_type, PublishedSa2VAConfig)
    # (TRL loads a model that is given by name as a causal one.)
    for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
        auto.register(Sa2VAConfig, Sa2VAForConditionalGeneration)
        auto.register(PublishedSa2VAConfig, _PublishedModel)
    for config in (Sa2VAConfig, PublishedSa2VAConfig):
        AutoModelForMaskGeneration.register(config, _MaskGeneration)
        AutoProcessor.register(config, Sa2VAProcessor)
