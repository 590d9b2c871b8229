import json

import pytest
import torch
from feature_stores import built
from peft import LoraConfig, get_peft_model
from rows import every_kind

from sa2va_trl.features.fingerprint import fingerprint, weights_digest
from sa2va_trl.models.configuration import SEG_STATES
from sa2va_trl.models.processing import PROMPT_STYLES


BEFORE = (
    "vlm.model.vision_tower",
    "vlm.model.multi_modal_projector",
    "vlm.model.language_model.embed_tokens",
    "vlm.model.language_model.layers.1",
    "grounding_encoder.sam2_model.image_encoder",
)


AFTER = ("vlm.lm_head", "text_hidden_fcs", "sam_mask_decoder", "no_mem_embed")


@pytest.mark.parametrize("part", [*BEFORE, *AFTER])
def test_the_digest_follows_every_weight_before_the_cut_and_no_other(tiny, part):
    model, _ = tiny
    before = weights_digest(model)
    weight = [parameter for name, parameter in model.named_parameters() if part in name][-1]
    flat = weight.data.view(-1)
    flat[-1] = torch.nextafter(flat[-1], torch.tensor(float("inf")))
    assert (weights_digest(model) != before) == (part in BEFORE)


def test_an_adapter_counts_where_it_acts_before_the_cut(tiny):
    model, processor = tiny
    plain = fingerprint(model, processor)
    head = get_peft_model(model, LoraConfig(target_modules=["text_hidden_fcs.0"]))
    assert fingerprint(head, processor) == plain
    head.unload()
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with_lora = fingerprint(lora, processor)
    assert with_lora != plain
    layer = next(part for part in lora.modules() if hasattr(part, "scaling") and part.scaling)
    layer.scaling["default"] *= 2
    assert fingerprint(lora, processor) != with_lora
    layer.scaling["default"] /= 2
    with lora.disable_adapter():
        assert fingerprint(lora, processor) != with_lora
    assert fingerprint(lora, processor) == with_lora


def test_the_fingerprint_follows_the_processor_and_the_type(tiny):
    model, processor = tiny
    plain = fingerprint(model, processor)
    assert json.loads(json.dumps(plain)) == plain
    processor.tokenizer(["a", "bcd"], padding=True)
    processor.pad([[1], [1, 2]])
    assert fingerprint(model, processor) == plain
    assert fingerprint(model, processor, dtype=torch.bfloat16) != plain
    assert fingerprint(model, processor, autocast="bfloat16") != plain
    processor.grounding_image_size //= 2
    assert fingerprint(model, processor) != plain
    processor.grounding_image_size *= 2
    processor.image_processor.image_mean = [0.5] * 3
    assert fingerprint(model, processor) != plain


def test_the_fingerprint_follows_the_state_and_the_prompts(tmp_path, any_tiny):
    model, processor = any_tiny
    dataset = every_kind().select([0, 1])
    prints, states = [], {}
    for seg_state in SEG_STATES:
        model.config.seg_state = seg_state
        for style in PROMPT_STYLES:
            processor.prompt_style = style
            store, keys, count = built(tmp_path, model, processor, dataset)
            if store.prints in prints:
                # InternVL's official prompts are those of its training.
                assert model.config.vlm_config.model_type == "internvl" and style == "official" and count == 0
                continue
            assert count == 2
            prints.append(store.prints)
            states[seg_state, style] = store.read(keys)[0].seg_states
    assert len(prints) == (2 if model.config.vlm_config.model_type == "internvl" else 4)
    different = list(states.values())
    assert not any(torch.equal(one, other) for i, one in enumerate(different) for other in different[:i])


def test_other_weights_have_other_files(tmp_path, tiny):
    model, processor = tiny
    dataset = every_kind().select([0, 1])
    first, keys, count = built(tmp_path, model, processor, dataset)
    assert count == 2 and built(tmp_path, model, processor, dataset)[2] == 0
    with torch.no_grad():
        model.vlm.model.language_model.layers[0].mlp.up_proj.weight[0, 0] += 1
    second, _, count = built(tmp_path, model, processor, dataset)
    assert count == 2 and second.folder != first.folder
    assert not torch.equal(first.read(keys)[0].seg_states, second.read(keys)[0].seg_states)
    # Weights that do not change features leave them where they are.
    with torch.no_grad():
        model.text_hidden_fcs[0].weight.add_(1)
    assert built(tmp_path, model, processor, dataset)[2] == 0
