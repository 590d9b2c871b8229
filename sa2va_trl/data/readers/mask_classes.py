"""Ids and colours of masks that have names."""

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ...errors import DatasetError, listed
from .entries import Reading


logger = logging.getLogger(__name__)


def _order(name: str) -> tuple[bool, int]:
    """Ids before colours, each in rising order."""
    return name.startswith("#"), int(name[1:], 16) if name.startswith("#") else int(name)


class Classes(NamedTuple):
    """
    Ids and colours that have names.

    Args:
        spelled (`dict[str, str]`): as they are given, by how [`~media.mask_objects.MaskObjects`] has them.
    """

    spelled: dict[str, str]

    @property
    def known(self) -> frozenset[str]:
        """As [`~media.mask_objects.mask_objects`] takes them."""
        return frozenset(self.spelled)

    def labels(self, found: Collection[str]) -> tuple[str, ...]:
        """All that there are: those that have names, and others that occur."""
        return (*self.spelled.values(), *(name for name in sorted(found, key=_order) if name not in self.spelled))

    def label(self, name: str | None) -> str | None:
        """The class of an object; `None` where objects are no classes."""
        return self.spelled.get(name, name) if self.spelled else None


def classes_of(reading: Reading) -> Classes:
    """
    The classes that a user gives for masks.

    Raises:
        `DatasetError`: they are no ids or colours.
    """
    spelled: dict[str, str] = {}
    for label in reading.classes or ():
        name = label.strip().upper() if isinstance(label, str) else ""
        if not re.fullmatch(r"#[0-9A-F]{6}|[0-9]{1,10}", name):
            raise DatasetError(
                f'classes of masks are ids or colours, {{"1": "vessel"}} or {{"#55AAFF": "vessel"}}; got {label!r}'
            )
        name = name if name.startswith("#") else str(int(name))
        if name in spelled or name == "0" or name == "#000000":
            fault = "twice" if name in spelled else "which is the background"
            raise DatasetError(f"classes has {label!r}, {fault}")
        spelled[name] = label
    return Classes(spelled)


def check_classes(folder: Path, classes: Classes, names: Collection[str], reading: Reading) -> None:
    """
    Refuse classes of which no mask has any, and name those that none has in the log.

    Args:
        folder (`Path`): what messages are about.
        classes ([`Classes`]): that are given.
        names (`Collection[str]`): that occur.
        reading ([`~data.readers.entries.Reading`]): how masks are read.

    Raises:
        `DatasetError`: as it says, or there is a threshold as well.
    """
    if reading.mask_threshold is not None:
        raise DatasetError(
            f"{folder}: classes name ids or colours, mask_threshold makes one object of grey: give either"
        )
    missing = [own for name, own in classes.spelled.items() if name not in names]
    there = listed(sorted(names, key=_order)) or "none"
    if missing and len(missing) == len(classes.spelled) and names:
        raise DatasetError(f"{folder}: no mask has any of {listed(missing)}; there are {there}")
    if missing:
        logger.warning("%s: in no mask: %s. There are %s.", folder, listed(missing), there)
