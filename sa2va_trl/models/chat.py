"""Conversations as token ids and labels."""

from collections.abc import Callable

from ..tokens import IMAGE_PLACEHOLDER, places_fault, reserved_tokens


# Label of a token that nothing is learned from.
IGNORED = -100


def encode_chat(
    messages: list[dict],
    image_blocks: list[str],
    template: dict,
    tokenize: Callable[[str], list[int]],
    beginning: list[int],
    opening: str | None = None,
) -> tuple[list[int], list[int]]:
    """
    Token ids and labels of a conversation, see [`Sa2VAProcessor.encode_chat`].

    Each turn is tokenised on its own, as Sa2VA's training does: an answer must have the ids that generating it has.

    Args:
        messages (`list[dict]`): the conversation.
        image_blocks (`list[str]`): what stands for each of its images.
        template (`dict`): an entry of [`~models.templates.TEMPLATES`].
        tokenize (`Callable`): from a text to its ids, none added.
        beginning (`list[int]`): ids that the tokenizer begins every text with.
        opening (`str`, *optional*): with it, the prompt is official inference's and begins so.

    Returns:
        `input_ids` and `labels`.

    Raises:
        `ValueError`: as [`Sa2VAProcessor.encode_chat`].
    """
    input_ids, labels = list(beginning), [IGNORED] * len(beginning)

    def add(text: str, learned: bool = False) -> None:
        ids = tokenize(text)
        input_ids.extend(ids)
        labels.extend(ids if learned else [IGNORED] * len(ids))

    official = opening is not None
    # What stands between images and a text that does not say where they are. (The clause of regions has it already.)
    newline = "" if official or (image_blocks and image_blocks[-1].endswith("\n")) else "\n"
    texts = [(message["role"], text_of(message, newline)) for message in messages]
    texts = _placed(texts, image_blocks, newline, official)
    if official and (not messages or messages[0]["role"] != "system"):
        add(opening)
    for position, (message, text) in enumerate(zip(messages, texts, strict=True)):
        role = message["role"]
        if role == "assistant":
            add(text + template["answer_end"], learned=True)
            if position + 1 < len(messages):
                add(template["separator"])
        else:
            add(template[role].format_map({"content": text}))
    return input_ids, labels


def next_turn(text: str, template: dict, tokenize: Callable[[str], list[int]]) -> list[int]:
    """
    Token ids of one more user turn of a conversation: from behind the end marker of the latest answer to where the
    next one begins, as [`encode_chat`] of the whole has them.

    Args:
        text (`str`): what the user says. All images of a conversation have their places by then.
        template, tokenize: as in [`encode_chat`].

    Raises:
        `ValueError`: no text, or one that holds `<image>` or a token that only the processor may write.
    """
    if not isinstance(text, str):
        raise ValueError(f"A question must be text, got {text!r}.")
    text = text_of({"role": "user", "content": text})
    if IMAGE_PLACEHOLDER in text:
        raise ValueError(
            f"All images of this conversation have their places in earlier turns: leave {IMAGE_PLACEHOLDER} out of "
            f"{text!r}."
        )
    return tokenize(template["separator"]) + tokenize(template["user"].format_map({"content": text}))


def text_of(message: dict, newline: str = "\n") -> str:
    """
    The text of a message, with `<image>` for each of its image parts.

    Args:
        message (`dict`): `{"role", "content"}`.
        newline (`str`, *optional*): what follows the place of an image part.

    Raises:
        `ValueError`: as [`Sa2VAProcessor.encode_chat`].
    """
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"A message's role must be system, user or assistant, got {role!r}.")
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(f"A message's content must be text, got {content!r}.")
    if not isinstance(content, str):
        if unknown := [part for part in content if _kind(part) is None]:
            forms = '{"type": "image"} or {"type": "text", "text": ...}'
            raise ValueError(f"A message's parts must be {forms}, got {unknown[0]!r}.")
        if role != "user" and any(part["type"] == "image" for part in content):
            raise ValueError(f"Images stand in turns of the user, not of the {role}: {content!r}.")
        content = "".join(IMAGE_PLACEHOLDER + newline if part["type"] == "image" else part["text"] for part in content)
    if found := reserved_tokens(content):
        raise ValueError(
            f"A text of the {role} holds {', '.join(found)}, which only the processor may write: "
            f"leave it out of {content!r}."
        )
    return content


def _kind(part: object) -> str | None:
    """`"image"` or `"text"`, where a part of a message is one of them."""
    kind = part.get("type") if isinstance(part, dict) else None
    is_good = kind == "image" or (kind == "text" and isinstance(part.get("text"), str))
    return kind if is_good else None


def _placed(texts: list[tuple[str, str]], blocks: list[str], newline: str, official: bool) -> list[str]:
    """The texts of all turns, the user's with the blocks of the images that have their place there."""
    marked = sum(text.count(IMAGE_PLACEHOLDER) for role, text in texts if role == "user")
    if fault := places_fault(marked, len(blocks)):
        raise ValueError(f"{fault}.")
    together = [("" if official else "\n").join(blocks)] if blocks else []
    waiting = iter(blocks if marked == len(blocks) else together)
    first_user = next((position for position, (role, _) in enumerate(texts) if role == "user"), None)
    placed = []
    for position, (role, text) in enumerate(texts):
        if role == "user":
            if blocks and not marked and position == first_user:
                text = IMAGE_PLACEHOLDER + newline + text
            pieces = text.split(IMAGE_PLACEHOLDER)
            own = [next(waiting) for _ in pieces[1:]]
            if official:  # in front of the turn that marks them
                text = "".join(own + pieces)
            else:
                text = pieces[0] + "".join(map("".join, zip(own, pieces[1:], strict=True)))
        placed.append(text)
    return placed
