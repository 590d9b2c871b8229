"""
Sentencepiece tokenizers of InternLM2, Phi-3 and Llama as fast ones. The sentencepiece library itself is the oracle,
and transformers' own for Llama's.
"""

import json
import re

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer

from sa2va_trl import Sa2VAProcessor, tiny_sa2va
from sa2va_trl.models.tokenization import internlm2_tokenizer, load_tokenizer


CORPUS = [
    "Please segment the left coronary artery in this angiogram.",
    "The vessel runs from the catheter tip to the apex; its branches are thin.",
    "Sure, it is here. 1234567890 (12.5 mm) naïve café 血管造影 сосуд",
    "segment  all   vessels\tand\nbranches, please!",
]
ADDED = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "[SEG]", "<p>", "</p>", "<vp>", "</vp>"]


def train_pieces(folder, dummy_prefix: bool, **options) -> sentencepiece.SentencePieceProcessor:
    """A small `tokenizer.model`."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=430,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def write_internlm2(folder, dummy_prefix: bool = False) -> sentencepiece.SentencePieceProcessor:
    """A small tokenizer in the files of InternLM2 checkpoints: two of its pieces are renamed, the rest added."""
    pieces = train_pieces(folder, dummy_prefix, user_defined_symbols=["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]"])
    ids = [pieces.piece_to_id(f"[UNUSED_TOKEN_{index}]") for index in (0, 1)]
    ids += range(len(pieces), len(pieces) + len(ADDED) - 2)
    tokens = dict(zip(ids, ADDED, strict=True))
    specials = {"0": "<unk>", "1": "<s>", "2": "</s>"}
    decoder = {index: {"content": text, "special": True} for index, text in specials.items()}
    decoder |= {str(index): {"content": text, "special": True} for index, text in tokens.items()}
    settings_ = {"tokenizer_class": "InternLM2Tokenizer", "add_bos_token": True, "added_tokens_decoder": decoder}
    settings_["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    extra = {text: index for index, text in tokens.items() if index >= len(pieces)}
    (folder / "added_tokens.json").write_text(json.dumps(extra))
    return pieces


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dummy_prefix"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("internlm2")
    return write_internlm2(folder, request.param), load_tokenizer(folder)


# In the order of InternVL2-4B, and as its file flags them: white space after a role or an end belongs to that token.
PHI3_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", *ADDED[2:]]


def write_phi3(folder, **settings_) -> None:
    """A small tokenizer in the files of InternVL2-4B (Phi-3's, which is of Llama's class)."""
    count = len(train_pieces(folder, dummy_prefix=True))
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    decoder = {index: {"content": text, **plain} for index, text in enumerate(["<unk>", "<s>", "</s>"])}
    decoder |= {count + index: {"content": text, **plain} for index, text in enumerate(PHI3_TOKENS)}
    for index in range(count + 1, count + 5):
        decoder[index]["rstrip"] = True
    content = {
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {str(index): token for index, token in decoder.items()},
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "legacy": False,
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(content | settings_))


TEXTS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00▁"), max_size=40),
    st.lists(st.sampled_from(" ".join(CORPUS).split() + [" ", "  ", "\n"]), max_size=12).map(" ".join),
).filter(lambda text: not any(token in text for token in [*ADDED, "<s>", "</s>", "<unk>"]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_ids_are_sentencepieces(pair, text):
    pieces, tokenizer = pair
    assert tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_texts_survive(pair, text):
    _, tokenizer = pair
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_have_their_ids_and_bos_comes_first(pair):
    pieces, tokenizer = pair
    assert tokenizer("").input_ids == [1]
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>segment<|im_end|>\n[SEG]"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids[0] == pieces.piece_to_id("[UNUSED_TOKEN_0]")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("[SEG]") == len(pieces) + 3
    assert len(tokenizer) == len(pieces) + 8
    if not pieces.encode("a", out_type=str)[0].startswith(
        "▁"
    ):  # a dummy prefix would stand before each text between two of them
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "</s>"
    # Between special tokens the text is what sentencepiece makes of it.
    words = ids[ids.index(tokenizer.convert_tokens_to_ids("</img>")) + 1 : -3]
    assert words[: len(pieces.encode("segment"))] == pieces.encode("segment")


def test_saved_and_loaded_it_is_the_same(pair, tmp_path):
    _, tokenizer = pair
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in [*CORPUS, "<|im_start|>user\n [SEG] <p> a </p>"]:
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again.decode(again(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)


def test_a_remote_class_beside_a_fast_tokenizer_is_not_needed(pair, tmp_path):
    _, tokenizer = pair
    tokenizer.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    remote = ["tokenization_internlm2.InternLM2Tokenizer", "tokenization_internlm2.InternLM2TokenizerFast"]
    content |= {"tokenizer_class": "InternLM2Tokenizer", "auto_map": {"AutoTokenizer": remote}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "tokenization_internlm2.py").write_text("raise RuntimeError('remote code')")
    again = load_tokenizer(tmp_path)
    for text in [*CORPUS, "<|im_start|>user\n [SEG] <p> a </p>"]:
        assert again(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("trust", [True, False])
def test_auto_tokenizer_needs_no_remote_code(pair, tmp_path, trust):
    _, tokenizer = pair
    write_internlm2(tmp_path, dummy_prefix="▁" in tokenizer.tokenize("a")[0])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sa2va_chat", "template": "internlm2_chat"}))
    (tmp_path / "tokenization_internlm2.py").write_text("raise RuntimeError('remote code')")
    for saved in (False, True):  # without tokenizer.json, and with it
        if saved:
            tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust, use_fast=False)
        assert again.name_or_path == str(tmp_path)
        for text in [*CORPUS, "<|im_start|>user\n [SEG] <p> a </p>"]:
            assert again(text).input_ids == tokenizer(text).input_ids


def test_a_processor_with_it_writes_bos_once(tmp_path):
    write_internlm2(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    _, tiny = tiny_sa2va(image_size=128)
    processor = Sa2VAProcessor(tiny.image_processor, tokenizer, image_seq_length=16, prompt_template="internlm2_chat")
    chat = [{"role": "user", "content": "segment"}, {"role": "assistant", "content": "[SEG]."}]
    ids, labels = processor.encode_chat([*chat, *chat], [])
    assert ids[0] == 1 and ids.count(1) == 1
    assert labels[0] == -100
    # (As in official inference: the end of an answer, and of a text.)
    assert processor.stopping() == {"eos_token_id": [tokenizer.convert_tokens_to_ids("<|im_end|>"), 2]}


PHI3_TEXTS = [
    "<|user|>\n<img><IMG_CONTEXT></img>\nPlease segment the vessel.<|end|>\n<|assistant|>\n",
    "Sure, it is <p> left branch </p> [SEG], and [SEG].<|end|>",
    "<|end|> \n\n naïve  血管",
    "\n",
]


def in_chunks(folder, text):
    """What lies between added tokens, each by itself to sentencepiece: what the slow tokenizer of version 4 did."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids, strip = [], False
    for part in re.split("(" + "|".join(map(re.escape, PHI3_TOKENS)) + ")", text):
        if part in PHI3_TOKENS:
            ids.append(len(pieces) + PHI3_TOKENS.index(part))
            strip = part.startswith("<|") and part != "<|endoftext|>"
        elif part:
            ids += pieces.encode(part.lstrip() if strip else part)
    return ids


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_sentencepiece_model_of_llamas_class(legacy, first, tmp_path):
    write_phi3(tmp_path, legacy=legacy, add_bos_token=first)
    tokenizer, theirs = load_tokenizer(tmp_path), LlamaTokenizer.from_pretrained(tmp_path)
    assert tokenizer("").input_ids == [1] * first
    for text in [*CORPUS, *PHI3_TEXTS]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        expected = in_chunks(tmp_path, text) if legacy else theirs(text, add_special_tokens=False).input_ids
        assert ids == expected
        assert tokenizer.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>" and len(tokenizer) == len(theirs)


