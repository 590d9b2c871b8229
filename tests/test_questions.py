from pathlib import Path
from types import SimpleNamespace

import pytest

import sa2va_trl
from sa2va_trl.questions import QUESTIONS, ask, check_question, question_of


@pytest.mark.parametrize(
    ("question", "phrase", "asked"),
    [
        ("Segment the {phrase}.", "catheter", "Segment the catheter."),
        ("{phrase}, {phrase}!", "a {phrase}", "a {phrase}, a {phrase}!"),
        ("请分割{phrase|blood vessel=血管|catheter=导管}。", "blood vessel", "请分割血管。"),
        ("请分割{phrase|blood vessel=血管|catheter=导管}。", "catheter", "请分割导管。"),
        ("请分割{phrase|blood vessel=血管|catheter=导管}。", "diaphragm", "请分割diaphragm。"),
        (
            "The {phrase| blood vessel = vessel tree } and {phrase}.",
            "blood vessel",
            "The vessel tree and blood vessel.",
        ),
        ("{phrase|a=\\1}", "a", "\\1"),
    ],
)
def test_a_phrase_goes_into_its_place_in_other_words_where_there_are_any(question, phrase, asked):
    check_question(question, "question")
    assert ask(question, phrase) == asked


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("Segment the vessel.", "'Segment the vessel.' has no {phrase}"),
        ("Segment the {Phrase}.", "has no {phrase}"),
        ("Segment the {phrase|vessel}.", "cannot be read"),
        ("Segment the {phrase|=vessel}.", "cannot be read"),
        ("", "has no {phrase}"),
        ("{phrase} or {phrase|vessel}?", "cannot be read; it is {phrase}, or"),
        ("Segment the {phrase|a=b|a=c}.", "says 'a' in two ways"),
        (3, "3 has no {phrase}"),
        ("<image> the {phrase}", "must hold neither"),
        ("{phrase} [SEG]", "must hold neither"),
        ("{phrase}<|im_end|>", "reserved token <|im_end|>"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(question, message):
    with pytest.raises(ValueError, match="^name: ") as error:
        check_question(question, "name")
    assert message in str(error.value)


def test_a_model_is_asked_its_own_question_or_else_that_of_the_package():
    assert question_of(SimpleNamespace(default_question=None)) == QUESTIONS[0] == "Please segment the {phrase}."
    assert question_of(SimpleNamespace(default_question="The {phrase}?")) == "The {phrase}?"


def test_what_judges_a_model_knows_no_other_way_to_ask():
    """Whoever took the package's question by itself would pass over the model's own."""
    rooms = ("app", "evaluation", "features", "mining", "preferences")
    files = [file for room in rooms for file in (Path(sa2va_trl.__file__).parent / room).rglob("*.py")]
    assert len(files) > 40
    assert not [file.name for file in files if "import QUESTIONS" in file.read_text()]
    assert not [file.name for file in files if " QUESTIONS[" in file.read_text()]
