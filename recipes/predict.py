"""
Segment an image, a folder of images or a video: masks, probability maps, overlays and a JSON.

    python recipes/predict.py
    python recipes/predict.py --model_name_or_path MODEL --input IMAGE --prompt "Please segment the blood vessel."

With nothing else, the tiny model is asked for three things on the frames of a generated angiogram.

A TIFF of several pages and an animated GIF, PNG or WebP are videos. In a folder every image is segmented on its own,
and so is every page of such a file. Whatever else the folder holds is named and left out.

The results of an earlier call in `output_dir` are replaced, as soon as all of the new ones are there.
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("predict")
