"""
What has been decoded and found good in this process: no check decodes it again, in whatever set of rows it comes back.

Content tells, not the fingerprint of a set: folders that `datasets` loads share one if they share their name, and a
file that a row names may change behind it.
"""

import hashlib
import os
from collections.abc import Iterable
from typing import Any

from datasets import Features

from ..media.pictures import MAX_PIXELS
from ..models.regions import is_box
from .columns import REGIONS, mask_mode
from .layout import Layout, row_layout, row_mask_mode


# Sixteen bytes a row, as long as the process lives.
_GOOD: set[bytes] = set()


def content_key(pictures: Iterable[Any], *options: Any) -> bytes | None:
    """
    What tells pictures apart that are read in one way.

    Args:
        pictures: undecoded `datasets.Image` values (`{"bytes", "path"}`): bytes count, or the file's path, size and
            times.
        options: whatever else a check of them depends on; `repr` has to tell it.

    Returns:
        `bytes`, or `None` where nothing tells what would be read: of a decoded picture, a remote or missing file.
    """
    found = hashlib.blake2b(repr(options).encode(), digest_size=16)
    for picture in pictures:
        if not isinstance(picture, dict):
            return None
        data, path = picture.get("bytes"), picture.get("path")
        if data is None:
            if path is None or "://" in path:
                return None
            try:
                state = os.stat(path)
            except (OSError, ValueError):
                return None
            data = repr((os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns)).encode()
        found.update(f"{len(data)} ".encode())
        found.update(data)
    return found.digest()


def row_key(
    layout: Layout, mode: str | None, max_pixels: int = MAX_PIXELS, region_mode: str | None = None
) -> bytes | None:
    """As [`content_key`], of all pictures of a row and what [`~data.layout.read_pictures`] says of them."""
    drawn = [region for region in layout.regions if not is_box(region)]
    boxes = [[number, list(region)] for number, region in enumerate(layout.regions) if is_box(region)]
    pictures = [*layout.images, *layout.masks, *drawn]
    return content_key(pictures, len(layout.images), len(layout.masks), mode, max_pixels, boxes, region_mode)


def is_good(key: bytes | None) -> bool:
    """Whether [`remember`] was called with a key."""
    return key is not None and key in _GOOD


def remember(key: bytes | None) -> None:
    """Keep what has been found good, where it has a key."""
    if key is not None:
        _GOOD.add(key)


def is_good_row(row: dict[str, Any], features: Features) -> bool:
    """Whether [`~data.checks.check_dataset`] has found the pictures of an undecoded row good."""
    return is_good(row_key(row_layout(row), row_mask_mode(row, features), region_mode=mask_mode(features, REGIONS)))
