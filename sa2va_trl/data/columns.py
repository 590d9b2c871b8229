"""The columns of a dataset, and the checks that run on every row before training starts."""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import PIL.Image
import PIL.ImageOps
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.features import LargeList

from ..tokens import IMAGE_PLACEHOLDER as _IMAGE
from ..tokens import SEG_TOKEN, reserved_tokens


logger = logging.getLogger(__name__)

DEFAULT_PHRASE = "blood vessel"
MAX_PIXELS = 100_000_000
IMAGE_COLUMNS = ("image", "images")
PHRASE_COLUMNS = ("phrase", "phrases")
#: Columns that say which rows belong together, from the widest group to the single row.
GROUP_COLUMNS = ("patient_id", "video_id", "sample_id")
#: A preferred and a rejected mask of a row's one object.
PAIR_COLUMNS = ("chosen_mask", "rejected_mask")
# What tables of scores say a row is.
IDENTIFIERS = ("sample_id", "patient_id", "video_id", "frame_index")
#: What every reader of `sa2va_trl.data.readers` returns.
FEATURES = Features(
    {
        "image": Image(),
        "masks": List(Image(mode="L")),
        "phrases": List(Value("string")),
        "sample_id": Value("string"),
    }
)
ACCEPTED_COLUMNS = (
    "`sample_id` with one of: (a) `image` (or `images`, a clip), `mask` and `phrase`; (b) `image` (or `images`), "
    f"`masks` and `phrases`; (c) `messages`, alone or with `image`/`images` and one mask for every {SEG_TOKEN}"
)
_LISTED = 50


class BadRow(NamedTuple):
    """
    One row that cannot be used.

    Args:
        row (`int`):
            Position in the dataset (or in the list of the annotation file).
        sample_id (`str` or `None`):
            Its `sample_id`, where it has one.
        file (`str` or `None`):
            The file to look at, where it is known.
        reason (`str`):
            What is wrong with it.
    """

    row: int | None
    sample_id: str | None
    file: str | None
    reason: str

    def __str__(self) -> str:
        where = [] if self.row is None else [f"row {self.row}"]
        if self.sample_id is not None:
            where.append(f"sample_id {self.sample_id!r}")
        if self.file is not None:
            where.append(self.file)
        return f"{', '.join(where)}: {self.reason}"


class DatasetError(ValueError):
    """
    A dataset, or a folder to be read as one, that cannot be trained on.

    Args:
        message (`str`):
            What is wrong and what to do.
        problems (list of `BadRow`, *optional*):
            Every bad row. The message lists the first 50 and counts the rest.
    """

    def __init__(self, message: str, problems: list[BadRow] | None = None):
        self.problems = list(problems or [])
        lines = [message] + [f"  {problem}" for problem in self.problems[:_LISTED]]
        if len(self.problems) > _LISTED:
            lines.append(f"  ... and {len(self.problems) - _LISTED} more")
        super().__init__("\n".join(lines))


