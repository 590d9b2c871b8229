import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, List, Value, load_dataset
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peft import LoraConfig, get_peft_model
from PIL import Image
from scipy.ndimage import label
from torch.distributions import Independent, Normal

from sa2va_trl.data import DatasetError, SegCollator, check_dataset, load_dataset_dict, synthetic_dataset
from sa2va_trl.evaluation import predict_probabilities, stored_features
from sa2va_trl.metrics import confusion_counts, dice
from sa2va_trl.models.outputs import SegFeatures
from sa2va_trl.models.tiny import tiny_sa2va
from sa2va_trl.preferences.corruptions import CORRUPTIONS
from sa2va_trl.preferences.dataset import build_preferences, check_preferences, one_object_a_row, save_preferences
from sa2va_trl.preferences.pairs import CHOSEN, REJECTED, disagreement_regions, make_pair, mine_pairs, stitch
from sa2va_trl.rewards import WeightedReward, dice_reward
from sa2va_trl.sampling import MaskSampler, gaussian_log_prob


@pytest.fixture(scope="module")
def rows():
    return synthetic_dataset(2, 2, 64)


@pytest.fixture(scope="module")
def network():
    """One model for the whole file; nothing here changes it."""
    model, processor = tiny_sa2va(image_size=128)
    return model.eval(), processor


def encode(model, processor, rows):
    batch = SegCollator(processor)(list(rows))
    inputs = {name: batch[name] for name in batch if name not in ("original_masks", "masks", "labels")}
    with torch.no_grad():
        return model.encode(**inputs), batch["masks"]


@pytest.fixture(scope="module")
def encoded(network, rows):
    return encode(*network, rows)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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


# Candidates


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


@pytest.mark.parametrize("own", [0.5, 0.35])
@torch.no_grad()
def test_thresholds_are_those_of_the_greedy_mask(network, encoded, own, monkeypatch):
    model, features = network[0], encoded[0]
    monkeypatch.setattr(model.config, "mask_threshold", own)
    thresholds = (0.49, 0.5, 0.503, 0.7)
    candidates = MaskSampler(thresholds=thresholds)(model, features)
    probabilities = candidates.mask_logits[:, 0].double().sigmoid()
    found = of(candidates, "threshold").double().sigmoid() > own
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


# Stitching

PAIRS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))] * 2)
)


def true_dice(mask, target):
    return dice(confusion_counts(mask, target))


@given(PAIRS)
def test_regions_are_the_components_of_the_disagreement_by_size(pair):
    mask, target = pair
    regions = disagreement_regions(mask, target)
    assert np.array_equal(regions > 0, mask != target)
    labels, count = label(mask != target, np.ones((3, 3)))
    assert regions.max() == count
    sizes = [int((regions == number).sum()) for number in range(1, count + 1)]
    assert sizes == sorted(sizes, reverse=True) and all(sizes)
    assert all(len(np.unique(labels[regions == number])) == 1 for number in range(1, count + 1))


@given(PAIRS, st.floats(0, 1))
def test_stitching_changes_whole_regions_and_never_lowers_dice(pair, min_gap):
    mask, target = pair
    stitched = stitch(mask, target, dice_reward, min_gap)
    assert stitched.dtype == np.uint8
    regions = disagreement_regions(mask, target)
    changed = set(np.unique(regions[stitched != mask]))
    # The largest regions, all of each, and nothing else.
    assert changed == set(range(1, len(changed) + 1))
    inside = np.isin(regions, list(changed))
    assert np.array_equal(stitched[inside], target[inside]) and np.array_equal(stitched[~inside], mask[~inside])

    values = [
        true_dice(np.where((regions <= n) & (regions > 0), target, mask), target) for n in range(regions.max() + 1)
    ]
    assert values == sorted(values)
    reached = [number for number in range(1, len(values)) if values[number] - values[0] >= min_gap]
    assert len(changed) == (reached[0] if reached else len(values) - 1)


# One pair


