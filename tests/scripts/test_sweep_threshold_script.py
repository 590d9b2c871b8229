import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tasks import options, run_task

from sa2va_trl.adapters.mask_options import MASK_OPTIONS
from sa2va_trl.data import DatasetError, load_dataset_dict
from sa2va_trl.evaluation.thresholds import THRESHOLDS
from sa2va_trl.scripts import choosing, sweep_threshold


SYNTHETIC = {"train_videos": 1, "validation_videos": 2, "test_videos": 3, "frames_per_video": 2, "size": 64}


def write_maps(folder, write, seed=0):
    """Maps of a known model for validation and test: 0.3 to 0.4 within the target, 0 to 0.2 outside of it."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    data = load_dataset_dict("synthetic", **SYNTHETIC)
    for split in ("validation", "test"):
        for row in data[split]:
            target = np.asarray(row["mask"]) > 0
            values = np.where(target, 0.3, 0.0) + rng.random(target.shape) * np.where(target, 0.1, 0.2)
            write(folder / row["sample_id"], values.astype(np.float32))
    return folder


def run(tmp_path, *line, **values):
    output = tmp_path / "thresholds"
    run_task("sweep_threshold", *options(tmp_path, synthetic=SYNTHETIC, **values), "--output_dir", output, *line)
    return json.loads((output / "thresholds.json").read_text())


@pytest.mark.parametrize("kind", ["npy", "png"])
def test_a_sweep_over_maps_of_another_tool_finds_the_known_threshold(tmp_path, capsys, kind):
    def write(path, values):
        if kind == "npy":
            np.save(f"{path}.npy", values)
        else:
            Image.fromarray((values * 255).round().astype(np.uint8)).save(f"{path}.png")

    found = run(tmp_path, "--predictions_dir", write_maps(tmp_path / "maps", write))
    chosen = found["chosen"]
    assert chosen["threshold"] in (0.29, 0.3) and chosen["value"] == 1 and chosen["n"] == 4
    table = {line["rule"]: line for line in found["rules"]}
    assert table["0.5"]["dice"]["mean"] == 0 and table["0.5"]["dice"]["n"] == 6
    assert table[f"{chosen['threshold']:g}, chosen on validation"]["gain"]["mean"] == 1
    assert found["thresholds"] == list(THRESHOLDS) and len(found["curves"]["test"]["dice"]["mean"]) == 99
    # Of such maps, whose 0.3 is certain, log-odds are too small.
    calibration = found["calibration"]
    assert calibration["temperature"] < 1 and calibration["before"]["temperature"] == 1
    assert calibration["after"]["temperature"] == calibration["temperature"]
    screen = capsys.readouterr().out
    assert "Dice on test: +1.0000 [+1.0000, +1.0000]: a gain" in screen and "highest expected Dice" in screen
    names = {file.name for file in (tmp_path / "thresholds").iterdir()}
    assert names == {"thresholds.json", "curves.png", "reliability.png"}


def test_masks_stop_it(tmp_path):
    def write(path, values):
        Image.fromarray((values > 0.25).astype(np.uint8) * 255).save(f"{path}.png")

    with pytest.raises(DatasetError, match="is binary: it holds 0 and 1.*already.*Give the probabilities"):
        run(tmp_path, "--predictions_dir", write_maps(tmp_path / "masks", write))
    assert not (tmp_path / "thresholds").exists() or not list((tmp_path / "thresholds").glob("*.json"))


def test_without_matplotlib_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep_threshold, "find_spec", lambda name: None)
    run(tmp_path, "--predictions_dir", write_maps(tmp_path / "maps", lambda path, values: np.save(path, values)))
    assert "pip install 'sa2va_trl[report]'" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "thresholds").iterdir()] == ["thresholds.json"]


def test_a_split_without_anything_to_find_is_refused(tmp_path, monkeypatch):
    data = load_dataset_dict("synthetic", **SYNTHETIC)
    empty = Image.new("L", (64, 64))
    data["validation"] = data["validation"].map(lambda row: {"mask": empty})
    monkeypatch.setattr(choosing, "load_data", lambda args: data)
    maps = write_maps(tmp_path / "maps", lambda path, values: np.save(path, values))
    with pytest.raises(DatasetError, match="choose_split='validation': the masks are all empty"):
        run(tmp_path, "--predictions_dir", maps)


def test_patients_in_both_splits_are_refused(tmp_path, monkeypatch):
    data = load_dataset_dict("synthetic", **SYNTHETIC)
    data["test"] = data["validation"]
    monkeypatch.setattr(choosing, "load_data", lambda args: data)
    with pytest.raises(DatasetError, match="validation and test overlap"):
        run(tmp_path, "--predictions_dir", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--choose_split", "test"), "choose_split='test' is the split to report on"),
        (("--choose_split", "dev"), "choose_split='dev': the dataset has no such split"),
        (("--predictions_dir", "nowhere"), "predictions_dir='nowhere' is not there"),
        (("--predictions_dir", ".", "--store"), "store has no meaning"),
        (("--predictions_dir", ".", "--cache_features", "on"), "cache_features and cache_dir"),
        (("--store",), "tiny is no folder"),
        (("--model_name_or_path", "owner/name", "--store"), "owner/name is none"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, monkeypatch, line, message):
    monkeypatch.setattr(choosing, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *line)


def test_a_stored_threshold_is_what_the_model_is_evaluated_with(tmp_path, trained, capsys):
    """Of an adapter, whose base is left as it was."""
    from peft import get_peft_model

    from sa2va_trl import Sa2VAForConditionalGeneration
    from sa2va_trl.adapters.peft_model import SegPeftModel
    from sa2va_trl.adapters.presets import get_peft_config

    base = Sa2VAForConditionalGeneration.from_pretrained(trained)
    adapted = SegPeftModel.adopt(get_peft_model(base, get_peft_config("head", base.config.seg_token_id)))
    adapted.save_pretrained(tmp_path / "adapter")
    config = (trained / "config.json").read_bytes()
    model = ("--model_name_or_path", trained, "--adapter", tmp_path / "adapter")
    found = run(tmp_path, *model, "--store")
    stored = json.loads((tmp_path / "adapter" / MASK_OPTIONS).read_text())
    assert stored == found["to_store"] and (trained / "config.json").read_bytes() == config
    assert stored["mask_temperature"] == found["calibration"]["temperature"] != 1
    assert "--threshold" not in capsys.readouterr().out.splitlines()[-1]

    def evaluated(name, *line):
        output = tmp_path / "evaluations" / name
        common = [*options(tmp_path, synthetic=SYNTHETIC), *model, "--num_overlays", 0, "--output_dir", output]
        run_task("evaluate", *common, *line)
        return pd.read_parquet(output / "per_sample.parquet")["dice"].to_numpy()

    # The masks are those of the chosen threshold before there was a temperature.
    (line,) = (line for line in found["rules"] if line["rule"].endswith("chosen on validation"))
    own = evaluated("own")
    assert own.mean() == pytest.approx(line["dice"]["mean"], abs=2e-3)
    assert f"threshold {stored['mask_threshold']:g}" in capsys.readouterr().out
    assert evaluated("given", "--threshold", stored["mask_threshold"]).tolist() == own.tolist()
    half = found["rules"][0]["dice"]["mean"]
    assert evaluated("half", "--threshold", 0.5).mean() == pytest.approx(half, abs=2e-3)
