"""
How often text that is written over generated cine runs is found, and how often it is seen where there is none.

    OMP_NUM_THREADS=1 python recipes/benchmarks/burned_in.py

Runs are as those of `frame_samplers.py`; each is looked at as it is, and with a name and a date drawn into a corner,
in white or grey, of several sizes, with or without a dark edge. What is looked at is what `prepare_data` looks at:
eight frames of a run, compressed as JPEG or not.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sa2va_trl.data.angiography import generate_video
from sa2va_trl.files import write_json
from sa2va_trl.media.burned_in import static_text


TEXTS = {
    "white, 16 pixels high": {"size": 16},
    "white, 12 pixels": {"size": 12},
    "white, 9 pixels": {"size": 9},
    "white with a dark edge, 12 pixels": {"size": 12, "edge": 1},
    "light grey (200), 12 pixels": {"size": 12, "fill": 200},
    "grey (150), 12 pixels": {"size": 12, "fill": 150},
    "black, 12 pixels": {"size": 12, "fill": 0},
    "white, 12 pixels, JPEG of quality 80": {"size": 12, "jpeg": 80},
}


def written(frame: Image.Image, text: str, size: int, fill: int = 255, edge: int = 0, jpeg: int = 0) -> Image.Image:
    """A frame with a text in its lower left corner."""
    frame = frame.copy()
    font = ImageFont.load_default(size)
    place = (8, frame.height - 2 * size)
    ImageDraw.Draw(frame).text(place, text, fill=fill, font=font, stroke_width=edge, stroke_fill=0)
    return compressed(frame, jpeg) if jpeg else frame


def compressed(frame: Image.Image, quality: int) -> Image.Image:
    """A frame as a JPEG has it."""
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def main() -> None:
    """Measure, print and, if asked to, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--output_dir", type=Path)
    args = parser.parse_args()
    found, seconds = {}, 0.0
    for number in range(args.runs):
        other = {"scene": "named", "hospital": 1 + number // 2 % 2} if number % 2 else {}
        video = generate_video(7, number, 16, args.size, injection=True, **other)
        frames = [Image.fromarray(frame).convert("L") for frame in video.frames[1::2]]
        start = time.perf_counter()
        found.setdefault("none", []).append(bool(static_text(frames)))
        seconds += time.perf_counter() - start
        found.setdefault("none, JPEG of quality 80", []).append(
            bool(static_text([compressed(frame, 80) for frame in frames]))
        )
        for name, options in TEXTS.items():
            drawn = [written(frame, f"ROE^JANE {1930 + number % 70}-01-02", **options) for frame in frames]
            found.setdefault(name, []).append(bool(static_text(drawn)))
    rates = {name: float(np.mean(own)) for name, own in found.items()}
    for name, rate in rates.items():
        print(f"{name:40s} {100 * rate:5.1f} %")
    print(f"{1000 * seconds / args.runs:.1f} ms a run")
    if args.output_dir:
        write_json(args.output_dir / "burned_in.json", {"runs": args.runs, "size": args.size, "suspected": rates})


if __name__ == "__main__":
    main()
