"""Rows that speak of regions, small."""

from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from rows import FEATURES, mask, noise

from sa2va_trl.models.regions import box_mask


SIZE = (48, 40)
BOXES = {"masks": List(ImageFeature(mode="L")), "boxes": List(List(Value("float32")))}


def chat(answer):
    return [{"role": "user", "content": "What is region1?"}, {"role": "assistant", "content": answer}]


def described():
    """A row without a mask and, so far, without regions."""
    return {name: None for name in FEATURES} | {
        "image": noise(1),
        "masks": [],
        "phrases": [],
        "messages": chat("A box."),
        "sample_id": "described",
        "regions": [[0, 0, 24, 40]],
    }


def rows_with_regions(form="boxes"):
    """Rows that describe two regions, segment one, have their own mask as one, have none; and one of text."""
    box = [8, 10, 40, 30]
    rows = [
        {"regions": [[0, 0, 24, 40], [24, 10, 48, 40]], "messages": chat("Left, right."), "sample_id": "described"},
        {"regions": [box], "messages": chat("It is [SEG]."), "masks": [mask(0)], "sample_id": "segmented"},
        {"regions": [box], "phrases": ["box"], "masks": [box_mask(box, SIZE)], "sample_id": "drawn"},
        {"regions": None, "phrases": ["vessel"], "masks": [mask(1)], "sample_id": "without"},
        {"image": None, "messages": chat("A text."), "sample_id": "text"},
    ]
    rows = [{"image": noise(number), **row} for number, row in enumerate(rows)]
    if form == "masks":
        for row in rows:
            row["regions"] = row.get("regions") and [box_mask(region, SIZE) for region in row["regions"]]
    features = Features({**FEATURES, "regions": BOXES[form or "boxes"]})
    return Dataset.from_list([{name: row.get(name) for name in features} for row in rows], features=features)
