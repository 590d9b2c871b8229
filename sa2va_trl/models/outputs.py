"""What the model returns."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from transformers.utils import ModelOutput

from ..mask_logits import mask_probabilities, upsample_mask_logits
from ..motion import backward_flows
from ..postprocessing import IDENTITY, Postprocessing, draw_clip, draw_mask


@dataclass
class SegFeatures:
    """
    What `encode` leaves for `decode_masks`: everything costly, nothing that the head trains.

    A *mask* is one `[SEG]` on one image. On still images there are as many masks as `[SEG]` tokens; on a clip every
    `[SEG]` is drawn on every frame.

    Args:
        seg_states (`torch.Tensor` of shape `(segs, D)`):
            The language model's last hidden states at the `[SEG]` tokens, row by row: after its final norm or before
            it, as `config.seg_state` says.
        seg_index (`torch.LongTensor` of shape `(masks,)`): the `[SEG]` of each mask.
        image_index (`torch.LongTensor` of shape `(masks,)`): the image of each mask.
        row_index (`torch.LongTensor` of shape `(masks,)`): the row of the batch that each mask belongs to.
        pyramid (`tuple` of three `torch.Tensor`):
            SAM 2's features, `(images, C, S/4, S/4)`, `(images, C, S/8, S/8)`, `(images, C, S/16, S/16)`.

    The states and the two finer levels have the type that the model computes in; the coarse level is float32 whatever
    that is, because SAM 2's neck adds it up in float32.
    """

    seg_states: torch.Tensor
    seg_index: torch.Tensor
    image_index: torch.Tensor
    row_index: torch.Tensor
    pyramid: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SegFeatures":
        """The same features on another device, in their own dtypes."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "SegFeatures":
        """The same features in page-locked memory, for a `DataLoader`."""
        return self._map(torch.Tensor.pin_memory)

    def repeat(self, count: int) -> "SegFeatures":
        """
        The same features with every mask several times, for prompts of one's own (see `forward`). Nothing costly is
        copied.

        Args:
            count (`int`): how often; the repetitions of a mask follow each other.
        """
        index = (self.seg_index, self.image_index, self.row_index)
        return SegFeatures(self.seg_states, *(each.repeat_interleave(count) for each in index), self.pyramid)

    def at_least_one(self) -> "SegFeatures":
        """
        The same features, with one mask of a state of zeros on an empty image where there is none, so that the mask
        decoder can run for form's sake (see `must_run_everything` of the model). It is a function of the states, so
        that a backward pass reaches what they came from.
        """
        if len(self.seg_index):
            return self
        zero = self.seg_index.new_zeros(1)
        state = self.seg_states.new_zeros((1, self.seg_states.shape[-1])) + self.seg_states.sum()
        pyramid = self.pyramid
        if len(pyramid[0]) == 0:
            pyramid = tuple(level.new_zeros((1, *level.shape[1:])) for level in pyramid)
        return SegFeatures(state, zero, zero, zero, pyramid)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "SegFeatures":
        tensors = (self.seg_states, self.seg_index, self.image_index, self.row_index)
        return SegFeatures(*map(change, tensors), tuple(map(change, self.pyramid)))


def join_features(parts: list[tuple[list[int], SegFeatures]]) -> SegFeatures:
    """
    Features of one batch, from those of its parts.

    Args:
        parts (`list[tuple[list[int], SegFeatures]]`): for each part the rows of the batch that it holds, in its order.

    Returns:
        `SegFeatures`: masks in the order of the rows; states and pyramid in that of the parts.
    """
    if len(parts) == 1 and parts[0][0] == sorted(parts[0][0]):
        return parts[0][1]
    columns, segs, images = [], 0, 0
    for rows, part in parts:
        row_index = torch.tensor(rows, device=part.row_index.device)[part.row_index]
        columns.append(torch.stack([part.seg_index + segs, part.image_index + images, row_index]))
        segs, images = segs + len(part.seg_states), images + len(part.pyramid[0])
    index = torch.cat(columns, dim=1)
    index = index[:, torch.argsort(index[2], stable=True)]
    levels = zip(*(part.pyramid for _, part in parts), strict=True)
    return SegFeatures(torch.cat([part.seg_states for _, part in parts]), *index, tuple(map(torch.cat, levels)))