def test_a_file_of_llamas_class_is_taken_as_it_is(tmp_path):
    """Transformers 5 would build a tokenizer anew, by `legacy`: Phi-3's says another thing than its file does."""
    write_phi3(tmp_path / "model", legacy=True)
    load_tokenizer(tmp_path / "model").save_pretrained(tmp_path)
    write_phi3(tmp_path, legacy=False, pad_token=None)
    (tmp_path / "tokenizer.model").unlink()
    tokenizer, file = load_tokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in PHI3_TEXTS:
        assert tokenizer(text).input_ids == file.encode(text).ids
    words = tokenizer.convert_ids_to_tokens(tokenizer("<|user|>\nsegment").input_ids)
    assert words == ["<|user|>", "▁segment"]
    assert tokenizer.pad_token == "<|endoftext|>"  # Llama's often have none
    settings_ = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings_["add_bos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_))
    assert load_tokenizer(tmp_path)("segment").input_ids[0] == 1  # unless it is told not to


def test_a_chat_with_phi3s_own_tokens(tmp_path):
    write_phi3(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    _, tiny = tiny_sa2va(image_size=128)
    processor = Sa2VAProcessor(tiny.image_processor, tokenizer, image_seq_length=16, prompt_template="phi3_chat")
    chat = [{"role": "user", "content": "segment"}, {"role": "assistant", "content": "[SEG]."}]
    ids, labels = processor.encode_chat(chat, [])
    ends = {token: tokenizer.convert_tokens_to_ids(token) for token in PHI3_TOKENS}
    # The newlines of the template belong to the tokens in front of them.
    assert tokenizer.decode(ids, skip_special_tokens=False).startswith("<|user|>segment<|end|><|assistant|>")
    assert ids[0] == ends["<|user|>"] and "\n" not in tokenizer.convert_ids_to_tokens(ids)
    learned = [index for index, label in zip(ids, labels, strict=True) if label != -100]
    assert learned == processor.answer_ids("[SEG].") and learned[-1] == ends["<|end|>"]
    assert processor.stopping() == {"eos_token_id": [ends["<|end|>"], ends["<|endoftext|>"]]}
    for layout in ("native", "published"):
        processor.save_pretrained(tmp_path / layout, layout=layout)
        again = load_tokenizer(tmp_path / layout)
        assert [again(text).input_ids for text in PHI3_TEXTS] == [tokenizer(text).input_ids for text in PHI3_TEXTS]


def test_ids_that_do_not_fit_are_refused(tmp_path):
    write_internlm2(tmp_path)
    added = json.loads((tmp_path / "added_tokens.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "added_tokens.json").write_text(json.dumps({token: index + 1 for token, index in added.items()}))
    with pytest.raises(ValueError, match=re.escape("'<img>' should have id")):
        internlm2_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="tokenizer.model is no sentencepiece model"):
        load_tokenizer(tmp_path / "broken")
    with pytest.raises(ValueError, match="neither tokenizer.json, vocab.json nor tokenizer.model"):
        load_tokenizer(tmp_path)
