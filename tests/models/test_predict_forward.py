"""`predict_forward`: the calls of official scripts, on small checkpoints in the published layout."""

import copy
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import tiny_family
from official_scripts import load_as_the_demo, load_as_the_model_card, without_a_gpu, write_published, written
from PIL import Image
from test_tokenization import write_phi3
from transformers import AutoTokenizer

from sa2va_trl import Sa2VAProcessor, tiny_sa2va
from sa2va_trl.models.predict_forward import official_processor
from sa2va_trl.models.published import published_config
from sa2va_trl.models.templates import QWEN2_5_OPENING
from sa2va_trl.models.tokenization import load_tokenizer


REQUEST = "<image>Please segment the blood vessel."


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of the tiny network, with the package's weights."""
    return write_published(tmp_path_factory.mktemp("published") / "Sa2VA-tiny")


@pytest.fixture(scope="module")
def internvl(published):
    """The model, as the official demo loads it, and what that hands over with it."""
    return load_as_the_demo(published)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def qwen(request, tmp_path_factory):
    """The same of the other families."""
    return load_as_the_demo(write_published(tmp_path_factory.mktemp("published") / "Sa2VA-Qwen", request.param))


@pytest.fixture(scope="module", params=["internvl", "qwen2_5_vl", "qwen3_vl"])
def any_family(request):
    """A tiny model of each family and its own processor, which shows it fewer pixels than the official code would."""
    model, processor = tiny_sa2va(image_size=128, family=request.param)
    return model.eval(), processor


def frames_of(image, count=7):
    """A clip in which all moves."""
    pixels = np.asarray(image)
    return [Image.fromarray(np.roll(pixels, 3 * index, axis=1)) for index in range(count)]


def prompt_of(seen, tokenizer):
    """The latest prompt as text, with runs of image tokens counted."""
    text = tokenizer.decode(seen[-1]["input_ids"][0])
    return re.sub(r"(?:<IMG_CONTEXT>|<\|image_pad\|>)+", lambda run: f"({len(re.findall('<[^>]+>', run[0]))})", text)


def turn(question, answer=""):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}"


@pytest.mark.parametrize("load", [load_as_the_model_card, load_as_the_demo])
def test_scripts_run_as_they_are(published, load, image, monkeypatch):
    without_a_gpu(monkeypatch)
    model, given = load(published)
    for name, pictures, shape in (("image", image, (1, 60, 100)), ("video", frames_of(image), (7, 60, 100))):
        request = {name: pictures, "text": REQUEST, "past_text": "", "mask_prompts": None, **given}
        result = model.predict_forward(**request)
        assert list(result) == ["prediction", "prediction_masks"]
        assert re.fullmatch(r"Sure.*\[SEG\]\.<\|im_end\|>", result["prediction"])
        assert len(result["prediction_masks"]) == result["prediction"].count("[SEG]")
        for mask in result["prediction_masks"]:
            assert isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == shape
    result = model.predict_forward(text="<image>Hello!", **given)
    assert result["prediction"].endswith("<|im_end|>") and result["prediction_masks"] == []


def test_scripts_for_qwen_run_as_they_are(qwen, image, monkeypatch):
    model, given = qwen
    tokenizer = given["processor"].tokenizer
    seen = written(monkeypatch, model, tokenizer, *["It is [SEG] and [SEG]."] * 2, "Hello!")
    opening = "" if model.config.vlm_config.model_type == "qwen3_vl" else QWEN2_5_OPENING
    block = "<|vision_start|>(N)<|vision_end|>"
    for name, pictures, shape in (("image", image, (1, 60, 100)), ("video", frames_of(image, 3), (3, 60, 100))):
        result = model.predict_forward(**{name: pictures}, text=REQUEST, **given)
        assert result["prediction"] == "It is [SEG] and [SEG].<|im_end|>"
        assert [(mask.shape, mask.dtype) for mask in result["prediction_masks"]] == [(shape, bool)] * 2
        asked = turn(block * shape[0] + "Please segment the blood vessel.")
        assert re.sub(r"\(\d+\)", "(N)", prompt_of(seen, tokenizer)) == opening + asked
    result = model.predict_forward(text=REQUEST, **given)
    assert result == {"prediction": "Hello!<|im_end|>", "prediction_masks": []}
    assert prompt_of(seen, tokenizer) == opening + turn("Please segment the blood vessel.")


