"""JSON files of masks that are larger than memory should be: one object, whose members are read one at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DatasetError


_CHUNK = 2**20  # read at a time; doubled for a member that is longer
_SPACE = " \t\n\r"


class Place(NamedTuple):
    """
    Where the value of a member stands.

    Args:
        start, end (`int`): bytes of the file.
    """

    start: int
    end: int


class _Text:
    """What has been read of a file and is still needed. A character is a byte: places are those in the file."""

    def __init__(self, opened):
        self.opened, self.text, self.offset, self.at, self.is_whole = opened, "", 0, 0, False

    def more(self, count: int = _CHUNK) -> bool:
        """Read on; whether there was anything."""
        found = self.opened.read(count)
        self.text, self.offset, self.at = self.text[self.at :] + found.decode("latin-1"), self.offset + self.at, 0
        self.is_whole = self.is_whole or not found
        return bool(found)

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self) -> tuple[Any, Place]:
        """The value that begins here, and its place."""
        decoder, wanted = json.JSONDecoder(), _CHUNK
        self.next()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or self.is_whole:  # (a number may go on)
                    place = Place(self.offset + self.at, self.offset + end)
                    self.at = end
                    return value, place
            except json.JSONDecodeError as error:
                if self.is_whole:
                    raise DatasetError(f"invalid JSON at byte {self.offset + error.pos}: {error.msg}") from error
            except (RecursionError, ValueError) as error:
                raise DatasetError(f"invalid JSON at byte {self.offset + self.at} ({error})") from error
            self.more(wanted)
            wanted *= 2

    def expect(self, character: str) -> None:
        if (found := self.next()) != character:
            at = self.offset + self.at
            raise DatasetError(f"invalid JSON at byte {at}: expected {character!r}, found {found or 'its end'!r:.20}")
        self.at += 1


def members(file: Path) -> Iterator[tuple[str, Any, Place]]:
    """
    The members of the object that a JSON file holds, one in memory at a time. Texts are taken for ASCII, as they are
    in run lengths; others come as the bytes that they are.

    Args:
        file (`Path`): it.

    Yields:
        The name, the value and its place, for [`value_at`].

    Raises:
        `DatasetError`: with the reason alone: no JSON, or none that is an object.
    """
    try:
        with open(file, "rb") as opened:
            text = _Text(opened)
            text.expect("{")
            if text.next() == "}":
                return
            while True:
                name, _ = text.value()
                if not isinstance(name, str):
                    raise DatasetError(f"invalid JSON: {name!r:.40} is no name of a member")
                text.expect(":")
                value, place = text.value()
                yield name, value, place
                if text.next() == "}":
                    return
                text.expect(",")
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror})") from error


def value_at(file: Path, place: Place) -> Any:
    """
    A value that [`members`] has met.

    Args:
        file (`Path`): in which.
        place ([`Place`]): where.

    Raises:
        `DatasetError`: with the reason alone: the file is another now.
    """
    try:
        with open(file, "rb") as opened:
            opened.seek(place.start)
            return json.loads(opened.read(place.end - place.start).decode("latin-1"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file.name} has changed while it was read ({error})") from error
