"""How `evaluate` follows the protocol of referring sets: its options, what predicts, and what goes to a server."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..evaluation.parts import Parts
from ..evaluation.referring import check_expressions, predict_clips, predict_expressions
from ..evaluation.submission import SERVERS, check_submittable, write_masks, zip_masks
from ..metrics.sets import PROTOCOL_METRICS
from ..models import Sa2VAProcessor
from ..models.configuration import FRAME_POLICIES, TRACKING, check_video_options
from .loading import Model


SUBMISSION = "submission.zip"
# Frames of a clip in a picture of overlays.
FRAMES = 8
# Of the longest answer: as `predict` has it.
TOKENS = 256


@dataclass
class ProtocolArguments:
    """
    Whether an evaluation follows the protocol of referring sets.

    Args:
        protocol (`str`, *optional*):
            `"rvos"`: whole clips, tracked; J, F and J&F. `"refcoco"`: cIoU and gIoU. The model is asked as Sa2VA's own
            evaluation asks, and writes its answers.
        frame_policy (`str`, *optional*), num_frames (`int`, *optional*), tracking (`str`, *optional*):
            Of clips, in place of the model's own.
        submission (`str`, *optional*):
            Also leave `submission.zip`, as the server of `"mevis"` or `"ref_youtube_vos"` takes it. Of a split without
            masks it is all that there is.
    """

    protocol: str | None = field(
        default=None,
        metadata={"help": "rvos (clips: J, F, J&F) or refcoco (cIoU, gIoU): as referring sets are evaluated."},
    )
    frame_policy: str | None = field(
        default=None, metadata={"help": "Of protocol=rvos, frames to prompt: uniform, first or starts."}
    )
    num_frames: int | None = field(default=None, metadata={"help": "Of protocol=rvos, how many frames to prompt."})
    tracking: str | None = field(
        default=None, metadata={"help": "Of protocol=rvos, how masks reach the other frames: soft or mask_prompt."}
    )
    submission: str | None = field(
        default=None,
        metadata={
            "help": "Of protocol=rvos, leave submission.zip for the server of mevis or ref_youtube_vos; needs no mask."
        },
    )

    @property
    def tracking_options(self) -> dict[str, Any]:
        """Options of `segment` that are given."""
        options = {"frame_policy": self.frame_policy, "num_frames": self.num_frames, "tracking": self.tracking}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def of_clips(self) -> list[str]:
        """Names of the options that are given, of those that are for clips a model tracks."""
        return [*self.tracking_options, *(["submission"] if self.submission is not None else [])]

    @property
    def by(self) -> str:
        """The score that samples are ordered by."""
        return "dice" if self.protocol is None else PROTOCOL_METRICS[self.protocol][0]

    def __post_init__(self):
        if self.protocol not in (None, *PROTOCOL_METRICS):
            raise ValueError(f"protocol must be {' or '.join(PROTOCOL_METRICS)}, got {self.protocol!r}.")
        if self.protocol != "rvos" and (given := self.of_clips):
            raise ValueError(f"{', '.join(given)} has no effect without protocol=rvos.")
        if self.submission not in (None, *SERVERS):
            raise ValueError(f"submission must be {' or '.join(SERVERS)}, got {self.submission!r}.")
        others = {"frame_policy": FRAME_POLICIES[0], "num_frames": 1, "tracking": TRACKING[0]}
        check_video_options(**{**others, **self.tracking_options})  # before a model is loaded

    def check(self, without: dict[str, bool], has_model: bool) -> None:
        """
        Args:
            without (`dict[str, bool]`): by name of an option that a protocol has no use for, whether it is given.
            has_model (`bool`): whether a model runs.

        Raises:
            `ValueError`: such an option is given, or one of clips and no model runs.
        """
        if self.protocol is None:
            return
        if given := [name for name, is_given in without.items() if is_given]:
            raise ValueError(f"{', '.join(given)} has no effect with protocol={self.protocol}: leave it out.")
        if not has_model and (given := self.of_clips):
            raise ValueError(f"{', '.join(given)} has no meaning with predictions_dir: no model runs.")


def check_rows(args: ProtocolArguments, dataset: Dataset, predictions_dir: str | None) -> bool:
    """
    Args:
        args ([`ProtocolArguments`]): which protocol.
        dataset (`datasets.Dataset`): the split.
        predictions_dir (`str`, *optional*): masks of another tool.

    Returns:
        `bool`: whether the rows have masks to score by.

    Raises:
        `DatasetError`: rows of another kind, or without the names that a server asks for.
        `ValueError`: there are no masks, and nothing else is asked for.
    """
    with_masks = check_expressions(dataset, args.protocol)
    if args.protocol == "rvos" and (args.submission or predictions_dir is not None):
        check_submittable(dataset, "submission" if args.submission else "predictions_dir")
    if not with_masks and not args.submission:
        also = f", or --submission {' or '.join(SERVERS)} to have them scored" if args.protocol == "rvos" else ""
        raise ValueError(f"The split has no masks, so nothing can be scored: give another one{also}.")
    return with_masks


def protocol_masks(
    args: ProtocolArguments,
    model: Model,
    processor: Sa2VAProcessor,
    dataset: Dataset,
    batch_size: int | str,
    progress: bool,
    drawing: dict[str, Any],
) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Masks of rows, drawn as a protocol asks.

    Args:
        args ([`ProtocolArguments`]): which protocol, and options of clips.
        model (`Sa2VAForConditionalGeneration` or `PeftModel`), processor (`Sa2VAProcessor`): what draws.
        dataset (`datasets.Dataset`): rows.
        batch_size (`int` or `"auto"`): images that are answered together, at most.
        progress (`bool`): show a bar.
        drawing (`dict`): `threshold` and `postprocessing`.

    Yields:
        The decoded row and its masks, bool, as of [`~evaluation.referring.predict_clips`].
    """
    options = {**drawing, "max_new_tokens": TOKENS}
    if args.protocol == "rvos":
        yield from predict_clips(model, processor, dataset, progress, **args.tracking_options, **options)
    else:
        yield from predict_expressions(model, processor, dataset, batch_size, progress, **options)


def write_submission(partial: Path, predictions: Iterator[tuple[dict, np.ndarray]], parts: Parts) -> None:
    """
    Write masks that nothing can be scored by, part by part, so that a call that was ended is taken up.

    Args:
        partial (`Path`): gets the masks.
        predictions (iterator): of the rows that `parts` has named, in their order.
        parts ([`~evaluation.parts.Parts`]): of one row each.
    """
    for part, (row, masks) in zip(parts.own, predictions, strict=True):
        write_masks(partial, row, masks)
        parts.keep(part, [])


def finish_submission(partial: Path, output: Path, server: str) -> Path:
    """
    Bring masks to their place, as one archive.

    Args:
        partial (`Path`): with `Annotations/`.
        output (`Path`): of the evaluation.
        server (`str`): whose, of [`~evaluation.submission.SERVERS`].

    Returns:
        `Path`: of the archive.
    """
    zip_masks(partial, output / SUBMISSION, server)
    return output / SUBMISSION