def test_prompts_are_those_of_the_official_arithmetic(internvl, image, monkeypatch):
    """The text as the caller wrote it, no newline added, and five frames of a clip."""
    model, given = internvl
    tokenizer = given["tokenizer"]
    seen = written(monkeypatch, model, tokenizer, "No.", "No.", "No.")
    # Two grids of 224 pixels, and all of it once more.
    model.predict_forward(image=image.resize((440, 220)), text="Where in <image> is it?", **given)
    assert prompt_of(seen, tokenizer) == turn("Where in <img>(192)</img> is it?")
    model.predict_forward(video=frames_of(image), text=REQUEST, **given)
    frames = "\n".join(["<img>(64)</img>"] * 5)
    assert prompt_of(seen, tokenizer) == turn(f"{frames}Please segment the blood vessel.")
    first = official_processor(model.config, tokenizer).tiles(frames_of(image, 5), clip=True)[0]["pixel_values"]
    assert torch.equal(seen[-1]["pixel_values"], first)
    model.predict_forward(text="<image>Hello, <image>you!", **given)
    assert prompt_of(seen, tokenizer) == turn("Hello, you!")
    for asked in seen:
        assert asked["max_new_tokens"] == 2048 and not asked["do_sample"]


@pytest.mark.parametrize("kind", ["image", "video", "text"])
def test_earlier_turns_stand_in_the_prompt_as_they_were(any_family, image, monkeypatch, kind):
    """Written by hand, with the tokens of the image or `<image>` in its place."""
    model, processor = any_family
    own, tokenizer = official_processor(model.config, processor), processor.tokenizer
    seen = written(monkeypatch, model, tokenizer, "First [SEG].", "Then [SEG] and [SEG].", "So [SEG] it.")
    pictures = {"image": {"image": image}, "video": {"video": frames_of(image, 6)}, "text": {}}[kind]
    request = {**pictures, "processor": processor}

    def asked():
        return tokenizer.decode(seen[-1]["input_ids"][0])

    first = model.predict_forward(text="<image>Where is it?", **request)["prediction"]
    prompt = asked()
    past = prompt.removeprefix(own.official_opening or "") + first
    second = model.predict_forward(text="And the other?", past_text=past, **request)
    assert asked() == f"{prompt}{first}\n{turn('And the other?')}"
    assert len(second["prediction_masks"]) == (2 if pictures else 0)
    # As a script may have noted it down: a newline behind an answer, another without its end.
    past = turn("<image>Where is it?" if pictures else "Where is it?", first + "\n")
    past += turn("And the other?", "Then [SEG] and [SEG].")
    third = model.predict_forward(text="Thanks.", past_text=past, **request)
    assert asked() == f"{prompt}{first}\n{turn('And the other?', second['prediction'])}\n{turn('Thanks.')}"
    if not pictures:
        return
    said = ("<image>Where is it?", "First [SEG].", "And the other?", "Then [SEG] and [SEG].", "Thanks.")
    dialogue = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]
    options = {"frame_policy": "first"} if kind == "video" else {}
    expected = model.chat(dialogue, processor=own, answer="So [SEG] it.", **pictures, **options).result.masks[0]
    assert np.array_equal(third["prediction_masks"][0], expected.numpy().reshape(-1, 60, 100))


