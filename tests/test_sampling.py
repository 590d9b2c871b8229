from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoded_rows import encode, seeded
from peft import LoraConfig, get_peft_model
from torch.distributions import Independent, Normal

from sa2va_trl.data import SegCollator, synthetic_dataset
from sa2va_trl.data.collator import TARGETS
from sa2va_trl.models.outputs import SegFeatures
from sa2va_trl.preferences.pairs import mine_pairs
from sa2va_trl.sampling import MaskSampler, gaussian_log_prob


@pytest.fixture(scope="module")
def rows():
    return synthetic_dataset(2, 2, 64)


@pytest.fixture(scope="module")
def encoded(network, rows):
    return encode(*network, rows)


def part(features, masks):
    return SegFeatures(
        features.seg_states,
        features.seg_index[masks],
        features.image_index[masks],
        features.row_index[masks],
        features.pyramid,
    )


def of(candidates, source):
    return candidates.mask_logits[:, [name == source for name in candidates.source]]


@torch.no_grad()
def test_the_first_candidate_is_the_models_own_mask(network, encoded):
    model, features = network[0], encoded[0]
    for sampler in (MaskSampler(), MaskSampler(embedding=0, field=0, tokens=False, thresholds=())):
        candidates = sampler(model, features)
        assert candidates.source == sampler.source and candidates.source[0] == "greedy"
        assert candidates.mask_logits.shape == (4, len(sampler.source), 32, 32)
        assert candidates.log_prob.shape == candidates.mask_logits.shape[:2]
        assert torch.equal(candidates.mask_logits[:, 0], model.decode_masks(features)[0])
        assert candidates.source.count("greedy") == 1


