"""A tiny model of every family of the published layout."""

import copy

from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from sa2va_trl import Sa2VAForConditionalGeneration, tiny_sa2va


def tiny_family(family: str):
    """A tiny model of a family of the published layout, with weights that are all different, and its processor."""
    if family in ("qwen2_5_vl", "qwen3_vl"):
        model, processor = tiny_sa2va(image_size=128, family=family)
        return model.eval(), processor
    model, processor = tiny_sa2va(image_size=128)
    config = copy.deepcopy(model.config)
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": config.text_config.vocab_size,
        "max_position_embeddings": 4096,
    }
    if family == "qwen2":
        config.vlm_config.text_config = Qwen2Config(**text)
    elif family == "qwen3":
        config.vlm_config.text_config = Qwen3Config(**text, head_dim=16)
    else:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
        config.vlm_config.text_config = LlamaConfig(**text, rms_norm_eps=1e-5, rope_parameters=rope)
        config.prompt_template = processor.prompt_template = "internlm2_chat"
    if family == "internlm2_vit_6b":
        config.vlm_config.vision_config.attention_bias = False
        config.vlm_config.vision_config.use_qk_norm = True
        config.vlm_config.vision_config.norm_type = "rms_norm"
    if family == "sa2va_i":
        config.grounding_config.separate_tracking_decoder = True
        config.tracking = "mask_prompt"
    return Sa2VAForConditionalGeneration(config).eval(), processor


FAMILIES = ["qwen2", "qwen3", "internlm2", "internlm2_vit_6b", "sa2va_i", "qwen2_5_vl", "qwen3_vl"]
