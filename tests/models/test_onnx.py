"""The ONNX files draw what the model draws."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tasks import run_task

from sa2va_trl import tiny_sa2va
from sa2va_trl.errors import CheckpointError
from sa2va_trl.models import onnx
from sa2va_trl.models.onnx import IMAGE_ENCODER, MASK_DECODER, export_onnx


# They are in the extra `test`, but do not come for a new Python as soon as the rest.
files, onnxruntime, _ = (
    pytest.importorskip(name, reason="sa2va_trl[onnx] is not installed")
    for name in ("onnx", "onnxruntime", "onnxscript")
)
PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
QUESTION = "Please segment the blood vessel."


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What the task leaves, and the picture it was asked of."""
    folder = tmp_path_factory.mktemp("onnx")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).resize((200, 170)).save(folder / "picture.png")
    asked = ("--input", folder / "picture.png", "--prompt", QUESTION)
    size = ("--grounding_image_size", 128)
    run_task("export_onnx", "--model_name_or_path", "tiny", *size, *asked, "--output_dir", folder / "files")
    return folder


def test_the_example_of_the_page_draws_the_model_s_mask_without_torch(exported):
    code = re.search(r"```python\n(# draw\.py .*?)```", PAGE.read_text(), re.DOTALL).group(1)
    (exported / "draw.py").write_text(f"import sys\n\nsys.modules['torch'] = None\n{code}")
    line = [sys.executable, "draw.py", "files", "picture.png", "mask.png"]
    subprocess.run(line, cwd=exported, check=True)
    assert sorted(path.name for path in (exported / "files").iterdir()) == [IMAGE_ENCODER, MASK_DECODER, "prompts.npy"]
    model, processor = tiny_sa2va(image_size=128, pretrained=True)
    image = Image.open(exported / "picture.png")
    result = model.eval().segment(image=image, text=QUESTION, processor=processor, answer="Sure, [SEG].")
    drawn, expected = np.asarray(Image.open(exported / "mask.png")) > 0, result.masks[0].numpy()
    assert 0.01 < expected.mean() < 0.99
    assert (drawn == expected).mean() > 0.9995


@pytest.mark.parametrize("objects", [1, 3, 7])
def test_any_number_of_objects(exported, objects):
    model, processor = tiny_sa2va(image_size=128, pretrained=True)
    pixels = processor.grounding_inputs([Image.open(exported / "picture.png")])
    prompts = torch.randn(objects, 64, generator=torch.Generator().manual_seed(objects))
    with torch.no_grad():
        pyramid = model.eval().grounding_encoder.encode(pixels)
        expected = model.grounding_encoder.decode(pyramid, prompts, torch.zeros(objects, dtype=torch.long))
    encoder, decoder = (
        onnxruntime.InferenceSession(exported / "files" / name, providers=["CPUExecutionProvider"])
        for name in (IMAGE_ENCODER, MASK_DECODER)
    )
    opsets = files.load(exported / "files" / MASK_DECODER).opset_import
    assert [opset.version for opset in opsets if not opset.domain] == [onnx.OPSET]
    features = dict(
        zip(("fine", "middle", "coarse"), encoder.run(None, {"pixel_values": pixels.numpy()}), strict=True)
    )
    found = decoder.run(None, features | {"prompts": prompts.numpy()})
    for one, other in zip(found, expected, strict=False):
        assert np.abs(one - other.numpy()).max() < 1e-4


def test_files_that_differ_are_not_left(monkeypatch, tmp_path):
    def write(file, *_):
        file.write_bytes(b"other numbers")
        file.with_name(f"{file.name}.data").write_bytes(b"")

    monkeypatch.setattr(onnx, "_write", write)
    model = tiny_sa2va(image_size=128)[0]
    with pytest.raises(ValueError, match="evaluation mode"):
        export_onnx(model.train(), tmp_path)
    for difference in (2e-4, float("nan")):
        monkeypatch.setattr(onnx, "_difference", lambda *_, value=difference: value)
        with pytest.raises(CheckpointError, match="nothing was kept"):
            export_onnx(model.eval(), tmp_path)
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(onnx, "_difference", lambda *_: 9e-5)
    assert export_onnx(model, tmp_path) == {IMAGE_ENCODER: 9e-5, MASK_DECODER: 9e-5}


def test_options_without_effect_are_refused(tmp_path):
    for options, message in (
        (("--dtype", "bfloat16"), "float32"),
        (("--prompt", "x"), "belong together"),
    ):
        with pytest.raises(ValueError, match=message):
            run_task("export_onnx", *options, "--output_dir", tmp_path / "files")
    assert list(tmp_path.iterdir()) == []
