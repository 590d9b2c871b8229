import copy
import operator
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    BitsAndBytesConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, logging

from ..errors import CheckpointError
from ..media.clips import open_video
from ..media.pictures import too_deep
from .checkpoints import (
    HUB_OPTIONS,
    Weights,
    adapter_advice,
    checkpoint_folder,
    read_config,
    remove_weights,
    save_published,
    stored_dtype,
    weight_times,
)
from .configuration import Sa2VAConfig, check_video_options, official_seg_state
from .frame_policy import select_frames
from .grounding import GroundingEncoder, upsample_mask_logits, whole_weights
from .processing import SEG_TOKEN, Sa2VAProcessor
from .tracking import track


logger = logging.get_logger(__name__)

# Modules that quantised loading leaves alone: all but the layers of the language model.
UNQUANTISED = (
    "vlm.lm_head",
    "vlm.model.vision_tower",
    "vlm.model.visual",
    "vlm.model.multi_modal_projector",
    "text_hidden_fcs",
    "grounding_encoder",
)


# Options of `generate` that change what it returns, and inputs that are made here.
_OTHER_RETURNS = (
    "num_return_sequences",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
)
_OWN_INPUTS = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "pixel_values", "image_grid_thw")


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

    def _map(self, change) -> "SegFeatures":
        tensors = (self.seg_states, self.seg_index, self.image_index, self.row_index)
        return SegFeatures(*map(change, tensors), tuple(map(change, self.pyramid)))


@dataclass
class Sa2VAOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned with `labels`):
            Cross-entropy of the answers. The mask losses are the trainers'.
        logits (`torch.Tensor` of shape `(batch, tokens, vocabulary)`): of the kept positions; `None` from features.
        mask_logits (`torch.Tensor` of shape `(masks, S/4, S/4)`): float32; of the best of the three candidates.
        iou_scores (`torch.Tensor` of shape `(masks,)`): predicted IoU in [0, 1] of that candidate.
        seg_states (`torch.Tensor` of shape `(segs, D)`): of [`SegFeatures`].
        row_index (`torch.LongTensor` of shape `(masks,)`): the row of the batch that each mask belongs to.
        features (`SegFeatures`, *optional*, returned with `encode_only`): what `encode` made of the batch.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None
    iou_scores: torch.Tensor | None = None
    seg_states: torch.Tensor | None = None
    row_index: torch.Tensor | None = None
    features: SegFeatures | None = None


@dataclass
class Segmentation:
    """
    What `segment` says of one image or one video.

    Only the decoder's own small grids are stored. The maps at full size are drawn from them on every access, so take
    them once; of a long video take them frame by frame, with `frame`.

    Args:
        text (`str`): the answer, without the end marker.
        phrases (`list[str | None]`): the tagged phrase of each object, `None` where the answer tags none.
        low_res_logits (`torch.Tensor` of shape `(objects[, frames], S/4, S/4)`):
            float32; on the model's device, of a video on the CPU.
        iou_scores (`torch.Tensor` of shape `(objects[, frames])`): predicted IoU in [0, 1].
        size (`tuple[int, int]`): height and width of the image.
        image_size (`int`): side S of SAM 2's square.
        threshold (`float`): probability above which a pixel belongs to the mask.
        prompted_frames (`list[int]`, *optional*): of a video, the frames that the language model saw and prompted.
    """

    text: str
    phrases: list[str | None]
    low_res_logits: torch.Tensor
    iou_scores: torch.Tensor
    size: tuple[int, int]
    image_size: int
    threshold: float
    prompted_frames: list[int] | None = None

    @property
    def mask_logits(self) -> torch.Tensor:
        """`(objects[, frames], S, S)`, float32, on SAM 2's square."""
        return self._draw((self.image_size, self.image_size))

    @property
    def probabilities(self) -> torch.Tensor:
        """`(objects[, frames], H, W)` in [0, 1], float32, at the image's own size."""
        return self._draw(self.size, torch.sigmoid)

    @property
    def masks(self) -> torch.Tensor:
        """`(objects[, frames], H, W)`, bool: `probabilities > threshold`."""
        return self._draw(self.size, lambda logits: logits.sigmoid() > self.threshold)

    def frame(self, index: int) -> "Segmentation":
        """
        One frame of a video, as a result of its own.

        Args:
            index (`int`): of the frame.

        Raises:
            `ValueError`: the result is an image's.
            `IndexError`: there is no such frame.
        """
        if self.low_res_logits.ndim != 4:
            raise ValueError("frame is for results of segment(video=...); this is the result of an image.")
        return replace(
            self,
            low_res_logits=self.low_res_logits[:, index],
            iou_scores=self.iou_scores[:, index],
            prompted_frames=None,
        )

    def _draw(self, size, finish=lambda logits: logits):
        # A few maps at a time: those on SAM 2's square may be larger than what is asked for.
        parts = self.low_res_logits.flatten(end_dim=-3).split(8)
        maps = torch.cat([finish(upsample_mask_logits(part, self.image_size, size)) for part in parts])
        return maps.reshape(*self.low_res_logits.shape[:-2], *size)


