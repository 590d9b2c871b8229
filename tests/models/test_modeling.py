import gc
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    StoppingCriteriaList,
)
from transformers.loss.loss_utils import ForCausalLMLoss

from sa2va_trl import (
    Sa2VAConfig,
    Sa2VAForConditionalGeneration,
    Sa2VAGroundingConfig,
    Sa2VAProcessor,
    tiny_sa2va,
)
from sa2va_trl.adapters.presets import freeze_all_but_full
from sa2va_trl.models.configuration import SEG_STATES, SUPPORTED_VLMS


QUESTION = "Please segment the blood vessel."
TWO_OBJECTS = "A <p> wide vessel </p> [SEG] and a <p> thin one </p> [SEG]."
POSITION_ENCODING = "grounding_encoder.sam2_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def make_batch(processor, rows):
    """Arguments of `forward` for rows of (images, question, answer)."""
    images = [image for group, _, _ in rows for image in group]
    pixels, blocks = processor.tiles(images)
    blocks = iter(blocks)
    encoded = [
        processor.encode_chat(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            [next(blocks) for _ in group],
        )
        for group, question, answer in rows
    ]
    input_ids = processor.pad([ids for ids, _ in encoded])
    lengths = torch.tensor([[len(ids)] for ids, _ in encoded])
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths).long(),
        "labels": processor.pad([labels for _, labels in encoded], value=-100),
        "grounding_pixel_values": processor.grounding_inputs(images),
        "image_counts": torch.tensor([len(group) for group, _, _ in rows]),
        **pixels,
    }


