"""Pixels as the published models take them: budgets, sizes and statistics."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import GotOcr2ImageProcessorPil, PreTrainedConfig, Qwen2VLImageProcessorPil
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)


# Least and most pixels of an image in the Qwen families, in the words of their image processor. Sa2VA counts in
# Qwen2.5-VL's unit of 28 pixels for Qwen3-VL too, whose unit is 32.
QWEN_IMAGE_SIZE = {"shortest_edge": 512 * 28 * 28, "longest_edge": 2048 * 28 * 28}
# A frame of a clip has a quarter. That is what Sa2VA was trained with; its own inference gives a frame the budget of a
# still image (`prompt_style="official"`).
QWEN_CLIP_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 512 * 28 * 28}


def size_of_first_step(width: int, height: int) -> tuple[int, int]:
    """
    Width and height that official Qwen inference first resizes an image to (`smart_resize` of qwen-vl-utils 0.0.14
    with its own limits; Sa2VA's budget comes with the second step).

    Args:
        width, height (`int`): of the image, in pixels.

    Raises:
        `ValueError`: one side is more than 200 times the other.
    """
    if max(width, height) > 200 * min(width, height):
        raise ValueError(f"Qwen takes no image whose sides differ more than 200 times: {width} x {height} pixels.")
    # 28 pixels for Qwen3-VL too: the official code calls it without a size of patches.
    unit, least, most = 28, 4 * 28 * 28, 16384 * 28 * 28
    sides = [max(unit, round(side / unit) * unit) for side in (width, height)]
    if sides[0] * sides[1] > most:
        shrink = math.sqrt(width * height / most)
        sides = [math.floor(side / shrink / unit) * unit for side in (width, height)]
    elif sides[0] * sides[1] < least:
        grow = math.sqrt(least / (width * height))
        sides = [math.ceil(side * grow / unit) * unit for side in (width, height)]
    return sides[0], sides[1]


def grounding_pixels(images: list[Image.Image], side: int) -> torch.Tensor:
    """
    SAM 2's pixels: resized to the square without keeping the aspect (bicubic), scaled to [0, 1], ImageNet statistics.

    Args:
        images (`list[PIL.Image.Image]`): any size and mode.
        side (`int`): of the square.

    Returns:
        `torch.Tensor` of shape `(images, 3, side, side)`, float32.
    """
    size = (side, side)
    if not images:
        return torch.zeros(0, 3, *size)
    resized = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    return standardized(pixels, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def standardized(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """
    Grey values scaled to [0, 1], less their mean, over their standard deviation: the very numbers of transformers'
    NumPy, in a fraction of its time, since nothing is in double precision or a new array.

    Args:
        pixels (`torch.Tensor` of shape `(images, channels, height, width)`): uint8.
        mean, std (`Sequence[float]`): of each channel, in [0, 1].

    Returns:
        `torch.Tensor` of the same shape, float32 and contiguous.
    """
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, std = (torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1, 1) for numbers in (mean, std))
    return values.sub_(mean).div_(std)


def published_image_processor(vlm_config: PreTrainedConfig) -> GotOcr2ImageProcessorPil | Qwen2VLImageProcessorPil:
    """
    The image processor of a published model. The official code has its own limits of tiles and pixels, whatever the
    files say: `preprocessor_config.json` carries the budget of the model that Sa2VA started from.

    Args:
        vlm_config (`PreTrainedConfig`): of the VLM.
    """
    vision = vlm_config.vision_config
    if vlm_config.model_type == "internvl":
        height, width = vision.image_size
        return GotOcr2ImageProcessorPil(
            size={"height": height, "width": width},
            crop_to_patches=True,
            min_patches=1,
            max_patches=12,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )
    is_first = vlm_config.model_type == "qwen2_5_vl"
    return Qwen2VLImageProcessorPil(
        size=dict(QWEN_IMAGE_SIZE),
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        image_mean=OPENAI_CLIP_MEAN if is_first else IMAGENET_STANDARD_MEAN,
        image_std=OPENAI_CLIP_STD if is_first else IMAGENET_STANDARD_STD,
    )