class Sa2VAForConditionalGeneration(PreTrainedModel, GenerationMixin):
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
        self.post_init()

    def _init_weights(self, module: nn.Module):
        # The two halves initialise themselves and `text_hidden_fcs` keeps torch's own initialisation.
        pass

    @property
    def base_model(self) -> nn.Module:
        """The backbone that returns `last_hidden_state`, as TRL's fused head expects it."""
        return self.vlm.model

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module):
        self.vlm.set_output_embeddings(value)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *args,
        config: Sa2VAConfig | None = None,
        dtype: str | torch.dtype | None = "auto",
        subfolder: str = "",
        **kwargs,
    ) -> "Sa2VAForConditionalGeneration":
        """
        Load a native checkpoint or one in the layout that Sa2VA publishes, without remote code and strictly.

        Weights are read from safetensors one tensor at a time and cast while they are read, so that the host never
        holds much more than the model in its target dtype. (ZeRO-3: the first process holds it once, the others
        nothing.)

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder or a Hub id.
            config (`Sa2VAConfig`, *optional*): in place of the checkpoint's own.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Of the weights; `"auto"` is what the config says, or else what is stored. A published config may say
                bfloat16 where the files hold float32: say `"float32"` to have every value as it was published.
            subfolder (`str`, *optional*): of the folder or repository.
            kwargs:
                As in transformers: `device_map`, `attn_implementation`, `output_loading_info`, `quantization_config`
                (bitsandbytes; the language model's layers only, everything else stays as it is), and `revision`,
                `token`, `cache_dir`, `force_download` and `local_files_only` of the Hub.

        Returns:
            `Sa2VAForConditionalGeneration` in evaluation mode.

        Raises:
            `CheckpointError`: an adapter or another kind of model, an unknown family, weights that are pickles or
            damaged, or tensors that are missing, unexpected or misshapen (all of them are named).
            `ValueError`: an option that has no meaning here.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, config=config, dtype=dtype, **kwargs)
        if "use_flash_attn" in kwargs:
            raise ValueError("use_flash_attn is the remote code's: give attn_implementation='flash_attention_2'.")
        meaningless = {"gguf_file", "variant", "key_mapping", "ignore_mismatched_sizes", "state_dict", "weights_only"}
        if given := sorted(name for name in meaningless & kwargs.keys() if kwargs[name]):
            raise ValueError(
                f"Sa2VA's from_pretrained does not take {', '.join(given)}: its files are checked strictly."
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in meaningless}
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = _of_language_model_only(kwargs["quantization_config"])
        if adapter := (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path"):
            # (Auto classes come here with an adapter's base. They would load the adapter without a check of it.)
            raise CheckpointError(adapter_advice(adapter, pretrained_model_name_or_path))
        hub_options = {name: kwargs.pop(name) for name in HUB_OPTIONS if kwargs.get(name) is not None}
        folder, commit = checkpoint_folder(pretrained_model_name_or_path, subfolder=subfolder, **hub_options)
        config = read_config(folder) if config is None else copy.deepcopy(config)
        try:
            with whole_weights(), torch.device("meta"):
                skeleton = cls(copy.deepcopy(config))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{folder}/config.json describes no model that can be built: {error!r}") from error
        weights = Weights(folder, config, skeleton)
        try:
            dtype = kwargs.pop("torch_dtype", None) or dtype
            if dtype in ("auto", None):
                dtype = config.dtype or stored_dtype(folder)
            if isinstance(dtype, str):
                name, dtype = dtype, getattr(torch, dtype.removeprefix("torch."), None)
                if not isinstance(dtype, torch.dtype):
                    raise ValueError(f"dtype must be 'auto' or a torch dtype such as 'bfloat16', got {name!r}.")
            state_dict = weights.state_dict(dtype, keep=tuple(skeleton._keep_in_fp32_modules_strict or ()))
            loaded = super().from_pretrained(None, *args, config=config, state_dict=state_dict, dtype=dtype, **kwargs)
        finally:
            weights.close()
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config._name_or_path = str(pretrained_model_name_or_path)
        model.config._commit_hash = commit
        return loaded

    def save_pretrained(
        self, save_directory: str | Path, layout: str = "native", save_original_format: bool = False, **kwargs
    ):
        """
        As in transformers, but under the names that `state_dict` has: transformers would write the VLM under its older
        names, which `from_pretrained` understands and Trainer, when it goes back to the best checkpoint, does not.

        Args:
            save_directory (`str` or `Path`): where to.
            layout (`str`, *optional*, defaults to `"native"`):
                `"published"` writes config and tensor names as the official Sa2VA checkpoints have them. Where
                `config.seg_state` is not what the official code takes, only this package draws the same masks from
                them, and a warning says so.
            kwargs: of transformers; with `"published"` only `max_shard_size`.

        Raises:
            `ValueError`: an unknown layout, or an option that it does not take.
        """
        if layout == "native":
            earlier = weight_times(save_directory)
            super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)
            if kwargs.get("is_main_process", True):
                remove_weights(save_directory, earlier)
        elif layout == "published":
            if unknown := sorted(kwargs.keys() - {"max_shard_size"}):
                raise ValueError(f"save_pretrained(layout='published') does not take {', '.join(unknown)}.")
            save_published(self, save_directory, **kwargs)
            official = official_seg_state(self.config.vlm_config.model_type)
            if self.config.seg_state != official:
                logger.warning(
                    f"This model draws masks from seg_state={self.config.seg_state}, the official code from "
                    f"{official} states: it would draw others from {save_directory}. Use these weights with this "
                    "package, which reads seg_state in config.json."
                )
        else:
            raise ValueError(f"layout must be 'native' or 'published', got {layout!r}.")

    def _set_gradient_checkpointing(self, *args, **kwargs):
        # The language model only: it holds nearly all of the activations, and checkpointing the mask decoder would be
        # wrong under the reentrant variant.
        self.vlm.model.language_model._set_gradient_checkpointing(*args, **kwargs)

    def enable_input_require_grads(self):
        """
        For checkpointing under an adapter. The language model's embeddings only: transformers would hook those of the
        vision tower too, and a frozen tower would keep all of its activations.
        """
        self.vlm.model.language_model.enable_input_require_grads()

    def disable_input_require_grads(self):
        """Undo `enable_input_require_grads`."""
        self.vlm.model.language_model.disable_input_require_grads()

    def hidden_states(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
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

        Returns:
            `torch.Tensor` of shape `(batch, tokens, D)`.
        """
        return self._last_states(input_ids, attention_mask, pixel_values, image_grid_thw)[0]

    def _last_states(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.LongTensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden_states`, which language logits are made of, and those that `[SEG]` tokens are read from."""
        length = input_ids.shape[1]
        if pixel_values is None and self._must_run_everything:
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
        with torch.set_grad_enabled(trains), hook:
            outputs = self.vlm.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_values=pixel_values,
                use_cache=False,
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
    def _must_run_everything(self) -> bool:
        # Ranks whose batch holds only text must still run what the other ranks run, in the same order: ZeRO-3 gathers
        # weights module by module, and DDP waits for every gradient.
        return self.training or (torch.distributed.is_available() and torch.distributed.is_initialized())

    def _seg_features(
        self,
        states: torch.Tensor,
        input_ids: torch.LongTensor,
        grounding_pixel_values: torch.Tensor | None,
        image_counts: torch.LongTensor | None,
    ) -> SegFeatures:
        if grounding_pixel_values is None:
            size = self.config.grounding_config.image_size
            grounding_pixel_values = states.new_zeros((0, 3, size, size))
        if image_counts is None:
            if len(grounding_pixel_values) not in (0, len(input_ids)):
                raise ValueError(
                    f"{len(grounding_pixel_values)} grounding images for {len(input_ids)} rows: pass `image_counts`, "
                    "the number of images of each row."
                )
            image_counts = input_ids.new_full((len(input_ids),), int(len(grounding_pixel_values) > 0))
        rows, positions = torch.nonzero(input_ids == self.config.seg_token_id, as_tuple=True)
        seg_index, image_index, row_index = pair_masks(rows, image_counts)
        pixels = grounding_pixel_values
        if len(pixels) == 0 and self._must_run_everything:
            pixels = pixels.new_zeros((1, *pixels.shape[1:]))
        if len(pixels):
            pyramid = self.grounding_encoder.encode(pixels)
        else:
            grid = self.config.grounding_config
            pyramid = tuple(
                states.new_zeros((0, grid.hidden_dim, grid.image_size // stride, grid.image_size // stride))
                for stride in (4, 8, 16)
            )
        return SegFeatures(states[rows, positions], seg_index, image_index, row_index, pyramid)

    def encode(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        grounding_pixel_values: torch.Tensor | None = None,
        image_counts: torch.LongTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
    ) -> SegFeatures:
        """
        The costly half: hidden states at the `[SEG]` tokens (each token's own position, `config.seg_state`) and SAM
        2's image pyramid.

        An image goes through SAM 2's encoder once, however many `[SEG]` its row has.

        Args:
            input_ids, attention_mask, pixel_values, image_grid_thw: see `hidden_states`.
            grounding_pixel_values (`torch.Tensor` of shape `(images, 3, S, S)`, *optional*): SAM 2's pixels.
            image_counts (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Images of each row: 0 for text only, 1 for an image, the frames of a clip. Defaults to one each.

        Returns:
            `SegFeatures`.

        Raises:
            `ValueError`: images and rows do not pair up and `image_counts` was not given.
        """
        _, states = self._last_states(input_ids, attention_mask, pixel_values, image_grid_thw)
        return self._seg_features(states, input_ids, grounding_pixel_values, image_counts)

    def _prompts(self, seg_states: torch.Tensor) -> torch.Tensor:
        # Trained modules may be float32 on top of half-precision frozen ones.
        # (By name, not by index: PEFT's wrapper of a trained copy forwards attributes only.)
        return self.text_hidden_fcs(seg_states.to(getattr(self.text_hidden_fcs, "0").weight.dtype))

    def decode_candidates(self, features: SegFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The cheap half, before the choice: `text_hidden_fcs` and SAM 2's mask decoder.

        Args:
            features (`SegFeatures`): from `encode`.

        Returns:
            Mask logits of shape `(masks, 3, S/4, S/4)` and predicted IoUs of shape `(masks, 3)` in [0, 1], float32.
        """
        prompts = self._prompts(features.seg_states)[features.seg_index]
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
        if len(features.seg_index) == 0 and not self._must_run_everything:
            size = self.config.grounding_config.mask_size
            none = features.seg_states.new_zeros((0, size, size), dtype=torch.float32)
            return none, none.new_zeros(0)
        candidates, ious = self.decode_candidates(_at_least_one(features))
        best = ious.argmax(dim=-1)
        index = torch.arange(len(best), device=best.device)
        return candidates[index, best], ious[index, best]

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
        encode_only: bool = False,
        draw: Callable | None = None,
        **kwargs,
    ) -> Sa2VAOutput:
        """
        Teacher-forced pass over whole conversations: language logits and a mask for each `[SEG]` on each of its
        images.

        Args:
            input_ids, attention_mask, pixel_values, image_grid_thw: see `hidden_states`.
            grounding_pixel_values, image_counts: see `encode`.
            labels (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): -100 where nothing is to be learned.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0):
                Positions to compute language logits at: all (0), the last n, or the given ones. The head of a large
                vocabulary is the largest tensor of a training step and only answers need it.
            features (`SegFeatures`, *optional*):
                In place of the inputs of `encode`, which is skipped: masks without language logits.
            encode_only (`bool`, *optional*, defaults to `False`):
                Stop after `encode`, for whoever keeps its features. (Through `forward`, because that is what DDP,
                ZeRO-3 and mixed precision wrap.)
            draw (`Callable`, *optional*):
                With `features`: called with the model and them, and its result is returned. For whoever draws masks
                in another way, from within `forward` for the same reason.
            kwargs: what else the collator makes (masks at several sizes, row numbers), which is the trainers'.

        Returns:
            `Sa2VAOutput`.

        Raises:
            `ValueError`: `features` together with `labels`, or neither `features` nor `input_ids`.
        """
        if features is not None:
            if labels is not None or input_ids is not None:
                raise ValueError("`features` stand in for `input_ids`, and there are no language logits for `labels`.")
            if draw is not None:
                return draw(self, features)
            count = len(features.seg_index)
            # (Cut off is what `decode_masks` drew for form's sake. It stays in the graph.)
            mask_logits, iou_scores = (drawn[:count] for drawn in self.decode_masks(features))
            return Sa2VAOutput(
                mask_logits=mask_logits,
                iou_scores=iou_scores,
                seg_states=features.seg_states,
                row_index=features.row_index,
            )
        if input_ids is None:
            raise ValueError("The model needs `input_ids`, or the `features` of an earlier `encode`.")
        states, seg_states = self._last_states(input_ids, attention_mask, pixel_values, image_grid_thw)
        features = self._seg_features(seg_states, input_ids, grounding_pixel_values, image_counts)
        if encode_only:
            return Sa2VAOutput(seg_states=features.seg_states, row_index=features.row_index, features=features)
        mask_logits, iou_scores = self.decode_masks(features)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(states[:, keep])
        if len(features.seg_index) == 0:
            # Whatever `decode_masks` drew for form's sake stays in the graph and out of the result.
            logits = logits + 0.0 * mask_logits.sum().to(logits.dtype)
            mask_logits, iou_scores = mask_logits[:0], iou_scores[:0]
        loss = None
        if labels is not None:
            targets = F.pad(labels, (0, 1), value=-100)[:, 1:][:, keep]
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
        return Sa2VAOutput(
            loss=loss,
            logits=logits,
            mask_logits=mask_logits,
            iou_scores=iou_scores,
            seg_states=features.seg_states,
            row_index=features.row_index,
        )

    def generate(self, inputs: torch.LongTensor | None = None, *args, **kwargs):
        """The VLM's own `generate`, with the positions of `hidden_states`. SAM 2 takes no part in it."""
        input_ids = kwargs.pop("input_ids", inputs)
        kwargs |= self._grid_inputs(input_ids, kwargs.get("image_grid_thw"))
        return self.vlm.generate(input_ids, *args, **kwargs)

    @torch.no_grad()
    def answer(
        self,
        conversations: list[list[dict]],
        images: list[list[Image.Image]],
        processor: Sa2VAProcessor,
        clip: bool = False,
        **generate_kwargs,
    ) -> list[str]:
        """
        Write the next answer of each conversation (greedy unless told otherwise).

        Args:
            conversations (`list[list[dict]]`): messages that end with a user turn, see `Sa2VAProcessor.encode_chat`.
            images (`list[list[PIL.Image.Image]]`): the images of each conversation.
            processor (`Sa2VAProcessor`): of this model.
            clip (`bool`, *optional*, defaults to `False`): the images of a conversation are frames of a clip.
            generate_kwargs: for the VLM's `generate`; `max_new_tokens` defaults to 2048.

        Returns:
            `list[str]`: the answers with their special tokens, without the end marker.

        Raises:
            `ValueError`: as `Sa2VAProcessor.encode_chat`, or an option that makes `generate` return something else
            than one answer of tokens for each conversation.
        """
        return self._answer(conversations, images, processor, clip, **generate_kwargs)[0]

    def _answer(
        self, conversations, images, processor: Sa2VAProcessor, clip: bool, **generate_kwargs
    ) -> tuple[list[str], list[list[int]]]:
        """As `answer`, and the generated token ids with whatever ended them."""
        _check_generate_options(generate_kwargs)
        never = [processor.image_token_id, *(generate_kwargs.pop("suppress_tokens", None) or [])]
        pixels, blocks = _tiles(processor, images, clip)
        prompts = [processor.encode_chat(chat, part)[0] for chat, part in zip(conversations, blocks, strict=True)]
        input_ids = processor.pad(prompts, side="left").to(self.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        width = input_ids.shape[1]
        attention_mask = (torch.arange(width, device=self.device) >= width - lengths[:, None]).long()
        generated = self.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **BatchFeature(pixels).to(self.device, self.dtype),
            **{
                "do_sample": False,
                "max_new_tokens": 2048,
                **processor.stopping(),
                # One in the answer would ask for an image that is not there.
                "suppress_tokens": never,
                "pad_token_id": processor.tokenizer.pad_token_id,
                **generate_kwargs,
            },
        )
        answers = []
        for ids in generated[:, width:]:
            text = processor.tokenizer.decode(ids, skip_special_tokens=False)
            ends = [text.find(stop) for stop in processor.stop_strings if stop in text]
            answers.append(text[: min(ends)] if ends else text)
        return answers, generated[:, width:].tolist()

    @torch.no_grad()
    def segment(
        self,
        image: Image.Image | None = None,
        images: list[Image.Image] | None = None,
        video: list[Image.Image] | np.ndarray | str | os.PathLike | None = None,
        text: str | list[str] = "",
        processor: Sa2VAProcessor | None = None,
        threshold: float | None = None,
        answer: str | list[str] | None = None,
        frame_policy: str | None = None,
        num_frames: int | None = None,
        frames: list[int] | None = None,
        tracking: str | None = None,
        decode: Callable[[SegFeatures], tuple[torch.Tensor, torch.Tensor]] | None = None,
        **generate_kwargs,
    ) -> Segmentation | list[Segmentation]:
        """
        Segment what the text names.

        Of a video the language model sees a few frames, which prompt SAM 2; its memory carries the masks to all others
        (see [`~models.tracking.track`]).

        Args:
            image (`PIL.Image.Image`, *optional*): one image.
            images (`list[PIL.Image.Image]`, *optional*): a batch of images, each with its own text or all with one.
            video (`list[PIL.Image.Image]`, `np.ndarray` or path, *optional*):
                Frames of one size, a uint8 array of shape `(frames, H, W, 3)`, or a file as in
                [`~media.clips.open_video`] (a video, a TIFF of several pages, an animation), which is never decoded
                into memory as a whole.
            text (`str` or `list[str]`):
                The request. `<image>` marks the image's place; without it the image comes first, then a newline. No
                other token that the processor writes (`<IMG_CONTEXT>`, `<|im_end|>` …) may stand in it.
            processor (`Sa2VAProcessor`): of this model.
            threshold (`float`, *optional*, defaults to `config.mask_threshold`): between 0 and 1.
            answer (`str` or `list[str]`, *optional*):
                Nothing is generated and this answer (`"Sure, [SEG]."`) is taken as given: one forward pass. An end
                marker at its end, which recorded answers have, is dropped, since it is added here; the result's text
                is without it.
            frame_policy, num_frames, tracking (*optional*): of a video, in place of the config's.
            frames (`list[int]`, *optional*):
                Of a video, the frames to prompt, in place of `frame_policy` and `num_frames`. Frames before the first
                of them are tracked backward.
            decode (`Callable`, *optional*): of images, in place of `decode_masks`; see [`~evaluation.routing.Router`].
            generate_kwargs: for the VLM's `generate`; none with `answer`.

        Returns:
            `Segmentation`, or a list of them for `images`. An answer without `[SEG]` has no objects.

        Raises:
            `ValueError`: not exactly one of `image`, `images` and `video`, no processor, texts that are none, do not
            pair with images or hold reserved tokens, options of `generate` that change what it returns, an image that
            is no PIL image or has more than 8 bits a channel, a threshold outside (0, 1), a video that cannot be read
            or has no frames or frames of different sizes, options of a video without one, or frames to prompt that it
            does not have.
        """
        if processor is None:
            raise ValueError("segment needs `processor`, the Sa2VAProcessor of this model.")
        if sum(given is not None for given in (image, images, video)) != 1:
            raise ValueError("segment takes either `image` or `images` or `video`, and exactly one of them.")
        threshold = self.config.mask_threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
        options = {"frame_policy": frame_policy, "num_frames": num_frames, "frames": frames, "tracking": tracking}
        if video is not None:
            if decode is not None:
                raise ValueError("segment takes decode with `image` or `images` only: a video's masks are tracked.")
            return self._segment_video(video, text, processor, threshold, answer, **options, **generate_kwargs)
        if given := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"segment takes {', '.join(given)} with `video` only.")
        batch = [image] if images is None else list(images)
        _check_pictures(batch)
        texts = _texts("text", text, len(batch))
        answers = [None] * len(batch) if answer is None else _texts("answer", answer, len(batch))
        if len(texts) != len(batch) or len(answers) != len(batch):
            raise ValueError(f"{len(batch)} images, {len(texts)} texts and {len(answers)} answers do not pair up.")
        answers, features, own = self._read(
            texts,
            [[entry] for entry in batch],
            processor,
            None if answer is None else answers,
            grounding_pixel_values=processor.grounding_inputs(batch),
            **generate_kwargs,
        )
        mask_logits, iou_scores = (decode or self.decode_masks)(features)
        results = [
            Segmentation(
                text=reply,
                phrases=processor.phrases(reply),
                low_res_logits=mask_logits[segs],
                iou_scores=iou_scores[segs],
                size=picture.size[::-1],
                image_size=self.config.grounding_config.image_size,
                threshold=threshold,
            )
            for reply, segs, picture in zip(answers, own, batch, strict=True)
        ]
        return results[0] if images is None else results

    def _segment_video(
        self,
        video,
        text: str,
        processor: Sa2VAProcessor,
        threshold: float,
        answer: str | None,
        frame_policy: str | None,
        num_frames: int | None,
        frames: list[int] | None,
        tracking: str | None,
        **generate_kwargs,
    ) -> Segmentation:
        if isinstance(text, (list, tuple)) or isinstance(answer, (list, tuple)):
            raise ValueError("A video has one text and at most one answer; got a list.")
        text, answer = _texts("text", text, 1)[0], None if answer is None else _texts("answer", answer, 1)[0]
        if frames is not None and (frame_policy is not None or num_frames is not None):
            raise ValueError("`frames` says which frames to prompt, so frame_policy and num_frames have no effect.")
        policy = self.config.frame_policy if frame_policy is None else frame_policy
        count = self.config.num_frames if num_frames is None else num_frames
        tracking = self.config.tracking if tracking is None else tracking
        check_video_options(policy, count, tracking)
        size = self.config.grounding_config.image_size
        with open_video(video) as clip:
            total = len(clip)
            prompted = select_frames(policy, total, count) if frames is None else _checked(frames, total)
            answers, features, own = self._read(
                [text],
                [[clip[index] for index in prompted]],
                processor,
                None if answer is None else [answer],
                clip=True,
                **generate_kwargs,
            )
            prompts = self._prompts(features.seg_states[own[0]])
            result = Segmentation(
                text=answers[0],
                phrases=processor.phrases(answers[0]),
                # On the CPU: the one thing that grows with the length of the clip.
                low_res_logits=torch.zeros(len(prompts), total, size // 4, size // 4),
                iou_scores=torch.zeros(len(prompts), total),
                size=clip[0].size[::-1],
                image_size=size,
                threshold=threshold,
                prompted_frames=prompted,
            )
            if len(prompts):
                for index, mask_logits, iou_scores in track(
                    self.grounding_encoder,
                    prompts,
                    lambda index: processor.grounding_inputs([clip[index]]).to(self.device, self.dtype),
                    total,
                    prompted,
                    mask_prompt=(threshold, result.size) if tracking == "mask_prompt" else None,
                ):
                    result.low_res_logits[:, index] = mask_logits
                    result.iou_scores[:, index] = iou_scores
        return result

    def _read(
        self,
        texts: list[str],
        groups: list[list[Image.Image]],
        processor: Sa2VAProcessor,
        answers: list[str] | None,
        clip: bool = False,
        grounding_pixel_values: torch.Tensor | None = None,
        **generate_kwargs,
    ) -> tuple[list[str], SegFeatures, list[torch.Tensor]]:
        """
        The answers to `texts` about `groups` of images (generated unless they are given), what `encode` makes of them,
        and for each row the `[SEG]`s (indices into `seg_states`) that its answer holds.
        """
        if answers is not None and generate_kwargs:
            raise ValueError(f"With `answer` nothing is generated, so {', '.join(generate_kwargs)} have no effect.")
        forced = answers is not None
        if forced:
            answers = [processor.without_end(reply) for reply in answers]
        conversations = [[{"role": "user", "content": entry}] for entry in texts]
        pixels, blocks = _tiles(processor, groups, clip)
        prompts = [processor.encode_chat(chat, part)[0] for chat, part in zip(conversations, blocks, strict=True)]
        # The masks come from one teacher-forced pass over prompt and answer, exactly as in training.
        generated = [None] * len(texts)
        if not forced:
            answers, generated = self._answer(conversations, groups, processor, clip, **generate_kwargs)
        sequences = []
        for chat, reply, part, prompt, ids in zip(conversations, answers, blocks, prompts, generated, strict=True):
            # A generated answer goes in as the tokens that were generated: tokenising its text could give others.
            # (Unless it spells out a [SEG] that is none.)
            if forced:
                sequences.append(processor.encode_chat([*chat, {"role": "assistant", "content": reply}], part)[0])
            elif ids.count(processor.seg_token_id) == reply.count(SEG_TOKEN):
                sequences.append(prompt + ids)
            else:
                sequences.append(prompt + processor.answer_ids(reply))
        input_ids = processor.pad(sequences).to(self.device)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=self.device)
        attention_mask = (torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]).long()
        if grounding_pixel_values is not None:
            grounding_pixel_values = grounding_pixel_values.to(self.device, self.dtype)
        features = self.encode(
            input_ids,
            attention_mask,
            **BatchFeature(pixels).to(self.device, self.dtype),
            grounding_pixel_values=grounding_pixel_values,
        )
        rows, positions = torch.nonzero(input_ids == self.config.seg_token_id, as_tuple=True)
        # A [SEG] that the user's own text mentions is not part of the answer.
        answered = positions >= torch.tensor([len(prompt) for prompt in prompts], device=self.device)[rows]
        own = [torch.nonzero((rows == row) & answered)[:, 0] for row in range(len(answers))]
        return answers, features, own


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


def _of_language_model_only(config: BitsAndBytesConfig | dict) -> BitsAndBytesConfig:
    """
    Keep quantisation off the vision tower, the heads and SAM 2: they are small, and masks feel every bit.

    Raises:
        `ValueError`: another method than bitsandbytes.
    """
    method = config.get("quant_method", "bitsandbytes") if isinstance(config, dict) else config.quant_method
    if method != "bitsandbytes":
        raise ValueError(f"quantization_config: only bitsandbytes (4 or 8 bit) is supported, got {method!r}.")
    config = BitsAndBytesConfig.from_dict(config) if isinstance(config, dict) else copy.deepcopy(config)
    config.llm_int8_skip_modules = [*(config.llm_int8_skip_modules or []), *UNQUANTISED]
    return config


def _at_least_one(features: SegFeatures) -> SegFeatures:
    """The same features, with one mask of a zero prompt where there is none, so that every rank runs the decoder."""
    if len(features.seg_index):
        return features
    states = features.seg_states
    zero = features.seg_index.new_zeros(1)
    state = states.new_zeros((1, states.shape[-1])) + states.sum()
    pyramid = features.pyramid
    if len(pyramid[0]) == 0:
        pyramid = tuple(level.new_zeros((1, *level.shape[1:])) for level in pyramid)
    return SegFeatures(state, zero, zero, zero, pyramid)


def _texts(name: str, texts: str | list[str], count: int) -> list[str]:
    """One text for each image; a `ValueError` where one is no string."""
    texts = [texts] * count if not isinstance(texts, (list, tuple)) else list(texts)
    if wrong := [entry for entry in texts if not isinstance(entry, str)]:
        raise ValueError(f"`{name}` must be a string, or a list of strings for `images`; got {wrong[0]!r}.")
    return texts


def _check_generate_options(options: dict) -> None:
    """A `ValueError` where `generate` would not return one sequence of tokens for each prompt, or not for these."""
    config = options.get("generation_config")
    given = {name: options.get(name, getattr(config, name, None)) for name in _OTHER_RETURNS}
    other = [name for name, value in given.items() if value and not (name == "num_return_sequences" and value == 1)]
    other += [name for name in ("custom_generate", *_OWN_INPUTS) if options.get(name) is not None]
    if other:
        raise ValueError(
            f"{', '.join(other)}: one answer is generated for each request, from inputs that are made here, and only "
            "its tokens are used. Call `generate` itself for anything else."
        )


def _check_pictures(pictures: list) -> None:
    """A `ValueError` where there are none, or one is no PIL image or would be clipped by a conversion to RGB."""
    if not pictures:
        raise ValueError("`images` is empty.")
    for index, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise ValueError(f"Image {index} must be a PIL image, got {type(picture).__name__}.")
        if fault := too_deep(picture):
            raise ValueError(f"Image {index} {fault}.")


def _checked(frames: list[int], total: int) -> list[int]:
    """Frames to prompt, in order; a `ValueError` where the clip does not have them."""
    frames = [operator.index(index) for index in frames]
    if not frames:
        raise ValueError("`frames` must name at least one frame to prompt.")
    if outside := [index for index in frames if not 0 <= index < total]:
        raise ValueError(f"`frames` holds {outside}, but the video's {total} frames are 0 to {total - 1}.")
    if len(set(frames)) < len(frames):
        raise ValueError(f"`frames` holds a frame twice: {frames}.")
    return sorted(frames)


def _tiles(
    processor: Sa2VAProcessor, images: list[list[Image.Image]], clip: bool = False
) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    """Tiles of all images of a batch, and the text blocks of each row."""
    pixels, blocks = processor.tiles([image for group in images for image in group], clip=clip)
    remaining = iter(blocks)
    return pixels, [[next(remaining) for _ in group] for group in images]
