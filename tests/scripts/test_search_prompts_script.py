import json

import pandas as pd
import pytest
from PIL import Image
from tasks import options, run_task

from sa2va_trl import Sa2VAForConditionalGeneration, tiny_sa2va
from sa2va_trl.adapters.mask_options import MASK_OPTIONS, read_mask_options
from sa2va_trl.data import DatasetError, load_dataset_dict
from sa2va_trl.questions import QUESTIONS
from sa2va_trl.scripts import choosing, search_prompts


SYNTHETIC = {"train_videos": 1, "validation_videos": 2, "test_videos": 3, "frames_per_video": 2, "size": 64}
# "Dome", which the shipped model has not learned, of the diaphragm, which it has.
DOMES = {
    **{"scene": "named", "rows": "structures", "structures": ["diaphragm"], "wording": "held_out", "size": 128},
    **{"train_videos": 1, "validation_videos": 8, "test_videos": 8, "frames_per_video": 2, "videos_per_patient": 1},
}
KNOWN = "Show me the {phrase|dome=diaphragm|diaphragm dome=diaphragm}."


def write(tmp_path, *questions):
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(questions))
    return file


def run(tmp_path, *line, synthetic=SYNTHETIC, **values):
    output = tmp_path / "prompts"
    run_task("search_prompts", *options(tmp_path, synthetic=synthetic, **values), "--output_dir", output, *line)
    return json.loads((output / "prompts.json").read_text())


@pytest.fixture(scope="module")
def domes(tmp_path_factory):
    """A search whose best question is known, stored in the model."""
    folder = tmp_path_factory.mktemp("domes")
    for part in tiny_sa2va(pretrained=True):
        part.save_pretrained(folder / "model")
    file = write(folder, "Please segment the {phrase|dome=catheter|diaphragm dome=catheter}.", KNOWN)
    common = ("--model_name_or_path", folder / "model", "--prompts", file)
    return folder, run(folder, *common, "--store", synthetic=DOMES)


def test_the_question_that_a_model_understands_is_found_and_stored(domes):
    folder, found = domes
    assert found["best"] == found["chosen"] == KNOWN and {*found["phrases"]} == {"dome", "diaphragm dome"}
    assert [entry["question"] for entry in found["candidates"]][::2] == [QUESTIONS[0], KNOWN]
    first = found["finalists"][0]
    assert first["question"] == KNOWN and first["difference"]["ci95"][0] > 0
    assert first["difference"]["permutation_p"] <= first["difference"]["permutation_p_holm"]
    gain = found["test"]["difference"]
    assert gain["mean"] == pytest.approx(found["test"]["best"]["mean"] - found["test"]["default"]["mean"])
    assert gain["mean"] > 0.05
    assert found["to_store"] == {"default_question": KNOWN} and found["model"] == {"default_question": None}
    assert Sa2VAForConditionalGeneration.from_pretrained(folder / "model").config.default_question == KNOWN


def test_a_stored_question_is_what_the_model_is_evaluated_and_predicted_with(domes, tmp_path, capsys):
    folder, found = domes

    def evaluated(name, model, *line):
        output = tmp_path / name
        common = [*options(tmp_path, synthetic=DOMES), "--model_name_or_path", model, "--num_overlays", 0]
        run_task("evaluate", *common, "--output_dir", output, "--report", "false", *line)
        return pd.read_parquet(output / "per_sample.parquet")["dice"].tolist()

    own = evaluated("own", folder / "model")
    assert f'asked "{KNOWN}"' in capsys.readouterr().out
    assert sum(own) / len(own) == pytest.approx(found["test"]["best"]["mean"], abs=1e-9)
    plain = evaluated("plain", "tiny")
    assert "asked" not in capsys.readouterr().out
    assert sum(plain) / len(plain) == pytest.approx(found["test"]["default"]["mean"], abs=1e-9)
    # The option says another, for the model that has one and for the one that has none.
    assert evaluated("given", "tiny", "--question", KNOWN) == own
    assert evaluated("back", folder / "model", "--question", QUESTIONS[0]) == plain

    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    common = ("--model_name_or_path", folder / "model", "--input", tmp_path / "image.png", "--answer", "[SEG]")
    run_task("predict", *common, "--output_dir", tmp_path / "predicted")
    assert json.loads((tmp_path / "predicted" / "predictions.json").read_text())["prompt"] == (
        "Show me the blood vessel."
    )


