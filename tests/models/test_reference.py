"""The same numbers as the official inference code, whose outputs on a rule-made checkpoint were recorded."""

import shutil
import subprocess
import sys

import pytest
import torch
from official_scripts import once, predicted
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from sa2va_trl import Sa2VAForConditionalGeneration, Sa2VAProcessor


REQUEST = {"text": "<image>Please segment the blood vessel.", "answer": "Sure, [SEG]."}


@pytest.fixture(scope="module")
def reference(shared, tmp_path_factory):
    """The folder of the recordings, and the model and processor that their checkpoint loads as."""
    folder = shared / "reference"
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    subprocess.run([sys.executable, str(folder / "make_checkpoint.py"), str(checkpoint)], check=True)
    model = Sa2VAForConditionalGeneration.from_pretrained(checkpoint)
    model.grounding_encoder.encode = once(model.grounding_encoder.encode)
    processor = Sa2VAProcessor.from_pretrained(checkpoint)
    yield folder, model, processor
    shutil.rmtree(checkpoint)  # a gigabyte


def recorded(folder, name):
    return {key.split(".", 1)[1]: value for key, value in load_file(folder / name).items()}


def assert_masks_agree(ours, theirs):
    intersection, union = (ours & theirs).sum(), (ours | theirs).sum()
    assert intersection / union >= 0.9999


def test_image(reference):
    folder, model, processor = reference
    wanted = recorded(folder, "image_640x512.safetensors")
    image = Image.open(folder / "image_640x512.png")
    pixels = processor.tiles([image])[0]["pixel_values"]
    assert len(pixels) == len(wanted["pixel_sum"])
    assert torch.allclose(pixels.sum((1, 2, 3)), wanted["pixel_sum"].view(-1), rtol=1e-4)
    assert (pixels[:, :, ::64, ::64] - wanted["pixel_sample"]).abs().max() <= 1e-5

    tokens = model.vlm.model.get_image_features(pixel_values=pixels).pooler_output
    assert (tokens.flatten(0, 1).view(len(pixels), -1, 64)[:, ::32] - wanted["vit_sample"]).abs().max() <= 1e-3
    result = model.segment(image=image, processor=processor, **REQUEST)
    assert (result.mask_logits[:, ::8, ::8] - wanted["logits0"][:, 0]).abs().max() <= 1e-3
    assert_masks_agree(result.masks, wanted["mask0"])


def test_projected_seg_state(reference):
    folder, model, processor = reference
    wanted = recorded(folder, "image_640x512.safetensors")
    image = Image.open(folder / "image_640x512.png")
    pixels, blocks = processor.tiles([image])
    chat = [
        {"role": "user", "content": REQUEST["text"]},
        {"role": "assistant", "content": REQUEST["answer"]},
    ]
    ids, _ = processor.encode_chat(chat, blocks)
    with torch.no_grad():
        states = model.hidden_states(torch.tensor([ids]), **pixels)[0, ids.index(processor.seg_token_id)]
        assert (model.text_hidden_fcs(states) - wanted["seg0"]).abs().max() <= 1e-3


def assert_predicted(monkeypatch, model, wanted, **request):
    """Text, masks and logits of `predict_forward` are the recorded ones, and it returns what `segment` says."""
    request["tokenizer"] = AutoTokenizer.from_pretrained(model.config._name_or_path)
    request["text"] = REQUEST["text"]
    prediction, result = predicted(monkeypatch, model, REQUEST["answer"], **request)
    assert prediction["prediction"] == "Sure, [SEG].<|im_end|>"
    (masks,) = prediction["prediction_masks"]
    for mask, expected in zip(torch.from_numpy(masks), wanted["mask0"].bool(), strict=True):
        assert_masks_agree(mask, expected)
    logits = result.mask_logits.view(wanted["logits0"].shape[0], 1, 1024, 1024)[:, :, ::8, ::8]
    assert (logits - wanted["logits0"]).abs().max() <= 1e-3
    return result


def test_predict_forward(reference, monkeypatch):
    folder, model, _ = reference
    wanted = recorded(folder, "image_640x512.safetensors")
    assert_predicted(monkeypatch, model, wanted, image=Image.open(folder / "image_640x512.png"))


@pytest.mark.slow
def test_predict_forward_of_a_video(reference, monkeypatch):
    """Five prompted frames and two propagated ones."""
    folder, model, processor = reference
    wanted = recorded(folder, "video_7_frames.safetensors")
    frames = [Image.open(folder / f"video_{index}.png") for index in range(7)]
    pixels = processor.tiles(frames[:5], clip=True)[0]["pixel_values"]
    assert (pixels[:, :, ::64, ::64] - wanted["pixel_sample"]).abs().max() <= 1e-5
    result = assert_predicted(monkeypatch, model, wanted, video=frames)
    assert result.prompted_frames == [0, 1, 2, 3, 4]
