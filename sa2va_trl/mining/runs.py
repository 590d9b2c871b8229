"""Runs of hard frames."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..errors import BadRow, MiningError
from .hardness import HARD_BELOW, check_hardness, takes_threshold


@takes_threshold
def temporal_clusters(
    dice: ArrayLike, hard_below: float = HARD_BELOW, max_gap: int = 0, min_length: int = 2, smoothing: int = 1
) -> list[tuple[int, int]]:
    """
    Runs of hard frames in one video: frames with `dice < hard_below`.

    A frame without a score (NaN) is not hard: it ends a run, as an easy frame does, unless the gap that it is part of
    is at most `max_gap` long. No run begins or ends with a frame that is not hard.

    Args:
        dice (array-like of shape `(frames,)`): in temporal order; higher is easier. NaN where a frame has no score.
        hard_below (`float`, *optional*, defaults to 0.75): a frame at the limit is easy. (`threshold=` means it too.)
        max_gap (`int`, *optional*, defaults to 0): runs that at most so many other frames lie between become one.
        min_length (`int`, *optional*, defaults to 2): hard frames that a run needs; those in its gaps do not count.
        smoothing (`int`, *optional*, defaults to 1):
            Odd width of a running median over the frames with a score, narrower at the ends of the video; 1 leaves
            `dice` as it is. (A median, as a mean would move the ends of runs.) Frames without a score keep none.

    Returns:
        `list[tuple[int, int]]`: first and last position of every run, both inclusive, in order. Runs do not overlap
        and are more than `max_gap` frames apart.

    Raises:
        `ValueError`: an option out of its range, or `dice` is not one sequence.
    """
    dice = np.asarray(dice, dtype=np.float64)
    if dice.ndim != 1:
        raise ValueError(f"dice must be the sequence of one video, got shape {dice.shape}.")
    check_options(hard_below, None, max_gap, min_length, smoothing)
    reach = smoothing // 2
    if reach:
        reaches = np.minimum(reach, np.minimum(np.arange(len(dice)), np.arange(len(dice))[::-1]))
        windows = [dice[position - own : position + own + 1] for position, own in enumerate(reaches)]
        smooth = [np.nan if np.isnan(own) else np.nanmedian(near) for own, near in zip(dice, windows, strict=True)]
        dice = np.array(smooth, dtype=np.float64)
    runs = []  # [first, last, hard frames]
    for position in np.flatnonzero(dice < hard_below).tolist():
        if runs and position - runs[-1][1] - 1 <= max_gap:
            runs[-1][1:] = [position, runs[-1][2] + 1]
        else:
            runs.append([position, position, 1])
    return [(first, last) for first, last, hard in runs if hard >= min_length]


@takes_threshold
def check_options(
    hard_below: float | None = None,
    worst: float | None = None,
    max_gap: int = 0,
    min_length: int = 2,
    smoothing: int = 1,
    tau_low: float = 0.3,
) -> None:
    """
    Check the options of [`~mining.selection.mine`], before anything is scored.

    Args:
        hard_below, worst (`float`, *optional*): see [`~mining.selection.hard_limit`].
        max_gap, min_length, smoothing (`int`, *optional*): see [`temporal_clusters`].
        tau_low (`float`, *optional*, defaults to 0.3): see [`~mining.selection.review_reasons`].

    Raises:
        `ValueError`: an option out of its range, or both `hard_below` and `worst`.
    """
    check_hardness(hard_below, worst)
    for name, value, least in (("max_gap", max_gap, 0), ("min_length", min_length, 1), ("smoothing", smoothing, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    if smoothing % 2 == 0:
        raise ValueError(f"smoothing must be odd, so that its window has a middle; got {smoothing}.")
    if not 0 <= tau_low <= 1:
        raise ValueError(f"tau_low must lie in [0, 1], got {tau_low}.")


def check_frames(table: pd.DataFrame) -> None:
    """
    Check that the frames of every video have an order. Rows without a video need none.

    Args:
        table (`pandas.DataFrame`): with `sample_id` and, where there are videos, `video_id` and `frame_index`.

    Raises:
        `MiningError`: a row of a video without `frame_index`, or two rows with the same one; all of them are named.
    """
    if "video_id" not in table:
        return
    table = table[table["video_id"].notna()]
    index = table["frame_index"] if "frame_index" in table else pd.Series(np.nan, table.index)
    twice = pd.DataFrame({"video": table["video_id"], "index": index}).duplicated(keep=False) & index.notna()
    bad = [
        BadRow(None, name, None, f"video_id {video!r} without a frame_index")
        for name, video in zip(table["sample_id"][index.isna()], table["video_id"][index.isna()], strict=True)
    ]
    bad += [
        BadRow(None, name, None, f"frame_index {number:g} of video_id {video!r} is used more than once")
        for name, video, number in zip(
            table["sample_id"][twice], table["video_id"][twice], index[twice].astype(float), strict=True
        )
    ]
    if bad:
        listed = "\n".join(f"  {problem}" for problem in bad[:50])
        more = f"\n  ... and {len(bad) - 50} more" if len(bad) > 50 else ""
        raise MiningError(
            f"{len(bad)} rows have no place in their video. Give each frame its own frame_index, or rows that are no "
            f"frames no video_id:\n{listed}{more}"
        )


def videos(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """
    The videos of a table, in the order in which they first appear, each sorted by `frame_index`.

    Args:
        table (`pandas.DataFrame`): see [`check_frames`].

    Yields:
        `video_id` and the rows of the video.

    Raises:
        `MiningError`: see [`check_frames`].
    """
    check_frames(table)
    if "video_id" in table:
        for video, rows in table.groupby("video_id", sort=False):  # (leaves out rows without a video)
            yield video, rows.sort_values("frame_index", kind="stable")


def usual_step(frame_index: ArrayLike) -> float:
    """
    What a video's frames are usually apart, so that a video of which every third frame is kept has no gaps.

    Args:
        frame_index (array-like of shape `(frames,)`): sorted, all different.

    Returns:
        `float`: the most frequent difference, the smallest one of several; 1 of a single frame.
    """
    steps, counts = np.unique(np.diff(np.asarray(frame_index, dtype=np.float64)), return_counts=True)
    return float(steps[counts.argmax()]) if len(steps) else 1.0


def on_the_grid(frame_index: ArrayLike, longest: int) -> np.ndarray:
    """
    Positions of a video's frames with room for those that are missing.

    Args:
        frame_index (array-like of shape `(frames,)`): sorted, all different.
        longest (`int`): no gap gets more room than that.

    Returns:
        `np.ndarray` of shape `(frames,)`: integers from 0 on. Two frames are one position apart at the video's usual
        step (or less), and `n + 1` where `n` frames are missing between them.
    """
    frame_index = np.asarray(frame_index, dtype=np.float64)
    steps = np.rint(np.diff(frame_index) / usual_step(frame_index)).clip(1, longest + 1)
    return np.concatenate([[0], steps.cumsum()]).astype(np.int64)[: len(frame_index)]
