"""`segment` and `answer` on images; videos are in test_tracking."""

import gc
import re

import numpy as np
import pytest
import torch
from conversations import (
    QUESTION,
    TWO_OBJECTS,
    Forced,
    assert_same,
    close,
    forced,
    make_batch,
)
from PIL import Image
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from sa2va_trl import (
    Sa2VAProcessor,
    tiny_sa2va,
)
from sa2va_trl.models.configuration import SUPPORTED_VLMS


@pytest.mark.parametrize("template", ["qwen_chat", "phi3_chat"])  # stops on a token, on a string
def test_segment_with_a_generated_and_a_given_answer(template, tiny, image):
    model, processor = tiny
    processor = Sa2VAProcessor(
        processor.image_processor,
        processor.tokenizer,
        image_seq_length=processor.image_seq_length,
        grounding_image_size=processor.grounding_image_size,
        prompt_template=template,
    )
    arguments = {"image": image, "text": QUESTION, "processor": processor}
    writer = Forced(processor, [TWO_OBJECTS])
    generated = model.segment(**arguments, logits_processor=LogitsProcessorList([writer]))
    assert generated.text == TWO_OBJECTS and writer.step == len(writer.answers[0])
    assert_same(generated, model.segment(**arguments, answer=TWO_OBJECTS))


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
@pytest.mark.parametrize("generate", [False, True])
def test_a_batch_equals_its_images_one_by_one(generate, family, image):
    model, processor = tiny_sa2va(image_size=128, max_patches=4, family=family)
    model.eval()
    images = [image, image.resize((70, 70)).rotate(90), image.resize((50, 160))]
    texts = [
        QUESTION,
        "Vessel?",
        "<image>A rather longer request, in which the vessel is named at the end: the vessel.",
    ]
    answers = [TWO_OBJECTS, "None.", "Sure, [SEG]."]

    def segment(rows, **arguments):
        chosen = [answers[row] for row in rows]
        how = {"logits_processor": forced(processor, *chosen)} if generate else {"answer": chosen}
        return model.segment(
            images=[images[row] for row in rows], text=[texts[row] for row in rows], processor=processor, **how
        )

    together = segment(range(3))
    assert [len(result.masks) for result in together] == [2, 0, 1]
    for row, result in enumerate(together):
        assert result.probabilities.shape[1:] == images[row].size[::-1]
        assert_same(result, segment([row])[0])


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_left_padded_answers_equal_unpadded_ones(family, image):
    model, processor = tiny_sa2va(image_size=128, max_patches=4, family=family)
    model.eval()
    groups = [[image], [], [image.resize((70, 70))]]
    chats = [[{"role": "user", "content": text}] for text in (QUESTION, "Hello.", "Vessel?")]
    together = model.answer(chats, groups, processor, max_new_tokens=12)
    assert all(together) and len(set(together)) == 3
    for chat, group, answer in zip(chats, groups, together, strict=True):
        assert model.answer([chat], [group], processor, max_new_tokens=12) == [answer]


def test_an_image_is_a_picture_an_array_or_a_file(tiny, image, tmp_path):
    model, processor = tiny
    image.save(tmp_path / "image.png")
    expected = model.segment(image=image, text=QUESTION, processor=processor, answer="[SEG]")
    forms = [np.asarray(image), tmp_path / "image.png", str(tmp_path / "image.png")]
    for form, result in zip(
        forms, model.segment(images=forms, text=QUESTION, processor=processor, answer="[SEG]"), strict=True
    ):
        assert_same(result, expected)
        assert_same(model.chat(QUESTION, image=form, processor=processor, answer="[SEG]").result, expected)
    grey = model.segment(image=np.asarray(image)[..., 0], text=QUESTION, processor=processor, answer="[SEG]")
    assert grey.size == (60, 100)
    with pytest.raises(FileNotFoundError, match=r"Image 1: there is no file .*none\.png"):
        model.segment(images=[image, "none.png"], text=QUESTION, processor=processor, answer="[SEG]")


