"""One row: whatever its style, brought into one form and judged; what every path reads rows through."""

from collections.abc import Callable
from typing import Any, NamedTuple

import PIL.Image
from datasets import Features

from ..errors import DatasetError
from ..media.pictures import MAX_PIXELS, file_of, picture_source, read_image, too_deep
from ..rewards import dice_reward
from ..tokens import IMAGE_PLACEHOLDER, SEG_TOKEN, reserved_tokens
from .columns import IMAGE_COLUMNS, PAIR_COLUMNS, REGIONS, mask_mode
from .masks import decode_mask
from .prompts import check_messages
from .row_regions import read_region


class Layout(NamedTuple):
    """
    A row's values in one form.

    Args:
        images (`list`): none (a text-only row), one, or the frames of a clip.
        masks (`list`): one an object; of a clip one an object and frame, object-major.
        phrases (`list` or `None`): one an object; `None` where the row has `messages`.
        messages (`list` or `None`): the conversation.
        problems (`list[str]`): what is wrong with the row.
        regions (`list`, *optional*): of its image, that the text speaks of: boxes and masks.
    """

    images: list
    masks: list
    phrases: list | None
    messages: list | None
    problems: list[str]
    regions: list = []


def row_layout(row: dict[str, Any]) -> Layout:
    """
    Sort a row's values into one form, and list every fault that shows without decoding.

    Args:
        row (`dict`): in one of the styles of [`~data.columns.ACCEPTED_COLUMNS`], decoded or not.

    Returns:
        [`Layout`], images and masks as they came.
    """
    # After `concatenate_datasets` the columns that a row does not use are there, and None.
    row = {name: value for name, value in row.items() if value is not None}
    problems = []

    lists = {}
    for name in ("images", "masks", "phrases", REGIONS):
        value = row.get(name, ())
        if isinstance(value, (str, bytes, dict, PIL.Image.Image)) or not hasattr(value, "__len__"):
            problems.append(f"`{name}` is a {type(value).__name__}, not a list")
            value = ()
        lists[name] = list(value)  # a stack of arrays, too
    if "image" in row and lists["images"]:
        problems.append("mixes `image` and `images`: keep one")
    images = [row["image"]] if "image" in row else lists["images"]

    single = {name for name in ("mask", "phrase") if name in row}
    several = {name for name in ("masks", "phrases") if lists[name]}
    if single and several:
        names = ", ".join(f"`{name}`" for name in sorted(single | several))
        problems.append(f"mixes the styles `mask`/`phrase` and `masks`/`phrases` ({names}): keep one")
    masks = [row["mask"]] if "mask" in row else lists["masks"]
    phrases = [row["phrase"]] if "phrase" in row else lists["phrases"]
    messages = None if isinstance(row.get("messages"), list) and not row["messages"] else row.get("messages")
    for name, values in (("image", images), ("mask", masks)):
        problems += [f"{name} {number} is missing (None)" for number, value in enumerate(values) if value is None]

    if messages is not None:
        if phrases:
            problems.append("mixes `messages` and `phrase`/`phrases`: keep one")
        count, faults = check_messages(messages, len(images))
        problems += faults
        objects, unit = count, f"{SEG_TOKEN} in the assistant turns"
    else:
        for number, phrase in enumerate(phrases):
            if not isinstance(phrase, str) or not phrase.strip():
                problems.append(f"phrase {number} is missing or empty")
            else:
                found = {token for token in (SEG_TOKEN, IMAGE_PLACEHOLDER) if token in phrase} | {
                    *reserved_tokens(phrase)
                }
                problems += [f"phrase {number} holds the reserved token {token}" for token in sorted(found)]
        if not phrases:
            problems.append("has neither a phrase nor messages")
        objects, unit = len(phrases), "phrases"

    regions = lists[REGIONS]
    problems += [f"region{number} is missing (None)" for number, own in enumerate(regions, start=1) if own is None]
    if len(images) > 1 and regions:
        problems.append(f"has regions and {len(images)} images: regions are of a single one")
    if not images and (masks or regions or messages is None):
        problems.append("has no image")
    expected = objects * max(len(images), 1)
    if len(masks) != expected and (phrases or messages is not None):
        relation = "more masks than" if len(masks) > expected else "fewer masks than"
        frames_note = f" x {len(images)} frames = {expected}" if len(images) > 1 else ""
        problems.append(f"{relation} {unit}: {len(masks)} masks, {objects} {unit}{frames_note}")
    return Layout(images, masks, None if messages is not None else phrases, messages, problems, regions)