def test_pairs_are_what_their_names_say():
    rng = np.random.default_rng(0)
    target = synthetic_dataset(1, 2, 64)[1]["mask"]
    target = (np.asarray(target) > 0).astype(np.uint8)
    candidates = np.stack(
        [np.where(rng.random(target.shape) < share, 1 - target, target) for share in (0.2, 0.4, 0.1)]
    )
    scores = [true_dice(candidate, target) for candidate in candidates]
    worst, best = int(np.argmin(scores)), int(np.argmax(scores))
    assert worst != 0 and best != 0
    for better in CHOSEN:
        for worse in REJECTED:
            pair = make_pair(better, worse, target, candidates, dice_reward, 0.05, np.random.default_rng(7))
            assert pair.chosen.shape == pair.rejected.shape == target.shape
            assert pair.chosen_reward == true_dice(pair.chosen, target)
            assert pair.rejected_reward == true_dice(pair.rejected, target)
            assert pair.gap == pair.chosen_reward - pair.rejected_reward
            if worse in ("greedy", "worst"):
                assert np.array_equal(pair.rejected, candidates[0 if worse == "greedy" else worst])
            elif worse == "corrupted":
                drawn = {
                    make_pair(
                        better, worse, target, candidates, dice_reward, 0, np.random.default_rng(n)
                    ).rejected.tobytes()
                    for n in range(20)
                }
                assert len(drawn) > 5
            else:
                assert np.array_equal(pair.rejected, CORRUPTIONS[worse](target, np.random.default_rng(7)))
            if better == "ground_truth":
                assert np.array_equal(pair.chosen, target)
            elif better == "best":
                assert np.array_equal(pair.chosen, candidates[best])
            else:
                assert np.array_equal(pair.chosen, stitch(pair.rejected, target, dice_reward, 0.05))


# Pairs of a batch


def test_mined_pairs_are_those_of_the_models_masks(network, encoded):
    model, (features, masks) = network[0], encoded
    with torch.no_grad():
        own = (model.decode_masks(features)[0].sigmoid() > 0.5).byte()
    values = np.array([true_dice(mask.numpy(), target.numpy()) for mask, target in zip(own, masks, strict=True)])
    gaps = np.sort(1 - values)
    min_gap = float(gaps[1:3].mean())
    mined = mine_pairs(model, features, masks, min_gap=min_gap)
    kept = np.flatnonzero(1 - values >= min_gap)
    assert mined.index.tolist() == kept.tolist() and len(kept) == 2
    assert torch.equal(mined.chosen, masks[kept]) and torch.equal(mined.rejected, own[kept])
    assert mined.chosen.dtype == mined.rejected.dtype == torch.uint8
    torch.testing.assert_close(mined.rejected_reward, torch.from_numpy(values[kept]).float())
    assert (mined.chosen_reward == 1).all()
    assert len(mine_pairs(model, features, masks, min_gap=1.5).index) == 0


def test_pairs_can_be_mined_on_a_finer_grid(network, encoded):
    model, (features, masks) = network[0], encoded
    finer = F.interpolate(masks[:, None].float(), scale_factor=2)[:, 0].byte()
    mined = mine_pairs(model, features, finer, min_gap=0)
    assert mined.rejected.shape == (4, 64, 64) and torch.equal(mined.chosen, finer)
    with torch.no_grad():
        logits = F.interpolate(model.decode_masks(features)[0][:, None], (64, 64), mode="bilinear")[:, 0]
    assert torch.equal(mined.rejected, (logits.sigmoid() > 0.5).byte())


