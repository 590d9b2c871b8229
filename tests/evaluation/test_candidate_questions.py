import pytest

from sa2va_trl import tiny_sa2va
from sa2va_trl.data import DatasetError, named_dataset, synthetic_dataset
from sa2va_trl.data.wording import CHINESE, HELD_OUT_PHRASES, PHRASES
from sa2va_trl.evaluation.candidate_questions import TEMPLATES, made_questions, phrases_in, read_questions, wordings
from sa2va_trl.questions import QUESTIONS, ask, check_question


def write(tmp_path, text, encoding="utf-8"):
    file = tmp_path / "questions.txt"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_has_a_question_a_line(tmp_path, encoding):
    file = write(tmp_path, "Show me the {phrase}.\r\n\n  # of Chen\n 请分割{phrase|vessel=血管}。 \n", encoding)
    assert read_questions(file) == ["Show me the {phrase}.", "请分割{phrase|vessel=血管}。"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ("# nothing\n\n", "holds no question"),
        ("The {phrase}?\nSegment it.\n", "line 2: 'Segment it.' has no {phrase}"),
        ("The {phrase}?\n# twice\nThe {phrase}? \n", "line 3: 'The {phrase}?' stands in line 1 already"),
        ("The {phrase}? [SEG]\n", "line 1: 'The {phrase}? [SEG]' must hold neither"),
    ],
)
def test_a_file_of_no_use_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(ValueError, match="questions.txt") as error:
        read_questions(write(tmp_path, text))
    assert message in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.txt' cannot be read"):
        read_questions(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="questions.txt' cannot be read as text in UTF-8"):
        read_questions(write(tmp_path, "分割{phrase}", "gbk"))


def test_every_structure_has_words_in_both_languages():
    assert CHINESE.keys() == PHRASES.keys() == HELD_OUT_PHRASES.keys()
    assert QUESTIONS[0] in TEMPLATES["en"] and TEMPLATES.keys() == {"en", "zh"}


def test_phrases_are_said_in_other_words_one_of_each_at_a_time():
    found = wordings(["vessels", "dome", "polyp"], "en")
    # The usual phrase first; "dome" is one that no training row uses.
    assert found[0] == {"vessels": "blood vessel", "dome": "diaphragm"}
    assert "vessels" not in {words.get("vessels") for words in found} and "polyp" not in str(found)
    assert len(found) == len(PHRASES["blood vessel"]) - 1 and len(found[-1]) == 1
    assert wordings(["polyp"], "zh") == wordings([], "en") == []


def test_templates_are_asked_with_every_word():
    made = made_questions(["blood vessel"], ["zh", "en"])
    assert len(made) == len(set(made)) == 4 * len(TEMPLATES["zh"]) + 10 * len(TEMPLATES["en"])
    for question in made:
        check_question(question, "made")
    assert {ask(question, "blood vessel") for question in made} >= {"请标出冠状动脉。", "Show me the vascular tree."}
    assert made_questions(["polyp"], ["en"]) == list(TEMPLATES["en"])


@pytest.mark.parametrize(
    ("languages", "message"),
    [(["en", "fr"], "en, zh, not in fr"), ([], "languages must"), (["en", "en"], "languages must")],
)
def test_languages_without_templates_are_refused(languages, message):
    with pytest.raises(ValueError, match=message):
        made_questions(["vessel"], languages)


def test_the_tokenizer_takes_all_of_them():
    """Bytes stand in for what it has no words for."""
    tokenizer = tiny_sa2va(image_size=64)[1].tokenizer
    for question in made_questions(list(PHRASES), list(TEMPLATES)):
        text = ask(question, "blood vessel")
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_phrases_of_rows():
    assert phrases_in(synthetic_dataset(1, 2, 64)) == ["blood vessel"]
    with pytest.raises(DatasetError, match="question has no effect: no row of the split has a phrase"):
        phrases_in(named_dataset(1, 2, 64), "question")