def encode_arguments(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def vlm_pixels(batch):
    return {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}


class Forced(LogitsProcessor):
    """Makes `generate` write the given answers, token by token."""

    def __init__(self, processor, answers):
        end = processor.stop_strings[0]
        self.answers = [processor.tokenizer(answer + end).input_ids for answer in answers]
        self.step = 0

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        for row, answer in enumerate(self.answers):
            forced[row, answer[min(self.step, len(answer) - 1)]] = 0
        self.step += 1
        return forced


def forced(processor, *answers):
    return LogitsProcessorList([Forced(processor, answers)])


def assert_same(actual, expected):
    assert (actual.text, actual.phrases) == (expected.text, expected.phrases)
    for field in ("mask_logits", "probabilities", "iou_scores"):
        close(getattr(actual, field), getattr(expected, field))
    uncertain = (expected.probabilities - 0.5).abs() < 1e-5
    assert torch.equal(actual.masks | uncertain, expected.masks | uncertain)


def assert_float32(result):
    assert {tensor.dtype for tensor in (result.mask_logits, result.probabilities, result.iou_scores)} == {
        torch.float32
    }


# Training and inference see the same states


@pytest.mark.parametrize("seg_state", SEG_STATES)
def test_seg_states_of_generation_and_teacher_forcing_are_equal(seg_state, any_tiny, image):
    model, processor = any_tiny
    model.config.seg_state = seg_state
    raw = []
    model.vlm.model.language_model.norm.register_forward_pre_hook(lambda _, args: raw.append(args[0]))
    batch = make_batch(processor, [([image], QUESTION, TWO_OBJECTS)])
    answer = torch.nonzero(batch["labels"][0] != -100)[0].item()
    output = model.generate(
        input_ids=batch["input_ids"][:, :answer],
        attention_mask=batch["attention_mask"][:, :answer],
        **vlm_pixels(batch),
        logits_processor=forced(processor, TWO_OBJECTS),
        output_hidden_states=True,
        return_dict_in_generate=True,
        max_new_tokens=100,
        **processor.stopping(),
    )
    assert torch.equal(output.sequences, batch["input_ids"])
    # A token written at one step is fed, and so has its own state, at the next.
    written = torch.nonzero(output.sequences[0, answer:] == processor.seg_token_id)[:, 0]
    steps = [states[-1] for states in output.hidden_states] if seg_state == "normed" else raw
    fed = torch.stack([steps[step + 1][0, -1] for step in written])
    shifted = torch.stack([steps[step][0, -1] for step in written])
    assert len(fed) == 2
    with torch.no_grad():
        close(model.encode(**encode_arguments(batch)).seg_states, fed)
        close(model(**batch).seg_states, fed)
    assert (fed - shifted).abs().max() > (0.1 if seg_state == "normed" else 0.01)  # a norm makes numbers near 1


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


# One mask for each [SEG] on each of its images


def test_permuting_prompts_permutes_masks(tiny, image):
    model, processor = tiny
    encoder = model.grounding_encoder
    prompts = 10 * torch.randn(4, model.config.grounding_config.hidden_dim, generator=torch.Generator().manual_seed(0))
    images = torch.tensor([0, 1, 1, 0])
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        pyramid = encoder.encode(processor.grounding_inputs([image, image.rotate(180)]))
        outputs = encoder.decode(pyramid, prompts, images)
        permuted = encoder.decode(pyramid, prompts[order], images[order])
    for output, other in zip(outputs, permuted, strict=True):
        close(other, output[order])
    masks = outputs[0]
    assert min((masks[i] - masks[j]).abs().max() for i in range(4) for j in range(i)) > 1e-3


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


def test_the_mask_of_the_highest_predicted_iou_is_taken(tiny, image):
    model, processor = tiny
    with torch.no_grad():
        features = model.encode(**encode_arguments(make_batch(processor, [([image], QUESTION, TWO_OBJECTS)])))
        for favourite in range(3):
            # Token 0 is that of the single mask, which is never asked for.
            model.grounding_encoder.mask_decoder.iou_prediction_head.layers[-1].bias.copy_(
                torch.tensor([20.0, *(5.0 * (index == favourite) for index in range(3))])
            )
            candidates, ious = model.decode_candidates(features)
            mask_logits, scores = model.decode_masks(features)
            close(mask_logits, candidates[:, favourite])
            close(scores, ious[:, favourite])


def test_clips_and_text_only_rows(any_tiny, image):
    model, processor = any_tiny
    frames = [image, image.rotate(180)]
    rows = [(frames, QUESTION, TWO_OBJECTS), ([], "What is [SEG]?", "A token."), ([image], QUESTION, "Sure, [SEG].")]
    with torch.no_grad():
        output = model(**make_batch(processor, rows))
        assert output.row_index.tolist() == [0, 0, 0, 0, 2] and len(output.seg_states) == 4
        # [SEG] by [SEG], and within it image by image
        features = model.encode(**encode_arguments(make_batch(processor, rows)))
        assert features.seg_index.tolist() == [0, 0, 1, 1, 3]
        assert features.image_index.tolist() == [0, 1, 0, 1, 2]
        clip = model(**make_batch(processor, rows[:1]))
        close(output.mask_logits[:4], clip.mask_logits)
        close(output.mask_logits[4:], model(**make_batch(processor, rows[2:])).mask_logits)
        for seg in range(2):
            for frame in range(2):
                prompt = model.text_hidden_fcs(clip.seg_states[seg : seg + 1])
                pyramid = model.grounding_encoder.encode(processor.grounding_inputs(frames[frame : frame + 1]))
                masks, ious, _ = model.grounding_encoder.decode(pyramid, prompt, torch.tensor([0]))
                close(clip.mask_logits[2 * seg + frame], masks[0, ious[0].argmax()])


def test_an_image_is_encoded_once(tiny, image):
    model, processor = tiny
    sizes = []
    model.grounding_encoder.sam2_model.image_encoder.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    model.segment(images=[image, image], text=QUESTION, processor=processor, answer=[TWO_OBJECTS * 2, "[SEG]"])
    assert sizes == [2]


def test_evaluating_text_runs_no_sam(tiny):
    model, processor = tiny
    model.grounding_encoder.sam2_model.register_module("image_encoder", None)
    model.grounding_encoder.sam2_model.register_module("sam_mask_decoder", None)
    with torch.no_grad():
        output = model(**make_batch(processor, [([], "Hello [SEG].", "Hello.")]))
    size = model.config.grounding_config.mask_size
    assert output.mask_logits.shape == (0, size, size) and output.loss.isfinite()


# Files


@pytest.mark.parametrize(
    ("auto", "tied", "family"),
    [
        (AutoModelForImageTextToText, False, "internvl"),
        (AutoModelForCausalLM, False, "internvl"),
        (Sa2VAForConditionalGeneration, True, "internvl"),
        *[(Sa2VAForConditionalGeneration, tied, name) for name in SUPPORTED_VLMS[1:] for tied in (False, True)],
    ],
)
def test_round_trip(auto, tied, family, tmp_path, image):
    model, processor = tiny_sa2va(image_size=128, seed=1, tie_word_embeddings=tied, family=family)
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(model.state_dict()) - ({"vlm.lm_head.weight"} if tied else set())
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is Sa2VAConfig and config.tie_word_embeddings is tied
    assert config.grounding_config.to_dict() == model.config.grounding_config.to_dict()

    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is Sa2VAForConditionalGeneration and not loaded.training
    assert not any(report.values()), report
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tied
    # SAM 2 keeps constants as plain attributes, which no checkpoint holds.
    for module, twin in zip(model.modules(), loaded.modules(), strict=True):
        for name, value in vars(module).items():
            assert not isinstance(value, torch.Tensor) or torch.equal(getattr(twin, name), value), name

    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded_processor) is Sa2VAProcessor
    arguments = {"image": image, "text": QUESTION, "answer": TWO_OBJECTS}
    assert_same(
        loaded.segment(**arguments, processor=loaded_processor), model.segment(**arguments, processor=processor)
    )