def test_mining_is_reproducible(network, encoded):
    model, (features, masks) = network[0], encoded
    state = torch.get_rng_state()
    wild = MaskSampler(embedding=0, field=2, tokens=False, thresholds=())
    for kind in ({"rejected": "worst", "sampler": wild}, {"rejected": "corrupted"}):
        one, same, other = (
            mine_pairs(model, features, masks, min_gap=0, generator=seeded(seed), **kind) for seed in (1, 1, 2)
        )
        assert torch.equal(one.rejected, same.rejected) and not torch.equal(one.rejected, other.rejected)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_options_of_mining_are_named(network, encoded):
    model, (features, masks) = network[0], encoded
    for options, message in (
        ({"chosen": "greedy"}, "chosen: unknown greedy"),
        ({"rejected": "best"}, "rejected: unknown best"),
        ({"min_gap": -0.1}, "min_gap"),
        ({"reward": "iou"}, "reward: unknown 'iou'"),
        ({"sampler": MaskSampler()}, "sampler has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            mine_pairs(model, features, masks, **options)
    with pytest.raises(ValueError, match="3 masks for 4"):
        mine_pairs(model, features, masks[:3])


# Pairs of a dataset


def build(rows, network, **options):
    return build_preferences(rows, *network, progress=False, **{"min_gap": 0, **options})


def array(mask):
    return (np.asarray(mask) > 0).astype(np.uint8)


def test_a_dataset_of_pairs(network, rows):
    pairs = build(rows, network)
    check_dataset(pairs)
    assert pairs.column_names == [
        *rows.column_names,
        *("chosen_mask", "rejected_mask", "chosen_reward", "rejected_reward", "pair_kind"),
    ]
    assert {name: pairs.features[name] for name in rows.features} == dict(rows.features)
    assert pairs.features["chosen_mask"] == pairs.features["rejected_mask"] == ImageFeature(mode="L")
    assert pairs["sample_id"] == rows["sample_id"]
    predictions = predict_probabilities(*network, rows, progress=False)
    for row, pair, (_, probabilities) in zip(rows, pairs, predictions, strict=True):
        assert pair["pair_kind"] == "ground_truth_vs_greedy"
        assert np.asarray(pair["image"]).tobytes() == np.asarray(row["image"]).tobytes()
        assert set(np.unique(pair["rejected_mask"])) <= {0, 255} and pair["rejected_mask"].mode == "L"
        assert np.array_equal(array(pair["chosen_mask"]), array(row["mask"]))
        assert np.array_equal(array(pair["rejected_mask"]), probabilities[0] > 0.5)
        assert pair["chosen_reward"] == 1
        assert pair["rejected_reward"] == true_dice(array(pair["rejected_mask"]), array(row["mask"]))


def test_all_combinations_are_made_and_named(network, rows):
    pairs = build(rows, network, chosen=["ground_truth", "stitched"], rejected=["greedy", "worst", "eroded"])
    check_dataset(pairs)  # among others: every sample_id once
    kinds = {
        f"{better}_vs_{worse}" for better in ("ground_truth", "stitched") for worse in ("greedy", "worst", "eroded")
    }
    assert set(pairs["pair_kind"]) == kinds and len(pairs) == 6 * len(rows)
    for pair in pairs:
        assert pair["sample_id"].endswith(f":{pair['pair_kind']}")
        assert pair["sample_id"].split(":")[0] == f"{pair['video_id']}_f{pair['frame_index']:03d}"
        assert pair["chosen_reward"] == true_dice(array(pair["chosen_mask"]), array(pair["mask"]))
        assert pair["rejected_reward"] == true_dice(array(pair["rejected_mask"]), array(pair["mask"]))


def test_batch_size_does_not_matter_and_seeds_do(network, rows):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    options = {"chosen": ["ground_truth", "best"], "rejected": ["worst", "corrupted"], "allow_worse": True}
    sampler = MaskSampler(embedding_noise=0.5, thresholds=(0.497, 0.503))
    one, four = (build(rows, network, batch_size=size, sampler=sampler, **options) for size in (1, 4))
    assert one["sample_id"] == four["sample_id"]
    np.testing.assert_allclose(one["rejected_reward"], four["rejected_reward"], atol=0.01)
    other = build(rows, network, batch_size=4, sampler=sampler, seed=1, **options)
    for kind in ("ground_truth_vs_worst", "ground_truth_vs_corrupted"):
        masks = [
            [array(pair["rejected_mask"]).tobytes() for pair in pairs if pair["pair_kind"] == kind]
            for pairs in (four, other)
        ]
        assert masks[0] != masks[1]
    assert torch.equal(torch.get_rng_state(), state[0]) and np.array_equal(np.random.get_state()[1], state[1])


def test_a_larger_gap_keeps_fewer_pairs_and_the_message_counts_them(network, rows):
    spread = {"rejected": ["greedy", "broken_branch", "lost_branches", "dilated"]}
    for reward in ("dice", {"dice": 0.6, "cldice": 0.4}):
        everything = build(rows, network, reward=reward, **spread)
        gaps = np.array(everything["chosen_reward"]) - np.array(everything["rejected_reward"])
        for min_gap in (float(np.median(gaps)), float(gaps.max())):
            pairs = build(rows, network, reward=reward, min_gap=min_gap, **spread)
            assert len(pairs) == (gaps >= min_gap).sum() < len(everything) == 16
            assert set(pairs["sample_id"]) <= set(everything["sample_id"])
        with pytest.raises(DatasetError, match="None of 16 pairs") as error:
            build(rows, network, reward=reward, min_gap=1.01, **spread)
        table = {float(step): int(count) for step, count in re.findall(r"^  ([\d.]+) +(\d+)$", str(error.value), re.M)}
        assert table[0] == 16 and len(table) > 5 and len(set(table.values())) > 3
        assert table == {step: (gaps >= step).sum() for step in table}
    assert (
        build(rows, network, reward=WeightedReward({"dice": 1}))["rejected_reward"]
        == build(rows, network)["rejected_reward"]
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_evaluation_mode_afterwards(tiny, rows, training):
    model, _ = tiny
    model.train(training)
    build(rows.select([0]), tiny)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_pairs_the_wrong_way_round_are_counted_and_left_out(network, rows, caplog):
    # The random model's best mask is far worse than a mask that is a little too wide.
    options = {"chosen": "best", "rejected": "dilated", "min_gap": 0.05}
    with caplog.at_level(logging.WARNING, logger="sa2va_trl"), pytest.raises(DatasetError, match="4 a chosen mask"):
        build(rows, network, **options)
    assert "4 of 4 pairs have a chosen mask that is worse" in caplog.text
    allowed = build(rows, network, allow_worse=True, **options)
    assert len(allowed) == 4
    assert all(pair["rejected_reward"] - pair["chosen_reward"] >= 0.05 for pair in allowed)


def test_equal_masks_are_no_pair(network, rows):
    blank = ImageFeature().encode_example(Image.new("L", (64, 64)))
    empty = rows.remove_columns("mask").add_column("mask", [blank] * 4, feature=ImageFeature(mode="L"))
    with pytest.raises(DatasetError, match="4 have two equal masks"):
        build(empty, network, rejected="dilated")


OBJECTS = Features(
    {
        "image": ImageFeature(),
        "images": List(ImageFeature()),
        "mask": ImageFeature(mode="L"),
        "masks": List(ImageFeature(mode="L")),
        "phrase": Value("string"),
        "phrases": List(Value("string")),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "sample_id": Value("string"),
    }
)


def stored(rows):
    return Dataset.from_list([{name: row.get(name) for name in OBJECTS} for row in rows], features=OBJECTS)


def square(start):
    mask = np.zeros((48, 56), dtype=np.uint8)
    mask[start : start + 20, start : start + 20] = 255
    return Image.fromarray(mask)


def dialogue(objects):
    turns = [("user", "Segment it."), ("assistant", "Sure, [SEG].")] * objects
    return [{"role": role, "content": content} for role, content in turns]


def test_pairs_from_stored_features_are_those_from_pixels(network, tmp_path):
    model, processor = network
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 56, 3), np.uint8))
    objects = {"masks": [square(0), square(9)], "phrases": ["a", "b"], "sample_id": "x"}
    rows = stored(
        [{"image": picture, **objects}, {"image": picture, "mask": square(5), "phrase": "c", "sample_id": "y"}]
    )
    split = one_object_a_row(rows)
    features = stored_features(model, processor, split, "on", tmp_path, progress=False)
    options = {"rejected": ["greedy", "worst"], "sampler": MaskSampler(tokens=False)}
    expected, found = build(rows, network, **options), build(rows, network, features=features, **options)
    assert found["sample_id"] == expected["sample_id"] and len(found) > len(split)
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one["rejected_mask"], other["rejected_mask"])
        assert one["rejected_reward"] == other["rejected_reward"]
    with pytest.raises(ValueError, match="one_object_a_row"):
        build(rows, network, features=(features[0], features[1][:-1]))


