"""The published layout: its families on the meta device, and the two directions of its table."""

import copy
import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl import Sa2VAConfig, Sa2VAForConditionalGeneration
from sa2va_trl.models.published import Part, is_published, native_config, published_config, published_parts


VIT_300M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "initializer_factor": 0.1,
    "image_size": 448,
    "patch_size": 14,
}
VIT_6B = {
    **VIT_300M,
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
}


def internvl(architecture, hidden, layers, heads, kv, inter, vocab, vision=VIT_300M, template="qwen_chat", **text):
    return {
        "model_type": "sa2va_chat",
        "vision_config": vision,
        "llm_config": {
            "architectures": [architecture],
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "intermediate_size": inter,
            "vocab_size": vocab,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "attn_implementation": "flash_attention_2",
            "torch_dtype": "bfloat16",
            **text,
        },
        "downsample_ratio": 0.5,
        "force_image_size": 448,
        "ps_version": "v2",
        "select_layer": -1,
        "template": template,
    }


def qwen2_5_vl(hidden, layers, heads, kv, inter, out):
    return {
        "model_type": "sa2va_chat",
        "image_token_id": 151655,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "intermediate_size": inter,
            "vocab_size": 151670,
            "tie_word_embeddings": True,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_size": 1280,
            "depth": 32,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": out,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "tie_word_embeddings": True,
        "template": "qwen_chat",
    }


QWEN3_VL_4B = {
    "model_type": "sa2va_chat",
    "image_token_id": 151655,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151674,
        "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "hidden_size": 1024,
        "depth": 24,
        "num_heads": 16,
        "intermediate_size": 4096,
        "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    "template": "qwen_chat",
}
# The sizes are Qwen3-VL-2B-Instruct's. That the vocabulary is Qwen3's 151,669 tokens and Sa2VA's five is derived.
# Both give the total that is reported for the published weights: 2,666,774,834.
QWEN3_VL_2B = {
    **QWEN3_VL_4B,
    "text_config": {
        **QWEN3_VL_4B["text_config"],
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 6144,
    },
    "vision_config": {**QWEN3_VL_4B["vision_config"], "out_hidden_size": 2048},
}
LLAVA = {
    "model_type": "sa2va_chat",
    "architectures": ["Sa2VAChatModelLlava"],
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "vocab_size": 32064},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14},
    "template": "vicuna",
}
DYNAMIC = {"rms_norm_eps": 1e-5, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "bias": False}
INTERNLM2 = {"vocab": 92558, "template": "internlm2_chat", **DYNAMIC}
# InternVL2-4B's sizes (Phi-3-mini-128k) with Sa2VA's five tokens; the factors are made up.
SU = {"type": "su", "short_factor": [1.0 + index / 48 for index in range(48)], "long_factor": [1.0, *range(2, 49)]}
PHI3 = {
    "vocab": 32025,
    "template": "phi3_chat",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_scaling": SU,
    "sliding_window": 262144,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}
HEAD_AND_SAM2 = 224_430_130