def test_bfloat16_and_attention_implementations(any_tiny, tmp_path, image):
    model, processor = any_tiny
    tower = "vision_tower" if model.config.vlm_config.model_type == "internvl" else "visual"
    model.save_pretrained(tmp_path)
    arguments = {"image": image, "text": QUESTION, "processor": processor, "answer": TWO_OBJECTS}
    expected = model.segment(**arguments)
    for implementation in ("sdpa", "eager"):
        loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=implementation)
        for part in (loaded.vlm.model.language_model, loaded.vlm.model.get_submodule(tower)):
            assert part.config._attn_implementation == implementation
        assert_same(loaded.segment(**arguments), expected)

    half = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == (torch.float32 if name == POSITION_ENCODING else torch.bfloat16), name
    assert torch.equal(half.state_dict()[POSITION_ENCODING], model.state_dict()[POSITION_ENCODING])
    rounded = half.segment(**arguments)
    assert_float32(rounded)
    scale = expected.mask_logits.abs().max()
    assert (rounded.mask_logits - expected.mask_logits).abs().max() < 0.1 * scale


@pytest.mark.parametrize("answer", ["None.", TWO_OBJECTS])
def test_conversion_to_bfloat16(answer, any_tiny, image):
    """As Trainer does it with `bf16_full_eval`."""
    model, processor = any_tiny
    expected = model.state_dict()[POSITION_ENCODING].clone()
    model.to(torch.bfloat16)
    assert_float32(model.segment(image=image, text=QUESTION, processor=processor, answer=answer))
    assert torch.equal(model.state_dict()[POSITION_ENCODING], expected)


def test_a_generated_image_token_does_no_harm(any_tiny, image):
    """Nothing keeps an untrained model from writing one."""
    model, processor = any_tiny
    head = model.vlm.lm_head
    head.weight.data.zero_()
    head.bias = torch.nn.Parameter(torch.eye(head.out_features)[processor.image_token_id])
    assert len(model.segment(image=image, text=QUESTION, processor=processor, max_new_tokens=3).masks) == 0


