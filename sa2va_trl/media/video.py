"""The frames of video files, by PyAV, turned as players show them."""

import logging
import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import DatasetError, listed
from .pictures import MAX_PIXELS


if TYPE_CHECKING:
    from av import VideoFrame

logger = logging.getLogger(__name__)
_MENDS = (
    "Copy the file anew from where it is whole; if what a player shows will do, have that written anew (ffmpeg -i "
    "FILE -c:v ffv1 NEW.mkv)."
)


def video_frames(
    path: str | os.PathLike, start: int = 0, max_pixels: int = MAX_PIXELS, tell: bool = True
) -> Iterator[Image.Image]:
    """
    The frames of a video in their order.

    Args:
        path (`str` or `os.PathLike`): of the file.
        start (`int`, *optional*, defaults to 0): the first to give; those before it are decoded, too.
        max_pixels (`int`, *optional*, defaults to `100_000_000`): the largest width x height accepted.
        tell (`bool`, *optional*, defaults to `True`): warn where its end or parts of it are missing.

    Yields:
        `PIL.Image.Image`: mode `RGB`.

    Raises:
        `DatasetError`: with the file; no video, without frames, too large, or with damage that its decoder cannot get
            over.
        `ImportError`: PyAV is not installed (`pip install 'sa2va_trl[video]'`).
    """
    for index, (frame, turn) in enumerate(_decoded(Path(path), max_pixels, logger.warning if tell else None)):
        if index >= start:
            image = frame.to_image()
            yield image if turn is None else image.transpose(turn)


def _decoded(
    path: Path, max_pixels: int, tell: Callable[[str], None] | None
) -> Iterator[tuple["VideoFrame", Image.Transpose | None]]:
    """The frames of a video as they are decoded, and how to turn each; `tell` is called with what is wrong with it."""
    try:
        import av
    except ImportError as error:
        raise ImportError("Videos need PyAV: pip install 'sa2va_trl[video]'.") from error
    opened, index, damaged, ends = False, 0, [], {}
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise DatasetError(f"{path} has no frames: it holds no video stream.")
            opened, stream = True, container.streams.video[0]
            if stream.codec_context is None:
                raise DatasetError(f"{path} cannot be read as a video: nothing decodes its pictures")
            if (stream.width or 0) * (stream.height or 0) > max_pixels:
                raise DatasetError(
                    f"{path} is too large: {stream.width} x {stream.height} pixels, the limit is {max_pixels:,}"
                )
            for packet in container.demux():  # sound, too: some containers state an end of the whole only
                if packet.pts is not None:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0.0))
                for frame in packet.decode() if packet.stream.index == stream.index else ():
                    if frame.is_corrupt:
                        damaged.append(str(index))
                    if not index:  # once: side data holds on to its frame, and the matrix is the stream's
                        turn = _turn(path, frame)
                    yield frame, turn
                    index += 1
            missing = _missing(container, stream, index, ends)
    except (av.FFmpegError, IndexError) as error:
        if not opened:
            raise DatasetError(f"{path} cannot be read as a video: {error}") from error
        raise DatasetError(
            f"{path} is damaged: frame {index} cannot be read ({error}). Cut the clip before it, or convert what a "
            "player still shows."
        ) from error
    if not index:
        raise DatasetError(f"{path} has no frames.")
    if tell and missing:
        tell(f"{path} ends early: {missing}. {_MENDS}")
    if tell and damaged:
        tell(
            f"{path} is damaged: its decoder has patched up frame {listed(damaged)}; frames that build on it may be "
            f"wrong, too. {_MENDS}"
        )


def _refuse(reason: str) -> None:
    raise DatasetError(reason)


def count_video(path: str | os.PathLike) -> int:
    """
    How many frames a video has: it is decoded for it, since headers and packets are often wrong about that. What would
    be rows without a word is refused: less than the header states, and frames that the decoder has patched up.

    Args:
        path (`str` or `os.PathLike`): of the file.

    Returns:
        `int`: at least 1.

    Raises:
        `DatasetError`, `ImportError`: as [`video_frames`]; also where its end or parts of it are missing.
    """
    return sum(1 for _ in _decoded(Path(path), MAX_PIXELS, _refuse))


def video_frame_time(path: str | os.PathLike) -> float | None:
    """
    Milliseconds from one frame of a video to the next, on average, by its header.

    Args:
        path (`str` or `os.PathLike`): of the file.

    Returns:
        `float` or `None`: `None` where the header does not say.

    Raises:
        `DatasetError`, `ImportError`: as [`video_frames`].
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("Videos need PyAV: pip install 'sa2va_trl[video]'.") from error
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            rate = container.streams.video[0].average_rate
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(f"{path} cannot be read as a video: {error}") from error
    return float(1000 / rate) if rate else None


def _missing(container, stream, count: int, ends: dict[int, float]) -> str | None:
    """
    What a video lacks of what its header states, read to its end: `count` frames, and `ends`, the second at which each
    stream ends. Times decide: an edit list leaves frames out, and an AVI may state frames that stand for "no change".
    """
    rate = float(stream.average_rate or 0) or 25.0
    if stream.duration is not None:
        stated, reached, slack = float(stream.duration * stream.time_base), ends.get(stream.index, 0.0), 0.5 / rate
        if container.format.name == "avi":  # the duration is reckoned anew from what is there
            stated = max(stated, stream.frames / rate)
    elif container.duration is not None:
        stated, reached, slack = container.duration / 1e6, max(ends.values(), default=0.0), 0.25
    else:
        return None
    if reached >= stated - slack or 0 < stream.frames <= count:
        return None
    if stream.frames:
        return f"{count} frames could be read of the {stream.frames} that its header states"
    return f"it could be read to second {reached:.2f} ({count} frames) of the {stated:.2f} that its header states"


# How a frame is to be shown: of a display matrix (a, b; c, d), the signs; a pixel (x, y) goes to (ax + cy, bx + dy).
_TURNS = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def _turn(path: Path, frame) -> Image.Transpose | None:
    """How to turn a video's frames to what players show: phones write what the sensor saw, and a matrix beside it."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    matrix = struct.unpack("=9i", bytes(stored)) if stored is not None else (1, 0, 0, 0, 1)
    axes = matrix[0:2], matrix[3:5]
    if not all(map(any, axes)):  # shows nothing: no matrix at all
        return None
    shares = [entry / max(map(abs, axis)) for axis in axes for entry in axis]  # players leave scales alone, too
    signs = tuple(map(round, shares))
    if signs not in _TURNS or any(abs(share - sign) > 0.02 for share, sign in zip(shares, signs, strict=True)):
        angle = math.degrees(math.atan2(shares[1], shares[0]))
        raise DatasetError(
            f"{path}: its frames are to be shown turned by {angle:.0f} degrees, which is no quarter turn; have a tool "
            "write the clip anew, upright."
        )
    return _TURNS[signs]
