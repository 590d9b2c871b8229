import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rows import chat
from samples import TARGET, as_image, box, noise, sample, stored, text_only

from sa2va_trl import tiny_sa2va
from sa2va_trl.adapters.mask_options import DEFAULTS
from sa2va_trl.evaluation import predict_probabilities
from sa2va_trl.evaluation.averaging import (
    AveragedSegmentation,
    Member,
    common_threshold,
    predict_averaged,
    segment_averaged,
    texts_of,
)
from sa2va_trl.evaluation.views import parse_views
from sa2va_trl.models import Segmentation
from sa2va_trl.models.grounding import GroundingEncoder
from sa2va_trl.postprocessing import IDENTITY, Postprocessing, draw_mask


EVERYTHING = "hflip,vflip,scale0.75,scale1.25,gamma0.8"
ANSWER = "Sure, [SEG]."
QUESTION = "Please segment the vessel 0."


@pytest.fixture(scope="module")
def dataset():
    """Images of odd sizes, two objects, a clip with two objects, and text alone."""
    clip = {
        "images": [noise(21, 13, seed) for seed in range(3)],
        "masks": [as_image(box((13, 21), (1, 4 + number), (2, 9))) for number in range(6)],
        "phrases": ["a", "b"],
        "sample_id": "clip",
    }
    odd = sample("odd", box((33, 47), (3, 9), (5, 20)))
    return stored([odd, text_only(), sample("two", TARGET, ~TARGET), clip, sample("tall", TARGET.T)])


@pytest.fixture(scope="module")
def other():
    """A second model, that draws something else."""
    model, processor = tiny_sa2va(image_size=128, seed=5)
    return model.eval(), processor


def maps(predictions):
    return {row["sample_id"]: found for row, found in predictions}


def averaged(members, dataset, views=(), **options):
    return maps(predict_averaged(members, dataset, parse_views(views), progress=False, **options))


def plain(network, dataset):
    return maps(predict_probabilities(*network, dataset, progress=False))


def assert_close(found, expected, atol=1e-5):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape and found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=0, atol=atol)


def changed(row, way):
    """A row whose images and masks are made into others."""
    row = {name: value for name, value in row.items() if value is not None}
    for name in ("image", "images", "masks"):
        if name in row:
            values = row[name]
            row[name] = [way(value) for value in values] if isinstance(values, list) else way(values)
    return row


# Rows


def test_one_model_without_views_is_that_model(network, dataset):
    assert_close(averaged([Member(*network)], dataset), plain(network, dataset), atol=0)


def test_rows_come_as_they_are(network, dataset):
    found = [row for row, _ in predict_averaged([Member(*network)], dataset, parse_views("hflip"), progress=False)]
    expected = [row for row, _ in predict_probabilities(*network, dataset, progress=False)]
    for one, another in zip(found, expected, strict=True):
        assert one["sample_id"] == another["sample_id"] and one["phrases"] == another["phrases"]
        assert [mask.tobytes() for mask in one["masks"]] == [mask.tobytes() for mask in another["masks"]]