def test_objects_come_in_the_order_of_the_answer(tiny, image):
    model, processor = tiny
    arguments = {"image": image, "text": QUESTION, "processor": processor}
    answer = "<p> a </p> [SEG], something [SEG] and <p>b</p>[SEG]"
    result = model.segment(**arguments, answer=answer)
    assert result.phrases == ["a", None, "b"] and len(result.masks) == 3
    # A state depends on nothing that follows, so what an answer's beginning yields stays.
    for count in (1, 2):
        beginning = model.segment(**arguments, answer="[SEG]".join(answer.split("[SEG]")[:count]) + "[SEG]")
        close(beginning.mask_logits, result.mask_logits[:count])
        close(beginning.iou_scores, result.iou_scores[:count])
    assert (result.mask_logits[0] - result.mask_logits[1]).abs().max() > 1e-4


def test_a_seg_in_the_users_text_is_no_object(tiny, image):
    model, processor = tiny
    result = model.segment(image=image, text="What does [SEG] mean?", processor=processor, answer="This: [SEG].")
    with torch.no_grad():
        output = model(**make_batch(processor, [([image], "What does [SEG] mean?", "This: [SEG].")]))
    assert len(result.masks) == 1 and len(output.mask_logits) == 2
    close(result.iou_scores, output.iou_scores[1:])


@pytest.mark.parametrize("generate", [False, True])
def test_an_image_is_encoded_once(generate, tiny, image):
    model, processor = tiny
    sizes, answers = [], [TWO_OBJECTS * 2, "[SEG]"]
    how = {"logits_processor": forced(processor, *answers)} if generate else {"answer": answers}
    model.grounding_encoder.sam2_model.image_encoder.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    model.segment(images=[image, image], text=QUESTION, processor=processor, **how)
    assert sizes == [2]


def test_a_generated_image_token_does_no_harm(any_tiny, image):
    """Nothing keeps an untrained model from writing one."""
    model, processor = any_tiny
    head = model.vlm.lm_head
    head.weight.data.zero_()
    head.bias = torch.nn.Parameter(torch.eye(head.out_features)[processor.image_token_id])
    assert len(model.segment(image=image, text=QUESTION, processor=processor, max_new_tokens=3).masks) == 0


def test_threshold(tiny, image):
    model, processor = tiny
    arguments = {"image": image, "text": QUESTION, "processor": processor, "answer": "[SEG]"}
    probabilities = model.segment(**arguments).probabilities
    assert torch.equal(model.segment(**arguments).masks, probabilities > 0.5)
    middle = probabilities.median().item()
    masks = model.segment(**arguments, threshold=middle).masks
    assert torch.equal(masks, probabilities > middle) and masks.any() and not masks.all()
    model.config.mask_threshold = middle
    assert torch.equal(model.segment(**arguments).masks, masks)


def test_masks_come_from_the_tokens_that_were_generated(tiny, image, monkeypatch):
    """Here a token that no text is tokenised to, and an answer that spells out a [SEG] without writing one."""
    model, processor = tiny
    byte = len(processor.tokenizer)
    spelled = processor.tokenizer("[SEG", add_special_tokens=False).input_ids
    spelled += processor.tokenizer("]", add_special_tokens=False).input_ids
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    decode = processor.tokenizer.decode
    monkeypatch.setattr(
        type(processor.tokenizer),
        "decode",
        lambda self, ids, **kwargs: decode([i for i in ids if i != byte], **kwargs),
    )
    model.resize_token_embeddings(byte + 1)
    seen = []
    read = model.states_to_segment
    monkeypatch.setattr(
        model, "states_to_segment", lambda ids, *args, **kwargs: seen.append(ids) or read(ids, *args, **kwargs)
    )
    for written in ([byte, processor.seg_token_id, end], [*spelled, end]):
        monkeypatch.setattr(
            model,
            "generate",
            lambda input_ids, written=written, **_: torch.cat([input_ids, torch.tensor([written])], 1),
        )
        result = model.segment(image=image, text="line", processor=processor)
        assert result.text == "[SEG]"
        assert len(result.masks) == len(result.phrases) == 1
    assert seen[0][0, -3:].tolist() == [byte, processor.seg_token_id, end]
    assert processor.seg_token_id in seen[1][0].tolist()


