"""Referring video sets: what their `meta_expressions.json` says, as frames to prepare and as clips to evaluate."""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets import Dataset, Features, Image, List, Value
from datasets.arrow_writer import ArrowWriter

from ...errors import BadRow, DatasetError, listed
from ...files import name_bytes, whole_file
from ...media.pictures import MAX_PIXELS, displayed_size, quiet_pillow
from ...media.suffixes import IMAGE_SUFFIXES
from ..masks import encode_mask
from .annotation_files import load_json, naming, text_of
from .entries import AnnotatedObject, Entry, Source, refuse
from .folders import file_states


logger = logging.getLogger(__name__)
META = "meta_expressions.json"
#: What a row of a clip holds: one expression of one video.
CLIP_FEATURES = Features(
    {
        "images": List(Image()),
        "masks": List(Image(mode="L")),
        "phrases": List(Value("string")),
        "sample_id": Value("string"),
        "video_id": Value("string"),
        "exp_id": Value("string"),
        "frames": List(Value("string")),
    }
)
# Of the rows that are kept beside the cache of `datasets`: raise it when they change.
_ROWS = 1
# (A function of a module, or a partial of one: entries go to other processes.)
Draw = Callable[..., np.ndarray]


class Expression(NamedTuple):
    """
    An expression of a video, and what it names.

    Args:
        exp_id (`str`): its name in the video.
        text (`str`): as it was written.
        draw (`Callable` or `None`):
            The mask of all that it names: `(size, frame=NUMBER)`, of a frame of the video, else as `draw` of
            [`~data.readers.entries.AnnotatedObject`]. `None` where the truth is not public.
    """

    exp_id: str
    text: str
    draw: Draw | None


class Video(NamedTuple):
    """
    A video of a referring set.

    Args:
        name (`str`): of its folder.
        frames (`tuple[str, ...]`): names of the frames that are read, without suffix, in their order.
        files (`tuple[Path, ...]`): their pictures.
        expressions (`tuple[Expression, ...]`): of it.
    """

    name: str
    frames: tuple[str, ...]
    files: tuple[Path, ...]
    expressions: tuple[Expression, ...]


class ExpressionSet(NamedTuple):
    """
    A split of a referring set.

    Args:
        place (`Path`): its `meta_expressions.json`, which messages are about.
        videos (`list[Video]`): in the order of the file.
        problems (`list[BadRow]`): what cannot be used. With any, nothing is.
        annotated (`bool`): whether its masks are there.
    """

    place: Path
    videos: list[Video]
    problems: list[BadRow]
    annotated: bool


def meta_videos(file: Path) -> dict[str, Any]:
    """
    What a `meta_expressions.json` says of videos, by their names.

    Args:
        file (`Path`): it.

    Returns:
        `dict`.

    Raises:
        `DatasetError`: no such file.
    """
    with naming(file):
        data = load_json(file)
        if not isinstance(data, dict) or not isinstance(data.get("videos"), dict):
            raise DatasetError("expected an object with `videos`, by their names")
    return data["videos"]


def read_meta(
    file: Path,
    images: Path,
    describe: Callable[[str, dict, list[str]], Draw | None],
    masked: Callable[[str], Collection[str]] | None = None,
    others: Collection[str] = (),
) -> tuple[list[Video], list[BadRow]]:
    """
    The videos of a `meta_expressions.json`: `{"videos": {NAME: {"frames": [...], "expressions": {ID: {"exp": ...}}}}}`

    Args:
        file (`Path`): it.
        images (`Path`): `JPEGImages`, with a folder a video.
        describe (`Callable`):
            From the name of a video, what the file says of an expression, and the names of the frames that are read to
            the `draw` of [`Expression`]; it raises `DatasetError` with the reason alone.
        masked (`Callable`, *optional*):
            From the name of a video to those of its frames that have a mask; the others are not read, which is logged.
            All frames by default.
        others (`Collection[str]`, *optional*): videos of another split, which are not read.

    Returns:
        The videos, and what is wrong with others.

    Raises:
        `DatasetError`: no such file.
    """
    videos, problems, left_out, without = [], [], 0, []
    for number, (name, said) in enumerate(meta_videos(file).items()):
        if name in others:
            continue
        try:
            files = _frames(name, said, images)
            expressions = said.get("expressions")
            if not isinstance(expressions, dict) or not expressions:
                raise DatasetError("`expressions` must be an object of at least one")
        except DatasetError as error:
            problems.append(BadRow(number, None, name, f"video: {error}"))
            continue
        if masked is not None:
            there = masked(name)
            kept = {frame: path for frame, path in files.items() if frame in there}
            left_out += len(files) - len(kept) if kept else 0
            without += [] if kept else [name]
            files = kept
        found = []
        for exp_id, expression in expressions.items() if files else ():
            try:
                if not isinstance(expression, dict):
                    raise DatasetError(f"is not an object but {expression!r:.40}")
                text = text_of(expression.get("exp"), "`exp`")
                found.append(Expression(exp_id, text, describe(name, expression, list(files))))
            except DatasetError as error:
                problems.append(BadRow(number, None, name, f"expression {exp_id}: {error}"))
        if found:
            videos.append(Video(name, tuple(files), tuple(files.values()), tuple(found)))
    if without:
        logger.warning("%s: left out, videos without masks: %s.", file, listed(without))
    if left_out:
        logger.warning("%s: left out, %d frames without a mask, of videos that have some.", file, left_out)
    return videos, problems