def resolve_inside(root: str | os.PathLike, relative: str | os.PathLike) -> Path:
    """
    Resolve a path that a dataset names, and refuse it where it leaves the dataset's folder.

    Args:
        root (`str` or `os.PathLike`):
            The folder. It may itself be a symbolic link.
        relative (`str` or `os.PathLike`):
            Path below `root`, as written in the annotation file.

    Returns:
        `Path`: The absolute path, symbolic links followed. It need not exist.

    Raises:
        `DatasetError`: If the path is absolute, or leaves `root` through `..` or through a symbolic link.
    """
    root = Path(root).resolve()
    # A backslash is a separator on Windows only: refuse there what is refused here.
    if Path(relative).is_absolute() or str(relative).startswith(("/", "\\")):
        raise DatasetError(f"path {str(relative)!r} is absolute; it must be relative to {root}")
    try:
        path = (root / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character
        raise DatasetError(f"path {str(relative)!r} cannot be resolved ({error})") from error
    if not path.is_relative_to(root):
        raise DatasetError(f"path {str(relative)!r} leaves the dataset folder {root}")
    return path


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """
    Switch Pillow's own size limit and warnings off, so that `open_image` is the only one to refuse a large image.

    Pillow's limit warns at one size, raises at another, and names neither the file nor both sides. Limit and warning
    filters are global variables: enter this once, outside any threads.
    """
    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")  # e.g. "Corrupt EXIF data": the pixels are what counts
            yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def open_image(source: Any, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """
    Open an image far enough to know its size: the header is read, no pixel is decoded. Use inside `quiet_pillow`.

    Args:
        source (`PIL.Image.Image`, `dict` or path):
            A decoded image, an undecoded `datasets.Image` value (`{"bytes", "path"}`), or the path of a file.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height accepted.

    Raises:
        `DatasetError`: With the reason alone; the caller knows the row.
    """
    if isinstance(source, PIL.Image.Image):
        image = source
    else:
        path, data = (source["path"], source["bytes"]) if isinstance(source, dict) else (str(source), None)
        if data is None and path is None:
            raise DatasetError("holds neither bytes nor a path")
        try:
            if data is not None:
                image = PIL.Image.open(io.BytesIO(data))
            elif "://" in path:  # a remote file, or a member of an archive
                with fsspec.open(path, "rb") as file:
                    image = PIL.Image.open(io.BytesIO(file.read()))
            else:
                image = PIL.Image.open(path)
        except FileNotFoundError as error:
            raise DatasetError("file is missing") from error
        except PIL.UnidentifiedImageError as error:  # its own text is the address of a buffer
            raise DatasetError("is unreadable: not an image format that Pillow knows") from error
        except Exception as error:  # a broken header raises nearly anything: struct.error, SyntaxError, ValueError ...
            raise DatasetError(f"is unreadable ({type(error).__name__}: {error})") from error
    width, height = image.size
    if width * height > max_pixels:
        if image is not source:
            image.close()
        raise DatasetError(f"is too large: {width} x {height} pixels, the limit is {max_pixels:,}; scale it down")
    return image


def too_deep(image: PIL.Image.Image) -> str | None:
    """What is wrong with an image of more than 8 bits a channel, which a conversion to RGB would clip; else `None`."""
    if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        return None
    return f"has more than 8 bits a channel (mode {image.mode}), which would be clipped: window it to 8 bits first"


def decode_image(source: Any, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """
    Decode an image in full, turned upright as `datasets.Image` turns it. Arguments and errors as in `open_image`.
    """
    image = open_image(source, max_pixels)
    try:
        image.load()
        return PIL.ImageOps.exif_transpose(image)
    except Exception as error:
        raise DatasetError(f"is unreadable or truncated ({type(error).__name__}: {error})") from error


def mask_values(mask: PIL.Image.Image) -> list[int]:
    """The grey values that occur in a mask, after conversion to mode `L`, in rising order."""
    return [value for value, count in enumerate(mask.convert("L").histogram()) if count]


def _not_binary(values: list[int]) -> str | None:
    if set(values) <= {0, 1} or set(values) <= {0, 255}:
        return None
    shown = ", ".join(map(str, values[:8])) + (f", ... ({len(values)} values)" if len(values) > 8 else "")
    return f"is not binary: values {shown}; expected 0 and 255 (or 0 and 1)"


def _binary_mask(mask: PIL.Image.Image) -> PIL.Image.Image:
    """A mask as mode `L` with 0 and 255, whichever of the two legal scales it came in."""
    mask = mask.convert("L")
    return mask.point(lambda value: 255 if value else 0) if mask.getextrema()[1] == 1 else mask


def decode_mask(source: Any, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """
    Decode a mask and check it.

    Args:
        source (`PIL.Image.Image`, `dict` or path):
            As in `open_image`.
        size (`tuple[int, int]`, *optional*):
            (width, height) of the image that the mask belongs to.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height accepted.

    Returns:
        `PIL.Image.Image`: Mode `L`, values 0 and 255.

    Raises:
        `DatasetError`: If it is unreadable, of another size than the image, or holds other values than {0, 255} or
            {0, 1}. All reasons that apply are in the one message.
    """
    mask = decode_image(source, max_pixels)
    reasons = []
    if size is not None and mask.size != size:
        reasons.append(f"is {mask.width} x {mask.height}, its image {size[0]} x {size[1]} (width x height)")
    if reason := _not_binary(mask_values(mask)):
        reasons.append(reason)
    if reasons:
        raise DatasetError(" and ".join(reasons))
    return _binary_mask(mask)


# ---------------------------------------------------------------------------------------------------------------------
# One row
# ---------------------------------------------------------------------------------------------------------------------


def _message_text(content: Any) -> str | None:
    """The text of a message's content (a string, or a list of typed parts), None where it has another form."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        return None
    texts = [part.get("text") for part in content if part["type"] == "text"]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def _check_messages(messages: Any, has_images: bool) -> tuple[int, list[str]]:
    """Count the [SEG] of the assistant turns; list what is wrong with the conversation."""
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
    ):
        return 0, ["messages is malformed: expected a list of {'role', 'content'}"]
    problems, count, previous, first_user = [], 0, None, True
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
            allowed = 1 if role == "user" and first_user and has_images else 0
            if text.count(_IMAGE) > allowed:
                problems.append(
                    f"messages is malformed: {_IMAGE} in message {number} ({role}); it may stand once, in the first "
                    "user turn of a row with an image"
                )
            for token in reserved_tokens(text):
                problems.append(f"messages is malformed: message {number} holds the reserved token {token}")
        first_user = first_user and role != "user"
        if text is None:
            problems.append(f"messages is malformed: content of message {number} is neither a string nor typed parts")
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
    if previous != "assistant":
        problems.append("messages is malformed: it does not end with an assistant turn")
    return count, problems


class _Layout(NamedTuple):
    images: list
    masks: list
    phrases: list | None
    messages: list | None
    problems: list[str]


def _layout(row: dict[str, Any]) -> _Layout:
    """Sort a row's values, decoded or not, into one form, and list every fault that shows without decoding."""
    # After `concatenate_datasets` the columns that a row does not use are there, and None.
    row = {name: value for name, value in row.items() if value is not None}
    problems = []

    frames = row.get("images") or []
    if "image" in row and frames:
        problems.append("mixes `image` and `images`: keep one")
    images = [row["image"]] if "image" in row else list(frames)

    single = {name for name in ("mask", "phrase") if name in row}
    several = {name for name in ("masks", "phrases") if row.get(name)}
    if single and several:
        names = ", ".join(f"`{name}`" for name in sorted(single | several))
        problems.append(f"mixes the styles `mask`/`phrase` and `masks`/`phrases` ({names}): keep one")
    masks = [row["mask"]] if "mask" in row else list(row.get("masks") or [])
    phrases = [row["phrase"]] if "phrase" in row else list(row.get("phrases") or [])
    messages = row.get("messages") or None
    for name, values in (("image", images), ("mask", masks)):
        problems += [f"{name} {number} is missing (None)" for number, value in enumerate(values) if value is None]

    if messages is not None:
        if phrases:
            problems.append("mixes `messages` and `phrase`/`phrases`: keep one")
        count, faults = _check_messages(messages, bool(images))
        problems += faults
        objects, unit = count, f"{SEG_TOKEN} in the assistant turns"
    else:
        for number, phrase in enumerate(phrases):
            if not isinstance(phrase, str) or not phrase.strip():
                problems.append(f"phrase {number} is missing or empty")
            else:
                found = {token for token in (SEG_TOKEN, _IMAGE) if token in phrase} | {*reserved_tokens(phrase)}
                problems += [f"phrase {number} holds the reserved token {token}" for token in sorted(found)]
        if not phrases:
            problems.append("has neither a phrase nor messages")
        objects, unit = len(phrases), "phrases"

    if not images and (masks or messages is None):
        problems.append("has no image")
    expected = objects * max(len(images), 1)
    if len(masks) != expected and (phrases or messages is not None):
        relation = "more masks than" if len(masks) > expected else "fewer masks than"
        frames_note = f" x {len(images)} frames = {expected}" if len(images) > 1 else ""
        problems.append(f"{relation} {unit}: {len(masks)} masks, {objects} {unit}{frames_note}")
    return _Layout(images, masks, None if messages is not None else phrases, messages, problems)


def normalize_row(row: dict[str, Any]) -> dict[str, Any]:
    """
    Bring any legal row into one form.

    Args:
        row (`dict`):
            A decoded row (PIL images) in one of the styles of `ACCEPTED_COLUMNS`. Columns that are None count as
            absent.

    Returns:
        `dict` with
            - `images` (list of `PIL.Image.Image`): none (a text-only row), one, or the frames of a clip, in their own
              modes.
            - `masks` (list of `PIL.Image.Image`): mode `L`, values 0 and 255, one an object; for a clip one an object
              and frame, object-major (`masks[object * frames + frame]`).
            - `phrases` (list of `str`, or `None`): one an object; None where the row has `messages`.
            - `messages` (list of `dict`, or `None`): as stored; its [SEG]s pair with the masks in order.
            - `sample_id` (`str` or `None`).

    Raises:
        `DatasetError`: If the row's values do not fit together. Pixel values and sizes are `check_dataset`'s business.
    """
    layout = _layout(row)
    if layout.problems:
        raise DatasetError(f"row with sample_id {row.get('sample_id')!r} cannot be used: {'; '.join(layout.problems)}")
    return {
        "images": layout.images,
        "masks": [_binary_mask(mask) for mask in layout.masks],
        "phrases": layout.phrases,
        "messages": layout.messages,
        "sample_id": row.get("sample_id"),
    }


def _file_of(value: Any) -> str | None:
    return value.get("path") if isinstance(value, dict) else None


def _check_row(row: dict[str, Any], max_pixels: int) -> list[str]:
    """Every fault of one undecoded row."""
    layout = _layout(row)
    problems = list(layout.problems)
    sizes = []
    for number, image in enumerate(layout.images):
        if image is None:
            continue
        try:
            decoded = decode_image(image, max_pixels)
            sizes.append(decoded.size)
            if fault := too_deep(decoded):
                problems.append(f"image {number} {fault}")
        except DatasetError as error:
            name = f"image {number}" if len(layout.images) > 1 else "image"
            where = f" {_file_of(image)}" if number and _file_of(image) else ""  # the first is named with the row
            problems.append(f"{name}{where} {error}")
    if len(set(sizes)) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sorted(set(sizes)))
        problems.append(f"frames of a clip differ in size: {found}")
    size = sizes[0] if len(set(sizes)) == 1 else None
    for number, mask in enumerate(layout.masks):
        if mask is None:
            continue
        try:
            decode_mask(mask, size, max_pixels)
        except DatasetError as error:
            where = f" ({_file_of(mask)})" if _file_of(mask) else ""
            problems.append(f"mask {number}{where} {error}")
    return problems


# ---------------------------------------------------------------------------------------------------------------------
# A dataset
# ---------------------------------------------------------------------------------------------------------------------


def is_image_list(feature: Any) -> bool:
    """Whether a feature is a list of images."""
    return isinstance(feature, List | LargeList) and isinstance(feature.feature, Image)


def _check_features(features: Features, name: str) -> None:
    names = set(features)
    missing = [] if "sample_id" in names else ["`sample_id`"]
    if "messages" not in names and not ({"mask", "phrase"} <= names or {"masks", "phrases"} <= names):
        partners = {"mask": "phrase", "phrase": "mask", "masks": "phrases", "phrases": "masks"}
        halves = [f"`{partner}` (goes with `{half}`)" for half, partner in partners.items() if half in names]
        missing += halves or ["`masks` and `phrases` (or `mask` and `phrase`, or `messages`)"]
    if "messages" not in names and not names & set(IMAGE_COLUMNS):
        missing.append("`image` (or `images`)")
    if missing:
        raise DatasetError(
            f"{name} has no usable columns: missing {', '.join(missing)}. It has: {', '.join(features) or 'none'}. "
            f"Accepted: {ACCEPTED_COLUMNS}."
        )
    for column in ("image", "mask"):
        if column in features and not isinstance(features[column], Image):
            raise DatasetError(
                f"{name}: column `{column}` is {features[column]}, not an image; "
                f'cast it: dataset.cast_column("{column}", datasets.Image())'
            )
    for column in ("images", "masks"):
        if column in features and not is_image_list(features[column]):
            raise DatasetError(
                f"{name}: column `{column}` is {features[column]}, not a list of images; "
                f'cast it: dataset.cast_column("{column}", datasets.List(datasets.Image()))'
            )


def iter_undecoded(dataset: Dataset, batch_size: int = 64) -> Iterator[list[dict[str, Any]]]:
    """
    Iterate over the rows in batches, with images as `{"bytes", "path"}` and without any format or transform of the
    dataset.

    `cast_column(..., List(Image(decode=False)))` would say the same, but writes a copy of the whole dataset to do so.
    """
    features = dataset.features.copy()
    for column, feature in dataset.features.items():
        if isinstance(feature, Image):
            features[column] = Image(decode=False)
        elif is_image_list(feature):
            features[column] = List(Image(decode=False))
    for table in dataset.with_format("arrow").iter(batch_size):
        yield [features.decode_example(row) for row in table.to_pylist()]


def check_dataset(
    dataset: Dataset | IterableDataset,
    name: str = "train_dataset",
    max_pixels: int = MAX_PIXELS,
    num_proc: int | None = None,
) -> None:
    """
    Check every row of a dataset before training starts, and report all bad rows at once.

    Each image is refused from its header where it is too large, and otherwise decoded in full, once: a truncated file
    shows nowhere else. The rows are checked as stored, not as a `with_transform` makes them. An `IterableDataset` is
    not checked, since that would consume it: its first bad row fails when training reaches it.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows in the styles of `ACCEPTED_COLUMNS`; styles may differ from row to row.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            What the messages call it.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height of an image or mask.
        num_proc (`int`, *optional*):
            Number of workers that decode. They are threads, as Pillow decodes outside the interpreter lock; 1 when
            None.

    Raises:
        `DatasetError`: If the dataset is empty, lacks columns, or has rows that cannot be trained on: a missing,
            truncated or too large image; a mask of another size than its image, or with other values than {0, 255} or
            {0, 1}; a number of masks other than that of the phrases or of the [SEG]s (times the frames); an empty
            phrase; malformed `messages`; a `sample_id` that is empty or used twice. An all-zero mask is legal.
            `problems` holds every bad row.
        `TypeError`: If it is no `datasets.Dataset`.
    """
    if isinstance(dataset, IterableDataset):
        logger.warning("%s is an IterableDataset: its rows are not checked before training.", name)
        return
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"{name} must be a datasets.Dataset, not {type(dataset).__name__}; of a DatasetDict pass one split"
        )
    if len(dataset) == 0:
        raise DatasetError(f"{name} is empty: it has no rows")
    _check_features(dataset.features, name)

    first_row: dict[str, int] = {}
    bad, start = [], 0

    def check(row: dict[str, Any]) -> list[str]:
        return _check_row(row, max_pixels)

    with quiet_pillow(), ThreadPoolExecutor(num_proc or 1) as pool:
        for rows in iter_undecoded(dataset):
            for number, (row, reasons) in enumerate(zip(rows, pool.map(check, rows), strict=True), start):
                sample_id = row["sample_id"]
                if sample_id is None or not str(sample_id).strip():
                    reasons.append("sample_id is missing or empty")
                elif first_row.setdefault(sample_id, number) != number:
                    reasons.append(f"duplicate sample_id, first used in row {first_row[sample_id]}")
                if reasons:
                    images = [row.get("image"), *(row.get("images") or [])]
                    file = next(filter(None, map(_file_of, images)), None)
                    bad.append(BadRow(number, sample_id, file, "; ".join(reasons)))
            start += len(rows)
    if bad:
        raise DatasetError(f"{name}: {len(bad)} of {len(dataset)} rows cannot be used:", bad)
