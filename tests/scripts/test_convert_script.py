import json

import pytest
import torch
from families import FAMILIES, tiny_family
from safetensors.torch import load_file
from tasks import run_task

from sa2va_trl import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_trl.adapters.peft_model import load_adapter
from sa2va_trl.errors import CheckpointError


DELTA = "text_hidden_fcs.2.bias"


def write(folder, family="qwen2", layout="published"):
    model, processor = tiny_family(family)
    model.save_pretrained(folder, layout=layout)
    processor.save_pretrained(folder, layout=layout)
    return model


def same(one: dict, two: dict):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]), name


def cast(tensors: dict) -> dict:
    """In bfloat16, but for the positions of SAM 2's prompt encoder, which stay in float32 everywhere."""
    return {
        name: value if name.endswith("positional_encoding_gaussian_matrix") else value.to(torch.bfloat16)
        for name, value in tensors.items()
    }


def mask_logits(model, processor, image):
    return model.eval().segment(image=image, text="Vessel?", processor=processor, answer="[SEG].").mask_logits


@pytest.fixture
def delta(tmp_path):
    """A published base and what the official trainer would save of a head and a LoRA of one layer kind."""
    base, file = tmp_path / "base", tmp_path / "iter_7.pth"
    write(base)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, value in load_file(base / "model.safetensors").items():
        if name.startswith("text_hidden_fcs."):
            tensors[name] = value + torch.randn(value.shape, generator=generator)
        elif name.startswith("language_model.") and name.endswith("_proj.weight"):
            module = "mllm.model.language_model.base_model.model." + name.removeprefix("language_model.")
            module = module.removesuffix(".weight")
            for matrix, shape in (("A", (4, value.shape[1])), ("B", (value.shape[0], 4))):
                tensors[f"{module}.lora_{matrix}.default.weight"] = 0.1 * torch.randn(shape, generator=generator)
    torch.save({"meta": {"iter": 7}, "state_dict": tensors}, file)
    return base, file


@pytest.mark.parametrize("family", FAMILIES)
def test_published_to_native_and_back_is_bit_for_bit(tmp_path, family, capsys):
    model = write(tmp_path / "published", family)
    run_task("convert", "--source", tmp_path / "published", "--output_dir", tmp_path / "native")
    assert f"{model.num_parameters():,} parameters" in capsys.readouterr().out
    assert "model_type" in json.loads((tmp_path / "native" / "config.json").read_text())["vlm_config"]
    same(Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "native").state_dict(), model.state_dict())
    again = tmp_path / "again"
    run_task("convert", "--source", tmp_path / "native", "--layout", "published", "--output_dir", again)
    same(load_file(again / "model.safetensors"), load_file(tmp_path / "published" / "model.safetensors"))
    # (The native layout adds the chat template, which then stays.)
    names = {path.name for path in (tmp_path / "published").iterdir()} | {"chat_template.jinja"}
    assert {path.name for path in again.iterdir()} == names
    assert (again / "config.json").read_text() == (tmp_path / "published" / "config.json").read_text()
    first, last = (Sa2VAProcessor.from_pretrained(tmp_path / name) for name in ("published", "again"))
    assert first.tokenizer.get_vocab() == last.tokenizer.get_vocab() and first.to_dict() == last.to_dict()


def test_weights_are_cast(tmp_path):
    model = write(tmp_path / "published")
    output = tmp_path / "native"
    run_task("convert", "--source", tmp_path / "published", "--output_dir", output, "--dtype", "bfloat16")
    stored = load_file(output / "model.safetensors")
    same(stored, cast({name: model.state_dict()[name] for name in stored}))


