"""What a Sa2VA is made of: the config of the whole and of its SAM 2."""

import logging
from dataclasses import field, fields
from functools import cache
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..postprocessing import Postprocessing
from ..questions import check_question


logger = logging.getLogger(__name__)

# The VLM families whose prompt, pixels and module names `processing.py` and `modeling.py` know.
SUPPORTED_VLMS = ("internvl", "qwen2_5_vl", "qwen3_vl")

PROMPT_TEMPLATES = ("qwen_chat", "internlm2_chat", "phi3_chat")

FRAME_POLICIES = ("uniform", "first", "starts")
TRACKING = ("soft", "mask_prompt")

SEG_STATES = ("normed", "raw")


def official_seg_state(vlm: str) -> str:
    """
    The `[SEG]` state that the official code of a family takes, and that its published weights were trained with.

    It takes what transformers returns as the last hidden states. In 4.57, the only line of version 4 with Qwen3-VL,
    these are Qwen3-VL's before its final norm, and all others' after it.

    Args:
        vlm (`str`): one of `SUPPORTED_VLMS`.

    Returns:
        `str`: `"normed"` or `"raw"`.
    """
    return "raw" if vlm == "qwen3_vl" else "normed"


def check_video_options(frame_policy: str, num_frames: int, tracking: str) -> None:
    """
    Check how a video is to be seen and tracked.

    Args:
        frame_policy (`str`): one of `FRAME_POLICIES`.
        num_frames (`int`): of the clip that the language model sees.
        tracking (`str`): one of `TRACKING`.

    Raises:
        `ValueError`: an unknown frame policy or way of tracking, or no frame to prompt.
    """
    if frame_policy not in FRAME_POLICIES:
        raise ValueError(f"frame_policy must be one of {', '.join(FRAME_POLICIES)}, got {frame_policy!r}.")
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
        raise ValueError(f"num_frames must be an integer of at least 1, got {num_frames!r}.")
    if tracking not in TRACKING:
        raise ValueError(f"tracking must be one of {', '.join(TRACKING)}, got {tracking!r}.")


@cache
def _warn_once(message: str) -> None:
    # A config is read several times while one model is loaded.
    logger.warning(message)


def without_copies(vlm_config: dict) -> dict:
    """
    A VLM's config without what it repeats of its language model's: older Qwen2.5-VL files do. Nothing reads the copies
    (they may even be another model's), but transformers warns of rotary parameters where it does not expect them.

    Args:
        vlm_config (`dict`): of a VLM, with or without `text_config`; not changed.

    Returns:
        `dict`.
    """
    text = vlm_config.get("text_config")
    if not isinstance(text, dict):
        return vlm_config
    own = {"model_type", "tie_word_embeddings", *(field.name for field in fields(PreTrainedConfig))}
    copies = (text.keys() - own) | {"rope_parameters", "rope_scaling", "rope_theta"}
    return {name: value for name, value in vlm_config.items() if name not in copies}


class Sa2VAGroundingConfig(PreTrainedConfig):
    r"""
    Sizes of the SAM 2 half. The defaults are SAM 2.0 Hiera-Large, the variant that every published Sa2VA holds
    (`sam2_hiera_l.yaml` of the `sam2` package).

    Args:
        image_size (`int`, *optional*, defaults to 1024):
            Side of the square that images are resized to, in pixels; a multiple of 32. Mask logits have a quarter of
            it.
        embed_dim, num_heads, stages, global_att_blocks, window_spec, window_pos_embed_bkg_spatial_size:
            The Hiera trunk, as in `sam2.modeling.backbones.hieradet.Hiera`.
        hidden_dim (`int`, *optional*, defaults to 256):
            Width of the feature pyramid, of the prompt and of the mask decoder; a multiple of 32.
        decoder_mlp_dim (`int`, *optional*, defaults to 2048):
            Width of the feed-forward layers in the mask decoder's two-way transformer.
        memory_dim (`int`, *optional*, defaults to 64):
            Channels of a stored memory.
        memory_layers (`int`, *optional*, defaults to 4):
            Layers of the memory attention.
        memory_mlp_dim (`int`, *optional*, defaults to 2048):
            Width of the feed-forward layers in the memory attention.
        num_maskmem (`int`, *optional*, defaults to 7):
            Frames that the memory attention sees: the prompted ones and up to `num_maskmem - 1` previous ones.
        sam2_version (`str`, *optional*, defaults to `"2.0"`):
            `"2.1"` adds the occlusion embedding and the temporal encoding of object pointers.
        separate_tracking_decoder (`bool`, *optional*, defaults to `False`):
            Two mask decoders, as Sa2VA-i's checkpoints hold (arXiv 2509.19082): `sam_mask_decoder_modified`,
            fine-tuned with the language prompt, and `sam_mask_decoder`, SAM 2's own, for tracking.
    """

    model_type = "sa2va_grounding"
    base_config_key = "grounding_config"

    image_size: int = 1024
    embed_dim: int = 144
    num_heads: int = 2
    stages: list[int] | tuple[int, ...] = (2, 6, 36, 4)
    global_att_blocks: list[int] | tuple[int, ...] = (23, 33, 43)
    window_spec: list[int] | tuple[int, ...] = (8, 4, 16, 8)
    window_pos_embed_bkg_spatial_size: list[int] | tuple[int, ...] = (7, 7)
    hidden_dim: int = 256
    decoder_mlp_dim: int = 2048
    memory_dim: int = 64
    memory_layers: int = 4
    memory_mlp_dim: int = 2048
    num_maskmem: int = 7
    sam2_version: str = "2.0"
    separate_tracking_decoder: bool = False

    def __post_init__(self, **kwargs):
        if self.image_size % 32:
            raise ValueError(f"grounding_config.image_size must be a multiple of 32, got {self.image_size}.")
        if self.hidden_dim % 32:
            raise ValueError(f"grounding_config.hidden_dim must be a multiple of 32, got {self.hidden_dim}.")
        if self.sam2_version not in ("2.0", "2.1"):
            raise ValueError(f"grounding_config.sam2_version must be '2.0' or '2.1', got {self.sam2_version!r}.")
        super().__post_init__(**kwargs)

    @property
    def mask_size(self) -> int:
        """Side of the mask logits that the decoder draws: a quarter of the image size."""
        return self.image_size // 4

    @property
    def mask_decoder_name(self) -> str:
        """The decoder that language prompts go to."""
        return "sam_mask_decoder_modified" if self.separate_tracking_decoder else "sam_mask_decoder"


