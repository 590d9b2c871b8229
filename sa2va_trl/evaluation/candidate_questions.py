"""Questions to choose from: of a file, or made of templates and of other words for the phrases of a data set."""

import os
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from ..data.layout import row_layout
from ..data.stored import iter_undecoded
from ..data.wording import CHINESE, HELD_OUT_PHRASES, HELD_OUT_QUESTIONS, ONE, PHRASES
from ..errors import DatasetError
from ..questions import check_question


#: Templates by language. (Those of `ONE` with a verb that goes with the phrase's number are left out.)
TEMPLATES = {
    "en": (*(question for question, _ in ONE if "{is}" not in question), *HELD_OUT_QUESTIONS),
    "zh": ("请分割{phrase}。", "请分割图像中的{phrase}。", "请标出{phrase}。", "图中的{phrase}在哪里？"),
}
#: Other words for structures, by language.
WORDS = {"en": PHRASES, "zh": CHINESE}


def check_languages(languages: Sequence[str]) -> None:
    """
    Raises:
        `ValueError`: none, one twice, or one without templates.
    """
    if not languages or len(set(languages)) < len(languages):
        raise ValueError(f"languages must be one or several different ones, got {list(languages)}.")
    if unknown := [language for language in languages if language not in TEMPLATES]:
        raise ValueError(f"languages: there are templates in {', '.join(TEMPLATES)}, not in {', '.join(unknown)}.")


def read_questions(path: str | os.PathLike) -> list[str]:
    """
    Questions of a file: one a line; empty lines and those that begin with `#` are left out.

    Args:
        path (`str` or `os.PathLike`): text in UTF-8.

    Returns:
        `list[str]`: templates, see [`~questions.ask`].

    Raises:
        `ValueError`: the file is not there or no such text, holds no question, one twice, or one without `{phrase}`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts={str(path)!r} cannot be read as text in UTF-8: {error}.") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        question = line.strip()
        if not question or question.startswith("#"):
            continue
        check_question(question, f"{path}, line {number}")
        if question in found:
            raise ValueError(f"{path}, line {number}: {question!r} stands in line {found[question]} already.")
        found[question] = number
    if not found:
        raise ValueError(f"{path} holds no question: write one a line, such as Segment the {{phrase}}.")
    return list(found)


def phrases_in(dataset: Dataset, option: str = "prompts") -> list[str]:
    """
    What the rows of a data set are asked for.

    Args:
        dataset (`datasets.Dataset`): checked rows; none is decoded.
        option (`str`, *optional*, defaults to `"prompts"`): what the message names.

    Returns:
        `list[str]`: phrases, each once, in the order of the rows.

    Raises:
        `DatasetError`: no row has any, so that no question has an effect.
    """
    layouts = (row_layout(row) for rows in iter_undecoded(dataset) for row in rows)
    phrases = list(dict.fromkeys(phrase for layout in layouts for phrase in layout.phrases or ()))
    if not phrases:
        raise DatasetError(
            f"{option} has no effect: no row of the split has a phrase to ask for. Rows with `messages` hold their "
            "questions themselves."
        )
    return phrases


def wordings(phrases: Sequence[str], language: str) -> list[dict[str, str]]:
    """
    Other words for phrases, as far as [`~data.wording`] has them: for each the first, then for each the second, and so
    on.

    Args:
        phrases (`Sequence[str]`): of a data set.
        language (`str`): one of `WORDS`.

    Returns:
        `list[dict[str, str]]`: from phrases to other words; a phrase of which there are no more is left out.

    Example:

        ```python
        >>> from sa2va_trl.evaluation.candidate_questions import wordings

        >>> wordings(["blood vessel", "catheter"], "zh")[:2]
        [{'blood vessel': '血管', 'catheter': '导管'}, {'blood vessel': '冠状动脉', 'catheter': '造影导管'}]

        ```
    """
    others = {}
    for phrase in phrases:
        structures = [each for each in PHRASES if phrase in (*PHRASES[each], *HELD_OUT_PHRASES[each])]
        others[phrase] = [word for each in structures for word in WORDS[language][each] if word != phrase]
    count = max(map(len, others.values()), default=0)
    return [{phrase: own[rank] for phrase, own in others.items() if rank < len(own)} for rank in range(count)]


def made_questions(phrases: Sequence[str], languages: Sequence[str]) -> list[str]:
    """
    All templates of some languages, each with the phrases as they are and in other words.

    Args:
        phrases (`Sequence[str]`): of the data set, from [`phrases_in`].
        languages (`Sequence[str]`): of `TEMPLATES`.

    Returns:
        `list[str]`: templates, see [`~questions.ask`].

    Raises:
        `ValueError`: see [`check_languages`].

    Example:

        ```python
        >>> from sa2va_trl.evaluation.candidate_questions import made_questions

        >>> made = made_questions(["blood vessel"], ["zh"])
        >>> len(made), made[:2]
        (16, ['请分割{phrase}。', '请分割{phrase|blood vessel=血管}。'])

        ```
    """
    check_languages(languages)
    made = []
    for language in languages:
        places = ["{phrase}"]
        for words in wordings(phrases, language):
            places.append("".join(["{phrase", *(f"|{phrase}={word}" for phrase, word in words.items()), "}"]))
        made += [template.replace("{phrase}", place) for template in TEMPLATES[language] for place in places]
    return list(dict.fromkeys(made))
