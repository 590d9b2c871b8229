"""A folder of images and one of masks."""

import logging
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from datasets import Dataset

from ...errors import BadRow, DatasetError
from ...media.clips import listed
from ...media.pictures import MAX_PIXELS, displayed_size, quiet_pillow
from ..columns import DEFAULT_PHRASE, FEATURES
from ..masks import decode_mask, encode_mask
from ..prompts import normalize_phrase
from .folders import find_pair, image_files, known_suffixes, listed_below, metadata_files, sample_ids, warn_unread
from .image_metadata import read_image_metadata


logger = logging.getLogger(__name__)


def _common_end(stems: Iterable[str]) -> str:
    """What all names end in, from a separator on: `_training` of `21_training` and `22_training`."""
    common = os.path.commonprefix([stem[::-1] for stem in stems])[::-1]
    return common[start.start() :] if (start := re.search(r"[_\-. ]", common)) else ""


def _check_ends(folder: Path, images: Collection[str], masks: Collection[str]) -> None:
    """Refuse names that would pair but for what all images, or all masks, end in."""
    if not images or not masks or set(images) & set(masks):
        return
    ends = _common_end(images), _common_end(masks)
    if {stem.removesuffix(ends[0]) for stem in images} == {stem.removesuffix(ends[1]) for stem in masks}:
        mask = sorted(masks)[0]
        raise DatasetError(
            f"{folder}: images and masks pair by name, but all images end in {ends[0]!r} and all masks in "
            f"{ends[1]!r}: rename one of them (mask {mask!r} to {mask.removesuffix(ends[1]) + ends[0]!r})"
        )


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return find_pair(folder) is not None


def read_mask_folder(
    folder: str | os.PathLike, phrase: str | None = DEFAULT_PHRASE, max_pixels: int = MAX_PIXELS
) -> Dataset:
    """
    Read images and masks that pair by file name: `image/NAME.*` with `mask/NAME.*`, or `images/` with `masks/`. Where
    the folder of images holds a metadata file, it says what there is: see `read_image_metadata`.

    Args:
        folder (`str` or `os.PathLike`):
            Holds the two folders (`IMAGE_SUFFIXES` are read; those of a pair may differ). Files and folders in them
            may be links to elsewhere.
        phrase (`str`, *optional*, defaults to `"blood vessel"`):
            Names the one object of every image.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height of an image or mask.

    Returns:
        `datasets.Dataset` with `image` (the file, not copied), `masks` (one; PNG, mode `L`, 0 and 255), `phrases` and
        `sample_id` (the stem). Files of a kind that is not read are named in the log, and pairs that are links to
        another pair, which are left out.

    Raises:
        `FileNotFoundError`: If the folder has no such pair of folders.
        `DatasetError`: If there are both image/ with mask/ and images/ with masks/; or with every bad file: an image
            without a mask or a mask without an image; half a pair, or a whole one, of a kind that is not read; two
            files of one name; a missing, unreadable or too large file, or one of several pages; a mask of another size
            than its image, or that is none ([`~media.masks.binary_mask`]).
    """
    folder = Path(folder)
    if metadata_files(folder):
        return read_image_metadata(folder, phrase)
    pair = find_pair(folder)
    if pair is None:
        raise FileNotFoundError(f"{folder} has neither image/ and mask/ nor images/ and masks/")
    phrase = normalize_phrase(DEFAULT_PHRASE if phrase is None else phrase)
    roots = {"image": pair[0], "mask": pair[1]}
    files = {kind: image_files(root) for kind, root in roots.items()}
    stems = {stem for found in files.values() for stem in found.images}
    stems |= files["image"].unread.keys() & files["mask"].unread.keys()  # a pair that nobody can read
    if not stems:
        unread = [path.name for found in files.values() for paths in found.unread.values() for path in paths]
        there = f"; it and {pair[1].name}/ hold: {listed(unread)}" if unread else ""
        raise DatasetError(f"{pair[0]} holds no image ({known_suffixes()}){there}")
    _check_ends(folder, files["image"].images, files["mask"].images)
    for kind, root in roots.items():
        warn_unread(root, files[kind], stems - files[kind].images.keys())  # the others are refused below

    paths, names, masks, bad, twice = [], [], [], [], []
    seen: set[tuple[str, str]] = set()
    stems = sorted(stems)
    with quiet_pillow():
        for stem in stems:
            problems, opened = [], {}
            for kind, root in roots.items():
                found = files[kind].images.get(stem, [])
                unread = [path.relative_to(root).as_posix() for path in files[kind].unread.get(stem, [])]
                if len(found) == 1:
                    opened[kind] = found[0].absolute()
                elif found:
                    problems.append(f"has several {kind}s: {', '.join(path.name for path in found)}")
                elif unread:
                    names = ", ".join(f"{root.name}/{name}" for name in unread)
                    problems.append(f"{names} is of a kind that is not read (read are {known_suffixes()}): convert it")
                else:
                    problems.append(f"has no {kind}: expected {root.name}/{stem}.png (or another image suffix)")
            # The same two files by another name. (One mask of several images, or two of one, are no copies.)
            real = tuple(os.path.realpath(path) for path in opened.values())
            if not problems and real in seen:
                twice.append(opened["image"])
                continue
            seen.add(real)
            size = mask = None
            if "image" in opened:
                try:
                    size = displayed_size(opened["image"], max_pixels)
                except DatasetError as error:
                    problems.append(f"image {error}")
            if "mask" in opened:
                try:
                    mask = decode_mask(opened["mask"], size, max_pixels)
                except DatasetError as error:
                    problems.append(f"mask {opened['mask'].name} {error}")
            if problems:
                places = [(root, files[kind].images) for kind, root in roots.items()]
                places += [(root, files[kind].unread) for kind, root in roots.items()]
                root, path = next((root, found[stem][0]) for root, found in places if stem in found)
                bad.append(BadRow(None, None, f"{root.name}/{path.relative_to(root).as_posix()}", "; ".join(problems)))
            else:
                paths.append(opened["image"])
                names.append(files["image"].images[stem][0].relative_to(roots["image"]).as_posix())
                masks.append([encode_mask(mask)])
    if bad:
        raise DatasetError(f"{folder}: {len(bad)} of {len(stems)} pairs of image and mask cannot be used:", bad)
    if twice:
        again = listed_below(twice, pair[0].absolute())
        logger.warning("%s: left out, links to an image and a mask that are read already: %s.", pair[0], again)
    return Dataset.from_dict(
        {
            "image": [str(path) for path in paths],
            "masks": masks,
            "phrases": [[phrase]] * len(paths),
            "sample_id": sample_ids(names),
        },
        features=FEATURES,
    )