def test_a_mean_is_that_of_the_changed_images_by_themselves(network, dataset):
    """Stored as rows of their own, with the maps turned back by hand; all frames of a clip are changed alike."""

    def surrounded(picture):
        width, height = picture.size
        larger = Image.new(picture.mode, (2 * width, 2 * height))
        larger.paste(picture, (width // 2, height // 2))
        return larger

    def inner(values):
        height, width = (length // 2 for length in values.shape[-2:])
        return values[..., height // 2 : height // 2 + height, width // 2 : width // 2 + width]

    expected = plain(network, dataset)
    mirrored = stored([changed(row, lambda picture: picture.transpose(0)) for row in dataset])
    flipped = {name: values[..., ::-1] for name, values in plain(network, mirrored).items()}
    larger = stored([changed(row, surrounded) for row in dataset])
    smaller = {name: inner(values) for name, values in plain(network, larger).items()}
    mean = {name: (expected[name] + flipped[name] + smaller[name]) / 3 for name in expected}
    assert_close(averaged([Member(*network)], dataset, "hflip,scale0.5"), mean)
    # The views do say something else, or the comparison says little.
    assert all(np.abs(mean[name] - expected[name]).max() > 1e-3 for name in expected)


def test_corners_are_drawn_each_by_itself(network):
    mask = box((21, 30), (3, 9), (5, 20))
    row = sample("one", mask)
    total, count = np.zeros((1, 21, 30)), np.zeros((21, 30))
    for top, left in itertools.product((0, 7), (0, 10)):
        rows, columns = part = (slice(top, top + 14), slice(left, left + 20))
        image = Image.fromarray(np.asarray(row["image"])[part])
        total[:, rows, columns] += plain(network, stored([sample("part", mask[part], image=image)]))["part"]
        count[part] += 1
    expected = (plain(network, stored([row]))["one"] + total / count) / 2
    found = averaged([Member(*network)], stored([row]), "scale1.5")["one"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_neither_order_nor_batches_matter(network, other, dataset):
    members, names = [Member(*network), Member(*other)], EVERYTHING.split(",")
    expected = averaged(members, dataset, names)
    assert_close(averaged(members[::-1], dataset, names[::-1]), expected, atol=1e-7)
    for batch_size in (1, 3):
        assert_close(averaged(members, dataset, names, batch_size=batch_size), expected)


def test_a_mean_of_two_models_is_that_of_their_maps(network, other, dataset):
    one, another = plain(network, dataset), plain(other, dataset)
    found = averaged([Member(*network), Member(*other)], dataset)
    assert_close(found, {name: (one[name] + another[name]) / 2 for name in one}, atol=1e-7)
    assert all(np.abs(one[name] - another[name]).max() > 1e-3 for name in one)


def test_a_model_beside_itself_is_the_model(network, dataset):
    assert_close(averaged([Member(*network)] * 2, dataset), plain(network, dataset), atol=0)


def test_each_model_is_at_its_own_temperature(network, dataset):
    model, processor = network
    warm = Member(model, processor, options={"mask_threshold": 0.5, "mask_temperature": 3.0})
    cold = plain(network, dataset)
    logits = {name: np.log(values / (1 - values)) for name, values in cold.items()}
    tempered = {name: 1 / (1 + np.exp(-values / 3)) for name, values in logits.items()}
    mean = {name: ((cold[name] + tempered[name]) / 2).astype(np.float32) for name in cold}
    assert_close(averaged([Member(model, processor), warm], dataset), mean)
    assert model.config.mask_temperature == 1  # as it was before


def test_rows_are_read_as_they_are_asked_for(network, monkeypatch):
    """A batch is finished before the next one is begun, however many rows there are."""
    dataset = stored([sample(f"{number}", TARGET) for number in range(6)])
    passes = []
    encode = GroundingEncoder.encode
    monkeypatch.setattr(
        GroundingEncoder, "encode", lambda self, pixels: passes.append(len(pixels)) or encode(self, pixels)
    )
    predictions = predict_averaged([Member(*network)], dataset, parse_views("hflip,scale1.25"), 2, progress=False)
    for number in range(6):
        next(predictions)
        assert passes == [2] * 6 * (1 + number // 2)


@pytest.mark.parametrize(
    "row",
    [
        sample("a", TARGET, phrases=["left coronary artery"]),
        {**sample("a", TARGET), "phrases": None, "messages": chat("The right one: [SEG].")},
    ],
)
def test_sides_in_rows_are_refused_before_a_model_runs(network, row, monkeypatch):
    monkeypatch.setattr(GroundingEncoder, "encode", None)
    dataset = stored([sample("b", TARGET), row])
    with pytest.raises(ValueError, match="leave hflip out of --tta"):
        next(predict_averaged([Member(*network)], dataset, parse_views("gamma0.8,hflip"), progress=False))


def test_texts_are_read_from_every_column(dataset):
    assert list(texts_of(dataset)) == [
        *("vessel 0", "What is a stent?", "A small tube.", "vessel 0", "vessel 1", "a", "b", "vessel 0")
    ]


# Pictures


class Toy:
    """A model that draws as pixels are grey, and so what it draws moves with them; it answers with its own name."""

    def __init__(self, answer=ANSWER, threshold=0.5):
        self.config = SimpleNamespace(**{**DEFAULTS, "mask_threshold": threshold})
        self.answer, self.asked = answer, []

    def segment(self, image, text, processor, threshold, answer=None, **options):
        self.asked.append((text, answer, options))
        answer = answer or self.answer
        count = answer.count("[SEG]")
        grey = torch.from_numpy(np.asarray(image.convert("L")) / np.float32(255))
        return AveragedSegmentation(
            answer, [None] * count, torch.zeros(count, 4, 4), torch.full((count,), 0.5), image.size[::-1], 16,
            threshold, postprocessing=options.get("postprocessing", IDENTITY), averaged=grey.expand(count, -1, -1),
        )  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(size=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_views_change_nothing_of_a_model_that_is_blind_to_them(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size, np.uint8))
    result = segment_averaged([Member(Toy(), None)], parse_views("hflip,vflip,scale0.75,scale1.25"), image, QUESTION)
    np.testing.assert_allclose(result.probabilities[0].numpy(), np.asarray(image) / 255, rtol=0, atol=1e-7)
    assert result.probabilities.dtype == torch.float32 and result.iou_scores.tolist() == [0.5]


def test_the_first_model_answers_and_the_others_are_given_its_answer():
    first, second = Toy("Two: [SEG] and [SEG]."), Toy("None.")
    members = [Member(first, None), Member(second, None)]
    result = segment_averaged(members, parse_views("vflip"), noise(9, 7), QUESTION, max_new_tokens=8)
    drawn = {"postprocessing": IDENTITY}
    given = (QUESTION, first.answer, drawn)
    assert first.asked == [(QUESTION, None, {"max_new_tokens": 8, **drawn}), given] and second.asked == [given] * 2
    assert result.text == first.answer and result.probabilities.shape == result.masks.shape == (2, 7, 9)
    assert torch.equal(result.masks, result.probabilities > 0.5)


def test_an_answer_without_a_mask_is_not_asked_for_again():
    members = [Member(Toy("Nothing."), None), Member(Toy(), None)]
    result = segment_averaged(members, parse_views("vflip"), noise(9, 7), QUESTION)
    assert len(result.masks) == 0 and result.text == "Nothing." and not members[1].model.asked


@pytest.mark.parametrize(
    ("text", "answer", "own"),
    [("Where is the left artery?", ANSWER, ANSWER), ("Where?", "Left: [SEG].", ANSWER), ("?", None, "右 [SEG]")],
)
def test_sides_in_what_is_asked_or_answered_are_refused(text, answer, own):
    with pytest.raises(ValueError, match="leave hflip out"):
        segment_averaged([Member(Toy(own), None)], parse_views("hflip"), noise(9, 7), text, answer=answer)


def test_thresholds_are_those_that_models_have_in_common():
    models = [Member(Toy(threshold=value), None) for value in (0.3, 0.3, 0.6)]
    assert common_threshold(models[:2]) == 0.3
    assert segment_averaged(models[:2], [], noise(9, 7), QUESTION).threshold == 0.3
    assert segment_averaged(models, [], noise(9, 7), QUESTION, threshold=0.4).threshold == 0.4
    with pytest.raises(ValueError, match="thresholds of their own, 0.3, 0.3, 0.6: give --threshold"):
        segment_averaged(models, [], noise(9, 7), QUESTION)


def test_masks_of_a_mean_are_post_processed():
    settings = {"min_size": 40}
    models = [Member(Toy(), None, options={**DEFAULTS, "mask_postprocessing": settings}) for _ in range(2)]
    picture = noise(30, 20)
    found = segment_averaged(models, [], picture, QUESTION)
    plain = segment_averaged(models, [], picture, QUESTION, postprocessing=Postprocessing())
    expected = draw_mask(plain.probabilities[0].numpy(), 0.5, Postprocessing.from_dict(settings))
    assert np.array_equal(found.masks[0].numpy(), expected)
    assert (found.masks != plain.masks).any() and torch.equal(plain.masks, plain.probabilities > 0.5)
    with pytest.raises(ValueError, match="post-processing of their own, .*: give --postprocessing"):
        segment_averaged([*models, Member(Toy(), None)], [], picture, QUESTION)


def test_all_members_are_asked_alike(network, other, dataset):
    question = "Show me the {phrase}."
    members = [Member(*network), Member(*other)]
    members[1].options["default_question"] = question
    with pytest.raises(ValueError, match="different questions of their own, .*Show me the .*: give --question"):
        next(predict_averaged(members, dataset, progress=False))
    members[0].options["default_question"] = question
    rows = dataset.select([0])
    ((_, found),) = predict_averaged(members, rows, progress=False)
    own = [
        segment_averaged([member], [], rows[0]["image"], "Show me the vessel 0.", answer=ANSWER) for member in members
    ]
    expected = np.mean([result.probabilities.numpy() for result in own], axis=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_pictures_get_the_maps_of_rows(network, other, dataset):
    """The same picture, question and answer, by both ways to the same maps."""
    members, views = [Member(*network), Member(*other)], parse_views(EVERYTHING)
    rows = dataset.select([0, 4])
    for row, expected in predict_averaged(members, rows, views, progress=False):
        found = segment_averaged(members, views, row["image"], QUESTION, answer=ANSWER)
        assert isinstance(found, Segmentation) and found.text == ANSWER
        np.testing.assert_allclose(found.probabilities.numpy(), expected, rtol=0, atol=1e-5)
        single = network[0].segment(image=row["image"], text=QUESTION, answer=ANSWER, processor=network[1])
        assert np.abs(single.probabilities.numpy() - expected).max() > 1e-3
