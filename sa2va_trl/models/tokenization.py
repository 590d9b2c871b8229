"""Tokenizers of published checkpoints, without remote code."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """
    The tokenizer beside a published checkpoint.

    Args:
        folder (`str` or `Path`): with `tokenizer.json`, with Qwen's `vocab.json` and `merges.txt`, or with the
            `tokenizer.model` of InternLM2, Phi-3 or Llama.

    Returns:
        `PreTrainedTokenizerBase`: a fast one.

    Raises:
        `ValueError`: no tokenizer is there, or it cannot be read.
    """
    folder = Path(folder)
    has_fast = (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()
    if not has_fast and (folder / "tokenizer.model").is_file():
        return sentencepiece_tokenizer(folder)
    if not has_fast:
        raise ValueError(f"{folder} holds no tokenizer: neither tokenizer.json, vocab.json nor tokenizer.model.")
    try:
        tokenizer = _fast_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"The tokenizer in {folder} cannot be read: {error}") from error
    if tokenizer.pad_token is None:  # as many of Llama's
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _fast_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    settings = _json(folder / "tokenizer_config.json")
    is_remote = "auto_map" in settings or str(settings.get("tokenizer_class")).startswith("InternLM2")
    if (folder / "tokenizer.json").is_file() and (is_remote or _is_llama(settings)):
        # A remote class would only be asked to read the same file. Llama's (which Phi-3 has too) builds a new
        # tokenizer in transformers 5, with spaces of its own; Sa2VA was trained with version 4, which took the
        # file, and had Llama's first token come first unless it was told not to.
        first = {"add_bos_token": settings.get("add_bos_token", True)} if _is_llama(settings) else {}
        return PreTrainedTokenizerFast.from_pretrained(folder, **first)
    # (With a config, or the model's own would be looked at, which transformers does not know.)
    return AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), trust_remote_code=False)


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _is_llama(settings: dict) -> bool:
    return str(settings.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"


def sentencepiece_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """
    The sentencepiece model of InternLM2, Phi-3 or Llama as a fast tokenizer: the same ids, `<s>` in front if it is
    wanted there, unknown characters as bytes.

    A model that begins each text with a space does so after each added token too, as transformers 4 does it for
    Llama's, unless the settings say `"legacy": false`: then only a text's very beginning gets one.

    Args:
        folder (`Path`): with `tokenizer.model` (byte-pair encoding), and `tokenizer_config.json` and
            `added_tokens.json` with the special tokens.

    Returns:
        `PreTrainedTokenizerFast`.

    Raises:
        `ImportError`: sentencepiece is not installed.
        `ValueError`: not a sentencepiece model, or the added tokens do not follow the vocabulary.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ImportError(
            "A tokenizer.model without tokenizer.json needs sentencepiece: pip install 'sa2va_trl[internlm2]'."
        ) from error
    try:
        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder / 'tokenizer.model'} is no sentencepiece model: {error}") from error
    settings = _json(folder / "tokenizer_config.json")
    added = {int(index): token for index, token in settings.get("added_tokens_decoder", {}).items()}
    for content, index in _json(folder / "added_tokens.json").items():
        added.setdefault(index, {"content": content, "special": True})

    # Tokens such as <|im_end|> take the place of pieces that training left unused.
    names = [pieces.id_to_piece(index) for index in range(len(pieces))]
    names = [added[index]["content"] if index in added else name for index, name in enumerate(names)]
    vocabulary = {name: index for index, name in enumerate(names)}
    # Sentencepiece merges the pair whose result has the highest score; a fast tokenizer wants the pairs in that order.
    merges = []
    for index, name in enumerate(names):
        if index in added or pieces.is_control(index) or pieces.is_unknown(index) or pieces.is_byte(index):
            continue
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-pieces.get_score(index), vocabulary[left], vocabulary[right], (left, right)))
    merges = [pair for *_, pair in sorted(merges)]

    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=pieces.id_to_piece(pieces.unk_id()),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = pieces.encode("a", out_type=str)[0].startswith("▁")
    if prefixed and not settings.get("legacy", True):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [*([normalizers.Prepend("▁")] if prefixed else []), normalizers.Replace(" ", "▁")]
        )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", left=1)] if prefixed else [])])
    for index in sorted(added):
        token = added[index]
        flags = {name: token.get(name, False) for name in ("lstrip", "rstrip", "single_word", "normalized")}
        if token.get("special", True):
            tokenizer.add_special_tokens([AddedToken(token["content"], special=True, **flags)])
        else:
            tokenizer.add_tokens([AddedToken(token["content"], special=False, **flags)])
        if tokenizer.token_to_id(token["content"]) != index:
            raise ValueError(
                f"{folder}: {token['content']!r} should have id {index}, but the vocabulary gives it "
                f"{tokenizer.token_to_id(token['content'])}."
            )

    def named(name: str, default: str) -> str:
        token = settings.get(name) or default
        return token["content"] if isinstance(token, dict) else token

    bos = pieces.id_to_piece(pieces.bos_id())
    end = named("eos_token", pieces.id_to_piece(pieces.eos_id()))
    if settings.get("add_bos_token", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, pieces.bos_id())]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=end,
        unk_token=pieces.id_to_piece(pieces.unk_id()),
        pad_token=named("pad_token", end),
        additional_special_tokens=[added[index]["content"] for index in sorted(added) if index > pieces.eos_id()],
        clean_up_tokenization_spaces=False,
    )


# By the name that it had when only InternLM2 came with such a file.
internlm2_tokenizer = sentencepiece_tokenizer
