"""Clips (videos, DICOM, TIFF of several pages, NIfTI, NPY, folders of frames): a mask a frame, or no masks at all."""

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import BadRow, DatasetError, listed
from ...media.arrays import NiftiFrames, open_npy
from ...media.clips import frame_name, is_clip
from ...media.dicom import dicom_facts, no_picture
from ...media.frames import count_frames
from ...media.masks import binary_mask
from ...media.pages import raw_page
from ...media.suffixes import kind_by_name, kind_of, stem_of
from ...media.video import video_frame_time
from .dicom_seg import is_dicom_seg
from .entries import AnnotatedObject, Entry, Reading, Source
from .folders import SPLITS, metadata_files, split_folders, walk


logger = logging.getLogger(__name__)
_IMAGES, _MASKS = ("images", "image", "videos"), ("masks", "mask")
_MASK_KINDS = ("image", "nifti", "npy")
# Files beside the images that say what is in them, where no masks do: another format's.
_ANNOTATIONS = {".json", ".jsonl", ".csv", ".xml", ".yaml", ".yml", ".parquet", ".arrow"}
_NUMBER = re.compile(r"(\d+)$")
_MANY = 256


class Clip(NamedTuple):
    """
    A clip of a folder.

    Args:
        name (`str`): its path below the folder of clips, without suffix, with `/`.
        place (`Path`): the file, or the folder of frames.
        frames (`list[Path]` or `None`): the files of a folder of frames, in their order.
    """

    name: str
    place: Path
    frames: list[Path] | None = None


class Layout(NamedTuple):
    """Where the clips of a folder lie, and their masks."""

    images: Path
    masks: Path | None


def _layout(folder: Path) -> Layout | None:
    """Where clips and masks are; `None` where files say what a folder holds, or it has two folders of either."""
    images = [folder / name for name in _IMAGES if (folder / name).is_dir()]
    masks = [folder / name for name in _MASKS if (folder / name).is_dir()]
    if len(images) > 1 or len(masks) > 1:
        return None
    if metadata_files(folder):
        return None
    if not masks and any(path.suffix.lower() in _ANNOTATIONS for path in folder.iterdir()):
        return None
    return Layout(images[0] if images else folder, masks[0] if masks else None)


def _kind(path: Path) -> str | None:
    """[`~media.suffixes.kind_of`], without opening notes and annotations to look for a DICOM file in them."""
    return kind_of(path) if re.fullmatch(r"(\.\d+)?", path.suffix) else kind_by_name(path)


def _files(layout: Layout) -> list[Path]:
    masks = layout.masks
    return [path for path in walk(layout.images)[0] if masks is None or not path.is_relative_to(masks)]


def _is_frame_folder(files: list[Path]) -> bool:
    """Whether the images of a folder are numbered one after the other: `0000.png`, `frame_0001.png`, ..."""
    found = [_NUMBER.search(path.stem) for path in files]
    if len(files) < 2 or not all(found):
        return False
    numbers = sorted(int(match.group()) for match in found)
    starts = {path.stem[: match.start()] for path, match in zip(files, found, strict=True)}
    return len(starts) == 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _has_layout(folder: Path) -> bool:
    layout = _layout(folder)
    if layout is None:
        return False
    kinds: dict[str, list[Path]] = {}
    for path in _files(layout):
        kind = _kind(path)
        if kind in ("video", "dicom"):  # hardly anything else is read from these
            return True
        if kind is not None and (kind == "image" or layout.images != folder or layout.masks is not None):
            kinds.setdefault(path.suffix.lower() if kind == "image" else kind, []).append(path)
    if layout.masks is None:
        return False
    if any(is_clip(kinds[kind][0]) for kind in kinds if kind in (".tif", ".tiff", ".gif", ".webp", "nifti", "npy")):
        return True
    folders: dict[Path, list[Path]] = {}
    for path in (path for paths in kinds.values() for path in paths):
        folders.setdefault(path.parent, []).append(path)
    return layout.images not in folders and bool(folders) and all(map(_is_frame_folder, folders.values()))


def is_clips(folder: Path) -> bool:
    """
    Whether a folder holds clips: `images/` (or `image/`, `videos/`), or the folder itself, has videos or DICOM files
    in it, or there are `masks/` beside it and it has files of several frames, or nothing but folders of numbered
    frames. The same within folders named after splits. With DICOM segmentations in it, it is theirs.
    """
    if is_dicom_seg(folder):
        return False
    return any(_has_layout(place) for place in (folder, *(folder / name for name in SPLITS)) if place.is_dir())


