import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from sa2va_trl.data import DatasetError, synthetic_dataset
from sa2va_trl.metrics import METRICS
from sa2va_trl.models import processing


ROOT = Path(__file__).parents[2]
SYNTHETIC = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 3, "size": 64}


def recipe(monkeypatch, name, *options):
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")


def options(tmp_path, **values):
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump(values))
    return ["--config", file]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two steps of the tiny model, once for all tests of what comes after."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        recipe(
            monkeypatch,
            "sft",
            *options(
                folder,
                output_dir=str(folder / "model"),
                grounding_image_size=128,
                synthetic=SYNTHETIC,
                trainable="full",
                max_steps=2,
                per_device_train_batch_size=2,
                num_points=0,
                gradient_checkpointing=False,
                eval_strategy="steps",
                eval_steps=2,
                save_strategy="no",
                use_cpu=True,
                report_to="none",
            ),
        )
    return folder / "model"


def test_sft_leaves_model_processor_card_and_state(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "README.md", "trainer_state.json"} <= names
    history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    assert any("eval_dice" in entry for entry in history)


def test_evaluate_leaves_metrics_samples_and_overlays(monkeypatch, tmp_path, trained):
    output = tmp_path / "evaluation"
    recipe(
        monkeypatch,
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


def test_evaluate_scores_masks_of_another_tool(monkeypatch, tmp_path):
    truth = synthetic_dataset(num_videos=1, frames_per_video=3, size=64)
    folder = tmp_path / "masks"
    folder.mkdir()
    for row in truth:
        row["mask"].save(folder / f"{row['sample_id']}.png")
    output = tmp_path / "evaluation"
    common = [*options(tmp_path, synthetic=SYNTHETIC), "--predictions_dir", folder, "--output_dir", output]
    recipe(monkeypatch, "evaluate", *common)
    assert json.loads((output / "metrics.json").read_text())["dice"]["mean"] == 1.0
    next(folder.iterdir()).unlink()
    with pytest.raises(DatasetError, match="lacks 1 of 3"):
        recipe(monkeypatch, "evaluate", *common)


@pytest.mark.parametrize("kind", ["image", "folder", "video", "video, frame by frame"])
def test_predict_writes_masks_probabilities_and_json(monkeypatch, tmp_path, trained, kind):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(3)]
    source = tmp_path / "input"
    if kind == "folder":
        source.mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(source / f"frame {index}.png")
    elif kind == "image":
        source = source.with_suffix(".png")
        Image.fromarray(frames[0]).save(source)
        frames = frames[:1]
    else:
        av = pytest.importorskip("av")
        source = source.with_suffix(".mp4")
        with av.open(str(source), "w") as container:
            stream = container.add_stream("mpeg4", rate=5)
            stream.width, stream.height = 64, 48
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    output = tmp_path / "output"
    whole = {"image": [], "folder": [], "video": [3], "video, frame by frame": []}[kind]
    clips = watch_segment(monkeypatch)
    recipe(
        monkeypatch,
        "predict",
        *("--model_name_or_path", trained, "--input", source, "--output_dir", output),
        *("--answer", "Sure, [SEG].", "--threshold", 0.25),
        *(("--per_frame", "true") if kind == "video, frame by frame" else ()),
    )
    assert clips == whole
    written = json.loads((output / "predictions.json").read_text())["predictions"]
    assert len(written) == len(frames)
    for entry in written:
        (found,) = entry["objects"]
        mask = np.asarray(Image.open(output / found["mask"]))
        stem = Path(found["mask"]).stem
        probabilities = np.load(output / "probabilities" / f"{stem}.npy")
        assert mask.shape == probabilities.shape == (48, 64)
        assert np.array_equal(mask > 0, probabilities > 0.25)
        assert (output / "overlays" / f"{stem}.png").exists()


def watch_segment(monkeypatch):
    """The lengths of the clips that are segmented."""
    from sa2va_trl import Sa2VAForConditionalGeneration

    segment, clips = Sa2VAForConditionalGeneration.segment, []

    def watched(self, **arguments):
        result = segment(self, **arguments)
        if "video" in arguments:
            clips.append(result.low_res_logits.shape[1])
        return result

    monkeypatch.setattr(Sa2VAForConditionalGeneration, "segment", watched)
    return clips


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
    recipe(
        monkeypatch,
        "evaluate",
        *("--model_name_or_path", "tiny", "--dataset_name", tmp_path / "data", "--output_dir", output),
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


def test_build_preferences_writes_pairs_and_a_contact_sheet(monkeypatch, tmp_path, trained, capsys):
    from datasets import load_dataset

    output = tmp_path / "preferences"
    recipe(
        monkeypatch,
        "build_preferences",
        *options(
            tmp_path, synthetic=SYNTHETIC, chosen=["ground_truth", "stitched"], reward='{"dice": 3, "cldice": 1}'
        ),
        *("--model_name_or_path", trained, "--output_dir", output, "--rejected", "greedy", "worst"),
        *("--dataset_split", "validation", "--min_gap", 0.1, "--num_pictures", 3),
    )
    pairs = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))["validation"]
    gaps = np.array(pairs["chosen_reward"]) - np.array(pairs["rejected_reward"])
    assert len(pairs) and (gaps >= 0.1).all()
    printed = capsys.readouterr().out
    for kind in set(pairs["pair_kind"]):
        assert re.search(rf"{kind} +{list(pairs['pair_kind']).count(kind)} ", printed)
    assert len(set(pairs["pair_kind"])) == 4
    assert Image.open(output / "pairs.png").size == (768, 3 * 256)


