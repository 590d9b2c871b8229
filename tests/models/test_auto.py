"""Auto classes and pipelines of transformers on what this package writes: the right model, or a sentence."""

import json
import logging

import pytest
import torch
from families import tiny_family
from peft import LoraConfig
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)
from trl.trainer.utils import create_model_from_path

from sa2va_trl import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_trl.adapters.peft_model import SegPeftModel
from sa2va_trl.errors import CheckpointError
from sa2va_trl.models.auto import PublishedSa2VAConfig, UnsupportedTask


AUTO_MODELS = (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText)


@pytest.fixture(scope="module", params=["qwen2", "qwen2_5_vl", "qwen3_vl"])
def folders(request, tmp_path_factory):
    """A model in both layouts, and the model."""
    root = tmp_path_factory.mktemp("auto")
    model, processor = tiny_family(request.param)
    for layout in ("native", "published"):
        model.save_pretrained(root / layout, layout=layout)
        processor.save_pretrained(root / layout, layout=layout)
    return root, model, processor


@pytest.mark.parametrize("layout", ["native", "published"])
def test_auto_classes_find_the_model(folders, layout, caplog, monkeypatch):
    root, model, processor = folders
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for auto in AUTO_MODELS:
        loaded = auto.from_pretrained(root / layout)
        assert type(loaded) is Sa2VAForConditionalGeneration and type(loaded.config) is Sa2VAConfig
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager", "trust_remote_code": True}
    loaded = AutoModel.from_pretrained(root / layout, **options)
    assert loaded.dtype == torch.bfloat16 and loaded.config._attn_implementation == "eager"
    assert type(AutoModel.from_pretrained(root, subfolder=layout)) is Sa2VAForConditionalGeneration
    assert type(create_model_from_path(str(root / layout))) is Sa2VAForConditionalGeneration  # TRL, given a name
    text = "Sure, [SEG].<|im_end|>"
    assert AutoTokenizer.from_pretrained(root / layout)(text).input_ids == processor.tokenizer(text).input_ids
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_auto_config(folders):
    root, model, _ = folders
    assert type(AutoConfig.from_pretrained(root / "native")) is Sa2VAConfig
    config = AutoConfig.from_pretrained(root / "published")
    assert type(config) is PublishedSa2VAConfig
    assert config.published == json.loads((root / "published/config.json").read_text())


def test_auto_processor(folders):
    root, model, _ = folders
    assert type(AutoProcessor.from_pretrained(root / "native")) is Sa2VAProcessor
    # (Qwen's published files name Qwen's processor, for the official tools, and transformers goes by the name.)
    published = type(AutoProcessor.from_pretrained(root / "published")).__name__
    names = {"internvl": "Sa2VAProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
    assert published == names[model.config.vlm_config.model_type]


@pytest.mark.parametrize("layout", ["native", "published"])
def test_pipelines(folders, layout, image):
    root, _, _ = folders
    answers = pipeline("image-text-to-text", model=str(root / layout))
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Where?"}]}]
    options = {"max_new_tokens": 3, "return_full_text": False}
    answer = answers(text=chat, generate_kwargs={"do_sample": False}, **options)[0]["generated_text"]
    assert type(answers.model) is Sa2VAForConditionalGeneration and isinstance(answer, str)
    for act in (
        lambda: pipeline("mask-generation", model=str(root / layout)),
        lambda: AutoModelForMaskGeneration.from_pretrained(root / layout),
    ):
        with pytest.raises(UnsupportedTask, match=r"asked in words: .*segment\(image="):
            act()


def test_an_adapter_whose_base_is_known_says_what_to_call(folders, tmp_path):
    root, model, _ = folders
    base = Sa2VAForConditionalGeneration.from_pretrained(root / "native")
    SegPeftModel(base, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for layout in ("native", "published"):  # as PEFT's own saving would name it
        config["base_model_name_or_path"] = str(root / layout)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        for auto in AUTO_MODELS:
            with pytest.raises(CheckpointError, match="load_adapter") as caught:
                auto.from_pretrained(tmp_path)
            assert f"from_pretrained({str(root / layout)!r}), {str(tmp_path)!r})" in str(caught.value)
