import pytest
import torch
from conversations import (
    QUESTION,
    TWO_OBJECTS,
    assert_float32,
    assert_same,
    close,
    encode_arguments,
    forced,
    make_batch,
    vlm_pixels,
)
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
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


POSITION_ENCODING = "grounding_encoder.sam2_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


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


def test_images_without_counts_must_pair_with_rows(tiny, image):
    model, processor = tiny
    batch = make_batch(processor, [([image], QUESTION, TWO_OBJECTS), ([image], QUESTION, TWO_OBJECTS)])
    with torch.no_grad():
        counted = model(**batch).mask_logits
        close(model(**{**batch, "image_counts": None}).mask_logits, counted)
        with pytest.raises(ValueError, match="3 grounding images for 2 rows: pass `image_counts`"):
            pixels = batch["grounding_pixel_values"][[0, 1, 1]]
            model(**{**batch, "image_counts": None, "grounding_pixel_values": pixels})


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


# One way in: what wrappers wrap


def test_forward_refuses_what_it_does_not_know(tiny, image):
    model, processor = tiny
    batch = make_batch(processor, [([image], QUESTION, "[SEG]")])
    idle = {"use_cache": False, "return_dict": True, "inputs_embeds": None, "output_attentions": None}
    with torch.no_grad():
        assert torch.equal(model(**batch, **idle).mask_logits, model(**batch).mask_logits)
    pixels = batch["grounding_pixel_values"]
    for unknown in ({"mask": pixels, "row_numbers": pixels}, {"use_cache": True}, {"inputs_embeds": pixels}):
        with pytest.raises(TypeError, match=f"does not take {', '.join(unknown)}\\."):
            model(**batch, **unknown)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("features", "input_ids"), "stand in for `input_ids`"),
        (("features", "labels"), "stand in for `input_ids`"),
        (("features", "encode_only"), "with `features` it has no effect"),
        (("input_ids", "prompts"), "encode the batch first"),
        (("input_ids", "encode_only", "output_candidates"), "output_candidates has no effect"),
        ((), "needs `input_ids`, or the `features`"),
    ],
)
def test_options_of_forward_that_contradict_each_other(given, message, tiny, image):
    model, processor = tiny
    batch = make_batch(processor, [([image], QUESTION, "[SEG]")])
    with torch.no_grad():
        features = model(**encode_arguments(batch), encode_only=True).features
        values = {**batch, "features": features, "prompts": torch.zeros(1, 64)}
        values |= {"encode_only": True, "output_candidates": True}
        with pytest.raises(ValueError, match=message):
            model(**{name: values[name] for name in given})


def test_candidates_and_masks_of_other_prompts(any_tiny, image):
    model, processor = any_tiny
    batch = make_batch(processor, [([image], QUESTION, TWO_OBJECTS), ([image.rotate(180)], QUESTION, "[SEG]")])
    with torch.no_grad():
        features = model(**encode_arguments(batch), encode_only=True).features
        output = model(features=features, output_candidates=True)
        candidates, ious = model.decode_candidates(features)
        assert torch.equal(output.candidate_logits, candidates) and torch.equal(output.candidate_iou_scores, ious)
        assert torch.equal(output.prompts, model.mask_prompts(features.seg_states)[features.seg_index])
        best = ious.argmax(-1)
        assert torch.equal(output.mask_logits, candidates[torch.arange(3), best])
        assert torch.equal(output.iou_scores, ious.amax(-1))
        plain = model(features=features)
        assert torch.equal(plain.mask_logits, output.mask_logits)
        assert plain.candidate_logits is plain.candidate_iou_scores is plain.prompts is None
        # The same from the whole pass, and from the prompts that were returned, in any order.
        close(model(**batch, output_candidates=True).candidate_logits, candidates)
        assert torch.equal(model(features=features, prompts=output.prompts).mask_logits, output.mask_logits)
        other = model(features=features.repeat(2), prompts=torch.randn(6, 64), output_candidates=True)
        assert other.candidate_logits.shape == (6, 3, 32, 32) and other.row_index.tolist() == [0, 0, 0, 0, 1, 1]
        assert (other.mask_logits[0] - other.mask_logits[1]).abs().max() > 1e-4


@pytest.mark.parametrize("training", [False, True])
def test_no_masks_have_no_candidates_and_a_gradient_all_the_same(training, tiny):
    model, processor = tiny
    model.train(training)
    batch = make_batch(processor, [([], "Hello.", "Hello.")])
    features = model(**encode_arguments(batch), encode_only=True).features
    prompts = torch.zeros(0, 64, requires_grad=True)
    for output in (
        model(features=features, output_candidates=True),
        model(features=features, prompts=prompts, output_candidates=True),
    ):
        assert output.candidate_logits.shape == (0, 3, 32, 32) and output.mask_logits.shape == (0, 32, 32)
        assert output.candidate_iou_scores.shape == (0, 3) and output.prompts.shape == (0, 64)
        # In training every process runs the decoder, and DDP waits for its gradients.
        assert output.mask_logits.requires_grad is training
    assert model.must_run_everything is training


def test_the_mode_reaches_every_module(tiny):
    model, _ = tiny
    deep = model.vlm.model.language_model.layers[0].self_attn.q_proj
    model.register_module("absent", None)
    for mode in (True, False):
        assert model.train(mode) is model and all(module.training is mode for module in model.modules())
        deep.training = not mode  # whatever the model itself says
        assert model.train(mode) is model and deep.training is mode
    model.train()
    assert not model.eval().training and not deep.training
    with pytest.raises(ValueError, match="boolean"):
        model.train("yes")
