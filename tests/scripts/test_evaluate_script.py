import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from peft import get_peft_model
from PIL import Image
from tasks import options, run_task

from sa2va_trl import tiny_sa2va
from sa2va_trl.adapters.mask_options import store_mask_options
from sa2va_trl.adapters.peft_model import SegPeftModel
from sa2va_trl.adapters.presets import get_peft_config
from sa2va_trl.data import DatasetError, synthetic_dataset
from sa2va_trl.evaluation import compare
from sa2va_trl.metrics import ALL_METRICS, METRICS
from sa2va_trl.scripts import evaluate as evaluate_script
from sa2va_trl.scripts.evaluate import earlier_evaluation, own_threshold
from sa2va_trl.scripts.locks import the_only_one


SYNTHETIC = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 3, "size": 64}

ROUTED = {"train_videos": 1, "validation_videos": 2, "test_videos": 2, "frames_per_video": 2, "size": 64}


def test_evaluate_leaves_metrics_samples_and_overlays(tmp_path, trained):
    output = tmp_path / "evaluation"
    run_task(
        "evaluate",
        *options(tmp_path, synthetic=SYNTHETIC),
        *("--model_name_or_path", trained, "--output_dir", output, "--num_overlays", 2),
    )
    metrics = json.loads((output / "metrics.json").read_text())
    assert set(METRICS) == set(metrics)
    samples = pd.read_parquet(output / "per_sample.parquet")
    assert {"sample_id", "patient_id", "video_id", "frame_index", *METRICS} <= set(samples.columns)
    assert metrics["dice"]["n"] == len(samples) == 3
    assert metrics["dice"]["mean"] == pytest.approx(samples["dice"].mean())
    assert len(list((output / "overlays").glob("*.png"))) == 2
    assert not list(output.glob(".*"))
    page = (output / "report.html").read_text()
    assert page.count('class="picture"') == 3 and 'type="range"' in page and ">Training<" in page
    assert hashlib.sha256((output / "per_sample.parquet").read_bytes()).hexdigest() in page
    assert {"metrics_distribution.png", "training_curves.png"} <= {file.name for file in output.iterdir()}


def test_without_a_page_there_are_no_pictures_to_choose(tmp_path):
    for option in (("--num_pictures", 3), ("--report_pictures", "beside")):
        with pytest.raises(ValueError, match="have no effect with report=false"):
            run_task("evaluate", "--report", "false", *option, "--output_dir", tmp_path / "out")


