"""Tokens that mean something to the whole package."""

import re


SEG_TOKEN = "[SEG]"
IMAGE_PLACEHOLDER = "<image>"
# What begins an image, stands for its features and ends it.
INTERNVL_IMAGE = ("<img>", "<IMG_CONTEXT>", "</img>")
QWEN_IMAGE = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
# What the processor writes itself. In a text it would stand for an image that is not there, or end the turn.
# (Or, of `<vp>`, for a region.)
RESERVED = re.compile(r"</?img>|</?vp>|<IMG_CONTEXT>|<\|\w+\|>")


def reserved_tokens(text: str) -> list[str]:
    """
    Args:
        text (`str`): what a user or a data set says: a request, an answer, a phrase.

    Returns:
        `list[str]`: the reserved tokens in it, each once, sorted.
    """
    return sorted(set(RESERVED.findall(text)))


def places_fault(marked: int, images: int) -> str | None:
    """
    What is wrong with the places that a conversation marks for its images; else `None`.

    Args:
        marked (`int`): how often `<image>` stands in the user's turns, image parts included.
        images (`int`): how many images there are.
    """
    if marked == 0 or images and marked in (1, images):
        return None
    return (
        f"{IMAGE_PLACEHOLDER} (or an image part) stands {marked} times in the user's turns, for {images} images: it "
        "may stand once for all of them, once for each, or nowhere (they come first then)"
    )
