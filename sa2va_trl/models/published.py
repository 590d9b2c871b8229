"""
The layout that Sa2VA is published in: its config and its tensor names, and how they map to this package's.

The published layout is what the official remote code saves (`projects/sa2va/hf` of github.com/bytedance/Sa2VA). Every
native tensor is a part of exactly one published tensor, so one table serves both directions.
"""

import re
from dataclasses import dataclass, fields

import torch
from transformers import (
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3VLConfig,
)

from .configuration import Sa2VAConfig, Sa2VAGroundingConfig, official_seg_state, without_copies


# `llm_config.architectures[0]` of the InternVL family. InternLM2 is Llama with fused query, key and value rows.
LANGUAGE_MODELS = {
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "Phi3ForCausalLM": Phi3Config,
    "LlamaForCausalLM": LlamaConfig,
    "InternLM2ForCausalLM": LlamaConfig,
}
# `text_config.model_type` of the Qwen-VL families.
QWEN_VL = {"qwen2_5_vl_text": Qwen2_5_VLConfig, "qwen3_vl_text": Qwen3VLConfig}

# Where a config was saved, by which program and for which attention kernel: nothing that describes the network.
_NOT_THE_NETWORK = (
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "architectures",
    "attn_implementation",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_bfloat16",
)


@dataclass(frozen=True)
class Part:
    """
    The place of a native tensor inside a published one.

    The published rows (dimension 0) fall into `groups` of `size` equal blocks, and the native tensor holds the blocks
    `start` to `stop` of every group. A tensor that is only renamed is one block of one.

    Args:
        name (`str`): the published tensor.
        groups, size, start, stop (`int`): see above.
    """

    name: str
    groups: int = 1
    size: int = 1
    start: int = 0
    stop: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether the part is all of the published tensor."""
        return self.size == 1

    def shape(self, native: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the published tensor, from the native tensor's."""
        return tuple(native) if self.is_whole else (native[0] // (self.stop - self.start) * self.size, *native[1:])

    def take(self, published: torch.Tensor) -> torch.Tensor:
        """The native tensor's values."""
        if self.is_whole:
            return published
        rows = published.unflatten(0, (self.groups, self.size, -1))
        return rows[:, self.start : self.stop].flatten(0, 2).contiguous()

    def put(self, published: torch.Tensor, native: torch.Tensor) -> None:
        """Write the native tensor's values to their place, the inverse of `take`."""
        if self.is_whole:
            published.copy_(native)
        else:
            rows = published.unflatten(0, (self.groups, self.size, -1))
            rows[:, self.start : self.stop] = native.unflatten(0, (self.groups, self.stop - self.start, -1))


_SAM2_AND_HEAD = {
    # The official exporter writes `gamma` as `g_weight`: old transformers renamed `gamma` while loading.
    r"(grounding_encoder\.sam2_model\.memory_encoder\.fuser\.layers\.\d+)\.gamma": r"\1.g_weight",
    r"(grounding_encoder\.sam2_model\..+)": r"\1",
    r"(text_hidden_fcs\.[02]\.(?:weight|bias))": r"\1",
}
_VIT = r"vlm\.model\.vision_tower\.encoder\.layer\.(\d+)\."
_INTERNVL = {
    r"vlm\.model\.vision_tower\.embeddings\.cls_token": "vision_model.embeddings.class_embedding",
    r"vlm\.model\.vision_tower\.embeddings\.position_embeddings": "vision_model.embeddings.position_embedding",
    r"vlm\.model\.vision_tower\.embeddings\.patch_embeddings\.projection\.(weight|bias)": (
        r"vision_model.embeddings.patch_embedding.\1"
    ),
    _VIT + r"attention\.[qkv]_proj\.(weight|bias)": r"vision_model.encoder.layers.\1.attn.qkv.\2",
    _VIT + r"attention\.projection_layer\.(weight|bias)": r"vision_model.encoder.layers.\1.attn.proj.\2",
    _VIT + r"attention\.([qk]_norm)\.weight": r"vision_model.encoder.layers.\1.attn.\2.weight",
    _VIT + r"layernorm_before\.(weight|bias)": r"vision_model.encoder.layers.\1.norm1.\2",
    _VIT + r"layernorm_after\.(weight|bias)": r"vision_model.encoder.layers.\1.norm2.\2",
    _VIT + r"lambda_([12])": r"vision_model.encoder.layers.\1.ls\2",
    _VIT + r"mlp\.(fc[12])\.(weight|bias)": r"vision_model.encoder.layers.\1.mlp.\2.\3",
    r"vlm\.model\.multi_modal_projector\.layer_norm\.(weight|bias)": r"mlp1.0.\1",
    r"vlm\.model\.multi_modal_projector\.linear_1\.(weight|bias)": r"mlp1.1.\1",
    r"vlm\.model\.multi_modal_projector\.linear_2\.(weight|bias)": r"mlp1.3.\1",
}
# Names that only move: of Qwen, Llama, and of Phi-3, whose projections are fused in transformers too.
_PLAIN_LM = {
    r"vlm\.lm_head\.weight": "language_model.lm_head.weight",
    r"vlm\.model\.language_model\.(.+)": r"language_model.model.\1",
}
_LAYER = r"vlm\.model\.language_model\.layers\.(\d+)\."
_INTERNLM2 = {
    r"vlm\.lm_head\.weight": "language_model.output.weight",
    r"vlm\.model\.language_model\.embed_tokens\.weight": "language_model.model.tok_embeddings.weight",
    r"vlm\.model\.language_model\.norm\.weight": "language_model.model.norm.weight",
    _LAYER + r"self_attn\.[qkv]_proj\.weight": r"language_model.model.layers.\1.attention.wqkv.weight",
    _LAYER + r"self_attn\.o_proj\.weight": r"language_model.model.layers.\1.attention.wo.weight",
    _LAYER + r"mlp\.gate_proj\.weight": r"language_model.model.layers.\1.feed_forward.w1.weight",
    _LAYER + r"mlp\.down_proj\.weight": r"language_model.model.layers.\1.feed_forward.w2.weight",
    _LAYER + r"mlp\.up_proj\.weight": r"language_model.model.layers.\1.feed_forward.w3.weight",
    _LAYER + r"input_layernorm\.weight": r"language_model.model.layers.\1.attention_norm.weight",
    _LAYER + r"post_attention_layernorm\.weight": r"language_model.model.layers.\1.ffn_norm.weight",
}
_QWEN_VL = {r"vlm\.(model\..+|lm_head\.weight)": r"model.\1"}


def _names(config: Sa2VAConfig) -> dict[str, str]:
    if config.vlm_config.model_type != "internvl":
        return {**_SAM2_AND_HEAD, **_QWEN_VL}
    language_model = _INTERNLM2 if is_internlm2(config.text_config) else _PLAIN_LM
    return {**_SAM2_AND_HEAD, **_INTERNVL, **language_model}


def is_internlm2(text: PreTrainedConfig) -> bool:
    """
    Whether a language model is published as InternLM2, and not as Llama: both are Llama to transformers.

    Args:
        text (`PreTrainedConfig`): its native config. Llama says so in `architectures`, as it does where it is
            published; one that says nothing is InternLM2.
    """
    return text.model_type == "llama" and "LlamaForCausalLM" not in (text.architectures or [])


def published_parts(names: list[str], config: Sa2VAConfig) -> dict[str, Part]:
    """
    Where each native tensor stands in the published layout.

    Args:
        names (`list[str]`): native names, as in the model's `state_dict`.
        config (`Sa2VAConfig`): tells the families apart.

    Returns:
        `dict[str, Part]`: by native name.

    Raises:
        `ValueError`: a name that the layout has no place for.
    """
    rules = [(re.compile(pattern), replacement) for pattern, replacement in _names(config).items()]
    parts = {}
    for name in names:
        # The first rule that fits the whole name; nothing matches a piece of one.
        matches = ((rule.fullmatch(name), replacement) for rule, replacement in rules)
        match, replacement = next(((match, text) for match, text in matches if match), (None, None))
        if match is None:
            raise ValueError(f"The published layout has no place for {name!r}.")
        parts[name] = _part(name, match.expand(replacement), config)
    return parts


def _part(name: str, published: str, config: Sa2VAConfig) -> Part:
    letter = re.search(r"\.([qkv])_proj\.", name)
    if ".attn.qkv." in published and published.startswith("vision_model."):
        block = "qkv".index(letter.group(1))
        return Part(published, groups=1, size=3, start=block, stop=block + 1)
    if published.endswith(".attention.wqkv.weight"):
        # Each key and value head follows the query heads that share it.
        text = config.text_config
        share = text.num_attention_heads // text.num_key_value_heads
        start, stop = {"q": (0, share), "k": (share, share + 1), "v": (share + 1, share + 2)}[letter.group(1)]
        return Part(published, groups=text.num_key_value_heads, size=share + 2, start=start, stop=stop)
    return Part(published)


def is_published(config: dict) -> bool:
    """Whether a `config.json` is of the published layout. Its `model_type` is one and the same in every family."""
    return "llm_config" in config or config.get("model_type") == "sa2va_chat"


def native_config(
    published: dict,
    seg_token_id: int,
    image_token_id: int,
    separate_tracking_decoder: bool = False,
    tied_head: bool = False,
) -> Sa2VAConfig:
    """
    The native config of a published one.

    Args:
        published (`dict`): its `config.json`.
        seg_token_id, image_token_id (`int`): of the tokenizer beside it; no config holds them.
        separate_tracking_decoder (`bool`, *optional*, defaults to `False`):
            Whether there are two mask decoders (Sa2VA-i, arXiv 2509.19082); only the tensors' names say so.
        tied_head (`bool`, *optional*, defaults to `False`):
            InternVL's only: whether the language model's head is its embeddings, as in the first Sa2VA-1B. A config
            may say so of a head that has its own weights; only the tensors' names are to be believed.

    Returns:
        `Sa2VAConfig`.

    Raises:
        `ValueError`: an unknown family, or a setting that the network here does not have.
    """
    if _is_llava(published):
        raise ValueError(
            "config.json is of a Sa2VA on LLaVA-1.5 (CLIP and Vicuna), such as Sa2VA-LLaVA-1.5-7B, which is not "
            "supported: take a Sa2VA on InternVL, Qwen2.5-VL or Qwen3-VL."
        )
    if "template" not in published:
        raise ValueError("config.json names no `template`, the prompt template that the model was trained with.")
    try:
        vlm = _vlm_config(published, image_token_id, tied_head)
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}.") from error
    # The official code writes SAM 2's sizes into its source. Small checkpoints of this package carry them along.
    grounding = dict(published.get("grounding_config", {}))
    grounding.pop("model_type", None)
    if separate_tracking_decoder:
        grounding["separate_tracking_decoder"] = True
    return Sa2VAConfig(
        vlm_config=vlm,
        grounding_config=Sa2VAGroundingConfig(**grounding),
        seg_token_id=seg_token_id,
        prompt_template=str(published["template"]).replace("-", "_"),  # as the official code reads it
        dtype=published.get("torch_dtype") or published.get("dtype"),
        seg_state=published.get("seg_state", official_seg_state(vlm.model_type)),
        grounding_dtype=published.get("grounding_dtype"),
        **({"tracking": "mask_prompt"} if separate_tracking_decoder else {}),
    )


