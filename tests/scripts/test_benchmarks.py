import json
import runpy
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

from sa2va_trl import Sa2VAConfig, Sa2VAForConditionalGeneration
from sa2va_trl.models.grounding import GroundingEncoder, whole_weights


SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmarks" / "inference.py"


def benchmark(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["inference", *map(str, options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


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
    counted(monkeypatch, model, "encode", passes, lambda _, __: len(segmented))
    benchmark(
        monkeypatch,
        *("--grounding", "own", "--grounding_image_size", 128, "--image_size", 64, "--num_frames", 3),
        *("--new_tokens", 2, 7, "--repeats", 3, "--clip_repeats", 2, "--output_dir", tmp_path),
        *("--objects", 1, 2, "--prompt_tokens", 700),
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
    }
    for name, cases in results.items():
        measures = {"seconds", "processor_seconds", "peak_bytes", "extra_bytes"}
        measures |= {"encode_seconds", "decode_masks_seconds"} if name == "image" else set()
        for case in cases.values():
            assert set(case) == {*measures, "runs"} and set(case["runs"]) == measures
            for measure in measures:
                assert len(case["runs"][measure]) == (2 if name == "clip" else 3)
                summary = median if measure.endswith("seconds") else max
                assert case[measure] == summary(case["runs"][measure])
            assert case["seconds"] > 0 and case["peak_bytes"] > case["extra_bytes"] >= 0
    for one in results["image"].values():
        for whole, encode, decode in zip(
            *(one["runs"][name] for name in ("seconds", "encode_seconds", "decode_masks_seconds")), strict=True
        ):
            assert 0 < encode + decode < whole

    for name in ("image", "clip"):
        one, five = (results[name][objects]["seconds"] for objects in "15")
        assert ratios[f"{name}_5_to_1"] == pytest.approx(five / one)
    for objects in "15":
        one = results["image"][objects]
        assert ratios["image_encode_share"][objects] == pytest.approx(one["encode_seconds"] / one["seconds"])
        assert ratios["image_decode_share"][objects] == pytest.approx(one["decode_masks_seconds"] / one["seconds"])
        assert ratios["clip_seconds_per_frame"][objects] == pytest.approx(results["clip"][objects]["seconds"] / 3)
    extra = [results["answer"][tokens]["extra_bytes"] for tokens in "27"]
    assert ratios["bytes_per_token"] == pytest.approx((extra[1] - extra[0]) / 5)
    # Three layers, two key-value heads of 24 channels and 96 channels of hidden states, in float32.
    assert ratios["bytes_per_token_of_cache"] == 3 * 2 * 2 * 24 * 4
    assert ratios["bytes_per_token_of_hidden_states"] == 4 * 96 * 4

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
    assert len(encoded) == 8 + 3 * 6 + 13  # once an image and once a frame, however many objects
    assert len(generated) == 8 + 13 and set(generated[8:]) == {20}
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
