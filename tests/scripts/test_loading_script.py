import json
import shutil

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from sa2va_trl import tiny_sa2va
from sa2va_trl.adapters.mask_options import DEFAULTS, store_mask_options
from sa2va_trl.adapters.peft_model import SegPeftModel
from sa2va_trl.adapters.presets import get_peft_config
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.evaluation import predict_probabilities
from sa2va_trl.evaluation.averaging import predict_averaged
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_members, load_model


def test_what_is_not_a_native_model_is_refused(tmp_path, trained):
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
    name = "tiny" if family == "internvl" else f"tiny-{family}"
    model, processor = load_model(
        ModelArguments(model_name_or_path=name, dtype="bfloat16", attn_implementation="eager", grounding_image_size=64)
    )
    assert model.config.vlm_config.model_type == family and model.dtype == torch.bfloat16
    assert model.vlm.model.language_model.config._attn_implementation == "eager"
    assert processor.grounding_image_size == model.config.grounding_config.image_size == 64


def test_a_tiny_model_in_two_types():
    whole, _ = load_model(ModelArguments(model_name_or_path="tiny", grounding_image_size=64))
    options = {"dtype": "bfloat16", "grounding_dtype": "float32"}
    model, _ = load_model(ModelArguments(model_name_or_path="tiny", grounding_image_size=64, **options))
    for name, value in model.state_dict().items():
        kind = torch.bfloat16 if name.startswith("vlm.") else torch.float32
        assert value.dtype == kind and torch.equal(value, whole.state_dict()[name].to(kind)), name


def test_the_style_of_prompts_is_the_options_the_adapters_or_the_models(tmp_path):
    from peft import get_peft_model

    from sa2va_trl.adapters.peft_model import SegPeftModel
    from sa2va_trl.adapters.presets import get_peft_config

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


# The models of an ensemble


PRESETS = {"head": ("head", "none"), "lora": ("stage1", "none"), "seg": ("stage1", "seg"), "full": ("stage1", "full")}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of adapters on the tiny model, each of which draws something else, and one with options of its own."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, (trainable, embeddings)) in enumerate({**PRESETS, "warm": PRESETS["head"]}.items()):
        model, processor = tiny_sa2va(image_size=64)
        config = get_peft_config(trainable, model.config.seg_token_id, 4, 8, 0.0, embeddings)
        adapted = SegPeftModel.adopt(get_peft_model(model, config))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    store_mask_options(root / "warm", mask_threshold=0.3, mask_temperature=2.0)
    return root


def first(adapters=None, name=None):
    return ModelArguments(
        "tiny-random", grounding_image_size=64, adapter=None if name is None else str(adapters / name)
    )


def drawn(model, processor, rows):
    return [found for _, found in predict_probabilities(model, processor, rows, progress=False)]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("head", ["lora"]),
        ("seg", ["seg", "seg"]),
        ("full", ["full", "lora"]),
        ("warm", ["head"]),
        (None, ["warm", "lora"]),
        (None, ["seg"]),
    ],
)
def test_adapters_of_an_ensemble_share_their_base_and_draw_as_each_alone(adapters, name, others):
    rows = synthetic_dataset(num_videos=1, frames_per_video=2, size=64)
    model, processor = load_model(first(adapters, name))
    expected = [drawn(*load_model(first(adapters, entry)), rows) for entry in (name, *others)]
    members = load_members([str(adapters / entry) for entry in others], first(adapters, name), model, processor)
    assert len({id(member.model) for member in members}) == 1
    options = {"warm": {"mask_threshold": 0.3, "mask_temperature": 2.0}}
    for entry, member, maps in zip((name, *others), members, expected, strict=True):
        assert member.options == {**DEFAULTS, **options.get(entry, {})}
        with member.active() as active:
            for found, own in zip(drawn(active, processor, rows), maps, strict=True):
                np.testing.assert_allclose(found, own, rtol=0, atol=1e-6)
    averaged = [found for _, found in predict_averaged(members, rows, progress=False)]
    for found, *maps in zip(averaged, *expected, strict=True):
        np.testing.assert_allclose(found, np.mean(maps, 0, dtype=np.float64), rtol=0, atol=1e-6)
    if name != others[0]:
        assert np.abs(expected[0][0] - expected[1][0]).max() > 1e-3


def test_adapters_that_cannot_share_a_base_have_one_of_their_own(adapters):
    """Those with single rows of the embeddings, and those without: PEFT cannot hold both in one model."""
    rows = synthetic_dataset(num_videos=1, frames_per_video=2, size=64)
    names = ["lora", "seg", "head"]
    expected = [drawn(*load_model(first(adapters, name)), rows) for name in names]
    args = first(adapters, names[0])
    members = load_members([str(adapters / name) for name in names[1:]], args, *load_model(args))
    assert members[0].model is members[2].model is not members[1].model
    for found, *maps in zip(
        [found for _, found in predict_averaged(members, rows, progress=False)], *expected, strict=True
    ):
        np.testing.assert_allclose(found, np.mean(maps, 0, dtype=np.float64), rtol=0, atol=1e-6)


def test_whole_models_of_an_ensemble_lie_side_by_side(trained, second):
    rows = synthetic_dataset(num_videos=1, frames_per_video=2, size=64)
    args = ModelArguments(str(trained), grounding_image_size=64)
    members = load_members([str(second)], args, *load_model(args))
    assert [member.adapter for member in members] == [None, None] and members[0].model is not members[1].model
    expected = [
        drawn(*load_model(ModelArguments(str(name), grounding_image_size=64)), rows) for name in (trained, second)
    ]
    for found, *maps in zip(
        [found for _, found in predict_averaged(members, rows, progress=False)], *expected, strict=True
    ):
        np.testing.assert_allclose(found, np.mean(maps, 0, dtype=np.float64), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=f"ensemble: {second} differs from the first model in grounding_image_size"):
        load_members([str(second)], ModelArguments("tiny-random"), *load_model(ModelArguments("tiny-random")))


def test_what_cannot_be_in_an_ensemble_is_refused(adapters, tmp_path, trained):
    args = first(adapters, "head")
    model, processor = load_model(args)
    with pytest.raises(ValueError, match="There is no folder"):
        load_members([str(tmp_path / "none")], args, model, processor)
    other = ModelArguments(str(trained), grounding_image_size=64)
    with pytest.raises(ValueError, match="was trained on a local model.*whose weights differ"):
        load_members([str(adapters / "head")], other, *load_model(other))
    odd = shutil.copytree(adapters / "lora", tmp_path / "odd")
    weights = load_file(odd / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, odd / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match="odd does not hold the weights that its adapter_config.json asks for. missing"
    ):
        load_members([str(odd)], args, model, processor)
    styled = shutil.copytree(adapters / "lora", tmp_path / "styled")
    content = json.loads((styled / "processor_config.json").read_text())
    (styled / "processor_config.json").write_text(json.dumps({**content, "prompt_style": "official"}))
    with pytest.raises(ValueError, match="styled differs from the first model in prompt_style of its processor"):
        load_members([str(styled)], args, model, processor)