def test_build_preferences_pushes(monkeypatch, tmp_path, trained):
    pushed = {}

    def push(self, repo_id, **kwargs):
        pushed.update(kwargs, repo_id=repo_id, rows=len(self))

    monkeypatch.setattr(Dataset, "push_to_hub", push)
    recipe(
        monkeypatch,
        "build_preferences",
        *options(tmp_path, synthetic=SYNTHETIC, output_dir=str(tmp_path / "out"), min_gap=0),
        *("--model_name_or_path", trained, "--push_to_hub", "true", "--hub_dataset_id", "me/pairs"),
    )
    assert pushed == {"repo_id": "me/pairs", "split": "train", "private": True, "rows": 3}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("sft", {"learning_rte": 1e-4}, "learning_rte"),
        ("sft", {"packing": True}, "packing"),
        ("sft", {"synthetic": {"videos": 3}}, "videos"),
        ("sft", {"eval_strategy": "steps", "dataset_eval_split": "holdout"}, "dataset_eval_split"),
        ("sft", {"resume_from_checkpoint": "latest"}, "resume_from_checkpoint"),
        ("evaluate", {"dataset_split": "holdout"}, "dataset_split"),
        ("evaluate", {"threshold": 1.5}, "threshold"),
        ("evaluate", {"grounding_image_size": 100}, "grounding_image_size"),
        ("build_preferences", {"dataset_split": "holdout"}, "dataset_split"),
        ("build_preferences", {"min_gap": 2, "grounding_image_size": 128}, "min_gap=2"),
        ("build_preferences", {"reward": "iou"}, "reward"),
        ("build_preferences", {"rejected": ["best"]}, "rejected"),
        ("build_preferences", {"sampler": {"thresholds": [2]}}, "thresholds"),
        ("build_preferences", {"sampler": {"tokens": False}, "grounding_image_size": 128}, "sampler has no effect"),
        ("build_preferences", {"push_to_hub": True}, "hub_dataset_id"),
        ("predict", {"input": "/no/such/file.png"}, "no file"),
        ("predict", {"input": "x.png", "threshold": 1.5}, "threshold"),
        ("predict", {"input": "x.png", "per_frame": True}, "per_frame"),
        ("predict", {"input": "x.png", "num_frames": 3}, "num_frames"),
        ("predict", {"input": "x.mp4", "per_frame": True, "tracking": "soft"}, "tracking"),
    ],
)
def test_bad_options_name_themselves_and_leave_nothing(monkeypatch, tmp_path, capsys, name, values, message):
    output = tmp_path / "output"
    defaults = {"synthetic": SYNTHETIC} if name != "predict" else {}
    if name == "sft":
        defaults |= {"use_cpu": True, "report_to": "none", "grounding_image_size": 128}
    with pytest.raises((ValueError, TypeError, OSError, SystemExit)) as error:
        recipe(monkeypatch, name, *options(tmp_path, **{**defaults, **values}), "--output_dir", output)
    assert message in str(error.value) + capsys.readouterr().err
    assert not output.exists()


def test_bad_pictures_of_a_folder_are_reported_together(monkeypatch, tmp_path, trained):
    folder = tmp_path / "input"
    folder.mkdir()
    Image.new("L", (64, 64)).save(folder / "good.png")
    (folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:40])
    Image.fromarray(np.full((64, 64), 40000, dtype=np.uint16)).save(folder / "deep.png")
    with pytest.raises(DatasetError, match="2 of 3") as error:
        recipe(
            monkeypatch, "predict", "--model_name_or_path", trained, "--input", folder, "--output_dir", tmp_path / "o"
        )
    assert "torn.png" in str(error.value) and "deep.png" in str(error.value)
    assert not (tmp_path / "o").exists()


