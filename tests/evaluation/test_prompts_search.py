import numpy as np
import pytest
from datasets import concatenate_datasets
from region_rows import rows_with_regions

from sa2va_trl import SegCollator, tiny_sa2va
from sa2va_trl.data import DatasetError, named_dataset, structure_dataset, synthetic_dataset
from sa2va_trl.evaluation import predict_probabilities, score
from sa2va_trl.evaluation.prompts import AskedRows, as_json, search_questions
from sa2va_trl.metrics import cldice
from sa2va_trl.questions import QUESTIONS


ASKED = [QUESTIONS[0], "Show me the {phrase|blood vessel=vascular tree}, please.", "{phrase}?", "请标出{phrase}。"]


@pytest.fixture(scope="module")
def rows():
    return synthetic_dataset(num_videos=3, frames_per_video=3, size=64)


@pytest.fixture
def predicted(monkeypatch):
    """Scores of rows with one question, as `evaluate` has them."""

    def run(model, processor, dataset, question, metric="dice"):
        monkeypatch.setattr(model.config, "default_question", question)
        maps = list(predict_probabilities(model, processor, dataset, batch_size=4, progress=False))
        monkeypatch.undo()
        if metric == "dice":
            return [score(row, own, model.config.mask_threshold)["dice"] for row, own in maps]
        return [cldice(own[0] > model.config.mask_threshold, np.asarray(row["mask"]) > 0) for row, own in maps]

    return run


@pytest.mark.parametrize("metric", ["dice", "cldice"])
def test_scores_are_those_of_an_evaluation_with_the_question(any_tiny, rows, predicted, metric):
    model, processor = any_tiny
    # (So that masks depend on what is asked, and are neither empty nor full.)
    model.config.mask_threshold = 0.499
    asked = AskedRows(model, processor, rows, ASKED, metric, batch_size=4, progress=False)
    found = asked([0, 1, 2, 3], list(range(9)))
    for number, question in enumerate(ASKED):
        assert found[number].tolist() == predicted(model, processor, rows, question, metric)
    if metric == "dice":
        assert len(np.unique(found, axis=0)) > 1
    assert np.allclose(asked([1, 3], [2, 5, 6]), found[[1, 3]][:, [2, 5, 6]], atol=1e-6)


def test_images_go_through_sam_2_once_and_not_once_a_question(tiny, rows, monkeypatch):
    model, processor = tiny
    encode, images = model.grounding_encoder.encode, []
    monkeypatch.setattr(model.grounding_encoder, "encode", lambda pixels: images.append(len(pixels)) or encode(pixels))
    AskedRows(model, processor, rows, ASKED, batch_size=4, progress=False)([0, 1, 2], list(range(9)))
    assert images == [4, 4, 1]


def test_prompts_of_rows_with_regions_speak_of_them(network):
    """The very texts of a batch, which features of regions go with."""
    model, processor = network
    asked = AskedRows(model, processor, rows_with_regions(), ASKED[:2], progress=False)
    assert len(asked.positions) == 3
    texts, seen = asked._texts, []
    asked._texts = lambda question, *rest: seen.append((question, texts(question, *rest))) or seen[-1][1]
    assert asked([0, 1], [0, 1, 2]).shape == (2, 3)
    rows = [rows_with_regions()[position] for position in asked.positions]
    for question, own in seen:
        expected = SegCollator(processor, questions=[question])(rows)
        assert all((own[name] == expected[name]).all() for name in ("input_ids", "attention_mask"))


def test_rows_without_masks_are_left_out_and_own_messages_stay(network, predicted):
    conversations = named_dataset(num_videos=2, frames_per_video=2, size=64, rows_per_frame=3)
    plain = synthetic_dataset(num_videos=1, frames_per_video=2, size=64)
    several = plain.map(lambda row: {"masks": [row["mask"]], "phrases": [row["phrase"]]})
    several = several.remove_columns(["mask", "phrase"]).cast_column("masks", conversations.features["masks"])
    mixed = concatenate_datasets([conversations, several])
    count = sum(len(row["masks"]) > 0 for row in mixed)
    assert count < len(mixed)
    asked = AskedRows(*network, mixed, ASKED[:2], progress=False)
    found = asked([0, 1], list(range(count)))
    assert found.shape == (2, count) and (found[0, :-2] == found[1, :-2]).all()
    assert found[1].tolist() == pytest.approx(predicted(*network, mixed, ASKED[1]), abs=1e-6)


