"""A page of what was measured and drawn, to be opened in a browser: one file beside its pictures, without scripts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment

from ..files import replaced_together


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 0 auto; padding: 1rem }
pre { overflow-x: auto; font-size: 0.85rem }
figure { margin: 0 0 1.5rem }
img { max-width: 100%; height: auto; image-rendering: auto }
figcaption { font-size: 0.9rem; opacity: 0.8; overflow-wrap: anywhere }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.table %}<pre>{{ section.table }}</pre>{% endif %}
{% for picture, caption in section.pictures %}
<figure><img src="{{ picture | urlencode }}" alt="{{ caption }}" loading="lazy">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
</body>
</html>
"""


class Section(NamedTuple):
    """
    A part of the page.

    Args:
        title (`str`): its heading.
        text (`str`, *optional*): what it shows.
        table (`str`, *optional*): a table in plain text, whose columns stay as they are.
        pictures (sequence of `tuple[str, str]`, *optional*): files, relative to the page, and their captions.
    """

    title: str
    text: str = ""
    table: str = ""
    pictures: Sequence[tuple[str, str]] = ()


def write_report(path: str | os.PathLike, title: str, sections: Sequence[Section]) -> None:
    """
    Write the page; whatever texts hold is shown as it is.

    Args:
        path (`str` or `os.PathLike`): of the page.
        title (`str`): its heading.
        sections (sequence of `Section`): its parts, in order.

    Example:

        ```python
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory

        >>> from sa2va_trl.evaluation.report import Section, write_report

        >>> with TemporaryDirectory() as folder:
        ...     write_report(Path(folder) / "report.html", "Two stages", [Section("Dice", table="stage 1  0.71")])
        ...     "stage 1  0.71" in (Path(folder) / "report.html").read_text()
        True

        ```
    """
    path = Path(path)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    with replaced_together(path.parent, [path.name]) as new:
        (new / path.name).write_text(template.render(title=title, sections=sections), encoding="utf-8")
