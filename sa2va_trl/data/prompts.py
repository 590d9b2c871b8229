"""Phrases, and the conversations that are made of them."""

from ..errors import DatasetError
from ..tokens import IMAGE_PLACEHOLDER, SEG_TOKEN, reserved_tokens


def normalize_phrase(text: str) -> str:
    """
    Bring a phrase into the form that Sa2VA's fine-tuning data has: no outer white space, no dot at the end, lower
    case.

    Raises:
        `DatasetError`: If nothing is left, or it holds a token that the processor writes itself.
    """
    phrase = text.strip().removesuffix(".").rstrip().lower()
    if not phrase:
        raise DatasetError(f"phrase {text!r} is empty")
    # (In the case that it came in, where they are tokens.)
    if found := [token for token in (SEG_TOKEN, IMAGE_PLACEHOLDER) if token in text] + reserved_tokens(text):
        raise DatasetError(f"phrase {text!r} holds the reserved token {', '.join(found)}")
    return phrase


QUESTIONS = ("Please segment the {phrase}.",)
ANSWERS = ("Sure, [SEG].",)


def conversation(phrases: list[str], questions: list[str], answers: list[str]) -> list[dict]:
    """
    The dialogue that asks for one object after the other, as Sa2VA is fine-tuned: one turn and one `[SEG]` an object.

    Args:
        phrases (`list[str]`): one an object.
        questions (`list[str]`): for each object, with `{phrase}` where the phrase goes.
        answers (`list[str]`): for each object, with one `[SEG]`.

    Returns:
        `list[dict]`: messages of user and assistant.
    """
    messages = []
    for phrase, question, answer in zip(phrases, questions, answers, strict=True):
        messages.append({"role": "user", "content": question.replace("{phrase}", phrase)})
        messages.append({"role": "assistant", "content": answer})
    return messages


def check_templates(questions: list[str] | tuple[str, ...], answers: list[str] | tuple[str, ...]) -> None:
    """
    Raises:
        `ValueError`: no template, a question without `{phrase}`, or an answer without exactly one `[SEG]`.
    """
    if not questions or not answers:
        raise ValueError("question_templates and answer_templates need at least one entry each.")
    for question in questions:
        if "{phrase}" not in question:
            raise ValueError(
                f"question_templates: {question!r} has no {{phrase}}, so it would not say what to segment."
            )
        if "[SEG]" in question or "<image>" in question:
            raise ValueError(f"question_templates: {question!r} must hold neither [SEG] nor <image>.")
    for answer in answers:
        if answer.count("[SEG]") != 1:
            raise ValueError(f"answer_templates: {answer!r} must hold [SEG] exactly once, one for each object.")
