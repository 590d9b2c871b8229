import hashlib
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoProcessor

from sa2va_trl import tiny_sa2va
from sa2va_trl.data import wording
from sa2va_trl.models.configuration import SUPPORTED_VLMS
from sa2va_trl.models.tiny import FIRST_WORDS, SPECIAL_TOKENS, WEIGHTS, WORDS, tiny_tokenizer
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


TOKENIZER = tiny_tokenizer()
# Of the file of weights that comes with the package.
DIGEST = "10b277cb7e5dbe52397a0bf1efbbba9de6782374290a31cafecb71cb9abfaf04"


def states(model):
    return model.state_dict().values()


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_weights_follow_the_seed_and_nothing_else(family):
    first, _ = tiny_sa2va(seed=3, family=family)
    torch.manual_seed(99)
    again, _ = tiny_sa2va(seed=3, family=family)
    other, _ = tiny_sa2va(seed=4, family=family)
    assert all(torch.equal(a, b) for a, b in zip(states(first), states(again), strict=True))
    changed = {
        name for name, tensor in other.state_dict().items() if not torch.equal(tensor, first.state_dict()[name])
    }
    tower = "vision_tower" if family == "internvl" else "visual"
    for part in (tower, "language_model", "lm_head", "text_hidden_fcs", "image_encoder", "sam_mask_decoder"):
        assert any(part in name for name in changed), part


def test_random_states_of_the_caller_stay():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    def seed():
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)

    seed()
    expected = draw()
    seed()
    tiny_sa2va()
    assert draw() == expected


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_size(family):
    model, processor = tiny_sa2va(family=family)
    assert model.config.vlm_config.model_type == family
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_500_000
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert processor.seg_token_id == model.config.seg_token_id
    assert processor.image_token_id == model.config.image_token_id
    assert processor.prompt_template == model.config.prompt_template
    assert processor.grounding_image_size == model.config.grounding_config.image_size
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)


def test_the_weights_of_the_package_are_those_that_were_measured():
    """The numbers in README and docs/ are of this file. Another one is measured anew, and its digest put here."""
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == DIGEST
    assert WEIGHTS.stat().st_size <= 4_000_000


def test_the_weights_of_the_package_are_the_network_and_small():
    model, _ = tiny_sa2va(pretrained=True)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    stored, states = load_file(WEIGHTS), model.state_dict()
    assert stored.keys() == states.keys()
    exact = {name for name, value in stored.items() if value.dtype != torch.bfloat16}
    assert len(exact) == 1 and all("positional_encoding_gaussian_matrix" in name for name in exact)
    for name, value in stored.items():
        assert torch.equal(states[name], value.float()) and value.isfinite().all(), name
    assert all(value.dtype == torch.float32 for value in states.values())


def test_the_command_line_loads_the_weights_of_the_package_as_tiny_and_random_ones_by_another_name():
    expected, processor = tiny_sa2va(pretrained=True)
    loaded, loaded_processor = load_model(ModelArguments("tiny"))
    random, random_processor = load_model(ModelArguments("tiny-random"))
    assert all(torch.equal(a, b) for a, b in zip(states(expected), states(loaded), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(states(tiny_sa2va()[0]), states(random), strict=True))
    changed = [not torch.equal(a, b) for a, b in zip(states(expected), states(random), strict=True)]
    assert sum(changed) > len(changed) / 2
    sizes = [each.grounding_image_size for each in (processor, loaded_processor, random_processor)]
    assert sizes == [256, 256, 256]
    sizes = [model.config.grounding_config.image_size for model in (expected, loaded, random)]
    assert sizes == [256, 256, 256]


@pytest.mark.parametrize("options", [{"family": "qwen3_vl"}, {"seed": 1}, {"tie_word_embeddings": True}])
def test_what_the_weights_of_the_package_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="family internvl, without tied embeddings, and no seed"):
        tiny_sa2va(pretrained=True, **options)


def test_unknown_families_raise():
    with pytest.raises(ValueError, match="family must be one of internvl, qwen2_5_vl, qwen3_vl, got 'llava'"):
        tiny_sa2va(family="llava")


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
@pytest.mark.parametrize(("image_size", "max_patches"), [(64, 1), (192, 4), (320, 12)])
def test_other_sizes_run(image_size, max_patches, family, image):
    model, processor = tiny_sa2va(image_size=image_size, max_patches=max_patches, family=family)
    result = model.eval().segment(image=image, text="Where?", processor=processor, answer="[SEG]")
    assert result.mask_logits.shape == (1, image_size, image_size)
    assert result.mask_logits.isfinite().all()


