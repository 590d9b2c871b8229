"""Which state of a `[SEG]` token its mask is drawn from, and how that and the style of prompts are kept."""

import json
import logging

import pytest
import torch
from families import FAMILIES, tiny_family

from sa2va_trl import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor, tiny_sa2va
from sa2va_trl.models.configuration import SEG_STATES, SUPPORTED_VLMS, _warn_once, official_seg_state
from sa2va_trl.models.pretrained import logger
from sa2va_trl.models.templates import QWEN2_5_OPENING


OFFICIAL = {"internvl": "normed", "qwen2_5_vl": "normed", "qwen3_vl": "raw"}
REQUEST = {"text": "the line", "answer": "A [SEG] and [SEG]."}


def batch_of(processor, image):
    pixels, blocks = processor.tiles([image])
    chat = [{"role": "user", "content": REQUEST["text"]}, {"role": "assistant", "content": REQUEST["answer"]}]
    ids, labels = processor.encode_chat(chat, blocks)
    grounding = processor.grounding_inputs([image])
    inputs = {"input_ids": torch.tensor([ids]), "grounding_pixel_values": grounding, **pixels}
    return inputs, torch.tensor([labels])


def test_the_state_is_before_or_after_the_norm_and_logits_are_after_it(any_tiny, image):
    model, processor = any_tiny
    inputs, labels = batch_of(processor, image)
    outputs = {}
    for seg_state in SEG_STATES:
        model.config.seg_state = seg_state
        with torch.no_grad():
            outputs[seg_state] = model(**inputs, labels=labels)
            encoded = model.encode(**inputs)
        assert torch.equal(encoded.seg_states, outputs[seg_state].seg_states)
    normed, raw = outputs["normed"], outputs["raw"]
    norm = model.vlm.model.language_model.norm
    torch.testing.assert_close(norm(raw.seg_states), normed.seg_states, rtol=0, atol=1e-6)
    assert torch.equal(raw.logits, normed.logits) and torch.equal(raw.loss, normed.loss)
    assert (raw.seg_states - normed.seg_states).abs().max() > 0.1
    assert not torch.equal(raw.mask_logits, normed.mask_logits)
    assert not norm._forward_pre_hooks  # nothing is left behind


def test_masks_follow_the_state_in_images_and_clips(any_tiny, image):
    model, processor = any_tiny
    frames = [image, image.rotate(10), image.rotate(20)]
    found = {}
    for seg_state in SEG_STATES:
        model.config.seg_state = seg_state
        still = model.segment(image=image, processor=processor, **REQUEST).low_res_logits
        clip = model.segment(video=frames, processor=processor, frame_policy="first", num_frames=1, **REQUEST)
        found[seg_state] = still, clip.low_res_logits
    for one, other in zip(*found.values(), strict=True):
        assert len(one) == 2 and not torch.allclose(one, other, atol=1e-4)


def test_gradients_reach_the_language_model_through_a_raw_state(any_tiny, image):
    model, processor = any_tiny
    model.config.seg_state = "raw"
    inputs, _ = batch_of(processor, image)
    model.train()(**inputs).mask_logits.sum().backward()
    grad = model.vlm.model.language_model.layers[-1].mlp.down_proj.weight.grad
    assert grad is not None and grad.abs().max() > 0


# Where it comes from, and how it is kept


def test_a_tiny_model_is_as_its_family_is_published():
    assert {family: official_seg_state(family) for family in SUPPORTED_VLMS} == OFFICIAL
    assert {family: tiny_sa2va(image_size=64, family=family)[0].config.seg_state for family in OFFICIAL} == OFFICIAL


@pytest.mark.parametrize("seg_state", SEG_STATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_layouts_keep_it(family, seg_state, tmp_path, image, caplog):
    model, processor = tiny_family(family)
    official = model.config.seg_state
    assert official == ("raw" if family == "qwen3_vl" else "normed")
    model.config.seg_state = seg_state
    with caplog.at_level(logging.WARNING, logger=logger.name):
        model.save_pretrained(tmp_path / "published", layout="published")
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    if seg_state == official:
        assert "seg_state" not in config and not caplog.records
    else:
        assert config["seg_state"] == seg_state
        (record,) = caplog.records
        assert f"masks from seg_state={seg_state}, the official code from {official}" in record.getMessage()
    processor.save_pretrained(tmp_path / "published", layout="published")
    published = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "published")
    assert published.config.seg_state == seg_state
    published.save_pretrained(tmp_path / "native")
    assert json.loads((tmp_path / "native" / "config.json").read_text())["seg_state"] == seg_state
    native = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "native")
    expected = model.segment(image=image, processor=processor, **REQUEST).low_res_logits
    for each in (published, native):
        assert torch.equal(each.segment(image=image, processor=processor, **REQUEST).low_res_logits, expected)
    (tmp_path / "published" / "config.json").write_text(json.dumps({**config, "seg_state": "last"}))
    with pytest.raises(ValueError, match="seg_state must be one of normed, raw, got 'last'"):
        Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "published")


