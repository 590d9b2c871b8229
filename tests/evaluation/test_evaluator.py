import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from rows import FEATURES as ROW_FEATURES
from rows import every_kind

from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation.evaluator import evaluate
from sa2va_trl.evaluation.predictions import predict_probabilities, read_predictions, stored_features
from sa2va_trl.evaluation.results import aggregate, score
from sa2va_trl.files import file_name, write_json
from sa2va_trl.metrics import METRICS
from sa2va_trl.models.tiny import tiny_sa2va


FEATURES = Features(
    {
        **ROW_FEATURES,
        "patient_id": Value("string"),
        "video_id": Value("string"),
        "frame_index": Value("int64"),
    }
)


@pytest.fixture(scope="module")
def network():
    """One model for the whole file; nothing here changes it."""
    model, processor = tiny_sa2va(image_size=128)
    return model.eval(), processor


def stored(rows):
    return Dataset.from_list([{name: row.get(name) for name in FEATURES} for row in rows], features=FEATURES)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def as_image(mask):
    return Image.fromarray((255 * np.asarray(mask)).astype(np.uint8))


def box(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def sample(name, *masks, **columns):
    """A row with an image of the size of its masks, which need not be square."""
    height, width = masks[0].shape
    return {
        "image": noise(width, height),
        "masks": [as_image(mask) for mask in masks],
        "phrases": [f"vessel {number}" for number in range(len(masks))],
        "sample_id": name,
        **columns,
    }


TARGET = box((12, 20), (2, 10), (5, 15))  # 80 of 240 pixels


def answers(dataset, *predictions):
    """What an evaluation iterates over, made by hand."""
    for row, prediction in zip(dataset, predictions, strict=True):
        yield row, np.asarray(prediction, dtype=np.float32)


# evaluate


def test_perfect_predictions():
    dataset = stored([sample("a", TARGET), sample("b", ~TARGET), sample("c", np.zeros((6, 5), bool))])
    metrics, samples = evaluate(dataset, answers(dataset, TARGET[None], ~TARGET[None], np.zeros((1, 6, 5))))
    assert set(metrics) == set(METRICS)
    for values in metrics.values():
        assert values == {"mean": 1.0, "std": 0.0, "ci95": [1.0, 1.0], "n": 3}
    assert samples["sample_id"].tolist() == ["a", "b", "c"]
    assert (samples[list(METRICS)] == 1).all(axis=None)


def test_empty_predictions():
    dataset = stored([sample("a", TARGET), sample("b", np.zeros((7, 4), bool))])
    _, samples = evaluate(dataset, answers(dataset, np.zeros((1, 12, 20)), np.zeros((1, 7, 4))))
    missed, empty = samples.to_dict("records")
    assert missed["dice"] == missed["iou"] == missed["recall"] == 0 and missed["specificity"] == 1
    assert missed["accuracy"] == pytest.approx(160 / 240)
    assert empty["dice"] == empty["iou"] == 1  # nothing to find, nothing found


def test_a_known_overlap():
    dataset = stored([sample("a", TARGET)])
    prediction = box((12, 20), (6, 12), (5, 17))  # 72 pixels, 4 x 10 of them right
    metrics, samples = evaluate(dataset, answers(dataset, prediction[None]))
    expected = {
        "dice": 80 / 152,
        "iou": 40 / 112,
        "precision": 40 / 72,
        "recall": 40 / 80,
        "specificity": 128 / 160,
        "accuracy": 168 / 240,
    }
    for name, value in expected.items():
        assert samples[name].tolist() == [pytest.approx(value)]
        assert metrics[name] == {"mean": pytest.approx(value), "std": 0.0, "ci95": [None, None], "n": 1}


def test_the_mean_is_over_images_not_over_pixels():
    large, small = box((40, 40), (0, 40), (0, 20)), box((4, 4), (0, 4), (0, 2))
    dataset = stored([sample("large", large), sample("small", small)])
    metrics, _ = evaluate(dataset, answers(dataset, large[None], np.zeros((1, 4, 4))))
    assert metrics["dice"]["mean"] == 0.5 and metrics["dice"]["n"] == 2
    assert metrics["dice"]["std"] == pytest.approx(math.sqrt(0.5))


def test_callers_see_every_row_with_its_scores():
    dataset = stored([sample("a", TARGET, frame_index=4), sample("b", TARGET)])
    seen = []
    evaluate(dataset, answers(dataset, TARGET[None], ~TARGET[None]), on_row=lambda *call: seen.append(call))
    assert [row["sample_id"] for row, _, _ in seen] == ["a", "b"]
    assert [scores["dice"] for _, _, scores in seen] == [1, 0]
    assert np.array_equal(seen[1][1][0] > 0.5, ~TARGET)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, math.nan])
