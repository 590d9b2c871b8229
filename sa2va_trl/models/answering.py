"""Requests answered: token ids in, answers and the states at their `[SEG]` tokens out."""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from transformers import BatchFeature

from ..tokens import SEG_TOKEN
from .chat import text_of
from .prefix_cache import PrefixCache
from .processing import Sa2VAProcessor
from .written_states import WrittenStates


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration


# Options of `generate` that change what it returns, and inputs that are made here.
_OTHER_RETURNS = (
    "num_return_sequences",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
)
_OWN_INPUTS = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "pixel_values", "image_grid_thw")
_OWN_INPUTS += ("cache", "past_key_values", "position_ids", "region_masks", "region_counts")


class Requests(NamedTuple):
    """
    Conversations as the language model reads them: tiled and tokenised once, to be answered and read again.

    Args:
        prompts (`list[list[int]]`): token ids up to the answer.
        pixels (`dict[str, torch.Tensor]`): the VLM's, of all images.
    """

    prompts: list[list[int]]
    pixels: dict[str, torch.Tensor]


class Answers(NamedTuple):
    """
    What has been answered.

    Args:
        texts (`list[str]`): with their special tokens, without the end marker.
        ids (`list[list[int]]`): token ids, with what ended them.
        seg_states (`torch.Tensor` of shape `(segs, D)`): at the `[SEG]` of all answers, row by row.
        rows (`torch.LongTensor` of shape `(segs,)`): the answer that each stands in.
    """

    texts: list[str]
    ids: list[list[int]]
    seg_states: torch.Tensor
    rows: torch.LongTensor


def make_requests(
    conversations: list[list[dict]],
    groups: list[list[Image.Image]],
    processor: Sa2VAProcessor,
    clip: bool = False,
    regions: Sequence[Sequence[Any]] | None = None,
) -> Requests:
    """
    Tile and tokenise.

    Args:
        conversations (`list[list[dict]]`): messages that end with a user turn.
        groups (`list[list[PIL.Image.Image]]`): the images of each.
        processor (`Sa2VAProcessor`): of the model.
        clip (`bool`, *optional*, defaults to `False`): the images of a conversation are frames of a clip.
        regions (`Sequence[Sequence]`, *optional*): of each image, see `Sa2VAProcessor.tiles`.

    Raises:
        `ValueError`: as `Sa2VAProcessor.encode_chat` and `Sa2VAProcessor.tiles`.
    """
    pixels, blocks = processor.tiles([image for group in groups for image in group], clip=clip, regions=regions)
    remaining = iter(blocks)
    parts = [[next(remaining) for _ in group] for group in groups]
    prompts = [processor.encode_chat(chat, part)[0] for chat, part in zip(conversations, parts, strict=True)]
    return Requests(prompts, pixels)


def read(
    model: "Sa2VAForConditionalGeneration",
    requests: Requests,
    processor: Sa2VAProcessor,
    given: list[str] | None = None,
    prefix: PrefixCache | None = None,
    **generate_kwargs: Any,
) -> Answers:
    """
    Answers, written unless they are given, and the states at their `[SEG]`.

    Args:
        model (`Sa2VAForConditionalGeneration`): that answers.
        requests ([`Requests`]): what is asked.
        processor (`Sa2VAProcessor`): of the model.
        given (`list[str]`, *optional*): answers that are taken as they are, in place of the model's own.
        prefix ([`~models.prefix_cache.PrefixCache`], *optional*):
            What the model has read of the one request already, and reads on from.
        generate_kwargs: for `generate`; none with `given`.

    Returns:
        [`Answers`].

    Raises:
        `ValueError`: options that have no effect or make `generate` return something else, or a reserved token in a
            given answer.
    """
    if given is not None and generate_kwargs:
        raise ValueError(f"With `answer` nothing is generated, so {', '.join(generate_kwargs)} have no effect.")
    check_generate_options(generate_kwargs)
    if given is not None:
        texts = [processor.without_end(text) for text in given]
        ids = [processor.answer_ids(text_of({"role": "assistant", "content": text})) for text in texts]
        return Answers(texts, ids, *_read_again(model, requests, ids, processor, prefix))
    adds = prefix is not None and _only_adds(model, generate_kwargs)
    kept = prefix.keep(requests.prompts[0]) if adds else 0
    longest = max(map(len, requests.prompts))
    with prefix.reading(model) if adds else nullcontext(), WrittenStates(model, longest - kept, kept) as states:
        texts, ids = write(model, requests, processor, prefix if adds else None, **generate_kwargs)
        spelled = [
            written.count(processor.seg_token_id) != text.count(SEG_TOKEN)
            for written, text in zip(ids, texts, strict=True)
        ]
        found = states.of(ids, "an answer spells out a [SEG] that is no token" if any(spelled) else "")
        if adds:
            prefix.has_read(requests.prompts[0][:kept] + states.fed)
    if found is None:
        # A generated answer goes in as the tokens that were generated: tokenising its text could give others.
        # (Unless it spells out a [SEG] that is none.)
        ids = [
            processor.answer_ids(text) if otherwise else written
            for text, written, otherwise in zip(texts, ids, spelled, strict=True)
        ]
        found = _read_again(model, requests, ids, processor, prefix)
    return Answers(texts, ids, *found)