@torch.no_grad()
def test_an_embedding_candidate_is_the_mask_of_its_embedding(network, encoded):
    model, features = network[0], encoded[0]
    candidates = MaskSampler(embedding=3, embedding_noise=0.7)(model, features, seeded(3))
    assert len(of(candidates, "embedding").unique(dim=1)[0]) == 3
    for mask in range(4):
        for number, embedding in enumerate(candidates.embeddings[mask]):
            three, ious, _ = model.grounding_encoder.decode(
                features.pyramid, embedding[None], features.image_index[[mask]]
            )
            expected = three[0, ious[0].argmax()]
            torch.testing.assert_close(of(candidates, "embedding")[mask, number], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_densities_are_those_of_torch_distributions(network, encoded):
    model, features = network[0], encoded[0]
    sampler = MaskSampler(embedding=2, field=3, embedding_noise=0.2, field_noise=0.7, field_grids=(5, 2))
    candidates = sampler(model, features, seeded(1))
    mean = model.text_hidden_fcs(features.seg_states)[features.seg_index]
    std = 0.2 * mean.square().mean(-1).sqrt()
    torch.testing.assert_close(candidates.embedding_std, std)
    expected = Independent(Normal(mean[:, None], std[:, None, None]), 1).log_prob(candidates.embeddings)
    torch.testing.assert_close(candidates.log_prob[:, 1:3], expected, rtol=1e-5, atol=1e-3)

    # The grids come back from the fields by least squares: bilinear interpolation is linear and these are not many.
    basis = torch.cat(
        [
            F.interpolate(torch.eye(side**2).reshape(-1, 1, side, side), (32, 32), mode="bilinear").flatten(1)
            for side in (5, 2)
        ]
    )
    fields = (of(candidates, "field") - candidates.mask_logits[:, :1]).flatten(2)
    assert torch.linalg.matrix_rank(basis) < len(basis)  # the two scales share the constants: grids are not unique
    _, grids = sampler._draw(4, 64, seeded(1), torch.device("cpu"))
    coordinates = torch.cat([grid.flatten(2) for grid in grids], dim=-1)
    torch.testing.assert_close(coordinates @ basis, fields, rtol=1e-4, atol=1e-5)
    expected = Independent(Normal(torch.zeros(29), 0.7), 1).log_prob(coordinates)
    torch.testing.assert_close(candidates.log_prob[:, 3:6], expected, rtol=1e-5, atol=1e-3)
    assert candidates.log_prob[:, [0, 6, 7, 8, 9]].isnan().all() and not candidates.log_prob[:, 1:6].isnan().any()


@torch.no_grad()
def test_the_noise_has_the_size_that_was_asked_for(network, encoded):
    model, features = network[0], encoded[0]
    sampler = MaskSampler(
        embedding=60, embedding_noise=0.3, field=200, field_noise=2.0, field_grids=(32,), tokens=False, thresholds=()
    )
    candidates = sampler(model, features, seeded())
    mean = model.text_hidden_fcs(features.seg_states)[features.seg_index]
    noise = candidates.embeddings - mean[:, None]
    rms = mean.square().mean(-1).sqrt()
    torch.testing.assert_close(noise.std((1, 2)) / rms, torch.full((4,), 0.3), rtol=0.05, atol=0)
    assert (noise.mean((1, 2)) / rms).abs().max() < 0.03
    field = of(candidates, "field") - candidates.mask_logits[:, :1]  # on the grid itself: independent everywhere
    assert field.std() == pytest.approx(2.0, rel=0.02) and field.mean().abs() < 0.02
    smooth = replace(sampler, embedding=0, field_grids=(16, 4))(model, features, seeded())
    field = of(smooth, "field") - smooth.mask_logits[:, :1]
    assert field.diff(dim=-1).std() < 0.6 * field.std()


@torch.no_grad()
def test_tokens_are_the_other_two_masks_of_sam2(network, encoded):
    model, features = network[0], encoded[0]
    three, ious = model.decode_candidates(features)
    candidates = MaskSampler()(model, features)
    for mask in range(4):
        others = [number for number in range(3) if number != int(ious[mask].argmax())]
        assert torch.equal(of(candidates, "token")[mask], three[mask, others])


@pytest.mark.parametrize(("own", "temperature"), [(0.5, 1.0), (0.35, 1.0), (0.35, 0.7)])
@torch.no_grad()
def test_thresholds_are_those_of_the_greedy_mask(network, encoded, own, temperature, monkeypatch):
    model, features = network[0], encoded[0]
    monkeypatch.setattr(model.config, "mask_threshold", own)
    monkeypatch.setattr(model.config, "mask_temperature", temperature)
    thresholds = (0.49, 0.5, 0.503, 0.7)
    candidates = MaskSampler(thresholds=thresholds)(model, features)
    probabilities = (candidates.mask_logits[:, 0].double() / temperature).sigmoid()
    found = (of(candidates, "threshold").double() / temperature).sigmoid() > own
    assert 0 < found[:, 1].float().mean() < 1
    for number, threshold in enumerate(thresholds):
        clear = (probabilities - threshold).abs() > 1e-6
        assert torch.equal(found[:, number][clear], (probabilities > threshold)[clear])


@torch.no_grad()
def test_candidates_are_reproducible_and_leave_the_random_state_alone(network, encoded):
    model, features = network[0], encoded[0]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, same, other = (MaskSampler()(model, features, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.mask_logits, same.mask_logits) and torch.equal(one.embeddings, same.embeddings)
    assert torch.equal(MaskSampler()(model, features).mask_logits, MaskSampler()(model, features).mask_logits)
    torch.randn(3)  # the global state has no say
    torch.manual_seed(99)
    assert torch.equal(one.mask_logits, MaskSampler()(model, features, seeded(5)).mask_logits)
    for source in ("embedding", "field"):
        assert not torch.equal(of(one, source), of(other, source))
        assert not torch.equal(of(one, source)[:, 0], of(one, source)[:, 1])
    torch.set_rng_state(states[0])
    MaskSampler()(model, features)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


@torch.no_grad()
def test_one_by_one_gives_what_a_batch_gives(network, encoded):
    model, features = network[0], encoded[0]
    sampler = MaskSampler(embedding_noise=0.5)
    whole, generator = sampler(model, features, seeded(2)), seeded(2)
    for mask in range(4):
        single = sampler(model, part(features, [mask]), generator)
        torch.testing.assert_close(single.mask_logits[0], whole.mask_logits[mask], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single.embeddings[0], whole.embeddings[mask], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single.log_prob[0], whole.log_prob[mask], rtol=1e-4, atol=1e-2, equal_nan=True)


@torch.no_grad()
def test_sampling_leaves_the_model_as_it_is(tiny, rows):
    model, processor = tiny
    features, _ = encode(model, processor, rows)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = MaskSampler()(model, features).mask_logits
    model.train()
    assert torch.equal(MaskSampler()(model, features).mask_logits, expected) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_log_prob_has_the_gradient_of_a_score_function(tiny, rows):
    model, processor = tiny
    features, _ = encode(model, processor, rows)
    candidates = MaskSampler(embedding=2)(model, features, seeded(4))
    assert not candidates.embeddings.requires_grad and not candidates.embedding_std.requires_grad
    weights = torch.tensor([1.0, -2.0])
    (candidates.log_prob[:, 1:3] * weights).sum().backward()
    bias = model.text_hidden_fcs[2].bias
    mean = model.text_hidden_fcs(features.seg_states)[features.seg_index].detach()
    score = (candidates.embeddings - mean[:, None]) / candidates.embedding_std[:, None, None] ** 2
    expected = (score * weights[:, None]).sum((0, 1))
    torch.testing.assert_close(bias.grad, expected, rtol=1e-3, atol=1e-2)

    # The ratio of a policy that has moved, from what was stored.
    again = gaussian_log_prob(candidates.embeddings, mean, candidates.embedding_std)
    torch.testing.assert_close(again, candidates.log_prob[:, 1:3].detach(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("source", ["greedy", "embedding", "field", "token", "threshold"])
def test_masks_have_gradients(tiny, rows, source):
    model, processor = tiny
    features, _ = encode(model, processor, rows)
    of(MaskSampler()(model, features), source).square().mean().backward()
    for module in (model.text_hidden_fcs[0], model.grounding_encoder.mask_decoder.conv_s0):
        assert module.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_no_masks_no_candidates(network, encoded):
    model, features = network[0], encoded[0]
    none = SegFeatures(
        features.seg_states[:0], *[features.seg_index[:0]] * 3, tuple(level[:0] for level in features.pyramid)
    )
    candidates = MaskSampler()(model, none)
    full = MaskSampler()(model, features)
    for name in ("mask_logits", "log_prob", "embeddings", "embedding_std"):
        assert getattr(candidates, name).shape == (0, *getattr(full, name).shape[1:])
        assert getattr(candidates, name).dtype == getattr(full, name).dtype
    mined = mine_pairs(model, none, torch.zeros((0, 32, 32), dtype=torch.uint8))
    assert mined.chosen.shape == mined.rejected.shape == (0, 32, 32) and len(mined.index) == 0
    # In training every rank runs the decoder; the images of a row without [SEG] are there then.
    model.train()
    try:
        candidates = MaskSampler()(model, replace(none, pyramid=features.pyramid))
    finally:
        model.eval()
    assert candidates.mask_logits.shape == (0, 9, 32, 32) and candidates.log_prob.shape == (0, 9)


@torch.no_grad()
def test_adapters_draw_candidates_too(tiny, rows):
    model, processor = tiny
    features, masks = encode(model, processor, rows)
    expected = MaskSampler()(model, features)
    adapter = LoraConfig(target_modules=["q_proj"], modules_to_save=["text_hidden_fcs", "sam_mask_decoder"])
    wrapped = get_peft_model(model, adapter).eval()
    assert torch.equal(MaskSampler()(wrapped, features).mask_logits, expected.mask_logits)
    assert len(mine_pairs(wrapped, features, masks, min_gap=0).index) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding", -1),
        ("field", -2),
        ("embedding_noise", 0.0),
        ("field_noise", float("nan")),
        ("field_noise", float("inf")),
        ("field_grids", ()),
        ("field_grids", (4, 0)),
        ("thresholds", (0.5, 1.0)),
    ],
)
def test_bad_options_of_the_sampler_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        MaskSampler(**{name: value})


@torch.no_grad()
def test_candidates_are_drawn_through_what_wraps_the_model(tiny):
    model, processor = tiny
    batch = SegCollator(processor)(list(synthetic_dataset(1, 2, 64)))
    features = model.encode(**{name: value for name, value in batch.items() if name not in TARGETS})

    class Wrapper(torch.nn.DataParallel):
        """Nothing of the model but its `forward`, as with DDP."""

        calls = 0

        def forward(self, **inputs):
            self.calls += 1
            return self.module(**inputs)

    wrapped = Wrapper(model)
    assert not hasattr(wrapped, "config")
    expected, found = MaskSampler()(model, features), MaskSampler()(wrapped, features)
    assert wrapped.calls == 2
    assert torch.equal(found.mask_logits, expected.mask_logits)
    assert torch.equal(found.embeddings, expected.embeddings)
    assert MaskSampler(embedding=0)(wrapped, features).mask_logits.shape[1] == 7 and wrapped.calls == 3
