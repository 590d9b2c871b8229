import json

import pytest
import torch
from peft import get_peft_model

from sa2va_trl import Sa2VAForConditionalGeneration, tiny_sa2va
from sa2va_trl.adapters.mask_options import DEFAULTS, MASK_OPTIONS, mask_options, read_mask_options, store_mask_options
from sa2va_trl.adapters.peft_model import SegPeftModel, load_adapter
from sa2va_trl.adapters.presets import get_peft_config
from sa2va_trl.hub import commit_operations
from sa2va_trl.postprocessing import Postprocessing, draw_mask


QUESTION = "Show me the {phrase}."
CHOSEN = {"mask_threshold": 0.41, "mask_temperature": 1.6}
CHOSEN |= {"mask_postprocessing": {"min_size": 9}, "default_question": QUESTION}


@pytest.fixture
def base(tmp_path):
    """The folder of a native model."""
    tiny_sa2va(image_size=64)[0].save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder):
    return Sa2VAForConditionalGeneration.from_pretrained(folder)


def adapter(base, folder):
    model = loaded(base)
    SegPeftModel.adopt(get_peft_model(model, get_peft_config("head", model.config.seg_token_id))).save_pretrained(
        folder
    )
    return folder


def test_of_a_model_they_are_in_its_config(base, tmp_path, image):
    before = json.loads((base / "config.json").read_text())
    assert mask_options(loaded(base).config) == DEFAULTS
    assert store_mask_options(base, **CHOSEN) == base / "config.json"
    assert json.loads((base / "config.json").read_text()) == {**before, **CHOSEN}
    model, processor = loaded(base), tiny_sa2va(image_size=64)[1]
    assert mask_options(model.config) == CHOSEN
    # segment draws with them where it is told nothing else,
    asked = {"image": image, "text": "Please segment the vessel.", "processor": processor, "answer": "[SEG]"}
    result, plain = model.segment(**asked), tiny_sa2va(image_size=64)[0].eval().segment(**asked)
    assert torch.equal(result.mask_logits, plain.mask_logits)
    odds = torch.logit(plain.probabilities.double()) / 1.6
    assert torch.allclose(result.probabilities.double(), odds.sigmoid(), atol=1e-6)
    (probabilities,) = result.probabilities.numpy()
    assert (result.masks[0].numpy() == draw_mask(probabilities, 0.41, Postprocessing(min_size=9))).all()
    bare = model.segment(**asked, threshold=0.5, postprocessing=Postprocessing())
    assert torch.equal(bare.masks, result.probabilities > 0.5)
    # and they are saved with it.
    model.save_pretrained(tmp_path / "again")
    assert mask_options(loaded(tmp_path / "again").config) == CHOSEN


def test_of_an_adapter_they_are_its_own(base, tmp_path):
    one, other = (adapter(base, tmp_path / name) for name in ("one", "other"))
    assert not (one / MASK_OPTIONS).exists() and read_mask_options(one) == {}
    content = (base / "config.json").read_bytes()
    assert store_mask_options(one, **CHOSEN) == one / MASK_OPTIONS
    assert (base / "config.json").read_bytes() == content
    assert mask_options(load_adapter(loaded(base), str(one)).config) == CHOSEN
    assert mask_options(load_adapter(loaded(base), str(other)).config) == DEFAULTS
    merged = load_adapter(loaded(base), str(one), merge=True)
    merged.save_pretrained(tmp_path / "merged")
    assert mask_options(loaded(tmp_path / "merged").config) == CHOSEN
    assert MASK_OPTIONS in {operation.path_in_repo for operation in commit_operations(one, True)}


@pytest.mark.parametrize("options", [CHOSEN, DEFAULTS])
def test_an_adapter_keeps_its_own_on_a_base_with_others(base, tmp_path, options):
    store_mask_options(base, mask_threshold=0.2, mask_temperature=3.0)
    folder = adapter(base, tmp_path / "adapter")
    # (Of a model with its own, those that it was trained and judged with.)
    assert read_mask_options(folder) == {**DEFAULTS, "mask_threshold": 0.2, "mask_temperature": 3.0}
    store_mask_options(folder, **options)
    again = load_adapter(loaded(base), str(folder))
    assert mask_options(again.config) == options
    again.save_pretrained(tmp_path / "again")
    assert mask_options(load_adapter(loaded(base), str(tmp_path / "again")).config) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_threshold": 0.0}, "mask_threshold must lie"),
        ({"mask_threshold": 1.0}, "mask_threshold must lie"),
        ({"mask_threshold": "half"}, "mask_threshold must be a number, got 'half'"),
        ({"mask_threshold": 0.5, "mask_temperature": 0.0}, "mask_temperature must"),
        ({"default_question": "Segment it."}, "default_question: 'Segment it.' has no {phrase}"),
        ({"default_question": ""}, "default_question: '' has no {phrase}"),
        ({"threshold": 0.5}, "there is no option threshold"),
        (
            {"mask_postprocessing": {"min_size": -1}},
            "mask_postprocessing: min_size of a post-processing must be at least 0, got -1",
        ),
    ],
)
def test_values_out_of_range_are_refused(base, options, message):
    content = (base / "config.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        store_mask_options(base, **options)
    assert (base / "config.json").read_bytes() == content


def test_folders_without_a_place_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is none.*--threshold"):
        store_mask_options(tmp_path, mask_threshold=0.4)
    published = {"model_type": "sa2va_chat", "llm_config": {}, "vision_config": {}, "template": "qwen_chat"}
    for content in (published, {"model_type": "bert"}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="sa2va-trl convert"):
            store_mask_options(tmp_path, mask_threshold=0.4)


def test_files_of_before_post_processing_still_load(base, tmp_path):
    folder = adapter(base, tmp_path / "adapter")
    (folder / MASK_OPTIONS).write_text('{"mask_threshold": 0.41, "mask_temperature": 1.6}')
    config = load_adapter(loaded(base), str(folder)).config
    assert mask_options(config) == {**DEFAULTS, "mask_threshold": 0.41, "mask_temperature": 1.6}


def test_storing_a_threshold_drops_what_was_chosen_for_another(base):
    store_mask_options(base, **CHOSEN)
    store_mask_options(base, mask_threshold=0.3)
    assert mask_options(loaded(base).config) == {**CHOSEN, "mask_threshold": 0.3, "mask_postprocessing": {}}


@pytest.mark.parametrize(
    "content",
    [
        *("[0.4]", '{"default_question": 3}', '{"mask_threshold": "half"}', '{"threshold": 0.4}', "{"),
        '{"mask_postprocessing": {"size": 1}}',
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, content):
    (tmp_path / MASK_OPTIONS).write_text(content)
    with pytest.raises(ValueError, match=MASK_OPTIONS):
        read_mask_options(tmp_path)


@pytest.mark.parametrize("is_adapter", [True, False])
def test_what_is_not_given_stays_as_it_was_stored(base, tmp_path, is_adapter):
    folder = adapter(base, tmp_path / "adapter") if is_adapter else base

    def own():
        return mask_options((load_adapter(loaded(base), str(folder)) if is_adapter else loaded(base)).config)

    store_mask_options(folder, mask_threshold=0.41, mask_temperature=1.6, mask_postprocessing={"min_size": 9})
    store_mask_options(folder, default_question=QUESTION)
    assert own() == CHOSEN
    store_mask_options(folder, mask_temperature=2.0)
    assert own() == {**CHOSEN, "mask_temperature": 2.0}
    store_mask_options(folder, default_question=None)
    assert own() == {**CHOSEN, "mask_temperature": 2.0, "default_question": None}