class Sa2VAConfig(PreTrainedConfig):
    r"""
    Sa2VA: a native vision-language model whose `[SEG]` token prompts SAM 2 (Yuan et al., 2025, arXiv 2501.04001).

    Args:
        vlm_config (`PreTrainedConfig` or `dict`, *optional*):
            The vision-language model, as transformers knows it: `internvl` with any language model, `qwen2_5_vl` or
            `qwen3_vl`.
        grounding_config (`Sa2VAGroundingConfig` or `dict`, *optional*):
            The SAM 2 half. Defaults to SAM 2.0 Hiera-Large.
        seg_token_id (`int`, *optional*, defaults to 151674):
            Id of `[SEG]` in the tokenizer.
        prompt_template (`str`, *optional*, defaults to `"qwen_chat"`):
            One of `"qwen_chat"`, `"internlm2_chat"` and `"phi3_chat"`; always the checkpoint's own, never inferred
            from the language model.
        mask_threshold (`float`, *optional*, defaults to 0.5):
            Probability above which a pixel belongs to the mask, unless `segment` is told otherwise. `sa2va-trl
            sweep_threshold` chooses and stores one.
        mask_temperature (`float`, *optional*, defaults to 1.0):
            What mask logits are divided by before they become probabilities (temperature scaling, Guo et al., ICML
            2017, arXiv 1706.04599), of which the threshold is one. The logits themselves, and what trains on them, are
            left as they are.
        mask_postprocessing (`dict`, *optional*, defaults to `{}`):
            What is done to masks beside the threshold, by name as in [`~postprocessing.Postprocessing`]; `sa2va-trl
            search_postprocessing` chooses and stores it. Probabilities are left as they are.
        default_question (`str`, *optional*):
            Template with `{phrase}` ([`~questions.ask`]) that the model is evaluated, mined and predicted with where
            nobody says another; by default the package's own. `sa2va-trl search_prompts` chooses and stores one.
            `segment` takes its text as it is.
        frame_policy (`str`, *optional*, defaults to `"uniform"`):
            Which frames of a video the language model sees and prompts: spread over the clip, its `"first"` ones
            (Sa2VA's own code), or the `"starts"` of as many parts, see [`~models.frame_policy.select_frames`].
        num_frames (`int`, *optional*, defaults to 5): how many of them.
        tracking (`str`, *optional*, defaults to `"soft"`):
            How the prompted frames reach the others. `"soft"` is Sa2VA's own way: their masks enter SAM 2's memory as
            probabilities and no object is ever declared absent. `"mask_prompt"` is Sa2VA-i's (arXiv 2509.19082): their
            thresholded masks are SAM 2's mask prompts, and an object that SAM 2 believes absent gets an empty mask.
        tracking_trained (`bool`, *optional*, defaults to `True`):
            Whether SAM 2's memory has learned anything. It has in published checkpoints, and not in the tiny
            network, whose masks are lost between the frames that are asked about: take each frame as an image.
        seg_state (`str`, *optional*, defaults to `"normed"`):
            Which of a `[SEG]` token's last hidden states its mask is drawn from: `"normed"` is the one after the
            language model's final norm, `"raw"` the last layer's output before it. It is what the weights were
            trained with: `"raw"` for Qwen3-VL as published, `"normed"` for all other families.
        grounding_dtype (`str`, *optional*):
            `"float32"` loads SAM 2 and `text_hidden_fcs`, which masks feel, in float32 whatever the rest is loaded in.
    """

    model_type = "sa2va"
    sub_configs_defaults = {
        "vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="internvl"),
        "grounding_config": Sa2VAGroundingConfig,
    }
    # TRL's `create_model_from_path` looks for it on classes that transformers itself does not export.
    auto_map = {}

    vlm_config: dict | PreTrainedConfig | None = None
    grounding_config: dict | PreTrainedConfig | None = None
    seg_token_id: int = 151674
    prompt_template: str = "qwen_chat"
    mask_threshold: float = 0.5
    mask_temperature: float = 1.0
    mask_postprocessing: dict = field(default_factory=dict)
    default_question: str | None = None
    frame_policy: str = "uniform"
    num_frames: int = 5
    tracking: str = "soft"
    tracking_trained: bool = True
    seg_state: str = "normed"
    grounding_dtype: str | None = None
    # PEFT and transformers read it here; `__post_init__` copies the VLM's value, the only one that counts.
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.vlm_config, dict):
            self.vlm_config = without_copies(self.vlm_config)
        super().__post_init__(**kwargs)
        if self.vlm_config.model_type not in SUPPORTED_VLMS:
            raise ValueError(
                f"vlm_config.model_type is {self.vlm_config.model_type!r}; supported are {', '.join(SUPPORTED_VLMS)}."
            )
        if self.prompt_template not in PROMPT_TEMPLATES:
            raise ValueError(
                f"prompt_template must be one of {', '.join(PROMPT_TEMPLATES)}, got {self.prompt_template!r}."
            )
        if not 0 < self.mask_threshold < 1:
            raise ValueError(f"mask_threshold must lie between 0 and 1, got {self.mask_threshold}.")
        if not 0 < self.mask_temperature < float("inf"):
            raise ValueError(f"mask_temperature must be a number above 0, got {self.mask_temperature}.")
        try:
            Postprocessing.from_dict(self.mask_postprocessing)
        except ValueError as error:
            raise ValueError(f"mask_postprocessing: {error}") from error
        if self.default_question is not None:
            check_question(self.default_question, "default_question")
        check_video_options(self.frame_policy, self.num_frames, self.tracking)
        if self.seg_state not in SEG_STATES:
            raise ValueError(f"seg_state must be one of {', '.join(SEG_STATES)}, got {self.seg_state!r}.")
        if self.grounding_dtype not in (None, "float32"):
            raise ValueError(f"grounding_dtype must be float32 or left out, got {self.grounding_dtype!r}.")
        self.tie_word_embeddings = self.vlm_config.tie_word_embeddings

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> "Sa2VAConfig | tuple[Sa2VAConfig, dict]":
        """
        As in transformers, but another model's config is refused instead of being read as the defaults.

        Args:
            config_dict (`dict`): what `config.json` holds.
            kwargs: of transformers.

        Returns:
            `Sa2VAConfig`; with `return_unused_kwargs=True` the unused keyword arguments too.

        Raises:
            `ValueError`: `model_type` is another one.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"A config of model_type {kind!r} is no {cls.model_type!r} config. Of a published Sa2VA take "
                "`Sa2VAForConditionalGeneration.from_pretrained(...).config`: part of it lies in the tokenizer."
            )
        vlm = config_dict.get("vlm_config")
        vlm = vlm.get("model_type") if isinstance(vlm, dict) else getattr(vlm, "model_type", None)
        if vlm == "qwen3_vl" and "seg_state" not in config_dict:
            _warn_once(
                "This Qwen3-VL config is of an earlier version, which drew masks from the [SEG] state after the final "
                "norm, and is read as that (seg_state=normed). If the weights are unchanged from a published "
                'checkpoint, which needs the state before it, convert that again or add "seg_state": "raw" to '
                "config.json."
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The language model's config, where TRL, PEFT and DeepSpeed look for `hidden_size` and `vocab_size`."""
        return self.vlm_config.get_text_config()

    @property
    def rotary_switch(self) -> int | None:
        """
        Tokens up to which a text has the language model's first rotary factors; a longer one has others at every
        place (`longrope`, Phi-3's). `None` where there is one kind.
        """
        rope = getattr(self.text_config, "rope_parameters", None) or {}
        return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that image features replace."""
        return self.vlm_config.image_token_id