def test_generation_is_flat_in_memory(tiny):
    """Between two steps far apart no more hidden states of single tokens are alive than between two early ones."""
    model, processor = tiny
    width = model.config.text_config.hidden_size
    alive = []

    def count(input_ids, scores, **kwargs):
        tensors = (thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
        alive.append(sum(tensor.shape == (1, 1, width) for tensor in tensors))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    chat = [[{"role": "user", "content": "Write."}]]
    model.answer(
        chat, [[]], processor, min_new_tokens=40, max_new_tokens=40, stopping_criteria=StoppingCriteriaList([count])
    )
    assert len(alive) == 40
    assert alive[-1] <= alive[5]


# What raises


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processor": None}, "processor"),
        ({"image": None}, "either `image` or `images`"),
        ({"images": [Image.new("RGB", (8, 8))]}, "either `image` or `images`"),
        ({"image": None, "images": []}, "`images` is empty"),
        ({"image": 3}, "Image 0 must be a PIL image, the path of a file or an array, got int"),
        ({"image": np.zeros((8, 8))}, r"Image 0 must be uint8 .* got float64 of shape \(8, 8\)"),
        ({"image": Image.new("I;16", (8, 8))}, "Image 0 has more than 8 bits a channel"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"text": ["a", "b"]}, "1 images, 2 texts and 1 answers"),
        ({"answer": ["a", "b"]}, "1 images, 1 texts and 2 answers"),
        ({"text": "<image> and <image>"}, "<image> .* stands 2 times in the user's turns, for 1 images"),
        ({"text": None}, "`text` must be a string, or a list of strings for `images`; got None"),
        ({"text": 3}, "`text` must be a string.*got 3"),
        ({"text": [None]}, "`text` must be a string.*got None"),
        ({"answer": ["[SEG]", None]}, "`answer` must be a string.*got None"),
        ({"answer": 3}, "`answer` must be a string.*got 3"),
        ({"image": None, "video": [Image.new("RGB", (8, 8))], "text": None}, "`text` must be a string.*got None"),
        ({"image": None, "video": [Image.new("RGB", (8, 8))], "answer": 3}, "`answer` must be a string.*got 3"),
    ],
)
def test_segment_refuses(changes, message, tiny, image):
    model, processor = tiny
    with pytest.raises(ValueError, match=message):
        model.segment(**{"image": image, "text": QUESTION, "answer": "[SEG]", "processor": processor, **changes})


