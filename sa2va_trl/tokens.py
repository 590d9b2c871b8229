"""Tokens that mean something to the whole package."""

import re


SEG_TOKEN = "[SEG]"
IMAGE_PLACEHOLDER = "<image>"
# What the processor writes itself. In a text it would stand for an image that is not there, or end the turn.
RESERVED = re.compile(r"</?img>|<IMG_CONTEXT>|<\|\w+\|>")


def reserved_tokens(text: str) -> list[str]:
    """
    Args:
        text (`str`): what a user or a data set says: a request, an answer, a phrase.

    Returns:
        `list[str]`: the reserved tokens in it, each once, sorted.
    """
    return sorted(set(RESERVED.findall(text)))