# Totals and numbers of published names: the official checkpoints' (all parameters, 224,430,130 of them SAM 2's).
FAMILIES = {
    "1B": (internvl("Qwen2ForCausalLM", 896, 24, 14, 2, 4864, 151679), 1_163_665_458, 340 + 6 + 291 + 904),
    "4B": (
        internvl("Qwen2ForCausalLM", 2048, 36, 16, 2, 11008, 151679, template="phi3_chat"),
        3_941_809_458,
        340 + 6 + 435 + 904,
    ),
    "8B": (internvl("InternLM2ForCausalLM", 4096, 32, 32, 8, 14336, **INTERNLM2), 8_317_666_610, 1477),
    "26B": (
        internvl("InternLM2ForCausalLM", 6144, 48, 48, 8, 16384, vision=VIT_6B, **INTERNLM2),
        25_778_005_682,
        1838,
    ),
    # The first 4B: InternVL2-4B's 4,146,855,936 parameters, ten rows for the tokens, and what Sa2VA adds.
    "4B on Phi-3": (
        internvl("Phi3ForCausalLM", 3072, 32, 32, 32, 8192, **PHI3),
        4_146_855_936 + 2 * 5 * 3072 + HEAD_AND_SAM2 + 3072 * 3072 + 3072 + 256 * 3072 + 256,
        340 + 6 + 195 + 904,
    ),
    "InternVL3-2B": (internvl("Qwen2ForCausalLM", 1536, 28, 12, 2, 8960, 151679), 2_316_157_234, 1589),
    "InternVL3-8B": (internvl("Qwen2ForCausalLM", 3584, 28, 28, 4, 18944, 151679), 8_182_606_130, 1589),
    "InternVL3-14B": (
        internvl("Qwen2ForCausalLM", 5120, 48, 40, 8, 13824, 151679),
        15_369_268_530,
        340 + 6 + 579 + 904,
    ),
    "Qwen2.5-VL-3B": (
        qwen2_5_vl(2048, 36, 16, 2, 11008, 2048),
        4_064_698_368 + HEAD_AND_SAM2 + 2048 * 2048 + 2048 + 256 * 2048 + 256,
        825 + 904,
    ),
    "Qwen2.5-VL-7B": (
        qwen2_5_vl(3584, 28, 28, 4, 18944, 3584),
        8_289_342_464 + HEAD_AND_SAM2 + 3584 * 3584 + 3584 + 256 * 3584 + 256,
        729 + 904,
    ),
    "Qwen3-VL-2B": (QWEN3_VL_2B, 2_666_774_834, 11 * 28 + 3 + 12 * 24 + 27 + 904),
    "Qwen3-VL-4B": (QWEN3_VL_4B, 4_825_430_528 + HEAD_AND_SAM2 + 2560 * 2560 + 2560 + 256 * 2560 + 256, 714 + 904),
}


def on_meta(published, **kwargs):
    config = native_config(published, seg_token_id=7, image_token_id=5, **kwargs)
    with torch.device("meta"):
        return Sa2VAForConditionalGeneration(config)


