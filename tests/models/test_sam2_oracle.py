"""Our SAM 2, prompted by language, against transformers' own `Sam2Model` with the same weights."""

import re

import pytest
import torch
from transformers import Sam2Config, Sam2Model

from sa2va_trl import GroundingEncoder, Sa2VAGroundingConfig


IMAGE_SIZE = 128
SIZES = Sa2VAGroundingConfig(
    image_size=IMAGE_SIZE,
    embed_dim=16,
    num_heads=1,
    stages=(1, 2, 3, 2),
    global_att_blocks=(4,),
    window_spec=(8, 4, 8, 4),
    hidden_dim=64,
    decoder_mlp_dim=96,
    memory_dim=16,
    memory_layers=1,
    memory_mlp_dim=64,
)
# From the names of the `sam2` package to transformers', one after the other.
RENAMINGS = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"mlp\.layers\.0\.", "mlp.proj_in."),
    (r"mlp\.layers\.1\.", "mlp.proj_out."),
    (r"(head|mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
    (r"(head|mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
    (r"(head|mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
]
STILL_IMAGE_PARTS = ("image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder.", "no_mem_embed")


def native_name(name):
    for pattern, replacement in RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def native_state(state):
    """Weights of the `sam2` package under transformers' names, without those that only videos need."""
    points = [state[f"sam_prompt_encoder.point_embeddings.{index}.weight"] for index in range(4)]
    native = {
        native_name(name): tensor
        for name, tensor in state.items()
        if name.startswith(STILL_IMAGE_PARTS) and "point_embeddings" not in name
    }
    native["prompt_encoder.point_embed.weight"] = torch.cat(points)
    native["shared_image_embedding.positional_embedding"] = native[
        "prompt_encoder.shared_embedding.positional_embedding"
    ]
    return native


def build_native(config):
    grid = config.image_size // 4
    widths = [config.embed_dim * 2**stage for stage in range(4)]
    native = Sam2Model(
        Sam2Config(
            vision_config={
                "backbone_config": {
                    "model_type": "sam2_hiera_det_model",
                    "image_size": [config.image_size] * 2,
                    "hidden_size": config.embed_dim,
                    "num_attention_heads": config.num_heads,
                    "embed_dim_per_stage": widths,
                    "num_attention_heads_per_stage": [config.num_heads * 2**stage for stage in range(4)],
                    "blocks_per_stage": list(config.stages),
                    "global_attention_blocks": list(config.global_att_blocks),
                    "window_size_per_stage": list(config.window_spec),
                    "window_positional_embedding_background_size": list(config.window_pos_embed_bkg_spatial_size),
                },
                "backbone_channel_list": widths[::-1],
                "backbone_feature_sizes": [[grid, grid], [grid // 2, grid // 2], [grid // 4, grid // 4]],
                "fpn_hidden_size": config.hidden_dim,
            },
            prompt_encoder_config={"hidden_size": config.hidden_dim, "image_size": config.image_size},
            mask_decoder_config={"hidden_size": config.hidden_dim, "mlp_dim": config.decoder_mlp_dim},
        )
    )
    return native.eval()


@pytest.fixture(scope="module", params=["2.0", "2.1"])
def pair(request):
    """The two implementations with one set of weights, none of which is zero or one by initialisation."""
    generator = torch.Generator().manual_seed(0)
    ours = GroundingEncoder(Sa2VAGroundingConfig(**{**SIZES.to_dict(), "sam2_version": request.param})).eval()
    for tensor in ours.state_dict().values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    native = build_native(ours.config)
    state = native_state(ours.sam2_model.state_dict())
    assert state.keys() == native.state_dict().keys()
    native.load_state_dict(state)
    return ours, native


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert expected.std() > 1e-3
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_pyramid(pair):
    ours, native = pair
    pixels = random(2, 3, IMAGE_SIZE, IMAGE_SIZE, seed=1)
    fine, middle, coarse = ours.encode(pixels)
    # The native pyramid already holds what `decode` does first: the decoder's two convolutions and `no_mem_embed`.
    expected = native.get_image_embeddings(pixels)
    assert_close(ours.mask_decoder.conv_s0(fine), expected[0])
    assert_close(ours.mask_decoder.conv_s1(middle), expected[1])
    assert_close(coarse + ours.sam2_model.no_mem_embed.view(1, -1, 1, 1), expected[2])


@torch.no_grad()
def test_masks(pair):
    ours, native = pair
    pixels = random(2, 3, IMAGE_SIZE, IMAGE_SIZE, seed=2)
    prompts = random(2, 3, SIZES.hidden_dim, seed=3)  # three objects on each image

    fine, middle, coarse = native.get_image_embeddings(pixels)
    # One dummy point beside the padding that the prompt encoder adds, then the language token.
    sparse, dense = native.prompt_encoder(torch.zeros(2, 3, 1, 2), -torch.ones(2, 3, 1, dtype=torch.int), None, None)
    assert sparse.shape == (2, 3, 2, SIZES.hidden_dim)
    masks, ious, _, object_scores = native.mask_decoder(
        image_embeddings=coarse,
        image_positional_embeddings=native.get_image_wide_positional_embeddings().repeat(2, 1, 1, 1),
        sparse_prompt_embeddings=torch.cat([sparse, prompts[:, :, None]], dim=2),
        dense_prompt_embeddings=dense,
        multimask_output=True,
        high_resolution_features=[fine, middle],
    )
    outputs = ours.decode(ours.encode(pixels), prompts.flatten(0, 1), torch.tensor([0, 0, 0, 1, 1, 1]))
    for actual, expected in zip(outputs, (masks, ious, object_scores), strict=True):
        assert_close(actual, expected.flatten(0, 1))
    # Objects and images differ by far more than the two implementations do.
    assert (masks[:, 0] - masks[:, 1]).abs().max() > 1e-2 * masks.abs().max()
