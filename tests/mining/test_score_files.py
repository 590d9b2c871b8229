import json

import pandas as pd
import pytest
import torch
from datasets import concatenate_datasets

from sa2va_trl.errors import MiningError
from sa2va_trl.mining.score_files import fingerprint_of, read_scores, save_scores


def test_scores_of_another_model_or_data_set_are_refused(network, rows, scores, tmp_path):
    model, processor = network
    own = fingerprint_of(model, processor, rows)
    save_scores(scores, tmp_path / "new" / "scores.parquet", own)
    pd.testing.assert_frame_equal(read_scores(tmp_path / "new" / "scores.parquet", own), scores)
    pd.testing.assert_frame_equal(read_scores(tmp_path / "new" / "scores.parquet"), scores)
    assert own == json.loads(json.dumps(own)) and [file.name for file in (tmp_path / "new").iterdir()] == [
        "scores.parquet"
    ]

    shuffled = fingerprint_of(model, processor, rows.shuffle(seed=0))
    assert shuffled == own
    fewer = fingerprint_of(model, processor, rows.select(range(20)))
    with pytest.raises(MiningError, match="another data set .36 rows, not 20"):
        read_scores(tmp_path / "new" / "scores.parquet", fewer)
    with torch.no_grad():
        weight = next(model.grounding_encoder.sam2_model.sam_mask_decoder.parameters())
        weight[0] += 1e-3
        changed = fingerprint_of(model, processor, rows)
        weight[0] -= 1e-3
    with pytest.raises(MiningError, match="another model .its weights differ"):
        read_scores(tmp_path / "new" / "scores.parquet", changed)


def test_masks_and_frames_are_part_of_the_data_set(network, rows):
    few = rows.select(range(3))
    own = fingerprint_of(*network, few)["dataset"]
    swapped = few.select([1, 0, 2]).select_columns("mask").flatten_indices()
    swapped = concatenate_datasets([few.remove_columns("mask").flatten_indices(), swapped], axis=1)
    assert fingerprint_of(*network, swapped)["dataset"] != own
    moved = few.remove_columns("frame_index").add_column("frame_index", [0, 2, 1])
    assert fingerprint_of(*network, moved)["dataset"] != own


def test_files_that_hold_no_scores_are_refused(tmp_path, scores):
    with pytest.raises(MiningError, match="cannot be read"):
        read_scores(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(MiningError, match="cannot be read"):
        read_scores(tmp_path / "text.parquet")
    scores.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(MiningError, match="holds no scores"):
        read_scores(tmp_path / "other.parquet")


def test_what_is_asked_is_part_of_what_scores_are_of(network, rows, monkeypatch):
    few = rows.select(range(3))
    own = fingerprint_of(*network, few)
    monkeypatch.setattr(network[0].config, "default_question", "Where is the {phrase}?")
    other = fingerprint_of(*network, few)
    assert other["dataset"] != own["dataset"] and other["model"] == own["model"]
