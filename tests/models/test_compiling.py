"""SAM 2 compiled: the same masks, however many objects, and no compilation for another number of them."""

import pytest
import torch
from torch._dynamo.utils import counters

from sa2va_trl import GroundingEncoder, Sa2VAGroundingConfig
from sa2va_trl.models import compiling
from sa2va_trl.models.compiling import compile_sam2


SIZE = 64


@pytest.fixture
def encoder():
    config = Sa2VAGroundingConfig(
        image_size=SIZE,
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 2, 1),
        global_att_blocks=(3,),
        window_spec=(8, 4, 8, 4),
        hidden_dim=32,
        decoder_mlp_dim=32,
        memory_dim=8,
        memory_layers=1,
        memory_mlp_dim=32,
    )
    torch._dynamo.reset()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield GroundingEncoder(config).eval()
    torch._dynamo.reset()


def test_masks_are_the_same_and_another_number_of_objects_compiles_nothing(encoder, monkeypatch):
    # (Of all that are compiled this one is called wherever there are objects; to trace them all takes half a minute.)
    monkeypatch.setattr(compiling, "_COMPILED", ("sam_mask_decoder", "sam_mask_decoder_modified"))
    random = torch.Generator().manual_seed(1)
    pyramid = tuple(torch.randn(1, 32, SIZE // s, SIZE // s, generator=random) for s in (4, 8, 16))
    prompts = torch.randn(7, 32, generator=random)

    def masks(objects):
        with torch.no_grad():
            return encoder.decode(pyramid, prompts[:objects], torch.zeros(objects, dtype=torch.long))[0]

    numbers, names, made = (1, 2, 5, 7, 1), list(encoder.state_dict()), []
    expected = [masks(objects) for objects in numbers]
    compile_sam2(encoder.sam2_model, backend="eager")
    for objects, drawn in zip(numbers, expected, strict=True):
        assert (masks(objects) - drawn).abs().max() < 1e-5
        made.append(counters["stats"]["unique_graphs"])
    assert [number - made[0] for number in made] == [0, 1, 1, 1, 1] and made[0] >= 1
    assert list(encoder.state_dict()) == names


def test_without_a_compiler_it_says_what_is_missing(encoder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="torch_compile needs a C.. compiler on a CPU"):
        compile_sam2(encoder.sam2_model)
