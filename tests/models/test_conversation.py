"""Dialogues: each turn is read on from the last, and says and draws what a pass over the whole dialogue does."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conversations import QUESTION, TWO_OBJECTS, close, forced, scripted
from families import tiny_family
from pages import blocks
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from sa2va_trl import Sa2VAProcessor
from sa2va_trl.models import conversation
from sa2va_trl.models.drawing import Drawing, track_clip
from sa2va_trl.postprocessing import Postprocessing


TURNS = [
    (QUESTION, TWO_OBJECTS),
    ("Is it wide?", "No."),
    ("And what is a [SEG]? Mark the branch.", "Here: [SEG]"),
    ("Then all of it, one more time.", "Sure, <p> all </p> [SEG]."),
]


@pytest.fixture(scope="module", params=["qwen2", "qwen2_5_vl", "qwen3_vl"])
def family(request):
    return tiny_family(request.param)


@pytest.fixture(scope="module")
def qwen():
    return tiny_family("qwen2_5_vl")


def chats(processor, answer, write):
    """How an answer comes about."""
    return {"logits_processor": forced(processor, answer)} if write else {"answer": answer}


def hold(network, turns, writes=None, **media):
    """A dialogue of these turns, whose answers are written where `writes` says so."""
    model, processor = network
    writes = [True] * len(turns) if writes is None else writes
    (text, answer), write = turns[0], writes[0]
    chat = model.chat(text, **media, processor=processor, **chats(processor, answer, write))
    for (text, answer), write in zip(turns[1:], writes[1:], strict=True):
        chat.ask(text, **chats(processor, answer, write))
    return chat


def messages_of(turns):
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def in_one_pass(network, turns, images, clip=False):
    """States, masks and scores of each answer, from one teacher-forced pass over the dialogue."""
    model, processor = network
    pixels, blocks = processor.tiles(images, clip=clip)
    ids, labels = (torch.tensor([each]) for each in processor.encode_chat(messages_of(turns), blocks))
    with torch.no_grad():
        features = model.encode(
            ids,
            **pixels,
            grounding_pixel_values=processor.grounding_inputs(images),
            image_counts=torch.tensor([len(images)]),
        )
        mask_logits, iou_scores = model.decode_masks(features)
    answered = (labels == processor.seg_token_id)[ids == processor.seg_token_id]  # not what users say
    counts = [answer.count("[SEG]") for _, answer in turns]
    states = features.seg_states[answered].split(counts)
    if not images:
        return states, None, None
    mask_logits = mask_logits.view(len(answered), len(images), *mask_logits.shape[1:])[answered]
    return states, mask_logits.split(counts), iou_scores.view(len(answered), -1)[answered].split(counts)


def up_to(network, turns, images, answered):
    """Tokens of a dialogue of these turns, or up to where the last one is answered."""
    _, processor = network
    messages = messages_of(turns)[: None if answered else -1]
    return len(processor.encode_chat(messages, processor.tiles(images)[1])[0])


@contextmanager
def seen_states(model, monkeypatch):
    """The states that each answer is drawn from."""
    found, prompts = [], model.mask_prompts
    with monkeypatch.context() as patched:
        patched.setattr(model, "mask_prompts", lambda states: found.append(states) or prompts(states))
        yield found


@contextmanager
def passes(model):
    """Tokens of every pass of the language model, and calls of both image encoders."""
    seen = {"tokens": [], "tower": 0, "sam2": 0}
    vlm = model.vlm.model
    tower = vlm.vision_tower if hasattr(vlm, "vision_tower") else vlm.visual

    def count(name):
        def hook(*_):
            seen[name] += 1

        return hook

    hooks = [
        vlm.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen["tokens"].append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        ),
        tower.register_forward_pre_hook(count("tower")),
        model.grounding_encoder.sam2_model.image_encoder.register_forward_pre_hook(count("sam2")),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def same(result, expected):
    assert (result.text, result.phrases, result.size) == (expected.text, expected.phrases, expected.size)
    close(result.low_res_logits, expected.low_res_logits, 1e-4)
    close(result.iou_scores, expected.iou_scores)
    assert torch.equal(result.masks, expected.masks)


@pytest.mark.parametrize(
    "writes", [[True] * 4, [False] * 4, [True, False, True, True]], ids=["written", "given", "both"]
)
def test_every_turn_is_that_of_one_pass_over_the_dialogue(writes, family, image, monkeypatch):
    model, processor = family
    with seen_states(model, monkeypatch) as found:
        chat = hold(family, TURNS, writes, image=image)
    states, mask_logits, iou_scores = in_one_pass(family, TURNS, [image])
    assert chat.messages == messages_of(TURNS) and chat.result is chat.results[-1]
    close(torch.cat(found), torch.cat(states))
    for result, (_, answer), logits, scores in zip(chat.results, TURNS, mask_logits, iou_scores, strict=True):
        assert result.text == answer and result.phrases == processor.phrases(answer)
        close(result.low_res_logits, logits[:, 0], 1e-4)
        close(result.iou_scores, scores[:, 0])
        expected = model.segment(image=image, text="x", processor=processor, answer="No.")
        expected.low_res_logits = logits[:, 0]
        assert torch.equal(result.masks, expected.masks) and result.masks.shape[1:] == (60, 100)


@pytest.mark.parametrize("writes", [[True] * 3, [False] * 3, [True, False, True]], ids=["written", "given", "both"])
@pytest.mark.parametrize(
    ("turns", "answered", "more"), [(1, False, 3), (1, True, 1), (3, False, -3), (3, False, 3)], ids=str
)
def test_phi3s_other_rotary_factors_apply_to_what_was_said_before(turns, answered, more, writes, image, monkeypatch):
    """They change within the first answer, between two turns, within the third question and within its answer."""
    phi3 = model, _ = tiny_family("phi3")
    rope = model.config.text_config.rope_parameters
    rope["original_max_position_embeddings"] = up_to(phi3, TURNS[:turns], [image], answered) + more
    with seen_states(model, monkeypatch) as found:
        hold(phi3, TURNS[:3], writes, image=image)
    expected = [in_one_pass(phi3, TURNS[:count], [image])[0][-1] for count in (1, 2, 3)]
    # (Each as if the dialogue ended there: what follows would change the factors of an earlier one.)
    for own, whole in zip([states for states in found if len(states)], [expected[0], expected[2]], strict=True):
        close(own, whole)


def test_a_turn_costs_its_own_tokens_and_images_are_encoded_once(family, image):
    model, processor = family
    with passes(model) as seen:
        chat = model.chat(*TURNS[1][:1], image=image, processor=processor, **chats(processor, "No.", True))
        assert seen["tower"] == 1 and seen["sam2"] == 0  # nothing is drawn
        for text, answer in TURNS:
            for write in (True, False):
                start = len(seen["tokens"])
                chat.ask(text, **chats(processor, answer, write))
                first, *steps = seen["tokens"][start:]
                # With the end marker of the answer before, which was written but not fed.
                new = len(processor.next_turn(text)) + (0 if write and start > 4 else 1)
                new += 0 if write else len(processor.answer_ids(answer))
                assert first in (new, new + 1) and set(steps) <= {1}
    assert seen["tower"] == seen["sam2"] == 1


@pytest.mark.parametrize("media", ["image", "video", "nothing"])
@pytest.mark.parametrize("write", [True, False])
def test_a_first_turn_is_that_of_segment_to_the_bit(write, media, family, image):
    model, processor = family
    if media == "nothing":
        chat = hold(family, TURNS[:1], [write])
        assert chat.result.text == TWO_OBJECTS and chat.result.phrases == [] and len(chat.result.masks) == 0
        return
    given = {media: image if media == "image" else [image, image.rotate(10), image.rotate(20)]}
    chat = hold(family, TURNS[:1], [write], **given)
    expected = model.segment(**given, text=QUESTION, processor=processor, **chats(processor, TWO_OBJECTS, write))
    assert (chat.result.text, chat.result.phrases) == (expected.text, expected.phrases)
    for name in ("low_res_logits", "iou_scores", "masks", "probabilities"):
        assert torch.equal(getattr(chat.result, name), getattr(expected, name))


def test_conversations_and_requests_by_turns_leave_each_other_alone(family, image):
    """Qwen keeps on the model where it is in a conversation."""
    model, processor = family
    media = [{"image": image}, {"image": image.resize((40, 160))}, {}]
    expected = [hold(family, TURNS[:3], **each) for each in media]
    found = [hold(family, TURNS[:1], **each) for each in media]
    for text, answer in TURNS[1:3]:
        for chat in found:
            chat.ask(text, **chats(processor, answer, True))
        model.segment(image=image.rotate(90), text="x", processor=processor, answer="[SEG]")
    for chat, whole in zip(found, expected, strict=True):
        assert chat.messages == whole.messages
        for one, other in zip(chat.results, whole.results, strict=True):
            assert torch.equal(one.low_res_logits, other.low_res_logits)


def test_without_an_image(family, monkeypatch):
    model, processor = family
    # What another conversation leaves on the model.
    hold(family, TURNS[:1], image=Image.new("RGB", (160, 40)))
    free = model.chat("Hello.", processor=processor, answer="Hello.")
    text = free.ask("And then?", max_new_tokens=6).text
    assert model.answer([free.messages[:-1]], [[]], processor, max_new_tokens=6) == [text]
    with monkeypatch.context() as patched:
        patched.setattr(model.grounding_encoder, "encode", None)
        for writes in ([True] * 4, [False] * 4):
            chat = hold(family, TURNS, writes)
            assert [len(result.masks) for result in chat.results] == [0] * 4
            assert [result.text for result in chat.results] == [answer for _, answer in TURNS]


def test_what_is_written_freely_is_what_the_whole_prompt_leads_to(family, image):
    model, processor = family
    pixels, blocks = processor.tiles([image])
    ids = processor.encode_chat([{"role": "user", "content": "What is it?"}], blocks)[0]
    options = {"max_new_tokens": 5, "suppress_tokens": [processor.image_token_id], **processor.stopping()}
    chat = model.chat("What is it?", image=image, processor=processor, max_new_tokens=5)
    for text in ("Why?", "And then?", None):
        start, prompt = len(ids), torch.tensor([ids])
        written = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **pixels, **options
        )
        assert processor.tokenizer.decode(written[0, start:]) == chat.result.text
        if text is not None:
            ids = written[0].tolist() + processor.answer_ids("") + processor.next_turn(text)
            chat.ask(text, max_new_tokens=5)


def test_a_clip_is_tracked_for_every_answer(family, image, monkeypatch):
    model, processor = family
    clip = [image, image.rotate(15), image.rotate(30), image.rotate(45)]
    options = {"frames": [0, 2]}
    with seen_states(model, monkeypatch) as found:
        chat = model.chat(QUESTION, video=clip, processor=processor, answer=TWO_OBJECTS, **options)
        for text, answer in TURNS[1:]:
            chat.ask(text, **chats(processor, answer, True))
    states, _, _ = in_one_pass(family, TURNS, [clip[0], clip[2]], clip=True)
    close(torch.cat(found), torch.cat(states))
    drawing = Drawing(0.5, Postprocessing())
    for result, own in zip(chat.results, states, strict=True):
        same(result, track_clip(model, processor, result.text, own, clip, [0, 2], "soft", drawing))
        assert result.masks.shape == (len(own), 4, 60, 100) and result.prompted_frames == [0, 2]
    assert torch.equal(chat.result.frame(3).masks, chat.result.masks[:, 3])


@pytest.mark.parametrize("second", [(100, 60), (40, 90)])
def test_every_seg_is_drawn_on_each_of_several_images(second, family, image):
    model, processor = family
    images = [image, image.rotate(90).resize(second)]
    chat = hold(family, TURNS, [True, True, False, True], images=images)
    _, mask_logits, iou_scores = in_one_pass(family, TURNS, images)
    for result, logits, scores in zip(chat.results, mask_logits, iou_scores, strict=True):
        close(result.low_res_logits, logits, 1e-4)
        close(result.iou_scores, scores)
        for index, picture in enumerate(images):
            frame = result.frame(index)
            assert frame.masks.shape == (len(logits), *picture.size[::-1])
            assert torch.equal(frame.low_res_logits, result.low_res_logits[:, index])
        if second == image.size:
            assert torch.equal(result.masks[:, 1], result.frame(1).masks) and result.masks.ndim == 4
        else:
            with pytest.raises(ValueError, match=r"differ in size \(100 x 60, 40 x 90\).*result.frame\(0\).masks"):
                result.masks  # noqa: B018
    # Each in its own place.
    placed = model.chat("Of <image> and <image>?", images=images, processor=processor, answer="[SEG]").result
    assert not torch.equal(placed.low_res_logits, chat.results[0].low_res_logits[:1])


def test_an_image_may_stand_in_a_later_turn_of_what_was_said_before(family, image):
    model, processor = family
    turns = [("Hello.", "Hello."), ("What of <image>?", "Here: [SEG]."), ("More?", "[SEG]")]
    said = [*messages_of(turns[:1]), {"role": "user", "content": turns[1][0]}]
    chat = model.chat(said, image=image, processor=processor, **chats(processor, turns[1][1], True))
    chat.ask(turns[2][0], **chats(processor, turns[2][1], True))
    _, mask_logits, _ = in_one_pass(family, turns, [image])
    assert chat.messages == messages_of(turns) and len(chat.results) == 2
    for result, logits in zip(chat.results, mask_logits[1:], strict=True):
        close(result.low_res_logits, logits[:, 0], 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 2},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
    ],
)
def test_what_cannot_add_to_the_kept_keys_leaves_them_alone(options, qwen, image):
    model, processor = qwen
    chat = hold(qwen, TURNS[:1], image=image)
    for number, (text, answer) in enumerate(TURNS[1:]):
        chat.ask(text, logits_processor=scripted(processor.answer_ids(answer)), **(options if number % 2 else {}))
    _, mask_logits, _ = in_one_pass(qwen, TURNS, [image])
    for result, logits in zip(chat.results, mask_logits, strict=True):
        close(result.low_res_logits, logits[:, 0], 1e-4)


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>", None])
def test_an_answer_has_its_end_marker_whatever_ended_it(end, spelled, qwen, image):
    model, processor = qwen
    text = "Sure, [SEG]"
    ids = processor.tokenizer(text).input_ids
    if spelled:
        ids[-1:] = [*processor.tokenizer("[SEG").input_ids, *processor.tokenizer("]").input_ids]
    ids += [] if end is None else [processor.tokenizer.convert_tokens_to_ids(end)]
    turns = [("What?", text), *TURNS]
    chat = model.chat(
        "What?", image=image, processor=processor, logits_processor=scripted(ids), max_new_tokens=len(ids)
    )
    for turn in TURNS:
        chat.ask(turn[0], **chats(processor, turn[1], True))
    _, mask_logits, _ = in_one_pass(qwen, turns, [image])
    assert chat.messages == messages_of(turns)
    for result, logits in zip(chat.results, mask_logits, strict=True):
        close(result.low_res_logits, logits[:, 0], 1e-4)


def test_end_markers_of_several_tokens(image):
    model, processor = tiny_family("qwen2")
    processor = Sa2VAProcessor(
        processor.image_processor,
        processor.tokenizer,
        image_seq_length=processor.image_seq_length,
        grounding_image_size=processor.grounding_image_size,
        prompt_template="phi3_chat",
    )
    chat = hold((model, processor), TURNS, image=image)
    _, mask_logits, _ = in_one_pass((model, processor), TURNS, [image])
    for result, logits in zip(chat.results, mask_logits, strict=True):
        close(result.low_res_logits, logits[:, 0], 1e-4)


def test_tokens_that_no_text_has_stay_as_they_were_written(image, monkeypatch):
    model, processor = tiny_family("qwen2")
    byte, decode = len(processor.tokenizer), processor.tokenizer.decode
    monkeypatch.setattr(
        type(processor.tokenizer),
        "decode",
        lambda self, ids, **options: decode([i for i in ids if i != byte], **options),
    )
    model.resize_token_embeddings(byte + 1)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    written = [byte, processor.seg_token_id, byte, end]
    chat = model.chat("What?", image=image, processor=processor, logits_processor=scripted(written))
    assert chat.result.text == "[SEG]"
    result = chat.ask("And?", answer="Here: [SEG]")
    pixels, blocks = processor.tiles([image])
    prompt = processor.encode_chat([{"role": "user", "content": "What?"}], blocks)[0]
    ids = prompt + written + processor.next_turn("And?") + processor.answer_ids("Here: [SEG]")
    with torch.no_grad():
        features = model.encode(
            torch.tensor([ids]), **pixels, grounding_pixel_values=processor.grounding_inputs([image])
        )
    close(result.low_res_logits, model.decode_masks(features)[0][1:], 1e-4)


def test_the_example_of_the_page_runs(tiny, image):
    model, processor = tiny
    head = model.vlm.lm_head  # which ends every answer at once
    head.weight.data.zero_()
    head.bias = torch.nn.Parameter(
        torch.eye(head.out_features)[processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    )
    text = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    (code,) = (block for block in blocks(text, "python") if "model.chat(" in block)
    names = {"model": model, "processor": processor, "picture": image}
    exec(code, names)
    assert [len(result.masks) for result in names["chat"].results] == [0, 0, 1]


# What fails


class Interrupted(LogitsProcessor):
    """Writes a few tokens, and then stops with an error."""

    def __init__(self, error):
        self.error, self.steps = error, 0

    def __call__(self, input_ids, scores):
        self.steps += 1
        if self.steps >= 3:
            raise self.error
        return scores


@pytest.mark.parametrize("how", ["writing", "between layers", "drawing", "option"])
def test_a_turn_that_fails_leaves_the_conversation_as_it_was(how, family, image, monkeypatch):
    model, processor = family
    chat, error, options = hold(family, TURNS[:2], [False] * 2, image=image), KeyboardInterrupt, {}
    with monkeypatch.context() as patched:
        if how == "writing":
            options = {"logits_processor": LogitsProcessorList([Interrupted(KeyboardInterrupt())])}
        elif how == "between layers":

            def stop(*_, **__):
                raise KeyboardInterrupt

            patched.setattr(model.vlm.model.language_model.layers[1], "forward", stop)
        elif how == "drawing":
            patched.setattr(model.grounding_encoder, "decode", None)
            options, error = {"answer": "[SEG]"}, TypeError
        else:
            options, error = {"num_return_sequences": 2}, ValueError
        for _ in range(2):
            with pytest.raises(error):
                chat.ask("Mark it.", **options)
    assert chat.messages == messages_of(TURNS[:2]) and len(chat.results) == 2
    with passes(model) as seen:
        chat.ask(TURNS[2][0], **chats(processor, TURNS[2][1], True))
    assert seen["tower"] == 0  # what had been read has not been lost
    _, mask_logits, _ = in_one_pass(family, TURNS[:3], [image])
    for result, logits in zip(chat.results, mask_logits, strict=True):
        close(result.low_res_logits, logits[:, 0], 1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processor": None}, "chat needs `processor`"),
        ({"images": [Image.new("RGB", (8, 8))]}, "one of `image`, `images` and `video`, or none"),
        ({"image": None, "images": []}, "`images` is empty"),
        ({"image": 3}, "Image 0 must be a PIL image"),
        ({"image": None, "video": []}, "no frames"),
        ({"num_frames": 2}, "chat takes num_frames with `video` only"),
        ({"threshold": 1}, "threshold must lie between 0 and 1"),
        ({"messages": []}, "`messages` must be a question, or a list"),
        ({"messages": ["Hello."]}, "`messages` must be a question, or a list"),
        ({"messages": [{"role": "assistant", "content": "No."}]}, "must end with a user turn"),
        ({"messages": "<image> and <image>"}, "stands 2 times in the user's turns, for 1 images"),
        ({"image": None, "messages": "<image>"}, "stands 1 times in the user's turns, for 0 images"),
        ({"answer": ["No."]}, "`answer` must be a string"),
        ({"answer": "<|im_end|> No."}, "only the processor may write"),
        ({"max_new_tokens": 3}, "With `answer` nothing is generated"),
        ({"answer": None, "past_key_values": 3}, "past_key_values: one answer is generated"),
    ],
)
def test_chat_refuses(changes, message, network, image):
    model, processor = network
    request = {"messages": "Hello.", "image": image, "processor": processor, "answer": "No."}
    with pytest.raises(ValueError, match=message):
        model.chat(**{**request, **changes})


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("In <image>?", {}, "have their places in earlier turns: leave <image> out"),
        ("a <|im_end|>", {}, "only the processor may write"),
        (None, {}, "must be text, got None"),
        ("Why?", {"answer": 3}, "`answer` must be a string, got 3"),
    ],
)
def test_ask_refuses(text, options, message, network, image):
    model, processor = network
    chat = model.chat("Hello.", image=image, processor=processor, answer="No.")
    with pytest.raises(ValueError, match=message):
        chat.ask(text, **options)


def test_zero3_is_refused(network, monkeypatch):
    model, processor = network
    monkeypatch.setattr(conversation, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="With ZeRO-3 all processes run the same passes"):
        model.chat("Hello.", processor=processor)
