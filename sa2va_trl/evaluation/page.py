"""A page to look at in a browser: one file that needs no network, from sections of tables, plots and pictures."""

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..files import replaced_together
from .gallery import Picture
from .overlays import COLOURS


TEMPLATES = Path(__file__).parent / "templates"
REPORT = "report.html"
PICTURES = "report_pictures"
HOW = ("embedded", "beside")


@dataclass(frozen=True)
class Words:
    """A paragraph; with `plain`, lines whose columns stay as they are."""

    kind: ClassVar[str] = "words"
    text: str
    plain: bool = False


@dataclass(frozen=True)
class Table:
    """
    A table to read, which can be sorted by a click on the head of a column.

    Args:
        columns (`Sequence[str]`): heads.
        rows (`Sequence[Sequence]`): of texts, numbers and `None`; the first cell is the row's name.
        caption (`str`): what it shows.
        choices (`str`, *optional*): column whose values can be chosen from.
        filters (`bool`, *optional*, defaults to `False`): whether rows can be searched for.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str
    choices: str | None = None
    filters: bool = False

    @classmethod
    def of_frame(cls, frame: pd.DataFrame, caption: str, **options: Any) -> "Table":
        """The table of a data frame, without its index."""
        return cls(
            list(frame), frame.astype(object).where(frame.notna(), None).to_numpy().tolist(), caption, **options
        )

    def is_number(self, place: int) -> bool:
        """Whether a column, by its place, holds numbers: they stand to the right, the first column never does."""
        return place > 0 and any(raw(row[place]) is not None for row in self.rows)

    def options(self) -> list[str]:
        """What the values to choose from are, in the order in which the rows have them."""
        place = list(self.columns).index(self.choices)
        return list(dict.fromkeys(str(row[place]) for row in self.rows if row[place] is not None))


@dataclass(frozen=True)
class Plot:
    """A plot as `<svg>`, and in words what it shows; of `"half"` ones two, of `"small"` ones three are in a line."""

    kind: ClassVar[str] = "plot"
    svg: str
    caption: str
    width: str = "whole"


@dataclass(frozen=True)
class Numbers:
    """The few numbers that one looks for first: of each its name, itself and what is to be said of it."""

    kind: ClassVar[str] = "numbers"
    entries: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Gallery:
    """
    Pictures with masks in the colours of what was found, invented and missed, and a threshold to move.

    Args:
        groups (`Mapping[str, Sequence[Picture]]`): by their titles.
        threshold (`float`, *optional*): that the masks were evaluated at; `None` where there is nothing to move.
        names (`Sequence[str]`, *optional*): of the runs that have drawn on each picture.
    """

    kind: ClassVar[str] = "gallery"
    groups: Mapping[str, Sequence[Picture]]
    threshold: float | None = None
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """Pictures alone: files' bytes and captions."""

    kind: ClassVar[str] = "sheet"
    pictures: Sequence[tuple[bytes, str]]


Part = Words | Table | Plot | Numbers | Gallery | Sheet


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own."""

    title: str
    parts: Sequence[Part] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """What links to it are called."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def write_page(
    folder: str | os.PathLike,
    title: str,
    sections: Sequence[Section],
    subtitle: str = "",
    pictures: str = "embedded",
    files: Mapping[str, bytes] | None = None,
) -> None:
    """
    Write `report.html`, and what belongs to it, all at once; whatever texts hold is shown as it is.

    Args:
        folder (`str` or `os.PathLike`): made if it is not there.
        title (`str`): of the page.
        sections (`Sequence[Section]`): its parts, in order.
        subtitle (`str`, *optional*): what is below the title.
        pictures (`str`, *optional*, defaults to `"embedded"`):
            Whether images are in the page, or in the folder `report_pictures` `"beside"` it. Masks and probabilities
            are in the page, as a browser does not let a page read the pixels of other files.
        files (`Mapping[str, bytes]`, *optional*): by name, to be written beside the page.

    Raises:
        `ValueError`: `pictures` is something else.

    Example:

        ```python
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory

        >>> from sa2va_trl.evaluation.page import Section, Table, write_page

        >>> with TemporaryDirectory() as folder:
        ...     table = Table(["stage", "Dice"], [["<1>", 0.71]], "Dice of a stage")
        ...     write_page(folder, "A stage", [Section("Dice", [table])])
        ...     "&lt;1&gt;" in (Path(folder) / "report.html").read_text()
        True

        ```
    """
    if pictures not in HOW:
        raise ValueError(f"report_pictures must be {' or '.join(HOW)}, got {pictures!r}.")
    folder, beside = Path(folder), {}

    def source(data: bytes) -> str:
        kind = "png" if data[:4] == b"\x89PNG" else "jpeg"
        if pictures == "embedded":
            return data_address(data, kind)
        name = f"{len(beside):04}.{kind}"
        beside[name] = data
        return f"{PICTURES}/{name}"

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"source": source, "data_address": data_address, "shown": shown, "raw": raw}
    colours = {name: f"rgb({', '.join(map(str, colour))})" for name, colour in COLOURS.items()}
    text = environment.get_template("page.html").render(
        title=title, subtitle=subtitle, sections=sections, colours=colours
    )
    names = [REPORT, *(files or {}), *([PICTURES] if beside else [])]
    with replaced_together(folder, names) as new:
        (new / REPORT).write_text(text, encoding="utf-8")
        for name, data in (files or {}).items():
            (new / name).write_bytes(data)
        if beside:
            (new / PICTURES).mkdir()
            for name, data in beside.items():
                (new / PICTURES / name).write_bytes(data)


def data_address(data: bytes, kind: str = "png") -> str:
    """The bytes of a picture as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shown(value: Any) -> str:
    """A cell as it is read: numbers with four digits, and a dash where there is nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def raw(value: Any) -> str | None:
    """What a cell is sorted by where it is a number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(value) if is_number and not math.isnan(value) else None