def test_a_threshold_out_of_range_is_refused(threshold):
    dataset = stored([sample("a", TARGET)])
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1"):
        evaluate(dataset, answers(dataset, TARGET[None]), threshold=threshold)


def must_not_run():
    pytest.fail("predicted before the rows were checked")
    yield


def test_bad_rows_stop_before_anything_is_predicted():
    grey = Image.new("L", (20, 12), 7)
    dataset = stored([sample("good", TARGET), {**sample("bad one", TARGET), "masks": [grey]}])
    with pytest.raises(DatasetError, match="bad one.*not binary"):
        evaluate(dataset, must_not_run())


def text_only(name="text"):
    messages = [{"role": "user", "content": "What is a stent?"}, {"role": "assistant", "content": "A small tube."}]
    return {"messages": messages, "sample_id": name}


def test_a_dataset_without_masks_has_nothing_to_score(network):
    dataset = stored([text_only("a"), text_only("b")])
    with pytest.raises(DatasetError, match="no row with a mask"):
        evaluate(dataset, predict_probabilities(*network, dataset, progress=False))


def test_rows_of_unknown_patients_do_not_cost_the_evaluation():
    dataset = stored([sample("a", TARGET, patient_id="p"), sample("b", TARGET)])
    try:
        metrics, _ = evaluate(dataset, answers(dataset, TARGET[None], TARGET[None]))
    except DatasetError as error:  # refusing is as good, if it names the row
        assert "'b'" in str(error)
    else:
        assert metrics["dice"]["n"] == 2


# score


