"""What is measured of the frames of a clip, one after the other, before some are chosen from it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage


#: Frames are measured on copies of this side: vessels are some pixels wide there, noise is low, and it is fast.
SIDE = 128
# What counts as a vessel, in log intensity: from the noise of a good picture to a thick vessel. Which of them is used
# is for the clip to say ([`~data.frame_phases.contrast_curve`]).
_RIDGES = 0.01 * 2.0 ** (np.arange(9) / 2)
_MARGIN = 4  # of the copy, where borders look like ridges
# Maps of ridges are means over blocks of so many pixels.
_BLOCK = 5
_CLIPPED = (0.01, 0.06)
_LOOK = 16
_MOTION_SIDE = 64


class FrameSignals(NamedTuple):
    """
    What is known of `T` frames: some 4 kB each, whatever their size.

    Args:
        ridges (`np.ndarray` of shape `(T, 9)`): share of the picture that is darker than its surroundings on both
            sides, as vessels are, at nine strengths.
        maps (`np.ndarray` of shape `(T, 576)`, float32): where, and how much: 24 x 24 places, in log intensity.
        shift (`np.ndarray` of shape `(T, 2)`): how far the picture as a whole has gone, (rows, columns) in shares of
            its height and width, since the first frame.
        looks (`np.ndarray` of shape `(T, 256)`, float32): 16 x 16 grey values of mean 0.
        spread (`np.ndarray` of shape `(T,)`): grey values between the darkest and brightest 5 %.
        sharpness (`np.ndarray` of shape `(T,)`): mean slope of the lightly smoothed picture, in log intensity.
        change (`np.ndarray` of shape `(T,)`): mean difference of grey values from the frame before; 0 for the first.
    """

    ridges: np.ndarray
    maps: np.ndarray
    shift: np.ndarray
    looks: np.ndarray
    spread: np.ndarray
    sharpness: np.ndarray
    change: np.ndarray


def measure_frames(frames: Iterable[np.ndarray | Image.Image]) -> FrameSignals:
    """
    Measure frames in one pass. No frame is kept but the one before.

    Ridges are those of Sato et al. (Medical Image Analysis 2, 1998): the eigenvalue of the Hessian across a dark line,
    at two scales. The shift of the whole picture is one step of Lucas and Kanade (IJCAI 1981) from frame to frame.

    Args:
        frames (iterable of `np.ndarray` of shape `(H, W)`, uint8, or of `PIL.Image.Image`): in the order of time;
            pictures in colour are made grey.

    Returns:
        [`FrameSignals`]

    Raises:
        `ValueError`: no frame at all, or one that is not a grey picture of 8 bits; with its number.
    """
    found, before = [], None
    for number, frame in enumerate(frames):
        small = _small(frame, number)
        dark = -np.log((small + 4) / 260)
        ridge = _ridges(dark)
        still = _outlines(dark)
        step, change = np.zeros(2), 0.0
        if before is not None:
            step, change = _step(before[1], still), float(np.abs(small - before[0]).mean())
        before = small, still
        look = small.reshape(_LOOK, SIDE // _LOOK, _LOOK, SIDE // _LOOK).mean(axis=(1, 3))
        low, high = np.percentile(small[::2, ::2], (5, 95))
        found.append(
            (
                [np.count_nonzero(ridge > least) / ridge.size for least in _RIDGES],
                _blocks(np.clip(ridge, *_CLIPPED) - _CLIPPED[0]),
                step,
                (look - look.mean()).ravel(),
                high - low,
                np.abs(np.diff(still, axis=0)).mean() + np.abs(np.diff(still, axis=1)).mean(),
                change,
            )
        )
    if not found:
        raise ValueError("There is no frame to choose from.")
    ridges, maps, steps, looks, spread, sharpness, change = map(np.array, zip(*found, strict=True))
    return FrameSignals(ridges, maps, np.cumsum(steps, axis=0), looks, spread, sharpness, change)


def _small(frame: np.ndarray | Image.Image, number: int) -> np.ndarray:
    """Grey values of the copy, float32."""
    if not isinstance(frame, Image.Image):
        frame = np.asarray(frame)
        if frame.ndim != 2 or frame.dtype != np.uint8 or not frame.size:
            raise ValueError(
                f"Frame {number} must be a grey picture (height, width) of uint8, but has shape {frame.shape} and "
                f"type {frame.dtype}."
            )
        frame = Image.fromarray(frame)
    return np.asarray(frame.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)


def _ridges(dark: np.ndarray) -> np.ndarray:
    """How much darker each pixel is than what lies on both sides of it, in log intensity, without the margin."""
    found, smooth, reached = None, dark, 0.0
    for scale in (1.5, 2.5):
        smooth = ndimage.gaussian_filter(smooth, (scale**2 - reached**2) ** 0.5, truncate=3)
        reached = scale
        rows = smooth[2:] - smooth[:-2]
        across = (rows[:, 2:] - rows[:, :-2]) / 4
        down = smooth[2:, 1:-1] - 2 * smooth[1:-1, 1:-1] + smooth[:-2, 1:-1]
        right = smooth[1:-1, 2:] - 2 * smooth[1:-1, 1:-1] + smooth[1:-1, :-2]
        half = (down - right) / 2
        ridge = scale**2 * (np.sqrt(half * half + across * across) - (down + right) / 2)
        found = ridge if found is None else np.maximum(found, ridge)
    return found[_MARGIN - 1 : 1 - _MARGIN, _MARGIN - 1 : 1 - _MARGIN]


def _blocks(ridge: np.ndarray) -> np.ndarray:
    return ridge.reshape(len(ridge) // _BLOCK, _BLOCK, -1, _BLOCK).mean(axis=(1, 3)).ravel()


def _outlines(dark: np.ndarray) -> np.ndarray:
    """The picture without its slow slopes, so that brightness does not look like motion."""
    half = dark.reshape(_MOTION_SIDE, 2, _MOTION_SIDE, 2).mean(axis=(1, 3))
    smooth = ndimage.gaussian_filter(half, 1.0, truncate=3)
    return smooth - ndimage.uniform_filter(smooth, _MOTION_SIDE // 4)


def _step(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far a picture has gone, in shares of its sides; 0 where there is nothing to tell it by."""
    down, right = np.gradient((before + after) / 2)
    inner = (slice(_MARGIN, -_MARGIN),) * 2
    down, right, change = down[inner].ravel(), right[inner].ravel(), (before - after)[inner].ravel()
    matrix = np.array([[down @ down, down @ right], [down @ right, right @ right]], dtype=np.float64)
    if np.linalg.det(matrix) <= 1e-12 * max(float(np.trace(matrix)), 1e-6) ** 2:
        return np.zeros(2)
    return np.linalg.solve(matrix, [down @ change, right @ change]) / _MOTION_SIDE
