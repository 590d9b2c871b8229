"""Whether rows fit a model: images of a size that it takes, and no more tokens than it has positions."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from datasets import Dataset

from ..errors import BadRow, DatasetError
from ..media.pictures import displayed_size, quiet_pillow
from ..models.processing import Sa2VAProcessor
from .columns import IMAGE_COLUMNS, PHRASE_COLUMNS, REGIONS, mask_mode
from .layout import Layout, row_layout
from .prompts import conversation
from .row_regions import read_region, region_cells
from .stored import iter_undecoded


if TYPE_CHECKING:
    from .collator import SegCollator


class Largest(NamedTuple):
    """
    The sizes of the longest row of a data set, and the most images and masks that any row has.

    Args:
        tokens (`int`): of the longest row.
        image_tokens (`int`): those of its images among them.
        images, masks (`int`): at most, of any row; a mask is one object on one image.
    """

    tokens: int
    image_tokens: int
    images: int
    masks: int


def image_tokens(processor: Sa2VAProcessor, sizes: list[tuple[int, int]]) -> list[int]:
    """
    Tokens of each image of a row, of `(width, height)` in pixels; several are the frames of a clip.

    Args:
        processor (`Sa2VAProcessor`): of the model.
        sizes (`list[tuple[int, int]]`): of the row's images.

    Returns:
        `list[int]`: one an image.

    Raises:
        `DatasetError`: With the reason alone: the VLM does not take an image of that size.
    """
    counts = []
    for width, height in sizes:
        try:
            counts.append(processor.num_image_tokens((width, height), clip=len(sizes) > 1))
        except ValueError as error:
            raise DatasetError(
                f"an image of {width} x {height} pixels (width x height) does not fit the model ({error}): crop or "
                "pad it"
            ) from error
    return counts


def too_long(length: int, max_length: int | None) -> str | None:
    """What is wrong with a row of so many tokens; else `None`."""
    if max_length is None or length <= max_length:
        return None
    return (
        f"needs {length:,} tokens, the model has {max_length:,} positions: give it fewer or smaller images, or less "
        "text"
    )


def check_fit(dataset: Dataset, collator: "SegCollator", name: str = "train_dataset") -> Largest | None:
    """
    Check that rows fit the model, all at once: images of a size that the VLM takes, regions of as many cells as it is
    trained with, and no more tokens than it has positions. No pixel is decoded but those of regions, and each text is
    tokenised once. Of rows with a `with_transform`, which may change both, nothing is known before the collator sees
    them.

    Args:
        dataset (`datasets.Dataset`): rows that have passed [`~data.checks.check_dataset`].
        collator (`SegCollator`): with the processor, the templates and `max_length`.
        name (`str`, *optional*, defaults to `"train_dataset"`): what the message calls the dataset.

    Returns:
        `Largest`, or `None` where nothing is known.

    Raises:
        `DatasetError`: With every row that does not fit.
    """
    if dataset.format["type"] == "custom":
        return None
    wanted = [*IMAGE_COLUMNS, *PHRASE_COLUMNS, "messages", "sample_id", REGIONS]
    dataset = dataset.select_columns([column for column in wanted if column in dataset.column_names])
    processor, lengths, bad, position = collator.processor, {}, [], 0
    longest, images, masks = (0, 0), 0, 0
    region_mode = mask_mode(dataset.features, REGIONS)

    def length(messages: list[dict], frames: int = 0, cells: tuple[int, ...] = ()) -> int:
        return len(processor.encode_chat(messages, [processor.image_block(1, cells)] * frames)[0])

    # Each turn is tokenised on its own, so the longest turns make the longest conversation.
    answer = _longest(collator.answers, lambda answer: length([{"role": "assistant", "content": answer}]))

    def question(phrase: str, frames: int) -> str:
        def of(template: str) -> int:
            return length(conversation([phrase], [template], [answer])[:1], frames)

        return _longest(collator.questions, of)

    def cells_of(layout: Layout, sizes: list[tuple[int, int]]) -> tuple[int, ...]:
        """Cells of each region; of those that augmentation moves, as many as there can be."""
        regions = [read_region(region, sizes[0], mode=region_mode) for region in layout.regions]
        cells = region_cells(processor, regions)
        return tuple(cells) if collator.augmentation is None else (processor.image_seq_length,) * len(cells)

    def text_length(layout: Layout, cells: tuple[int, ...]) -> int:
        """Of the longest that the templates can make, with one token an image, and those of its regions."""
        frames = len(layout.images)
        key = (frames, cells, json.dumps(layout.messages or layout.phrases))
        if key not in lengths:
            chat = layout.messages
            if chat is None:
                number = len(layout.phrases)
                # All images stand in the first turn.
                shown = [frames] + [0] * (number - 1)
                questions = [question(phrase, count) for phrase, count in zip(layout.phrases, shown, strict=True)]
                chat = conversation(layout.phrases, questions, [answer] * number)
            lengths[key] = length(chat, frames, cells)
        return lengths[key]

    with quiet_pillow():
        for rows in iter_undecoded(dataset):
            for row in rows:
                layout = row_layout(row)
                try:
                    sizes = [displayed_size(image) for image in layout.images]
                    counts = image_tokens(processor, sizes)
                    tokens = text_length(layout, cells_of(layout, sizes)) + sum(counts) - len(counts)
                    fault = too_long(tokens, collator.max_length)
                    longest = max(longest, (tokens, sum(counts)))
                    images, masks = max(images, len(layout.images)), max(masks, len(layout.masks))
                except ValueError as error:  # of an image, or of the processor
                    fault = str(error)
                if fault is not None:
                    bad.append(BadRow(position, row["sample_id"], None, fault))
                position += 1
    if bad:
        raise DatasetError(f"{name}: {len(bad)} of {len(dataset)} rows do not fit the model:", bad)
    return Largest(*longest, images, masks) if position else None


def _longest(templates: list[str] | tuple[str, ...], length: Callable[[str], int]) -> str:
    """(Of one alone, nothing is reckoned.)"""
    return templates[0] if len(templates) == 1 else max(templates, key=length)
