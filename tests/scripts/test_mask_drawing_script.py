from types import SimpleNamespace

import pytest
from datasets import Dataset
from tasks import run_task

from sa2va_trl.postprocessing import IDENTITY, Postprocessing
from sa2va_trl.scripts.mask_drawing import check_clips, given_postprocessing, own_postprocessing


def model(**settings):
    return SimpleNamespace(config=SimpleNamespace(mask_postprocessing=settings))


def test_an_option_is_stored_none_or_json():
    assert given_postprocessing("stored") is None and given_postprocessing("none") == IDENTITY
    assert (
        given_postprocessing('{"min_size": 3}') == given_postprocessing({"min_size": 3}) == Postprocessing(min_size=3)
    )


@pytest.mark.parametrize("option", ["both", '{"size": 3}', "[1]", '{"min_size": -1}', "3"])
def test_anything_else_is_named(option):
    with pytest.raises(ValueError, match="postprocessing must be stored, none or JSON, got"):
        given_postprocessing(option)


def test_the_models_own_is_taken_unless_another_is_given():
    one, other = model(min_size=3), model()
    assert own_postprocessing("stored") == IDENTITY and own_postprocessing("stored", one, one).min_size == 3
    assert own_postprocessing("none", one, other) == IDENTITY
    assert own_postprocessing('{"min_size": 5}', one, other).min_size == 5
    with pytest.raises(ValueError, match="of their own, .*min_size.* and none: give --postprocessing"):
        own_postprocessing("stored", one, other)


def test_smoothing_clips_needs_clips():
    images, clips = Dataset.from_dict({"image": [1]}), Dataset.from_dict({"images": [[1]]})
    for option in ("stored", "none", '{"min_size": 3}'):
        check_clips(option, images)
    check_clips('{"majority_frames": 3}', clips)
    with pytest.raises(ValueError, match="smooths clips, and the dataset has rows of one image"):
        check_clips('{"majority_frames": 3}', images)


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("evaluate", ("--predictions_dir", ".", "--postprocessing", '{"hysteresis": 0.5}'), "no hysteresis"),
        ("evaluate", ("--predictions_dir", ".", "--postprocessing", '{"flow_weight": 0.5}'), "nothing of clips"),
        ("evaluate", ("--postprocessing", "some"), "postprocessing must be"),
        ("predict", ("--postprocessing", '{"majority_frames": 3}'), "smooths videos that are taken as a whole"),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path, task, line, message):
    with pytest.raises(ValueError, match=message):
        run_task(task, *line, "--output_dir", tmp_path / "out")
