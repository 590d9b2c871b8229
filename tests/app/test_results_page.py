import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tasks import run_task

from sa2va_trl.app.clips import Clip
from sa2va_trl.app.results import (
    COLOURS,
    OPACITY,
    STEPS,
    Asked,
    View,
    archive,
    ask_further,
    at_step,
    describe,
    legend,
    levels,
    mask_picture,
    object_labels,
    painted,
    predictions,
    segment_clip,
    step_of,
)
from sa2va_trl.models import Segmentation


def result(*phrases, text="", seed=0, size=(15, 24)):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(phrases), 8, 8, generator=generator)
    scores = torch.rand(len(phrases), generator=generator)
    return Segmentation(text, list(phrases), logits, scores, size, image_size=32, threshold=0.5)


def view(**results):
    frames = [Image.fromarray(np.full((15, 24, 3), 30 * number, dtype=np.uint8)) for number in range(2)]
    return View(Clip("run", "run.tif", frames, moving=True), "What?", results)


# Thresholds


def test_levels_are_the_masks_at_every_step():
    found = result("a", "b")
    level = levels(found)
    assert level.shape == (2, 15, 24) and level.dtype == np.uint8 and len(np.unique(level)) > 50
    for step in range(1, STEPS):
        assert np.array_equal(level >= step, replace(found, threshold=step / STEPS).masks.numpy())


def test_a_probability_that_is_a_threshold_does_not_exceed_it(monkeypatch):
    """As in `Segmentation.masks`, which compares in float32."""
    exact = torch.tensor([step / STEPS for step in range(STEPS + 1)])
    maps = torch.stack([exact, torch.nextafter(exact, torch.ones(1)), torch.nextafter(exact, torch.zeros(1))])
    monkeypatch.setattr(Segmentation, "probabilities", maps[None])
    monkeypatch.setattr(Segmentation, "masks", property(lambda own: own.probabilities > own.threshold))
    level = levels(result("a"))
    for step in range(1, STEPS):
        assert np.array_equal(level >= step, at_step(result("a"), step).masks.numpy())
    assert level[0, 0, 100] == 99 and level[0, 1, 100] == 100


@pytest.mark.parametrize(("threshold", "step"), [(0.5, 100), (0.425, 85), (0.4261, 85), (0.0001, 1), (0.9999, 199)])
def test_the_nearest_step_of_a_threshold(threshold, step):
    assert step_of(threshold) == step
    assert all(step_of(each / STEPS) == each for each in range(1, STEPS))


def test_without_objects_there_are_no_levels():
    assert levels(result()).shape == (0, 15, 24)


# Pictures


def test_a_mask_is_predicts_and_an_overlay_blends():
    found, step = result("a", None), 60
    masks = replace(found, threshold=step / STEPS).masks.numpy()
    for index in range(2):
        picture = mask_picture(found, index, step)
        assert picture.mode == "L" and np.array_equal(picture, masks[index] * np.uint8(255))
    with pytest.raises(IndexError):
        mask_picture(found, 2, step)
    grey = Image.new("RGB", (24, 15), (100, 100, 100))
    drawn = np.asarray(painted(grey, found, step, {"a": (0, 200, 250), "object 2": (0, 200, 250)}))
    once = np.rint(100 + (np.array([0, 200, 250]) - 100) * OPACITY)
    assert np.array_equal(np.unique(drawn[~masks.any(0)], axis=0), [[100, 100, 100]])
    assert np.array_equal(np.unique(drawn[masks[0] ^ masks[1]], axis=0), [once])
    twice = np.rint(once + (np.array([0, 200, 250]) - once) * OPACITY)
    assert np.array_equal(np.unique(drawn[masks.all(0)], axis=0), [twice])


def test_a_phrase_has_one_colour_in_all_frames_and_models():
    assert object_labels(["a", "b", "a", None]) == ["a", "b", "a (2)", "object 4"]
    shown = view(one=[result("a"), result("b", "a")], two=[result("c"), result("b")])
    assert legend(shown) == dict(zip(["a", "b", "c"], COLOURS, strict=False))
    many = view(one=[result(*map(str, range(9))), result()])
    assert legend(many)["7"] == COLOURS[0]


# What goes to the page, and out of it


def test_what_the_page_is_told():
    shown = view(one=[result("a", text="<p> a </p> [SEG]"), result(text="None.")])
    told = json.loads(json.dumps(describe(shown)))
    assert told["size"] == [24, 15] and told["frames"] == 2 and told["step"] == 100 and told["steps"] == STEPS
    (model,) = told["models"]
    assert model["title"] == "one"
    first, second = model["answers"]
    assert first["text"] == "<p> a </p> [SEG]" and first["objects"] == ["a"] and 0 <= first["predicted_iou"][0] <= 1
    assert second == {"text": "None.", "objects": [], "predicted_iou": []}
    assert describe(view())["models"] == []