@pytest.mark.parametrize("form", ["array", "list", "floats"])
def test_regions_as_official_scripts_give_them(internvl, image, monkeypatch, form):
    model, given = internvl
    masks = np.zeros((2, 60, 100), dtype=np.uint8)
    masks[0, 10:30, 20:70], masks[1, :, 50:] = 1, 255
    mask_prompts = {"array": masks, "list": [masks], "floats": [masks.astype(np.float64) / 255]}[form]
    seen = written(monkeypatch, model, given["tokenizer"], "region1 is [SEG].")
    text = "<image>What is region1?"
    result = model.predict_forward(image=image, text=text, mask_prompts=mask_prompts, **given)
    # (Every eighth of a side of the image has a cell, and the nearest pixel decides: the official arithmetic.)
    first, second = (F.interpolate(torch.tensor(mask)[None, None], size=(8, 8)).bool().sum().item() for mask in masks)
    clause = f"There are 2 part regions in the picture: region1<vp>({first})</vp>, region2<vp>({second})</vp>."
    asked = turn(f"<img>(448)</img>\n{clause}\nWhat is region1?")
    assert prompt_of(seen, given["tokenizer"]) == asked
    own = official_processor(model.config, given["tokenizer"])
    expected = model.segment(image=image, text=text, regions=list(masks), processor=own, answer="region1 is [SEG].")
    assert np.array_equal(result["prediction_masks"], expected.masks[:, None])


def test_several_images_share_the_arrays(internvl, image, monkeypatch):
    model, given = internvl
    seen = written(monkeypatch, model, given["tokenizer"], "Here [SEG] and there [SEG].")
    result = model.predict_forward(image=frames_of(image, 2), text="<image>Where?", **given)
    assert prompt_of(seen, given["tokenizer"]) == turn("<img>(448)</img>\n<img>(448)</img>Where?")
    assert [mask.shape for mask in result["prediction_masks"]] == [(2, 60, 100)] * 2


def test_an_answer_that_is_cut_has_no_end_marker(internvl, image, monkeypatch):
    """(At 2048 tokens; here at three.)"""
    model, given = internvl
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *args, **kwargs: generate(*args, **{**kwargs, "max_new_tokens": 3}))
    result = model.predict_forward(image=image, text=REQUEST, **given)
    assert result["prediction"].startswith("Sure") and "<|im_end|>" not in result["prediction"]


def test_what_the_config_says_of_masks_and_clips_changes_nothing(internvl, image, monkeypatch):
    model, given = internvl
    frames = frames_of(image)
    requests = [{"image": image, "text": REQUEST, **given}, {"video": frames, "text": REQUEST, **given}]
    plain = [model.predict_forward(**request) for request in requests]
    for name, value in {
        "mask_threshold": 0.99,
        "mask_temperature": 3.0,
        "mask_postprocessing": {"closing_radius": 3, "min_size": 500},
        "frame_policy": "uniform",
        "num_frames": 2,
        "tracking": "mask_prompt",
    }.items():
        monkeypatch.setattr(model.config, name, value)
    for request, before in zip(requests, plain, strict=True):
        after = model.predict_forward(**request)
        assert after["prediction"] == before["prediction"]
        assert np.array_equal(after["prediction_masks"], before["prediction_masks"])
    result = model.segment(
        image=image, text=REQUEST, processor=Sa2VAProcessor.from_pretrained(model.config._name_or_path)
    )
    assert not np.array_equal(result.masks, np.concatenate(plain[0]["prediction_masks"]))


def test_tokenizer_and_processor_say_the_same(internvl, qwen, published, image):
    model, given = internvl
    expected = model.predict_forward(image=image, text=REQUEST, **given)["prediction_masks"]
    own = Sa2VAProcessor.from_pretrained(published)
    found = model.predict_forward(image=image, text=REQUEST, processor=own)["prediction_masks"]
    assert np.array_equal(found, expected)

    model, given = qwen
    native = Sa2VAProcessor.from_pretrained(model.config._name_or_path)
    made = [
        official_processor(model.config, each) for each in (given["processor"], given["processor"].tokenizer, native)
    ]
    assert native.prompt_style == "training"  # it is not changed
    for processor in made:
        assert processor.prompt_style == "official"
        assert processor.official_opening == native.official_opening
        pixels, blocks = processor.tiles([image])
        assert blocks == made[0].tiles([image])[1]
        assert torch.equal(pixels["pixel_values"], made[0].tiles([image])[0]["pixel_values"])