def _is_llava(published: dict) -> bool:
    if "llm_config" in published:
        return False
    vision, classes = published.get("vision_config"), (published.get("architectures"), published.get("auto_map"))
    kind = vision.get("model_type") if isinstance(vision, dict) else None
    return kind == "clip_vision_model" or "llava" in str(classes).lower() or "image_token_index" in published


def _vlm_config(published: dict, image_token_id: int, tied_head: bool) -> PreTrainedConfig:
    for name in ("llm_config", "text_config", "vision_config"):
        if not isinstance(published.get(name, {}), dict):
            raise ValueError(f"config.json: {name} must be an object, got {published[name]!r}.")
    if "llm_config" in published:
        return _internvl_config(published, image_token_id, tied_head)
    text = published.get("text_config", {}).get("model_type")
    if text in QWEN_VL:
        return _qwen_vl_config(published, image_token_id)
    raise ValueError(
        f"config.json is of no family known here: it has no `llm_config` (InternVL) and text_config.model_type is "
        f"{text!r}; known are {', '.join(QWEN_VL)}."
    )


def _network(config: dict) -> dict:
    return {name: value for name, value in config.items() if name not in _NOT_THE_NETWORK}


def _internvl_config(published: dict, image_token_id: int, tied_head: bool) -> InternVLConfig:
    vision, language = published["vision_config"], published["llm_config"]
    expected = {
        "ps_version": "v2",
        "select_layer": -1,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "force_image_size": vision["image_size"],
    }
    for name, value in expected.items():
        if published.get(name) not in (value, None):
            raise ValueError(f"config.json: {name}={published[name]!r} is not supported, only {value!r}.")
    architecture = (language.get("architectures") or [None])[0]
    if architecture not in LANGUAGE_MODELS:
        raise ValueError(
            f"config.json: llm_config.architectures is {architecture!r}; known are {', '.join(LANGUAGE_MODELS)}."
        )
    language = _network(language)
    if architecture == "InternLM2ForCausalLM":
        if language.pop("bias", False):
            raise ValueError("config.json: llm_config.bias=True (InternLM2 with biases) is not supported.")
        language["model_type"] = "llama"
    elif architecture == "LlamaForCausalLM":
        language["architectures"] = [architecture]  # what tells it from InternLM2 when it is saved
    elif architecture == "Phi3ForCausalLM":
        language = _native_phi3(language)
    tokens = int((vision["image_size"] // vision["patch_size"] * published["downsample_ratio"]) ** 2)
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision["hidden_size"],
            num_hidden_layers=vision["num_hidden_layers"],
            num_attention_heads=vision["num_attention_heads"],
            intermediate_size=vision["intermediate_size"],
            hidden_act=vision.get("hidden_act", "gelu"),
            layer_norm_eps=vision["layer_norm_eps"],
            norm_type=vision["norm_type"],
            attention_bias=vision["qkv_bias"],
            use_qk_norm=vision["qk_normalization"],
            layer_scale_init_value=vision["initializer_factor"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            num_channels=vision.get("num_channels", 3),
        ),
        text_config=LANGUAGE_MODELS[architecture].from_dict({**language, "tie_word_embeddings": tied_head}),
        image_token_id=image_token_id,
        image_seq_length=tokens,
        downsample_ratio=published["downsample_ratio"],
        tie_word_embeddings=tied_head,  # InternVLConfig would tie by default and the head would be lost
    )


def _native_phi3(language: dict) -> dict:
    """Phi-3's config with its rotary scaling by the name that it has today: early files say `su`."""
    scaling = language.get("rope_scaling")
    if scaling is None:
        return language
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind not in ("su", "longrope"):
        raise ValueError(
            f"config.json: llm_config.rope_scaling is of type {kind!r}; Phi-3's can be 'su' or 'longrope'."
        )
    original = language.get("original_max_position_embeddings", Phi3Config.original_max_position_embeddings)
    scaling = {
        # (Left to transformers, it would be this too, with a warning.)
        "factor": language["max_position_embeddings"] / original,
        **{name: value for name, value in scaling.items() if name != "type"},
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
    }
    return {**language, "rope_scaling": scaling}


def _qwen_vl_config(published: dict, image_token_id: int) -> PreTrainedConfig:
    family = QWEN_VL[published["text_config"]["model_type"]]
    config = without_copies(_network(published))
    for name in ("model_type", "template", "grounding_config", "seg_state", "grounding_dtype"):
        config.pop(name, None)
    config["text_config"] = {**_network(config["text_config"]), "tie_word_embeddings": False}
    config["vision_config"] = _network(config["vision_config"])
    return family.from_dict({**config, "image_token_id": image_token_id, "tie_word_embeddings": False})


def published_config(config: Sa2VAConfig, dtype: torch.dtype) -> dict:
    """
    The `config.json` of the published layout, the inverse of [`native_config`].

    Args:
        config (`Sa2VAConfig`): of the model.
        dtype (`torch.dtype`): of the saved weights.

    Returns:
        `dict`.
    """
    vlm, text = config.vlm_config, config.text_config
    name = str(dtype).removeprefix("torch.")
    sizes = _sam2_sizes(config.grounding_config)
    sizes = {key: value for key, value in sizes.items() if value != _sam2_sizes(Sa2VAGroundingConfig())[key]}
    # Only where they are not those that the official code takes for granted.
    extra = {"grounding_config": sizes} if sizes else {}
    if config.seg_state != official_seg_state(vlm.model_type):
        extra["seg_state"] = config.seg_state
    if config.grounding_dtype is not None:
        extra["grounding_dtype"] = config.grounding_dtype
    if vlm.model_type != "internvl":
        result = _network(vlm.to_dict())
        result["text_config"] = _published_text(text)
        result["vision_config"] = _network(vlm.vision_config.to_dict())
        suffix, file, model = "Qwen", "modeling_sa2va_qwen", "Sa2VAChatModelQwen"
    else:
        vision = vlm.vision_config
        language = _published_text(text)
        if is_internlm2(text):
            language.update(model_type="internlm2", bias=False, attn_implementation="eager")
            for key in ("attention_bias", "mlp_bias", "pretraining_tp", "head_dim"):
                language.pop(key, None)
        architecture = next(name for name, kind in LANGUAGE_MODELS.items() if kind.model_type == text.model_type)
        if is_internlm2(text):
            architecture = "InternLM2ForCausalLM"
        result = {
            "vision_config": {
                "architectures": ["InternVisionModel"],
                "model_type": "intern_vit_6b",
                "hidden_size": vision.hidden_size,
                "num_hidden_layers": vision.num_hidden_layers,
                "num_attention_heads": vision.num_attention_heads,
                "intermediate_size": vision.intermediate_size,
                "hidden_act": vision.hidden_act,
                "layer_norm_eps": vision.layer_norm_eps,
                "norm_type": vision.norm_type,
                "qkv_bias": vision.attention_bias,
                "qk_normalization": vision.use_qk_norm,
                "initializer_factor": vision.layer_scale_init_value,
                "image_size": vision.image_size[0],
                "patch_size": vision.patch_size[0],
                "num_channels": vision.num_channels,
                "dropout": 0.0,
                "drop_path_rate": 0.0,
                "attention_dropout": 0.0,
                "use_flash_attn": True,
                "torch_dtype": name,
            },
            "llm_config": {"architectures": [architecture], **language, "torch_dtype": name},
            "hidden_size": text.hidden_size,
            "force_image_size": vision.image_size[0],
            "downsample_ratio": vlm.downsample_ratio,
            "dynamic_image_size": True,
            "use_thumbnail": True,
            "min_dynamic_patch": 1,
            "max_dynamic_patch": 12,
            "ps_version": "v2",
            "select_layer": -1,
            "pad2square": False,
            "use_backbone_lora": 0,
            "use_llm_lora": 0,
        }
        suffix, file, model = "", "modeling_sa2va_chat", "Sa2VAChatModel"
    return {
        **result,
        **extra,
        "architectures": [model],
        "model_type": "sa2va_chat",
        # The official remote code, which whoever needs it puts beside the weights.
        "auto_map": {
            "AutoConfig": f"configuration_sa2va_chat.Sa2VAChatConfig{suffix}",
            "AutoModel": f"{file}.{model}",
            "AutoModelForCausalLM": f"{file}.{model}",
        },
        "template": config.prompt_template,
        "tie_word_embeddings": False,
        "torch_dtype": name,
        # Without it, transformers 4.57 takes any large tokenizer for Mistral's and says that it is wrong.
        "transformers_version": "4.57.0",
    }


def _sam2_sizes(config: Sa2VAGroundingConfig) -> dict:
    # Its own fields. (That there are two decoders, the tensors' names say.)
    sizes = {field.name: getattr(config, field.name) for field in fields(config)}
    own = set(Sa2VAGroundingConfig.__annotations__) - {"model_type", "separate_tracking_decoder"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items() if name in own}


def _published_text(text: PreTrainedConfig) -> dict:
    """A language model's config with rotary settings as transformers 4 wrote them."""
    config = _network(text.to_dict())
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    rope.pop("type", None)
    if text.model_type == "phi3":
        return {**config, "rope_scaling": _published_phi3(text, kind, rope), "tie_word_embeddings": False}
    rope = {"type": kind, "rope_type": kind, **rope} if kind != "default" or rope else None
    return {**config, "rope_scaling": rope, "tie_word_embeddings": False}


def _published_phi3(text: PreTrainedConfig, kind: str, rope: dict) -> dict | None:
    """
    Phi-3's rotary scaling in the three fields, and with the name, that its remote code asks for and transformers 4
    takes too. What follows from the rest of the config is left out.
    """
    derived = {
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": text.original_max_position_embeddings,
        "factor": text.max_position_embeddings / text.original_max_position_embeddings,
    }
    rope = {name: value for name, value in rope.items() if derived.get(name) != value}
    return {"type": "su", **rope} if kind == "longrope" else rope or None
