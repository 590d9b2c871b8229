"""What the model returns."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from sa2va_trl.data import SegCollator, synthetic_dataset
from sa2va_trl.models.modeling import MASK_TARGETS
from sa2va_trl.models.outputs import SegFeatures, Segmentation, pair_masks
from sa2va_trl.motion import backward_flows
from sa2va_trl.postprocessing import Postprocessing, draw_clip, draw_mask


def make_features(segs, counts, width=5):
    """Features of rows with so many `[SEG]`s and images."""
    rows = torch.repeat_interleave(torch.arange(len(segs)), torch.tensor(segs))
    pyramid = tuple(torch.randn(sum(counts), 2, side, side) for side in (8, 4, 2))
    return SegFeatures(torch.randn(len(rows), width), *pair_masks(rows, torch.tensor(counts)), pyramid)


def test_masks_are_paired_seg_by_seg_and_image_by_image():
    features = make_features([2, 0, 1], [2, 1, 1])
    assert features.seg_index.tolist() == [0, 0, 1, 1, 2]
    assert features.image_index.tolist() == [0, 1, 0, 1, 3]
    assert features.row_index.tolist() == [0, 0, 0, 0, 2]


def test_repeated_masks_follow_each_other():
    features = make_features([2, 1], [1, 1])
    repeated = features.repeat(3)
    for name in ("seg_index", "image_index", "row_index"):
        expected = [value for value in getattr(features, name).tolist() for _ in range(3)]
        assert getattr(repeated, name).tolist() == expected
    assert repeated.seg_states is features.seg_states and repeated.pyramid is features.pyramid


@pytest.mark.parametrize(("segs", "counts"), [([0], [0]), ([0], [1]), ([1], [0])])
def test_at_least_one_mask_that_is_a_function_of_the_states(segs, counts):
    features = make_features(segs, counts)
    features.seg_states.requires_grad_()
    some = features.at_least_one()
    assert some.seg_index.tolist() == some.image_index.tolist() == some.row_index.tolist() == [0]
    assert [tuple(level.shape) for level in some.pyramid] == [(1, 2, 8, 8), (1, 2, 4, 4), (1, 2, 2, 2)]
    some.seg_states.sum().backward()
    assert features.seg_states.grad is not None


def test_features_with_masks_are_left_alone():
    features = make_features([1], [1])
    assert features.at_least_one() is features


def test_features_in_half_precision_have_a_coarse_level_in_float32(tiny, image):
    model, processor = tiny
    model.to(torch.bfloat16)
    pixels, (block,) = processor.tiles([image])
    chat = [{"role": "user", "content": "line"}, {"role": "assistant", "content": "[SEG]"}]
    with torch.no_grad():
        features = model.encode(
            torch.tensor([processor.encode_chat(chat, [block])[0]]),
            pixel_values=pixels["pixel_values"].bfloat16(),
            grounding_pixel_values=processor.grounding_inputs([image]),
        )
    half = torch.bfloat16
    assert features.seg_states.dtype == half
    assert [level.dtype for level in features.pyramid] == [half, half, torch.float32]


def test_values_come_in_the_order_of_the_fields(tiny):
    """(Whoever takes `output[0]`, or a tuple, gets the loss first.)"""
    model, processor = tiny
    batch = SegCollator(processor)(list(synthetic_dataset(1, 1, 64)))
    output = model(**batch)
    names = [field.name for field in fields(output)]
    assert list(output) == sorted(output, key=names.index) and list(output)[:2] == ["loss", "logits"]
    assert output[0] is output.loss
    without = {name: value for name, value in batch.items() if name not in MASK_TARGETS}
    assert len(without) < len(batch) and torch.equal(model(**without, position_ids=None).loss, output.loss)


def drawn_with(settings, frames=None, objects=2, size=(20, 24)):
    """A result of random logits, of an image or of frames."""
    shape = (objects, 16, 16) if frames is None else (objects, frames, 16, 16)
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Segmentation(
        "", [None] * objects, logits, torch.ones(shape[:-2]), size, 32, 0.4, temperature=1.3, postprocessing=settings
    )


@pytest.mark.parametrize("settings", [Postprocessing(min_size=12), Postprocessing(0.5, 1, 4, 6)])
@pytest.mark.parametrize("frames", [None, 4])
def test_masks_are_post_processed_and_probabilities_are_not(settings, frames):
    result, plain = drawn_with(settings, frames), drawn_with(Postprocessing(), frames)
    assert torch.equal(result.probabilities, plain.probabilities)
    maps = result.probabilities.flatten(end_dim=-3).numpy()
    expected = np.stack([draw_mask(own, 0.4, settings) for own in maps]).reshape(result.masks.shape)
    assert (result.masks.numpy() == expected).all() and not torch.equal(result.masks, plain.masks)
    assert torch.equal(plain.masks, plain.probabilities > 0.4)
    if frames:
        for index in range(frames):
            assert torch.equal(result.frame(index).masks, result.masks[:, index])


@pytest.mark.parametrize(
    "settings",
    [
        Postprocessing(majority_frames=3),
        Postprocessing(exponential_weight=0.5, min_size=5),
        Postprocessing(flow_weight=0.5),
    ],
)
def test_frames_of_a_smoothed_clip_are_those_of_the_whole(settings):
    result = drawn_with(settings, 4)
    flows = None
    if settings.needs_motion:
        result.pictures = np.random.default_rng(0).integers(0, 256, (4, 20, 24), np.uint8)
        flows = backward_flows(result.pictures.astype(np.float32) / 255)
    maps = result.probabilities.numpy()
    expected = np.stack([draw_clip(own, 0.4, settings, flows) for own in maps])
    assert (result.masks.numpy() == expected).all()
    for index in range(4):
        frame = result.frame(index)
        assert (frame.masks.numpy() == expected[:, index]).all()
        assert torch.equal(frame.probabilities, result.probabilities[:, index])


def test_nothing_found_is_nothing_to_post_process():
    for frames in (None, 3):
        masks = drawn_with(Postprocessing(min_size=3, majority_frames=3), frames, objects=0).masks
        assert len(masks) == 0 and masks.shape[-2:] == (20, 24)
