"""What tasks share that write masks for annotation tools: the folder `export/` beside their other results."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from torch import nn

from ..data.export.annotated import Annotated, Found
from ..data.export.dicom_seg import check_dicom
from ..data.export.folder import WRITERS, Images
from ..data.layout import normalize_row
from ..data.loading import find_sources
from ..data.readers.entries import Reading
from ..data.readers.folders import sample_ids
from ..errors import DatasetError
from ..evaluation import predict_probabilities
from ..files import file_name
from ..media.clips import Picture, folder_images, frame_name
from ..media.suffixes import is_byproduct
from ..models import Sa2VAProcessor
from ..questions import QUESTIONS, asked


EXPORT = "export"
HELP = f"Write {{}} as pre-annotations, with their images, into {EXPORT}/: {', '.join(WRITERS)}."


def check_format(name: str | None) -> None:
    """
    Args:
        name (`str` or `None`): of a format; `None` of none.

    Raises:
        `ValueError`: there is no such format; with those that there are.
    """
    if name is not None and name not in WRITERS:
        raise ValueError(f"export must be one of {', '.join(WRITERS)}; got {name!r}.")


def record(folder: Path, format: str) -> dict[str, Any]:
    """
    What a task's JSON says of an export, by which [`foreign_files`] knows it again.

    Args:
        folder (`Path`): that `export/` lies in.
        format (`str`): of the export.

    Returns:
        `dict`: `format`, and in `files` the checksum (SHA-256) of each file, by its path from `export/`.
    """
    files = {name: _checksum(path) for name, path in _files(folder / EXPORT)}
    return {"format": format, "files": files}


def foreign_files(folder: Path, recorded: Any) -> list[str]:
    """
    Files of an export that are not as a task has left them: an annotator may have worked in them.

    Args:
        folder (`Path`): that `export/` lies in.
        recorded: what a JSON says under `export`.

    Returns:
        `list[str]`: their paths from `folder`; of those that have changed, with a word about it.
    """
    place = folder / EXPORT
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        return [EXPORT]
    known = recorded.get("files") if isinstance(recorded, Mapping) else None
    known = known if isinstance(known, Mapping) else {}
    return [
        f"{EXPORT}/{name}" + " (changed since)" * (name in known)
        for name, path in _files(place)
        if known.get(name, "") != _checksum(path)
    ]


def _files(folder: Path) -> list[tuple[str, Path]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [(path.relative_to(folder).as_posix(), path) for path in paths if not is_byproduct(path)]


def _checksum(path: Path) -> str | None:
    if path.is_symlink() or not path.is_file():
        return None
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_input(format: str | None, path: str) -> None:
    """
    Args:
        format (`str` or `None`): of the export; `None` of none.
        path (`str`): what is predicted of: a file, a folder of images, or what is generated.

    Raises:
        `DatasetError`: DICOM segmentations are to be made of what is no DICOM.
    """
    if format == "dicom_seg":
        check_dicom(folder_images(Path(path))[0] if Path(path).is_dir() else [Path(path)])


def dicom_sources(name: str, split: str, rows: Dataset) -> dict[str, tuple[Path, int | None]]:
    """
    The DICOM files that rows are read from, for DICOM segmentations.

    Args:
        name (`str`): of the data set.
        split (`str`): of its splits.
        rows (`datasets.Dataset`): of that.

    Returns:
        `dict`: by `sample_id`, the file, and the number of the frame in one of several.

    Raises:
        `DatasetError`: they are read from anything else; rows that are prepared do not know their files.
    """
    try:
        source = find_sources(Path(name).expanduser(), Reading())[split]
    except (FileNotFoundError, DatasetError, KeyError) as error:
        raise DatasetError(
            f"export=dicom_seg is for rows of a folder with DICOM files and their masks; {name!r} is none, and "
            f"prepared data do not hold such files ({error})"
        ) from error
    ids = sample_ids([entry.name for entry in source.entries])
    known = set(rows["sample_id"])  # with the split in front where another has the same
    found = {
        own if own in known else f"{split}_{own}": (entry.image, entry.frame)
        for own, entry in zip(ids, source.entries, strict=True)
    }
    if missing := known - found.keys():
        raise DatasetError(f"{name}: of the row {min(missing)!r} nobody knows the file, so that it cannot be exported")
    check_dicom(sorted({file for file, _ in found.values()}))
    return found


def check_classes(classes: Sequence[str] | None, prompts: int) -> None:
    """
    Args:
        classes (`list[str]` or `None`): names in the annotation tool.
        prompts (`int`): their number.

    Raises:
        `ValueError`: not one a prompt, or what is no name.
    """
    if classes is None:
        return
    if len(classes) != prompts:
        raise ValueError(f"export_classes must be one a prompt: got {len(classes)} for {prompts}.")
    if bad := [name for name in classes if not name.strip() or not name.isprintable()]:
        raise ValueError(f"export_classes holds {bad[0]!r}, which is no name of a class.")


def class_of_prompt(prompt: str, question: str) -> str:
    """
    What a prompt asks for.

    Args:
        prompt (`str`): to the model.
        question (`str`): the model's own template.

    Returns:
        `str`: the phrase of a prompt that is this template, or the package's own, with a phrase in it; else all of it.
    """
    found = (asked(template, prompt) for template in (question, *QUESTIONS))
    return next(filter(None, found), " ".join(prompt.split()))


def predicted_images(
    folder: Path, predictions: Sequence[dict], images: Mapping[str, Annotated], classes: dict
) -> Iterator[Annotated]:
    """
    What `predict` has written, for an export.

    Args:
        folder (`Path`): with `masks/`.
        predictions (`list[dict]`): of its JSON; those of one picture follow each other.
        images (`dict[str, Annotated]`): by the name of a picture, what is exported of it, still without objects.
        classes (`dict[str | None, tuple[str, bool]]`):
            By the prompt (`None` where there is but one), what its objects are called, and whether even where the
            answer calls them something else.

    Yields:
        [`~data.export.annotated.Annotated`]
    """
    for name, entries in groupby(predictions, key=lambda entry: entry["name"]):
        objects = []
        for entry in entries:
            own, is_given = classes[entry.get("prompt")]
            for found in entry["objects"]:
                with Image.open(folder / found["mask"]) as mask:
                    drawn = np.asarray(mask) > 0
                label = own if is_given else " ".join((found["phrase"] or "").split()) or own
                objects.append(Found(label, drawn, min(max(found["predicted_iou"], 0.0), 1.0)))
        yield images[name]._replace(objects=tuple(objects))


def drawn_images(
    model: nn.Module,
    processor: Sa2VAProcessor,
    rows: Dataset,
    folder: Path,
    format: str,
    threshold: float = 0.5,
    batch_size: int = 4,
    sources: Mapping[str, tuple[Path, int | None]] | None = None,
) -> Iterator[Annotated]:
    """
    What a model draws of rows, for an export; their images are put into it under their `sample_id`.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): draws the masks.
        processor (`Sa2VAProcessor`): of the model.
        rows (`datasets.Dataset`): with masks, of which the sizes count.
        folder (`Path`): of the export.
        format (`str`): of [`~data.export.folder.WRITERS`].
        threshold (`float`, *optional*, defaults to 0.5): probability above which a pixel belongs to a mask.
        batch_size (`int`, *optional*, defaults to 4): rows a pass.
        sources (`dict`, *optional*): from [`dicom_sources`], for DICOM segmentations.

    Yields:
        [`~data.export.annotated.Annotated`], one an image or frame.
    """
    images = Images(folder, format)
    for row, maps in predict_probabilities(model, processor, rows, batch_size, progress=False):
        own, name = normalize_row(row), file_name(row["sample_id"])
        clip = own["images"]
        masks = (maps > threshold).reshape(-1, len(clip), *maps.shape[1:])  # object-major
        phrases = own["phrases"] or ["object"] * len(masks)  # a conversation does not say them one by one
        for number, image in enumerate(clip):
            shown = frame_name(name, number) if len(clip) > 1 else name
            plain = image if image.mode == "L" else image.convert("RGB")
            file, frame = (sources or {}).get(row["sample_id"], (Path(), None))
            kept = images.keep(Picture(shown, file, frame, plain))
            yield Annotated(kept, image.size, tuple(map(Found, phrases, masks[:, number])), frame)
