"""SAM 2, prompted by a language embedding."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

from ..mask_logits import upsample_mask_logits  # noqa: F401  (defined here once)
from .configuration import Sa2VAGroundingConfig
from .memory_attention import FrameMemoryAttention, MemoryCrossAttention


def _rope_attention(
    config: Sa2VAGroundingConfig, kind: type[RoPEAttention] = RoPEAttention, **kwargs
) -> RoPEAttention:
    side = config.image_size // 16
    return kind(
        embedding_dim=config.hidden_dim,
        num_heads=1,
        downsample_rate=1,
        dropout=0.1,
        rope_theta=10000.0,
        feat_sizes=[side, side],
        **kwargs,
    )


def build_sam2(config: Sa2VAGroundingConfig) -> SAM2Base:
    """
    SAM 2 from the `sam2` package's own modules, hence with the checkpoints' own names; its memory attention with less
    arithmetic.

    Every value that is not a size is that of `sam2_hiera_l.yaml` (2.0) or `sam2.1_hiera_l.yaml` (2.1), and is the same
    in the small variants.

    Args:
        config (`Sa2VAGroundingConfig`): the sizes.

    Returns:
        `SAM2Base`: without weights from a checkpoint.
    """
    dim = config.hidden_dim
    trunk = Hiera(
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        stages=tuple(config.stages),
        global_att_blocks=tuple(config.global_att_blocks),
        window_spec=tuple(config.window_spec),
        window_pos_embed_bkg_spatial_size=tuple(config.window_pos_embed_bkg_spatial_size),
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=dim, warmup_cache=False),
        d_model=dim,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    memory_layer = MemoryAttentionLayer(
        activation="relu",
        cross_attention=_rope_attention(config, MemoryCrossAttention, rope_k_repeat=True, kv_in_dim=config.memory_dim),
        d_model=dim,
        dim_feedforward=config.memory_mlp_dim,
        dropout=0.1,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=_rope_attention(config),
    )
    memory_encoder = MemoryEncoder(
        out_dim=config.memory_dim,
        in_dim=dim,
        mask_downsampler=MaskDownSampler(embed_dim=dim, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True), 2),
        position_encoding=PositionEmbeddingSine(num_pos_feats=config.memory_dim, warmup_cache=False),
    )
    is_2_1 = config.sam2_version == "2.1"
    sam2 = SAM2Base(
        image_encoder=ImageEncoder(trunk=trunk, neck=neck, scalp=1),
        memory_attention=FrameMemoryAttention(
            dim, pos_enc_at_input=True, layer=memory_layer, num_layers=config.memory_layers
        ),
        memory_encoder=memory_encoder,
        num_maskmem=config.num_maskmem,
        image_size=config.image_size,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=is_2_1,
        proj_tpos_enc_in_obj_ptrs=is_2_1,
        use_signed_tpos_enc_to_obj_ptrs=is_2_1,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=is_2_1,
    )
    if config.decoder_mlp_dim != 2048:  # `SAM2Base` writes this width into its constructor
        sam2.sam_mask_decoder.transformer = TwoWayTransformer(
            depth=2, embedding_dim=dim, num_heads=8, mlp_dim=config.decoder_mlp_dim
        )
    if config.separate_tracking_decoder:
        sam2.sam_mask_decoder_modified = deepcopy(sam2.sam_mask_decoder)
    return sam2


@contextmanager
def _unsharded():
    """
    Leave DeepSpeed's `zero.Init` for a while: SAM 2 copies layers and reads shapes while it is built, which sharded
    weights do not allow.

    Yields:
        What shards a finished module, or `None` where `zero.Init` is not active.
    """
    if not is_deepspeed_zero3_enabled():
        yield None
        return
    import deepspeed
    from deepspeed.runtime.zero import partition_parameters

    if partition_parameters.zero_init_context == 0:
        yield None
        return
    partition_parameters.shutdown_init_context()
    try:
        yield lambda module: deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config())
    finally:
        partition_parameters.restore_init_context()


@contextmanager
def whole_weights() -> Iterator[None]:
    """
    Make a model whole although ZeRO-3 is on, whose shards would otherwise be made with it: random weights that every
    process must draw alike, or a skeleton on the meta device.
    """
    config = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config


class GroundingEncoder(PreTrainedModel):
    """
    SAM 2, prompted by a language embedding instead of by clicks.

    Its only submodule `sam2_model` has the parameter names of Sa2VA's checkpoints
    (`grounding_encoder.sam2_model.*`, 900 tensors for Hiera-Large). The mask decoder's `conv_s0` and `conv_s1` run in
    `decode`, not in `encode`, because they belong to the decoder and train with it.

    Args:
        config (`Sa2VAGroundingConfig`): sizes of SAM 2.
    """

    config_class = Sa2VAGroundingConfig
    main_input_name = "pixel_values"
    # SAM 2 calls torch's attention itself, so it accepts whichever implementation the VLM is asked to use.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    # The random matrix behind SAM 2's position encoding; half of its bits would move every coordinate.
    _keep_in_fp32_modules_strict = ["sam_prompt_encoder.pe_layer"]

    def __init__(self, config: Sa2VAGroundingConfig):
        super().__init__(config)
        # `from_pretrained` builds on the meta device, but SAM 2 computes constants (rotary frequencies, the schedule
        # of stochastic depth) while it is built and keeps them as plain attributes, which nothing would fill in later.
        # So the modules are made on the CPU, and only what has weights goes to where it was asked for.
        device = torch.empty(0).device
        # (Without drawing random values for weights that go to the meta device.)
        uninitialised = initialization.no_init_weights() if device.type == "meta" else nullcontext()
        with _unsharded() as shard, torch.device("cpu"), uninitialised:
            sam2 = build_sam2(config)
        if shard is not None:
            shard(sam2)
        elif device.type != "cpu":
            sam2.to(device)
        self.sam2_model = sam2
        self.post_init()

    def _init_weights(self, module: nn.Module):
        # The `sam2` package initialises its modules in their constructors.
        pass

    def _apply(self, fn, recurse=True):
        # `.to(torch.bfloat16)` (Trainer's `bf16_full_eval`) moves the matrix but leaves its bits alone.
        layer = self.sam2_model.sam_prompt_encoder.pe_layer
        exact = layer.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)
        moved = layer.positional_encoding_gaussian_matrix
        if moved.dtype != exact.dtype:
            layer.positional_encoding_gaussian_matrix = exact.to(moved.device)
        return self

    @property
    def mask_decoder(self) -> nn.Module:
        """The decoder that language prompts go to, and the one that trains."""
        return getattr(self.sam2_model, self.config.mask_decoder_name)

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        SAM 2's image pyramid, before anything that trains with the mask decoder.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, S, S)`): normalised pixels, S = `config.image_size`.

        Returns:
            Three tensors of shapes `(images, C, S/4, S/4)`, `(images, C, S/8, S/8)` and `(images, C, S/16, S/16)`,
            C = `config.hidden_dim`.
        """
        encoder = self.sam2_model.image_encoder
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in encoder.parameters())
        with torch.set_grad_enabled(trains):
            return tuple(encoder(pixel_values.to(self.sam2_model.no_mem_embed.dtype))["backbone_fpn"])

    def decode(
        self,
        pyramid: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        prompts: torch.Tensor,
        image_index: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Draw three candidate masks for every prompt.

        The sparse prompt is what Sa2VA's code produces: two "not a point" tokens (the dummy point and the padding that
        the prompt encoder adds when there is no box), then the language embedding.

        Args:
            pyramid (`tuple` of three `torch.Tensor`): from `encode`.
            prompts (`torch.Tensor` of shape `(masks, C)`): language embeddings.
            image_index (`torch.LongTensor` of shape `(masks,)`): the image that each prompt belongs to.

        Returns:
            `mask_logits` of shape `(masks, 3, S/4, S/4)` (float32), predicted IoUs of shape `(masks, 3)` in [0, 1],
            and object scores of shape `(masks, 1)` (logits, unused by Sa2VA's own decoding).
        """
        fine, middle, coarse = pyramid
        features = (fine, middle, self.without_memory(coarse)[image_index])
        mask_logits, ious, _, object_scores = self.draw(self.mask_decoder, features, image_index, prompts=prompts)
        return mask_logits, ious, object_scores

    def without_memory(self, coarse: torch.Tensor) -> torch.Tensor:
        """The coarse level of the pyramid as the mask decoder takes it of an image that no memory comes with."""
        dtype = self.mask_decoder.conv_s0.weight.dtype
        return coarse.to(dtype) + self.sam2_model.no_mem_embed.to(dtype).transpose(1, 2)[..., None]

    def draw(
        self,
        decoder: nn.Module,
        features: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        image_index: torch.Tensor,
        prompts: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Run the prompt encoder and one mask decoder, as `SAM2Base._forward_sam_heads` does, with a language prompt
        where there is one, and without the object-score gate.

        Args:
            decoder (`nn.Module`): `mask_decoder`, or the one for tracking.
            features (`tuple` of three `torch.Tensor`):
                The fine and the middle level of the pyramid for each image, and the coarse level for each mask, with
                the memory (or what stands for none) already in it.
            image_index (`torch.LongTensor` of shape `(masks,)`): the image of each mask.
            prompts (`torch.Tensor` of shape `(masks, C)`, *optional*): language embeddings.
            masks (`torch.Tensor` of shape `(masks, 1, S/4, S/4)`, *optional*): mask prompts.
            multimask_output (`bool`, *optional*, defaults to `True`): three candidates instead of one.

        Returns:
            Mask logits of shape `(masks, candidates, S/4, S/4)`, predicted IoUs of shape `(masks, candidates)` in
            [0, 1], the decoder's output tokens of shape `(masks, candidates, C)` and object scores of shape
            `(masks, 1)`; float32 but for the tokens.
        """
        sam2 = self.sam2_model
        # Position encodings and the neck's sums are float32 whatever the weights are, so each input is brought to
        # them.
        dtype = decoder.conv_s0.weight.dtype
        fine, middle, embedding = (level.to(dtype) for level in features)
        point = torch.zeros(embedding.shape[0], 1, 2, device=embedding.device)
        label = -torch.ones(embedding.shape[0], 1, dtype=torch.int32, device=embedding.device)
        sparse, dense = sam2.sam_prompt_encoder(points=(point, label), boxes=None, masks=masks)
        sparse = sparse.to(dtype)
        if prompts is not None:
            sparse = torch.cat([sparse, prompts[:, None].to(dtype)], dim=1)
        mask_logits, ious, tokens, object_scores = decoder(
            image_embeddings=embedding,
            image_pe=sam2.sam_prompt_encoder.get_dense_pe().to(dtype),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense.to(dtype),
            multimask_output=multimask_output,
            repeat_image=False,
            high_res_features=[decoder.conv_s0(fine)[image_index], decoder.conv_s1(middle)[image_index]],
        )
        return mask_logits.float(), ious.float(), tokens, object_scores.float()