def test_an_adapter_has_a_question_of_its_own(tmp_path, trained, capsys, monkeypatch):
    from peft import get_peft_model

    from sa2va_trl.adapters.peft_model import SegPeftModel
    from sa2va_trl.adapters.presets import get_peft_config

    base = Sa2VAForConditionalGeneration.from_pretrained(trained)
    adapted = SegPeftModel.adopt(get_peft_model(base, get_peft_config("head", base.config.seg_token_id)))
    adapted.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(search_prompts, "is_better", lambda finalist: True)
    config = (trained / "config.json").read_bytes()
    model = ("--model_name_or_path", trained, "--adapter", tmp_path / "adapter")
    found = run(tmp_path, *model, "--prompts", write(tmp_path, "The {phrase}?", "{phrase}"), "--store")
    assert read_mask_options(tmp_path / "adapter") == found["to_store"]
    assert (trained / "config.json").read_bytes() == config and (tmp_path / "adapter" / MASK_OPTIONS).is_file()
    assert "--question" not in capsys.readouterr().out.splitlines()[-1]
    # A search after that keeps it to the end, and stores what is better.
    (tmp_path / "adapter" / MASK_OPTIONS).write_text('{"default_question": "Is it the {phrase}?"}')
    file = write(tmp_path, *(f"{number} {{phrase}}" for number in range(9)))
    # (Of one patient no round could drop any.)
    rows = ("--synthetic", json.dumps({**SYNTHETIC, "validation_videos": 4}))
    again = run(tmp_path, *model, "--prompts", file, "--finalists", 1, *rows)
    assert again["candidates"][1]["question"] == "Is it the {phrase}?" == again["model"]["default_question"]
    assert {0, 1} <= {entry["candidate"] for entry in again["finalists"]} and len(again["finalists"]) == 3


def test_what_may_be_chance_changes_no_question(tmp_path, trained, capsys):
    """One patient to choose on, from whom no interval can be told."""
    synthetic = {**SYNTHETIC, "validation_videos": 1}
    file = write(tmp_path, "The {phrase}?", "{phrase}!", "Is it {phrase}?")
    found = run(tmp_path, "--model_name_or_path", trained, "--prompts", file, synthetic=synthetic)
    assert found["chosen"] == QUESTIONS[0] and found["to_store"] == {"default_question": None}
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("score it in full: sa2va-trl evaluate") and "--question" not in lines[-1]
    assert f'"{QUESTIONS[0]}" is chosen' in "\n".join(lines)


@pytest.mark.parametrize(("languages", "count"), [(("zh",), 17), (("en", "zh"), 146)])
def test_without_a_file_questions_are_made(tmp_path, trained, languages, count):
    line = ("--model_name_or_path", trained, "--languages", *languages, "--metric", "cldice")
    found = run(tmp_path, *line, synthetic={**SYNTHETIC, "frames_per_video": 1})
    assert len(found["candidates"]) == count and found["metric"] == "cldice"
    assert [len(each["candidates"]) for each in found["rounds"]][0] == count


def test_rows_that_hold_their_own_questions_are_refused(tmp_path):
    synthetic = {"scene": "named", "train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 2}
    with pytest.raises(DatasetError, match="prompts has no effect: no row of the split has a phrase"):
        run(tmp_path, synthetic=synthetic)
    with pytest.raises(DatasetError, match="question has no effect: no row of the split has a phrase"):
        run_task("evaluate", *options(tmp_path, synthetic=synthetic), "--question", "{phrase}?")


def test_patients_in_both_splits_are_refused(tmp_path, monkeypatch):
    data = load_dataset_dict("synthetic", **SYNTHETIC)
    data["test"] = data["validation"]
    monkeypatch.setattr(choosing, "load_data", lambda args: data)
    with pytest.raises(DatasetError, match="validation and test overlap"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--choose_split", "test"), "choose_split='test' is the split to report on"),
        (("--choose_split", "dev"), "choose_split='dev': the dataset has no such split"),
        (("--prompts", "nowhere.txt"), "prompts='nowhere.txt' cannot be read"),
        (("--languages", "fr"), "templates in en, zh, not in fr"),
        (("--metric", "iou"), "metric must be dice or cldice"),
        (("--batch_size", "0"), "batch_size must be at least 1"),
        (("--finalists", "0"), "finalists must be at least 1"),
        (("--store",), "tiny is no folder"),
        (("--model_name_or_path", "owner/name", "--store"), "owner/name is none"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, monkeypatch, line, message):
    monkeypatch.setattr(search_prompts, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *line)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ((QUESTIONS[0],), "holds nothing to choose from but the package's own question"),
        (("The vessel?",), "line 1: 'The vessel[?]' has no {phrase}"),
        (("{phrase}?", "{phrase}?"), "line 2: '{phrase}[?]' stands in line 1"),
        (("# none",), "holds no question"),
    ],
)
def test_files_of_no_use_are_refused_before_anything_runs(tmp_path, monkeypatch, questions, message):
    monkeypatch.setattr(search_prompts, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "--prompts", write(tmp_path, *questions))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--question", "The vessel?"), "question: 'The vessel[?]' has no {phrase}"),
        (("--question", "{phrase}?", "--predictions_dir", "."), "question has no meaning with predictions_dir"),
    ],
)
def test_evaluate_refuses_questions_of_no_use(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        run_task("evaluate", *options(tmp_path, synthetic=SYNTHETIC), *line)