@dataclass
class Sa2VAOutput(ModelOutput):
    """
    What `forward` says of a batch.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned with `labels`):
            Cross-entropy of the answers. The mask losses are the trainers'.
        logits (`torch.Tensor` of shape `(batch, tokens, vocabulary)`): of the kept positions; `None` from features.
        mask_logits (`torch.Tensor` of shape `(masks, S/4, S/4)`): float32; of the best of the three candidates.
        iou_scores (`torch.Tensor` of shape `(masks,)`): predicted IoU in [0, 1] of that candidate.
        seg_states (`torch.Tensor` of shape `(segs, D)`): of [`SegFeatures`].
        row_index (`torch.LongTensor` of shape `(masks,)`): the row of the batch that each mask belongs to.
        features (`SegFeatures`, *optional*, returned with `encode_only`): what `encode` made of the batch.
        candidate_logits (`torch.Tensor` of shape `(masks, 3, S/4, S/4)`, *optional*, with `output_candidates`):
            float32; of all three candidates.
        candidate_iou_scores (`torch.Tensor` of shape `(masks, 3)`, *optional*, returned with `output_candidates`):
            Their predicted IoU in [0, 1].
        prompts (`torch.Tensor` of shape `(masks, C)`, *optional*, returned with `output_candidates`):
            The embeddings that the masks were drawn from: of `mask_prompts`, or those that were given.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None
    iou_scores: torch.Tensor | None = None
    seg_states: torch.Tensor | None = None
    row_index: torch.Tensor | None = None
    features: SegFeatures | None = None
    candidate_logits: torch.Tensor | None = None
    candidate_iou_scores: torch.Tensor | None = None
    prompts: torch.Tensor | None = None


@dataclass
class Segmentation:
    """
    What `segment` says of one image or one video, and `chat` of several images too.

    Only the decoder's own small grids are stored. The maps at full size are drawn from them on every access, so take
    them once; of a long video take them frame by frame, with `frame`.

    Args:
        text (`str`): the answer, without the end marker.
        phrases (`list[str | None]`): the tagged phrase of each object, `None` where the answer tags none.
        low_res_logits (`torch.Tensor` of shape `(objects[, frames], S/4, S/4)`):
            float32; on the model's device, of a video on the CPU. Several images are frames here.
        iou_scores (`torch.Tensor` of shape `(objects[, frames])`): predicted IoU in [0, 1].
        size (`tuple[int, int]`):
            Height and width of the image; of a video those of its first frame, which its masks have throughout.
        image_size (`int`): side S of SAM 2's square.
        threshold (`float`): probability above which a pixel belongs to the mask.
        prompted_frames (`list[int]`, *optional*): of a video, the frames that the language model saw and prompted.
        temperature (`float`, *optional*, defaults to 1.0): what logits are divided by to become probabilities.
        postprocessing ([`~postprocessing.Postprocessing`], *optional*): of the masks; none by default.
        pictures (`np.ndarray` of shape `(frames, H, W)`, *optional*):
            Of a video, its frames in grey (uint8), kept where post-processing follows their motion.
        drawn (`torch.Tensor` of shape `(objects, H, W)`, *optional*):
            Of a frame whose mask depends on the frames beside it: its masks, drawn already.
        sizes (`list[tuple[int, int]]`, *optional*):
            Of several images, height and width of each. Where they differ there are `probabilities` and `masks` of
            each image alone, by `frame`.
    """

    text: str
    phrases: list[str | None]
    low_res_logits: torch.Tensor
    iou_scores: torch.Tensor
    size: tuple[int, int]
    image_size: int
    threshold: float
    prompted_frames: list[int] | None = None
    temperature: float = 1.0
    postprocessing: Postprocessing = IDENTITY
    pictures: np.ndarray | None = None
    drawn: torch.Tensor | None = None
    sizes: list[tuple[int, int]] | None = None

    @property
    def mask_logits(self) -> torch.Tensor:
        """`(objects[, frames], S, S)`, float32, on SAM 2's square: as the decoder draws them, at temperature 1."""
        return self._draw((self.image_size, self.image_size))

    @property
    def probabilities(self) -> torch.Tensor:
        """
        `(objects[, frames], H, W)` in [0, 1], float32, at the image's own size: before any threshold, and calibrated
        where the model's config has a temperature.

        Raises:
            `ValueError`: of several images that differ in size.
        """
        if self.sizes is not None:
            return self._stacked("probabilities")
        return self._draw(self.size, lambda logits: mask_probabilities(logits, self.temperature))

    @property
    def masks(self) -> torch.Tensor:
        """
        `(objects[, frames], H, W)`, bool: `probabilities > threshold`, and post-processed where that is set.

        Raises:
            `ValueError`: of several images that differ in size.
        """
        if self.sizes is not None:
            return self._stacked("masks")
        if self.drawn is not None:
            return self.drawn
        if self.postprocessing.is_identity:
            return self._draw(self.size, lambda logits: mask_probabilities(logits, self.temperature) > self.threshold)
        masks = torch.zeros((*self.low_res_logits.shape[:-2], *self.size), dtype=torch.bool)
        flows = None
        if self.pictures is not None and len(masks):
            flows = backward_flows(self.pictures.astype(np.float32) / 255)
        for index in range(len(masks)):
            own = replace(self, low_res_logits=self.low_res_logits[index : index + 1])
            maps = own.probabilities[0].cpu().numpy()
            settings = (self.threshold, self.postprocessing)
            drawn = draw_mask(maps, *settings) if maps.ndim == 2 else draw_clip(maps, *settings, flows)
            masks[index] = torch.from_numpy(drawn)
        return masks.to(self.low_res_logits.device)

    def frame(self, index: int) -> "Segmentation":
        """
        One frame of a video or one of several images, as a result of its own. Where masks depend on the frames beside
        them (see [`~postprocessing.Postprocessing`]), those of the whole clip are drawn and kept the first time.

        Args:
            index (`int`): of the frame.

        Raises:
            `ValueError`: the result is an image's.
            `IndexError`: there is no such frame.
        """
        if self.low_res_logits.ndim != 4:
            raise ValueError("frame is for results of segment(video=...); this is the result of an image.")
        drawn = None
        if self.postprocessing.is_temporal and self.sizes is None:
            drawn = self._masks_of_clip[:, index]
        return replace(
            self,
            low_res_logits=self.low_res_logits[:, index],
            iou_scores=self.iou_scores[:, index],
            prompted_frames=None,
            pictures=None,
            drawn=drawn,
            size=self.size if self.sizes is None else self.sizes[index],
            sizes=None,
        )

    def _stacked(self, name: str) -> torch.Tensor:
        """What each of several images has under this name, where they have one size."""
        if len(set(self.sizes)) > 1:
            found = ", ".join(f"{width} x {height}" for height, width in self.sizes)
            raise ValueError(f"The images differ in size ({found}): take one after the other, result.frame(0).{name}.")
        return torch.stack([getattr(self.frame(index), name) for index in range(len(self.sizes))], dim=1)

    @cached_property
    def _masks_of_clip(self) -> torch.Tensor:
        return self.masks

    def _draw(
        self, size: tuple[int, int], finish: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits
    ) -> torch.Tensor:
        # A few maps at a time: those on SAM 2's square may be larger than what is asked for.
        parts = self.low_res_logits.flatten(end_dim=-3).split(8)
        maps = torch.cat([finish(upsample_mask_logits(part, self.image_size, size)) for part in parts])
        return maps.reshape(*self.low_res_logits.shape[:-2], *size)


def pair_masks(
    seg_rows: torch.LongTensor, image_counts: torch.LongTensor
) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
    """
    The masks of a batch: `[SEG]` by `[SEG]`, and image by image within a `[SEG]`.

    Args:
        seg_rows (`torch.LongTensor` of shape `(segs,)`): the row of each `[SEG]`, ascending.
        image_counts (`torch.LongTensor` of shape `(batch,)`): images of each row.

    Returns:
        `seg_index`, `image_index` and `row_index` of [`SegFeatures`].
    """
    counts = image_counts[seg_rows]
    seg_index = torch.repeat_interleave(torch.arange(len(seg_rows), device=seg_rows.device), counts)
    row_index = seg_rows[seg_index]
    first_mask = torch.cumsum(counts, 0) - counts
    first_image = torch.cumsum(image_counts, 0) - image_counts
    index = torch.arange(len(seg_index), device=seg_rows.device)
    return seg_index, index - first_mask[seg_index] + first_image[row_index], row_index
