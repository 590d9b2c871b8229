"""Random changes of training rows, the same for all pictures of a row."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage


@dataclass(frozen=True)
class Augmentation:
    """
    Random changes of a training row, the same for all of its images and masks. Nothing is changed by default.

    Flips and rotations suit images without an up and a left, such as angiograms; keep them off when phrases say
    "left".

    Args:
        flip (`float`, *optional*, defaults to 0.0): probability of a horizontal flip.
        vertical_flip (`float`, *optional*, defaults to 0.0): probability of a vertical flip.
        rotation (`float`, *optional*, defaults to 0.0): largest rotation in degrees, either way.
        scale (`float`, *optional*, defaults to 0.0): largest relative change of size, either way; below 1.
        shift (`float`, *optional*, defaults to 0.0): largest shift as a share of each side, either way.
        gamma (`float`, *optional*, defaults to 0.0): largest |log2| of the exponent that grey values are raised to.
        contrast (`float`, *optional*, defaults to 0.0): largest relative change of contrast, either way.
        motion_blur (`float`, *optional*, defaults to 0.0):
            Longest motion during the exposure, in a straight line of any direction, as a share of the longer side.
            Masks stay: the motion is symmetric about them.

    Raises:
        `ValueError`: a value is negative, a probability above 1, or `scale` or `contrast` not below 1.
    """

    flip: float = 0.0
    vertical_flip: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    gamma: float = 0.0
    contrast: float = 0.0
    motion_blur: float = 0.0

    def __post_init__(self):
        limits = {"flip": 1, "vertical_flip": 1, "scale": 0.99, "contrast": 0.99, "motion_blur": 1}
        for name, value in vars(self).items():
            if not (math.isfinite(value) and 0 <= value <= limits.get(name, math.inf)):
                raise ValueError(f"augmentation.{name} must lie in [0, {limits.get(name, 'inf')}], got {value}.")

    def __call__(
        self, images: list[Image.Image], masks: list[Image.Image], rng: np.random.Generator
    ) -> tuple[list[Image.Image], list[Image.Image]]:
        """
        Args:
            images (`list[PIL.Image.Image]`): of one size; they come back in RGB.
            masks (`list[PIL.Image.Image]`): of the same size, 0/255.
            rng (`np.random.Generator`): source of every random number.

        Returns:
            Changed images and masks, at their own size; what moves in from outside is black and empty.
        """
        # Drawn in one go, so that a row's geometry does not depend on which of the options are on.
        draws = rng.uniform(-1, 1, 6)
        flips = rng.uniform(0, 1, 2)
        length, direction = rng.uniform(0, 1, 2)
        geometry = (
            flips[0] < self.flip,
            flips[1] < self.vertical_flip,
            self.rotation * draws[0],
            1 + self.scale * draws[1],
            self.shift * draws[2],
            self.shift * draws[3],
        )
        gamma, contrast = 2 ** (self.gamma * draws[4]), 1 + self.contrast * draws[5]
        images = [_warp(image.convert("RGB"), geometry, Image.Resampling.BILINEAR) for image in images]
        masks = [_warp(mask, geometry, Image.Resampling.NEAREST) for mask in masks]
        if self.motion_blur:
            images = [
                _blur(image, self.motion_blur * length * max(image.size), math.pi * direction) for image in images
            ]
        if self.gamma or self.contrast:
            grey = np.linspace(0, 1, 256) ** gamma
            table = np.clip(np.rint(255 * (0.5 + contrast * (grey - 0.5))), 0, 255).astype(np.uint8).tolist()
            images = [image.point(table * 3) for image in images]
        return images, masks


def _warp(image: Image.Image, geometry: tuple, resample: Image.Resampling) -> Image.Image:
    flip, vertical_flip, degrees, scale, shift_x, shift_y = geometry
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if vertical_flip:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if degrees == 0 and scale == 1 and shift_x == 0 and shift_y == 0:
        return image
    width, height = image.size
    # PIL wants the map from output to input: undo the shift, then turn and scale about the centre.
    cos, sin = (f(math.radians(degrees)) / scale for f in (math.cos, math.sin))
    x, y = width / 2 + shift_x * width, height / 2 + shift_y * height
    matrix = (cos, sin, width / 2 - cos * x - sin * y, -sin, cos, height / 2 + sin * x - cos * y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample)


def _blur(image: Image.Image, length: float, angle: float) -> Image.Image:
    """The mean of an image over a straight motion of `length` pixels about its place; borders are continued."""
    steps = math.ceil(length) + 1
    if steps == 1:
        return image
    pixels = np.asarray(image, dtype=np.float32)
    total = np.zeros_like(pixels)
    for way in np.linspace(-length / 2, length / 2, steps):
        shift = (way * math.sin(angle), way * math.cos(angle), 0)
        total += ndimage.shift(pixels, shift, order=1, mode="nearest")
    return Image.fromarray(np.rint(total / steps).clip(0, 255).astype(np.uint8))
