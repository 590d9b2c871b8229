"""The motion of the picture between the frames of a clip, and what it carries along."""

import numpy as np
from scipy import ndimage
from skimage.registration import optical_flow_ilk


def backward_flows(frames: np.ndarray) -> np.ndarray:
    """
    Where each pixel of a frame was in the frame before, by iterative Lucas-Kanade (Le Besnerais and Champagnat, ICIP
    2005, as `skimage.registration.optical_flow_ilk`). Some tenths of a second a pair of 512 pixels.

    Args:
        frames (`np.ndarray` of shape `(T, H, W)`): grey values, in [0, 1].

    Returns:
        `np.ndarray` of shape `(T - 1, 2, H, W)`: rows and columns to go, in pixels.
    """
    pairs = zip(frames, frames[1:], strict=False)
    flows = [optical_flow_ilk(after, before, dtype=np.float32) for before, after in pairs]
    return np.stack(flows) if flows else np.empty((0, 2, *frames.shape[1:]), dtype=np.float32)


def carried(before: np.ndarray, flow: np.ndarray, order: int, outside: float) -> np.ndarray:
    """
    What was drawn on a frame, carried to the next one by the motion of the picture.

    Args:
        before (`np.ndarray` of shape `(H, W)`): on the earlier frame.
        flow (`np.ndarray` of shape `(2, H, W)`): one of [`backward_flows`].
        order (`int`): 0 for the nearest pixel, as a mask has no values in between; 1 for bilinear.
        outside (`float`): of what comes from outside the frame.

    Returns:
        `np.ndarray` of shape `(H, W)`: on the later frame, of the type of `before`.
    """
    places = np.indices(before.shape) + flow
    return ndimage.map_coordinates(before, places, order=order, mode="constant", cval=outside)