def normalize_row(row: dict[str, Any]) -> dict[str, Any]:
    """
    Check a row and bring it into one form: what every path reads rows through, so that none gets by unchecked.

    Args:
        row (`dict`):
            A row in one of the styles of `ACCEPTED_COLUMNS`. Images and masks are PIL images, undecoded
            `datasets.Image` values (`{"bytes", "path"}`), paths, or arrays (nested lists, tensors) of shape `(H, W)`
            or `(H, W, 3)`, bool or whole numbers in [0, 255]. Columns that are None count as absent.

    Returns:
        `dict` with
            - `images` (list of `PIL.Image.Image`): none (a text-only row), one, or the frames of a clip, in their own
              modes.
            - `masks` (list of `PIL.Image.Image`): mode `L`, values 0 and 255, one an object; for a clip one an object
              and frame, object-major (`masks[object * frames + frame]`).
            - `phrases` (list of `str`, or `None`): one an object; None where the row has `messages`.
            - `messages` (list of `dict`, or `None`): as stored; its [SEG]s pair with the masks in order.
            - `regions` (list of `PIL.Image.Image`): mode `L`, values 0 and 255, drawn boxes among them.
            - `sample_id` (`str` or `None`).

    Raises:
        `DatasetError`: With the `sample_id` and everything that [`~data.checks.check_dataset`] refuses in one row.
    """
    layout = read_pictures(row_layout(row))
    if layout.problems:
        raise DatasetError(bad_row(row, layout.problems))
    return {
        "images": layout.images,
        "masks": layout.masks,
        "phrases": layout.phrases,
        "messages": layout.messages,
        REGIONS: layout.regions,
        "sample_id": row.get("sample_id"),
    }


def bad_row(row: dict[str, Any], problems: list[str]) -> str:
    """The message about one row that cannot be used."""
    return f"row with sample_id {row.get('sample_id')!r} cannot be used: {'; '.join(problems)}"


def read_masks(row: dict[str, Any]) -> list[PIL.Image.Image]:
    """
    The masks of a row whose images need not be there.

    Args:
        row (`dict`): as in [`normalize_row`].

    Returns:
        `list[PIL.Image.Image]`: as from [`normalize_row`].

    Raises:
        `DatasetError`: With the `sample_id`, if a mask is unreadable, not binary, or of another size than the others.
    """
    layout = read_pictures(row_layout({name: value for name, value in row.items() if name not in IMAGE_COLUMNS}))
    problems = [problem for problem in layout.problems if problem.startswith("mask ")]
    if len({mask.size for mask in layout.masks}) > 1:
        problems.append("masks differ in size")
    if problems:
        raise DatasetError(bad_row(row, problems))
    return layout.masks


def read_pair(
    row: dict[str, Any], size: tuple[int, int] | None, features: Features | None = None
) -> list[PIL.Image.Image]:
    """
    The preferred and the rejected mask of a row.

    Args:
        row (`dict`): with `PAIR_COLUMNS`, decoded or not.
        size (`tuple[int, int]` or `None`): (width, height) of the row's image, where it is known.
        features (`datasets.Features`, *optional*): of the dataset that an undecoded row is of.

    Returns:
        `list[PIL.Image.Image]`: two of mode `L`, values 0 and 255; or none, where the row has neither.

    Raises:
        `DatasetError`: With the reason alone: one is missing, unreadable, not binary, of another size than the image,
            or both are equal.
    """
    given = [name for name in PAIR_COLUMNS if row.get(name) is not None]
    if not given:
        return []
    pair = []
    for name in PAIR_COLUMNS:
        if name not in given:
            raise DatasetError(f"{name} is missing (None)")
        try:
            pair.append(decode_mask(picture_source(row[name]), size, mode=mask_mode(features, name)))
        except DatasetError as error:
            raise DatasetError(f"{name} {error}") from error
    if pair[0].size != pair[1].size:
        raise DatasetError("chosen_mask and rejected_mask differ in size")
    if pair[0].tobytes() == pair[1].tobytes():
        raise DatasetError("chosen_mask and rejected_mask are equal")
    return pair