@given(text=st.text() | st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "\n", "a", "é", "血管"])).map("".join))
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER(text).input_ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert all(token < len(TOKENIZER) for token in ids)


def said_of(structure, phrase):
    """What is asked and answered with a phrase of a structure."""
    other = "dome" if phrase != "dome" else "tube"
    texts = [text for form in range(len(wording.ONE)) for text in wording.ask_one(form, phrase)]
    texts += [*wording.ask_caption(phrase), wording.no_such(phrase)]
    texts += [question.replace("{phrase}", phrase) for question in wording.HELD_OUT_QUESTIONS]
    for form in range(len(wording.SEVERAL)):
        for missing in ([], [other]):
            texts += wording.ask_several(form, [phrase, other], missing)
    if not wording.is_plural(phrase):
        for form in range(len(wording.PRESENCE)):
            for there in (True, False):
                texts += wording.ask_whether(form, structure, phrase, there)
    return texts


def test_every_word_that_angiograms_are_asked_with_is_a_token():
    spelled = {" name", " I", " does"}  # in letters, since none of them says what is meant
    phrases = [wording.PHRASES, wording.HELD_OUT_PHRASES]
    named = [(structure, phrase) for kind in phrases for structure, own in kind.items() for phrase in own]
    assert len({phrase for _, phrase in named}) == len(named) > 50
    for _, phrase in named:
        for word in re.findall(r"[a-z]+", phrase):
            # (Behind a hyphen there is no space.)
            assert len(TOKENIZER(word if f"-{word}" in phrase else f" {word}").input_ids) == 1, word
    texts = [text for structure, phrase in named for text in said_of(structure, phrase)]
    texts += [*wording.SIDE_QUESTIONS, "To the left.", "To the right."]
    found = set()
    for text in texts:
        ids = TOKENIZER(text).input_ids
        assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
        # Behind a tag, too, the space belongs to the word.
        for word in re.findall(r" ?[A-Za-z]+", re.sub(r"\[SEG\]|</?p>", "|", text)):
            found |= {word} if len(TOKENIZER(word).input_ids) > 1 else set()
    assert found == spelled


def test_words_are_tokens_where_they_stand():
    text = "<|im_start|>user\nPlease segment the blood vessel.<|im_end|>\n<|im_start|>assistant\nSure, [SEG]."
    words = ["<|im_start|>", "user", "\n", "Please", " segment", " the", " blood", " vessel", ".", "<|im_end|>", "\n"]
    words += ["<|im_start|>", "assistant", "\n", "Sure", ",", " ", "[SEG]", "."]
    assert [TOKENIZER.decode([token]) for token in TOKENIZER(text).input_ids] == words
    for word in (*(f" {word}" for word in WORDS), *FIRST_WORDS):
        assert [TOKENIZER.decode([token]) for token in TOKENIZER(word).input_ids] == [word]


def test_special_tokens_are_single_ids():
    ids = [TOKENIZER(token).input_ids for token in SPECIAL_TOKENS]
    assert all(len(entry) == 1 for entry in ids) and len({entry[0] for entry in ids}) == len(SPECIAL_TOKENS)
    assert TOKENIZER.decode([entry[0] for entry in ids], skip_special_tokens=True) == ""


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_a_saved_processor_is_the_same(tmp_path, family, image):
    _, processor = tiny_sa2va(image_size=192, max_patches=4, family=family)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor)
    names = ("image_seq_length", "clip_size", "grounding_image_size", "prompt_template", "chat_template")
    for name in (*names, "seg_token_id", "image_token_id", "model_input_names"):
        assert getattr(loaded, name) == getattr(processor, name), name
    assert loaded.stopping() == processor.stopping()
    for clip in (True, False):
        pixels, blocks = processor.tiles([image], clip=clip)
        loaded_pixels, loaded_blocks = loaded.tiles([image], clip=clip)
        assert loaded_blocks == blocks and loaded_pixels.keys() == pixels.keys()
        assert all(torch.equal(loaded_pixels[name], tensor) for name, tensor in pixels.items())
    assert torch.equal(loaded.grounding_inputs([image]), processor.grounding_inputs([image]))
    chat = [{"role": "user", "content": "Où?\n"}, {"role": "assistant", "content": "<p> là </p> [SEG]"}]
    assert loaded.encode_chat(chat, blocks) == processor.encode_chat(chat, blocks)
