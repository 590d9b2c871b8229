"""Which checkpoint is meant, and whether it is whole; what a run makes of one is in test_resuming.py."""

import json

import pytest
from peft import get_peft_model

from sa2va_trl import tiny_sa2va
from sa2va_trl.adapters.presets import EARLIER_LINEARS, LANGUAGE_MODEL_LINEARS, get_peft_config
from sa2va_trl.trainers.checkpoints_to_resume import (
    check_trained,
    evaluations_waited,
    read_state,
    resolve_checkpoint,
)


def checkpoint(folder, number, state='{"global_step": 1}'):
    path = folder / f"checkpoint-{number}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return str(path)


@pytest.mark.parametrize("wanted", [None, False])
def test_none_is_meant_where_none_is_asked_for(tmp_path, wanted):
    checkpoint(tmp_path, 1)
    assert resolve_checkpoint(wanted, tmp_path) is None


@pytest.mark.parametrize("wanted", [True, "latest"])
def test_the_newest_is_the_one_of_the_most_steps_that_is_complete(tmp_path, wanted):
    with pytest.raises(ValueError, match=f"resume_from_checkpoint={wanted}: .* holds no complete checkpoint"):
        resolve_checkpoint(wanted, tmp_path)
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, state=None)  # killed before its last file
    checkpoint(tmp_path, 12, state='{"global_step"')  # and within it
    checkpoint(tmp_path, "best")
    assert resolve_checkpoint(wanted, tmp_path) == newest


def test_a_folder_is_meant_itself_and_has_to_be_complete(tmp_path):
    whole, torn = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2, state=None)
    assert resolve_checkpoint(whole, tmp_path / "elsewhere") == whole
    for folder in (torn, str(tmp_path / "checkpoint-3")):
        with pytest.raises(ValueError, match="checkpoint-[23]' is not a complete checkpoint folder"):
            resolve_checkpoint(folder, tmp_path)


@pytest.mark.parametrize(("callbacks", "waited"), [({}, 0), ({"early_stopping_patience_counter": 3}, 3)])
def test_evaluations_that_were_waited_for_are_read_from_the_state(tmp_path, callbacks, waited):
    saved = {"EarlyStoppingCallback": {"args": {}, "attributes": callbacks}} if callbacks else {}
    folder = checkpoint(tmp_path, 1, json.dumps({"global_step": 7, "stateful_callbacks": saved}))
    state = read_state(folder)
    assert state.global_step == 7 and evaluations_waited(state) == waited


def test_an_adapter_that_an_earlier_version_wrote_is_resumed(tmp_path):
    """It says in other words that all layers of the language model train."""
    model = get_peft_model(tiny_sa2va(image_size=64)[0], get_peft_config("stage1", seg_token_id=0))
    model.peft_config["default"].save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    assert config["target_modules"] == LANGUAGE_MODEL_LINEARS
    for modules in (LANGUAGE_MODEL_LINEARS, EARLIER_LINEARS):
        file.write_text(json.dumps(config | {"target_modules": modules}))
        check_trained(str(tmp_path), model)
    file.write_text(json.dumps(config | {"target_modules": EARLIER_LINEARS, "r": 3}))
    with pytest.raises(ValueError, match="trained with lora_r=3, and this run has lora_r=64"):
        check_trained(str(tmp_path), model)
