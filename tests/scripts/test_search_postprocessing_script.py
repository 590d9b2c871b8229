import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tasks import options, run_task

from sa2va_trl.data import DatasetError, load_dataset_dict
from sa2va_trl.postprocessing import Postprocessing, draw_mask
from sa2va_trl.scripts import choosing


SYNTHETIC = {"train_videos": 1, "validation_videos": 2, "test_videos": 3, "frames_per_video": 2, "size": 64}
# Few, so that it is quick.
FEW = {"thresholds": [0.3, 0.6], "hysteresis": [1.0], "closing_radius": [0], "bridge_length": [0, 6]}


def write_maps(folder, change=lambda values: values):
    """Maps for validation and test: 0.7 within the target, 0.1 outside, and specks of 0.9 everywhere."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    data = load_dataset_dict("synthetic", **SYNTHETIC)
    for split in ("validation", "test"):
        for row in data[split]:
            values = np.where(np.asarray(row["mask"]) > 0, 0.7, 0.1)
            for _ in range(12):
                values[tuple(rng.integers(0, 64, 2))] = 0.9
            np.save(folder / f"{row['sample_id']}.npy", change(values + rng.random(values.shape) * 0.05).astype(float))
    return folder


def run(tmp_path, *line, **values):
    output = tmp_path / "post"
    values = {"synthetic": SYNTHETIC, "min_share": [0.0, 0.001], **FEW, **values}
    run_task("search_postprocessing", *options(tmp_path, **values), "--output_dir", output, *line)
    return json.loads((output / "postprocessing.json").read_text())


def test_specks_of_another_tools_maps_are_worth_dropping(tmp_path, capsys):
    found = run(tmp_path, "--predictions_dir", write_maps(tmp_path / "maps"))
    # 0.001 of 64 x 64 pixels are 5: what is smaller goes.
    assert found["to_store"]["mask_postprocessing"] == {"min_share": 0.001}
    assert found["metric"] == "dice" and found["chosen"]["both"]["searched"] == 3 * 2 * 2
    names = [line["name"] for line in found["table"]]
    assert names == ["0.5", "threshold", "postprocessing", "both"]
    both = found["table"][-1]
    assert both["gain"]["mean"] > 0.01 and both["gain_over_threshold"]["improved"] == 1 and both["dice"]["n"] == 6
    screen = capsys.readouterr().out
    assert '{"min_share": 0.001}' in screen
    assert "no difference that these images can tell" in screen  # of three patients
    assert [file.name for file in (tmp_path / "post").iterdir()] == ["postprocessing.json"]


def test_masks_stop_it_and_nothing_is_left(tmp_path):
    maps = write_maps(tmp_path / "masks", lambda values: values > 0.5)
    with pytest.raises(DatasetError, match="is binary: it holds 0 and 1.*already.*Give the probabilities"):
        run(tmp_path, "--predictions_dir", maps)
    assert not list((tmp_path / "post").iterdir())


def test_a_split_without_anything_to_find_is_refused(tmp_path, monkeypatch):
    data = load_dataset_dict("synthetic", **SYNTHETIC)
    empty = Image.new("L", (64, 64))
    data["validation"] = data["validation"].map(lambda row: {"mask": empty})
    monkeypatch.setattr(choosing, "load_data", lambda args: data)
    with pytest.raises(DatasetError, match="choose_split='validation': the masks are all empty"):
        run(tmp_path, "--predictions_dir", write_maps(tmp_path / "maps"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--choose_split", "test"), "choose_split='test' is the split to report on"),
        (("--choose_split", "dev"), "choose_split='dev': the dataset has no such split"),
        (("--predictions_dir", "nowhere"), "predictions_dir='nowhere' is not there"),
        (("--predictions_dir", ".", "--store"), "store has no meaning"),
        (("--predictions_dir", ".", "--cache_features", "on"), "cache_features and cache_dir"),
        (("--store",), "tiny is no folder"),
        (("--metric", "iou"), "metric must be dice or cldice, got 'iou'"),
        (("--min_share", 2), "min_share of a post-processing must be at least 0 and below 1, got 2"),
        (("--thresholds", 0.4, 1.5), r"thresholds must lie between 0 and 1, got \[1.5\]"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, monkeypatch, line, message):
    monkeypatch.setattr(choosing, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *line)


def test_what_is_stored_is_what_evaluate_and_predict_draw_with(tmp_path, trained, capsys):
    """Of a model; of an adapter, see tests/adapters/test_mask_options.py."""
    from sa2va_trl import Sa2VAForConditionalGeneration, Sa2VAProcessor

    model = Sa2VAForConditionalGeneration.from_pretrained(trained)
    processor = Sa2VAProcessor.from_pretrained(trained)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    named = ("--model_name_or_path", folder)
    # An untrained network: thresholds near its own mean, and what changes its masks.
    values = {"thresholds": [0.4], "min_share": [0.05], "hysteresis": [0.8]}
    found = run(tmp_path, *named, "--store", **values)
    stored = {"mask_threshold": 0.5, "mask_postprocessing": {"min_size": 40, "hysteresis": 0.9}}
    config = json.loads((folder / "config.json").read_text())
    assert {name: config[name] for name in found["to_store"]} == found["to_store"]
    (folder / "config.json").write_text(json.dumps({**config, **stored}))
    settings = Postprocessing(min_size=40, hysteresis=0.9)

    def evaluated(name, *line):
        output = tmp_path / "evaluations" / name
        common = [*options(tmp_path, synthetic=SYNTHETIC), *named, "--report", "false", "--output_dir", output]
        run_task("evaluate", *common, *line)
        return pd.read_parquet(output / "per_sample.parquet")["dice"].tolist()

    own = evaluated("own", "--workers", 1)
    assert f"threshold 0.5, post-processing {settings}" in capsys.readouterr().out
    assert own == evaluated("given", "--postprocessing", json.dumps(settings.to_dict()))
    bare = evaluated("bare", "--postprocessing", "none")
    (folder / "config.json").write_text(json.dumps({**config, **stored, "mask_postprocessing": {}}))
    assert bare == evaluated("unset") != own
    (folder / "config.json").write_text(json.dumps({**config, **stored}))

    # predict and segment
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "image.png")
    asked = {"text": "Please segment the vessel.", "processor": processor, "answer": "Sure, [SEG]."}
    loaded = Sa2VAForConditionalGeneration.from_pretrained(folder).eval()
    result = loaded.segment(image=Image.open(tmp_path / "image.png").convert("RGB"), **asked)
    assert (result.masks[0].numpy() == draw_mask(result.probabilities[0].numpy(), 0.5, settings)).all()

    def predicted(*line):
        output = tmp_path / "predictions"
        common = ("--input", tmp_path / "image.png", "--prompt", asked["text"], "--answer", asked["answer"])
        run_task("predict", *named, *common, "--output_dir", output, *line)
        return np.asarray(Image.open(output / "masks" / "image.png")) > 0

    assert (predicted() == result.masks[0].numpy()).all()
    plain = predicted("--postprocessing", "none")
    assert (plain == (result.probabilities[0].numpy() > 0.5)).all()