def worse_pair(row: dict[str, Any], pair: list[PIL.Image.Image], mask: Any) -> str | None:
    """
    How a pair is the wrong way round: by the row's `chosen_reward` and `rejected_reward` where it has them, and
    otherwise by the Dice coefficients with the row's own mask.

    Args:
        row (`dict`): decoded or not.
        pair (`list[PIL.Image.Image]`): its preferred and its rejected mask, from [`read_pair`].
        mask: its own mask, in any form that a row may hold.

    Returns:
        `str` with both values, or `None` where the pair is the right way round.
    """
    rewards = [row.get("chosen_reward"), row.get("rejected_reward")]
    if None in rewards:
        rewards = dice_reward(pred_masks=pair, mask=[decode_mask(picture_source(mask))] * 2)
    return f"chosen {rewards[0]:.4f}, rejected {rewards[1]:.4f}" if rewards[0] < rewards[1] else None


def read_pictures(
    layout: Layout,
    mode: str | None = None,
    max_pixels: int = MAX_PIXELS,
    keep: bool = True,
    seen: Callable[[Any, PIL.Image.Image], object] = lambda image, decoded: None,
    region_mode: str | None = None,
) -> Layout:
    """
    Read a row's images, masks and regions.

    Args:
        layout (`Layout`): of the row, decoded or not.
        mode (`str`, *optional*): of the feature that an undecoded row's masks are of, see [`row_mask_mode`].
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.
        keep (`bool`, *optional*, defaults to `True`):
            Otherwise they are only looked at, one after the other: all frames of a clip at once need memory.
        seen (`Callable`, *optional*): called with each image that is good, as it came and decoded.
        region_mode (`str`, *optional*): as `mode`, of its regions.

    Returns:
        `Layout` with decoded images and masks, regions as masks, and every fault of theirs behind those that it had.
    """
    problems, images, masks, sizes = list(layout.problems), [], [], []
    for number, image in enumerate(layout.images):
        if image is None:
            continue
        try:
            decoded = read_image(image, max_pixels)
            sizes.append(decoded.size)
            if fault := too_deep(decoded):
                problems.append(f"image {number} {fault}")
            else:
                seen(image, decoded)
            if keep:
                images.append(decoded)
        except DatasetError as error:
            name = f"image {number}" if len(layout.images) > 1 else "image"
            where = f" {file_of(image)}" if number and file_of(image) else ""  # the first is named with the row
            problems.append(f"{name}{where} {error}")
    if len(set(sizes)) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sorted(set(sizes)))
        problems.append(f"frames of a clip differ in size: {found}")
    size = sizes[0] if len(set(sizes)) == 1 else None
    for number, mask in enumerate(layout.masks):
        if mask is None:
            continue
        try:
            decoded = decode_mask(picture_source(mask), size, max_pixels, mode)
            if keep:
                masks.append(decoded)
        except DatasetError as error:
            where = f" ({file_of(mask)})" if file_of(mask) else ""
            problems.append(f"mask {number}{where} {error}")
    regions = []
    for number, region in enumerate(layout.regions, start=1):
        if region is None or size is None or len(sizes) > 1:
            continue
        try:
            decoded = read_region(region, size, max_pixels, region_mode)
            if keep:
                regions.append(decoded)
        except DatasetError as error:
            where = f" ({file_of(region)})" if file_of(region) else ""
            problems.append(f"region{number}{where} {error}")
    return layout._replace(images=images, masks=masks, problems=problems, regions=regions)


def row_mask_mode(row: dict[str, Any], features: Features | None) -> str | None:
    """As [`~data.columns.mask_mode`], of the column that a row's masks stand in."""
    return mask_mode(features, "masks" if row.get("mask") is None else "mask")
