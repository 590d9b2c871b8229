"""The language model's layers in 4 or 8 bits, everything else as it was: QLoRA, and checkpoints that are stored so."""

import json
import shutil

import pytest
import torch
from measured_steps import model_of
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, GPTQConfig

from sa2va_trl import Sa2VAForConditionalGeneration, SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.adapters.peft_model import load_adapter, merge_adapter
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.errors import CheckpointError
from sa2va_trl.models.quantization import quantised_layers
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model, quantization_config


bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.fixture(params=["internvl", "qwen2_5_vl"])
def saved(request, tmp_path):
    # (On a CPU bitsandbytes computes with rows of whole blocks alone, of 64 numbers, as those of published models.)
    torch.manual_seed(0)
    model, processor = model_of(request.param, width=128, layers=2)
    folder = tmp_path / "base"
    model.save_pretrained(folder, layout="published")
    processor.save_pretrained(folder, layout="published")
    return folder, model.eval(), processor


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_only_the_language_model_is_quantised(saved, image, quantization):
    folder, model, processor = saved
    loaded, _ = load_model(ModelArguments(str(folder), quantization=quantization))
    kind = bitsandbytes.nn.Linear4bit if quantization == "4bit" else bitsandbytes.nn.Linear8bitLt
    quantised = {name for name, module in loaded.named_modules() if isinstance(module, kind)}
    language = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("vlm.model.language_model.")
    }
    assert quantised == language
    for name, value in loaded.state_dict().items():
        if not name.startswith("vlm.model.language_model.layers.") or "norm" in name:
            assert torch.equal(value, model.state_dict()[name]), name
    request = {"image": image, "text": "the line", "answer": "Sure, [SEG].", "processor": processor}
    exact, near = model.segment(**request), loaded.segment(**request)
    error = (exact.mask_logits - near.mask_logits).abs().max()
    assert 0 < error < 0.1 * exact.mask_logits.abs().max()


def test_qlora_trains_what_is_not_quantised_and_its_adapter_fits_the_plain_base(saved, tmp_path):
    folder, _, processor = saved
    model, _ = load_model(ModelArguments(str(folder), quantization="4bit", dtype="bfloat16"))
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = SegSFTTrainer(
        model=model,
        args=SegSFTConfig(
            output_dir=str(tmp_path / "out"),
            trainable="stage1",
            lora_r=4,
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            bf16=True,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=synthetic_dataset(num_videos=1, frames_per_video=4, size=64),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    moved = dict(trainer.model.named_parameters())
    for name, value in before.items():
        name = name.replace(".weight", ".base_layer.weight") if value.dtype == torch.uint8 else name
        if (key := f"base_model.model.{name}") in moved:
            assert torch.equal(moved[key], value), name
    trained = [name for name, value in moved.items() if value.requires_grad]
    assert any("lora_B" in name for name in trained)
    assert all(moved[name].dtype == torch.float32 for name in trained)
    assert all(moved[name].abs().max() > 0 for name in trained if "lora_B" in name)

    plain = Sa2VAForConditionalGeneration.from_pretrained(folder)
    adapted = load_adapter(plain, str(tmp_path / "out"))
    assert all(value.isfinite().all() for value in get_peft_model_state_dict(adapted).values())
    merge_adapter(adapted)
    torch.manual_seed(1)
    other, _ = model_of(plain.config.vlm_config.model_type, width=128, layers=2)
    with pytest.raises(ValueError, match="differ"):
        load_adapter(other, str(tmp_path / "out"))


def test_quantised_weights_are_neither_merged_nor_published(saved, tmp_path):
    folder, _, _ = saved
    model, _ = load_model(ModelArguments(str(folder), quantization="4bit"))
    with pytest.raises(CheckpointError, match="unquantised"):
        model.save_pretrained(tmp_path / "x", layout="published")
    assert not (tmp_path / "x").exists()


def test_options_that_cannot_take_effect_raise(saved):
    folder, _, _ = saved
    with pytest.raises(ValueError, match="quantization must be 4bit or 8bit, got '3bit'"):
        ModelArguments(quantization="3bit")
    assert ModelArguments("folder", quantization="int8").quantization == "8bit"
    with pytest.raises(ValueError, match="no effect on a tiny model"):
        ModelArguments(quantization="4bit")
    with pytest.raises(ValueError, match="only bitsandbytes"):
        Sa2VAForConditionalGeneration.from_pretrained(folder, quantization_config=GPTQConfig(bits=4))


def test_modules_to_skip_are_added_to_the_users(saved):
    folder, _, _ = saved
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["gate_proj"])
    model = Sa2VAForConditionalGeneration.from_pretrained(folder, quantization_config=config)
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("gate_proj")}
    assert kinds == {"Linear"}
    assert config.llm_int8_skip_modules == ["gate_proj"]  # the caller's own is left alone


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def stored(request, tmp_path_factory):
    """A folder that was saved quantised, the model that was saved, and its processor."""
    folder = tmp_path_factory.mktemp("stored")
    model, processor = tiny_sa2va(image_size=128)
    model.save_pretrained(folder / "plain")
    config = quantization_config(request.param, "float32")
    model = Sa2VAForConditionalGeneration.from_pretrained(folder / "plain", quantization_config=config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


def test_a_checkpoint_that_was_saved_quantised_loads_as_it_says(stored, image):
    folder, model, processor = stored
    loaded, info = Sa2VAForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    # Four projections of attention and three of the MLP in each of three layers, and nothing else.
    names = {f"self_attn.{part}_proj" for part in "qkvo"} | {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    expected = {f"vlm.model.language_model.layers.{number}.{name}" for number in range(3) for name in names}
    assert set(quantised_layers(loaded)) == expected
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype and torch.equal(found, value), name
    # (Rows of 96 numbers, which bitsandbytes' packed kernel of CPUs fails for.)
    request = {"image": image, "text": "the line", "answer": "Sure, [SEG].", "processor": processor}
    assert torch.equal(model.segment(**request).mask_logits, loaded.segment(**request).mask_logits)
    with pytest.raises(ValueError, match="quantised already"):
        load_model(ModelArguments(str(folder), quantization="4bit"))


def test_what_a_quantised_checkpoint_says_of_itself_is_checked(stored, tmp_path):
    folder, model, _ = stored
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("plain"))
    content = json.loads((tmp_path / "copy" / "config.json").read_text())
    file = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(file)
    layer = "vlm.model.language_model.layers.1.mlp.up_proj"

    def refused(message, **changes):
        save_file({name: changes.get(name, value) for name, value in tensors.items()}, file, {"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "copy")

    if f"{layer}.SCB" in tensors:
        refused(rf"misshapen: {layer}.SCB has \(3,\)", **{f"{layer}.SCB": torch.ones(3)})
        refused(rf"of type F32: {layer}.weight; weights are I8", **{f"{layer}.weight": torch.ones(192, 96)})
    else:
        state = f"{layer}.weight.quant_state.bitsandbytes__nf4"
        wrong = json.dumps(json.loads(bytes(tensors[state].tolist())) | {"shape": [192, 97]}).encode()
        refused(r"of shape \(192, 97\)", **{state: torch.tensor(list(wrong), dtype=torch.uint8)})
        refused(rf"misshapen: {layer}.weight has \(5, 1\)", **{f"{layer}.weight": torch.ones(5, 1).byte()})
    save_file(tensors, file, {"format": "pt"})
    content["quantization_config"]["llm_int8_skip_modules"].remove("text_hidden_fcs")
    (tmp_path / "copy" / "config.json").write_text(json.dumps(content))
    refused("text_hidden_fcs.0 .and 1 more. outside the language model")
