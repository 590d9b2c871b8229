"""A folder of images and one of masks."""

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

from datasets import Dataset

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ...media.frames import count_frames, frame_of
from ...media.mask_objects import MaskObjects
from ...media.pictures import MAX_PIXELS, displayed_size, quiet_pillow
from ...media.suffixes import kind_by_name, stem_of
from ..columns import DEFAULT_PHRASE
from .clips import is_clips
from .entries import AnnotatedObject, Entry, Reading, Source, rows_of
from .folders import (
    ImageFiles,
    find_pair,
    image_files,
    known_suffixes,
    listed_below,
    metadata_files,
    warn_unread,
)
from .image_metadata import read_image_metadata
from .mask_classes import Classes, check_classes, classes_of
from .mask_files import PAIR_KINDS, draw_mask_file, nifti_fault, read_mask_file, reason_alone, size_fault


logger = logging.getLogger(__name__)


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder has this layout: pairs of pictures, which no metadata file describes and which are no clips."""
    return find_pair(folder) is not None and not metadata_files(folder) and not is_clips(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Names that pair
# ---------------------------------------------------------------------------------------------------------------------


def _common_end(stems: Iterable[str]) -> str:
    """What all names end in, from a separator on: `_training` of `21_training` and `22_training`."""
    common = os.path.commonprefix([stem[::-1] for stem in stems])[::-1]
    return common[start.start() :] if (start := re.search(r"[_\-. ]", common)) else ""


def _without_ends(folder: Path, images: Collection[str], masks: Collection[str]) -> tuple[str, str]:
    """
    What all images, and all masks, end in, where most of them pair but for that; else nothing. (Those that do not are
    named as lacking the other.)

    Raises:
        `DatasetError`: they do, but these ends may be what tells one image from another.
    """
    if not images or not masks or set(images) & set(masks):
        return "", ""
    ends = _common_end(images), _common_end(masks)
    bare = [{stem.removesuffix(end) for stem in stems} for stems, end in zip((images, masks), ends, strict=True)]
    if 2 * len(bare[0] & bare[1]) <= len(bare[0] | bare[1]):
        return "", ""
    mask = sorted(masks)[0]
    # Of a lone pair all from a separator on would be its end; numbers tell images apart.
    if all(ends) and (len(images) < 2 or not all(re.search(r"[^\W\d_]", end) for end in ends)):
        raise DatasetError(
            f"{folder}: images and masks would pair by name if their ends were left out, {ends[0]!r} and {ends[1]!r}; "
            f"do they belong together? Then rename one of them (mask {mask!r} to "
            f"{mask.removesuffix(ends[1]) + ends[0]!r})"
        )
    logger.warning(
        "%s: paired by name without what all images end in (%r) and all masks (%r): mask %r belongs to image %r.",
        folder,
        *ends,
        mask,
        mask.removesuffix(ends[1]) + ends[0],
    )
    return ends


def _renamed(files: Mapping[str, list[Path]], end: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for stem, paths in files.items():
        found.setdefault(stem.removesuffix(end), []).extend(paths)
    return found


def _by_stem(roots: Mapping[str, Path], mask_suffix: str | None) -> dict[str, ImageFiles]:
    """The files of both folders by the name that pairs them; those that are none are named in the log."""
    files = {kind: image_files(root, PAIR_KINDS) for kind, root in roots.items()}
    if mask_suffix:
        masks = files["mask"]
        if left := [path for stem in masks.images if not stem.endswith(mask_suffix) for path in masks.images[stem]]:
            logger.warning(
                "%s: left out, names without mask_suffix %r: %s.",
                roots["mask"],
                mask_suffix,
                listed_below(left, roots["mask"]),
            )
        kept = {stem: paths for stem, paths in masks.images.items() if stem.endswith(mask_suffix)}
        if masks.images and not kept:
            raise DatasetError(f"{roots['mask']}: no mask has a name that ends in mask_suffix={mask_suffix!r}")
        files["mask"] = ImageFiles(_renamed(kept, mask_suffix), _renamed(masks.unread, mask_suffix))
    ends = _without_ends(roots["image"].parent, files["image"].images, files["mask"].images)
    return {
        kind: ImageFiles(*(_renamed(part, end) for part in files[kind])) if end else files[kind]
        for kind, end in zip(roots, ends, strict=True)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------------------


def pair_size(image: Path, max_pixels: int) -> tuple[int, int]:
    """
    The (width, height) of an image of a pair.

    Raises:
        `DatasetError`: with the reason alone; unreadable, too large, or of several frames.
    """
    if kind_by_name(image) == "image":
        return displayed_size(image, max_pixels)
    try:
        if (count := count_frames(image)) > 1:
            raise DatasetError(f"holds {count} frames")
        return frame_of(image, 0, max_pixels).size
    except FileNotFoundError as error:
        raise DatasetError("file is missing") from error
    except DatasetError as error:
        raise DatasetError(reason_alone(error, image)) from error


def look_at_pair(
    image: Path | None, mask: Path | None, known: frozenset[str], reading: Reading
) -> tuple[MaskObjects | None, list[str]]:
    """
    The objects of the mask of a pair, and all that is wrong with it. Use inside `quiet_pillow`.

    Args:
        image, mask (`Path` or `None`): files, as many as there are.
        known (`frozenset[str]`): as of [`~media.mask_objects.mask_objects`].
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `MaskObjects` or `None`, and `list[str]`: reasons.
    """
    size = found = None
    problems = []
    if image is not None:
        try:
            size = pair_size(image, reading.max_pixels)
        except DatasetError as error:
            problems.append(f"image {error}")
    if mask is not None:
        try:
            found = read_mask_file(mask, reading.mask_threshold, known, reading.max_pixels)
        except DatasetError as error:
            problems.append(f"mask {mask.name} {error}")
    if found is not None and size is not None:
        fault = size_fault(found.numbers.shape, size) or nifti_fault(image, mask)
        if fault:
            problems.append(f"mask {mask.name} {fault}")
    return found, problems


def find_mask_folder(folder: Path, reading: Reading) -> dict[str, Source]:
    """
    Find images and masks that pair by file name: `image/NAME.*` with `mask/NAME.*`, or `images/` with `masks/`.
    Every mask is looked at, and drawn when it is needed.

    Names of masks may have `mask_suffix` behind those of their images; what all images, and all masks, end in may
    differ (`21_training` and `21_manual1`), which the log says. What is one object of a mask, and what is refused,
    says [`~media.mask_objects`]. Ids and colours without names are instances under one phrase; by `classes`
    (`{"1": "vessel"}`, `{"#55AAFF": "vessel"}`) they are classes, and the others are left out.

    Args:
        folder (`Path`): holds the two folders.
        reading ([`~data.readers.entries.Reading`]): how.

    Returns:
        `dict[str, Source]`: `train`.

    Raises:
        `FileNotFoundError`: the folder has no such pair of folders.
        `DatasetError`: no image, or classes that are no ids or colours.
    """
    pair = find_pair(folder)
    if pair is None:
        raise FileNotFoundError(f"{folder} has neither image/ and mask/ nor images/ and masks/")
    classes = classes_of(reading)
    roots = {"image": pair[0], "mask": pair[1]}
    files = _by_stem(roots, reading.mask_suffix)
    stems = {stem for found in files.values() for stem in found.images}
    stems |= files["image"].unread.keys() & files["mask"].unread.keys()  # a pair that nobody can read
    if not stems:
        unread = [path.name for found in files.values() for paths in found.unread.values() for path in paths]
        there = f"; it and {pair[1].name}/ hold: {listed(unread)}" if unread else ""
        raise DatasetError(f"{pair[0]} holds no image ({known_suffixes(PAIR_KINDS)}){there}")
    for kind, root in roots.items():
        warn_unread(root, files[kind], stems - files[kind].images.keys())  # the others are refused below

    entries, bad, twice = [], [], []
    names: dict[str, None] = {}
    seen: set[tuple[str, str]] = set()
    with quiet_pillow():
        for stem in sorted(stems):
            opened, problems = _files_of(stem, files, roots, reading.mask_suffix or "")
            # The same two files by another name. (One mask of several images, or two of one, are no copies.)
            real = tuple(os.path.realpath(path) for path in opened.values())
            if not problems and real in seen:
                twice.append(opened["image"])
                continue
            seen.add(real)
            found, faults = look_at_pair(opened.get("image"), opened.get("mask"), classes.known, reading)
            if problems or faults:
                places = [(root, files[kind].images) for kind, root in roots.items()]
                places += [(root, files[kind].unread) for kind, root in roots.items()]
                root, path = next((root, own[stem][0]) for root, own in places if stem in own)
                name = f"{root.name}/{path.relative_to(root).as_posix()}"
                bad.append(BadRow(None, None, name, "; ".join([*problems, *faults])))
                continue
            names.update(dict.fromkeys(filter(None, found.names)))
            objects = [_object(opened["mask"], name, classes, reading) for name in found.names]
            path = files["image"].images[stem][0].relative_to(roots["image"])
            name = path.with_name(stem_of(path) + path.suffix).as_posix()  # not .nii.gz, which has two
            entries.append(Entry(name, opened["image"], tuple(objects)))
    if twice:
        again = listed_below(twice, pair[0].absolute())
        logger.warning("%s: left out, links to an image and a mask that are read already: %s.", pair[0], again)
    if not classes.spelled:
        return {"train": Source(folder, entries, problems=bad)}
    check_classes(folder, classes, names, reading)
    return {"train": Source(folder, entries, classes.labels(names), bad)}


def _files_of(
    stem: str, files: Mapping[str, ImageFiles], roots: Mapping[str, Path], mask_suffix: str
) -> tuple[dict[str, Path], list[str]]:
    """The image and the mask of a name, and what is wrong with that they are or are not there."""
    opened, problems = {}, []
    for kind, root in roots.items():
        found = files[kind].images.get(stem, [])
        unread = [path.relative_to(root).as_posix() for path in files[kind].unread.get(stem, [])]
        if len(found) == 1:
            opened[kind] = found[0].absolute()
        elif found:
            problems.append(f"has several {kind}s: {', '.join(path.name for path in found)}")
        elif unread:
            there = ", ".join(f"{root.name}/{name}" for name in unread)
            known = known_suffixes(PAIR_KINDS)
            problems.append(f"{there} is of a kind that is not read (read are {known}): convert it")
        else:
            name = stem + (mask_suffix if kind == "mask" else "")
            problems.append(f"has no {kind}: expected {root.name}/{name}.png (or another image suffix)")
    return opened, problems


def _object(mask: Path, name: str | None, classes: Classes, reading: Reading) -> AnnotatedObject:
    drawing = partial(
        draw_mask_file,
        path=mask,
        names=frozenset({name}),
        threshold=reading.mask_threshold,
        known=classes.known,
        max_pixels=reading.max_pixels,
    )
    return AnnotatedObject(classes.label(name), drawing)


def read_mask_folder(
    folder: str | os.PathLike,
    phrase: str | None = DEFAULT_PHRASE,
    max_pixels: int = MAX_PIXELS,
    reading: Reading | None = None,
) -> Dataset:
    """
    Read images and masks that pair by file name: see [`find_mask_folder`]. Where the folder of images holds a metadata
    file, it says what there is: see `read_image_metadata`.

    Args:
        folder (`str` or `os.PathLike`):
            Holds the two folders (image files, NIfTI and NPY; those of a pair may differ). Files and folders in them
            may be links to elsewhere.
        phrase (`str`, *optional*, defaults to `"blood vessel"`):
            Names every object of every image.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height of an image or mask.
        reading ([`~data.readers.entries.Reading`], *optional*):
            How, in place of the two: with classes, a suffix of masks or a threshold.

    Returns:
        `datasets.Dataset` with `image` (the file, not copied), `masks` (one an object; PNG, mode `L`, 0 and 255; of an
        image without any, an empty one), `phrases` and `sample_id` (the stem). Files of a kind that is not read are
        named in the log, and pairs that are links to another pair, which are left out.

    Raises:
        `FileNotFoundError`: If the folder has no such pair of folders.
        `DatasetError`: If there are both image/ with mask/ and images/ with masks/; or with every bad file: an image
            without a mask or a mask without an image; half a pair, or a whole one, of a kind that is not read; two
            files of one name; a missing, unreadable or too large file, or one of several pages; a mask of another size
            than its image, or that is none ([`~media.mask_objects`]).
    """
    folder = Path(folder)
    if metadata_files(folder):
        return read_image_metadata(folder, phrase)
    reading = reading or Reading(phrase=phrase, max_pixels=max_pixels)
    return rows_of(find_mask_folder(folder, reading)["train"], reading)
