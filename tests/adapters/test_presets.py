import pytest

from sa2va_trl import SegDPOConfig, SegSFTConfig, tiny_sa2va
from sa2va_trl.adapters.presets import WHOLE, freeze_all_but_full, freeze_all_but_vlm, get_peft_config


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