def test_a_delta_becomes_an_adapter_or_a_model(tmp_path, image, delta):
    base, file = delta
    source = ("--source", file, "--model_name_or_path", base)
    run_task("convert", *source, "--output_dir", tmp_path / "adapter")
    run_task("convert", *source, "--merge", "true", "--output_dir", tmp_path / "merged")
    run_task("convert", *source, "--merge", "true", "--layout", "published", "--output_dir", tmp_path / "published")
    processor = Sa2VAProcessor.from_pretrained(tmp_path / "adapter")
    plain = Sa2VAForConditionalGeneration.from_pretrained(base)
    before = mask_logits(plain, processor, image)
    wanted = mask_logits(load_adapter(plain, str(tmp_path / "adapter")), processor, image)
    scale = wanted.abs().max()
    assert (wanted - before).abs().max() > 0.01 * scale
    for name in ("merged", "published"):
        model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / name)
        found = mask_logits(model, Sa2VAProcessor.from_pretrained(tmp_path / name), image)
        assert (found - wanted).abs().max() < 1e-5 * scale
    # A module that was trained whole arrives as it is; the published layout has the trainer's own name for it.
    assert torch.equal(
        load_file(tmp_path / "published" / "model.safetensors")[DELTA], torch.load(file)["state_dict"][DELTA]
    )


def test_scale_and_dtype_of_a_merged_delta(tmp_path, delta):
    base, file = delta
    source = ("--source", file, "--model_name_or_path", base, "--merge", "true", "--layout", "published")
    run_task("convert", *source, "--lora_alpha", 2, "--output_dir", tmp_path / "float32")
    run_task("convert", *source, "--lora_alpha", 2, "--dtype", "bfloat16", "--output_dir", tmp_path / "bfloat16")
    full, half = (load_file(tmp_path / dtype / "model.safetensors") for dtype in ("float32", "bfloat16"))
    # Merged in full precision and rounded once.
    same(half, cast(full))
    name = "language_model.model.layers.1.self_attn.v_proj"
    lora = {key[-16]: value for key, value in torch.load(file)["state_dict"].items() if f"{name[15:]}.lora" in key}
    before = load_file(base / "model.safetensors")[f"{name}.weight"]
    torch.testing.assert_close(full[f"{name}.weight"], before + 2 / 4 * lora["B"] @ lora["A"])


def test_options_that_cannot_work_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    model, delta = ("--source", tmp_path / "model"), ("--source", tmp_path / "iter_7.pth")
    on_base = (*delta, "--model_name_or_path", tmp_path / "base")
    # Neither the model nor the delta exists: all of this is found out before anything is read.
    for options, message in (
        ((*model, "--output_dir", tmp_path / "full"), "not empty"),
        ((*delta,), "give the base"),
        ((*on_base, "--layout", "published"), "no published layout"),
        ((*model, "--dtype", "int8"), "dtype must be"),
        ((*model, "--layout", "official"), "layout must be"),
        ((*model, "--merge", "true"), "only where source is a .pth"),
        ((*model, "--lora_alpha", 8), "only where source is a .pth"),
        ((*model, "--model_name_or_path", tmp_path / "base"), "only where source is a .pth"),
    ):
        output = () if "--output_dir" in options else ("--output_dir", tmp_path / "output")
        with pytest.raises(ValueError, match=message):
            run_task("convert", *options, *output)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "precious"]
    assert (tmp_path / "full" / "precious").read_text() == "kept"


def test_nothing_is_written_on_failure(monkeypatch, tmp_path, delta):
    base, file = delta
    content = torch.load(file)["state_dict"]
    torch.save({name: value for name, value in content.items() if name != DELTA}, tmp_path / "short.pth")
    before = sorted(tmp_path.iterdir())
    for name, message in (("short.pth", "missing: .*text_hidden_fcs.2.bias"), ("none.pth", "cannot be read")):
        source = ("--source", tmp_path / name, "--model_name_or_path", base)
        for options in ((), ("--merge", "true")):
            with pytest.raises(CheckpointError, match=message):
                run_task("convert", *source, *options, "--output_dir", tmp_path / "output")
    # Also where the model has been written already and its processor cannot be.
    with monkeypatch.context() as patch:
        patch.setattr(Sa2VAProcessor, "save_pretrained", lambda *args, **kwargs: 1 / 0)
        for options in (("--source", base), ("--source", file, "--model_name_or_path", base)):
            with pytest.raises(ZeroDivisionError):
                run_task("convert", *options, "--output_dir", tmp_path / "output")
    assert sorted(tmp_path.iterdir()) == before
