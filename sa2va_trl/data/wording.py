"""Words for the structures of a generated angiogram: what they are called, how one asks for them and what is said."""

from .structures import CATHETER, DIAPHRAGM, LEFT, NARROWING, RIGHT, SIDES, TRUNK_NAME, VESSEL


#: What each structure is called: the usual phrase first.
PHRASES = {
    VESSEL: (
        "blood vessel",
        "blood vessels",
        "vessel",
        "vessels",
        "coronary artery",
        "coronary arteries",
        "artery",
        "vascular tree",
        "vessel tree",
        "contrast-filled vessels",
    ),
    CATHETER: ("catheter", "guiding catheter", "coronary catheter", "catheter tube", "tube of the catheter"),
    LEFT: (
        "left main branch",
        "left branch",
        "left main vessel",
        "main branch on the left",
        "main vessel on the left",
    ),
    RIGHT: (
        "right main branch",
        "right branch",
        "right main vessel",
        "main branch on the right",
        "main vessel on the right",
    ),
    TRUNK_NAME: ("main trunk", "trunk", "vessel trunk", "trunk of the vessel tree", "trunk of the tree"),
    SIDES: ("side branches", "small branches", "side vessels", "smaller branches", "branches of the main vessels"),
    NARROWING: ("narrowing", "stenosis", "narrowed segment", "vessel narrowing", "narrow stretch"),
    DIAPHRAGM: ("diaphragm", "dome of the diaphragm", "diaphragm shadow", "shadow of the diaphragm"),
}
#: Paraphrases that no row to learn from uses: to test with.
HELD_OUT_PHRASES = {
    VESSEL: ("coronary vessels", "arteries", "contrast-filled arteries", "tree of vessels"),
    CATHETER: ("tube", "guiding catheter tube"),
    LEFT: ("left one of the main branches", "left main artery branch"),
    RIGHT: ("right one of the main branches", "right main artery branch"),
    TRUNK_NAME: ("main vessel trunk", "trunk of the arteries"),
    SIDES: ("small side branches", "smaller vessels"),
    NARROWING: ("narrowed stretch", "narrowing of the vessel"),
    DIAPHRAGM: ("dome", "diaphragm dome"),
}
#: The same in Chinese, which no row to learn from uses.
CHINESE = {
    VESSEL: ("血管", "冠状动脉", "造影剂充盈的血管"),
    CATHETER: ("导管", "造影导管"),
    LEFT: ("左侧主支",),
    RIGHT: ("右侧主支",),
    TRUNK_NAME: ("血管主干", "主干"),
    SIDES: ("侧支", "分支血管"),
    NARROWING: ("狭窄", "狭窄段"),
    DIAPHRAGM: ("膈肌", "横膈"),
}
_PLURAL = {
    *("blood vessels", "vessels", "coronary arteries", "contrast-filled vessels", *PHRASES[SIDES]),
    *("coronary vessels", "arteries", "contrast-filled arteries", *HELD_OUT_PHRASES[SIDES]),
}
#: Question and answer for one structure. {phrase} is what it is called, {is} and {it} go with its number. To each form
#: of question goes one form of answer, so that nothing has to be guessed. The first is `SegCollator`'s own.
ONE = (
    ("Please segment the {phrase}.", "Sure, [SEG]."),
    ("Segment the {phrase}.", "Sure, [SEG]."),
    ("Could you please segment the {phrase} in this image?", "Sure, the segmentation result is [SEG]."),
    ("Where {is} the {phrase}?", "{it} {is} <p> {phrase} </p> [SEG]."),
    ("Can you point out the {phrase}?", "{it} {is} <p> {phrase} </p> [SEG]."),
    ("Show me the {phrase}.", "<p> {phrase} </p> [SEG]."),
    ("Find the {phrase} in this picture.", "<p> {phrase} </p> [SEG]."),
    ("Please mark the {phrase}.", "Sure, <p> {phrase} </p> [SEG]."),
    ("I would like to see the {phrase}.", "Sure, <p> {phrase} </p> [SEG]."),
    ("Which pixels belong to the {phrase}?", "These: [SEG]."),
)
#: For one that the answer names right behind its [SEG].
CAPTION = ("Segment and name the {phrase}.", "[SEG] {phrase}.")
#: For two or three; {phrases} is a list, such as "the a, the b and the c".
SEVERAL = (
    ("Please segment {phrases}.", "Sure, {list}."),
    ("Segment {phrases}.", "Sure, {list}."),
    ("Where are {phrases}?", "They are {list}."),
    ("Show me {phrases}.", "{list}."),
    ("Please mark {phrases} in this image.", "Sure, {list}."),
)
#: Forms of questions for one that no row to learn from uses: to test with, as `question_templates`.
HELD_OUT_QUESTIONS = (
    "Mark the {phrase} in this image.",
    "Please show me where the {phrase} is.",
    "Can you find the {phrase}?",
    "I would like you to segment the {phrase}.",
)
#: Questions with yes and no; {a} is "a catheter", "an artery", "the diaphragm".
PRESENCE = (
    ("Is there {a} in this image?", "Yes.", "No."),
    ("Do you see {a}?", "Yes, I see {a}.", "No, there is no {phrase}."),
    ("Is {a} visible?", "Yes, {a} is visible.", "No, there is no {phrase}."),
)
SIDE_QUESTIONS = (
    "Which side does the main vessel run to?",
    "Does the main vessel run to the left or to the right?",
    "To which side does the vessel tree run?",
)