def test_llamas_tokenizer_is_read_as_it_was_trained(tmp_path):
    """(AutoTokenizer of transformers 5 builds another one.)"""
    write_phi3(tmp_path / "model", legacy=True)
    load_tokenizer(tmp_path / "model").save_pretrained(tmp_path)
    write_phi3(tmp_path, legacy=False)  # as beside InternVL2-4B: it says another thing than the file does
    (tmp_path / "tokenizer.model").unlink()
    model, _ = tiny_family("phi3")
    config = copy.deepcopy(model.config)
    wanted = load_tokenizer(tmp_path)
    config.seg_token_id, config.vlm_config.image_token_id = wanted.convert_tokens_to_ids(["[SEG]", "<IMG_CONTEXT>"])
    (tmp_path / "config.json").write_text(json.dumps(published_config(config, torch.float32)))
    given = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>\n<img></img>segment<|end|>\n<|assistant|>\nSure, [SEG]."
    assert given(text).input_ids != wanted(text).input_ids
    assert official_processor(config, given).tokenizer(text).input_ids == wanted(text).input_ids


def test_sa2va_i_spreads_its_frames_and_says_which(tmp_path, image, monkeypatch):
    model, given = load_as_the_demo(write_published(tmp_path / "Sa2VA-i", "sa2va_i"))
    written(monkeypatch, model, given["tokenizer"], *["Sure, [SEG]."] * 3)
    result = model.predict_forward(video=frames_of(image), text=REQUEST, **given)
    assert result["sample_idx"] == [0, 1, 3, 4, 6]
    own = Sa2VAProcessor.from_pretrained(tmp_path / "Sa2VA-i")
    expected = model.segment(
        video=frames_of(image), text=REQUEST, processor=own, answer="Sure, [SEG].", tracking="mask_prompt"
    )
    assert np.array_equal(result["prediction_masks"], expected.masks)
    result = model.predict_forward(video=frames_of(image, 3), text=REQUEST, sample_num_frames=2, **given)
    assert result["sample_idx"] == [0, 2]
    assert "sample_idx" not in model.predict_forward(image=image, text=REQUEST, **given)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"text": None}, "needs `text`"),
        ({"tokenizer": None}, "needs `tokenizer`, as AutoTokenizer"),
        ({"tokenizer": "Sa2VA-4B"}, "got str"),
        ({"text": "Where?"}, r"as in '<image>Where\?'"),
        ({"text": "<image><image>"}, "<image>"),
        ({"image": ["a.png", "b.png"]}, "no file a.png"),
        ({"image": [Image.new("L", (9, 8)), Image.new("L", (8, 8))]}, r"differ in size here \(8 x 8, 9 x 8\)"),
        ({"video": ["a.png"]}, "`image` or `video`, not both"),
        ({"sample_num_frames": 3}, "of videos and Sa2VA-i"),
        ({"text": "<image><|im_end|>"}, r"holds <\|im_end\|>"),
        ({"past_text": "USER: Where?"}, r"turns as the prompt template wraps them.*got 'USER: Where\?'"),
        ({"past_text": turn("<img><IMG_CONTEXT></img>Where?", "Here.")}, "stands in `past_text` already"),
        ({"image": None, "past_text": turn("<image>Where?", "Here.")}, "speaks of an image"),
        ({"mask_prompts": np.ones((1, 60, 100)), "past_text": turn("Hello!", "Yes?")}, "in the first turn"),
        ({"mask_prompts": np.ones((60, 100))}, r"shape \(regions, H, W\)"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(internvl, image, monkeypatch, request_, message):
    model, given = internvl
    seen = written(monkeypatch, model, given["tokenizer"])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        model.predict_forward(**{"image": image, "text": REQUEST, **given, **request_})
    assert not seen


def test_the_tokenizer_of_another_model_is_refused(internvl, qwen, image):
    for (model, _), (_, given) in ((internvl, qwen), (qwen, internvl)):
        with pytest.raises(ValueError, match="of another model: .* Load it from"):
            model.predict_forward(image=image, text=REQUEST, **given)
