"""What the model returns."""

from dataclasses import fields

import pytest
import torch

from sa2va_trl.data import SegCollator, synthetic_dataset
from sa2va_trl.models.modeling import MASK_TARGETS
from sa2va_trl.models.outputs import SegFeatures, pair_masks


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