def is_plural(phrase: str) -> bool:
    """Whether one says "are" of a phrase of `PHRASES` or `HELD_OUT_PHRASES`."""
    return phrase in _PLURAL


def singular(structure: str) -> tuple[str, ...]:
    """The phrases of a structure that one says "is" of."""
    return tuple(phrase for phrase in PHRASES[structure] if not is_plural(phrase))


def _filled(template: str, phrase: str) -> str:
    words = {"{phrase}": phrase, "{is}": "is", "{it}": "It"}
    if is_plural(phrase):
        words |= {"{is}": "are", "{it}": "They"}
    for name, word in words.items():
        template = template.replace(name, word)
    return template


def ask_one(form: int, phrase: str) -> tuple[str, str]:
    """
    Ask for one structure.

    Args:
        form (`int`): number of a form of `ONE`.
        phrase (`str`): what it is called.

    Returns:
        `tuple[str, str]`: question and answer, which has one `[SEG]`.

    Example:

        ```python
        >>> from sa2va_trl.data.wording import ask_one

        >>> ask_one(3, "coronary arteries")
        ('Where are the coronary arteries?', 'They are <p> coronary arteries </p> [SEG].')

        ```
    """
    question, answer = ONE[form]
    return _filled(question, phrase), _filled(answer, phrase)


def ask_caption(phrase: str) -> tuple[str, str]:
    """
    Ask for one structure in a way that the answer names it right behind its `[SEG]`.

    Args:
        phrase (`str`): what it is called.

    Returns:
        `tuple[str, str]`: question and answer.
    """
    return tuple(_filled(text, phrase) for text in CAPTION)


def ask_several(form: int, phrases: list[str], missing: list[str]) -> tuple[str, str]:
    """
    Ask for several structures at once, of which some may not be there.

    Args:
        form (`int`): number of a form of `SEVERAL`.
        phrases (`list[str]`): what they are called, in the order of the question; more than one.
        missing (`list[str]`): those of them that are not there, but not all.

    Returns:
        `tuple[str, str]`: question and answer, which has one `[SEG]` for each that is there, in the same order.

    Example:

        ```python
        >>> from sa2va_trl.data.wording import ask_several

        >>> ask_several(3, ["trunk", "catheter"], missing=["trunk"])
        ('Show me the trunk and the catheter.', '<p> catheter </p> [SEG]. There is no trunk.')

        ```
    """
    question, answer = SEVERAL[form]
    there = [phrase for phrase in phrases if phrase not in missing]
    if len(there) == 1:
        answer = answer.replace("They are", "They are" if is_plural(there[0]) else "It is")
    question = question.replace("{phrases}", _listed([f"the {phrase}" for phrase in phrases]))
    answer = answer.replace("{list}", _listed([f"<p> {phrase} </p> [SEG]" for phrase in there]))
    return question, " ".join([answer, *map(no_such, missing)])


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def no_such(phrase: str) -> str:
    """What is said of a structure that is not there: `"There is no narrowing."`"""
    return f"There {'are' if is_plural(phrase) else 'is'} no {phrase}."


def ask_whether(form: int, structure: str, phrase: str, there: bool) -> tuple[str, str]:
    """
    Ask whether a structure is there.

    Args:
        form (`int`): number of a form of `PRESENCE`.
        structure (`str`): of `PHRASES`.
        phrase (`str`): what it is called, one of [`singular`].
        there (`bool`): whether it is.

    Returns:
        `tuple[str, str]`: question and answer, without a `[SEG]`.
    """
    article = "the" if structure == DIAPHRAGM else "an" if phrase[0] in "aeiou" else "a"
    question, yes, no = (text.replace("{a}", f"{article} {phrase}") for text in PRESENCE[form])
    return question.replace("Is there the ", "Is the "), (yes if there else no).replace("{phrase}", phrase)
