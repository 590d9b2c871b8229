import logging

import numpy as np
import pytest
import torch
from PIL import Image
from rows import every_kind
from samples import TARGET, as_image, box, noise, sample, stored, text_only

from sa2va_trl.data import synthetic_dataset
from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation.evaluator import evaluate
from sa2va_trl.evaluation.predictions import (
    predict_probabilities,
    read_predictions,
    read_probabilities,
    stored_features,
)
from sa2va_trl.evaluation.thresholds import tempered
from sa2va_trl.files import file_name
from sa2va_trl.models.tiny import tiny_sa2va


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


@pytest.mark.parametrize("batch_size", [2, 3, 50, "auto"])
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


def test_missing_masks_are_counted_and_named(tmp_path):
    dataset = stored([sample(name, TARGET) for name in ("a", "b/1", "c")])
    write(tmp_path, "a", TARGET)
    with pytest.raises(DatasetError, match=r"lacks 2 of 3 masks.*: b_1-\w+\.png, c\.png\."):
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
def test_bad_masks_are_named(tmp_path, spoil, reason):
    dataset = spoilt(tmp_path, spoil)
    with pytest.raises(DatasetError, match=f"spoilt.*{reason}"):
        list(read_predictions(tmp_path, dataset))


def test_all_bad_masks_are_named_at_once(tmp_path):
    dataset = stored([sample(name, TARGET) for name in "abc"])
    write(tmp_path, "b", TARGET)
    for name in "ac":
        as_image(TARGET.T).save(tmp_path / f"{name}.png")
    with pytest.raises(DatasetError, match=r"(?s)a\.png.*is 12 x 20.*\n.*c\.png.*is 12 x 20") as caught:
        list(read_predictions(tmp_path, dataset))
    assert "b.png" not in str(caught.value)


def test_files_of_no_sample_are_left_out_and_named(tmp_path, caplog):
    for name in ("a", *(f"other{number:02}" for number in range(12))):
        write(tmp_path, name, TARGET)
    assert len(list(read_predictions(tmp_path, stored([sample("a", TARGET)])))) == 1
    assert "holds 12 files of no sample, which are left out: other00.png, other01.png" in caplog.text
    assert "other09.png and 2 more." in caplog.text


def test_a_folder_holds_one_mask_a_sample(tmp_path):
    write(tmp_path, "two", TARGET)
    with pytest.raises(DatasetError, match="'two' has 2 masks"):
        list(read_predictions(tmp_path, stored([sample("two", TARGET, ~TARGET)])))


def test_identifiers_that_look_alike_as_file_names_are_kept_apart(tmp_path):
    dataset = stored([sample("a/b", TARGET), sample("a_b", ~TARGET)])
    for name, mask in (("a/b", TARGET), ("a_b", ~TARGET)):
        write(tmp_path, name, mask)
    assert len(list(tmp_path.iterdir())) == 2
    metrics, _ = evaluate(dataset, read_predictions(tmp_path, dataset))
    assert metrics["dice"]["mean"] == 1


# Probabilities of another tool


@pytest.mark.parametrize(("suffix", "depth"), [(".npy", None), (".png", 255), (".png", 65535)])
def test_maps_are_read_as_they_are(tmp_path, suffix, depth):
    rows = [sample(name, TARGET) for name in ("a/b", "c")]
    maps = {row["sample_id"]: np.random.default_rng(len(row["sample_id"])).random(TARGET.shape) for row in rows}
    for name, values in maps.items():
        path = tmp_path / f"{file_name(name)}{suffix}"
        if depth is None:
            np.save(path, values[None] if name == "c" else values)
        else:
            raw = (values * depth).round().astype(np.uint8 if depth == 255 else np.uint16)
            Image.fromarray(raw).save(path)
    found = list(read_probabilities(tmp_path, stored(rows)))
    assert [row["sample_id"] for row, _ in found] == ["a/b", "c"]
    for row, values in found:
        assert values.shape == (1, *TARGET.shape)
        assert np.abs(values[0] - maps[row["sample_id"]]).max() <= (0 if depth is None else 0.5 / depth + 1e-7)


