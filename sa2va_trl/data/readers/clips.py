"""Clips (videos, DICOM, TIFF of several pages, NIfTI, NPY, folders of frames): a mask a frame, or no masks at all."""

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import BadRow, DatasetError, listed
from ...media.clips import frame_name, is_clip
from ...media.dicom import dicom_facts, dicom_people, no_picture
from ...media.frames import count_frames
from ...media.pictures import quiet_pillow
from ...media.suffixes import listed_kind, stem_of
from ...media.video import video_frame_time
from .clip_masks import draw_clip_mask, read_clip_mask
from .dicom_seg import is_dicom_seg
from .entries import AnnotatedObject, Entry, Reading, Source
from .folders import SPLITS, metadata_files, walk
from .mask_classes import Classes, check_classes, classes_of
from .mask_files import PAIR_KINDS, draw_mask_file, nifti_fault, read_mask_file


logger = logging.getLogger(__name__)
_IMAGES, _MASKS = ("images", "image", "videos"), ("masks", "mask")
# Files beside the images that say what is in them, where no masks do: another format's.
_ANNOTATIONS = {".json", ".jsonl", ".csv", ".xml", ".yaml", ".yml", ".parquet", ".arrow"}
_NUMBER = re.compile(r"(\d+)$")


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
    """
    Where the clips of a folder lie, and their masks.

    Args:
        images (`Path`): may be the folder itself.
        masks (`Path` or `None`): a folder in it.
        splits (`list[Path]`): folders named after splits beside the clips.
    """

    images: Path
    masks: Path | None
    splits: list[Path]


def _layout(folder: Path) -> Layout | None:
    """Where clips and masks are; `None` where files say what a folder holds, or it has two folders of either."""
    images = [folder / name for name in _IMAGES if (folder / name).is_dir()]
    masks = [folder / name for name in _MASKS if (folder / name).is_dir()]
    if len(images) > 1 or len(masks) > 1:
        return None
    if metadata_files(folder):
        return None
    place = images[0] if images else folder
    splits = [place / name for name in SPLITS if (place / name).is_dir()]
    return Layout(place, masks[0] if masks else None, splits)


def _files(layout: Layout) -> list[Path]:
    """What may be a clip: neither a mask, nor of a split, which is read by itself."""
    others = [*layout.splits, *filter(None, [layout.masks])]
    return [path for path in walk(layout.images)[0] if not any(path.is_relative_to(other) for other in others)]


def _is_frame_folder(files: list[Path]) -> bool:
    """Whether the images of a folder are numbered one after the other: `0000.png`, `frame_0001.png`, ..."""
    found = [_NUMBER.search(path.stem) for path in files]
    if len(files) < 2 or not all(found):
        return False
    numbers = sorted(int(match.group()) for match in found)
    starts = {path.stem[: match.start()] for path, match in zip(files, found, strict=True)}
    return len(starts) == 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def notes_beside(folder: Path) -> list[Path]:
    """What may be annotations of clips without masks, in a format that is not known: they are clips by name only."""
    if any((folder / name).is_dir() for name in _MASKS):
        return []
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _ANNOTATIONS]


def is_clips(folder: Path, is_named: bool = False) -> bool:
    """
    Whether a folder holds clips: `images/` (or `image/`, `videos/`), or the folder itself, has videos or DICOM files
    in it, or there are `masks/` beside it and it has files of several frames, or nothing but folders of numbered
    frames. What lies in folders named after splits is of those. With DICOM segmentations in it, it is theirs; with
    [`notes_beside`] of nobody, unless the format is named.

    Args:
        folder (`Path`): it.
        is_named (`bool`, *optional*, defaults to `False`): whether the user says that it holds clips.
    """
    layout = _layout(folder)
    if layout is None or not is_named and notes_beside(folder) or is_dicom_seg(folder):
        return False
    kinds: dict[str, list[Path]] = {}
    for path in _files(layout):
        kind = listed_kind(path)
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


def is_bare_dicom(folder: Path) -> bool:
    """Whether what [`is_clips`] holds DICOM files alone, without masks: a segmentation of them may be elsewhere."""
    layout = _layout(folder)
    kinds = set(map(listed_kind, walk(folder)[0]))
    return layout is not None and layout.masks is None and kinds <= {"dicom", None}


