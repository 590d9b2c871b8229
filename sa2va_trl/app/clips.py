"""Pictures and clips that a page opens: files, and generated angiograms."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..data.angiography import generate_video
from ..media.clips import frame_name, in_size, is_clip, open_video, read_pictures


# Of the generated clips, whose numbers then tell them apart.
SEED = 20_000
FRAMES, SIZE = 16, 256


@dataclass(frozen=True)
class Clip:
    """
    What a page shows.

    Args:
        name (`str`): what files that are made of it are called.
        file (`str`): what it is of.
        frames (`list[PIL.Image.Image]`): at least one, RGB, of one size.
        moving (`bool`): whether these are frames of a clip, and not one picture.
        start (`int`, *optional*, defaults to 0): the frame to show first.
        left_out (`int`, *optional*, defaults to 0): how many frames there are behind the last.
    """

    name: str
    file: str
    frames: list[Image.Image]
    moving: bool
    start: int = 0
    left_out: int = 0

    def name_of(self, frame: int) -> str:
        """What files that are made of a frame are called."""
        return frame_name(self.name, frame) if self.moving else self.name


def read_clip(path: str | Path, max_frames: int) -> Clip:
    """
    Open a file.

    Args:
        path (`str` or `Path`): an image or a clip, as in [`~media.clips.read_media`].
        max_frames (`int`): how many frames of a clip to take, which are held in memory.

    Returns:
        [`Clip`]

    Raises:
        `ValueError`, `OSError`, `ImportError`: it cannot be read; the message names the file without its folder.
    """
    path = Path(path)
    try:
        if not is_clip(path):
            return Clip(path.stem, path.name, [picture.image for picture in read_pictures(path)], moving=False)
        with open_video(path) as video:
            size = video[0].size
            frames = [in_size(video[index], size) for index in range(min(len(video), max_frames))]
            return Clip(path.stem, path.name, frames, moving=True, left_out=len(video) - len(frames))
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace(str(path), path.name)) from error


def generated_clip(hospital: int, number: int, size: int = SIZE) -> Clip:
    """
    One of the generated angiograms with named structures.

    Args:
        hospital (`int`): 1 or 2.
        number (`int`): of the clip, 0 or more.
        size (`int`, *optional*, defaults to 256): width and height in pixels.

    Returns:
        [`Clip`], shown from its middle on, where contrast fills the vessels.

    Raises:
        `ValueError`: there is no such clip; the message names what is out of range.
    """
    video = generate_video(SEED, number, FRAMES, size, "named", hospital)
    name = f"h{hospital}_v{number:04d}"
    frames = [Image.fromarray(frame).convert("RGB") for frame in video.frames]
    return Clip(name, name, frames, moving=True, start=FRAMES // 2)