# Gradients


def test_a_frozen_image_encoder_runs_without_a_graph(tiny, image):
    model, processor = tiny
    model.train()
    model.grounding_encoder.sam2_model.image_encoder.requires_grad_(False)
    batch = make_batch(processor, [([image], QUESTION, TWO_OBJECTS)])
    features = model.encode(**encode_arguments(batch))
    assert not any(level.requires_grad for level in features.pyramid)
    mask_logits, _ = model.decode_masks(features)
    mask_logits.square().sum().backward()
    decoder = model.grounding_encoder.mask_decoder
    for part in (decoder.conv_s0, decoder.conv_s1, model.text_hidden_fcs[0], model.text_hidden_fcs[2]):
        assert part.weight.grad.abs().max() > 0
    for part in (model.vlm.model.language_model, model.vlm.model.multi_modal_projector):
        assert all(parameter.grad.abs().max() > 0 for parameter in part.parameters())
    assert model.vlm.lm_head.weight.grad is None  # masks do not depend on the words' logits

    model.grounding_encoder.sam2_model.image_encoder.requires_grad_(True)
    assert all(level.requires_grad for level in model.encode(**encode_arguments(batch)).pyramid)
    with torch.no_grad():
        assert not any(level.requires_grad for level in model.encode(**encode_arguments(batch)).pyramid)


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
@pytest.mark.parametrize(
    ("reentrant", "seg_state"), [(False, "normed"), (True, "normed"), (False, "raw"), (True, "raw")]
)
def test_gradient_checkpointing(reentrant, seg_state, family, image):
    # Of each part a module whose runs show whether it is computed again.
    parts = {
        "vlm.model.language_model.layers.0.mlp": 2,
        {"internvl": "vlm.model.vision_tower.encoder.layer.0.mlp"}.get(family, "vlm.model.visual.blocks.0.mlp"): 1,
        "grounding_encoder.sam2_model.image_encoder.trunk.blocks.0.mlp": 1,
        "grounding_encoder.sam2_model.sam_mask_decoder.transformer": 1,
    }
    gradients = []
    for checkpointing in (False, True):
        model, processor = tiny_sa2va(image_size=128, family=family)
        model.config.seg_state = seg_state
        freeze_all_but_full(model)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        runs = []
        for name in parts:
            model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name, runs=runs: runs.append(name))
        output = model.train()(**make_batch(processor, [([image], QUESTION, TWO_OBJECTS)]))
        (output.loss + output.mask_logits.square().mean()).backward()
        assert {name: runs.count(name) for name in parts} == (parts if checkpointing else dict.fromkeys(parts, 1))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, tolerance=1e-6)
    model.activation_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("with_image", [False, True])
def test_a_batch_without_seg_reaches_every_trainable_parameter(with_image, any_tiny, image):
    model, processor = any_tiny
    freeze_all_but_full(model)
    model.train()
    output = model(**make_batch(processor, [([image] * with_image, "Hello.", "Hello.")]))
    assert len(output.mask_logits) == len(output.iou_scores) == 0 and output.loss.isfinite()
    output.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    for part in (model.text_hidden_fcs, model.grounding_encoder):
        assert all(p.grad.abs().max() == 0 for p in part.parameters() if p.requires_grad)
    # What runs for form's sake changes neither the loss nor the logits.
    model.eval()
    with torch.no_grad():
        close(model(**make_batch(processor, [([image] * with_image, "Hello.", "Hello.")])).logits, output.logits)


# The language half's outputs


