"""Memory attention: the sums of the `sam2` package, with less arithmetic."""

import pytest
import torch
from sam2.modeling.memory_attention import MemoryAttention
from sam2.modeling.sam.transformer import RoPEAttention
from torch.utils.flop_counter import FlopCounterMode

from sa2va_trl import GroundingEncoder, Sa2VAGroundingConfig
from sa2va_trl.models import memory_attention
from sa2va_trl.models.memory_attention import average


OBJECTS, SIDE, POINTERS = 3, 4, 6


@pytest.fixture(scope="module")
def ours():
    config = Sa2VAGroundingConfig(
        image_size=16 * SIDE,
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 2, 1),
        global_att_blocks=(3,),
        hidden_dim=32,
        decoder_mlp_dim=32,
        memory_dim=8,
        memory_layers=2,
        memory_mlp_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = GroundingEncoder(config).eval().sam2_model.memory_attention.requires_grad_(False)
        for tensor in module.state_dict().values():
            tensor.add_(0.2 * torch.randn_like(tensor))
    return module


@pytest.fixture(scope="module")
def sam2s(ours):
    """The same weights in the package's own classes."""
    layer = ours.layers[0]
    theirs = MemoryAttention(32, pos_enc_at_input=True, layer=layer, num_layers=2).eval().requires_grad_(False)
    for each in theirs.layers:
        each.cross_attn_image.__class__ = RoPEAttention
    theirs.load_state_dict(ours.state_dict())
    return theirs


def inputs(memories=2, pointers=POINTERS):
    random = torch.Generator().manual_seed(1)
    frame, position = (torch.randn(SIDE**2, 1, 32, generator=random).expand(-1, OBJECTS, -1) for _ in range(2))
    memory, memory_pos = (torch.randn(memories * SIDE**2 + pointers, OBJECTS, 8, generator=random) for _ in range(2))
    return [frame], memory, [position], memory_pos, pointers


@pytest.mark.parametrize(("memories", "pointers"), [(1, 0), (2, POINTERS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_those_of_sam2(ours, sam2s, memories, pointers, dtype):
    given = inputs(memories, pointers)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, expected = ours(*given), sam2s(*given)
    assert found.shape == expected.shape == (SIDE**2, OBJECTS, 32)
    assert (found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 5e-2)
    assert (found[:, 0] - found[:, 1]).abs().max() > 0.1


def test_there_are_fewer_operations(ours, sam2s):
    counts = []
    for module in (ours, sam2s):
        with FlopCounterMode(display=False) as counter:
            module(*inputs())
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.9 * counts[1]


@pytest.mark.parametrize("keys", [1, 5, 11])
def test_tiles_make_no_difference(monkeypatch, keys):
    random = torch.Generator().manual_seed(2)
    queries, keys, values = (
        torch.randn(*shape, generator=random) for shape in ((1, 7, 4), (OBJECTS, keys, 4), (OBJECTS, keys, 2))
    )
    keys[:, -1] *= 100  # the highest score comes last, and is far above the others'
    expected = (queries @ keys.transpose(1, 2) / 2).softmax(-1) @ values
    monkeypatch.setattr(memory_attention, "_QUERIES", 3)
    monkeypatch.setattr(memory_attention, "_KEYS", 5)
    torch.testing.assert_close(average(queries, keys, values), expected)