@settings(deadline=None, max_examples=50)
@given(data=st.data(), shape=array_shapes(min_dims=3, max_dims=3, max_side=6), threshold=st.floats(0.05, 0.95))
def test_scores_are_means_over_masks_of_counts_of_pixels(data, shape, threshold):
    target = data.draw(arrays(bool, shape))
    probabilities = data.draw(arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    scores = score(sample("a", *target), probabilities, threshold)
    dice, accuracy = [], []
    for mask, values in zip(target, probabilities, strict=True):
        found = {tuple(index) for index in np.argwhere(values > threshold)}
        real = {tuple(index) for index in np.argwhere(mask)}
        dice.append(2 * len(found & real) / (len(found) + len(real)) if found or real else 1)
        accuracy.append(1 - len(found ^ real) / mask.size)
    assert scores["dice"] == pytest.approx(np.mean(dice))
    assert scores["accuracy"] == pytest.approx(np.mean(accuracy))
    assert set(scores) == {"sample_id", *METRICS} and all(0 <= scores[name] <= 1 for name in METRICS)


def test_a_score_is_the_mean_over_the_masks_of_a_row():
    other = box((12, 20), (0, 2), (0, 20))
    scores = score(sample("a", TARGET, other), np.stack([TARGET, TARGET]).astype(float), 0.5)
    assert scores["dice"] == 0.5 and scores["iou"] == 0.5
    swapped = score(sample("a", TARGET, other), np.stack([other, TARGET]).astype(float), 0.5)
    assert swapped["dice"] == 0


def test_a_pixel_belongs_to_the_mask_above_the_threshold():
    probabilities = np.array([[[0.25, 0.5], [0.5001, 0.75]]])
    target = np.array([[False, False], [True, True]])
    assert score(sample("a", target), probabilities, 0.5)["dice"] == 1
    assert score(sample("a", target), probabilities, 0.25)["dice"] == pytest.approx(4 / 5)
    assert score(sample("a", target), probabilities, 0.6)["dice"] == pytest.approx(2 / 3)


def test_scores_carry_the_identifiers_that_a_row_has():
    full = sample("a", TARGET, patient_id="p", video_id="v", frame_index=0)
    bare = sample("a", TARGET, patient_id=None)
    scores = score(full, TARGET[None], 0.5)
    assert [scores[name] for name in ("sample_id", "patient_id", "video_id", "frame_index")] == ["a", "p", "v", 0]
    assert set(score(bare, TARGET[None], 0.5)) == {"sample_id", *METRICS}


def test_predictions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        score(sample("a", TARGET, TARGET), TARGET[None].astype(float), 0.5)
    with pytest.raises(ValueError, match=r"\(20, 12\)"):
        score(sample("a", TARGET), TARGET.T[None].astype(float), 0.5)


# aggregate


def table(dice, **columns):
    return pd.DataFrame({"sample_id": [str(n) for n in range(len(dice))], **columns, **dict.fromkeys(METRICS, dice)})


@pytest.mark.parametrize("column", ["patient_id", "video_id"])
def test_the_interval_resamples_patients_or_else_videos(column):
    dice = np.random.default_rng(0).beta(8, 2, 12)
    single = aggregate(table(dice))["dice"]
    # Ten equal frames a patient say nothing new: resampling patients gives the same interval, frames a narrower one.
    frames = aggregate(table(np.repeat(dice, 10), **{column: np.repeat(np.arange(12), 10).astype(str)}))["dice"]
    assert frames["ci95"] == pytest.approx(single["ci95"]) and frames["n"] == 120
    assert frames["mean"] == pytest.approx(dice.mean())
    naive = aggregate(table(np.repeat(dice, 10)))["dice"]["ci95"]
    assert naive[1] - naive[0] < 0.5 * (single["ci95"][1] - single["ci95"][0])


def test_patients_come_before_videos():
    dice = np.random.default_rng(0).beta(8, 2, 20)
    patients, videos = np.repeat(np.arange(5), 4), np.arange(20)
    both = aggregate(table(dice, video_id=videos, patient_id=patients))
    assert both == aggregate(table(dice, patient_id=patients))
    assert both != aggregate(table(dice, video_id=videos))
    one = aggregate(table(dice, patient_id=["p"] * 20, video_id=videos))
    assert one["dice"]["ci95"] == [None, None] and one["dice"]["mean"] == pytest.approx(dice.mean())


def test_an_evaluation_respects_patients():
    rows = [sample(str(n), TARGET, patient_id="one", video_id=str(n)) for n in range(3)]
    dataset = stored(rows)
    metrics, samples = evaluate(dataset, answers(dataset, TARGET[None], ~TARGET[None], TARGET[None]))
    assert metrics["dice"]["ci95"] == [None, None] and metrics["dice"]["n"] == 3
    assert samples["patient_id"].tolist() == ["one"] * 3
    json.dumps(metrics, allow_nan=False)


# predict_probabilities


def rows_to_predict():
    sizes = [(96, 40), (30, 70), (64, 64), (17, 23), (100, 60)]
    rows = []
    for number, (width, height) in enumerate(sizes):
        row = sample(f"row {number}", np.zeros((height, width), bool), image=noise(width, height, number))
        rows.append({**row, "phrases": ["artery" * (1 + number)]})  # prompts of different lengths
    return rows


def test_predictions_are_those_of_segment(network):
    model, processor = network
    dataset = stored(rows_to_predict())
    predicted = list(predict_probabilities(model, processor, dataset, batch_size=2, progress=False))
    assert [row["sample_id"] for row, _ in predicted] == dataset["sample_id"][:]
    for row, probabilities in predicted:
        single = model.segment(
            image=row["image"],
            text=f"Please segment the {row['phrases'][0]}.",
            processor=processor,
            answer="Sure, [SEG].",
        )
        assert probabilities.dtype == np.float32
        assert probabilities.shape == (1, *row["image"].size[::-1]) == tuple(single.probabilities.shape)
        assert np.abs(probabilities - single.probabilities.numpy()).max() < 1e-5
        assert 0 <= probabilities.min() < probabilities.max() <= 1
    # The maps differ from each other, or the comparison says little.
    assert np.abs(predicted[2][1].mean() - predicted[4][1].mean()) > 1e-4


@pytest.mark.parametrize("batch_size", [2, 3, 50])
def test_predictions_do_not_depend_on_the_batch_size(network, batch_size):
    dataset = stored([*rows_to_predict()[:3], text_only(), sample("two", TARGET, ~TARGET), *rows_to_predict()[3:]])
    one, several = (
        list(predict_probabilities(*network, dataset, batch_size=size, progress=False)) for size in (1, batch_size)
    )
    names = [name for name in dataset["sample_id"] if name != "text"]
    assert [row["sample_id"] for row, _ in one] == [row["sample_id"] for row, _ in several] == names
    for (row, first), (_, second) in zip(one, several, strict=True):
        assert first.shape == second.shape == (len(row["masks"]), *row["image"].size[::-1])
        assert np.abs(first - second).max() < 1e-5


def test_clips_give_a_map_for_every_object_and_frame(network):
    masks = [as_image(np.zeros((12, 20), bool))] * 6
    frames = [noise(20, 12, seed) for seed in range(3)]
    clip = {"images": frames, "masks": masks, "phrases": ["a", "b"], "sample_id": "clip"}
    dataset = stored([clip, sample("still", TARGET)])
    (_, film), (_, still) = predict_probabilities(*network, dataset, progress=False)
    assert film.shape == (6, 12, 20) and still.shape == (1, 12, 20)


def test_prediction_switches_to_evaluation_and_leaves_no_gradient():
    model, processor = tiny_sa2va(image_size=128)
    model.train()
    dataset = stored([sample("a", TARGET)])
    grad = torch.is_grad_enabled()
    predictions = predict_probabilities(model, processor, dataset, progress=False)
    next(predictions)
    assert not model.training and torch.is_grad_enabled() == grad
    predictions.close()
    assert torch.is_grad_enabled() == grad and all(weight.grad is None for weight in model.parameters())


def test_an_evaluation_from_end_to_end(network):
    dataset = stored([sample("a", TARGET), sample("b", np.ones((12, 20), bool))])
    metrics, samples = evaluate(dataset, predict_probabilities(*network, dataset, progress=False), threshold=1e-6)
    # Everything is above so low a threshold.
    assert samples["dice"].tolist() == [pytest.approx(2 * 80 / (240 + 80)), 1]
    assert metrics["recall"]["mean"] == 1 and metrics["dice"]["n"] == 2


# read_predictions


ODD_NAMES = ["plain", "pat 1/film:2 frame#3", "Ärztin.7", "..", "a\\b", "new\nline", "-dash"]


def write(folder, name, mask):
    as_image(mask).save(folder / f"{file_name(name)}.png")


def test_written_masks_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.random((9, 14 + n)) < 0.4 for n in range(len(ODD_NAMES))]
    dataset = stored([sample(name, mask) for name, mask in zip(ODD_NAMES, masks, strict=True)])
    for name, mask in zip(ODD_NAMES, masks, strict=True):
        write(tmp_path, name, mask)
    read = list(read_predictions(tmp_path, dataset))
    assert [row["sample_id"] for row, _ in read] == ODD_NAMES
    for (_, values), mask in zip(read, masks, strict=True):
        assert values.dtype == np.float32 and values.shape == (1, *mask.shape)
        assert np.array_equal(values[0], mask)
    metrics, _ = evaluate(dataset, read_predictions(str(tmp_path), dataset))
    assert metrics["dice"]["mean"] == 1


