"""
The picture at the top of the README: frames of a generated run, and what a model draws for three prompts, each frame
on its own and each answer written by the model.

    python docs/strip.py --model_name_or_path tiny
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sa2va_trl.data.angiography import SyntheticVideo, generate_video
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model


PICTURE = Path(__file__).parent / "pictures" / "strip.png"
# What is asked for, and the colour of its mask.
PROMPTS = {
    "blood vessel": (60, 200, 90),
    "catheter": (255, 170, 40),
    "diaphragm": (90, 150, 255),
}
# Runs of a seed that no model has learned from.
SEED, FRAMES_PER_VIDEO = 20_261, 16
FRAMES = (6, 9, 12)
SIDE, GAP, HEAD, FONT = 208, 6, 48, 16


def first_with(structures: tuple[str, ...], seed: int) -> SyntheticVideo:
    """The first run that shows all structures in all of the frames."""
    for number in range(100):
        video = generate_video(seed, number, FRAMES_PER_VIDEO, 256, "named", 1)
        masks = video.structures
        if all(name in masks and masks[name][list(FRAMES)].any(axis=(1, 2)).all() for name in structures):
            return video
    raise ValueError(f"None of 100 runs of seed {seed} shows {', '.join(structures)} in frames {FRAMES}.")


def mixed(grey: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """What of a picture shines through a mask."""
    return 0.3 * grey + 0.7 * np.array(colour)


def drawn(frame: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """A grey frame with a mask in colour, in the size of the strip."""
    picture = np.repeat(frame[..., None], 3, axis=2).astype(np.float32)
    picture[mask] = mixed(picture[mask], colour)
    return Image.fromarray(picture.round().astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def lay_out(heads: list[str], rows: list[list[Image.Image]]) -> Image.Image:
    """Columns of pictures below their headings."""
    width, height = ((SIDE + GAP) * n - GAP for n in (len(heads), len(rows)))
    strip = Image.new("RGB", (width, height + HEAD), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(FONT)
    for column, head in enumerate(heads):
        draw.multiline_text((column * (SIDE + GAP), 2), head, fill=(40, 44, 52), font=font, spacing=3)
        for row, pictures in enumerate(rows):
            strip.paste(pictures[column], (column * (SIDE + GAP), HEAD + row * (SIDE + GAP)))
    return strip


def few_colours(strip: Image.Image) -> Image.Image:
    """In greys and shades of the masks' colours alone, so that the file is small."""
    shades = [(grey, grey, grey) for grey in range(0, 256, 3)]
    for colour in PROMPTS.values():
        shades += [mixed(np.array(grey), colour).astype(int).tolist() for grey in range(0, 256, 8)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for shade in shades for value in shade])
    return strip.quantize(palette=palette, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="tiny")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", type=Path, default=PICTURE)
    args = parser.parse_args()

    model, processor = load_model(ModelArguments(model_name_or_path=args.model_name_or_path))
    video = first_with(tuple(PROMPTS), args.seed)
    rows = []
    for index in FRAMES:
        frame = video.frames[index]
        row = [drawn(frame, np.zeros(frame.shape, dtype=bool), (0, 0, 0))]
        for phrase, colour in PROMPTS.items():
            text = f"Please segment the {phrase}."
            result = model.eval().segment(
                image=Image.fromarray(frame), text=text, processor=processor, max_new_tokens=48
            )
            print(f"frame {index}: {text} {result.text}")
            row.append(drawn(frame, result.masks.cpu().numpy().any(axis=0), colour))
        rows.append(row)
    heads = ["A generated run", *(f"“Please segment\nthe {phrase}.”" for phrase in PROMPTS)]
    args.output.parent.mkdir(exist_ok=True)
    few_colours(lay_out(heads, rows)).save(args.output, optimize=True)
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
