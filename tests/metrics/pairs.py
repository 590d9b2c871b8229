"""Pairs of masks that tests of metrics look at."""

import json

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw
from scipy import ndimage


EMPTY, FULL = np.zeros((9, 12), dtype=bool), np.ones((9, 12), dtype=bool)
ONE = np.zeros((9, 12), dtype=bool)
ONE[4, 5] = True


def mask(*rows):
    """A mask from lines of text, `#` for foreground."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def blobs(seed, shape=(48, 60), smooth=2.0, share=0.3):
    """Smooth random shapes with holes."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return noise > np.quantile(noise, 1 - share)


def fixed_pairs():
    """Random, empty, full and one-pixel masks against each other, by name."""
    masks = {"empty": EMPTY, "full": FULL, "one": ONE, "noise": np.random.default_rng(1).random((9, 12)) > 0.5}
    found = {f"{a}-{b}": (masks[a], masks[b]) for a in masks for b in masks}
    for seed in range(4):
        found[f"blobs-{seed}"] = (blobs(seed), blobs(seed + 1 if seed % 2 else seed, smooth=1.5))
        found[f"shaken-{seed}"] = (blobs(seed) ^ (np.random.default_rng(seed).random((48, 60)) > 0.97), blobs(seed))
    return found


FIXED = fixed_pairs()
BOTH = [name for name, (pred, target) in FIXED.items() if pred.any() and target.any()]


def real_pairs(shared, count=2):
    """Real masks from the shared data, and the same with gaps and shaken outlines."""
    rows = json.loads((shared / "data" / "arcade" / "test" / "annotations.json").read_text())[:count]
    for seed, row in enumerate(rows):
        picture = Image.new("L", (512, 512))
        for polygon in row["mask"][0]:
            ImageDraw.Draw(picture).polygon([tuple(point) for point in np.reshape(polygon, (-1, 2)).tolist()], fill=1)
        target = np.asarray(picture) > 0
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=target.shape), 4)
        yield (ndimage.gaussian_filter(target.astype(float), 2) + 0.2 * noise / noise.std()) > 0.5, target


@st.composite
def mask_pairs(draw, max_side=9):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=max_side))
    return tuple(draw(hnp.arrays(bool, shape)) for _ in "pt")


# What turns an image over, which no metric of topology, boundary or size may notice.
TURNS = (np.fliplr, np.flipud, np.transpose)
