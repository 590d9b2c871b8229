import pandas as pd
import pytest

from sa2va_trl.data import synthetic_dataset
from sa2va_trl.errors import MiningError
from sa2va_trl.mining.unlabelled import predict_unlabelled, score_unlabelled


@pytest.mark.parametrize("method", ["tracking", "neighbours"])
def test_without_labels_masks_are_not_read(network, method):
    model, processor = network
    rows = synthetic_dataset(1, 5, 64).select([0, 1, 2, 4])
    found = score_unlabelled(model, processor, rows, method=method, batch_size=2, progress=False)
    bare = score_unlabelled(model, processor, rows.remove_columns("mask"), method=method, batch_size=3, progress=False)
    pd.testing.assert_frame_equal(found, bare, atol=1e-5)
    assert found["consistency"].isna().tolist() == [False, False, False, True]  # the frame before it is missing
    assert found["consistency"].dropna().between(0, 1).all()


def test_the_same_frame_over_and_over_agrees_with_itself(network):
    model, processor = network
    rows = synthetic_dataset(1, 2, 64).select([0, 0, 0])
    for name, values in (("sample_id", ["a", "b", "c"]), ("frame_index", [0, 1, 2])):
        rows = rows.remove_columns(name).add_column(name, values)
    found = score_unlabelled(model, processor, rows, method="neighbours", progress=False)
    assert (found["consistency"] == 1).all() and (found["motion"].iloc[1:] == 0).all()


def test_masks_are_judged_before_post_processing(network, monkeypatch):
    rows = synthetic_dataset(1, 3, 64)
    found = score_unlabelled(*network, rows, progress=False)
    monkeypatch.setattr(network[0].config, "mask_postprocessing", {"min_share": 0.9})
    pd.testing.assert_frame_equal(score_unlabelled(*network, rows, progress=False), found)


def test_what_cannot_be_judged_without_labels(network):
    rows = synthetic_dataset(1, 2, 64)
    with pytest.raises(MiningError, match="video_id"):
        score_unlabelled(*network, rows.remove_columns("video_id"), progress=False)
    with pytest.raises(MiningError, match="2 rows .*one phrase.*'v0000_f000'"):
        score_unlabelled(*network, rows.remove_columns("phrase"), progress=False)
    with pytest.raises(ValueError, match="method"):
        score_unlabelled(*network, rows, method="flow", progress=False)


@pytest.mark.parametrize("method", ["tracking", "neighbours"])
def test_frames_are_asked_about_with_the_model_s_own_question(network, monkeypatch, method):
    model, processor = network
    asked, segment = set(), model.segment

    def watched(**request):
        asked.update([request["text"]] if isinstance(request["text"], str) else request["text"])
        return segment(**request)

    monkeypatch.setattr(model, "segment", watched)
    rows = synthetic_dataset(1, 3, 64)
    score_unlabelled(model, processor, rows, method=method, progress=False)
    assert asked == {"Please segment the blood vessel."}
    asked.clear()
    monkeypatch.setattr(model.config, "default_question", "Where is the {phrase|blood vessel=tree}?")
    score_unlabelled(model, processor, rows, method=method, progress=False)
    predict_unlabelled(model, processor, rows)
    assert asked == {"Where is the tree?"}