@pytest.fixture(scope="module")
def shipped():
    """The model that comes with the package, which has learned what three things are called, and rows of two."""
    rows = structure_dataset(
        num_videos=8, frames_per_video=1, seed=1, videos_per_patient=1, structures=["blood vessel", "catheter"]
    )
    return *tiny_sa2va(pretrained=True), rows


def test_the_question_that_a_model_understands_is_found(shipped):
    model, processor, rows = shipped
    others = "{phrase|blood vessel=diaphragm|catheter=diaphragm}"
    questions = [f"{verb} the {others}." for verb in ("Please segment", "Segment", "Show me", "Find")]
    questions.insert(3, "Please segment the {phrase}.")
    asked = AskedRows(model, processor, rows, questions, progress=False)
    halving, table = search_questions(asked, finalists=1)
    assert halving.best == 3 and table[0]["question"] == questions[3] and table[0]["candidate"] == 3
    found = table[0]["difference"]
    assert found["mean"] > 0.4 and found["ci95"][0] > 0.2 and found["clusters"] == 8
    assert found["permutation_p_holm"] == found["permutation_p"] < 0.05
    assert table[1]["candidate"] == 0 and table[1]["difference"] is None
    about = as_json(halving, questions)
    assert [entry["question"] for entry in about["candidates"]] == questions
    assert about["rounds"][-1]["candidates"] == [3, 0] and about["candidates"][3]["images"] == len(asked.positions)
    assert about["candidates"][3]["mean"] == pytest.approx(table[0]["mean"])


def test_rounds_take_whole_patients_and_keep_the_rows_of_those_before(network):
    rows = synthetic_dataset(num_videos=8, frames_per_video=2, size=64, videos_per_patient=2)
    asked, calls = AskedRows(*network, rows, [f"{n} {{phrase}}" for n in range(9)], progress=False), []

    class Watched:
        def __getattr__(self, name):
            return getattr(asked, name)

        def __call__(self, which, numbers):
            calls.append((which, numbers))
            return asked(which, numbers)

    halving, table = search_questions(Watched(), kept=(0, 5), finalists=2)
    patients = [rows[position]["patient_id"] for position in asked.positions]
    assert patients == asked.clusters
    seen = [number for _, numbers in calls for number in numbers]
    assert sorted(seen) == list(range(16)) and len(calls) == len(halving.rounds) == 3
    for which, numbers in calls:
        own = {patients[number] for number in numbers}
        assert sorted(numbers) == [number for number, patient in enumerate(patients) if patient in own]
        assert {0, 5} <= {*which}
    assert {0, 5} <= {entry["candidate"] for entry in table} and len(table) == 4
    tested = [entry["difference"] for entry in table if entry["candidate"] != 0]
    assert all(found["permutation_p"] <= found["permutation_p_holm"] <= 1 for found in tested) and len(tested) == 3


@pytest.mark.parametrize(
    ("questions", "message"), [(ASKED[:1], "at least two questions"), ([*ASKED, ASKED[0]], "none twice")]
)
def test_too_few_questions_are_refused(network, rows, questions, message):
    with pytest.raises(ValueError, match=message):
        search_questions(AskedRows(*network, rows, questions, progress=False))


def test_what_cannot_be_scored_is_refused(network, rows):
    with pytest.raises(ValueError, match="metric must be dice or cldice, got 'iou'"):
        AskedRows(*network, rows, ASKED, "iou")
    empty = rows.map(lambda row: {"mask": row["mask"].point(lambda value: 0)})
    with pytest.raises(DatasetError, match="masks are all empty"):
        search_questions(AskedRows(*network, empty, ASKED, progress=False))
    with pytest.raises(DatasetError, match="has 9 of 9 rows|9 of 9 rows do not fit"):
        AskedRows(*network, rows, [*ASKED, "word " * 9000 + "{phrase}"])