def test_masks_of_0_and_1_are_read_too(tmp_path):
    Image.fromarray(TARGET.astype(np.uint8)).save(tmp_path / "a.png")
    ((_, values),) = read_predictions(tmp_path, stored([sample("a", TARGET)]))
    assert np.array_equal(values[0], TARGET)


def test_missing_masks_are_counted_and_the_first_is_named(tmp_path):
    dataset = stored([sample(name, TARGET) for name in ("a", "b/1", "c")])
    write(tmp_path, "a", TARGET)
    with pytest.raises(DatasetError, match=r"lacks 2 of 3 masks.*b_1-\w+\.png"):
        next(read_predictions(tmp_path, dataset))
    with pytest.raises(DatasetError, match=r"nowhere lacks 3 of 3 masks"):
        next(read_predictions(tmp_path / "nowhere", dataset))


@pytest.mark.parametrize("name", ["left (2)", "film [a]", "a b.c", "Ärztin.7"])
def test_a_file_is_found_by_its_identifier_to_the_letter(tmp_path, name):
    dataset = stored([sample(name, TARGET)])
    as_image(TARGET).save(tmp_path / f"{name}.png")
    ((row, values),) = read_predictions(tmp_path, dataset)
    assert row["sample_id"] == name and np.array_equal(values[0], TARGET)
    if file_name(name) != name:
        write(tmp_path, name, ~TARGET)
        with pytest.raises(DatasetError, match="two masks for 1 samples") as caught:
            next(read_predictions(tmp_path, dataset))
        assert f"{name}.png" in str(caught.value) and f"{file_name(name)}.png" in str(caught.value)


def test_an_identifier_leads_to_no_other_folder(tmp_path):
    (tmp_path / "in").mkdir()
    as_image(TARGET).save(tmp_path / "out.png")
    with pytest.raises(DatasetError, match="lacks 1 of 1 masks"):
        next(read_predictions(tmp_path / "in", stored([sample("../out", TARGET)])))


BAD_FILES = [
    pytest.param(lambda path: as_image(TARGET.T).save(path), "is 12 x 20, its image 20 x 12", id="size"),
    pytest.param(lambda path: Image.new("L", (20, 12), 7).save(path), "is not binary: values 7", id="grey"),
    pytest.param(lambda path: path.write_bytes(b"no image"), "is unreadable", id="junk"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:50]), "is unreadable or truncated", id="truncated"),
]


