"""Results: what is drawn of the states at `[SEG]`, on images and through clips."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..media.clips import in_size
from ..postprocessing import Postprocessing
from .configuration import Sa2VAConfig, check_video_options
from .frame_policy import checked_frames, select_frames
from .outputs import Segmentation
from .processing import Sa2VAProcessor
from .tracking import track


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration


class Drawing(NamedTuple):
    """
    How masks are made of probabilities, the same for all answers of a call.

    Args:
        threshold (`float`): between 0 and 1.
        postprocessing ([`~postprocessing.Postprocessing`]): of the masks.
    """

    threshold: float
    postprocessing: Postprocessing

    @classmethod
    def of(cls, config: Sa2VAConfig, threshold: float | None, postprocessing: Postprocessing | None) -> "Drawing":
        """
        What is given, and what the model's config says of the rest.

        Args:
            config (`Sa2VAConfig`): of the model.
            threshold, postprocessing (*optional*): in place of the config's.

        Raises:
            `ValueError`: a threshold outside (0, 1).
        """
        threshold = config.mask_threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
        if postprocessing is None:
            postprocessing = Postprocessing.from_dict(config.mask_postprocessing)
        return cls(threshold, postprocessing)


class ClipOptions(NamedTuple):
    """
    Which frames of a clip the language model sees, and how masks are carried to the others; see
    [`~models.segmentation.SegmentationMixin.segment`].
    """

    frame_policy: str | None = None
    num_frames: int | None = None
    frames: list[int] | None = None
    tracking: str | None = None

    def refuse(self, where: str) -> None:
        """A `ValueError` naming the options that are given, where there is no clip."""
        if given := [name for name, value in self._asdict().items() if value is not None]:
            raise ValueError(f"{where} takes {', '.join(given)} with `video` only.")

    def of(self, config: Sa2VAConfig) -> "ClipOptions":
        """
        These, and what the model's config says of the rest.

        Args:
            config (`Sa2VAConfig`): of the model.

        Raises:
            `ValueError`: options that the model does not know or that have no effect.
        """
        if self.frames is not None and (self.frame_policy is not None or self.num_frames is not None):
            raise ValueError("`frames` says which frames to prompt, so frame_policy and num_frames have no effect.")
        given = {name: value for name, value in self._asdict().items() if value is not None}
        own = {name: getattr(config, name) for name in ("frame_policy", "num_frames", "tracking")}
        options = ClipOptions(**(own | given))
        check_video_options(options.frame_policy, options.num_frames, options.tracking)
        return options

    def prompted(self, total: int) -> list[int]:
        """
        The frames to prompt.

        Args:
            total (`int`): length of the clip.

        Raises:
            `ValueError`: frames that the clip does not have.
        """
        if self.frames is None:
            return select_frames(self.frame_policy, total, self.num_frames)
        return checked_frames(self.frames, total)


def result_of(
    model: "Sa2VAForConditionalGeneration",
    processor: Sa2VAProcessor,
    text: str,
    low_res_logits: torch.Tensor,
    iou_scores: torch.Tensor,
    size: tuple[int, int],
    drawing: Drawing,
    **more: Any,
) -> Segmentation:
    """
    The result of one answer.

    Args:
        model (`Sa2VAForConditionalGeneration`): that has drawn.
        processor (`Sa2VAProcessor`): of the model.
        text, low_res_logits, iou_scores, size, more: of [`Segmentation`].
        drawing ([`Drawing`]): how masks are made.
    """
    return Segmentation(
        text=text,
        phrases=processor.phrases(text),
        low_res_logits=low_res_logits,
        iou_scores=iou_scores,
        size=size,
        image_size=model.config.grounding_config.image_size,
        temperature=model.config.mask_temperature,
        **drawing._asdict(),
        **more,
    )


def track_clip(
    model: "Sa2VAForConditionalGeneration",
    processor: Sa2VAProcessor,
    text: str,
    seg_states: torch.Tensor,
    clip: Sequence[Image.Image],
    prompted: list[int],
    tracking: str,
    drawing: Drawing,
) -> Segmentation:
    """
    The result of one answer about a clip, whose frames are encoded one at a time.

    Args:
        model, processor, text, drawing: as in [`result_of`].
        seg_states (`torch.Tensor` of shape `(objects, D)`): at the `[SEG]` of the answer.
        clip (`Sequence[PIL.Image.Image]`): frames by their numbers, as from [`~media.clips.open_video`].
        prompted (`list[int]`): frames to prompt.
        tracking (`str`): how masks are carried on.
    """
    prompts, total = model.mask_prompts(seg_states), len(clip)
    side = model.config.grounding_config.mask_size
    result = result_of(
        model,
        processor,
        text,
        # On the CPU: the one thing that grows with the length of the clip.
        torch.zeros(len(prompts), total, side, side),
        torch.zeros(len(prompts), total),
        clip[0].size[::-1],
        drawing,
        prompted_frames=prompted,
    )
    if drawing.postprocessing.needs_motion:
        size = clip[0].size
        result.pictures = np.stack([np.asarray(in_size(clip[index], size).convert("L")) for index in range(total)])
    if len(prompts):
        for index, mask_logits, iou_scores in track(
            model.grounding_encoder,
            prompts,
            lambda index: processor.grounding_inputs([clip[index]]).to(model.device),
            total,
            prompted,
            mask_prompt=(result.threshold, result.size) if tracking == "mask_prompt" else None,
            temperature=model.config.mask_temperature,
        ):
            result.low_res_logits[:, index] = mask_logits
            result.iou_scores[:, index] = iou_scores
    return result