def same(one: Sa2VAConfig, other: Sa2VAConfig) -> bool:
    """Equal but for the legacy spelling of rotary types, which old files carry along."""

    def plain(value):
        if not isinstance(value, dict):
            return list(value) if isinstance(value, tuple) else value
        return {
            key: plain(entry)
            for key, entry in value.items()
            if key not in ("type", "dtype", "architectures", "attn_implementation", "bias")
        }

    return plain(one.to_dict()) == plain(other.to_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_published_parameters_and_names(family):
    published, parameters, names = FAMILIES[family]
    model = on_meta(published)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    parts = published_parts(list(model.state_dict()), model.config)
    assert len({part.name for part in parts.values()}) == names
    # Each published tensor is covered by its parts once, without gap or overlap.
    shapes, covered = {}, {}
    for name, tensor in model.state_dict().items():
        part = parts[name]
        assert shapes.setdefault(part.name, part.shape(tensor.shape)) == part.shape(tensor.shape)
        covered.setdefault(part.name, []).append((part.start, part.stop, part.size))
    for name, blocks in covered.items():
        edges = sorted(blocks)
        assert edges[0][0] == 0 and edges[-1][1] == edges[0][2], name
        assert all(before[1] == after[0] for before, after in zip(edges, edges[1:], strict=False)), name
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert total == sum(tensor.numel() for tensor in model.state_dict().values())


def test_internvl3_8b_has_the_real_names(shared):
    recorded = json.loads((shared / "reference/sa2va_internvl3_8b_keys.json").read_text())
    model = on_meta(FAMILIES["InternVL3-8B"][0])
    ours = {part.name for part in published_parts(list(model.state_dict()), model.config).values()}
    assert ours == set(recorded["names"])
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded["total_parameters"]


@pytest.mark.parametrize("family", FAMILIES)
def test_config_there_and_back(family):
    published = FAMILIES[family][0]
    native = native_config(copy.deepcopy(published), seg_token_id=7, image_token_id=151655)
    assert native.prompt_template == published["template"]
    assert not native.tie_word_embeddings
    assert not native.text_config.tie_word_embeddings
    again = published_config(native, torch.bfloat16)
    assert is_published(again)
    assert "grounding_config" not in again  # the official sizes are taken for granted
    assert same(native_config(again, seg_token_id=7, image_token_id=151655), native)
    # A tool that was made for the published layout finds the settings of transformers 4.
    language = again.get("llm_config") or again["text_config"]
    wanted = published.get("llm_config") or published["text_config"]
    assert language["rope_theta"] == wanted["rope_theta"]
    assert language.get("architectures") == wanted.get("architectures")
    if family in ("8B", "26B"):
        assert language["rope_scaling"]["type"] == "dynamic"
        assert language["rope_scaling"]["factor"] == 2.0
    if family == "4B on Phi-3":  # its remote code takes these three fields, and this name
        assert {name: language[name] for name in PHI3 if name in language} == {
            name: value for name, value in PHI3.items() if name not in ("vocab", "template")
        }


def test_a_native_llama_of_an_earlier_version_is_internlm2():
    native = native_config(FAMILIES["8B"][0], seg_token_id=7, image_token_id=5)
    assert native.text_config.architectures is None  # as it always was
    assert published_config(native, torch.bfloat16)["llm_config"]["model_type"] == "internlm2"
    llama = native_config(internvl("LlamaForCausalLM", 64, 2, 4, 2, 128, 300), seg_token_id=7, image_token_id=5)
    again = Sa2VAConfig.from_dict(json.loads(llama.to_json_string()))
    assert published_config(again, torch.bfloat16)["llm_config"]["model_type"] == "llama"


def test_phi3_keeps_rotary_settings_of_its_own():
    native = native_config(FAMILIES["4B on Phi-3"][0], seg_token_id=7, image_token_id=5)
    rope = native.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("longrope", 32.0, 4096)
    plain = copy.deepcopy(FAMILIES["4B on Phi-3"][0])
    plain["llm_config"] |= {"rope_scaling": None, "max_position_embeddings": 4096}
    native = native_config(plain, seg_token_id=7, image_token_id=5)
    assert published_config(native, torch.bfloat16)["llm_config"]["rope_scaling"] is None
    for kind in ("yarn", None):
        plain["llm_config"]["rope_scaling"] = {**SU, "type": kind}
        with pytest.raises(ValueError, match=f"rope_scaling is of type {kind!r}; Phi-3's can be 'su' or 'longrope'"):
            native_config(plain, seg_token_id=7, image_token_id=5)


def test_the_first_1b_has_a_tied_head():
    """InternVL2-1B's sizes. Its file is of 3.50 GB (vision tower in bfloat16, all else in float32): without a head."""
    published = internvl("Qwen2ForCausalLM", 896, 24, 14, 2, 4864, 151660, tie_word_embeddings=True)
    model = on_meta(published, tied_head=True)
    assert model.config.tie_word_embeddings and "vlm.lm_head.weight" in model.all_tied_weights_keys
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tower = sum(count for name, count in parameters.items() if "vision_tower" in name)
    assert 2 * tower + 4 * (sum(parameters.values()) - tower) == 3_502_951_624
    assert on_meta(published).config.tie_word_embeddings is False  # where the file holds one


@pytest.mark.parametrize("template", ["phi3-chat", "phi3_chat"])
def test_templates_are_read_as_the_official_code_reads_them(template):
    published = {**FAMILIES["4B on Phi-3"][0], "template": template}
    assert native_config(published, seg_token_id=7, image_token_id=5).prompt_template == "phi3_chat"


def older(published):
    """As transformers 4 wrote Qwen2.5-VL: what the language model says, once more beside it."""
    flat = {name: value for name, value in published["text_config"].items() if name != "model_type"}
    scaling = {**published["text_config"]["rope_scaling"], "type": "default", "rope_type": "default"}
    return {**flat, "vocab_size": 152064, "rope_scaling": scaling, **published}


@pytest.mark.parametrize("family", [*FAMILIES, "older"])
def test_nothing_is_said_of_a_right_config(family, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    published = older(FAMILIES["Qwen2.5-VL-3B"][0]) if family == "older" else copy.deepcopy(FAMILIES[family][0])
    model = on_meta(published)
    native = json.loads(model.config.to_json_string(use_diff=False))
    if family == "older":
        assert "vocab_size" not in native["vlm_config"]
        assert same(model.config, on_meta(FAMILIES["Qwen2.5-VL-3B"][0]).config)
        # And as this package wrote it before.
        rope = native["vlm_config"]["text_config"]["rope_parameters"]
        native["vlm_config"] |= {"vocab_size": 152064, "rope_parameters": dict(rope)}
    assert same(Sa2VAConfig.from_dict(copy.deepcopy(native)), model.config)
    native_config(published_config(model.config, torch.bfloat16), seg_token_id=7, image_token_id=5)
    said = [record.getMessage() for record in caplog.records if "rope" in record.getMessage().lower()]
    assert said == []


def test_sa2va_i_has_a_second_mask_decoder():
    model = on_meta(FAMILIES["1B"][0], separate_tracking_decoder=True)
    names = {part.name for part in published_parts(list(model.state_dict()), model.config).values()}
    assert len(names) == FAMILIES["1B"][2] + 131
    second = "grounding_encoder.sam2_model.sam_mask_decoder_modified."
    assert sum(name.startswith(second) for name in names) == 131
    assert model.config.tracking == "mask_prompt"


def test_sizes_of_sam2_travel_with_small_checkpoints(tiny):
    config = published_config(tiny[0].config, torch.float32)
    native = native_config(config, tiny[0].config.seg_token_id, tiny[0].config.image_token_id)
    assert native.grounding_config.to_dict() == tiny[0].config.grounding_config.to_dict()


@settings(max_examples=50, deadline=None)
@given(
    groups=st.integers(1, 4),
    share=st.integers(1, 5),
    width=st.integers(1, 3),
    dims=st.integers(1, 2),
)
def test_parts_put_together_are_the_whole(groups, share, width, dims):
    size = share + 2
    whole = torch.randn(groups * size * width, *([3] * (dims - 1)))
    cuts = [(0, share), (share, share + 1), (share + 1, share + 2)]
    parts = [Part("x", groups, size, start, stop) for start, stop in cuts]
    taken = [part.take(whole) for part in parts]
    again = torch.full_like(whole, float("nan"))
    for part, rows in zip(parts, taken, strict=True):
        assert part.shape(rows.shape) == whole.shape
        part.put(again, rows)
    assert torch.equal(again, whole)
    # The layout in so many words: the queries of a group, then its key head, then its value head.
    first = torch.cat([group[: share * width] for group in whole.chunk(groups)])
    assert torch.equal(taken[0], first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llm_config": {"architectures": ["Gemma2ForCausalLM"]}}, "'Gemma2ForCausalLM'; known are .*Phi3ForCausalLM"),
        ({"llm_config": {"architectures": None}}, "architectures"),
        ({"ps_version": "v1"}, "ps_version='v1'"),
        ({"select_layer": -4}, "select_layer=-4"),
        ({"force_image_size": 224}, "force_image_size=224"),
        ({"use_llm_lora": 16}, "use_llm_lora=16"),
        ({"template": "vicuna"}, "vicuna"),
        ({"template": None}, "prompt_template"),
    ],
)
def test_what_is_not_known_is_refused(change, message):
    published = copy.deepcopy(FAMILIES["1B"][0])
    for name, value in change.items():
        published[name] = {**published[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        native_config(published, seg_token_id=7, image_token_id=5)


@pytest.mark.parametrize("lacks", ["", "architectures", "image_token_index", "vision_config", "template"])
def test_llava_is_refused_by_name(lacks):
    published = {name: value for name, value in LLAVA.items() if name != lacks}
    with pytest.raises(ValueError, match="LLaVA-1.5.*Sa2VA-LLaVA-1.5-7B.*not supported"):
        native_config(published, 7, 5)


def test_unknown_families_and_names_are_refused():
    with pytest.raises(ValueError, match="template"):
        native_config({"model_type": "sa2va_chat"}, 7, 5)
    with pytest.raises(ValueError, match="no family known here.*'llama'"):
        native_config({"template": "qwen_chat", "text_config": {"model_type": "llama"}}, 7, 5)
    with pytest.raises(ValueError, match="no place for 'base_model.model.vlm.lm_head.weight'"):
        published_parts(["base_model.model.vlm.lm_head.weight"], on_meta(FAMILIES["1B"][0]).config)
