"""Masks of a written answer are drawn from the states of generation: they are those of a pass over prompt and answer,
which is run only where generation cannot have left them."""

import gc
import logging

import pytest
import torch
from conversations import QUESTION, TWO_OBJECTS, close, forced, scripted
from families import tiny_family
from transformers import StoppingCriteriaList

from sa2va_trl import tiny_sa2va
from sa2va_trl.models import written_states
from sa2va_trl.models.configuration import SEG_STATES


TEXTS = [
    QUESTION,
    "Vessel?",
    "What is a [SEG]? <image> Mark the wide vessel, and after that all of the small branches.",
    "a line",
]
ANSWERS = [TWO_OBJECTS, "No.", "[SEG]", "There are [SEG], [SEG] and, further down on the left, one more: [SEG]."]


@pytest.fixture(scope="module", params=["qwen2", "phi3", "internlm2", "qwen2_5_vl", "qwen3_vl"])
def family(request):
    return tiny_family(request.param)


@pytest.fixture
def passes():
    """Tokens of each row in every pass of a language model."""
    seen, hooks = [], []

    def watch(model):
        hooks.append(
            model.vlm.model.language_model.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
            )
        )
        return seen

    yield watch
    for hook in hooks:
        hook.remove()


def both(model, processor, images, texts, answers, **generate_kwargs):
    """Results and states of answers that are written, and of the same answers given."""
    found = []

    def decode(features):
        found.append(features.seg_states)
        return model.decode_masks(features)

    request = {"images": images, "text": texts, "processor": processor, "decode": decode}
    given = model.segment(**request, answer=answers)
    generate_kwargs = {"logits_processor": forced(processor, *answers), **generate_kwargs}
    return model.segment(**request, **generate_kwargs), given, *reversed(found)


def check(written, given):
    for one, other in zip(written, given, strict=True):
        assert (one.text, one.phrases) == (other.text, other.phrases)
        close(one.low_res_logits, other.low_res_logits, 1e-4)
        close(one.iou_scores, other.iou_scores)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_states_of_generation_are_those_of_a_full_pass(cache, family, image, passes):
    model, processor = family
    images = [image, image.resize((70, 70)), image.resize((50, 160)), image.rotate(90)]
    seen = passes(model)
    for rows in ([0], [0, 1, 2, 3]):
        texts, answers = [TEXTS[row] for row in rows], [ANSWERS[row] for row in rows]
        start = len(seen)
        written, given, states, expected = both(
            model, processor, [images[row] for row in rows], texts, answers, cache_implementation=cache
        )
        check(written, given)
        assert [len(result.phrases) for result in written] == [answer.count("[SEG]") for answer in answers]
        close(states, expected)
        given_pass, prefill, *steps = seen[start:]
        assert given_pass > 20 and prefill > 20 and set(steps) == {1}


def test_phi3s_other_rotary_factors_need_a_second_pass(image, passes):
    """The prompt in the cache was read with the factors of short texts, and no pass over everything would do that."""
    model, processor = tiny_family("phi3")
    seen, lengths = passes(model), []
    rope = model.config.text_config.rope_parameters
    for beyond in (100, 3):
        start = len(seen)
        written, given, states, expected = both(model, processor, [image], [QUESTION], [TWO_OBJECTS])
        check(written, given)
        close(states, expected)
        lengths.append(seen[start + 1])
        steps = seen[start + 2 :]
        assert [length for length in steps if length > 1] == ([] if beyond == 100 else [seen[start]])
        rope["original_max_position_embeddings"] = lengths[0] + 3


@pytest.mark.parametrize("seg_state", SEG_STATES)
def test_the_state_before_the_norm_too(seg_state, tiny, image):
    model, processor = tiny
    model.config.seg_state = seg_state
    written, given, states, expected = both(model, processor, [image], [QUESTION], [TWO_OBJECTS])
    close(states, expected)
    check(written, given)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_seg_that_ends_the_answer_is_fed_once_more(cache, family, image, passes):
    """A static cache has no room for one token more."""
    model, processor = family
    seen = passes(model)
    images, again = [image, image.resize((50, 160)), image.rotate(90)], [1] if cache == "dynamic" else []
    for texts, answers in (
        (["a line"], ["[SEG]"]),
        ([QUESTION, "a line, and then a longer question about it", "Vessel?"], ["[SEG]b[SEG]", "ab[SEG]", "a[SEG]c"]),
    ):
        count = len(processor.tokenizer(answers[0]).input_ids)
        start, rows = len(seen), images[: len(texts)]
        written, given, states, expected = both(
            model, processor, rows, texts, answers, max_new_tokens=count, cache_implementation=cache
        )
        check(written, given)
        close(states, expected)
        steps = seen[start + 2 :]
        assert steps[: count - 1] + again == [1] * (count - 1) + again
        assert (steps[count - 1 :] == again) == (cache == "dynamic") and len(steps) == count


