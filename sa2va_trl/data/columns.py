"""The columns of a dataset, and the checks that run on every row before training starts."""

import copy
import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.features import LargeList

from ..errors import BadRow, DatasetError
from ..media.masks import (
    binary_mask,
    mask_values,  # noqa: F401  (defined here once)
)
from ..media.pictures import (  # noqa: F401  (defined here once)
    MAX_PIXELS,
    _file_of,
    _source,
    decode_image,
    loses_depth,
    open_image,
    quiet_pillow,
    read_image,
    too_deep,
)
from ..rewards import dice_reward
from ..tokens import IMAGE_PLACEHOLDER as _IMAGE
from ..tokens import SEG_TOKEN, reserved_tokens
from .masks import _LOST, _read_otherwise, decode_mask


logger = logging.getLogger(__name__)
DEFAULT_PHRASE = "blood vessel"
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
        by_link = (
            "" if ".." in Path(relative).parts else f": it is a link to {path}; copy the file, or link its folder"
        )
        raise DatasetError(f"path {str(relative)!r} leaves the dataset folder {root}{by_link}")
    return path


def _message_text(content: Any) -> str | None:
    """
    The text of a message's content (a string, or a list of typed parts), None where it has another form. Images among
    the parts show as one placeholder, which is what the processor makes of them.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        return None
    if not all(part["type"] in ("text", "image") for part in content):
        return None
    texts = [part.get("text") for part in content if part["type"] == "text"]
    if not all(isinstance(text, str) for text in texts):
        return None
    return "".join([_IMAGE] * (len(texts) < len(content)) + texts)


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
                    f"messages is malformed: {_IMAGE} (or an image part) in message {number} ({role}); it may stand "
                    "once, in the first user turn of a row with an image"
                )
            for token in reserved_tokens(text):
                problems.append(f"messages is malformed: message {number} holds the reserved token {token}")
        first_user = first_user and role != "user"
        if text is None:
            problems.append(
                f"messages is malformed: content of message {number} is neither a string nor typed parts (text with "
                "its `text`, or image)"
            )
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

    lists = {}
    for name in ("images", "masks", "phrases"):
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
            - `sample_id` (`str` or `None`).

    Raises:
        `DatasetError`: With the `sample_id` and everything that [`check_dataset`] refuses in one row.
    """
    layout = _read_row(row)
    if layout.problems:
        raise DatasetError(bad_row(row, layout.problems))
    return {
        "images": layout.images,
        "masks": layout.masks,
        "phrases": layout.phrases,
        "messages": layout.messages,
        "sample_id": row.get("sample_id"),
    }


def bad_row(row: dict[str, Any], problems: list[str]) -> str:
    """The message about one row that cannot be used."""
    return f"row with sample_id {row.get('sample_id')!r} cannot be used: {'; '.join(problems)}"


def read_masks(row: dict[str, Any]) -> list[PIL.Image.Image]:
    """
    The masks of a row whose images need not be there, as [`normalize_row`] gives them.

    Raises:
        `DatasetError`: With the `sample_id`, if a mask is unreadable, not binary, or of another size than the others.
    """
    layout = _read_row({name: value for name, value in row.items() if name not in IMAGE_COLUMNS})
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
        Two `PIL.Image.Image` of mode `L`, values 0 and 255; or nothing, where the row has neither.

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
            pair.append(decode_mask(_source(row[name]), size, mode=mask_mode(features, name)))
        except DatasetError as error:
            raise DatasetError(f"{name} {error}") from error
    if pair[0].size != pair[1].size:
        raise DatasetError("chosen_mask and rejected_mask differ in size")
    if pair[0].tobytes() == pair[1].tobytes():
        raise DatasetError("chosen_mask and rejected_mask are equal")
    return pair