def test_maps_of_other_splits_are_no_surprise(tmp_path, caplog):
    rows = [stored([sample(name, TARGET)]) for name in ("a", "b")]
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).random(TARGET.shape))
    logging.getLogger("sa2va_trl").propagate = True
    assert len(list(read_probabilities(tmp_path, rows[0], beside=rows))) == 1
    (record,) = caplog.records
    assert "1 files of no sample, which are left out: c.npy" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("s.npy", np.ones(TARGET.shape, np.uint8), "uint8 and not floating-point"),
        ("s.npy", np.full(TARGET.shape, 1.5), r"outside \[0, 1\]"),
        ("s.npy", np.full(TARGET.shape, np.nan), r"outside \[0, 1\]"),
        ("s.npy", np.zeros((3, 4)), "is 4 x 3, its image 20 x 12"),
        ("s.png", np.zeros((*TARGET.shape, 3), np.uint8), "mode RGB"),
        ("other.npy", np.zeros(TARGET.shape), "lacks 1 of 1 masks, named SAMPLE_ID.npy or SAMPLE_ID.png"),
    ],
)
def test_what_are_no_maps_is_named(tmp_path, name, content, reason):
    if name.endswith("npy"):
        np.save(tmp_path / name, content)
    else:
        Image.fromarray(content).save(tmp_path / name)
    with pytest.raises(DatasetError, match=reason):
        list(read_probabilities(tmp_path, stored([sample("s", TARGET)])))


def test_a_map_of_each_sample_is_there_once(tmp_path):
    np.save(tmp_path / "s.npy", np.zeros(TARGET.shape))
    write(tmp_path, "s", TARGET)
    with pytest.raises(DatasetError, match="two masks for 1 samples"):
        list(read_probabilities(tmp_path, stored([sample("s", TARGET)])))


# The temperature of the model


def test_probabilities_are_calibrated_where_the_model_has_a_temperature(network, monkeypatch):
    dataset = stored(rows_to_predict()[:2])
    plain = list(predict_probabilities(*network, dataset, progress=False))
    monkeypatch.setattr(network[0].config, "mask_temperature", 2.5)
    for (_, before), (_, after) in zip(plain, predict_probabilities(*network, dataset, progress=False), strict=True):
        assert np.abs(after - tempered(before, 2.5)).max() < 1e-6 < np.abs(after - before).max()


# Frozen features


def test_scores_from_stored_features_are_those_of_the_pixels(network, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="sa2va_trl")
    dataset = every_kind()
    metrics, samples = evaluate(dataset, predict_probabilities(*network, dataset, 2, progress=False))
    assert stored_features(*network, dataset, "auto", tmp_path / "none") is None
    assert "auto: off, there are no features" in caplog.text
    caplog.clear()
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
    assert "auto: on" in caplog.text
    caplog.clear()
    # With a row more, `auto` does not compute it.
    more = stored([*dataset, sample("new", box((20, 30), (2, 9), (3, 9)))])
    assert stored_features(*network, more, "auto", tmp_path) is None
    assert "lacks the features of 1 rows" in caplog.text


def test_options_of_features_that_cannot_be(network, tmp_path):
    dataset = every_kind()
    with pytest.raises(ValueError, match="one of auto, on, off"):
        stored_features(*network, dataset, "yes")
    with pytest.raises(ValueError, match="cache_dir has no meaning"):
        stored_features(*network, dataset, "off", tmp_path)
    with pytest.raises(ValueError, match="transform"):
        stored_features(*network, dataset.with_transform(lambda rows: rows), "on", tmp_path)
    assert stored_features(*network, dataset, "off") is None


def test_features_of_one_question_do_not_stand_in_for_those_of_another(tiny, tmp_path):
    model, processor = tiny
    dataset = synthetic_dataset(num_videos=1, frames_per_video=3, size=64)

    def probabilities(features=None):
        return np.stack([p for _, p in predict_probabilities(model, processor, dataset, 2, False, features)])

    first = stored_features(model, processor, dataset, "on", tmp_path, progress=False)
    plain = probabilities(first)
    model.config.default_question = "Where is the {phrase}, if there is one?"
    assert stored_features(model, processor, dataset, "auto", tmp_path) is None
    other = probabilities()
    assert np.abs(other - plain).max() > 1e-4
    second = stored_features(model, processor, dataset, "on", tmp_path, progress=False)
    assert not {*first[1]} & {*second[1]}
    np.testing.assert_array_equal(probabilities(second), other)
    model.config.default_question = None
    assert stored_features(model, processor, dataset, "auto", tmp_path)[1] == first[1]
    np.testing.assert_array_equal(probabilities(first), plain)


def test_rows_are_asked_the_model_s_own_question(tiny):
    model, processor = tiny
    model.config.default_question = "Where is the {phrase|artery=vessel}?"
    dataset = stored(rows_to_predict()[:2])
    asked = ("Where is the vessel?", "Where is the arteryartery?")
    predicted = predict_probabilities(model, processor, dataset, batch_size=1, progress=False)
    for text, (row, found) in zip(asked, predicted, strict=True):
        single = model.segment(image=row["image"], text=text, processor=processor, answer="Sure, [SEG].")
        assert np.abs(found - single.probabilities.numpy()).max() < 1e-5