def test_every_object_becomes_a_row_with_its_phrase(network):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 56, 3), np.uint8))
    dataset = stored(
        [
            {
                "image": picture,
                "masks": [square(0), square(9), square(20)],
                "phrases": ["a", "b", "c"],
                "sample_id": "x",
            },
            {
                "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}],
                "sample_id": "t",
            },
            {"image": picture, "mask": square(5), "phrase": "d", "sample_id": "y"},
            {"image": picture, "masks": [square(7)], "phrases": ["e"], "sample_id": "z"},
            {"image": picture, "masks": [square(8)], "messages": dialogue(1), "sample_id": "m"},
        ]
    )
    split = one_object_a_row(dataset)
    assert split["sample_id"] == ["x#0", "x#1", "x#2", "y", "z", "m"]
    assert split.features == dataset.features
    pairs = build(dataset, network)
    check_dataset(pairs)
    assert pairs["sample_id"] == split["sample_id"]
    for row, start, phrase in zip(pairs, (0, 9, 20, 5, 7, 8), ("a", "b", "c", "d", "e", None), strict=True):
        assert np.array_equal(array(row["chosen_mask"]), array(square(start)))
        (mask,) = [row["mask"]] if row["mask"] is not None else row["masks"]
        assert np.array_equal(array(mask), array(square(start)))
        assert (row["phrase"] or (row["phrases"] or [None])[0]) == phrase
    # What was predicted is the mask of the row as it is now, and so of what a trainer will see.
    for pair, (_, probabilities) in zip(pairs, predict_probabilities(*network, split, progress=False), strict=True):
        assert np.array_equal(array(pair["rejected_mask"]), probabilities[0] > 0.5)