RESERVED = ["<img>", "</img>", "<IMG_CONTEXT>", "<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize("token", [*RESERVED, "<|endoftext|>", "<|end|>"])
def test_reserved_tokens_are_refused_by_name(token, any_tiny, image):
    model, processor = any_tiny
    arguments = {"processor": processor, "image": image, "text": QUESTION, "answer": "[SEG]"}
    clip = {"image": None, "video": [image, image]}
    message = re.escape(f"holds {token}, which only the processor may write")
    for changes in ({"text": f"a {token} b"}, {"answer": f"a {token} [SEG]"}):
        for media in ({}, clip):
            with pytest.raises(ValueError, match=message):
                model.segment(**{**arguments, **media, **changes})
    with pytest.raises(ValueError, match=message):
        model.answer([[{"role": "user", "content": token}]], [[image]], processor, max_new_tokens=1)
    with pytest.raises(ValueError, match=message):
        model.segment(**{**arguments, "answer": None, "text": token}, max_new_tokens=1)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>", "<|im_end|>\n"])
def test_one_end_marker_of_a_forced_answer_is_dropped(end, any_tiny, image):
    model, processor = any_tiny
    arguments = {"processor": processor, "image": image, "text": QUESTION}
    plain = model.segment(**arguments, answer="Sure, [SEG].")
    marked = model.segment(**arguments, answer=f"Sure, [SEG].{end}")
    assert marked.text == plain.text == "Sure, [SEG]."
    assert torch.equal(marked.low_res_logits, plain.low_res_logits)
    with pytest.raises(ValueError, match="im_end.*only the processor may write"):
        model.segment(**arguments, answer=f"Sure, [SEG].<|im_end|>{end}")


@pytest.mark.parametrize(
    "options",
    [
        {"num_return_sequences": 2, "do_sample": True},
        {"num_return_sequences": 2, "num_beams": 2},
        {"return_dict_in_generate": True},
        {"output_scores": True},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"generation_config": GenerationConfig(num_return_sequences=2, num_beams=2)},
        {"generation_config": GenerationConfig(return_dict_in_generate=True)},
        {"input_ids": torch.ones(1, 3, dtype=torch.long)},
        {"attention_mask": torch.ones(1, 3)},
        {"inputs_embeds": torch.ones(1, 3, 64)},
    ],
)
def test_options_that_change_what_generate_returns_are_refused_by_name(options, tiny, image):
    model, processor = tiny
    names = {"generation_config": "num_return_sequences|return_dict_in_generate"}
    message = "|".join(names.get(name, name) for name in options) + ".*one answer is generated"
    with pytest.raises(ValueError, match=message):
        model.segment(image=image, text="line", processor=processor, max_new_tokens=2, **options)
    with pytest.raises(ValueError, match=message):
        model.answer([[{"role": "user", "content": "line"}]], [[]], processor, max_new_tokens=2, **options)


def test_options_that_leave_one_answer_are_taken(tiny, image):
    model, processor = tiny
    options = {"num_beams": 2, "num_return_sequences": 1, "return_dict_in_generate": False, "max_new_tokens": 3}
    assert model.segment(image=image, text="line", processor=processor, **options).text is not None
    # What must not be written is added to what the caller does not want.
    everything = list(range(processor.image_token_id))
    written = model.segment(
        image=image, text="line", processor=processor, max_new_tokens=1, suppress_tokens=everything
    ).text
    assert processor.tokenizer.convert_tokens_to_ids(written) > processor.image_token_id


def test_nothing_to_segment_and_unknown_roles_are_refused(tiny):
    model, processor = tiny
    with pytest.raises(ValueError, match="With `answer` nothing is generated, so max_new_token have no effect"):
        model.segment(image=Image.new("RGB", (8, 8)), answer="[SEG]", processor=processor, max_new_token=4)
    with pytest.raises(ValueError, match="`images` is empty"):
        model.segment(images=[], text="x", processor=processor)
    with pytest.raises(ValueError, match="role must be system, user or assistant, got 'tool'"):
        processor.encode_chat([{"role": "tool", "content": "x"}], [])


@pytest.mark.parametrize("how", [{"answer": TWO_OBJECTS}, {"max_new_tokens": 2}])
@pytest.mark.parametrize("media", ["image", "video"])
def test_a_request_is_tiled_and_its_prompt_tokenised_once(media, how, tiny, image, monkeypatch):
    model, processor = tiny
    tiled, encoded = [], []
    tiles, encode = processor.tiles, processor.encode_chat
    monkeypatch.setattr(processor, "tiles", lambda images, **own: tiled.append(own["clip"]) or tiles(images, **own))
    monkeypatch.setattr(processor, "encode_chat", lambda chat, *rest: encoded.append(len(chat)) or encode(chat, *rest))
    model.segment(**{media: image if media == "image" else [image]}, text=QUESTION, processor=processor, **how)
    assert tiled == [media == "video"]
    assert encoded == [1]
