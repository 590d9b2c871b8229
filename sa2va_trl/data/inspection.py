"""What one wants to know of data before anything is trained on them: what each row is like, and what is odd."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy import ndimage

from ..metrics import measure
from .columns import GROUP_COLUMNS, IDENTIFIERS
from .layout import normalize_row
from .near_duplicates import duplicates, near_duplicates, pixel_digest, thumbnail
from .stored import plain_rows


# What makes a row worth a look. Pixels, shares, sides.
TINY, COVERS, SMALL_SIDE, LONG = 10, 0.9, 64, 3.0
EIGHT = np.ones((3, 3))
BURNED_IN = {
    "yes": "text is burned into it, as its file says",
    "suspected": "bright text seems to stand still over its clip",
}


def inspect_rows(dataset: Dataset, split: str) -> Iterable[tuple[dict[str, Any], np.ndarray]]:
    """
    Measurements of every row with an image, read as training reads it.

    Args:
        dataset (`datasets.Dataset`): checked rows.
        split (`str`): what it is called.

    Yields:
        `split`, the identifiers, `width`, `height`, `frames`, `objects`, `phrases`, `burned_in_text` (`None` where
        nothing is said of it), `digest` (of the pixels), and of
        all masks of the row together `area` (share of the picture), `thickness` (pixels), `components` and
        `smallest` (pixels of the smallest of them; 8 neighbours connect), `None` where there is nothing to measure;
        and its thumbnail.
    """
    for row in plain_rows(dataset):
        read = normalize_row(row)
        if not read["images"]:
            continue
        image, frames = read["images"][0], len(read["images"])
        facts = {"split": split, **{name: row[name] for name in IDENTIFIERS if row.get(name) is not None}}
        facts |= {"width": image.width, "height": image.height, "frames": frames}
        facts |= {"objects": len(read["masks"]) // frames, "phrases": read["phrases"] or []}
        facts["burned_in_text"] = row.get("burned_in_text")
        facts["digest"] = "".join(pixel_digest(own) for own in read["images"])
        facts |= _measured(read)
        yield facts, thumbnail(image)


def _measured(read: dict[str, Any]) -> dict[str, Any]:
    if not read["masks"]:
        return dict.fromkeys(("area", "thickness", "components", "smallest"))
    frames = len(read["images"])
    masks = np.stack([np.asarray(mask) > 0 for mask in read["masks"]])
    masks = masks.reshape(-1, frames, *masks.shape[1:]).any(0)
    values = [measure(np.zeros(mask.shape), mask) for mask in masks]
    thickness = [value["thickness"] for value in values if not np.isnan(value["thickness"])]  # of an empty one it is
    sizes = []
    for mask in masks:
        labels, _ = ndimage.label(mask, EIGHT)
        sizes += np.bincount(labels.ravel())[1:].tolist()
    return {
        "area": float(np.mean([value["area"] for value in values])),
        "thickness": float(np.mean(thickness)) if thickness else None,
        "components": len(sizes),
        "smallest": min(sizes, default=None),
    }


def suspicious(facts: Mapping[str, Any]) -> list[str]:
    """
    Why somebody should look at a row.

    Args:
        facts (`Mapping`): from [`inspect_rows`].

    Returns:
        `list[str]`: reasons; none of an ordinary row.
    """
    reasons, sides = [], sorted((facts["width"], facts["height"]))
    if facts["area"] == 0:
        reasons.append("the mask is empty")
    elif facts["area"] is not None and facts["area"] > COVERS:
        reasons.append(f"the mask covers {facts['area']:.0%} of the image: is it inverted?")
    if facts["smallest"] is not None and facts["smallest"] < TINY and facts["components"] > 1:
        reasons.append(f"a component of {facts['smallest']:.0f} pixels, of {facts['components']:.0f}")
    if sides[0] < SMALL_SIDE:
        reasons.append(f"the image is only {facts['width']} x {facts['height']} pixels")
    if sides[1] > LONG * sides[0]:
        reasons.append(f"the image is {sides[1] / sides[0]:.1f} times as long as it is wide")
    if facts.get("burned_in_text") in BURNED_IN:
        reasons.append(BURNED_IN[facts["burned_in_text"]])
    return reasons


def data_report(rows: pd.DataFrame, thumbnails: np.ndarray, limit: float) -> dict[str, Any]:
    """
    What all rows are like together, ready for JSON.

    Args:
        rows (`pandas.DataFrame`): one row each, of all splits, from [`inspect_rows`].
        thumbnails (`np.ndarray` of shape `(rows, 1024)`): from there, too.
        limit (`float`): correlation from which on images look alike.

    Returns:
        `dict`: `splits` (by name `rows`, `patients`, `videos`, `sizes`, `phrases`), `shared` (identifiers that two
        splits have in common), `duplicates` (rows with equal pixels, and whether they are in different splits),
        `near_duplicates` (pairs over splits that are no duplicates) and `suspicious`.
    """
    names = [f"{split}/{name}" for split, name in zip(rows["split"], rows["sample_id"], strict=True)]
    splits = {}
    for split, own in rows.groupby("split", sort=False):
        sizes = Counter(f"{width} x {height}" for width, height in zip(own["width"], own["height"], strict=True))
        splits[split] = {
            "rows": len(own),
            **{f"{group[:-3]}s": int(own[group].nunique()) for group in GROUP_COLUMNS[:2] if group in own},
            "sizes": dict(sizes.most_common()),
            "phrases": dict(Counter(phrase for phrases in own["phrases"] for phrase in phrases).most_common()),
        }
    shared = []
    for one, other in combinations(splits, 2):
        for group in (name for name in GROUP_COLUMNS if name in rows):
            first, second = (set(rows.loc[rows["split"] == split, group].dropna()) for split in (one, other))
            if common := sorted(map(str, first & second)):
                shared.append({"splits": [one, other], "column": group, "values": common})
    groups = duplicates(rows["digest"])
    equal = [
        {"rows": [names[place] for place in own], "over_splits": rows["split"].iloc[own].nunique() > 1}
        for own in groups
    ]
    same = {frozenset(pair) for own in groups for pair in combinations(own, 2)}
    alike = [
        {"rows": [names[one], names[other]], "correlation": correlation}
        for one, other, correlation in near_duplicates(thumbnails, rows["split"].tolist(), limit)
        if frozenset((one, other)) not in same
    ]
    entries = rows.astype(object).where(rows.notna(), None).to_dict("records")
    odd = [
        {"row": name, "reasons": reasons}
        for name, facts in zip(names, entries, strict=True)
        if (reasons := suspicious(facts))
    ]
    return {"splits": splits, "shared": shared, "duplicates": equal, "near_duplicates": alike, "suspicious": odd}