def test_an_archive_holds_what_its_json_lists():
    shown = view(one=[result("a", "b"), result()])
    with zipfile.ZipFile(io.BytesIO(archive(shown, "one", 80))) as file:
        content = json.loads(file.read("predictions.json"))
        assert content == predictions(shown, "one", 80)
        assert content["threshold"] == 0.4 and content["prompt"] == "What?" and content["model"] == "one"
        first, second = content["predictions"]
        assert first["frame"] == 0 and second == {
            "name": "run_f00001",
            "file": "run.tif",
            "frame": 1,
            "text": "",
            "objects": [],
        }
        named = {name for found in first["objects"] for name in (found["mask"], found["overlay"])}
        assert set(file.namelist()) == {"predictions.json", *named} and len(named) == 3
        mask = np.asarray(Image.open(io.BytesIO(file.read(first["objects"][1]["mask"]))))
        assert np.array_equal(mask > 0, levels(result("a", "b"))[1] >= 80)
        drawn = Image.open(io.BytesIO(file.read(first["objects"][0]["overlay"])))
        assert np.array_equal(drawn, painted(shown.clip.frames[0], shown.results["one"][0], 80, legend(shown)))


@pytest.mark.parametrize("moving", [False, True])
def test_an_entry_is_as_predict_writes_it(tmp_path, image, network, monkeypatch, moving):
    """But for the probabilities, which are not given out, and an overlay of all objects."""
    monkeypatch.setattr("sa2va_trl.scripts.predict.load_model", lambda _: network)
    file, given = tmp_path / ("run.gif" if moving else "one two.png"), "<p> a </p> [SEG] and [SEG]"
    others = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] if moving else []
    image.save(file, **({"save_all": True, "append_images": others} if moving else {}))
    options = ("--per_frame", "true") if moving else ()
    run_task("predict", "--input", file, "--answer", given, "--output_dir", tmp_path / "out", *options)
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]

    from sa2va_trl.app.clips import read_clip

    clip = read_clip(file, 9)
    found, _ = segment_clip(Asked("one", *network), clip, "Please segment the blood vessel.", given, per_frame=True)
    entries = predictions(View(clip, "", {"one": found}), "one", 100)["predictions"]
    assert len(entries) == len(written) == 1 + moving
    for entry, theirs in zip(entries, written, strict=True):
        for mine, other in zip(entry["objects"], theirs["objects"], strict=True):
            assert other.pop("probabilities") and mine.pop("overlay") and other.pop("overlay")
        assert entry == theirs
        for index, other in enumerate(theirs["objects"]):
            mask = np.asarray(Image.open(tmp_path / "out" / other["mask"]))
            frame = found[entry.get("frame", 0)]
            assert np.array_equal(mask, mask_picture(frame, index, step_of(frame.threshold)))


# Asking


def test_a_clip_is_tracked_or_taken_frame_by_frame(image, network):
    model, processor = network
    clip = Clip("run", "run.gif", [image, image.rotate(180)], moving=True)
    done = []
    each, chat = segment_clip(Asked("", model, processor), clip, "a", "[SEG]", per_frame=True, on_frame=done.append)
    assert done == [1, 2] and len(each) == 2 and chat is None
    for frame, found in zip(clip.frames, each, strict=True):
        own = model.segment(image=frame, text="a", processor=processor, answer="[SEG]")
        assert torch.equal(found.probabilities, own.probabilities)
    tracked, _ = segment_clip(Asked("", model, processor), clip, "a", "[SEG]")
    own = model.segment(video=clip.frames, text="a", processor=processor, answer="[SEG]")
    assert torch.equal(torch.stack([found.masks for found in tracked], dim=1), own.masks)
    assert not torch.equal(tracked[1].low_res_logits, each[1].low_res_logits)


def test_the_page_draws_with_the_threshold_alone(image, network, monkeypatch):
    model, processor = network
    monkeypatch.setattr(model.config, "mask_postprocessing", {"min_size": 500, "majority_frames": 3})
    clip = Clip("run", "run.gif", [image, image.rotate(180)], moving=True)
    for per_frame in (False, True):
        for found in segment_clip(Asked("", model, processor), clip, "a", "[SEG]", per_frame=per_frame)[0]:
            assert torch.equal(found.masks, found.probabilities > found.threshold)


def test_without_an_answer_one_is_generated_of_at_most_so_many_tokens(image, network):
    clip = Clip("one", "one.png", [image], moving=False)
    (found,), chat = segment_clip(Asked("", *network), clip, "Hello?", max_new_tokens=3)
    own = network[0].segment(image=image, text="Hello?", processor=network[1], max_new_tokens=3)
    assert found.text == own.text != ""
    (further,) = ask_further(chat, "And then?", max_new_tokens=4)
    assert further.text == chat.messages[-1]["content"] != ""
    with pytest.raises(ValueError, match="no prompt"):
        segment_clip(Asked("", *network), clip, " \n")
    with pytest.raises(ValueError, match="no prompt"):
        ask_further(chat, " \n")


@pytest.mark.parametrize("moving", [False, True])
def test_further_questions_are_about_the_same_clip(moving, image, network):
    model, processor = network
    clip = Clip("run", "run.gif", [image, image.rotate(180)][: 1 + moving], moving=moving)
    found, chat = segment_clip(Asked("", model, processor), clip, "a", "[SEG]")
    further = ask_further(chat, "b", "Two: [SEG] and [SEG]")
    assert [len(each.masks) for each in further] == [2] * len(clip.frames)
    media = {"video": clip.frames} if moving else {"image": image}
    own = model.chat("a", **media, processor=processor, answer="[SEG]")
    own.ask("b", answer="Two: [SEG] and [SEG]")
    for results, expected in zip((found, further), own.results, strict=True):
        masks = torch.stack([each.masks for each in results], dim=1)
        assert torch.equal(masks if moving else masks[:, 0], expected.masks)