def test_an_evaluation_that_was_ended_is_taken_up(tmp_path, trained, capsys, monkeypatch):
    line = [*options(tmp_path, synthetic={**SYNTHETIC, "frames_per_video": 5}), "--model_name_or_path", trained]
    line += ["--batch_size", 2, "--num_pictures", 1, "--keep_pictures", "true"]
    run_task("evaluate", *line, "--output_dir", tmp_path / "whole")
    seen = []

    def ended(folder, picture, save=evaluate_script.save_picture):
        save(folder, picture)
        seen.append(picture.name)
        if len(seen) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_script, "save_picture", ended)
    with pytest.raises(KeyboardInterrupt):
        run_task("evaluate", *line, "--output_dir", tmp_path / "ended")
    assert [file.name for file in (tmp_path / "ended").iterdir()] == [".partial"]
    shutil.copytree(tmp_path / "ended", tmp_path / "other")
    run_task("evaluate", *line, "--threshold", 0.4, "--output_dir", tmp_path / "other")
    assert "were scored before" not in capsys.readouterr().out  # of another threshold
    del seen[4:]
    run_task("evaluate", *line, "--output_dir", tmp_path / "ended")
    assert "2 of 5 images were scored before" in capsys.readouterr().out
    assert not list((tmp_path / "ended").glob(".*")) and seen[4:6] == seen[2:4]
    for name in ("per_sample.parquet", "metrics.json"):
        assert (tmp_path / "ended" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for folder in ("overlays", "sample_pictures"):
        whole, ended = (sorted((tmp_path / name / folder).iterdir()) for name in ("whole", "ended"))
        assert [(file.name, file.read_bytes()) for file in whole] == [(file.name, file.read_bytes()) for file in ended]


def test_two_evaluations_into_one_folder_do_not_mix(tmp_path, trained):
    line = [*options(tmp_path, synthetic=SYNTHETIC), "--model_name_or_path", trained, "--output_dir", tmp_path / "out"]
    lock = the_only_one(tmp_path / "out" / ".partial" / "lock", "it is not free")
    with pytest.raises(ValueError, match="out': another evaluation into it is at work"):
        run_task("evaluate", *line)
    lock.close()
    run_task("evaluate", *line)
    assert not list((tmp_path / "out").glob(".*"))


def test_masks_of_another_tool_are_scored_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start evaluate in one process; --workers gives"):
        run_task("evaluate", "--predictions_dir", tmp_path)


def test_two_models_with_thresholds_of_their_own_need_one_of_the_options():
    one, other = (SimpleNamespace(config=SimpleNamespace(mask_threshold=value)) for value in (0.3, 0.6))
    assert own_threshold(None) == 0.5 and own_threshold(None, one) == 0.3 and own_threshold(0.7, one) == 0.7
    assert own_threshold(None, one, one) == 0.3 and own_threshold(0.7, one, other) == 0.7
    with pytest.raises(ValueError, match="0.3 and 0.6: give --threshold"):
        own_threshold(None, one, other)


def test_evaluate_scores_masks_of_another_tool(tmp_path):
    truth = synthetic_dataset(num_videos=1, frames_per_video=3, size=64)
    folder = tmp_path / "masks"
    folder.mkdir()
    for row in truth:
        row["mask"].save(folder / f"{row['sample_id']}.png")
    output = tmp_path / "evaluation"
    common = [*options(tmp_path, synthetic=SYNTHETIC), "--predictions_dir", folder, "--output_dir", output]
    run_task("evaluate", *common)
    assert json.loads((output / "metrics.json").read_text())["dice"]["mean"] == 1.0
    next(folder.iterdir()).unlink()
    with pytest.raises(DatasetError, match="lacks 1 of 3"):
        run_task("evaluate", *common)


def test_all_metrics_go_to_the_files_and_the_screen(tmp_path, capsys):
    truth = synthetic_dataset(num_videos=1, frames_per_video=3, size=64)
    folder, output = tmp_path / "masks", tmp_path / "evaluation"
    folder.mkdir()
    for number, row in enumerate(truth):
        mask = row["mask"] if number else Image.new("L", row["mask"].size)
        mask.save(folder / f"{row['sample_id']}.png")
    common = [*options(tmp_path, synthetic=SYNTHETIC), "--predictions_dir", folder, "--output_dir", output]
    run_task("evaluate", *common, "--metrics", "all")
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics) == [*ALL_METRICS, "by_patient", "by_video"]
    assert (metrics["hd95"]["mean"], metrics["hd95"]["n"], metrics["hd95"]["undefined"]) == (0, 2, 1)
    assert metrics["by_video"]["dice"]["mean"] == pytest.approx(2 / 3) and metrics["by_video"]["dice"]["n"] == 1
    samples = pd.read_parquet(output / "per_sample.parquet")
    assert set(ALL_METRICS) < set(samples) and samples["ece"].isna().all()
    shown = capsys.readouterr().out
    assert "hd95 ↓" in shown and "(1 images undefined)" in shown and "undefined for all images" in shown
    with pytest.raises(ValueError, match="metrics must be overlap or all"):
        run_task("evaluate", *common, "--metrics", "most")
    with pytest.raises(ValueError, match="workers must be 0 or more"):
        run_task("evaluate", *common, "--workers", -1)


def test_evaluation_of_clips_shows_every_frame(monkeypatch, tmp_path):
    film = synthetic_dataset(num_videos=1, frames_per_video=3, size=64)
    masks = [row["mask"] for row in film]
    # Masks of a second object that lie elsewhere in every frame.
    other = [Image.fromarray(np.roll(np.eye(64, dtype=np.uint8) * 255, shift, 1)) for shift in (5, 20, 40)]
    row = {
        "images": [row["image"] for row in film],
        "masks": masks + other,
        "phrases": ["a", "b"],
        "sample_id": "clip",
    }
    features = Features(
        {
            "images": List(ImageFeature()),
            "masks": List(ImageFeature(mode="L")),
            "phrases": List(Value("string")),
            "sample_id": Value("string"),
        }
    )
    DatasetDict({"test": Dataset.from_list([row], features=features)}).save_to_disk(tmp_path / "data")
    from sa2va_trl.scripts import evaluate as evaluation

    truth = np.stack([np.asarray(mask) > 0 for mask in row["masks"]]).astype(np.float32)
    monkeypatch.setattr(evaluation, "predict_probabilities", lambda *arguments, **options: iter([(row, truth)]))
    output = tmp_path / "evaluation"
    run_task(
        "evaluate",
        *("--model_name_or_path", "tiny-random", "--dataset_name", tmp_path / "data", "--output_dir", output),
    )
    assert json.loads((output / "metrics.json").read_text())["dice"]["mean"] == 1
    (file,) = (output / "overlays").glob("*.png")
    picture = np.asarray(Image.open(file))
    assert picture.shape == (3 * 64, 2 * 64, 3)
    for number, frame in enumerate(row["images"]):
        panel = picture[64 * number : 64 * (number + 1)]
        plain = np.asarray(frame.convert("RGB"))
        assert np.array_equal(panel[:, :64], plain)
        painted = (panel[:, 64:] != plain).any(-1)
        assert np.array_equal(painted, truth[[number, 3 + number]].any(0))


# With a second model


@pytest.fixture
def run(tmp_path):
    """Evaluate with some options, and read what is left."""
    options = {"model_name_or_path": "tiny-random", "synthetic": ROUTED, "grounding_image_size": 64}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))

    def run(name, *options):
        output = tmp_path / name
        common = ("--config", tmp_path / "options.yaml", "--num_overlays", 1, "--output_dir", output)
        run_task("evaluate", *common, *options)
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


