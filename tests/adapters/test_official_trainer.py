"""Deltas of the official trainer: what they mean is computed here on the published tensors, independently."""

import re
import sys
import types

import numpy as np
import pytest
import torch
from families import tiny_family
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from sa2va_trl import Sa2VAForConditionalGeneration
from sa2va_trl.adapters.official_trainer import apply_delta, read_delta
from sa2va_trl.adapters.peft_model import load_adapter, merge_adapter
from sa2va_trl.errors import CheckpointError


RANK, ALPHA = 4, 12.0


def official_delta(family: str, tensors: dict[str, torch.Tensor], whole_head: bool = True) -> dict[str, torch.Tensor]:
    """What the official trainer would save: its own names, for published `tensors`."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    if family.endswith("_vl"):
        wrap = {"model.": "mllm.model.base_model.model."}
        linear = r"model\.model\.language_model\..*_proj\.weight"
        full, head = [r"model\.model\.language_model\.embed_tokens\.weight"], r"model\.lm_head\.weight"
    else:
        wrap = {"language_model.": "mllm.model.language_model.base_model.model.", "mlp1.": "mllm.model.mlp1."}
        linear = r"language_model\..*(_proj|wqkv|wo|w1|w2|w3)\.weight"
        full = [r"language_model\.model\.(embed_tokens|tok_embeddings)\.weight", r"mlp1\..*"]
        head = r"language_model\.(lm_head|output)\.weight"
    full += [r"text_hidden_fcs\..*", r"grounding_encoder\.sam2_model\.sam_mask_decoder\..*"]
    delta = {}
    for name, value in tensors.items():
        prefix = next((prefix for prefix in wrap if name.startswith(prefix)), None)
        key = name if prefix is None else wrap[prefix] + name.removeprefix(prefix)
        module = key.removesuffix(".weight")
        if re.fullmatch(linear, name) or (family == "internlm2" and re.fullmatch(head, name)):
            # The head of InternLM2 is a target too: its name is not excluded.
            delta[f"{module}.lora_A.default.weight"] = noise(RANK, value.shape[1])
            delta[f"{module}.lora_B.default.weight"] = noise(value.shape[0], RANK)
            if re.fullmatch(head, name) and whole_head:
                delta[f"{module}.base_layer.weight"] = value + noise(*value.shape)
        elif re.fullmatch(head, name) and whole_head:
            delta[f"{module}.modules_to_save.default.weight"] = value + noise(*value.shape)
            delta[f"{module}.original_module.weight"] = value
        elif any(re.fullmatch(pattern, name) for pattern in full):
            delta[key] = value + noise(*value.shape)
    return delta


def merged_by_hand(tensors, delta, family):
    """The published tensors with the delta added, from its own names only."""
    merged = dict(tensors)
    for key, value in delta.items():
        name = key.replace("mllm.model.language_model.base_model.model.", "language_model.")
        name = name.replace("mllm.model.base_model.model.", "model.").replace("mllm.model.mlp1.", "mlp1.")
        name = name.replace(".modules_to_save.default", "").replace(".base_layer", "")
        if ".lora_" not in name and ".original_module" not in name:
            merged[name] = value
    for key, value in delta.items():
        if ".lora_A" in key:
            name = key.replace("mllm.model.language_model.base_model.model.", "language_model.")
            name = name.replace("mllm.model.base_model.model.", "model.").replace(".lora_A.default", "")
            merged[name] = merged[name] + ALPHA / RANK * delta[key.replace("lora_A", "lora_B")] @ value
    return merged


@pytest.fixture(params=["qwen2", "phi3", "internlm2", "qwen2_5_vl", "qwen3_vl"])
def case(request, tmp_path):
    model, processor = tiny_family(request.param)
    folder = tmp_path / "base"
    model.save_pretrained(folder, layout="published")
    processor.save_pretrained(folder, layout="published")
    return request.param, folder, load_file(folder / "model.safetensors")


@pytest.mark.parametrize("whole_head", [True, False])
def test_adapter_and_merged_model_are_what_the_delta_says(case, whole_head, tmp_path):
    family, folder, tensors = case
    delta = official_delta(family, tensors, whole_head)
    torch.save({"meta": {"iter": 7}, "state_dict": delta}, tmp_path / "iter_7.pth")
    save_file(merged_by_hand(tensors, delta, family), folder / "model.safetensors", metadata={"format": "pt"})
    wanted = Sa2VAForConditionalGeneration.from_pretrained(folder).state_dict()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    model = Sa2VAForConditionalGeneration.from_pretrained(folder)
    adapted = apply_delta(model, read_delta(tmp_path / "iter_7.pth"), lora_alpha=ALPHA)
    adapted.save_pretrained(tmp_path / "adapter")
    again = load_adapter(Sa2VAForConditionalGeneration.from_pretrained(folder), str(tmp_path / "adapter"))
    one, two = get_peft_model_state_dict(adapted), get_peft_model_state_dict(again)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    merged = merge_adapter(adapted).state_dict()
    assert merged.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(merged[name], wanted[name], atol=1e-5), name


def test_alpha_is_twice_the_rank_unless_given(case):
    family, folder, tensors = case
    model = Sa2VAForConditionalGeneration.from_pretrained(folder)
    assert apply_delta(model, official_delta(family, tensors)).peft_config["default"].lora_alpha == 2 * RANK


def test_one_wrong_tensor_is_refused_by_name(case):
    family, folder, tensors = case
    delta = official_delta(family, tensors)
    lora = next(name for name in delta if "layers.1." in name and "lora_A" in name)
    decoder = "grounding_encoder.sam2_model.sam_mask_decoder.conv_s0.weight"
    wrong = [
        ({lora: None}, "missing: one of the two LoRA matrices of .*layers.1"),
        ({lora: None, lora.replace("lora_A", "lora_B"): None}, "missing: .*layers.1.*lora_A"),
        ({decoder: None}, r"missing: .*sam_mask_decoder.*conv_s0.weight"),
        ({decoder: None, decoder + "s": delta[decoder]}, "unexpected: .*conv_s0.weights"),
        ({"text_hidden_fcs.0.weight": torch.zeros(3, 5)}, "misshapen: text_hidden_fcs.0.weight has .3, 5."),
        ({lora: torch.zeros(RANK, 7)}, "misshapen: .*lora_A"),
        ({lora: torch.zeros(RANK + 1, delta[lora].shape[1])}, "different ranks"),
        ({"mllm.model.visual_extra.weight": torch.zeros(1)}, "unexpected: .*visual_extra"),
    ]
    for change, message in wrong:
        broken = {name: value for name, value in {**delta, **change}.items() if value is not None}
        model = Sa2VAForConditionalGeneration.from_pretrained(folder)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=message):
            apply_delta(model, broken)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_the_trainer_logs_beside_the_weights_is_read_over(tmp_path, monkeypatch):
    """mmengine's buffers of scalars, which are no plain values, do not stand in the way of the weights."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count = np.arange(3.0), np.array([1, 2], dtype=np.int64)
            self._last = np.float64(0.5)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"iter": 7}}
    torch.save({"state_dict": {"a": torch.ones(2)}, "message_hub": hub}, tmp_path / "iter_7.pth")
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert torch.equal(read_delta(tmp_path / "iter_7.pth")["a"], torch.ones(2))


class Harmful:
    def __reduce__(self):
        return (print, ("this must not be printed",))


def test_files_that_are_no_deltas_are_refused(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Harmful()}, tmp_path / "pickle.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        read_delta(tmp_path / "pickle.pth")
    assert "must not" not in capsys.readouterr().out
    torch.save({"meta": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_delta(tmp_path / "empty.pth")
    content = (tmp_path / "empty.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cut.pth"):
        read_delta(tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_delta(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_delta(tmp_path)
