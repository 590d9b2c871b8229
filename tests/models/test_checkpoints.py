"""Loading and saving: both layouts, bit for bit, and everything that has to be refused."""

import copy
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, LONGROPE, tiny_family
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from sa2va_trl import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor, tiny_sa2va
from sa2va_trl.adapters.peft_model import SegPeftModel, load_adapter
from sa2va_trl.data.angiography import generate_video
from sa2va_trl.errors import CheckpointError
from sa2va_trl.files import written_beside
from sa2va_trl.models import checkpoints, pretrained
from sa2va_trl.models.checkpoints import save_published
from sa2va_trl.questions import QUESTIONS, ask
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


@pytest.fixture
def published(tmp_path):
    """A folder in the published layout with a small model in it, and the model."""
    model, processor = tiny_family("qwen2")
    folder = tmp_path / "published"
    model.save_pretrained(folder, layout="published")
    processor.save_pretrained(folder, layout="published")
    return folder, model


@pytest.mark.parametrize("family", FAMILIES)
def test_published_there_and_back_is_bit_exact(family, tmp_path, image):
    model, processor = tiny_family(family)
    model.save_pretrained(tmp_path / "one", layout="published", max_shard_size="2MB")
    processor.save_pretrained(tmp_path / "one", layout="published")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 1
    stored = {}
    for file in (tmp_path / "one").glob("*.safetensors"):
        stored.update(load_file(file))
    assert not any(name.startswith("vlm.") or name.endswith("gamma") for name in stored)
    assert any(name.endswith(".g_weight") for name in stored)

    loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "one")
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert loaded.config.seg_token_id == model.config.seg_token_id
    assert loaded.config.image_token_id == model.config.image_token_id
    assert loaded.config.prompt_template == model.config.prompt_template

    loaded.save_pretrained(tmp_path / "two", layout="published", max_shard_size="2MB")
    again = {}
    for file in (tmp_path / "two").glob("*.safetensors"):
        again.update(load_file(file))
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], again[name]) for name in stored)
    assert json.loads((tmp_path / "one/config.json").read_text()) == json.loads(
        (tmp_path / "two/config.json").read_text()
    )

    # ... and it segments alike, with the processor that stands beside it.
    request = {"image": image, "text": "the line", "answer": "Sure, [SEG]."}
    beside = Sa2VAProcessor.from_pretrained(tmp_path / "one")
    assert beside.grounding_image_size == processor.grounding_image_size
    one, two = (each.segment(**request, processor=beside) for each in (model, loaded))
    assert torch.equal(one.mask_logits, two.mask_logits)

    # Native, in between.
    loaded.save_pretrained(tmp_path / "native")
    native = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "native")
    assert all(torch.equal(mine[name], value) for name, value in native.state_dict().items())
    one, two = native.config.to_dict(), loaded.config.to_dict()
    assert {**one, "_name_or_path": None} == {**two, "_name_or_path": None}


def test_fused_rows_of_internlm2_and_internvit_compute_the_same():
    """Independent arithmetic on the published tensors: grouped `wqkv` rows, and `qkv` chunks of the vision tower."""
    model, _ = tiny_family("internlm2")
    from sa2va_trl.models.published import published_parts

    state = model.state_dict()
    parts = published_parts(list(state), model.config)
    fused = {}
    for name, part in parts.items():
        if part.name not in fused:
            fused[part.name] = torch.empty(part.shape(state[name].shape))
        part.put(fused[part.name], state[name])
    layer = model.vlm.model.language_model.layers[1].self_attn
    hidden = torch.randn(1, 3, 64)
    rows = F.linear(hidden, fused["language_model.model.layers.1.attention.wqkv.weight"])
    rows = rows.view(1, 3, 2, 4, 16)  # key-value heads; two query heads, a key and a value head each; head size
    assert torch.allclose(rows[..., :2, :].reshape(1, 3, 64), layer.q_proj(hidden), atol=1e-6)
    assert torch.allclose(rows[..., 2, :].reshape(1, 3, 32), layer.k_proj(hidden), atol=1e-6)
    assert torch.allclose(rows[..., 3, :].reshape(1, 3, 32), layer.v_proj(hidden), atol=1e-6)
    attention = model.vlm.model.vision_tower.encoder.layer[0].attention
    pixels = torch.randn(1, 3, 48)
    name = "vision_model.encoder.layers.0.attn.qkv"
    query, key, value = F.linear(pixels, fused[f"{name}.weight"], fused[f"{name}.bias"]).chunk(3, dim=-1)
    for ours, theirs in ((query, attention.q_proj), (key, attention.k_proj), (value, attention.v_proj)):
        assert torch.allclose(ours, theirs(pixels), atol=1e-6)


