"""Stored rows of every style, legal but for what a test names."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, List, Value

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.errors import DatasetError


SINGLE = Features({"image": Image(), "mask": Image(mode="L"), "phrase": Value("string"), "sample_id": Value("string")})


CLIP = Features(
    {
        "images": List(Image()),
        "masks": List(Image(mode="L")),
        "phrases": List(Value("string")),
        "sample_id": Value("string"),
    }
)


CHAT = Features(
    {
        "image": Image(),
        "masks": List(Image(mode="L")),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "sample_id": Value("string"),
    }
)


def png(array):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.asarray(array, dtype=np.uint8)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def image(height=6, width=8):
    return png(np.full((height, width, 3), 90))


def mask(height=6, width=8, value=255):
    array = np.zeros((height, width))
    array[1:3, 2:5] = value
    return png(array)


def jpeg_file(path, height=64, width=64):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path)
    return path


def huge_png(width=30_000, height=30_000):
    """A PNG that is valid up to its header: nothing that decodes it can succeed."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return {"bytes": data, "path": None}


def deep_png():
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((6, 8), 3000, dtype=np.uint16)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def without_mode(feature):
    """An image column that is read as it is stored: `mode="L"` would convert a mask before anybody can look at it."""
    if isinstance(feature, List) and isinstance(feature.feature, Image):
        return List(Image())
    return Image() if isinstance(feature, Image) else feature


def make(features, *rows):
    """A dataset of rows that are legal but for what each row names; sample_ids are s0, s1, ..."""
    legal = {
        "image": image(),
        "images": [image(), image()],
        "mask": mask(),
        "masks": [mask(), mask()] if "images" in features else [mask()],
        "phrase": "vessel",
        "phrases": ["vessel"],
        "messages": chat("Sure, [SEG]."),
    }
    rows = [{**legal, "sample_id": f"s{number}", **row} for number, row in enumerate(rows)]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def chat(answer, question="Segment the vessel."):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def problems_of(dataset, **kwargs):
    with pytest.raises(DatasetError) as caught:
        check_dataset(dataset, **kwargs)
    return caught.value
