"""Scripts that were written for the official code, a small checkpoint for them to load, and its recorded outputs."""

from dataclasses import dataclass

import torch
from conversations import forced
from families import tiny_family
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase

from sa2va_trl import Sa2VAForConditionalGeneration, tiny_sa2va


def write_published(folder, family="internvl"):
    """A tiny checkpoint in the published layout, of the package's weights where there are any of the family."""
    if family == "internvl":
        model, processor = tiny_sa2va(image_size=128, pretrained=True)
    else:
        model, processor = tiny_family(family)
    model.save_pretrained(folder, layout="published")
    processor.save_pretrained(folder, layout="published")
    return folder


def without_a_gpu(monkeypatch):
    """`.cuda()` of scripts, where there is none."""
    monkeypatch.setattr(Sa2VAForConditionalGeneration, "cuda", lambda self: self)


def load_as_the_model_card(path):
    model = AutoModel.from_pretrained(
        path,
        torch_dtype=torch.bfloat16,
        low_cpu_mem_usage=True,
        use_flash_attn=True,
        trust_remote_code=True,
    )
    model = model.eval().cuda()
    return model, {"tokenizer": AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)}


def load_as_the_demo(path):
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype="auto", trust_remote_code=True)
    if model.config.vlm_config.model_type == "internvl":  # which scripts read from the name of the folder
        tokenizer, processor = AutoTokenizer.from_pretrained(path, trust_remote_code=True), None
    else:
        tokenizer, processor = None, AutoProcessor.from_pretrained(path, trust_remote_code=True)
    return model, {"tokenizer": tokenizer, "processor": processor}


def written(monkeypatch, model, tokenizer, *answers):
    """Have `generate` write these answers, one a call, if there are any; returns what goes into it."""
    generate, seen, waiting = model.generate, [], list(answers)

    def generate_them(*args, **kwargs):
        seen.append(kwargs)
        if answers:
            kwargs = {**kwargs, "logits_processor": forced(Speaker(tokenizer), waiting.pop(0))}
        return generate(*args, **kwargs)

    monkeypatch.setattr(model, "generate", generate_them)
    return seen


@dataclass
class Speaker:
    """What `forced` asks of a processor."""

    tokenizer: PreTrainedTokenizerBase
    stop_strings: tuple[str, ...] = ("<|im_end|>",)


def once(encode):
    """SAM 2's image encoder, which takes ten seconds and sees the same picture in every test."""
    seen = []

    def encode_once(pixel_values):
        for pixels, found in seen:
            if torch.equal(pixels, pixel_values):
                return found
        seen.append((pixel_values, encode(pixel_values)))
        return seen[-1][1]

    return encode_once


def predicted(monkeypatch, model, answer, **request):
    """What `predict_forward` returns where this answer is written, and the result that it translates."""
    written(monkeypatch, model, request.get("tokenizer") or request["processor"].tokenizer, answer)
    chat, chats = model.chat, []
    monkeypatch.setattr(model, "chat", lambda *args, **given: chats.append(chat(*args, **given)) or chats[-1])
    return model.predict_forward(**request), chats[0].result