def test_loss_and_kept_logits(tiny, image):
    model, processor = tiny
    rows = [([image], QUESTION, TWO_OBJECTS), ([image], QUESTION, "Sure, [SEG].")]
    batch = make_batch(processor, rows)
    with torch.no_grad():
        output = model(**batch)
        expected = ForCausalLMLoss(output.logits, batch["labels"], model.config.text_config.vocab_size)
        close(output.loss, expected, tolerance=1e-6)
        native = model.vlm(**{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "labels")})
        close(output.logits, native.logits)
        # As many positions as answers need: the one before each label and the labels.
        last = batch["labels"].shape[1] - torch.nonzero((batch["labels"] != -100).any(0))[0].item() + 1
        needed = torch.nonzero((batch["labels"] != -100).any(0))[:, 0] - 1
        for keep, positions in ((last, slice(-last, None)), (needed, needed)):
            kept = model(**batch, logits_to_keep=keep)
            close(kept.logits, output.logits[:, positions])
            close(kept.loss, output.loss, tolerance=1e-6)
            close(kept.mask_logits, output.mask_logits)


NATIVE_PROCESSORS = {
    "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
    "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
}


@pytest.mark.parametrize("family", NATIVE_PROCESSORS)
def test_qwen_equals_its_own_processor_and_model(family, image):
    """What transformers' own processor makes of the same text and images, and its own model of that."""
    model, processor = tiny_sa2va(image_size=128, max_patches=4, family=family)
    model.eval()
    native_class, video_class = NATIVE_PROCESSORS[family]
    native_processor = native_class(processor.image_processor, processor.tokenizer, video_class())
    rows = [
        ([image, image.rotate(90, expand=True)], QUESTION, TWO_OBJECTS),
        ([], "Hello.", "Hello."),
        ([image.resize((50, 160))], "Vessel?", "Sure, [SEG]."),
    ]
    block = "<|vision_start|><|image_pad|><|vision_end|>\n"
    native = native_processor(
        images=[group for group, _, _ in rows if group],
        text=[
            f"<|im_start|>user\n{block * len(group)}{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
            for group, question, answer in rows
        ],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    batch = make_batch(processor, rows)
    for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"):
        assert torch.equal(batch[name], native[name]), name
    seen = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = model.vlm(**native, output_hidden_states=True)
        close(model(**batch).logits[seen], expected.logits[seen])
        pixels = vlm_pixels(batch)
        states = model.hidden_states(batch["input_ids"], batch["attention_mask"], **pixels)
        close(states[seen], expected.hidden_states[-1][seen])
        # The test would say nothing if positions on the grid did not matter.
        native["mm_token_type_ids"] = torch.zeros_like(native["mm_token_type_ids"])
        assert (model.vlm(**native).logits - expected.logits)[seen].abs().max() > 1e-3

    prompt = native_processor(images=[image], text=f"{block}Vessel?", return_tensors="pt")
    own = {name: prompt[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    how = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    written, expected = model.generate(**own, **how), model.vlm.generate(**prompt, **how)
    assert torch.equal(written.sequences, expected.sequences)
    close(torch.stack(written.logits), torch.stack(expected.logits))


# What raises


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processor": None}, "processor"),
        ({"image": None}, "either `image` or `images`"),
        ({"images": [Image.new("RGB", (8, 8))]}, "either `image` or `images`"),
        ({"image": None, "images": []}, "`images` is empty"),
        ({"image": "picture.png"}, "Image 0 must be a PIL image, got str"),
        ({"image": Image.new("I;16", (8, 8))}, "Image 0 has more than 8 bits a channel"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"text": ["a", "b"]}, "1 images, 2 texts and 1 answers"),
        ({"answer": ["a", "b"]}, "1 images, 1 texts and 2 answers"),
        ({"text": "<image> and <image>"}, "<image> may stand once"),
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


def test_images_without_counts_must_pair_with_rows(tiny, image):
    model, processor = tiny
    batch = make_batch(processor, [([image], QUESTION, TWO_OBJECTS), ([image], QUESTION, TWO_OBJECTS)])
    with torch.no_grad():
        counted = model(**batch).mask_logits
        close(model(**{**batch, "image_counts": None}).mask_logits, counted)
        with pytest.raises(ValueError, match="3 grounding images for 2 rows: pass `image_counts`"):
            pixels = batch["grounding_pixel_values"][[0, 1, 1]]
            model(**{**batch, "image_counts": None, "grounding_pixel_values": pixels})


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (Sa2VAConfig, {"vlm_config": {"model_type": "qwen2_vl"}}, "'qwen2_vl'; supported are internvl"),
        (Sa2VAConfig, {"prompt_template": "vicuna"}, "prompt_template must be one of qwen_chat"),
        (Sa2VAConfig, {"seg_state": "norm"}, "seg_state must be one of normed, raw, got 'norm'"),
        (Sa2VAConfig, {"mask_threshold": 1.0}, "mask_threshold must lie between 0 and 1"),
        (Sa2VAGroundingConfig, {"image_size": 200}, "image_size must be a multiple of 32, got 200"),
        (Sa2VAGroundingConfig, {"hidden_dim": 40}, "hidden_dim must be a multiple of 32, got 40"),
        (Sa2VAGroundingConfig, {"sam2_version": "3"}, "sam2_version must be '2.0' or '2.1', got '3'"),
    ],
)
def test_configs_refuse(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


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


# Other sizes and families


SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}