def test_a_native_config_of_an_earlier_version_stays_normed_and_says_so_for_qwen3_vl(caplog):
    _warn_once.cache_clear()
    for family in OFFICIAL:
        content = tiny_sa2va(image_size=64, family=family)[0].config.to_dict()
        assert Sa2VAConfig.from_dict(content).seg_state == OFFICIAL[family]
        assert not caplog.records
        del content["seg_state"]
        for _ in range(2):
            assert Sa2VAConfig.from_dict(content).seg_state == "normed"
        if family == "qwen3_vl":
            (record,) = caplog.records
            assert 'convert that again or add "seg_state": "raw" to config.json' in record.getMessage()
        else:
            assert not caplog.records


# How the style of prompts and the system turn of a checkpoint are kept


def test_the_published_layout_keeps_the_style(any_tiny, tmp_path):
    model, processor = any_tiny
    model.save_pretrained(tmp_path, layout="published")
    processor.prompt_style = "official"
    processor.save_pretrained(tmp_path, layout="published")
    loaded = Sa2VAProcessor.from_pretrained(tmp_path)
    qwen = model.config.vlm_config.model_type != "internvl"
    # (InternVL has one style, and nothing in the published layout that could hold its name.)
    assert loaded.prompt_style == ("official" if qwen else "training") and loaded.is_official == qwen
    assert loaded.official_opening == processor.official_opening
    assert Sa2VAProcessor.from_pretrained(tmp_path, prompt_style="training").prompt_style == "training"


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)
SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n"


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", None, "other"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_system_turn_is_that_of_the_checkpoints_own_chat_template(family, file, tmp_path, caplog):
    model, processor = tiny_sa2va(image_size=64, family=family)
    model.save_pretrained(tmp_path, layout="published")
    processor.save_pretrained(tmp_path, layout="published")
    (tmp_path / "chat_template.jinja").unlink()
    expected = SYSTEM
    if file == "chat_template.jinja":
        (tmp_path / file).write_text(SYSTEM + CHATML)
    elif file in ("chat_template.json", "tokenizer_config.json"):
        content = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
        (tmp_path / file).write_text(json.dumps({**content, "chat_template": SYSTEM + CHATML}))
    elif file == "other":
        (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'][0]['text'] }}")
        expected = ""
    else:
        expected = QWEN2_5_OPENING if family == "qwen2_5_vl" else ""
    published = Sa2VAProcessor.from_pretrained(tmp_path)
    assert published.official_opening == expected and published.prompt_style == "training"
    assert ("writes no user turn ('Where?')" in caplog.text) == (file == "other")
    # Kept by the native layout, and back again, where official tools read it in a template that they understand.
    published.save_pretrained(tmp_path / "native")
    native = Sa2VAProcessor.from_pretrained(tmp_path / "native", prompt_style="official")
    assert native.official_opening == expected
    native.save_pretrained(tmp_path, layout="published")
    assert Sa2VAProcessor.from_pretrained(tmp_path).official_opening == expected
    parts = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    chat = [{"role": "user", "content": parts}]
    template = (tmp_path / "chat_template.jinja").read_text()
    text = native.tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text == native.tokenizer.decode(
        native.encode_chat(chat, ["<|vision_start|><|image_pad|><|vision_end|>"])[0]
    )


def test_an_official_clip_is_asked_about_as_pictures(image):
    """The first five frames as still images side by side, and masks of all frames."""
    model, processor = tiny_sa2va(image_size=64, family="qwen2_5_vl")
    frames = [image.rotate(5 * index) for index in range(7)]
    processor.prompt_style = "official"
    seen = []
    model.vlm.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    result = model.eval().segment(video=frames, processor=processor, frame_policy="first", **REQUEST)
    assert result.prompted_frames == [0, 1, 2, 3, 4]
    assert result.masks.shape == (2, 7, image.height, image.width)
    (inputs,) = seen
    still, (block,) = processor.tiles([image])
    assert torch.equal(inputs["image_grid_thw"], still["image_grid_thw"].repeat(5, 1))
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    user = f"<|im_start|>user\n{block * 5}{REQUEST['text']}<|im_end|>\n<|im_start|>assistant\n"
    assert text == f"{QWEN2_5_OPENING}{user}{REQUEST['answer']}<|im_end|>"