def test_rows_that_cannot_become_pairs_are_all_named(network):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 56, 3), np.uint8))
    good = {"image": picture, "mask": square(5), "phrase": "d", "sample_id": "good"}
    clip = {"images": [picture] * 2, "masks": [square(0)] * 2, "phrases": ["a"], "sample_id": "clip"}
    talk = {"image": picture, "masks": [square(0)] * 2, "messages": dialogue(2), "sample_id": "talk"}
    with pytest.raises(DatasetError, match="2 of 3 rows cannot become preference pairs") as error:
        build(stored([good, clip, talk]), network)
    assert [problem.sample_id for problem in error.value.problems] == ["clip", "talk"]
    text = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}], "sample_id": "t"}
    with pytest.raises(DatasetError, match="no row with a mask"):
        build(stored([text]), network)


def test_bad_options_of_a_dataset_are_named(network, rows):
    for options, message in (
        ({"chosen": ["ground_truth", "truth"]}, "chosen: unknown truth"),
        ({"rejected": []}, "rejected needs at least one"),
        ({"rejected": ["greedy", "greedy"]}, "none twice, got greedy, greedy"),
        ({"min_gap": float("nan")}, "min_gap"),
        ({"sampler": MaskSampler()}, "sampler has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            build(rows, network, **options)


# Stored pairs


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_written_pairs_are_opened_by_datasets(network, rows, tmp_path, split):
    # Images that are files: they must end up in the dataset, not as paths.
    files = []
    for number, row in enumerate(rows):
        files.append(str(tmp_path / f"{number}.png"))
        row["image"].save(files[-1])
    paths = rows.remove_columns("image").add_column("image", files).cast_column("image", ImageFeature())
    pairs = build(paths, network)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pairs.png").write_bytes(b"not of the dataset")
    save_preferences(pairs, tmp_path / "out", split)
    decoded = list(pairs)
    for file in files:
        Path(file).unlink()
    for opened in (
        load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache")),
        load_dataset_dict(tmp_path / "out"),
    ):
        assert list(opened) == [split]
        loaded = opened[split]
        assert loaded.features == pairs.features and len(loaded) == len(rows)
        check_dataset(loaded)
        check_preferences(loaded)
        for name in ("chosen_reward", "rejected_reward", "pair_kind", "sample_id"):
            assert loaded[name] == pairs[name]
        for row, original, pair in zip(loaded, rows, decoded, strict=True):
            assert np.array_equal(row["image"], original["image"])
            assert np.array_equal(row["chosen_mask"], pair["chosen_mask"])
            assert np.array_equal(row["rejected_mask"], pair["rejected_mask"])


def test_folders_of_one_name_are_not_mixed_up(network, rows, tmp_path):
    pairs = build(rows, network)
    for number in range(2):
        save_preferences(pairs.select([number]), tmp_path / str(number) / "pairs")
    for number in range(2):
        folder = tmp_path / str(number) / "pairs"
        for opened in (load_dataset(str(folder), cache_dir=str(tmp_path / "cache")), load_dataset_dict(folder)):
            assert opened["train"]["sample_id"] == [rows["sample_id"][number]]
    save_preferences(pairs.select([2]), tmp_path / "0" / "pairs")
    assert load_dataset_dict(tmp_path / "0" / "pairs")["train"]["sample_id"] == [rows["sample_id"][2]]


def test_nothing_is_left_of_a_dataset_that_could_not_be_written(network, rows, tmp_path, monkeypatch):
    from sa2va_trl.preferences import dataset as preferences

    def full(table):
        raise OSError("No space left on device")

    pairs = build(rows, network)
    monkeypatch.setattr(preferences, "embed_table_storage", full)
    with pytest.raises(OSError, match="No space"):
        save_preferences(pairs, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def spoilt(pairs, column, value, row=2):
    values = [pair[column] for pair in pairs.with_format("arrow").select_columns([column])[:].to_pylist()]
    values[row] = ImageFeature().encode_example(value) if isinstance(value, Image.Image) else value
    return pairs.remove_columns(column).add_column(column, values, feature=pairs.features[column])


def test_bad_pairs_are_all_named(network, rows, caplog):
    pairs = build(rows, network)
    check_preferences(pairs)
    with pytest.raises(DatasetError, match="no image column `chosen_mask` and `rejected_mask`"):
        check_preferences(rows)
    for column, value, reason in (
        ("chosen_mask", Image.new("L", (32, 64)), "chosen_mask is 32 x 64, its image 64 x 64"),
        ("rejected_mask", Image.new("L", (64, 64), 7), "rejected_mask is not binary"),
        ("rejected_mask", None, "rejected_mask is missing"),
        ("rejected_mask", rows[2]["mask"], "chosen_mask and rejected_mask are equal"),
    ):
        with pytest.raises(DatasetError, match=f"(?s)1 of 4 pairs.*row 2.*{reason}"):
            check_preferences(spoilt(pairs, column, value))
    whole = pairs.with_format("arrow")[:].to_pylist()[2]["rejected_mask"]
    torn = spoilt(pairs, "rejected_mask", {"bytes": whole["bytes"][:50], "path": None})
    check_dataset(torn)  # looks at images and masks only
    with pytest.raises(DatasetError, match="(?s)1 of 4 pairs.*row 2.*rejected_mask is unreadable"):
        check_preferences(torn)
    turned = spoilt(pairs, "chosen_reward", 0.0, row=1)
    turned = spoilt(turned, "rejected_reward", 0.5, row=1)
    with pytest.raises(DatasetError, match="(?s)worse than the rejected one in 1 of 4 pairs.*row 1.*rejected 0.5000"):
        check_preferences(turned)
    with caplog.at_level(logging.WARNING, logger="sa2va_trl"):
        check_preferences(turned, allow_worse=True)
    assert "1 of 4 chosen masks are worse" in caplog.text
    # Without rewards, the masks themselves tell.
    names = {"chosen_mask": "rejected_mask", "rejected_mask": "chosen_mask"}
    bare = pairs.remove_columns(["chosen_reward", "rejected_reward"])
    check_preferences(bare)
    with pytest.raises(DatasetError, match="4 of 4 pairs"):
        check_preferences(bare.rename_columns(names))
    with pytest.raises(DatasetError, match="(?s)4 of 4 pairs.*0 masks"):
        check_preferences(bare.remove_columns("mask"))
