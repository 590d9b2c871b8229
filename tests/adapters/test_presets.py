import re

import pytest
from families import tiny_family
from peft import get_peft_model
from torch import nn

from sa2va_trl import SegDPOConfig, SegSFTConfig, tiny_sa2va
from sa2va_trl.adapters.presets import (
    EARLIER_LINEARS,
    WHOLE,
    freeze_all_but_full,
    freeze_all_but_vlm,
    get_peft_config,
)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_vlm_trains_what_full_does_but_sam2():
    model, _ = tiny_sa2va(image_size=128)
    freeze_all_but_full(model)
    full = trained(model)
    freeze_all_but_vlm(model)
    assert trained(model) == {name for name in full if not name.startswith("grounding_encoder.")}
    assert {name for name in full - trained(model) if "sam_mask_decoder" in name}


@pytest.mark.parametrize("trainable", WHOLE)
def test_presets_without_an_adapter_have_no_options_of_one(tmp_path, trainable):
    assert get_peft_config(trainable, seg_token_id=0) is None
    with pytest.raises(ValueError, match=f"trainable='{trainable}' has no LoRA"):
        SegSFTConfig(str(tmp_path), trainable=trainable, lora_r=2)
    with pytest.raises(ValueError, match="train_embeddings='seg' has no meaning"):
        SegSFTConfig(str(tmp_path), trainable=trainable, train_embeddings="seg")
    with pytest.raises(ValueError, match=f"trainable='{trainable}': TRL would load a second model"):
        SegDPOConfig(str(tmp_path), trainable=trainable, use_reference=False)


@pytest.mark.parametrize("family", ["qwen2", "phi3", "qwen3_vl"])
def test_lora_is_on_every_linear_layer_of_the_language_model_and_on_no_other(family):
    model, _ = tiny_family(family)
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("vlm.model.language_model.")
    }
    earlier = {name for name in linears if re.fullmatch(EARLIER_LINEARS, f"base_model.model.{name}")}
    assert (earlier == linears) is (family != "phi3")  # whose layers are fused, and which there was not then
    adapted = get_peft_model(model, get_peft_config("stage1", seg_token_id=0))
    names = {name.partition(".lora_A.")[0] for name, _ in adapted.named_parameters() if ".lora_A." in name}
    assert {name.removeprefix("base_model.model.") for name in names} == linears