TEACHERS = {"phi3": (Phi3Config, Phi3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


@pytest.mark.parametrize("family", TEACHERS)
def test_language_models_are_transformers_own(family, tmp_path, image):
    """What a published folder holds as `language_model.` is all that transformers' model wants, and they agree."""
    saved, processor = tiny_family(family)
    saved.save_pretrained(tmp_path, layout="published")
    processor.save_pretrained(tmp_path, layout="published")
    published = json.loads((tmp_path / "config.json").read_text())["llm_config"]
    kind, teacher = TEACHERS[family]
    assert published["architectures"] == [teacher.__name__] and published["model_type"] == kind.model_type
    if family == "phi3":  # as early files have it, which transformers 5 does not read
        assert published["rope_scaling"] == {
            "type": "su",
            **{name: LONGROPE[name] for name in ("short_factor", "long_factor")},
        }
        published["rope_scaling"] |= {"type": "longrope"}
    teacher = teacher(kind.from_dict(published)).eval()
    prefix = "language_model."
    tensors = load_file(tmp_path / "model.safetensors")
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    teacher.load_state_dict(own, strict=True)

    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    pixels, (block,) = processor.tiles([image])
    text = f"{block}{'a line, ' * 200}"
    input_ids = torch.tensor([processor.tokenizer(text, add_special_tokens=False).input_ids])
    features = []
    model.vlm.model.multi_modal_projector.register_forward_hook(lambda *args: features.append(args[-1]))
    # On both sides of the length at which Phi-3's rotary factors change, and past its sliding window.
    assert input_ids.shape[1] > 540
    for length in (512, 540):
        ids = input_ids[:, :length]
        with torch.no_grad():
            states = model.hidden_states(ids, **pixels)
            logits = model(ids, **pixels).logits
            embeddings = own["model.embed_tokens.weight"][ids]
            embeddings[ids == processor.image_token_id] = features.pop().flatten(0, 1)
            output = teacher(inputs_embeds=embeddings, output_hidden_states=True)
        assert (states - output.hidden_states[-1]).abs().max() < 1e-5
        assert (logits - output.logits).abs().max() < 1e-5


def test_a_tied_head_is_read_where_the_files_hold_none(published, tmp_path):
    folder, model = published
    config = json.loads((folder / "config.json").read_text())
    head, embeddings = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    edit(folder, lambda tensors: tensors.pop(head))
    refused(folder, f"missing: {re.escape(head)}")  # nothing says that it is tied
    config["llm_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tied = Sa2VAForConditionalGeneration.from_pretrained(folder)
    assert tied.config.tie_word_embeddings
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    # Saved, it has a head of its own again; and a head that is there counts, whatever the config says.
    tied.save_pretrained(tmp_path / "again", layout="published")
    tensors = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(tensors[head], tensors[embeddings])
    edit(folder, lambda tensors: tensors.update({head: tensors[embeddings] + 1}))
    loaded = Sa2VAForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight + 1)


def edit(folder, change):
    """Apply `change` to the stored tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, message):
    with pytest.raises(CheckpointError, match=message) as error:
        Sa2VAForConditionalGeneration.from_pretrained(folder)
    return str(error.value)


@pytest.mark.parametrize("layout", ["published", "native"])
def test_one_wrong_tensor_is_refused_by_name(layout, published, tmp_path):
    folder, model = published
    names = ["language_model.lm_head.weight", "text_hidden_fcs.2.weight", "mlp1.1.weight"]
    if layout == "native":
        folder = tmp_path / "native"
        model.save_pretrained(folder)
        names = ["vlm.lm_head.weight", "text_hidden_fcs.2.weight", "vlm.model.multi_modal_projector.linear_1.weight"]
    good = load_file(folder / "model.safetensors")

    def every_fault(tensors):
        del tensors[names[0]]
        tensors[names[1] + "s"] = tensors.pop(names[1])
        tensors[names[2]] = tensors[names[2]].t().contiguous()

    edit(folder, every_fault)
    message = refused(folder, f"missing: {re.escape(names[0])}")
    assert f"missing: {names[1]} " in message
    assert f"unexpected: {names[1]}s " in message
    assert f"misshapen: {names[2]} has " in message
    assert message.count("\n") == 4  # those and no others
    save_file(good, folder / "model.safetensors", metadata={"format": "pt"})
    Sa2VAForConditionalGeneration.from_pretrained(folder)


def test_a_fused_tensor_is_checked_as_a_whole(published):
    folder, _ = published
    name = "vision_model.encoder.layers.0.attn.qkv.weight"
    edit(folder, lambda tensors: tensors.update({name: tensors[name][:-3].clone()}))
    refused(folder, f"misshapen: {re.escape(name)} has .141, 48., the model .144, 48.")


def test_weights_that_mean_nothing_are_refused(published):
    folder, _ = published
    name = "text_hidden_fcs.2.bias"
    good = load_file(folder / "model.safetensors")
    for dtype, label in ((torch.int32, "I32"), (torch.float8_e4m3fn, "F8_E4M3")):
        edit(folder, lambda tensors, dtype=dtype: tensors.update({name: good[name].to(dtype)}))
        refused(folder, f"of type {label}: {name}")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    model, processor = tiny_family("qwen2")
    model.save_pretrained(tmp_path, layout="published", max_shard_size="2MB")
    processor.save_pretrained(tmp_path, layout="published")
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    name, value = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: value + 1}, second, metadata={"format": "pt"})
    assert refused(tmp_path, f"in two files: {name}").count("\n") == 1


@pytest.mark.parametrize("shards", [[], {"text_hidden_fcs.2.bias": "../model.safetensors"}, {"a": 1}])
def test_an_index_names_files_beside_it(shards, published):
    folder, _ = published
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    refused(folder, "weight_map must say in which file beside it")


def test_pickles_are_never_loaded(published):
    folder, model = published
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    Sa2VAForConditionalGeneration.from_pretrained(folder)  # not looked at
    (folder / "model.safetensors").unlink()
    refused(folder, "pickles, which are never loaded: pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    refused(folder, "names pickles")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    refused(folder, "model.safetensors is damaged or no safetensors file")


def test_a_truncated_shard_is_named(tmp_path):
    model, processor = tiny_family("qwen2")
    model.save_pretrained(tmp_path, layout="published", max_shard_size="2MB")
    processor.save_pretrained(tmp_path, layout="published")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    refused(tmp_path, f"{shard.name} is damaged")
    shard.unlink()
    refused(tmp_path, f"names files that are not there: {shard.name}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama", "llm_config": None}, "of type 'llama'"),
        ({"llm_config": {"architectures": ["GemmaForCausalLM"]}}, "config.json: llm_config.architectures is 'Gemma"),
        ({"vision_config": {}}, "config.json lacks 'image_size'"),
        ({"template": None}, "prompt_template"),
        ({"llm_config": None, "text_config": {"model_type": "gemma"}}, "no family known here.*'gemma'"),
        ({"llm_config": {"architectures": "GemmaForCausalLM"}}, "llm_config.architectures is"),
        ({"vision_config": []}, "vision_config must be an object"),
    ],
)
def test_a_config_of_an_unknown_family_is_refused(change, message, published):
    folder, _ = published
    content = {**json.loads((folder / "config.json").read_text()), **change}
    content = {name: value for name, value in content.items() if value is not None or name == "template"}
    (folder / "config.json").write_text(json.dumps(content))
    refused(folder, message)


def test_a_published_config_is_not_read_as_the_defaults(published):
    with pytest.raises(ValueError, match="'sa2va_chat' is no 'sa2va' config"):
        Sa2VAConfig.from_pretrained(published[0])


def refused_by_both(folder, message):
    for kind in (Sa2VAForConditionalGeneration, Sa2VAProcessor):
        with pytest.raises(CheckpointError, match=message):
            kind.from_pretrained(folder)


@pytest.mark.parametrize("shards", ["5GB", "2MB"])
@pytest.mark.parametrize("prefix", ["grounding_encoder.sam2_model.backbone.", "grounding_encoder.sam3_model."])
def test_sam3_is_refused_by_name(prefix, shards, tmp_path):
    """Sa2VA-Qwen3-VL-4B-SAM3: the config of a Qwen3-VL one, and SAM 3's tensors under the name `sam2_model`."""
    model, processor = tiny_family("qwen3_vl")
    processor.save_pretrained(tmp_path, layout="published")
    model.save_pretrained(tmp_path, layout="published", max_shard_size=shards)
    sam2 = "grounding_encoder.sam2_model.image_encoder."
    for file in tmp_path.glob("*.safetensors"):
        tensors = {name.replace(sam2, prefix + "vision_backbone."): value for name, value in load_file(file).items()}
        save_file(tensors, file)
    index = tmp_path / "model.safetensors.index.json"
    if index.exists():
        index.write_text(index.read_text().replace(sam2, prefix + "vision_backbone."))
    refused_by_both(tmp_path, "SAM 3.*1008 pixels.*Sa2VA-Qwen3-VL-4B-SAM3")
    if index.exists():  # before weights are read, and where there is no more than the index
        for file in tmp_path.glob("*.safetensors"):
            file.unlink()
        refused_by_both(tmp_path, "SAM 3")


def test_what_is_not_supported_is_refused_before_its_weights_are_fetched(tmp_path, monkeypatch):
    content = {"model_type": "sa2va_chat", "vision_config": {"model_type": "clip_vision_model"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    fetched = []
    monkeypatch.setattr(
        checkpoints, "snapshot_download", lambda name, allow_patterns, **_: fetched.extend(allow_patterns) or tmp_path
    )
    with pytest.raises(CheckpointError, match="LLaVA-1.5"):
        Sa2VAForConditionalGeneration.from_pretrained("ByteDance/Sa2VA-LLaVA-1.5-7B")
    assert fetched and not any(pattern.endswith(".safetensors") for pattern in fetched)


@pytest.mark.parametrize("name", ["outputs/sftt", "sftt", "./outputs/sftt", "../x", "a/b/c", "with space/x", "/x/y"])
def test_a_mistyped_folder_is_no_question_of_the_hub(name, tmp_path, monkeypatch):
    (tmp_path / "outputs" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    actions = {
        "model": Sa2VAForConditionalGeneration.from_pretrained,
        "processor": Sa2VAProcessor.from_pretrained,
        "recipe": lambda name: load_model(ModelArguments(model_name_or_path=name)),
        "adapter": lambda name: load_adapter(tiny_sa2va(image_size=64)[0], name),
    }
    for act in actions.values():
        with pytest.raises(ValueError) as caught:
            act(name)
        message = str(caught.value)
        assert message.startswith(f"There is no folder {name!r} (looked for {Path(name).absolute()}")
        assert ("did you mean outputs/sft?" in message) == ("outputs" in name)
        assert "Hub" in message


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused_by_both(tmp_path / "model.safetensors", "model.safetensors is a file: give the folder")


def test_what_the_hub_says_comes_second(tmp_path, monkeypatch):
    def gated(*args, **kwargs):
        raise OSError("Access to model owner/name is restricted.\nAsk for it.")

    monkeypatch.setattr(checkpoints, "is_offline_mode", lambda: False)
    monkeypatch.setattr(checkpoints, "snapshot_download", gated)
    with pytest.raises(CheckpointError, match="no folder 'owner/name'.*Hub: Access to model owner/name is"):
        Sa2VAForConditionalGeneration.from_pretrained("owner/name")


@pytest.mark.parametrize("base", [None, "owner/base"])
def test_an_adapter_says_what_to_call(base, tmp_path):
    adapter = SegPeftModel(tiny_sa2va(image_size=64)[0], LoraConfig(target_modules=["q_proj"], r=2))
    adapter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    call = f"load_adapter(Sa2VAForConditionalGeneration.from_pretrained({base!r})" if base else "from_pretrained(BASE)"
    with pytest.raises(CheckpointError, match=re.escape(call)) as caught:
        Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and ("of owner/base" if base else "a local model") in str(caught.value)


def test_broken_folders_have_one_clear_error(published, tmp_path):
    folder, model = published
    native = tmp_path / "native"
    model.save_pretrained(native)
    refused(tmp_path / "nothing", "neither a folder nor a Hub id")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")
    (folder / "tokenizer.json").unlink()
    refused(folder, "holds no tokenizer")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json cannot be read")
    with pytest.raises(ValueError, match="dtype must be 'auto' or a torch dtype such as 'bfloat16', got 'half-ish'"):
        Sa2VAForConditionalGeneration.from_pretrained(native, dtype="half-ish")
    with pytest.raises(ValueError, match="does not take gguf_file"):
        Sa2VAForConditionalGeneration.from_pretrained(folder, gguf_file="model.gguf")


def test_options_of_saving_are_checked(tiny, tmp_path):
    with pytest.raises(ValueError, match="layout must be 'native' or 'published', got 'official'"):
        tiny[0].save_pretrained(tmp_path / "x", layout="official")
    with pytest.raises(ValueError, match="does not take push_to_hub"):
        tiny[0].save_pretrained(tmp_path / "x", layout="published", push_to_hub=True)
    with pytest.raises(ValueError, match="layout must be 'native' or 'published', got 'official'"):
        tiny[1].save_pretrained(tmp_path / "x", layout="official")
    assert not (tmp_path / "x").exists()


def test_half_precision_is_read_in_half_precision(published):
    folder, model = published
    half = Sa2VAForConditionalGeneration.from_pretrained(folder, dtype="bfloat16")
    exact = "sam_prompt_encoder.pe_layer"
    for name, value in half.state_dict().items():
        assert value.dtype == (torch.float32 if exact in name else torch.bfloat16), name
        assert torch.equal(value, model.state_dict()[name].to(value.dtype))


def test_automatic_dtype_is_the_configs_or_the_stored_one(published):
    folder, _ = published
    assert Sa2VAForConditionalGeneration.from_pretrained(folder).dtype == torch.float32
    content = json.loads((folder / "config.json").read_text())
    content["torch_dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(content))
    assert Sa2VAForConditionalGeneration.from_pretrained(folder).dtype == torch.bfloat16
    del content["torch_dtype"]
    (folder / "config.json").write_text(json.dumps(content))
    assert Sa2VAForConditionalGeneration.from_pretrained(folder).dtype == torch.float32


@pytest.mark.parametrize("tied", [False, True])
def test_native_there_and_back(tied, tmp_path):
    model, _ = tiny_sa2va(image_size=128, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "native")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "native")
    assert (loaded.vlm.lm_head.weight is loaded.vlm.get_input_embeddings().weight) == tied
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_tied_head_is_published_on_its_own(tmp_path):
    model, processor = tiny_sa2va(image_size=128, tie_word_embeddings=True)
    model.save_pretrained(tmp_path, layout="published")
    processor.save_pretrained(tmp_path, layout="published")
    loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.vlm.lm_head.weight is not loaded.vlm.get_input_embeddings().weight
    assert torch.equal(loaded.vlm.lm_head.weight, model.vlm.get_input_embeddings().weight)


def test_an_adapted_model_is_not_published(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny[0], LoraConfig(target_modules=["gate_proj"]))
    with pytest.raises(CheckpointError, match="without an adapter.*base_layer"):
        save_published(model.base_model.model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_nothing_is_left_half_written(tmp_path):
    target = tmp_path / "checkpoint"
    with pytest.raises(RuntimeError), written_beside(target) as folder:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk full")
    assert list(tmp_path.iterdir()) == []
    with written_beside(target) as folder:
        (folder / "config.json").write_text("{}")
    assert [file.name for file in tmp_path.rglob("*")] == ["checkpoint", "config.json"]


@pytest.mark.parametrize("layout", ["published", "native"])
@pytest.mark.parametrize("sizes", [("2MB", "5GB"), ("5GB", "2MB"), ("1MB", "2MB")])
def test_an_earlier_save_leaves_no_weights(layout, sizes, tmp_path):
    model, processor = tiny_family("qwen2")
    processor.save_pretrained(tmp_path, layout=layout)
    for size in sizes:
        torch.nn.init.normal_(model.text_hidden_fcs[0].bias)
        model.save_pretrained(tmp_path, layout=layout, max_shard_size=size)
    loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.text_hidden_fcs[0].bias, model.text_hidden_fcs[0].bias)
    stored = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert stored < 1.05 * sum(value.numel() * value.element_size() for value in model.state_dict().values())


def test_device_map_and_loading_info(published):
    folder, model = published
    loaded, info = Sa2VAForConditionalGeneration.from_pretrained(folder, device_map="cpu", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded.vlm.lm_head.weight, model.vlm.lm_head.weight)
    assert loaded.config._name_or_path == str(folder)


MEASURE = """
import resource, sys
from sa2va_trl import Sa2VAForConditionalGeneration
Sa2VAForConditionalGeneration.from_pretrained(sys.argv[1])  # imports what is imported late
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = Sa2VAForConditionalGeneration.from_pretrained(sys.argv[2], dtype="bfloat16")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(peak * 1024 / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


def test_peak_memory_stays_near_the_models_size(published, tmp_path):
    """A checkpoint of 1.3 GB in float32 is loaded in bfloat16 within 1.2 times the model's 0.65 GB."""
    small, model = published
    config = copy.deepcopy(model.config)
    text = config.vlm_config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 1024, 4096, 20
    text.layer_types = ["full_attention"] * 20
    with torch.device("meta"):
        large = Sa2VAForConditionalGeneration(config)
    large.to_empty(device="cpu")
    for parameter in large.parameters():
        parameter.data.fill_(0.25)
    large.save_pretrained(tmp_path / "large", layout="published", max_shard_size="300MB")
    for file in small.glob("token*"):
        (tmp_path / "large" / file.name).write_bytes(file.read_bytes())
    del large
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(tmp_path / "large")], capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    assert float(output.stdout.split()[-1]) < 1.2


def test_stored_dtype_loses_nothing(tmp_path):
    from sa2va_trl.models.checkpoints import stored_dtype

    for dtypes, expected in (
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
        ((torch.bfloat16, torch.float16), torch.float32),
    ):
        tensors = {name: torch.ones(2, dtype=dtype) for name, dtype in zip("ab", dtypes, strict=True)}
        save_file(tensors, tmp_path / "model.safetensors")
        assert stored_dtype(tmp_path) == expected


def test_two_sets_of_weights_are_refused(published):
    folder, model = published
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"text_hidden_fcs.0.bias": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    Sa2VAForConditionalGeneration.from_pretrained(folder)
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    refused(folder, "holds both model.safetensors and model.safetensors.index.json")


@pytest.mark.parametrize(
    ("installed", "dtype", "said"),
    [
        (False, torch.bfloat16, "not installed"),
        (True, torch.float32, "computes in half precision"),
        (True, torch.bfloat16, None),
    ],
)
def test_flash_attention_as_the_official_code_asks_for_it(published, monkeypatch, caplog, installed, dtype, said):
    """Taken where it can be had; elsewhere a line says so once."""
    asked = []

    def record(self, attn_implementation, *args, **kwargs):
        asked.append(attn_implementation)
        return "sdpa"

    monkeypatch.setattr(pretrained, "is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", record)
    pretrained._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Sa2VAForConditionalGeneration.from_pretrained(published[0], use_flash_attn=True, dtype=dtype)
    lines = [record.message for record in caplog.records if "use_flash_attn" in record.message]
    assert len(lines) == (said is not None) and all(said in line for line in lines)
    assert ("flash_attention_2" in asked) == (said is None)
    with pytest.raises(ValueError, match="give one of the two"):
        Sa2VAForConditionalGeneration.from_pretrained(published[0], use_flash_attn=True, attn_implementation="sdpa")


# In two types

PHRASES = ("blood vessel", "catheter", "diaphragm")


def drawn(model, processor, frames):
    """Masks and probabilities of every phrase on every frame alone, and on the frames as a clip."""
    asked, found = [ask(QUESTIONS[0], phrase) for phrase in PHRASES], []
    for text in asked:
        found += model.segment(images=frames, text=text, processor=processor, answer="Sure, [SEG].")
    found.append(model.segment(video=frames, text=asked[0], processor=processor, answer="Sure, [SEG]."))
    return [own.masks for own in found], [own.probabilities for own in found]


def test_sam2_in_float32_beside_a_vlm_in_half_precision_draws_the_same_masks(tmp_path):
    model, processor = tiny_sa2va(pretrained=True)
    model.eval().save_pretrained(tmp_path / "whole")
    run = generate_video(seed=20261, video=1, num_frames=3, scene="named")
    frames = [Image.fromarray(frame).convert("RGB") for frame in run.frames]
    masks, maps = drawn(model, processor, frames)
    assert all(0.001 < mask.float().mean() < 0.5 for mask in masks)
    options = {"dtype": "bfloat16", "grounding_dtype": "float32"}
    half = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "whole", **options)
    half.save_pretrained(tmp_path / "half")
    again = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "half")  # which says itself what it is in
    for name, value in again.state_dict().items():
        kind = torch.bfloat16 if name.startswith("vlm.") else torch.float32
        assert value.dtype == kind and torch.equal(value, half.state_dict()[name]), name
        assert torch.equal(value, model.state_dict()[name].to(kind)), name
    half.save_pretrained(tmp_path / "published", layout="published")
    processor.save_pretrained(tmp_path / "published", layout="published")
    published = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "published").state_dict()
    assert all(torch.equal(value, published[name]) for name, value in again.state_dict().items())
    assert {name: value.dtype for name, value in published.items()} == {
        name: value.dtype for name, value in again.state_dict().items()
    }
    half_masks, half_maps = drawn(again, processor, frames)
    assert any(not torch.equal(one, other) for one, other in zip(half_maps, maps, strict=True))
    for one, other in zip(half_masks, masks, strict=True):
        assert (one & other).sum() >= 0.999 * (one | other).sum()
    again.to(torch.bfloat16).save_pretrained(tmp_path / "cast")
    cast = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "cast")
    assert cast.config.grounding_dtype is None and cast.grounding_encoder.dtype == torch.bfloat16


def test_sam2_s_type_is_float32_or_the_model_s():
    with pytest.raises(ValueError, match="grounding_dtype must be float32 or left out, got 'float16'"):
        Sa2VAConfig(grounding_dtype="float16")
    with pytest.raises(ValueError, match="grounding_dtype must be float32 or left out, got 'float16'"):
        ModelArguments(dtype="bfloat16", grounding_dtype="float16")
    with pytest.raises(ValueError, match="grounding_dtype has no effect with dtype=float32"):
        ModelArguments(grounding_dtype="float32")
