"""A tiny model of every family of the published layout."""

import copy

from transformers import LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config

from sa2va_trl import Sa2VAForConditionalGeneration, tiny_sa2va


# Phi-3's rotary scaling, for heads of 16 values: other factors past `original_max_position_embeddings` tokens.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4096 / 512,
    "original_max_position_embeddings": 512,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0],
}


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
    elif family == "phi3":
        config.vlm_config.text_config = Phi3Config(
            **text,
            rope_parameters=dict(LONGROPE),
            original_max_position_embeddings=LONGROPE["original_max_position_embeddings"],
            sliding_window=40,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        config.prompt_template = processor.prompt_template = "phi3_chat"
    elif family == "llama":
        config.vlm_config.text_config = LlamaConfig(**text, architectures=["LlamaForCausalLM"])
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


FAMILIES = ["qwen2", "qwen3", "phi3", "llama", "internlm2", "internlm2_vit_6b", "sa2va_i", "qwen2_5_vl", "qwen3_vl"]
