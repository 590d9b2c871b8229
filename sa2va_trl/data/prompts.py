"""Phrases, and the conversations that are made of them."""

from typing import Any

from ..errors import DatasetError
from ..questions import QUESTIONS, ask, check_question  # noqa: F401  (QUESTIONS were defined here once)
from ..tokens import IMAGE_PLACEHOLDER, SEG_TOKEN, places_fault, reserved_tokens


ANSWERS = ("Sure, [SEG].",)


def normalize_phrase(text: str) -> str:
    """
    Bring a phrase into the form that Sa2VA's fine-tuning data has: no outer white space, no dot at the end, lower
    case.

    Args:
        text (`str`): as somebody wrote it.

    Returns:
        `str`.

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


def conversation(phrases: list[str], questions: list[str], answers: list[str]) -> list[dict]:
    """
    The dialogue that asks for one object after the other, as Sa2VA is fine-tuned: one turn and one `[SEG]` an object.

    Args:
        phrases (`list[str]`): one an object.
        questions (`list[str]`): for each object, with `{phrase}` where the phrase goes, see [`~questions.ask`].
        answers (`list[str]`): for each object, with one `[SEG]`.

    Returns:
        `list[dict]`: messages of user and assistant.
    """
    messages = []
    for phrase, question, answer in zip(phrases, questions, answers, strict=True):
        messages.append({"role": "user", "content": ask(question, phrase)})
        messages.append({"role": "assistant", "content": answer})
    return messages


def check_templates(questions: list[str] | tuple[str, ...], answers: list[str] | tuple[str, ...]) -> None:
    """
    Refuse templates that cannot be used.

    Args:
        questions (`list[str]`): each with `{phrase}`.
        answers (`list[str]`): each with one `[SEG]`.

    Raises:
        `ValueError`: no template, a question that [`~questions.check_question`] refuses, or an answer without exactly
            one `[SEG]`.
    """
    if not questions or not answers:
        raise ValueError("question_templates and answer_templates need at least one entry each.")
    for question in questions:
        check_question(question, "question_templates")
    for answer in answers:
        if answer.count("[SEG]") != 1:
            raise ValueError(f"answer_templates: {answer!r} must hold [SEG] exactly once, one for each object.")


def _message_text(content: Any) -> str | None:
    """
    The text of a message's content (a string, or a list of typed parts), None where it has another form. Each image
    among the parts shows as a placeholder, which is what the processor makes of it.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        return None
    if not all(part["type"] in ("text", "image") for part in content):
        return None
    texts = [part.get("text") for part in content if part["type"] == "text"]
    if not all(isinstance(text, str) for text in texts):
        return None
    return "".join([IMAGE_PLACEHOLDER] * (len(content) - len(texts)) + texts)


def check_messages(messages: Any, images: int) -> tuple[int, list[str]]:
    """
    Judge the conversation of a row.

    Args:
        messages (`list[dict]`): with `role` and `content` (a string, or a list of typed parts).
        images (`int`): how many images the row has, whose places user turns may say.

    Returns:
        The number of `[SEG]` in the assistant turns, and what is wrong with the conversation.
    """
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
    ):
        return 0, ["messages is malformed: expected a list of {'role', 'content'}"]
    problems, count, marked, previous = [], 0, 0, None
    for number, message in enumerate(messages):
        role, text = message["role"], _message_text(message["content"])
        if role not in ("system", "user", "assistant"):
            problems.append(f"messages is malformed: role {role!r} in message {number} (system, user or assistant)")
        elif role == "system" and number > 0:
            problems.append(f"messages is malformed: message {number} is a system turn, only the first may be")
        elif role == "assistant" and previous != "user":
            problems.append(f"messages is malformed: message {number} is an assistant turn that follows no user turn")
        elif role == "user" and previous == "user":
            problems.append(f"messages is malformed: messages {number - 1} and {number} are both user turns")
        if text:
            if role == "user":
                marked += text.count(IMAGE_PLACEHOLDER)
            elif IMAGE_PLACEHOLDER in text:
                problems.append(
                    f"messages is malformed: {IMAGE_PLACEHOLDER} (or an image part) in message {number} ({role}); it "
                    "may stand in user turns alone"
                )
            for token in reserved_tokens(text):
                problems.append(f"messages is malformed: message {number} holds the reserved token {token}")
        if text is None:
            problems.append(
                f"messages is malformed: content of message {number} is neither a string nor typed parts (text with "
                "its `text`, or image)"
            )
        elif role == "assistant":
            count += text.count(SEG_TOKEN)
            if not text.strip():
                problems.append(f"messages is malformed: message {number} (assistant) is empty")
        elif SEG_TOKEN in text:
            # The model takes a mask prompt from every [SEG] of a sequence, whoever says it.
            problems.append(
                f"messages is malformed: {SEG_TOKEN} in message {number} ({role}); only the assistant may say it"
            )
        previous = role
    if fault := places_fault(marked, images):
        problems.append(f"messages is malformed: {fault}")
    if previous != "assistant":
        problems.append("messages is malformed: it does not end with an assistant turn")
    return count, problems
