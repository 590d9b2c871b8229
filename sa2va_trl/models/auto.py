"""What transformers' Auto classes and pipelines make of a Sa2VA, native or as it is published."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from .checkpoints import HUB_OPTIONS, checkpoint_folder
from .configuration import Sa2VAConfig, Sa2VAGroundingConfig
from .modeling import Sa2VAForConditionalGeneration
from .processing import Sa2VAProcessor
from .tokenization import load_tokenizer


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


class InternLM2Tokenizer(PreTrainedTokenizerFast):
    """
    What `AutoTokenizer` loads where `tokenizer_config.json` names this class, as beside Sa2VA-8B and Sa2VA-26B: the
    same ids without the remote code, which was written for transformers 4.
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, subfolder: str = "", **kwargs: Any
    ) -> PreTrainedTokenizerFast:
        """As in transformers; of the keyword arguments only those of the Hub have an effect."""
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        options = {"weights": False, "subfolder": subfolder, **hub_options}
        tokenizer = load_tokenizer(checkpoint_folder(pretrained_model_name_or_path, **options)[0])
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer


class _InternLM2Config(PreTrainedConfig):
    """No checkpoint's: transformers keeps a registered tokenizer under a config, and looks for it by its own name."""


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
    AutoTokenizer.register(_InternLM2Config, tokenizer_class=InternLM2Tokenizer)