def write(
    model: "Sa2VAForConditionalGeneration",
    requests: Requests,
    processor: Sa2VAProcessor,
    prefix: PrefixCache | None = None,
    **generate_kwargs: Any,
) -> tuple[list[str], list[list[int]]]:
    """
    The answers that `generate` writes.

    Args:
        model, requests, processor, generate_kwargs: as in [`read`].
        prefix ([`~models.prefix_cache.PrefixCache`], *optional*): what need not be read of the one request.

    Returns:
        The texts, and their token ids with what ended them.
    """
    never = [processor.image_token_id, *(generate_kwargs.pop("suppress_tokens", None) or [])]
    input_ids = processor.pad(requests.prompts, side="left").to(model.device)
    lengths = torch.tensor([len(prompt) for prompt in requests.prompts], device=model.device)
    width = input_ids.shape[1]
    attention_mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    if prefix is not None:
        generate_kwargs |= {"cache": prefix.cache, "cache_implementation": None}
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **_pixels(model, requests, prefix),
        **{
            "do_sample": False,
            "max_new_tokens": 2048,
            **processor.stopping(),
            # One in the answer would ask for an image that is not there.
            "suppress_tokens": never,
            "pad_token_id": processor.tokenizer.pad_token_id,
            **generate_kwargs,
        },
    )
    written = [_up_to_the_stop(ids, processor) for ids in generated[:, width:].tolist()]
    return [text for text, _ in written], [ids for _, ids in written]


def _up_to_the_stop(ids: list[int], processor: Sa2VAProcessor) -> tuple[str, list[int]]:
    """An answer without what ended it, and its tokens with that but without what follows."""

    def stopped(count: int) -> tuple[str, list[int]]:
        text = processor.tokenizer.decode(ids[:count], skip_special_tokens=False)
        return text, [text.find(stop) for stop in processor.stop_strings if stop in text]

    text, ends = stopped(len(ids))
    if not ends:
        return text, ids
    return text[: min(ends)], ids[: bisect_left(range(len(ids)), True, key=lambda count: bool(stopped(count)[1]))]


def _read_again(
    model: "Sa2VAForConditionalGeneration",
    requests: Requests,
    answers: list[list[int]],
    processor: Sa2VAProcessor,
    prefix: PrefixCache | None,
) -> tuple[torch.Tensor, torch.LongTensor]:
    """The states at the `[SEG]` of answers, from one teacher-forced pass over prompt and answer, as in training."""
    sequences = [prompt + answer for prompt, answer in zip(requests.prompts, answers, strict=True)]
    kept = 0 if prefix is None else prefix.keep(requests.prompts[0], len(sequences[0]))
    input_ids = processor.pad([sequence[kept:] for sequence in sequences]).to(model.device)
    pixels = _pixels(model, requests, prefix)
    if prefix is None:
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=model.device)
        attention_mask = (torch.arange(input_ids.shape[1], device=model.device) < lengths[:, None]).long()
        states = model.states_to_segment(input_ids, attention_mask, **pixels)
    else:
        with prefix.reading(model):
            states = model.states_to_segment(input_ids, **pixels, cache=prefix.cache)
            prefix.has_read(sequences[0])
    rows, positions = torch.nonzero(input_ids == model.config.seg_token_id, as_tuple=True)
    # A [SEG] that the user's own text mentions is not part of the answer.
    starts = torch.tensor([len(prompt) - kept for prompt in requests.prompts], device=model.device)
    answered = positions >= starts[rows]
    rows, positions = rows[answered], positions[answered]
    return states[rows, positions], rows


def _pixels(
    model: "Sa2VAForConditionalGeneration", requests: Requests, prefix: PrefixCache | None
) -> dict[str, torch.Tensor]:
    """The pixels that go in with the next pass: none where images have been read already."""
    if prefix is not None and prefix.ids:
        return {}
    return BatchFeature(requests.pixels).to(model.device, model.dtype)


def check_generate_options(options: dict[str, Any]) -> None:
    """
    Refuse what would make `generate` return something else than one sequence of tokens for each prompt.

    Args:
        options (`dict`): for `generate`.

    Raises:
        `ValueError`: naming those that do.
    """
    config = options.get("generation_config")
    given = {name: options.get(name, getattr(config, name, None)) for name in _OTHER_RETURNS}
    other = [name for name, value in given.items() if value and not (name == "num_return_sequences" and value == 1)]
    other += [name for name in ("custom_generate", *_OWN_INPUTS) if options.get(name) is not None]
    if other:
        raise ValueError(
            f"{', '.join(other)}: one answer is generated for each request, from inputs that are made here, and only "
            "its tokens are used. Call `generate` itself for anything else."
        )


def _only_adds(model: "Sa2VAForConditionalGeneration", options: dict[str, Any]) -> bool:
    """
    Whether `generate` adds to a dynamic cache one token after the other. What has a cache of its own, several
    sequences in it or takes tokens back reads all of a conversation, and leaves its cache alone.
    """

    def option(name: str) -> Any:
        sources = (
            options,
            *(vars(config) for config in (options.get("generation_config"), own) if config is not None),
        )
        return next((source[name] for source in sources if source.get(name) is not None), None)

    own = model.vlm.generation_config
    return (
        option("num_beams") in (None, 1)
        and option("use_cache") in (None, True)
        and option("cache_implementation") in (None, "dynamic")
        and not option("prompt_lookup_num_tokens")
        and option("assistant_model") is None
        and option("assistant_early_exit") is None
    )
