"""Which frames of a video to keep."""

import operator

import numpy as np


def select_frames(policy: str, total: int, count: int) -> list[int]:
    """
    Frames of a clip that the language model sees.

    Args:
        policy (`str`):
            `"uniform"`: `int(linspace(0, total - 1, count))`, from the first frame to the last (Sa2VA-i, arXiv
            2509.19082). `"first"`: the clip's beginning, as Sa2VA's own code takes it. `"starts"`: `int(i * total /
            count)`, where each of `count` parts of the clip begins, which never is its end (`uniform`, `uniform_plus`
            and, of long clips, `wrap_around_plus` of SaSaSa2VA, arXiv 2509.16972; its `wrap_around` is `"first"`).
        total (`int`): frames of the clip, at least 1.
        count (`int`): frames to keep, at least 1. A shorter clip is kept whole.

    Returns:
        `list[int]`: different indices in rising order, at most `count`.

    Raises:
        `ValueError`: an unknown policy, or a number below 1.
    """
    if total < 1 or count < 1:
        raise ValueError(f"A clip and its kept frames need at least one frame, got {total} and {count}.")
    if policy == "first":
        return list(range(min(count, total)))
    if policy == "uniform":
        return sorted({int(index) for index in np.linspace(0, total - 1, count)})
    if policy == "starts":
        return sorted({index * total // count for index in range(count)})
    raise ValueError(f"The frame policy must be 'uniform', 'first' or 'starts', got {policy!r}.")


def checked_frames(frames: list[int], total: int) -> list[int]:
    """
    Frames that somebody has chosen, in their order.

    Args:
        frames (`list[int]`): their numbers.
        total (`int`): frames of the clip.

    Raises:
        `ValueError`: none, one twice, or one that the clip does not have.
    """
    frames = [operator.index(index) for index in frames]
    if not frames:
        raise ValueError("`frames` must name at least one frame to prompt.")
    if outside := [index for index in frames if not 0 <= index < total]:
        raise ValueError(f"`frames` holds {outside}, but the video's {total} frames are 0 to {total - 1}.")
    if len(set(frames)) < len(frames):
        raise ValueError(f"`frames` holds a frame twice: {frames}.")
    return sorted(frames)
