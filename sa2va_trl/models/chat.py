"""Conversations as token ids and labels."""

from collections.abc import Callable

from ..tokens import IMAGE_PLACEHOLDER, reserved_tokens


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
    # What stands between two images, and between the last one and a text that does not say where it is.
    newline = "" if official else "\n"
    block = newline.join(image_blocks)
    first_user = True
    if official and (not messages or messages[0]["role"] != "system"):
        add(opening)
    for position, message in enumerate(messages):
        role, content = message["role"], _text_of(message, newline)
        if role == "assistant":
            add(content + template["answer_end"], learned=True)
            if position + 1 < len(messages):
                add(template["separator"])
            continue
        if role == "user":
            content = _with_images(content, block if first_user else "", official)
            first_user = False
        add(template[role].format_map({"content": content}))
    return input_ids, labels


def _text_of(message: dict, newline: str) -> str:
    """The text of a message, with `<image>` where its first image part is."""
    content = message["content"]
    if message["role"] not in ("system", "user", "assistant"):
        raise ValueError(f"A message's role must be system, user or assistant, got {message['role']!r}.")
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(f"A message's content must be text, got {content!r}.")
    if not isinstance(content, str):
        # All images of a conversation stand together, so their first part places them all.
        first = next((index for index, part in enumerate(content) if part["type"] == "image"), None)
        content = "".join(
            (IMAGE_PLACEHOLDER + newline if index == first else "") if part["type"] == "image" else part["text"]
            for index, part in enumerate(content)
        )
    if found := reserved_tokens(content):
        raise ValueError(
            f"A text of the {message['role']} holds {', '.join(found)}, which only the processor may write: "
            f"leave it out of {content!r}."
        )
    return content


def _with_images(content: str, block: str, official: bool) -> str:
    """A user's text with the block of all images in its place, if there is one."""
    if content.count(IMAGE_PLACEHOLDER) > (1 if block else 0):
        raise ValueError(
            f"{IMAGE_PLACEHOLDER} may stand once, in the first user turn of a conversation with an image; "
            f"got {content!r}."
        )
    if not block:
        return content
    if official:
        return block + content.replace(IMAGE_PLACEHOLDER, "")
    if IMAGE_PLACEHOLDER not in content:
        content = f"{IMAGE_PLACEHOLDER}\n{content}"
    return content.replace(IMAGE_PLACEHOLDER, block)
