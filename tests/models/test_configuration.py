"""What configs refuse."""

import pytest

from sa2va_trl import Sa2VAConfig, Sa2VAGroundingConfig


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (Sa2VAConfig, {"vlm_config": {"model_type": "qwen2_vl"}}, "'qwen2_vl'; supported are internvl"),
        (Sa2VAConfig, {"prompt_template": "vicuna"}, "prompt_template must be one of qwen_chat"),
        (Sa2VAConfig, {"seg_state": "norm"}, "seg_state must be one of normed, raw, got 'norm'"),
        (Sa2VAConfig, {"mask_threshold": 1.0}, "mask_threshold must lie between 0 and 1"),
        (Sa2VAConfig, {"mask_temperature": 0.0}, "mask_temperature must be a number above 0, got 0.0"),
        (Sa2VAConfig, {"mask_postprocessing": {"size": 1}}, "mask_postprocessing: A post-processing has no size"),
        (Sa2VAGroundingConfig, {"image_size": 200}, "image_size must be a multiple of 32, got 200"),
        (Sa2VAGroundingConfig, {"hidden_dim": 40}, "hidden_dim must be a multiple of 32, got 40"),
        (Sa2VAGroundingConfig, {"sam2_version": "3"}, "sam2_version must be '2.0' or '2.1', got '3'"),
    ],
)
def test_configs_refuse(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize("options", [{"frame_policy": "all"}, {"num_frames": 0}, {"tracking": "hard"}])
def test_options_of_videos_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sa2VAConfig(**options)
