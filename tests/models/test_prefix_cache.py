"""What is kept of a conversation is what the next tokens begin with, and nothing that was not read to its end."""

import pytest
import torch

from sa2va_trl import tiny_sa2va
from sa2va_trl.models.prefix_cache import PrefixCache


IMAGE = 7


@pytest.fixture
def prefix():
    """Tokens 1 IMAGE 2 3 4, read."""
    cache = PrefixCache(IMAGE)
    add(cache, 5)
    cache.has_read([1, IMAGE, 2, 3, 4])
    return cache


def add(cache, count, layers=(0, 1)):
    for layer in layers:
        cache.cache.update(*torch.rand(2, 1, 2, count, 3), layer)


def lengths(cache):
    return [layer.keys.shape[-2] for layer in cache.cache.layers]


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([1, IMAGE, 2, 3, 4, 5], 5),
        ([1, IMAGE, 2, 3, 4], 4),  # the last one is read again, for what follows it
        ([1, IMAGE, 2, 9, 4, 5], 3),
        ([1, IMAGE, 2], 2),
        ([9, IMAGE, 2, 3, 4, 5], 0),  # an image is read with its pixels
        ([1, 2, 3], 1),
        ([2, 3], 0),
    ],
)
def test_kept_is_what_both_begin_with(ids, kept, prefix):
    first = prefix.cache.layers[0].keys.clone()
    assert prefix.keep(ids) == kept
    assert prefix.ids == ids[:kept] and lengths(prefix) == ([kept] * 2 if kept else [])
    if kept:
        assert torch.equal(prefix.cache.layers[0].keys, first[..., :kept, :])
    add(prefix, 2)
    assert lengths(prefix) == [kept + 2] * 2


def test_nothing_is_believed_of_what_the_cache_does_not_hold(prefix):
    add(prefix, 2)
    prefix.has_read([1, IMAGE, 2, 3, 4, 5])
    assert prefix.ids == [1, IMAGE, 2, 3, 4] and lengths(prefix) == [5, 5]
    add(prefix, 2)
    prefix.has_read([1, IMAGE, 2, 3, 4, 5, 6])
    assert prefix.ids[-2:] == [5, 6] and lengths(prefix) == [7, 7]


def test_what_other_rotary_factors_apply_to_is_read_again():
    cache = PrefixCache(IMAGE, rotary_switch=6)
    ids = list(range(10, 20))
    for start, kept, end in [(3, 0, 5), (6, 5, 6), (7, 0, 9), (10, 9, 10)]:  # of 6 tokens at most, and of more
        assert cache.keep(ids[:start], end) == kept
        add(cache, end - kept)
        cache.has_read(ids[:end])
        assert cache.ids == ids[:end]
    assert cache.keep(ids[:5]) == 0  # as after an answer that was too long
    add(cache, 7)
    cache.has_read(ids[:7])  # begun with the first factors, and ended with others
    assert cache.ids == [] and cache.cache.get_seq_length() == 0


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl"])
def test_a_pass_that_was_interrupted_leaves_nothing_behind(family, prefix):
    model, _ = tiny_sa2va(image_size=128, family=family)
    vlm = model.vlm.model
    with prefix.reading(model):
        vlm.rope_deltas = torch.tensor([[-3]])
    with pytest.raises(KeyboardInterrupt), prefix.reading(model):
        vlm.rope_deltas = torch.tensor([[4]])
        add(prefix, 2, layers=[0])  # in the first layer only
        raise KeyboardInterrupt
    assert lengths(prefix) == [5, 5] and prefix.ids == [1, IMAGE, 2, 3, 4]
    other = PrefixCache(IMAGE)
    with other.reading(model):
        assert family == "internvl" or vlm.rope_deltas is None
    with prefix.reading(model):
        assert family == "internvl" or vlm.rope_deltas.item() == -3