def worse_pair(row: dict[str, Any], pair: list[PIL.Image.Image], mask: Any) -> str | None:
    """
    How a pair is the wrong way round, or `None`: by the row's `chosen_reward` and `rejected_reward` where it has them,
    and otherwise by the Dice coefficients with the row's own mask.
    """
    rewards = [row.get("chosen_reward"), row.get("rejected_reward")]
    if None in rewards:
        rewards = dice_reward(pred_masks=pair, mask=[decode_mask(_source(mask))] * 2)
    return f"chosen {rewards[0]:.4f}, rejected {rewards[1]:.4f}" if rewards[0] < rewards[1] else None


def mask_mode(features: Features | None, column: str) -> str | None:
    """The mode that a column of masks (or one mask) is converted to when a row is read, where its feature has one."""
    feature = None if features is None else features.get(column)
    return getattr(feature.feature if is_image_list(feature) else feature, "mode", None)


def _read_row(
    row: dict[str, Any], max_pixels: int = MAX_PIXELS, keep: bool = True, features: Features | None = None
) -> _Layout:
    """
    A row, decoded or not, with its images and masks read, and every fault it has. Without `keep` they are only looked
    at, one after the other: all frames of a clip at once need memory. `features` are those of the dataset that an
    undecoded row is of.
    """
    layout = _layout(row)
    mode = mask_mode(features, "masks" if row.get("mask") is None else "mask")
    problems, images, masks, sizes = list(layout.problems), [], [], []
    for number, image in enumerate(layout.images):
        if image is None:
            continue
        try:
            decoded = read_image(image, max_pixels)
            sizes.append(decoded.size)
            if fault := too_deep(decoded):
                problems.append(f"image {number} {fault}")
            if keep:
                images.append(decoded)
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
            decoded = decode_mask(_source(mask), size, max_pixels, mode)
            if keep:
                masks.append(decoded)
        except DatasetError as error:
            where = f" ({_file_of(mask)})" if _file_of(mask) else ""
            problems.append(f"mask {number}{where} {error}")
    return layout._replace(images=images, masks=masks, problems=problems)


def is_image_list(feature: Any) -> bool:
    """Whether a feature is a list of images."""
    return isinstance(feature, List | LargeList) and isinstance(feature.feature, Image)


def _check_columns(features: Features, name: str) -> None:
    names = set(features)
    missing = [] if "sample_id" in names else ["`sample_id`"]
    if "messages" not in names and not ({"mask", "phrase"} <= names or {"masks", "phrases"} <= names):
        partners = {"mask": "phrase", "phrase": "mask", "masks": "phrases", "phrases": "masks"}
        halves = [f"`{partner}` (goes with `{half}`)" for half, partner in partners.items() if half in names]
        missing += halves or ["`masks` and `phrases` (or `mask` and `phrase`, or `messages`)"]
    if "messages" not in names and not names & set(IMAGE_COLUMNS):
        missing.append("`image` (or `images`)")
    if missing:
        one = names & {"mask", "masks"} and not names & {*PHRASE_COLUMNS, "messages"}
        hint = ' One phrase for all rows: --phrase "blood vessel", or load_dataset_dict(..., phrase="blood vessel").'
        raise DatasetError(
            f"{name} has no usable columns: missing {', '.join(missing)}. It has: {', '.join(features) or 'none'}. "
            f"Accepted: {ACCEPTED_COLUMNS}.{hint if one else ''}"
        )


def _check_features(features: Features, name: str) -> None:
    _check_columns(features, name)
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


