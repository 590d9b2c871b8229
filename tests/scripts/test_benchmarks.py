import csv
import json
import runpy
import sys
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import nn

from sa2va_trl import Sa2VAConfig, Sa2VAForConditionalGeneration
from sa2va_trl.models.grounding import GroundingEncoder, whole_weights
from sa2va_trl.models.quantization import quantised_layers
from sa2va_trl.trainers import step_bytes
from sa2va_trl.trainers.memory import Need
from sa2va_trl.trainers.needs import NeedsMixin


SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmarks" / "inference.py"


def benchmark(monkeypatch, *options, name="inference"):
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    runpy.run_path(str(SCRIPT.with_stem(name)), run_name="__main__")


PARTS = ("states_to_segment", "with_pyramid", "decode_masks")


def counted(monkeypatch, kind, name, calls, describe):
    """Leave `describe(result, arguments)` of every call of a method in `calls`."""
    method = getattr(kind, name)

    def call(self, *args, **kwargs):
        result = method(self, *args, **kwargs)
        calls.append(describe(result, kwargs))
        return result

    monkeypatch.setattr(kind, name, call)


def test_numbers_of_the_file_belong_together(monkeypatch, tmp_path, capsys):
    generated, segmented, encoded, passes = [], [], [], []
    model = Sa2VAForConditionalGeneration
    counted(monkeypatch, model, "generate", generated, lambda ids, given: ids.shape[1] - given["input_ids"].shape[1])
    counted(
        monkeypatch, model, "segment", segmented, lambda result, _: (len(result.phrases), result.low_res_logits.ndim)
    )
    counted(monkeypatch, GroundingEncoder, "encode", encoded, lambda _, __: None)
    counted(monkeypatch, model, "states_to_segment", passes, lambda _, __: len(segmented))
    benchmark(
        monkeypatch,
        *("--grounding", "own", "--grounding_image_size", 128, "--image_size", 64, "--num_frames", 3),
        *("--new_tokens", 2, 7, "--repeats", 3, "--clip_repeats", 2, "--output_dir", tmp_path),
        *("--objects", 1, 2, "--prompt_tokens", 700, "--turns", 3, "--dialogue_tokens", 300),
    )
    content = json.loads((tmp_path / "inference.json").read_text())
    about, results, ratios = content["about"], content["results"], content["ratios"]
    assert about["torch"] == torch.__version__ and about["grounding_image_size"] == 128 and about["num_frames"] == 3
    assert "output_dir" not in about and str(tmp_path) not in json.dumps(content)
    assert list(content["start_up"]) == ["image 1", "image 5", "clip 1", "clip 5", "answer 2", "answer 7"]
    assert min(content["start_up"].values()) > 0 and about["torch_compile"] is False
    assert {name: list(cases) for name, cases in results.items()} == {
        "image": ["1", "5"],
        "clip": ["1", "5"],
        "answer": ["2", "7"],
        "one_pass": ["1", "2"],
        "two_passes": ["1", "2"],
        "dialogue": ["1", "2", "3"],
    }
    for name, cases in results.items():
        measures = {"seconds", "processor_seconds", "peak_bytes", "extra_bytes"}
        measures |= {f"{part}_seconds" for part in PARTS} if name == "image" else set()
        for case in cases.values():
            assert set(case) == {*measures, "runs"} and set(case["runs"]) == measures
            for measure in measures:
                assert len(case["runs"][measure]) == (2 if name == "clip" else 3)
                summary = median if measure.endswith("seconds") else max
                assert case[measure] == summary(case["runs"][measure])
            assert case["seconds"] > 0 and case["peak_bytes"] > case["extra_bytes"] >= 0
    for one in results["image"].values():
        for whole, *parts in zip(
            *(one["runs"][name] for name in ("seconds", *(f"{part}_seconds" for part in PARTS))), strict=True
        ):
            assert min(parts) > 0 and sum(parts) < whole

    for name in ("image", "clip"):
        one, five = (results[name][objects]["seconds"] for objects in "15")
        assert ratios[f"{name}_5_to_1"] == pytest.approx(five / one)
    for objects in "15":
        one = results["image"][objects]
        encode = one["states_to_segment_seconds"] + one["with_pyramid_seconds"]
        assert ratios["image_encode_share"][objects] == pytest.approx(encode / one["seconds"])
        assert ratios["image_decode_share"][objects] == pytest.approx(one["decode_masks_seconds"] / one["seconds"])
        assert ratios["clip_seconds_per_frame"][objects] == pytest.approx(results["clip"][objects]["seconds"] / 3)
    extra = [results["answer"][tokens]["extra_bytes"] for tokens in "27"]
    assert ratios["bytes_per_token"] == pytest.approx((extra[1] - extra[0]) / 5)
    # Three layers, two key-value heads of 24 channels and 96 channels of hidden states, in float32.
    assert ratios["bytes_per_token_of_cache"] == 3 * 2 * 2 * 24 * 4
    assert ratios["bytes_per_token_of_hidden_states"] == 4 * 96 * 4

    for key in ("seconds", "processor_seconds", "peak_bytes", "extra_bytes"):
        two, three = (results["dialogue"][turn][key] for turn in "23")
        assert ratios[f"dialogue_3_to_2_{key}"] == pytest.approx(three / two)
    for key in ("seconds", "processor_seconds"):
        for objects in "12":
            one, two = (results[name][objects]["runs"][key] for name in ("one_pass", "two_passes"))
            pairs = [first / second for first, second in zip(one, two, strict=True)]
            assert ratios[f"one_pass_to_two_{key}"][objects] == pytest.approx(median(pairs))

    # What was timed is what the names say: a warm-up each, then turns that go back and forth.
    assert generated[:8] == [2, 7, 2, 7, 7, 2, 2, 7]
    turns = [1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 2, 2]
    assert [objects for objects, _ in segmented] == [1, 5, 1, 5, 5, 1, 1, 5] + [1, 5, 1, 5, 5, 1] + [1] + turns
    assert [dimensions for _, dimensions in segmented] == [3] * 8 + [4] * 6 + [3] * 13
    # Once an image and once a frame, however many objects, where two frames warm up; and once a dialogue.
    assert len(encoded) == 8 + 2 * 2 + 3 * 4 + 13 + 4
    assert len(generated) == 8 + 13 + 2 + 3 * 3 and set(generated[8:]) == {20}
    # Every given answer is a pass, and of every pair of written ones the one with two passes is.
    assert passes == [*range(14), 16, 18, 19, 21, 24, 26]
    assert "image_5_to_1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grounding", "small"), "grounding must be"),
        (("--grounding", "real", "--model_name_or_path", "somewhere"), "grounding=real"),
        (("--new_tokens", "16"), "new_tokens"),
        (("--new_tokens", "16", "16"), "new_tokens"),
        (("--clip_repeats", "0"), "clip_repeats"),
        (("--vlm", "small"), "vlm must be"),
        (("--vlm", "language", "--model_name_or_path", "somewhere", "--grounding", "own"), "vlm=language"),
        (("--cases", "film"), "cases must be"),
        (("--turns", "1"), "turns must be at least 2"),
        (("--objects", "0"), "objects must be"),
    ],
)
def test_options_that_cannot_work_are_refused(monkeypatch, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        benchmark(monkeypatch, *options, "--output_dir", tmp_path / "output")
    assert list(tmp_path.iterdir()) == []


def test_the_sizes_of_the_memory_page_are_the_published_ones():
    page = runpy.run_path(str(SCRIPT.with_name("memory.py")))
    totals = {
        "Sa2VA-1B": 1_163_665_458,
        "Sa2VA-4B": 3_941_809_458,
        "Sa2VA-8B": 8_317_666_610,
        "Sa2VA-26B": 25_778_005_682,
        "Sa2VA-InternVL3-2B": 2_316_157_234,
        "Sa2VA-InternVL3-8B": 8_182_606_130,
        "Sa2VA-InternVL3-14B": 15_369_268_530,
        "Sa2VA-Qwen3-VL-2B": 2_666_774_834,
    }
    for name, config in page["published"]().items():
        if name in totals:
            with whole_weights(), torch.device("meta"):
                model = Sa2VAForConditionalGeneration(Sa2VAConfig(vlm_config=config))
            assert sum(parameter.numel() for parameter in model.parameters()) == totals[name], name
    written = (SCRIPT.parents[2] / "docs" / "memory.md").read_text()
    assert all(f"| {name} |" in written for name in page["published"]())


def test_a_training_says_what_its_steps_took(monkeypatch, tmp_path, capsys):
    # (What is counted on models without values has tests of its own.)
    need = Need(weights=2**30, trained=2**29, activations=2**28, context=0, host=0)
    models = []
    monkeypatch.setattr(NeedsMixin, "tell_needs", lambda self: need)

    def step_flops(model, batch, autocast, cached):
        models.append((model, autocast, cached))
        return 3e9

    monkeypatch.setattr(step_bytes, "step_flops", step_flops)
    sizes = ("--steps", 2, "--warm_up", 1, "--image_size", 64, "--batch_size", 2, "--peak_tflops", 0.5)
    benchmark(monkeypatch, *sizes, "--cases", "qlora", "cache", "--output_dir", tmp_path, name="train")
    content = json.loads((tmp_path / "train.json").read_text())
    about, results = content["about"], content["results"]
    assert about["device_name"] == "CPU" and about["torch"] == torch.__version__ and about["batch_size"] == 2
    assert str(tmp_path) not in json.dumps(content)
    assert {name: case["computed_in"] for name, case in results.items()} == {"qlora": "bfloat16", "cache": "float32"}
    for case in results.values():
        assert len(case["runs"]["seconds_per_step"]) == 2  # the warm-up is not among them
        assert case["seconds_per_step"] == median(case["runs"]["seconds_per_step"]) > case["waiting_seconds_per_step"]
        assert case["processor_seconds_per_step"] == median(case["runs"]["processor_seconds_per_step"]) > 0
        assert case["samples_per_second"] == pytest.approx(2 / case["seconds_per_step"])
        assert case["tflops"] == pytest.approx(case["tflop_per_step"] / case["seconds_per_step"])
        assert case["utilisation"] == pytest.approx(case["tflops"] / 0.5)
        assert case["peak_gib"] >= case["before_gib"] > 0
    packed, cached = results["qlora"], results["cache"]
    assert packed["tokens_per_second"] == pytest.approx(packed["samples_per_second"] * packed["tokens_per_sample"])
    assert cached["tokens_per_second"] is None  # features stand in for them
    assert packed["trained_parameters"] > cached["trained_parameters"]  # LoRA beside the head
    assert {case["counted_gib"] for case in results.values()} == {1.75}
    (packed, half, read), (whole, single, cached) = models
    assert (half, read, single, cached) == (torch.bfloat16, False, None, True)
    assert sorted(name.removesuffix(".base_layer") for name in quantised_layers(packed)) == sorted(
        name for name, layer in whole.named_modules() if type(layer) is nn.Linear and "language_model.layers" in name
    )
    lines = list(csv.DictReader((tmp_path / "train.csv").open()))
    assert [line["case"] for line in lines] == ["qlora", "cache"] and lines[0]["device_name"] == "CPU"
    assert "of peak" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "3b"), "size must be"),
        (("--tiles", "7"), "tiles=7: tiny"),
        (("--size", "1b", "--tiles", "2"), "tiles must be 1, or 3"),
        (("--steps", "0"), "steps must be"),
        (("--count_only",), "count_only"),
        (("--peak_tflops", "-1"), "peak_tflops must be"),
        pytest.param(
            ("--attn_implementation", "flash_attention_2"),
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU"),
        ),
        pytest.param(
            ("--memory_gib", "24"),
            "there is none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU"),
        ),
    ],
)
def test_options_of_a_training_that_cannot_take_effect_are_refused(monkeypatch, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        benchmark(monkeypatch, *options, "--output_dir", tmp_path / "output", name="train")
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_deepspeed_takes_one_case(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SystemExit):
        benchmark(monkeypatch, "--output_dir", tmp_path, name="train")
    assert "one of the cases" in capsys.readouterr().err.splitlines()[-1]


def test_rows_are_timed_part_by_part(monkeypatch, tmp_path, capsys):
    sizes = ("--sizes", 64, "--tiles", 3, "--grounding_image_size", 128, "--repeats", 1)
    benchmark(
        monkeypatch, *sizes, "--workers", 0, "--rows", 3, "--model", "none", "--output_dir", tmp_path, name="data"
    )
    content = json.loads((tmp_path / "data.json").read_text())
    seconds = content["64"]["seconds"]
    assert all(value > 0 for value in seconds.values())
    assert content["64"]["extra_bytes"].keys() == seconds.keys()
    assert content["64"]["extra_bytes"]["whole"] >= 4 * 3 * 448**2  # one of the three tiles
    assert content["64"]["rows_per_second_a_core"] == pytest.approx(1 / seconds["whole"])
    assert content["64"]["profile"] and content["64"]["loaders"]["0"]["rows_per_second"] > 0
    assert "step" not in content and "rows a second and core" in capsys.readouterr().out


def test_checkouts_are_compared_pair_by_pair_in_turns():
    compare = runpy.run_path(str(SCRIPT.with_stem("checkouts")))["compare"]
    turns, taken = [], {"before": iter([1.0, 2.0, 4.0]), "after": iter([2.0, 2.0, 2.0])}

    def run(name):
        turns.append(name)
        return {"seconds": next(taken[name]), "peak_bytes": len(turns)}

    found = compare(lambda: run("before"), lambda: run("after"), repeats=3)
    assert turns == ["before", "after", "after", "before", "before", "after"]
    assert found["ratios"] == [2.0, 1.0, 0.5] and found["ratio"] == 1.0 and found["ratio_of_fastest"] == 2.0
    assert found["before"] == {"seconds": 2.0, "peak_bytes": 5} and found["after"] == {"seconds": 2.0, "peak_bytes": 6}