def spoilt(folder, spoil):
    dataset = stored([sample("good", TARGET), sample("spoilt", TARGET)])
    for name in dataset["sample_id"]:
        write(folder, name, TARGET)
    spoil(folder / "spoilt.png")
    return dataset


@pytest.mark.parametrize(("spoil", "reason"), BAD_FILES)
def test_bad_masks_are_refused(tmp_path, spoil, reason):
    dataset = spoilt(tmp_path, spoil)
    with pytest.raises(DatasetError, match=reason):
        list(read_predictions(tmp_path, dataset))


@pytest.mark.parametrize(("spoil", "reason"), BAD_FILES)
def test_bad_masks_are_named(tmp_path, spoil, reason):
    dataset = spoilt(tmp_path, spoil)
    with pytest.raises(DatasetError, match=f"spoilt.*{reason}"):
        list(read_predictions(tmp_path, dataset))


def test_a_folder_holds_one_mask_a_sample(tmp_path):
    write(tmp_path, "two", TARGET)
    with pytest.raises(DatasetError, match="'two' has 2 masks"):
        list(read_predictions(tmp_path, stored([sample("two", TARGET, ~TARGET)])))


def test_identifiers_that_share_a_file_name_are_refused(tmp_path):
    dataset = stored([sample("a/b", TARGET), sample("a_b", ~TARGET)])
    for name, mask in (("a/b", TARGET), ("a_b", ~TARGET)):
        write(tmp_path, name, mask)
    try:
        metrics, _ = evaluate(dataset, read_predictions(tmp_path, dataset))
    except DatasetError as error:
        assert "a/b" in str(error) and "a_b" in str(error)
    else:
        assert metrics["dice"]["mean"] == 1


# write_json


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "metrics.json"
    write_json(path, {"dice": {"mean": 0.5}})
    assert json.loads(path.read_text()) == {"dice": {"mean": 0.5}}
    write_json(path, [1, 2])
    assert json.loads(path.read_text()) == [1, 2]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == [1, 2]
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.json"]


def test_a_reader_never_meets_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"old": True})
    original, seen = type(path).write_text, []

    def watched(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        seen.append((self.parent == path.parent, json.loads(path.read_text())))
        return result

    monkeypatch.setattr(type(path), "write_text", watched)
    write_json(path, {"new": True})
    assert seen == [(True, {"old": True})]  # written beside, on the same file system, before it replaces
    assert json.loads(path.read_text()) == {"new": True}


# Frozen features


def test_scores_from_stored_features_are_those_of_the_pixels(network, tmp_path, capsys):
    dataset = every_kind()
    metrics, samples = evaluate(dataset, predict_probabilities(*network, dataset, 2, progress=False))
    assert stored_features(*network, dataset, "auto", tmp_path / "none") is None
    assert "auto: off, there are no features" in capsys.readouterr().out
    for mode, batch_size in (("on", 4), ("auto", 1)):
        features = stored_features(*network, dataset, mode, tmp_path, progress=mode == "auto")
        seen = []
        hook = network[0].grounding_encoder.sam2_model.image_encoder.register_forward_hook(
            lambda *_, seen=seen: seen.append(1)
        )
        found = list(predict_probabilities(*network, dataset, batch_size, progress=False, features=features))
        hook.remove()
        assert seen == []
        for (row, one), (other, two) in zip(
            found, predict_probabilities(*network, dataset, 2, progress=False), strict=True
        ):
            assert row["sample_id"] == other["sample_id"]
            np.testing.assert_allclose(one, two, atol=1e-5)
        assert evaluate(dataset, iter(found))[0] == metrics
    assert "auto: on" in capsys.readouterr().out
    # With a row more, `auto` does not compute it.
    more = stored([*dataset, sample("new", box((20, 30), (2, 9), (3, 9)))])
    assert stored_features(*network, more, "auto", tmp_path) is None
    assert "lacks the features of 1 rows" in capsys.readouterr().out


def test_options_of_features_that_cannot_be(network, tmp_path):
    dataset = every_kind()
    with pytest.raises(ValueError, match="one of auto, on, off"):
        stored_features(*network, dataset, "yes")
    with pytest.raises(ValueError, match="cache_dir has no meaning"):
        stored_features(*network, dataset, "off", tmp_path)
    with pytest.raises(ValueError, match="transform"):
        stored_features(*network, dataset.with_transform(lambda rows: rows), "on", tmp_path)
    assert stored_features(*network, dataset, "off") is None