def find_clips(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Read clips and their masks: an entry a frame.

    Masks pair with the clip of their name: `masks/NAME.tif` (a page a frame), `masks/NAME.nii.gz` or `masks/NAME.npy`
    hold one for every frame, and where it is empty nothing is there. A folder `masks/NAME/`, or files
    `masks/NAME_f00012.png`, hold one for some of the frames, whose numbers count from 0 (of a folder of frames, those
    of the same names); frames without one are left out. Without masks/, the source is one to be annotated.

    Args:
        folder (`Path`): as of [`is_clips`].
        reading ([`Reading`]): how; of a mask that is not binary, different whole numbers are different objects.

    Returns:
        `dict[str, Source]`: by split; `"train"` where there are none.

    Raises:
        `ImportError`: what reads a kind of file is not installed.
        `DatasetError`: a DICOM file cannot be looked into.
    """
    if _has_layout(folder):
        return {"train": _source(folder, reading)}
    return {split: _source(path, reading) for split, path in split_folders(folder).items() if _has_layout(path)}


def _source(folder: Path, reading: Reading) -> Source:
    layout = _layout(folder)
    problems: list[BadRow] = []
    clips = list(_clips(layout, reading, problems))
    masks = None if layout.masks is None else MaskFiles(layout.masks, reading.mask_suffix or "")
    entries, unmasked, left_out = [], [], 0
    for clip in clips:
        try:
            own = list(_entries(clip, masks, reading))
        except DatasetError as error:
            problems.append(BadRow(None, None, str(clip.place), str(error)))
            continue
        kept = [entry for entry in own if entry is not None]
        entries += kept
        left_out += len(own) - len(kept) if kept else 0
        if not kept:
            unmasked.append(clip.name)
    if masks is not None and unmasked and not entries and not problems:
        problems.append(
            BadRow(None, None, str(layout.masks), "holds no mask of any clip: give it the name of its clip")
        )
    if unmasked:
        logger.warning("%s: left out, clips without masks: %s.", folder, listed(unmasked))
    if left_out:
        logger.warning("%s: left out, %d frames without a mask, of clips that have some.", folder, left_out)
    if masks is not None:
        problems += [
            BadRow(None, None, str(path), "is a mask of no clip: none has its name") for path in masks.unused()
        ]
    return Source(folder, entries, problems=problems, annotated=masks is not None)


def _clips(layout: Layout, reading: Reading, problems: list[BadRow]) -> Iterator[Clip]:
    """The clips of a folder in the order of their names. Files that are none are named in the log."""
    passed, unread, names = [], [], set()
    folders: dict[Path, list[Path]] = {}
    for path in _files(layout):
        kind = _kind(path)
        if kind == "image" and path.parent != layout.images:
            if path.parent not in folders:
                folders[path.parent] = []
            folders[path.parent].append(path)
        elif kind is None:
            unread.append(path.relative_to(layout.images).as_posix())
    single = {path for paths in folders.values() if not _is_frame_folder(paths) for path in paths}
    for clip in _named_clips(layout, reading, problems, folders, single, passed):
        if clip.name in names:
            problems.append(
                BadRow(None, None, str(clip.place), f"is another clip with the name {clip.name}: rename it")
            )
        else:
            names.add(clip.name)
            yield clip
    if passed:
        logger.warning("%s: passed over: %s.", layout.images, listed(passed))
    if unread:
        logger.warning("%s: left out, not of a kind that is read: %s.", layout.images, listed(unread))


def _named_clips(
    layout: Layout,
    reading: Reading,
    problems: list[BadRow],
    folders: dict[Path, list[Path]],
    single: set[Path],
    passed: list[str],
) -> Iterator[Clip]:
    for path in _files(layout):
        kind = _kind(path)
        name = path.relative_to(layout.images)
        if kind == "dicom":
            try:
                reason = no_picture(path)
            except DatasetError as error:
                problems.append(BadRow(None, None, str(path), str(error)))
                continue
            if reason and not (reading.secondary_captures and reason == "is a secondary capture"):
                passed.append(f"{name.as_posix()} ({reason})")
                continue
        if kind == "image" and path.parent in folders and path not in single:
            frames = folders[path.parent]
            if path == frames[0]:
                frames.sort(key=lambda file: int(_NUMBER.search(file.stem).group()))
                yield Clip(_normal(name.parent.as_posix()), path.parent, frames)
        elif kind is not None:
            yield Clip(_normal(name.with_name(stem_of(path)).as_posix()), path)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS writes an umlaut as two characters, others as one


class MaskFiles:
    """
    The files below a folder of masks, by the clip that they are of.

    Args:
        folder (`Path`): of masks.
        suffix (`str`): what their names have behind those of the clips.
    """

    def __init__(self, folder: Path, suffix: str):
        self.folder, self.whole, self.single, self.used = folder, {}, {}, set()
        unread = []
        for path in walk(folder)[0]:
            if _kind(path) not in _MASK_KINDS:
                unread.append(path.relative_to(folder).as_posix())
                continue
            name = _normal(path.relative_to(folder).with_name(stem_of(path)).as_posix())
            if suffix and not name.endswith(suffix):
                unread.append(path.relative_to(folder).as_posix())
                continue
            name = name.removesuffix(suffix)
            self.whole.setdefault(name, []).append(path)
            if "/" in name:
                self.single.setdefault(name.rpartition("/")[0], []).append(path)
            if match := re.fullmatch(r"(.+)_f(\d{5,})", name):
                self.single.setdefault(match.group(1), []).append(path)
        self.suffix = suffix
        if unread:
            logger.warning("%s: left out, not of a kind that is read: %s.", folder, listed(unread))

    def unused(self) -> list[Path]:
        """Masks that have not been asked for."""
        return sorted({path for paths in self.whole.values() for path in paths} - self.used)

    def of(self, clip: Clip, total: int) -> dict[int, tuple[Path, int]]:
        """
        The masks of a clip, by the number of the frame: the file, and the number in it.

        Raises:
            `DatasetError`: several masks of one name, lengths that differ, or a number that the clip has not.
        """
        whole, single = self.whole.get(clip.name, []), self.single.get(clip.name, [])
        self.used.update(whole, single)
        if len(whole) + bool(single) > 1:
            names = [path.relative_to(self.folder).as_posix() for path in (*whole, *single[:1])]
            raise DatasetError(f"has several masks: {listed(names)}")
        if whole:
            count = count_frames(whole[0])
            if count != total:
                raise DatasetError(f"has {total} frames, its mask {whole[0].name} has {count}")
            return {number: (whole[0], number) for number in range(total)}
        stems = [path.stem for path in clip.frames or []]
        found: dict[int, tuple[Path, int]] = {}
        for path in single:
            stem = path.stem.removesuffix(self.suffix)
            if stems:
                number = stems.index(stem) if stem in stems else None
            else:
                match = _NUMBER.search(stem)
                number = int(match.group()) if match else None
            if number is None or number >= total:
                names = "they are those of its frames" if stems else f"numbers count from 0 to {total - 1}"
                raise DatasetError(f"has no frame for the mask {path.relative_to(self.folder).as_posix()}: {names}")
            if number in found:
                raise DatasetError(f"has two masks of frame {number}: {found[number][0].name} and {path.name}")
            found[number] = (path, 0)
        return found


def _entries(clip: Clip, masks: MaskFiles | None, reading: Reading) -> Iterator[Entry | None]:
    """An entry for each frame of a clip; `None` for one without a mask, where there are masks."""
    total = len(clip.frames) if clip.frames else count_frames(clip.place)
    own = None if masks is None else masks.of(clip, total)
    facts = _facts(clip, total)
    for number in range(total):
        if own is not None and number not in own:
            yield None
            continue
        objects = () if own is None else _objects(*own[number], reading)
        if clip.frames:
            file, frame = clip.frames[number], None
            name = f"{clip.name}_{file.name}"
        else:
            file, frame = clip.place, number if total > 1 or _kind(clip.place) == "video" else None
            name = f"{clip.name if frame is None else frame_name(clip.name, number)}.png"
        moving = {} if frame is None and not clip.frames else {"frame_index": number}
        yield Entry(name, file, objects, frame, facts={**facts, **moving})


def _facts(clip: Clip, total: int) -> Mapping[str, Any]:
    if clip.frames:
        return {"video_id": clip.name}
    kind = _kind(clip.place)
    if kind == "dicom":
        return {**({"video_id": clip.name} if total > 1 else {}), **dicom_facts(clip.place)}
    if kind == "video":
        time = video_frame_time(clip.place)
        return {"video_id": clip.name, **({} if time is None else {"frame_time_ms": time})}
    return {"video_id": clip.name} if total > 1 else {}


# ---------------------------------------------------------------------------------------------------------------------
# The objects of a mask
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _opened_nifti(path: Path, changed: int) -> NiftiFrames:
    return NiftiFrames(path)


@lru_cache(maxsize=4)
def _values(path: Path, index: int, changed: int) -> np.ndarray:
    """What a mask says of each pixel: whole numbers or floating point, of shape `(height, width)`."""
    kind = _kind(path)
    if kind == "nifti":
        values = _opened_nifti(path, changed).array(index)
    elif kind == "npy":
        values = np.asarray(open_npy(path)[index])
    else:
        page = raw_page(path, index)
        if page.mode in ("1", "L", "P", "F") or page.mode.startswith("I"):
            values = np.asarray(page)
        else:
            try:
                values = np.asarray(binary_mask(page)) > 0
            except ValueError as error:
                raise DatasetError(f"mask {path.name} {error}") from error
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise DatasetError(
            f"mask {path.name} is an array of {values.dtype} of shape {values.shape}; expected one number a pixel"
        )
    if values.dtype.kind == "f" and (values == np.rint(values)).all() and np.abs(values).max(initial=0) < 2**31:
        values = values.astype(np.int64)  # NIfTI, mostly: labels that were scaled by 1
    return values


def mask_values(path: Path, index: int) -> np.ndarray:
    """
    What a mask says of each pixel.

    Args:
        path (`Path`): of an image, NIfTI or NPY file.
        index (`int`): of the frame in it.

    Returns:
        `np.ndarray` of shape `(height, width)`: bool, whole numbers (of a palette, indices) or floating point.

    Raises:
        `DatasetError`: unreadable, or more than one number a pixel.
    """
    try:
        return _values(path, index, path.stat().st_mtime_ns)
    except OSError as error:
        raise DatasetError(f"mask {path.name} cannot be read ({error})") from error


def _objects(path: Path, index: int, reading: Reading) -> tuple[AnnotatedObject, ...]:
    """The objects of a mask: one, or one a whole number."""
    values = mask_values(path, index)
    if reading.mask_threshold is not None:
        draw = partial(draw_mask, path, index, None, reading.mask_threshold)
        return (AnnotatedObject(None, draw),) if (values >= reading.mask_threshold).any() else ()
    where = f"mask {path.name}" + (f", frame {index}," if index else "")
    if values.dtype.kind == "f":
        raise DatasetError(f"{where} holds values from {values.min():g} to {values.max():g}: give mask_threshold")
    ids = [int(value) for value in np.unique(values) if value]
    # The largest value beside others: the grey edges of an object that is white.
    grey = len(ids) > 1 and values.dtype.itemsize <= 2 and ids[-1] == np.iinfo(values.dtype).max
    if grey or len(ids) > _MANY or ids and ids[0] < 0:
        shown = ", ".join(map(str, ids[:8]))
        raise DatasetError(
            f"{where} holds {len(ids)} values beside 0 ({shown}{', ...' if len(ids) > 8 else ''}): grey edges, or "
            "numbers of objects? Give mask_threshold, or save the numbers as 1, 2, 3 ..."
        )
    return tuple(AnnotatedObject(None, partial(draw_mask, path, index, value, None)) for value in ids)


def draw_mask(path: Path, index: int, value: int | None, threshold: float | None, size: tuple[int, int]) -> np.ndarray:
    """
    One object of a mask file.

    Args:
        path (`Path`): of the mask.
        index (`int`): of the frame in it.
        value (`int` or `None`): the number of the object.
        threshold (`float` or `None`): in its place, the least value inside.
        size (`tuple[int, int]`): (width, height) of the picture.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        `DatasetError`: with the reason alone; unreadable, or of another size.
    """
    values = mask_values(path, index)
    if values.shape != size[::-1]:
        raise DatasetError(
            f"mask {path.name} is {values.shape[1]} x {values.shape[0]} (width x height), its picture {size[0]} x "
            f"{size[1]}"
        )
    return values == value if threshold is None else values >= threshold
