import json
import shutil

import pytest
import torch

from sa2va_trl.scripts.arguments import ModelArguments


def test_what_is_not_a_native_model_is_refused(tmp_path, trained):
    from safetensors.torch import load_file, save_file

    from sa2va_trl.scripts.loading import load_model

    for kind, config in (("adapter", {}), ("llama", {"model_type": "llama"})):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / ("adapter_config.json" if kind == "adapter" else "config.json")).write_text(json.dumps(config))
        with pytest.raises(ValueError, match=kind):
            load_model(ModelArguments(model_name_or_path=str(folder)))
    folder = tmp_path / "incomplete"
    shutil.copytree(trained, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_hidden_fcs.2.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"text_hidden_fcs\.2\.bias"):
        load_model(ModelArguments(model_name_or_path=str(folder)))


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_a_tiny_model_of_each_family(family):
    from sa2va_trl.scripts.loading import load_model

    name = "tiny" if family == "internvl" else f"tiny-{family}"
    model, processor = load_model(
        ModelArguments(model_name_or_path=name, dtype="bfloat16", attn_implementation="eager", grounding_image_size=64)
    )
    assert model.config.vlm_config.model_type == family and model.dtype == torch.bfloat16
    assert model.vlm.model.language_model.config._attn_implementation == "eager"
    assert processor.grounding_image_size == model.config.grounding_config.image_size == 64


def test_the_style_of_prompts_is_the_options_the_adapters_or_the_models(tmp_path):
    from peft import get_peft_model

    from sa2va_trl.adapters.peft_model import SegPeftModel
    from sa2va_trl.adapters.presets import get_peft_config
    from sa2va_trl.scripts.loading import load_model

    def style(**options):
        model, processor = load_model(ModelArguments(**{**given, **options}))
        assert processor.is_official == (processor.prompt_style == "official")
        return processor.prompt_style

    given = {"model_name_or_path": "tiny-qwen2_5_vl", "grounding_image_size": 64}
    assert style() == "training" and style(prompt_style="official") == "official"
    model, processor = load_model(ModelArguments(**given, prompt_style="official"))
    for layout in ("native", "published"):
        model.save_pretrained(tmp_path / layout, layout=layout)
        processor.save_pretrained(tmp_path / layout, layout=layout)
        given["model_name_or_path"] = str(tmp_path / layout)
        assert style() == "official" and style(prompt_style="training") == "training"
    adapter = tmp_path / "adapter"
    SegPeftModel.adopt(get_peft_model(model, get_peft_config("head", model.config.seg_token_id))).save_pretrained(
        adapter
    )
    # Without a processor beside the adapter, the base's.
    assert style(adapter=str(adapter)) == "official"
    processor.prompt_style = "training"
    processor.save_pretrained(adapter)
    assert style(adapter=str(adapter)) == "training"
    assert style(adapter=str(adapter), prompt_style="official") == "official"
    # Opening and budget of a clip's frame come with the adapter, too, whatever the style.
    processor.official_opening, processor.clip_size = "Hi.", {"shortest_edge": 784, "longest_edge": 7840}
    processor.save_pretrained(adapter)
    for asked in ({}, {"prompt_style": "official"}):
        _, other = load_model(ModelArguments(**given, adapter=str(adapter), **asked))
        assert (other.official_opening, other.clip_size) == ("Hi.", processor.clip_size)
        assert ("Hi." in other.chat_template) == bool(asked)
    # A processor of an earlier version has one style.
    content = json.loads((adapter / "processor_config.json").read_text())
    del content["prompt_style"]
    (adapter / "processor_config.json").write_text(json.dumps(content))
    assert style(adapter=str(adapter)) == "training"
    with pytest.raises(ValueError, match="prompt_style must be one of training, official, got 'demo'"):
        style(prompt_style="demo")
