import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from sa2va_trl import tiny_sa2va
from sa2va_trl.evaluation import compare


ROOT = Path(__file__).parents[2]
SYNTHETIC = {"train_videos": 1, "validation_videos": 2, "test_videos": 2, "frames_per_video": 2, "size": 64}
PICTURES = [np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8) for seed in range(3)]


def recipe(monkeypatch, name, *options):
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A second model: the tiny one with another mask head."""
    folder = tmp_path_factory.mktemp("second")
    model, processor = tiny_sa2va(image_size=64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.text_hidden_fcs.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Evaluate with some options, and read what is left."""
    (tmp_path / "options.yaml").write_text(yaml.safe_dump({"synthetic": SYNTHETIC, "grounding_image_size": 64}))

    def run(name, *options):
        output = tmp_path / name
        common = ("--config", tmp_path / "options.yaml", "--num_overlays", 1, "--output_dir", output)
        recipe(monkeypatch, "evaluate", *common, *options)
        return output, pd.read_parquet(output / "per_sample.parquet")

    return run


def test_evaluate_routes_by_a_threshold(run, second, capsys):
    _, first = run("first")
    _, other = run("second", "--model_name_or_path", second)
    assert "routed" not in first
    capsys.readouterr()
    output, found = run("none", "--router_model", second, "--route_threshold", -1)
    assert not found["routed"].any() and found["predicted_iou"].between(0, 1).all()
    assert found[first.columns].equals(first)
    assert "no image reaches the second model" in capsys.readouterr().out
    assert json.loads((output / "router.json").read_text()) == {
        "by": "predicted_iou",
        "threshold": -1.0,
        "fitted_on": None,
    }
    _, found = run("all", "--router_model", second, "--route_threshold", 2)
    assert found["routed"].all() and found[other.columns].equals(other)
    middle = float(np.sort(found["predicted_iou"])[1:3].mean())
    output, found = run("some", "--router_model", second, "--route_threshold", middle)
    assert found["routed"].tolist() == (found["predicted_iou"] < middle).tolist() and found["routed"].sum() == 2
    assert "2 of 4 images went to the second model" in capsys.readouterr().out
    expected = np.where(found["routed"], other["dice"], first["dice"])
    assert found["dice"].to_numpy() == pytest.approx(expected, abs=1e-3)
    # Its gain or loss is measured as a stage's is.
    assert compare({"first": first, "routed": found})["differences"][0]["n"] == 4
    run("some")
    assert not (output / "router.json").exists()


def test_evaluate_chooses_the_threshold_on_another_split(run, second, capsys):
    options = ("--router_model", second, "--route_by", "spread")
    output, found = run("fitted", *options, "--route_split", "validation")
    router = json.loads((output / "router.json").read_text())
    assert (router["by"], router["fitted_on"], router["n"]) == ("spread", "validation", 4)
    assert router["dice_routed"] >= max(router["dice_first"], router["dice_second"]) - 1e-9
    assert found["routed"].tolist() == (found["spread"] > router["threshold"]).tolist()
    assert "threshold chosen on 4 images of validation" in capsys.readouterr().out
    _, again = run("given", *options, "--route_threshold", router["threshold"])
    assert again.equals(found)
    _, own = run("validation", "--dataset_split", "validation")
    assert router["dice_first"] == pytest.approx(own["dice"].mean())


def predict(monkeypatch, tmp_path, name, *options):
    source = tmp_path / "input"
    source.mkdir(exist_ok=True)
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(source / f"{index}.png")
    common = ("--input", source, "--output_dir", tmp_path / name, "--answer", "Sure, [SEG].")
    recipe(monkeypatch, "predict", *common, "--grounding_image_size", 64, *options)
    entries = json.loads((tmp_path / name / "predictions.json").read_text())["predictions"]
    return entries, [np.load(file) for file in sorted((tmp_path / name / "probabilities").glob("*.npy"))]


def test_predict_routes(monkeypatch, tmp_path, second, capsys):
    entries, first = predict(monkeypatch, tmp_path, "first")
    assert all("routed" not in entry for entry in entries)
    _, other = predict(monkeypatch, tmp_path, "second", "--model_name_or_path", second)
    scores = [entry["objects"][0]["predicted_iou"] for entry in entries]
    middle = float(np.sort(scores)[:2].mean())
    options = ("--router_model", second, "--route_threshold", middle)
    entries, found = predict(monkeypatch, tmp_path, "routed", *options)
    assert [entry["routed"] for entry in entries] == [score < middle for score in scores]
    assert [entry["predicted_iou"] for entry in entries] == pytest.approx(scores)
    for entry, maps, one, two in zip(entries, found, first, other, strict=True):
        np.testing.assert_array_equal(maps, two if entry["routed"] else one)
        assert np.abs(one - two).max() > 0.01
    assert "1 of 3 images went to the second model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("evaluate", ("--route_split", "validation"), "route_split has no effect without"),
        ("evaluate", ("--route_threshold", "0.5"), "route_threshold has no effect without"),
        ("evaluate", ("--router_model", "SECOND"), "either route_threshold or route_split"),
        (
            "evaluate",
            ("--router_model", "SECOND", "--route_threshold", "0.5", "--route_split", "validation"),
            "either route_threshold or route_split",
        ),
        ("evaluate", ("--router_model", "SECOND", "--route_split", "test"), "is the split to score"),
        ("evaluate", ("--router_model", "SECOND", "--route_split", "dev"), "no such split"),
        (
            "evaluate",
            ("--router_model", "SECOND", "--route_threshold", "0.5", "--predictions_dir", "masks"),
            "no model runs",
        ),
        ("evaluate", ("--router_model", "tiny", "--route_threshold", "0.5"), "could not take effect"),
        ("predict", ("--input", "film.mp4", "--router_model", "SECOND", "--route_threshold", "0.5"), "add per_frame"),
        ("predict", ("--input", "picture.png", "--router_model", "SECOND"), "A router needs route_threshold"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(monkeypatch, tmp_path, second, name, options, message):
    options = [str(second) if option == "SECOND" else option for option in options]
    output = tmp_path / "output"
    if name == "evaluate":
        options += ["--synthetic", json.dumps(SYNTHETIC)]
    with pytest.raises(ValueError, match=message):
        recipe(monkeypatch, name, *options, "--output_dir", output)
    assert not output.exists()