@pytest.mark.parametrize("text_config", [Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("sam2_version", ["2.0", "2.1"])
def test_other_language_models_vision_towers_and_sam_versions(text_config, sam2_version, tiny, image, tmp_path):
    base, processor = tiny
    vision = {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False}  # as in InternViT-6B
    config = base.config.to_dict()
    config["vlm_config"]["vision_config"].update(vision)
    config["vlm_config"]["text_config"] = text_config(vocab_size=len(processor.tokenizer), **SIZES).to_dict()
    config["grounding_config"]["sam2_version"] = sam2_version
    model = Sa2VAForConditionalGeneration(Sa2VAConfig(**config)).eval()
    assert type(model.vlm.model.language_model.config) is text_config
    names = model.state_dict().keys()
    assert any("attention.q_norm" in name for name in names)
    assert not any(
        "vision_tower" in name and name.endswith(("q_proj.bias", "layernorm_before.bias")) for name in names
    )
    for part in ("no_obj_embed_spatial", "obj_ptr_tpos_proj"):
        assert any(part in name for name in names) is (sam2_version == "2.1")

    model.save_pretrained(tmp_path)
    loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.grounding_config.sam2_version == sam2_version
    arguments = {"image": image, "text": QUESTION, "processor": processor, "answer": TWO_OBJECTS}
    result = model.segment(**arguments)
    assert result.mask_logits.isfinite().all() and result.mask_logits.std() > 0
    assert_same(loaded.segment(**arguments), result)


def published_config(text_config, hidden, layers, heads, key_values, intermediate, vocabulary, vision, **grounding):
    return Sa2VAConfig(
        vlm_config=InternVLConfig(
            vision_config=InternVLVisionConfig(**vision),
            text_config=text_config(
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=key_values,
                intermediate_size=intermediate,
                vocab_size=vocabulary,
                tie_word_embeddings=False,
            ),
            tie_word_embeddings=False,
        ),
        grounding_config=Sa2VAGroundingConfig(**grounding),
    )


def count(model, *prefixes):
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith(prefixes))


VIT_300M = {"attention_bias": True}
VIT_6B = {
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "use_qk_norm": True,
    "norm_type": "rms_norm",
}
SAM2 = 224_430_130


def test_published_size():
    """Sa2VA-InternVL3-8B, with the parameter total that its own index file states."""
    with torch.device("meta"):
        model = Sa2VAForConditionalGeneration(published_config(Qwen2Config, 3584, 28, 28, 4, 18944, 151679, VIT_300M))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert count(model, "") == 8_182_606_130
    sam2 = model.grounding_encoder.sam2_model
    assert len(sam2.state_dict()) == 900 and count(sam2, "") == SAM2
    assert {part: count(module, "") for part, module in sam2.named_children()} == {
        "image_encoder": 212_703_280,
        "mask_downsample": 17,
        "memory_attention": 5_922_304,
        "memory_encoder": 1_384_608,
        "sam_prompt_encoder": 6_220,
        "sam_mask_decoder": 4_215_109,
        "obj_ptr_proj": 197_376,
        "obj_ptr_tpos_proj": 0,
    }
    assert count(model, "text_hidden_fcs.", "grounding_encoder.sam2_model.sam_mask_decoder.") == 17_981_509


@pytest.mark.parametrize(
    ("sizes", "total"),
    [
        ((Qwen2Config, 896, 24, 14, 2, 4864, 151679, VIT_300M), 1_163_665_458),  # Sa2VA-1B
        ((LlamaConfig, 4096, 32, 32, 8, 14336, 92558, VIT_300M), 8_317_666_610),  # Sa2VA-8B
        ((LlamaConfig, 6144, 48, 48, 8, 16384, 92558, VIT_6B), 25_778_005_682),  # Sa2VA-26B
    ],
)
def test_other_published_sizes(sizes, total):
    # All hold the same SAM 2, which only the test above builds at its own size.
    small = {"embed_dim": 24, "stages": (1, 1, 1, 1), "global_att_blocks": (2,), "decoder_mlp_dim": 64}
    with torch.device("meta"):
        model = Sa2VAForConditionalGeneration(published_config(*sizes, **small))
    assert count(model, "vlm.", "text_hidden_fcs.") + SAM2 == total


QWEN2_5_VISION = {"hidden_size": 1280, "depth": 32, "num_heads": 16, "intermediate_size": 3420}
QWEN3_VISION = {
    "hidden_size": 1024,
    "depth": 24,
    "num_heads": 16,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}


@pytest.mark.parametrize(
    ("kind", "vision", "hidden", "layers", "heads", "key_values", "intermediate", "vocabulary", "total"),
    [
        (Qwen2_5_VLConfig, QWEN2_5_VISION, 2048, 36, 16, 2, 11008, 151670, 4_064_698_368),  # Qwen2.5-VL-3B
        (Qwen2_5_VLConfig, QWEN2_5_VISION, 3584, 28, 28, 4, 18944, 151670, 8_289_342_464),  # Qwen2.5-VL-7B
        (Qwen3VLConfig, QWEN3_VISION, 2560, 36, 32, 8, 9728, 151674, 4_825_430_528),  # Qwen3-VL-4B
    ],
)
def test_published_qwen_sizes(kind, vision, hidden, layers, heads, key_values, intermediate, vocabulary, total):
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
    }
    config = Sa2VAConfig(
        vlm_config=kind(
            vision_config={**vision, "out_hidden_size": hidden}, text_config=text, tie_word_embeddings=False
        ),
        grounding_config=tiny_sa2va(image_size=128)[0].config.grounding_config,
    )
    with torch.device("meta"):
        model = Sa2VAForConditionalGeneration(config)
    assert all(parameter.is_meta for parameter in model.vlm.parameters())
    assert count(model, "vlm.") == total
    assert (
        count(model, "text_hidden_fcs.") == (hidden + 1) * hidden + (hidden + 1) * config.grounding_config.hidden_dim
    )


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
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda ids, *args, **kwargs: seen.append(ids) or encode(ids, *args, **kwargs))
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


def test_nothing_to_segment_and_unknown_roles_are_refused(tiny):
    model, processor = tiny
    with pytest.raises(ValueError, match="With `answer` nothing is generated, so max_new_token have no effect"):
        model.segment(image=Image.new("RGB", (8, 8)), answer="[SEG]", processor=processor, max_new_token=4)
    with pytest.raises(ValueError, match="`images` is empty"):
        model.segment(images=[], text="x", processor=processor)
    with pytest.raises(ValueError, match="role must be system, user or assistant, got 'tool'"):
        processor.encode_chat([{"role": "tool", "content": "x"}], [])