def _frames(name: str, said: Any, images: Path) -> dict[str, Path]:
    """The files of the frames of a video, by their names."""
    folder = images / name
    if not isinstance(said, dict) or Path(name).name != name or not folder.is_dir():
        raise DatasetError(f"there is no folder {images.name}/{name}")
    frames = said.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, str) for frame in frames):
        raise DatasetError("`frames` must be a list of names, of at least one frame")
    if len(set(frames)) < len(frames):
        raise DatasetError("`frames` holds a name twice")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    if missing := [frame for frame in frames if frame not in files]:
        raise DatasetError(f"{len(missing)} of {len(frames)} frames are missing, the first {missing[0]!r}")
    return {frame: files[frame] for frame in frames}


def refuse_phrase(folder: Path, phrase: str | None) -> None:
    """
    Refuse a phrase for all rows of a set whose expressions say what is meant.

    Args:
        folder (`Path`): the set.
        phrase (`str`, *optional*): as it was given.

    Raises:
        `DatasetError`: there is one.
    """
    if phrase is not None:
        raise DatasetError(f"{folder} has an expression for every row, so that `phrase` has no effect: leave it out")


def frame_source(found: ExpressionSet) -> Source:
    """
    The frames of a split, each with an object an expression, as what a data set of images is made of.

    Args:
        found ([`ExpressionSet`]): it.

    Returns:
        [`~data.readers.entries.Source`]: without masks where they are not public.
    """
    entries = []
    for video in found.videos:
        for index, (frame, file) in enumerate(zip(video.frames, video.files, strict=True)):
            objects = tuple(
                AnnotatedObject(own.text, partial(own.draw, frame=index)) for own in video.expressions if own.draw
            )
            facts = {"video_id": video.name, "frame_index": index}
            entries.append(Entry(f"{video.name}/{frame}{file.suffix}", file, objects, facts=facts))
    problems = found.problems
    names = frozenset(video.name for video in found.videos)
    return Source(found.place, entries, (), problems, joins=False, annotated=found.annotated, videos=names)


def clip_rows(sets: Mapping[str, ExpressionSet], folder: Path) -> dict[str, Dataset]:
    """
    A row for each expression of each video: its frames as the files that they are, a mask a frame, and the text as it
    was written. Of splits whose truth is not public, `masks` is empty.

    Rows are written to a file in the cache of `datasets` as they are made, and read from there: neither the masks of
    a split nor its pictures are in memory. A folder that has not changed is not read anew.

    Args:
        sets (`Mapping[str, ExpressionSet]`): by split.
        folder (`Path`): that they are of.

    Returns:
        `dict[str, datasets.Dataset]` with [`CLIP_FEATURES`].

    Raises:
        `DatasetError`: with every video or expression that cannot be used.
    """
    digest = hashlib.sha256(f"{_ROWS} {folder.resolve()}".encode(errors="surrogateescape"))
    for line in file_states(folder):
        digest.update(line)
    cache = Path(datasets.config.HF_DATASETS_CACHE) / f"sa2va_trl-clips-{digest.hexdigest()[:16]}"
    rows = {}
    for split, found in sets.items():
        total = sum(len(video.expressions) for video in found.videos) + len(found.problems)
        refuse(found.place, found.problems, total)
        if not total:
            raise DatasetError(f"{found.place} holds no expressions")
        file = cache / f"{hashlib.sha256(name_bytes(split)).hexdigest()[:16]}.arrow"
        if not file.is_file():
            bad: list[BadRow] = []
            with whole_file(file) as temporary, quiet_pillow():
                with ArrowWriter(features=CLIP_FEATURES, path=str(temporary), writer_batch_size=16) as writer:
                    for row in _rows(found.videos, bad):
                        writer.write(CLIP_FEATURES.encode_example(row))
                    writer.finalize()
                refuse(found.place, bad, total)  # before the file is at its place
        rows[split] = Dataset.from_file(str(file))
    return rows


def _rows(videos: Iterable[Video], bad: list[BadRow]) -> Iterator[dict[str, Any]]:
    """Rows one at a time; those that cannot be made go to `bad`."""
    for number, video in enumerate(videos):
        try:
            sizes = {displayed_size(file, MAX_PIXELS) for file in video.files}
            if len(sizes) > 1:
                raise DatasetError(f"has frames of {len(sizes)} sizes: scale them to one")
        except DatasetError as error:
            bad.append(BadRow(number, None, video.name, f"video: {error}"))
            continue
        (size,) = sizes
        for own in video.expressions:
            try:
                frames = range(len(video.files) if own.draw else 0)
                masks = [encode_mask(own.draw(size, frame=frame)) for frame in frames]
            except DatasetError as error:
                bad.append(BadRow(number, None, video.name, f"expression {own.exp_id}: {error}"))
                continue
            yield {
                "images": [{"path": str(file.absolute()), "bytes": None} for file in video.files],
                "masks": masks,
                "phrases": [own.text],
                "sample_id": f"{video.name}_{own.exp_id}",
                "video_id": video.name,
                "exp_id": own.exp_id,
                "frames": list(video.frames),
            }
