"""The Qwen families: the same numbers as the official inference code, whose outputs on rule-made checkpoints were
recorded."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from official_scripts import once, predicted
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor

from sa2va_trl import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_trl.models.grounding import upsample_mask_logits


REQUEST = {"text": "<image>Please segment the yellow line.", "answer": "Sure, [SEG]."}


@dataclass
class Official:
    folder: Path
    wanted: dict
    image: Image.Image
    model: Sa2VAForConditionalGeneration
    processor: Sa2VAProcessor


@pytest.fixture(scope="session", params=["qwen25", "qwen3"])
def official(request, shared, tmp_path_factory):
    """The recordings of a family, and what their checkpoint loads as."""
    folder = shared / "reference" / "qwen"
    checkpoint = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, str(folder / "make_qwen_checkpoint.py"), request.param, str(checkpoint)]
    subprocess.run(command, check=True)
    folder /= request.param
    recorded = load_file(folder / "recordings.safetensors")
    with Image.open(folder / "image_500x375.png") as image:
        image.load()
    model = Sa2VAForConditionalGeneration.from_pretrained(checkpoint)
    model.grounding_encoder.encode = once(model.grounding_encoder.encode)
    yield Official(
        folder,
        {key.removeprefix("image."): value for key, value in recorded.items()},
        image,
        model,
        Sa2VAProcessor.from_pretrained(checkpoint, prompt_style="official"),
    )
    shutil.rmtree(checkpoint)  # a gigabyte


def iou(ours, theirs):
    return ((ours & theirs).sum() / (ours | theirs).sum()).item()


def test_with_the_official_ids_and_pixels(official):
    model, processor, wanted = official.model, official.processor, official.wanted
    with Image.open(official.folder / "official_pixels_image.png") as resized:
        pixels = processor.image_processor(images=[resized], do_resize=False, return_tensors="pt")
    assert torch.equal(pixels["image_grid_thw"], wanted["image_grid_thw"])
    assert (pixels["pixel_values"][::64, ::49] - wanted["pixel_sample"]).abs().max() <= 1e-6
    answer = processor.tokenizer(REQUEST["answer"]).input_ids
    with torch.no_grad():
        features = model.encode(
            torch.cat([wanted["input_ids"], torch.tensor(answer)])[None],
            pixel_values=pixels["pixel_values"],
            image_grid_thw=pixels["image_grid_thw"],
            grounding_pixel_values=processor.grounding_inputs([official.image]),
        )
        assert (features.seg_states - wanted["seg_state"]).abs().max() <= 1e-4
        assert (model.text_hidden_fcs(features.seg_states) - wanted["seg"]).abs().max() <= 1e-4
        low, _ = model.decode_masks(features)
    logits = upsample_mask_logits(low, 1024, (1024, 1024))
    assert (logits[:, ::8, ::8] - wanted["logits0"][:, 0]).abs().max() <= 1e-3
    masks = upsample_mask_logits(low, 1024, official.image.size[::-1]).sigmoid() > 0.5
    assert iou(masks, wanted["mask0"].bool()) >= 0.9999


def test_from_the_picture(official):
    model, processor, wanted = official.model, official.processor, official.wanted
    seen = []
    hook = model.vlm.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with hook:
        result = model.segment(image=official.image, processor=processor, **REQUEST)
    (inputs,) = seen
    prompt = wanted["input_ids"]
    assert torch.equal(inputs["input_ids"][0, : len(prompt)], prompt)
    assert torch.equal(inputs["image_grid_thw"], wanted["image_grid_thw"])
    # (A grey level: PIL's resize in the second step, where the recording has torchvision's.)
    assert (inputs["pixel_values"][::64, ::49] - wanted["pixel_sample"]).abs().max() <= 0.02
    assert (result.mask_logits[:, ::8, ::8] - wanted["logits0"][:, 0]).abs().max() <= 2e-3
    assert iou(result.masks, wanted["mask0"].bool()) >= 0.999


def test_predict_forward(official, monkeypatch):
    model, wanted = official.model, official.wanted
    processor = AutoProcessor.from_pretrained(model.config._name_or_path)  # Qwen's own
    request = {"image": official.image, "text": REQUEST["text"], "processor": processor}
    prediction, result = predicted(monkeypatch, model, REQUEST["answer"], **request)
    assert prediction["prediction"] == "Sure, [SEG].<|im_end|>"
    (mask,) = prediction["prediction_masks"]
    assert mask.shape == tuple(wanted["mask0"].shape)
    assert iou(torch.from_numpy(mask), wanted["mask0"].bool()) >= 0.999
    assert (result.mask_logits[:, ::8, ::8] - wanted["logits0"][:, 0]).abs().max() <= 2e-3


def test_the_state_and_the_style_matter(official):
    """The other tests would say nothing if they did not."""
    model, processor, wanted = official.model, official.processor, official.wanted
    request = {"image": official.image, **REQUEST}
    processor = Sa2VAProcessor(
        processor.image_processor, processor.tokenizer, grounding_image_size=processor.grounding_image_size
    )
    training = model.segment(**request, processor=processor)
    assert iou(training.masks, wanted["mask0"].bool()) < 0.999
    state = model.config.seg_state
    try:
        model.config.seg_state = "normed" if state == "raw" else "raw"
        other = model.segment(**request, processor=official.processor)
    finally:
        model.config.seg_state = state
    assert iou(other.masks, wanted["mask0"].bool()) < 0.98
