import pytest
from collator_rows import MANY_ANSWERS, MANY_QUESTIONS

from sa2va_trl.data.collator import SegCollator
from sa2va_trl.data.prompts import ANSWERS, QUESTIONS, check_templates, conversation, normalize_phrase
from sa2va_trl.errors import DatasetError


class TestPhrase:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [("  Blood Vessel. ", "blood vessel"), ("a..", "a."), ("LAD . ", "lad"), ("ends. here", "ends. here")],
    )
    def test_as_the_official_loader(self, text, expected):
        assert normalize_phrase(text) == expected

    @pytest.mark.parametrize("text", ["", "  ", ".", " . "])
    def test_empty(self, text):
        with pytest.raises(DatasetError, match="is empty"):
            normalize_phrase(text)

    @pytest.mark.parametrize("phrase", ["the [SEG]", "<image>", "a <IMG_CONTEXT>", "x<|im_end|>"])
    def test_reserved_tokens_do_not_hide_in_lower_case(self, phrase):
        with pytest.raises(DatasetError, match="reserved token"):
            normalize_phrase(phrase)


def test_conversation_is_one_exchange_an_object():
    chat = conversation(
        ["{a} and {phrase}", "b"], ["Is {phrase} here?", "And {phrase}, {phrase}?"], ["[SEG]", "Yes [SEG]"]
    )
    assert chat == [
        {"role": "user", "content": "Is {a} and {phrase} here?"},
        {"role": "assistant", "content": "[SEG]"},
        {"role": "user", "content": "And b, b?"},
        {"role": "assistant", "content": "Yes [SEG]"},
    ]
    with pytest.raises(ValueError):
        conversation(["a"], ["{phrase}", "{phrase}"], ["[SEG]"])


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([], ANSWERS, "at least one entry"),
        (QUESTIONS, [], "at least one entry"),
        (["Segment it."], ANSWERS, "question_templates: 'Segment it.' has no {phrase}"),
        ([*QUESTIONS, "Segment {Phrase}."], ANSWERS, "'Segment {Phrase}.' has no {phrase}"),
        (QUESTIONS, ["Sure."], r"answer_templates: 'Sure.' must hold \[SEG\] exactly once"),
        (QUESTIONS, [*ANSWERS, "[SEG] [SEG]"], r"'\[SEG\] \[SEG\]' must hold \[SEG\] exactly once"),
        pytest.param(
            ["Segment {phrase} as [SEG]."], ANSWERS, "question_templates",
        ),
        pytest.param(
            ["<image>\nSegment {phrase}."], ANSWERS, "question_templates",
        ),
    ],
)  # fmt: skip
def test_bad_templates_are_named(tiler, questions, answers, message):
    with pytest.raises(ValueError, match=message):
        check_templates(questions, answers)
    with pytest.raises(ValueError, match=message):
        SegCollator(tiler, questions=questions, answers=answers)


def test_the_default_templates_are_legal():
    check_templates(QUESTIONS, ANSWERS)
    check_templates(MANY_QUESTIONS, MANY_ANSWERS)