def test_what_follows_the_stop_of_an_answer_does_not_count(tiny, image):
    model, processor = tiny
    end, seg = processor.tokenizer.convert_tokens_to_ids("<|im_end|>"), processor.seg_token_id
    spelled = [processor.tokenizer(part).input_ids for part in ("[SEG", "]")]
    request = {"image": image, "text": QUESTION, "processor": processor}
    expected = model.segment(**request, answer="[SEG]").low_res_logits
    for ids in ([seg, end, seg, seg], [*spelled[0], *spelled[1], end, seg]):
        options = {"max_new_tokens": len(ids), "eos_token_id": None}
        result = model.segment(**request, logits_processor=scripted(ids), **options)
        assert result.text == "[SEG]" and len(result.masks) == 1
        close(result.low_res_logits, expected)
    # One row stops at its [SEG], the other goes on.
    images, texts = [image, image.rotate(90)], [QUESTION, "a rather longer question"]
    written, given, *_ = both(model, processor, images, texts, ["a[SEG]", "It is: [SEG]"], eos_token_id=seg)
    check(written, given)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, "several sequences"),
        ({"num_beams": 3, "do_sample": True}, "several sequences"),
        ({"use_cache": False}, "is not what it returned"),
        ({"prompt_lookup_num_tokens": 3}, "is not what it returned"),
        ({"spelled": True}, "spells out"),
        ({"zero3": True}, "ZeRO-3"),
        ({"compiled": True}, "no hook saw"),
    ],
)
def test_what_generation_cannot_have_left_is_read_in_a_second_pass(
    options, reason, tiny, image, passes, monkeypatch, caplog
):
    model, processor = tiny
    options = dict(options)
    answer = "the line [SEG] and the line" if "prompt_lookup_num_tokens" in options else TWO_OBJECTS
    ids = processor.tokenizer(answer + "<|im_end|>").input_ids
    if options.pop("spelled", False):
        at = ids.index(processor.seg_token_id)
        ids[at : at + 1] = [*processor.tokenizer("[SEG").input_ids, *processor.tokenizer("]").input_ids]
    if options.pop("zero3", False):
        monkeypatch.setattr(written_states, "is_deepspeed_zero3_enabled", lambda: True)
    if options.pop("compiled", False):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    request = {"image": image, "text": "the line that is the line <image>", "processor": processor}
    with caplog.at_level(logging.DEBUG, logger=written_states.__name__):
        expected = model.segment(**request, answer=answer)
        seen = passes(model)
        written = model.segment(**request, logits_processor=scripted(ids), **options)
    check([written], [expected])
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG and reason in record.getMessage()
    assert len(seen) > 2 and seen[-1] > 20  # the second pass
    vlm = model.vlm.model
    assert not vlm.language_model.norm._forward_hooks and not vlm._forward_pre_hooks  # nothing is left behind


def test_a_clip_is_read_once(any_tiny, image, passes):
    model, processor = any_tiny
    request = {"video": [image, image.rotate(10)], "text": QUESTION, "processor": processor}
    expected = model.segment(**request, answer=TWO_OBJECTS)
    seen = passes(model)
    written = model.segment(**request, logits_processor=forced(processor, TWO_OBJECTS))
    check([written], [expected])
    assert seen[0] > 20 and set(seen[1:]) == {1}


def test_memory_grows_with_the_segs_of_an_answer_and_not_with_its_length(tiny, image):
    model, processor = tiny
    width = model.config.text_config.hidden_size
    ids = [processor.seg_token_id, *processor.tokenizer("a").input_ids * 20, processor.seg_token_id]
    alive, written = {}, []

    def count(input_ids, scores, **kwargs):
        written.append(input_ids[0, -1].item())
        if len(written) in (3, 22, 23):
            tensors = (thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
            alive[len(written)] = sum(each.is_floating_point() and each.shape[-1:] == (width,) for each in tensors)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    options = {"max_new_tokens": 24, "stopping_criteria": StoppingCriteriaList([count])}
    model.segment(image=image, text="x", processor=processor, logits_processor=scripted(ids), **options)
    assert written[:22] == ids
    assert alive[3] == alive[22]  # (the second [SEG] has been written, but not yet fed)
    assert alive[23] == alive[22] + 1


def test_without_a_seg_nothing_is_drawn(tiny, image):
    model, processor = tiny
    written, *_ = both(model, processor, [image], [QUESTION], ["None."])
    assert len(written[0].masks) == 0 and written[0].text == "None."


def test_half_precision_differs_by_its_rounding(image):
    model, processor = tiny_sa2va(image_size=128)
    model.eval().to(torch.bfloat16)
    _, _, states, expected = both(model, processor, [image], [QUESTION], [TWO_OBJECTS])
    assert states.dtype == torch.bfloat16
    assert (states - expected).norm() / expected.norm() < 0.02