def test_what_is_not_a_native_model_is_refused(tmp_path, trained):
    from safetensors.torch import load_file, save_file

    from sa2va_trl.scripts.arguments import ModelArguments
    from sa2va_trl.scripts.loading import load_model

    for kind, config in (("adapter", {}), ("llama", {"model_type": "llama"})):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / ("adapter_config.json" if kind == "adapter" else "config.json")).write_text(json.dumps(config))
        with pytest.raises(ValueError, match=kind):
            load_model(ModelArguments(model_name_or_path=str(folder)))
    folder = tmp_path / "incomplete"
    shutil.copytree(trained, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_hidden_fcs.2.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"text_hidden_fcs\.2\.bias"):
        load_model(ModelArguments(model_name_or_path=str(folder)))


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_a_tiny_model_of_each_family(family):
    from sa2va_trl.scripts.arguments import ModelArguments
    from sa2va_trl.scripts.loading import load_model

    name = "tiny" if family == "internvl" else f"tiny-{family}"
    model, processor = load_model(
        ModelArguments(model_name_or_path=name, dtype="bfloat16", attn_implementation="eager", grounding_image_size=64)
    )
    assert model.config.vlm_config.model_type == family and model.dtype == torch.bfloat16
    assert model.vlm.model.language_model.config._attn_implementation == "eager"
    assert processor.grounding_image_size == model.config.grounding_config.image_size == 64


def test_the_style_of_prompts_is_the_options_the_adapters_or_the_models(tmp_path):
    from peft import get_peft_model

    from sa2va_trl.adapters.peft_model import SegPeftModel
    from sa2va_trl.adapters.presets import get_peft_config
    from sa2va_trl.scripts.arguments import ModelArguments
    from sa2va_trl.scripts.loading import load_model

    def style(**options):
        model, processor = load_model(ModelArguments(**{**given, **options}))
        assert processor.is_official == (processor.prompt_style == "official")
        return processor.prompt_style

    given = {"model_name_or_path": "tiny-qwen2_5_vl", "grounding_image_size": 64}
    assert style() == "training" and style(prompt_style="official") == "official"
    model, processor = load_model(ModelArguments(**given, prompt_style="official"))
    for layout in ("native", "published"):
        model.save_pretrained(tmp_path / layout, layout=layout)
        processor.save_pretrained(tmp_path / layout, layout=layout)
        given["model_name_or_path"] = str(tmp_path / layout)
        assert style() == "official" and style(prompt_style="training") == "training"
    adapter = tmp_path / "adapter"
    SegPeftModel.adopt(get_peft_model(model, get_peft_config("head", model.config.seg_token_id))).save_pretrained(
        adapter
    )
    # Without a processor beside the adapter, the base's.
    assert style(adapter=str(adapter)) == "official"
    processor.prompt_style = "training"
    processor.save_pretrained(adapter)
    assert style(adapter=str(adapter)) == "training"
    assert style(adapter=str(adapter), prompt_style="official") == "official"
    # Opening and budget of a clip's frame come with the adapter, too, whatever the style.
    processor.official_opening, processor.clip_size = "Hi.", {"shortest_edge": 784, "longest_edge": 7840}
    processor.save_pretrained(adapter)
    for asked in ({}, {"prompt_style": "official"}):
        _, other = load_model(ModelArguments(**given, adapter=str(adapter), **asked))
        assert (other.official_opening, other.clip_size) == ("Hi.", processor.clip_size)
        assert ("Hi." in other.chat_template) == bool(asked)
    # A processor of an earlier version has one style.
    content = json.loads((adapter / "processor_config.json").read_text())
    del content["prompt_style"]
    (adapter / "processor_config.json").write_text(json.dumps(content))
    assert style(adapter=str(adapter)) == "training"
    with pytest.raises(ValueError, match="prompt_style must be one of training, official, got 'demo'"):
        style(prompt_style="demo")


@pytest.mark.parametrize("style", ["training", "official"])
def test_predict_asks_in_the_style_that_is_given(monkeypatch, tmp_path, style):
    picture = tmp_path / "one.png"
    Image.effect_noise((100, 60), 80).convert("RGB").save(picture)
    seen = []
    original = processing.size_of_first_step
    monkeypatch.setattr(processing, "size_of_first_step", lambda *size: seen.append(size) or original(*size))
    common = ["--input", picture, "--output_dir", tmp_path / "out", "--model_name_or_path", "tiny-qwen3_vl"]
    recipe(monkeypatch, "predict", *common, "--prompt_style", style, "--answer", "Sure, [SEG].")
    assert bool(seen) == (style == "official")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "configs").glob("*/sft.yaml")), ids=lambda f: f.parent.name
)
def test_published_configs_parse(file, tmp_path, monkeypatch):
    from trl import TrlParser

    from sa2va_trl import SegSFTConfig
    from sa2va_trl.scripts.arguments import DataArguments, ModelArguments, SplitArguments

    parser = TrlParser((DataArguments, SplitArguments, SegSFTConfig, ModelArguments))
    arguments = ["--config", str(file), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    _, _, training, _ = parser.parse_args_and_config(arguments)
    assert training.output_dir == str(tmp_path)


@pytest.mark.parametrize("file", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_accelerate_configs_load(file):
    loaded = load_config_from_file(str(file))
    assert loaded.num_processes >= 1
