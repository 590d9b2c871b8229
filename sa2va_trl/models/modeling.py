from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForImageTextToText, Cache, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration import Sa2VAConfig
from .grounding import GroundingEncoder
from .outputs import (
    Sa2VAOutput,
    SegFeatures,
    Segmentation,  # noqa: F401  (defined here once)
    pair_masks,
)
from .predict_forward import PredictForwardMixin
from .pretrained import PretrainedMixin
from .quantization import UNQUANTISED  # noqa: F401  (defined here once)
from .regions import fed_regions
from .segmentation import SegmentationMixin


# What wrappers and other loops (PEFT's of a causal model, TRL's) pass to every model's `forward`, asking for nothing;
# anything that is `None` beside it.
_IDLE = {"output_attentions": False, "output_hidden_states": False, "return_dict": True, "use_cache": False}


# Masks of a collator's batch, which losses are computed with and the model does not look at.
MASK_TARGETS = ("masks", "original_masks", "skeletons", "chosen_masks", "rejected_masks")


class Sa2VAForConditionalGeneration(
    SegmentationMixin, PredictForwardMixin, PretrainedMixin, PreTrainedModel, GenerationMixin
):
    """
    Sa2VA (arXiv 2501.04001): a native vision-language model whose `[SEG]` tokens prompt SAM 2.

    It has two halves. `encode` runs the VLM and SAM 2's image encoder, `decode_masks` runs `text_hidden_fcs` and SAM
    2's mask decoder; `forward` (training) and `segment` (inference) go through both and there is no other path.

    Args:
        config (`Sa2VAConfig`): with the VLM's own config inside.
    """

    config_class = Sa2VAConfig
    base_model_prefix = "vlm"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # `forward` takes extra keyword arguments; without this Trainer would believe that it normalises by the number of
    # items in the accumulated batch and would not divide the loss by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: Sa2VAConfig):
        super().__init__(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        self.grounding_encoder = GroundingEncoder(config.grounding_config)
        width = config.text_config.hidden_size
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.grounding_config.hidden_dim), nn.Dropout(0.0)
        )
        if config.grounding_dtype == "float32":
            self._keep_in_fp32_modules_strict = ["grounding_encoder", "text_hidden_fcs"]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The two halves initialise themselves and `text_hidden_fcs` keeps torch's own initialisation.
        pass

    @property
    def base_model(self) -> nn.Module:
        """The backbone that returns `last_hidden_state`, as TRL's fused head expects it."""
        return self.vlm.model

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_output_embeddings(value)

    def train(self, mode: bool = True) -> "Sa2VAForConditionalGeneration":
        """As in `nn.Module`."""
        # Trainer calls it at every step, and torch sets the mode of each of hundreds of modules, which costs ten times
        # as much as to see that they are in it.
        pending: list[nn.Module] = [self]
        while pending:
            module = pending.pop()
            if module.training is not mode:
                return super().train(mode)
            pending.extend(child for child in module._modules.values() if child is not None)
        return self

    @property
    def is_gradient_checkpointing(self) -> bool:
        """`is_activation_checkpointing` by the earlier name, by which PEFT asks and of which transformers warns."""
        return self.is_activation_checkpointing

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        # The language model only: it holds nearly all of the activations, and checkpointing the mask decoder would be
        # wrong under the reentrant variant.
        self.vlm.model.language_model._set_gradient_checkpointing(*args, **kwargs)

    def enable_input_require_grads(self) -> None:
        """
        For checkpointing under an adapter. The language model's embeddings only: transformers would hook those of the
        vision tower too, and a frozen tower would keep all of its activations.
        """
        self.vlm.model.language_model.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        self.vlm.model.language_model.disable_input_require_grads()

    def hidden_states(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        region_masks: torch.Tensor | None = None,
        region_counts: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """
        The language model's hidden states after its final norm.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): right-padded.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 0 on padding.
            pixel_values (`torch.Tensor`, *optional*):
                Of all images in order, as [`Sa2VAProcessor.tiles`] gives them: `(tiles, 3, size, size)` for InternVL,
                `(patches, values of a patch)` for Qwen.
            image_grid_thw (`torch.LongTensor` of shape `(images, 3)`, *optional*): with Qwen's `pixel_values`.
            region_masks (`torch.Tensor` of shape `(regions, side, side)`, bool, *optional*):
                Of InternVL's images: the cells of all regions that the text speaks of, in order.
            region_counts (`torch.LongTensor` of shape `(tiles,)`, *optional*):
                With `region_masks`: how many of them are of each tile, see [`~models.regions.with_regions`].

        Returns:
            `torch.Tensor` of shape `(batch, tokens, D)`.

        Raises:
            `ValueError`: regions without images, or of Qwen, or that do not go with the tiles.
        """
        regions = (region_masks, region_counts)
        return self._last_states(input_ids, attention_mask, pixel_values, image_grid_thw, *regions)[0]

    def states_to_segment(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        region_masks: torch.Tensor | None = None,
        region_counts: torch.LongTensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """
        The hidden states that `[SEG]` tokens are read from: as `hidden_states`, or before the final norm
        (`config.seg_state`).

        Args:
            input_ids, attention_mask, pixel_values, image_grid_thw, region_masks, region_counts: see `hidden_states`.
            cache (`Cache`, *optional*):
                Keys and values of what stands before `input_ids`, to which theirs are added. Images in it have been
                read, so that their pixels are not given again.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, D)`.
        """
        regions = (region_masks, region_counts)
        return self._last_states(input_ids, attention_mask, pixel_values, image_grid_thw, *regions, cache)[1]

    def _last_states(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.LongTensor | None,
        region_masks: torch.Tensor | None = None,
        region_counts: torch.LongTensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden_states`, which language logits are made of, and those that `[SEG]` tokens are read from."""
        length = input_ids.shape[1]
        regions = self._regions(pixel_values, region_masks, region_counts)
        if pixel_values is None and cache is None and self.must_run_everything:
            # An empty image behind the padding of the first row, where nothing sees it. Running the vision tower by
            # itself would not do: ZeRO-3 wants the modules of all ranks in one order.
            pixel_values, image_grid_thw, count = self._empty_image(input_ids.device)
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            tail = input_ids.new_full((len(input_ids), count), self.config.text_config.pad_token_id or 0)
            tail[0] = self.config.image_token_id
            input_ids = torch.cat([input_ids, tail], dim=1)
            attention_mask = F.pad(attention_mask, (0, count))
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.vlm.parameters())
        # What goes into the final norm. (`output_hidden_states` would keep every layer's, and what its last entry is
        # has changed between versions.) It is taken before other hooks, such as ZeRO-3's, make it a part of the norm.
        raw, hook = [], nullcontext()
        if self.config.seg_state == "raw":
            norm = self.vlm.model.language_model.norm
            hook = norm.register_forward_pre_hook(lambda _, args: raw.append(args[0]), prepend=True)
        with torch.set_grad_enabled(trains), hook, regions:
            outputs = self.vlm.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_values=pixel_values,
                use_cache=cache is not None,
                **({} if cache is None else {"cache": cache}),
                **self._grid_inputs(input_ids, image_grid_thw),
            )
        states = outputs.last_hidden_state[:, :length]
        if self.config.seg_state == "normed":
            return states, states
        (raw,) = raw
        return states, raw[:, :length]

    def _grid_inputs(self, input_ids: torch.LongTensor, image_grid_thw: torch.LongTensor | None) -> dict:
        # Qwen places image tokens on a grid only if it is told which tokens they are; otherwise Qwen2.5-VL counts them
        # like words, without a warning.
        if image_grid_thw is None:
            return {}
        kinds = (input_ids == self.config.image_token_id).int()
        return {"image_grid_thw": image_grid_thw, "mm_token_type_ids": kinds}

    def _regions(
        self,
        pixel_values: torch.Tensor | None,
        region_masks: torch.Tensor | None,
        region_counts: torch.LongTensor | None,
    ) -> AbstractContextManager[None]:
        """A context in which the VLM reads regions of its images, if there are any."""
        if region_masks is None and region_counts is None:
            return nullcontext()
        if self.config.vlm_config.model_type != "internvl":
            raise ValueError("Regions are InternVL's: Sa2VA on Qwen was neither trained with them nor takes them.")
        if pixel_values is None:
            raise ValueError("region_masks are of images: pass their `pixel_values`.")
        return fed_regions(self.vlm.model.multi_modal_projector, region_masks, region_counts)

    def _empty_image(self, device: torch.device) -> tuple[torch.Tensor, torch.LongTensor | None, int]:
        """The VLM's pixels of its smallest black image, their grid, and the number of placeholder tokens."""
        config = self.config.vlm_config
        vision = config.vision_config
        if config.model_type == "internvl":
            return torch.zeros((1, 3, *vision.image_size), device=device), None, config.image_seq_length
        side = vision.spatial_merge_size  # as many patches as become one token
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.zeros((side**2, values), device=device), torch.tensor([[1, side, side]], device=device), 1

    @property
    def must_run_everything(self) -> bool:
        """
        Whether all modules have to run, whatever a batch holds: a process whose batch holds only text must still run
        what the others run, in the same order. ZeRO-3 gathers weights module by module, and DDP waits for every
        gradient.
        """
        return self.training or (torch.distributed.is_available() and torch.distributed.is_initialized())

    def with_pyramid(
        self,
        seg_states: torch.Tensor,
        rows: torch.LongTensor,
        batch: int,
        grounding_pixel_values: torch.Tensor | None = None,
        image_counts: torch.LongTensor | None = None,
    ) -> SegFeatures:
        """
        What `encode` makes of states that are there already: SAM 2's image pyramid, and which masks there are.

        Args:
            seg_states (`torch.Tensor` of shape `(segs, D)`): row by row.
            rows (`torch.LongTensor` of shape `(segs,)`): the row of each.
            batch (`int`): number of rows.
            grounding_pixel_values, image_counts: see `encode`.

        Returns:
            `SegFeatures`.

        Raises:
            `ValueError`: as `encode`.
        """
        if grounding_pixel_values is None:
            size = self.config.grounding_config.image_size
            grounding_pixel_values = seg_states.new_zeros((0, 3, size, size))
        if image_counts is None:
            if len(grounding_pixel_values) not in (0, batch):
                raise ValueError(
                    f"{len(grounding_pixel_values)} grounding images for {batch} rows: pass `image_counts`, "
                    "the number of images of each row."
                )
            image_counts = rows.new_full((batch,), int(len(grounding_pixel_values) > 0))
        seg_index, image_index, row_index = pair_masks(rows, image_counts)
        pixels = grounding_pixel_values
        if len(pixels) == 0 and self.must_run_everything:
            pixels = pixels.new_zeros((1, *pixels.shape[1:]))
        if len(pixels):
            pyramid = self.grounding_encoder.encode(pixels)
        else:
            grid = self.config.grounding_config
            pyramid = tuple(
                seg_states.new_zeros((0, grid.hidden_dim, grid.image_size // stride, grid.image_size // stride))
                for stride in (4, 8, 16)
            )
        return SegFeatures(seg_states, seg_index, image_index, row_index, pyramid)

    def _at_seg(self, input_ids, states, grounding_pixel_values, image_counts) -> SegFeatures:
        rows, places = torch.nonzero(input_ids == self.config.seg_token_id, as_tuple=True)
        return self.with_pyramid(states[rows, places], rows, len(input_ids), grounding_pixel_values, image_counts)

    def encode(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        grounding_pixel_values: torch.Tensor | None = None,
        image_counts: torch.LongTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        region_masks: torch.Tensor | None = None,
        region_counts: torch.LongTensor | None = None,
    ) -> SegFeatures:
        """
        The costly half: hidden states at the `[SEG]` tokens (each token's own position, `config.seg_state`) and SAM
        2's image pyramid.

        An image goes through SAM 2's encoder once, however many `[SEG]` its row has.

        Args:
            input_ids, attention_mask, pixel_values, image_grid_thw, region_masks, region_counts: see `hidden_states`.
            grounding_pixel_values (`torch.Tensor` of shape `(images, 3, S, S)`, *optional*): SAM 2's pixels.
            image_counts (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Images of each row: 0 for text only, 1 for an image, the frames of a clip. Defaults to one each.

        Returns:
            `SegFeatures`.

        Raises:
            `ValueError`: images and rows do not pair up and `image_counts` was not given; or as `hidden_states`.
        """
        _, states = self._last_states(
            input_ids, attention_mask, pixel_values, image_grid_thw, region_masks, region_counts
        )
        return self._at_seg(input_ids, states, grounding_pixel_values, image_counts)

    def mask_prompts(self, seg_states: torch.Tensor) -> torch.Tensor:
        """
        The embeddings that prompt SAM 2: `[SEG]` states through `text_hidden_fcs`.

        Args:
            seg_states (`torch.Tensor` of shape `(segs, D)`): of [`SegFeatures`].

        Returns:
            `torch.Tensor` of shape `(segs, C)`, in the type of `text_hidden_fcs`.
        """
        # Trained modules may be float32 on top of half-precision frozen ones.
        # (By name, not by index: PEFT's wrapper of a trained copy forwards attributes only.)
        return self.text_hidden_fcs(seg_states.to(getattr(self.text_hidden_fcs, "0").weight.dtype))

    def decode_candidates(
        self, features: SegFeatures, prompts: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The cheap half, before the choice: `text_hidden_fcs` and SAM 2's mask decoder.

        Args:
            features (`SegFeatures`): from `encode`, with at least one mask.
            prompts (`torch.Tensor` of shape `(masks, C)`, *optional*): in place of what `text_hidden_fcs` makes.

        Returns:
            Mask logits of shape `(masks, 3, S/4, S/4)` and predicted IoUs of shape `(masks, 3)` in [0, 1], float32.
        """
        if prompts is None:
            prompts = self.mask_prompts(features.seg_states)[features.seg_index]
        mask_logits, ious, object_scores = self.grounding_encoder.decode(
            features.pyramid, prompts, features.image_index
        )
        if self.training:
            # Heads that no mask loss reaches get a gradient of zero rather than none, so that one process, DDP and
            # ZeRO-3 treat them alike.
            mask_logits = mask_logits + 0.0 * (ious.sum() + object_scores.sum())
        return mask_logits, ious

    def decode_masks(self, features: SegFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The cheap half: of three candidate masks the one with the highest predicted IoU.

        Args:
            features (`SegFeatures`): from `encode`.

        Returns:
            `mask_logits` of shape `(masks, S/4, S/4)` and their predicted IoUs of shape `(masks,)`, float32.
        """
        output = self._draw(features)
        return output.mask_logits, output.iou_scores

    def _draw(
        self, features: SegFeatures, prompts: torch.Tensor | None = None, output_candidates: bool = False
    ) -> Sa2VAOutput:
        """What `forward` says of masks."""
        count = len(features.seg_index)
        if count == 0 and not self.must_run_everything:
            grid = self.config.grounding_config
            candidates = features.seg_states.new_zeros((0, 3, grid.mask_size, grid.mask_size), dtype=torch.float32)
            ious, prompts = candidates.new_zeros((0, 3)), candidates.new_zeros((0, grid.hidden_dim))
        else:
            some = features.at_least_one()
            if prompts is None:
                prompts = self.mask_prompts(some.seg_states)[some.seg_index]
            elif count == 0:
                prompts = prompts.new_zeros((1, prompts.shape[-1])) + prompts.sum()
            candidates, ious = self.decode_candidates(some, prompts)
        best = ious.argmax(dim=-1)
        index = torch.arange(len(best), device=best.device)
        # (Cut off is what was drawn for form's sake. It stays in the graph.)
        output = Sa2VAOutput(
            mask_logits=candidates[index, best][:count],
            iou_scores=ious[index, best][:count],
            seg_states=features.seg_states,
            row_index=features.row_index,
        )
        if output_candidates:
            output.candidate_logits, output.candidate_iou_scores = candidates[:count], ious[:count]
            output.prompts = prompts[:count]
        return output

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        grounding_pixel_values: torch.Tensor | None = None,
        image_counts: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_grid_thw: torch.LongTensor | None = None,
        features: SegFeatures | None = None,
        prompts: torch.Tensor | None = None,
        encode_only: bool = False,
        output_candidates: bool = False,
        region_masks: torch.Tensor | None = None,
        region_counts: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> Sa2VAOutput:
        """
        Teacher-forced pass over whole conversations: language logits and a mask for each `[SEG]` on each of its
        images.

        DDP, ZeRO-3 and mixed precision wrap this method and no other, so everything that training needs can be had
        from it: the first half alone (`encode_only`), the second half alone (`features`), all candidates
        (`output_candidates`) and masks of other prompts than the model's own (`prompts`).

        Args:
            input_ids, attention_mask, pixel_values, image_grid_thw, region_masks, region_counts: see `hidden_states`.
            grounding_pixel_values, image_counts: see `encode`.
            labels (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): -100 where nothing is to be learned.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0):
                Positions to compute language logits at: all (0), the last n, or the given ones. The head of a large
                vocabulary is the largest tensor of a training step and only answers need it.
            features (`SegFeatures`, *optional*):
                In place of the inputs of `encode`, which is skipped: masks without language logits.
            prompts (`torch.Tensor` of shape `(masks, C)`, *optional*):
                With `features`: the embeddings to draw from, in place of those that `mask_prompts` makes of the
                states.
            encode_only (`bool`, *optional*, defaults to `False`):
                Stop after `encode`, for whoever keeps its features.
            output_candidates (`bool`, *optional*, defaults to `False`):
                Return all three candidates of each mask too, and the embeddings that they were drawn from.
            kwargs:
                Nothing that has an effect: the masks of a collator's batch, so that `model(**batch)` is a forward
                pass, and keywords that wrappers pass to every model, where they ask for nothing (`use_cache=False`,
                `return_dict=True`, `None`).

        Returns:
            `Sa2VAOutput`.

        Raises:
            `ValueError`: `features` together with `labels`, `input_ids` or `encode_only`, `prompts` without
                `features`, `encode_only` with `output_candidates`, or neither `features` nor `input_ids`.
            `TypeError`: a keyword that the model does not know.
        """
        given = [name for name, value in kwargs.items() if value is not None and value is not _IDLE.get(name)]
        if unknown := [name for name in given if name not in MASK_TARGETS]:
            raise TypeError(f"{type(self).__name__}.forward does not take {', '.join(unknown)}.")
        if features is not None:
            if labels is not None or input_ids is not None:
                raise ValueError("`features` stand in for `input_ids`, and there are no language logits for `labels`.")
            if encode_only:
                raise ValueError("encode_only makes `features`; with `features` it has no effect.")
            return self._draw(features, prompts, output_candidates)
        if prompts is not None:
            raise ValueError("`prompts` are drawn on `features`: encode the batch first, with encode_only=True.")
        if encode_only and output_candidates:
            raise ValueError("output_candidates has no effect with encode_only=True, which draws no masks.")
        if input_ids is None:
            raise ValueError("The model needs `input_ids`, or the `features` of an earlier `encode`.")
        states, seg_states = self._last_states(
            input_ids, attention_mask, pixel_values, image_grid_thw, region_masks, region_counts
        )
        features = self._at_seg(input_ids, seg_states, grounding_pixel_values, image_counts)
        if encode_only:
            return Sa2VAOutput(seg_states=features.seg_states, row_index=features.row_index, features=features)
        output = self._draw(features, output_candidates=output_candidates)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(states[:, keep])
        if len(features.seg_index) == 0:
            # What was drawn for form's sake has to be reached from the loss.
            logits = logits + 0.0 * output.mask_logits.sum().to(logits.dtype)
        loss = None
        if labels is not None:
            targets = F.pad(labels, (0, 1), value=-100)[:, 1:][:, keep]
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
        # (Made anew: the order of its values is the order in which they are set, and the loss comes first.)
        return Sa2VAOutput(loss=loss, logits=logits, **output)

    def generate(
        self, inputs: torch.LongTensor | None = None, *args: Any, **kwargs: Any
    ) -> torch.LongTensor | ModelOutput:
        """
        The VLM's own `generate`, with the positions and the regions of `hidden_states`. SAM 2 takes no part in it.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        kwargs |= self._grid_inputs(input_ids, kwargs.get("image_grid_thw"))
        regions = (kwargs.pop("region_masks", None), kwargs.pop("region_counts", None))
        with self._regions(kwargs.get("pixel_values"), *regions):
            return self.vlm.generate(input_ids, *args, **kwargs)
