import pytest
import torch
from peft import get_peft_model
from tasks import run_task

from sa2va_trl import Sa2VAForConditionalGeneration, Sa2VAProcessor, tiny_sa2va
from sa2va_trl.adapters import peft_model
from sa2va_trl.adapters.presets import get_peft_config
from sa2va_trl.models.quantization import quantised_layers
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


BASE = ("--model_name_or_path", "tiny-random")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter of the tiny model, and the logits of a mask with it."""
    folder = tmp_path_factory.mktemp("adapter")
    model, processor = tiny_sa2va()
    adapted = get_peft_model(model, get_peft_config("stage1", model.config.seg_token_id, 4, 8, 0.0, "seg"))
    adapted = peft_model.SegPeftModel.adopt(adapted)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return folder


def masks(model, processor, image):
    result = model.eval().segment(image=image, text="Vessel?", processor=processor, answer="Sure, [SEG].")
    return result.mask_logits


@pytest.mark.parametrize(("dtype", "grounding"), [("float32", None), ("bfloat16", None), ("bfloat16", "float32")])
def test_merged_model_is_a_checkpoint_of_its_own(tmp_path, adapter, image, capsys, monkeypatch, dtype, grounding):
    def load(args):
        model, processor = load_model(args)
        model.config.grounding_dtype = grounding  # as saved with it
        return model, processor

    monkeypatch.setattr("sa2va_trl.scripts.merge.load_model", load)
    output = tmp_path / "merged"
    image.save(tmp_path / "image.png")
    options = (*BASE, "--adapter", adapter, "--output_dir", output, "--result_dtype", dtype)
    run_task("merge", *options, *(("--image", tmp_path / "image.png") if dtype == "float32" else ()))
    printed = capsys.readouterr().out
    assert "language logits" in printed and "mask logits" in printed
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".png") == ["merged"]
    model, info = Sa2VAForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == getattr(torch, dtype)
    assert {value.dtype for value in model.text_hidden_fcs.parameters()} == {getattr(torch, grounding or dtype)}
    assert model.grounding_encoder.dtype == getattr(torch, grounding or dtype)
    processor = Sa2VAProcessor.from_pretrained(output)
    expected = masks(peft_model.load_adapter(tiny_sa2va()[0], str(adapter)), tiny_sa2va()[1], image)
    plain = masks(tiny_sa2va()[0], processor, image)
    scale = expected.abs().max()
    tolerance = 1e-5 if dtype == "float32" else 0.05
    assert (masks(model, processor, image) - expected).abs().max() < tolerance * scale
    assert (plain - expected).abs().max() > 0.1 * scale
    assert "merged with an adapter" in (output / "README.md").read_text()


def test_a_merged_model_that_differs_is_not_written(monkeypatch, tmp_path, adapter):
    def forget_one_layer(model, dtype=None):
        layer = model.get_base_model().vlm.model.language_model.layers[0].self_attn.v_proj
        with torch.no_grad():
            layer.lora_B["default"].weight.mul_(0.999)
        return real(model, dtype)

    real = peft_model.merge_adapter
    monkeypatch.setattr("sa2va_trl.scripts.merge.merge_adapter", forget_one_layer)
    with pytest.raises(ValueError, match="nothing was written"):
        run_task("merge", *BASE, "--adapter", adapter, "--output_dir", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_merged_is_refused_before_anything_is_loaded(tmp_path, adapter):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    with pytest.raises(ValueError, match="not empty"):
        run_task("merge", *BASE, "--adapter", adapter, "--output_dir", tmp_path / "full")
    assert (tmp_path / "full" / "precious").read_text() == "kept"
    output = ("--output_dir", tmp_path / "merged")
    for options, message in (
        ((), "--adapter"),
        (("--adapter", adapter, "--dtype", "bfloat16"), "float32"),
        (("--adapter", adapter, "--quantize", "int2"), "int8 or int4"),
        (("--adapter", adapter, "--grounding_image_size", 128), "grounding_image_size"),
        (("--adapter", adapter, "--result_dtype", "int8"), "result_dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            run_task("merge", *BASE, *options, *output)
    with pytest.raises(FileNotFoundError):
        run_task("merge", *BASE, "--adapter", adapter, "--image", tmp_path / "none.png", *output)
    assert not (tmp_path / "merged").exists()


def test_a_wrong_base_is_refused(tmp_path, adapter):
    model, processor = tiny_sa2va(seed=1)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    options = ("--model_name_or_path", tmp_path / "base", "--adapter", adapter, "--output_dir", tmp_path / "merged")
    with pytest.raises(ValueError, match="load the base that it was trained on"):
        run_task("merge", *options)
    assert not (tmp_path / "merged").exists()


def test_what_is_merged_is_stored_quantised(tmp_path, adapter, image, capsys):
    pytest.importorskip("bitsandbytes")
    output = tmp_path / "merged"
    run_task("merge", *BASE, "--adapter", adapter, "--quantize", "int8", "--output_dir", output)
    assert "language logits differ by" in capsys.readouterr().out
    model, processor = load_model(ModelArguments(str(output)))
    assert len(quantised_layers(model)) == 21
    expected = masks(peft_model.load_adapter(tiny_sa2va()[0], str(adapter)), processor, image)
    error = (masks(model, processor, image) - expected).abs().max()
    assert 0 < error < 0.1 * expected.abs().max()
    assert "merged with an adapter, quantised (int8)" in (output / "README.md").read_text()
    with pytest.raises(ValueError, match="quantised already"):
        run_task("merge", "--model_name_or_path", output, "--quantize", "int8", "--output_dir", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_model_is_stored_as_it_is_when_it_is_quantised_at_loading(tmp_path, image):
    pytest.importorskip("bitsandbytes")
    model, processor = tiny_sa2va()
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    run_task("merge", "--model_name_or_path", tmp_path / "plain", "--quantize", "int4", "--output_dir", tmp_path / "4")
    stored, _ = load_model(ModelArguments(str(tmp_path / "4")))
    loaded, _ = load_model(ModelArguments(str(tmp_path / "plain"), quantization="int4"))
    assert torch.equal(masks(stored, processor, image), masks(loaded, processor, image))
    assert "| quantised (int4)" in (tmp_path / "4" / "README.md").read_text()
