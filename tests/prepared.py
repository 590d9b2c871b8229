"""Folders of images and masks with something to see in each, as they are made into data sets."""

import io

import numpy as np
import PIL.Image


def shown(number, size=(40, 32)):
    """A picture like no other: coarse noise, smooth."""
    coarse = np.random.default_rng(number).integers(30, 220, (6, 6), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC)


def write_runs(folder, patients=3, frames=4, names=("image", "mask")):
    """`P00_f0.jpg` and so on, with a mask each, larger from patient to patient; the last of each patient is a PNG."""
    for kind in names:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for patient in range(patients):
        for frame in range(frames):
            name = f"P{patient:02d}_f{frame}"
            picture = shown(100 * patient + frame)
            suffix = "png" if frame == frames - 1 else "jpg"
            picture.save(folder / names[0] / f"{name}.{suffix}")
            mask = np.zeros((32, 40), dtype=np.uint8)
            mask[4 : 8 + patient, 3 : 12 + frame] = 255
            PIL.Image.fromarray(mask).save(folder / names[1] / f"{name}.png")
    return folder


def contents(folder):
    """Bytes of all files below a folder, by their paths."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def pixels(row):
    """What a row shows: its image, and its masks by phrase."""
    image = row["image"] if isinstance(row["image"], PIL.Image.Image) else PIL.Image.open(io.BytesIO(row["image"]))
    masks = [np.asarray(mask).tobytes() for mask in row["masks"]]
    return np.asarray(image.convert("RGB")).tobytes(), list(zip(row["phrases"], masks, strict=True))