def plain_rows(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    A dataset whose rows come as they are stored: a format (`torch`, `numpy`, `arrow`, `pandas` ...) would hand out
    arrays in their place, or some of the columns alone. Nothing is copied or written. A `with_transform` stays, for it
    is part of the data.

    The rows of a stream come undecoded, where its features are known, so that what is checked is what is stored. Steps
    (`map`, `filter`) get them decoded: masks are judged there, before any conversion.
    """
    if isinstance(dataset, IterableDataset):
        dataset = dataset.with_format(None)
        dataset = dataset.decode(False) if dataset.features else dataset
        dataset._ex_iterable = _judging_steps(dataset._ex_iterable)  # (`with_format` has made a new one)
        return dataset
    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        if dataset.format["type"] is not None or set(dataset.format["columns"]) != set(dataset.column_names):
            return dataset.with_format(None)
    return dataset


class _JudgedImage(Image):
    """
    A `datasets.Image` that tells what its decoding takes away from a mask, since a decoded one no longer says so: it
    raises in a column of masks, and notes it in the picture's `info` elsewhere (a step's function may move it there).
    """

    in_masks = False

    def decode_example(self, value, token_per_repo_id=None):
        image = Image().decode_example(value, token_per_repo_id)
        if image is value:  # decoded by a step before
            return value
        shown = image if self.mode in (None, image.mode) else image.convert(self.mode)
        value = {"path": value, "bytes": None} if isinstance(value, str) else value
        if fault := self._fault(value, image):
            if self.in_masks:
                raise DatasetError(f"a mask of the stream{f' ({_file_of(value)})' if _file_of(value) else ''} {fault}")
            shown.info[_LOST] = fault
        return shown

    def _fault(self, value: dict, image: PIL.Image.Image) -> str | None:
        if value["bytes"] is not None or "://" not in value["path"]:  # a remote file is not fetched a second time
            with PIL.Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as file:
                if fault := loses_depth(file):
                    return fault
        if self.mode in (None, image.mode):
            return None
        try:
            mask = binary_mask(image)
        except ValueError:
            mask = None
        fault = _read_otherwise(image, mask, self.mode)
        return fault and f"{fault}, before `map` and `filter`"


def _judging_steps(steps: Any, masks: frozenset[str] = frozenset({"mask", "masks", *PAIR_COLUMNS})) -> Any:
    """
    A copy of a stream's steps (`datasets` has no public way to them) that decodes pictures by [`_JudgedImage`].
    `masks` are the columns of masks as they are called behind the steps.
    """
    steps = copy.copy(steps)
    if renamed := getattr(getattr(steps, "function", None), "keywords", {}).get("column_mapping"):
        masks = masks - {*renamed.values()} | {old for old, new in renamed.items() if new in masks}
    if getattr(steps, "_features", None) is not None:
        steps._features = _judged(steps._features, masks)
        if getattr(steps, "decoding_pool", None) is not None:  # decoded in threads: by a function, not by features
            run, (pool, decode) = steps.function.func, steps.function.args
            steps.function = partial(run, pool, partial(steps._features.decode_example, **decode.keywords))
    if hasattr(steps, "ex_iterable"):
        steps.ex_iterable = _judging_steps(steps.ex_iterable, masks)
    if hasattr(steps, "ex_iterables"):
        steps.ex_iterables = [_judging_steps(inner, masks) for inner in steps.ex_iterables]
    return steps


def _judged(features: Features, masks: frozenset[str]) -> Features:
    judged = features.copy()
    for column, feature in features.items():
        inner = feature.feature if is_image_list(feature) else feature
        if isinstance(inner, Image):
            inner = _JudgedImage(mode=inner.mode, decode=inner.decode)
            inner.in_masks = column in masks
            judged[column] = type(feature)(inner) if is_image_list(feature) else inner
    return judged


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
    shows nowhere else. The rows are checked as stored: what a `with_transform` makes of them, and the rows of an
    `IterableDataset`, which checking would consume, are checked by the collator (by [`normalize_row`]), batch by batch
    as they come. Of an `IterableDataset` only the names of the columns are checked here, where they are known.

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
            truncated or too large image, or one of several pages; a mask of another size than its image, or whose raw
            pixels are none ([`~media.masks.binary_mask`]); a number of masks other than that of the phrases or of the
            [SEG]s (times the frames); an empty phrase; malformed `messages`; a `sample_id` that is empty or used
            twice. An all-zero mask is legal. `problems` holds every bad row.
        `TypeError`: If it is no `datasets.Dataset`.
    """
    if isinstance(dataset, IterableDataset):
        logger.info("%s is an IterableDataset: its rows are checked as they come, not before training.", name)
        if dataset.features:
            _check_columns(dataset.features, name)
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
        return _read_row(row, max_pixels, keep=False, features=dataset.features).problems

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
