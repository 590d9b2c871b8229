"""Which files are pictures and videos, by their names; DICOM files, which often have no suffix, by their content."""

import os
import re
from pathlib import Path


#: What readers of datasets and `read_media` take for an image.
IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
NIFTI_SUFFIXES = {".nii", ".nii.gz"}
NPY_SUFFIXES = {".npy"}
#: The kinds of files that pictures come from, with the suffixes of each.
KINDS = {
    "image": IMAGE_SUFFIXES,
    "video": VIDEO_SUFFIXES,
    "dicom": DICOM_SUFFIXES,
    "nifti": NIFTI_SUFFIXES,
    "npy": NPY_SUFFIXES,
}
_BYPRODUCTS = (".ds_store", "thumbs.db", "desktop.ini")


def is_byproduct(path: Path) -> bool:
    """Whether a file is one that systems leave in folders: `._a.png`, `.DS_Store`, `Thumbs.db`, `desktop.ini`."""
    return path.name.startswith("._") or path.name.lower() in _BYPRODUCTS


def _known_suffix(path: Path) -> tuple[str | None, str]:
    """The kind that a name stands for, and the suffix as it is written."""
    suffix = "".join(path.suffixes[-2:]) if path.name.lower().endswith(".nii.gz") else path.suffix
    return next((kind for kind, known in KINDS.items() if suffix.lower() in known), None), suffix


def has_dicom_preamble(path: str | os.PathLike) -> bool:
    """Whether a file begins as DICOM files do: 128 bytes of anything, then `DICM`."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def kind_by_name(path: str | os.PathLike) -> str | None:
    """As [`kind_of`], by the suffix alone; the file need not be there."""
    return _known_suffix(Path(path))[0]


def kind_of(path: str | os.PathLike) -> str | None:
    """
    Which reader of pictures a file is for.

    Args:
        path (`str` or `os.PathLike`): of a file.

    Returns:
        `str` or `None`: of [`KINDS`], by the suffix; `"dicom"` where that is none of them (`IM0001`, `1.2.840.113`)
            and the file begins as DICOM files do.

    Example:

    ```python
    >>> from sa2va_trl.media.suffixes import kind_of, stem_of

    >>> kind_of("run.NII.gz"), stem_of("run.NII.gz")
    ('nifti', 'run')

    ```
    """
    path = Path(path)
    return kind_by_name(path) or ("dicom" if path.is_file() and has_dicom_preamble(path) else None)


def listed_kind(path: str | os.PathLike) -> str | None:
    """As [`kind_of`] in a listing of all files, of which notes and annotations are not opened to look for DICOM."""
    path = Path(path)
    return kind_of(path) if re.fullmatch(r"(\.\d+)?", path.suffix) else kind_by_name(path)


def stem_of(path: str | os.PathLike) -> str:
    """The name of a file without its suffix, where that is a known one: of `1.2.840.113`, all."""
    path = Path(path)
    kind, suffix = _known_suffix(path)
    return path.name[: -len(suffix)] if kind else path.name