def find_clips(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Read clips and their masks: an entry a frame.

    Masks pair with the clip of their name: `masks/NAME.tif` (a page a frame), `masks/NAME.nii.gz` or `masks/NAME.npy`
    hold one for every frame, and where it is empty nothing is there. A folder `masks/NAME/`, or files
    `masks/NAME_f00012.png`, hold one for some of the frames, whose numbers count from 0 (of a folder of frames, those
    of the same names); frames without one are left out. Without masks/, the source is one to be annotated.

    What is one object of a mask, and what is refused, says [`~media.mask_objects`]; the frames of one file are judged
    together. Names of classes are those of [`~data.readers.mask_folder.find_mask_folder`].

    A video is its path below the folder of clips, unless DICOM says which it is.

    Args:
        folder (`Path`): as of [`is_clips`].
        reading ([`Reading`]): how.

    Returns:
        `dict[str, Source]`: `train`.

    Raises:
        `ImportError`: what reads a kind of file is not installed.
        `DatasetError`: splits that are not outside of all else, or classes that are no ids or colours.
    """
    layout = _layout(folder)
    _check_splits(folder, layout)
    classes = classes_of(reading)
    problems: list[BadRow] = []
    clips = list(_clips(layout, reading, problems))
    masks = None if layout.masks is None else MaskFiles(layout.masks, reading.mask_suffix or "")
    entries, unmasked, left_out = [], [], 0
    names: set[str] = set()
    videos: set[str] = set()
    runs: dict[str, Clip] = {}
    for clip in clips:
        if masks is not None:
            masks.named(clip)  # none of them is a mask of no clip, whatever is wrong with it
        try:
            total = len(clip.frames) if clip.frames else count_frames(clip.place)
            objects = None if masks is None else _objects(clip, total, masks, classes, reading, names)
            facts = _facts(clip)
            if "video_id" not in facts and (total > 1 or clip.frames or listed_kind(clip.place) == "video"):
                facts["video_id"] = clip.name
                videos.add(clip.name)
            if total > 1 and (first := runs.setdefault(facts["video_id"], clip)) is not clip:
                raise DatasetError(
                    f"has the SOPInstanceUID of {first.place}, so that both were one clip: leave one out if it is a "
                    "copy; if not, give each its own"
                )
            people = dicom_people(clip.place) if _is_dicom(clip) else ()
            own = list(_entries(clip, total, objects, facts, people))
        except DatasetError as error:
            found = getattr(error, "problems", None)
            problems += found or [BadRow(None, None, str(clip.place), str(error))]
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
        masks.warn_from_one()
        problems += [
            BadRow(None, None, str(path), "is a mask of no clip: none has its name") for path in masks.unused()
        ]
    labels: tuple[str, ...] = ()
    if classes.spelled and masks is not None:
        if not problems:
            check_classes(folder, classes, names, reading)
        labels = classes.labels(names)
    found = Source(folder, entries, labels, problems, annotated=masks is not None, videos=frozenset(videos))
    return {"train": found}


def _check_splits(folder: Path, layout: Layout) -> None:
    """Refuse clips beside those of splits, which nobody would read."""
    if any(listed_kind(path) for place in layout.splits for path in walk(place)[0]):
        names, example = listed([place.name for place in layout.splits]), layout.splits[0].name
        raise DatasetError(
            f"{layout.images} holds clips, and beside them folders of splits ({names}): put the split first, "
            f"{folder.name}/{example}/, and each clip with its masks into one of them"
        )


def _clips(layout: Layout, reading: Reading, problems: list[BadRow]) -> Iterator[Clip]:
    """The clips of a folder in the order of their names. Files that are none are named in the log."""
    passed, unread, names = [], [], set()
    folders: dict[Path, list[Path]] = {}
    for path in _files(layout):
        kind = listed_kind(path)
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
        kind = listed_kind(path)
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
        self.numbered: list[dict[int, Path]] = []
        unread = []
        for path in walk(folder)[0]:
            if listed_kind(path) not in PAIR_KINDS:
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

    def named(self, clip: Clip) -> tuple[list[Path], list[Path]]:
        """The masks of a clip by their names: of every frame, and of single ones."""
        whole, single = self.whole.get(clip.name, []), self.single.get(clip.name, [])
        self.used.update(whole, single)
        return whole, single

    def of(self, clip: Clip, total: int) -> tuple[Path | None, dict[int, Path]]:
        """
        The masks of a clip: the file that holds one for every frame, or files of one by the number of the frame.

        Raises:
            `DatasetError`: several masks of one name, lengths that differ, or a number that the clip has not.
        """
        whole, single = self.named(clip)
        if len(whole) + bool(single) > 1:
            names = [path.relative_to(self.folder).as_posix() for path in (*whole, *single[:1])]
            raise DatasetError(f"has several masks: {listed(names)}")
        if whole:
            count = count_frames(whole[0])
            if count != total:
                raise DatasetError(f"has {total} frames, its mask {whole[0].name} has {count}")
            return (whole[0], {}) if total > 1 else (None, {0: whole[0]})
        stems = {path.stem: number for number, path in enumerate(clip.frames or [])}
        found: dict[int, Path] = {}
        for path in single:
            stem = path.stem.removesuffix(self.suffix)
            if stems:
                number = stems.get(stem)
            else:
                match = _NUMBER.search(stem)
                number = int(match.group()) if match else None
            if number is None or number >= total:
                names = "they are those of its frames" if stems else f"numbers count from 0 to {total - 1}"
                raise DatasetError(f"has no frame for the mask {path.relative_to(self.folder).as_posix()}: {names}")
            if number in found:
                raise DatasetError(f"has two masks of frame {number}: {found[number].name} and {path.name}")
            found[number] = path
        if found and not stems:
            self.numbered.append(found)
        return None, found

    def warn_from_one(self) -> None:
        """Say so where masks seem to be numbered from 1: they would lie on the frames after their own."""
        if self.numbered and all(0 not in found and 1 in found for found in self.numbered):
            name = self.numbered[0][1].name
            logger.warning(
                "%s: numbers of masks count from 0, and no clip has a mask 0, while each has a mask 1. If %s is of "
                "the first frame, all of them lie one frame too late: rename each to the number before it.",
                self.folder,
                name,
            )


def _objects(
    clip: Clip, total: int, masks: MaskFiles, classes: Classes, reading: Reading, names: set[str]
) -> dict[int, tuple[AnnotatedObject, ...]]:
    """The objects of each frame of a clip that has a mask. Ids and colours that occur are added to `names`."""
    whole, single = masks.of(clip, total)
    picture = clip.frames[0] if clip.frames else clip.place
    how = reading.mask_threshold, classes.known, reading.max_pixels
    found: dict[int, tuple[AnnotatedObject, ...]] = {}
    bad = []
    for path in [whole] if whole else single.values():
        try:
            if fault := nifti_fault(picture, path):
                raise DatasetError(fault)
            if whole:
                file = read_clip_mask(path, *how)
                names.update(filter(None, file.pixels))
                for number, own in enumerate(file.frames):
                    draw = {"path": path, "index": number, "max_pixels": reading.max_pixels}
                    found[number] = tuple(
                        AnnotatedObject(classes.label(name), partial(draw_clip_mask, pixels=file.pixels[name], **draw))
                        for name in own
                    )
        except DatasetError as error:
            bad.append(BadRow(None, None, str(path), str(error)))
    with quiet_pillow():
        for number, path in single.items():
            try:
                own = read_mask_file(path, *how).names
            except DatasetError as error:
                bad.append(BadRow(None, None, str(path), str(error)))
                continue
            names.update(filter(None, own))
            draw = dict(zip(("threshold", "known", "max_pixels"), how, strict=True))
            found[number] = tuple(
                AnnotatedObject(
                    classes.label(name), partial(draw_mask_file, path=path, names=frozenset({name}), **draw)
                )
                for name in own
            )
    if bad:
        raise DatasetError("has masks that cannot be used:", bad)
    return found


def _entries(
    clip: Clip,
    total: int,
    objects: Mapping[int, tuple[AnnotatedObject, ...]] | None,
    facts: Mapping[str, Any],
    people: tuple[str, ...],
) -> Iterator[Entry | None]:
    """An entry for each frame of a clip; `None` for one without a mask, where there are masks."""
    for number in range(total):
        if objects is not None and number not in objects:
            yield None
            continue
        if clip.frames:
            file, frame = clip.frames[number], None
            name = f"{clip.name}_{file.name}"
        else:
            file, frame = clip.place, number if total > 1 or listed_kind(clip.place) == "video" else None
            name = f"{clip.name if frame is None else frame_name(clip.name, number)}.png"
        moving = {} if frame is None and not clip.frames else {"frame_index": number}
        own = objects[number] if objects else ()
        yield Entry(name, file, own, frame, facts={**facts, **moving}, people=people)


def _is_dicom(clip: Clip) -> bool:
    return not clip.frames and listed_kind(clip.place) == "dicom"


def _facts(clip: Clip) -> dict[str, Any]:
    """What the file of a clip says of it."""
    if _is_dicom(clip):
        return dicom_facts(clip.place)
    time = video_frame_time(clip.place) if not clip.frames and listed_kind(clip.place) == "video" else None
    return {} if time is None else {"frame_time_ms": time}
