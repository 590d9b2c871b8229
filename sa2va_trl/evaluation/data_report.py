"""What a report of data shows before anything is trained on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import plots
from .page import Numbers, Plot, Section, Sheet, Table, Words


MEASURED = {
    "width": "pixels",
    "height": "pixels",
    "area": "share of the image that the mask covers",
    "thickness": "pixels, mean along the skeleton",
    "components": "connected components of the mask",
}
MOST_PHRASES = 30


def data_sections(
    rows: pd.DataFrame, report: Mapping[str, Any], pictures: Sequence[tuple[bytes, str]], fed: str
) -> list[Section]:
    """
    Args:
        rows (`pandas.DataFrame`): one row each, from [`~data.inspection.inspect_rows`].
        report (`Mapping`): from [`~data.inspection.data_report`].
        pictures (`Sequence[tuple[bytes, str]]`): images with their masks as they are fed, and captions.
        fed (`str`): how they are fed.

    Returns:
        `list[Section]`: of the page.
    """
    splits = report["splits"]
    entries = [(name, str(split["rows"]), _groups(split)) for name, split in splits.items()]
    found = Section("Found", [Numbers(entries), *_findings(report)])
    drawn = []
    for name, label in MEASURED.items():
        if len(values := plots.finite(rows[name].astype(float))):
            svg = plots.to_svg(plots.histogram(values, name, label), f"measured-{name}")
            drawn.append(Plot(svg, f"{name} of {len(values)} rows: {label}.", "half"))
    sizes = [[size, split, count] for split, own in splits.items() for size, count in own["sizes"].items()]
    phrases = pd.Series([phrase for own in rows["phrases"] for phrase in own], dtype=object).value_counts()
    listed = Table(["phrase", "objects"], [[name, int(count)] for name, count in phrases.items()], "Phrases.")
    table = rows.drop(columns=["digest", "phrases"]).convert_dtypes()  # whole numbers stay whole
    table.insert(0, "row", table.pop("sample_id"))
    return [
        found,
        Section("As they are fed", [Words(fed), Sheet(pictures)]),
        Section("Measured", [*drawn, Table(["size", "split", "rows"], sizes, "Sizes by split."), listed]),
        Section("Rows", [Table.of_frame(table, "Every row.", choices="split", filters=True)]),
    ]


def _groups(split: Mapping[str, Any]) -> str:
    groups = [f"{split[name]} {name}" for name in ("patients", "videos") if name in split]
    return f"rows, {', '.join(groups)}" if groups else "rows, of patients that are not known"


def _findings(report: Mapping[str, Any]) -> list[Words | Table]:
    parts = []
    if report["shared"]:
        rows = [[" and ".join(own["splits"]), own["column"], ", ".join(own["values"])] for own in report["shared"]]
        parts.append(Table(["splits", "column", "values"], rows, "Not held out: splits share these."))
    if report["duplicates"]:
        rows = [[", ".join(own["rows"]), "yes" if own["over_splits"] else "no"] for own in report["duplicates"]]
        parts.append(Table(["rows", "over splits"], rows, "Rows with the same pixels.", choices="over splits"))
    if report["near_duplicates"]:
        rows = [[*own["rows"], own["correlation"]] for own in report["near_duplicates"]]
        parts.append(Table(["row", "looks like", "correlation"], rows, "Rows of different splits that look alike."))
    if report["suspicious"]:
        rows = [[own["row"], "; ".join(own["reasons"])] for own in report["suspicious"]]
        parts.append(Table(["row", "why"], rows, "Rows to look at.", filters=True))
    named = {
        "shared": "no patient, video or sample is in two splits",
        "duplicates": "no two rows have the same pixels",
        "near_duplicates": "no rows of different splits look alike",
        "suspicious": "no row is odd",
    }
    if good := [text for name, text in named.items() if not report[name]]:
        parts.append(Words(f"{'; '.join(good)}.".capitalize()))
    return parts
