"""Questions: templates with a place for the phrase, and the one that a model is asked where nobody says another."""

import re
from typing import TYPE_CHECKING

from .tokens import IMAGE_PLACEHOLDER, SEG_TOKEN, reserved_tokens


if TYPE_CHECKING:
    from transformers import PreTrainedConfig


#: Templates of the package; the first is what models are evaluated with.
QUESTIONS = ("Please segment the {phrase}.",)
# {phrase}, or with other words for some phrases {phrase|blood vessel=coronary artery|catheter=tube}.
_PLACE = re.compile(r"\{phrase((?:\|[^{}|=]+=[^{}|=]+)*)\}")


def ask(question: str, phrase: str) -> str:
    """
    A template with the phrase in its place.

    Args:
        question (`str`):
            With `{phrase}`, or with `{phrase|blood vessel=coronary artery|catheter=tube}`, which says a blood vessel
            in other words, and a catheter, and every other phrase as it is.
        phrase (`str`): what to ask for.

    Returns:
        `str`.

    Example:

        ```python
        >>> from sa2va_trl.questions import ask

        >>> question = "Segment the {phrase|blood vessel=coronary artery}."
        >>> ask(question, "blood vessel"), ask(question, "catheter")
        ('Segment the coronary artery.', 'Segment the catheter.')

        ```
    """

    def words(place: re.Match) -> str:
        others = dict(map(str.strip, pair.split("=")) for pair in place[1].split("|")[1:])
        return others.get(phrase, phrase)

    return _PLACE.sub(words, question)


def asked(question: str, text: str) -> str | None:
    """
    The words in the place of the phrase, where a text is this template with a phrase in it.

    Args:
        question (`str`): as in [`ask`], with one place.
        text (`str`): that was asked.

    Returns:
        `str`, or `None` where it is something else.

    Example:

        ```python
        >>> from sa2va_trl.questions import asked

        >>> asked("Please segment the {phrase}.", "Please segment the catheter.")
        'catheter'

        ```
    """
    places = [*_PLACE.finditer(question)]
    if len(places) != 1:
        return None
    before, after = question[: places[0].start()], question[places[0].end() :]
    is_this = text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
    return text[len(before) : len(text) - len(after)].strip() or None if is_this else None


def check_question(question: str, name: str) -> None:
    """
    Args:
        question (`str`): template to check.
        name (`str`): what the message calls it.

    Raises:
        `ValueError`: it has no `{phrase}`, or holds a token that has another meaning.
    """
    if isinstance(question, str) and "{phrase" in _PLACE.sub("", question):
        raise ValueError(
            f"{name}: {question!r} has a place for the phrase that cannot be read; it is {{phrase}}, or with other "
            "words {phrase|blood vessel=coronary artery}."
        )
    if not isinstance(question, str) or not _PLACE.search(question):
        raise ValueError(f"{name}: {question!r} has no {{phrase}}, so it would not say what to segment.")
    for place in _PLACE.finditer(question):
        names = [pair.split("=")[0].strip() for pair in place[1].split("|")[1:]]
        if twice := [word for word in dict.fromkeys(names) if names.count(word) > 1]:
            raise ValueError(f"{name}: {question!r} says {twice[0]!r} in two ways.")
    if SEG_TOKEN in question or IMAGE_PLACEHOLDER in question:
        raise ValueError(f"{name}: {question!r} must hold neither {SEG_TOKEN} nor {IMAGE_PLACEHOLDER}.")
    if found := reserved_tokens(question):
        raise ValueError(f"{name}: {question!r} holds the reserved token {', '.join(found)}.")


def question_of(config: "PreTrainedConfig") -> str:
    """
    What a model is asked where nobody says another question: in evaluation, mining, preferences and prediction.

    Args:
        config (`Sa2VAConfig`): of the model.

    Returns:
        `str`: template, `config.default_question` or else the package's own.
    """
    return config.default_question or QUESTIONS[0]
