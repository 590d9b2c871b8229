"""Which files are pictures and videos, by their names."""

from pathlib import Path


#: What readers of datasets and `read_media` take for an image.
IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
_BYPRODUCTS = (".ds_store", "thumbs.db", "desktop.ini")


def is_byproduct(path: Path) -> bool:
    """Whether a file is one that systems leave in folders: `._a.png`, `.DS_Store`, `Thumbs.db`, `desktop.ini`."""
    return path.name.startswith("._") or path.name.lower() in _BYPRODUCTS
