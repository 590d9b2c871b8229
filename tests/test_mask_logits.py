import pytest
import torch
import torch.nn.functional as F

from sa2va_trl.mask_logits import resize_mask_logits, upsample_mask_logits


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 2, 8, 8)])
def test_logits_are_resized_plane_by_plane(shape):
    logits = torch.randn(shape)
    resized = resize_mask_logits(logits, (5, 13))
    assert resized.shape == (*shape[:-2], 5, 13)
    planes = zip(logits.reshape(-1, 8, 8), resized.reshape(-1, 5, 13), strict=True)
    for plane, other in planes:
        torch.testing.assert_close(F.interpolate(plane[None, None], (5, 13), mode="bilinear")[0, 0], other)
    assert resize_mask_logits(logits, torch.Size((8, 8))) is logits


@pytest.mark.parametrize("shape", [(0, 8, 8), (0, 2, 8, 8)])
def test_no_logits_stay_a_function_of_the_model(shape):
    logits = torch.zeros(shape, requires_grad=True)
    resized = resize_mask_logits(logits, (5, 13))
    assert resized.shape == (*shape[:-2], 5, 13)
    resized.sum().backward()
    assert logits.grad.shape == shape


def test_an_images_size_is_reached_by_way_of_the_square():
    logits = torch.randn(2, 8, 8, dtype=torch.bfloat16)
    square = F.interpolate(logits[:, None].float(), (32, 32), mode="bilinear")
    expected = F.interpolate(square, (20, 50), mode="bilinear")[:, 0]
    found = upsample_mask_logits(logits, 32, (20, 50))
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert torch.equal(upsample_mask_logits(square[:, 0], 32, (20, 50)), expected)
    assert upsample_mask_logits(logits[:0], 32, (20, 50)).shape == (0, 20, 50)