def test_only_an_evaluation_of_the_same_samples_is_one_to_compare_with(tmp_path):
    for name, samples in {"old": "ab", "latest": "ab", "other": "abc", "protocol": "ab", "own": "ab"}.items():
        (tmp_path / name).mkdir()
        score = "j_and_f" if name == "protocol" else "dice"
        pd.DataFrame({"sample_id": list(samples), score: 0.5}).to_parquet(tmp_path / name / "per_sample.parquet")
        os.utime(tmp_path / name / "per_sample.parquet", (len(list(tmp_path.iterdir())),) * 2)
    samples = pd.DataFrame({"sample_id": ["b", "a"]})
    assert earlier_evaluation(tmp_path / "own", samples, "dice") == str(tmp_path / "latest")
    assert earlier_evaluation(tmp_path / "own", samples, "j_and_f") == str(tmp_path / "protocol")
    assert earlier_evaluation(tmp_path / "own", pd.DataFrame({"sample_id": ["d"]}), "dice") is None


# Averages


def evaluated(tmp_path, name, *line):
    output = tmp_path / name
    run_task("evaluate", *options(tmp_path, synthetic=SYNTHETIC), "--report", "false", "--output_dir", output, *line)
    return pd.read_parquet(output / "per_sample.parquet")


def test_evaluate_averages_over_images_and_models(tmp_path, second, capsys):
    first = ("--model_name_or_path", "tiny-random", "--grounding_image_size", 64)
    alone = evaluated(tmp_path, "alone", *first)
    twice = evaluated(tmp_path, "twice", *first, "--ensemble", "tiny-random")
    pd.testing.assert_frame_equal(twice, alone)
    capsys.readouterr()
    both = evaluated(
        tmp_path, "both", *first, "--ensemble", second, "--tta", "vflip,gamma0.8", "scale0.75", "--report", "true"
    )
    page = (tmp_path / "both" / "report.html").read_text()
    assert f"tiny-random and {second}, averaged with vflip, gamma0.8, scale0.75 on the test split" in page
    assert "averaged over 2 models and plain, vflip, gamma0.8, scale0.75 images" in capsys.readouterr().out
    assert both["sample_id"].tolist() == alone["sample_id"].tolist()
    assert (both["dice"] - alone["dice"]).abs().max() > 1e-3


def test_scores_do_not_depend_on_the_batch(tmp_path):
    first = ("--model_name_or_path", "tiny-random", "--grounding_image_size", 64)
    one, auto = (evaluated(tmp_path, size, *first, "--batch_size", size) for size in ("1", "auto"))
    pd.testing.assert_frame_equal(one, auto, atol=1e-5)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, or auto; got '0'"):
        evaluated(tmp_path, "none", *first, "--batch_size", 0)


def test_folds_of_one_base_are_an_ensemble(tmp_path):
    """Adapters: the first as `adapter`, the others as `ensemble`."""
    folds = []
    for seed in range(2):
        model, _ = tiny_sa2va(image_size=64)
        adapted = SegPeftModel.adopt(get_peft_model(model, get_peft_config("head", model.config.seg_token_id)))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(tmp_path / f"fold{seed}")
        folds.append(tmp_path / f"fold{seed}")
    base = ("--model_name_or_path", "tiny-random", "--grounding_image_size", 64)
    alone = evaluated(tmp_path, "alone", *base, "--adapter", folds[0])
    twice = evaluated(tmp_path, "twice", *base, "--adapter", folds[0], "--ensemble", folds[0])
    pd.testing.assert_frame_equal(twice, alone)
    both = evaluated(tmp_path, "both", *base, "--adapter", folds[0], "--ensemble", folds[1])
    assert (both["dice"] - alone["dice"]).abs().max() > 1e-3
    store_mask_options(folds[1], mask_threshold=0.3)
    with pytest.raises(ValueError, match="thresholds of their own, 0.5, 0.3: give --threshold"):
        evaluated(tmp_path, "none", *base, "--adapter", folds[0], "--ensemble", folds[1])
    line = (*base, "--adapter", folds[0], "--ensemble", folds[1], "--threshold", 0.5)
    pd.testing.assert_frame_equal(evaluated(tmp_path, "given", *line), both)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--tta", "flip"), "tta has no view 'flip', only hflip"),
        (("--tta", "vflip", "--predictions_dir", "masks"), "tta have no meaning with predictions_dir"),
        (("--tta", "vflip", "--router_model", "tiny", "--route_threshold", 0.5), "tta cannot be used with a router"),
        (("--ensemble", "tiny", "--cache_features", "on"), "have no effect with ensemble"),
        (("--tta", "vflip", "--ensemble", "tiny", "--cache_dir", "x"), "have no effect with tta and ensemble"),
    ],
)
def test_averages_that_cannot_be_are_refused(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        evaluated(tmp_path, "none", *line)
