import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoded_rows import seeded, true_dice
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import label

from sa2va_trl.data import synthetic_dataset
from sa2va_trl.preferences.corruptions import CORRUPTIONS
from sa2va_trl.preferences.pairs import CHOSEN, REJECTED, disagreement_regions, make_pair, mine_pairs, stitch
from sa2va_trl.rewards import dice_reward, get_reward
from sa2va_trl.sampling import MaskSampler


# Stitching


PAIRS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))] * 2)
)


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
        ({"reward": "jaccard"}, "reward: unknown 'jaccard'"),
        ({"sampler": MaskSampler()}, "sampler has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            mine_pairs(model, features, masks, **options)
    with pytest.raises(ValueError, match="3 masks for 4"):
        mine_pairs(model, features, masks[:3])


@pytest.mark.parametrize(
    "reward", ["topology", "betti_matching", "default", "published", {"iou": 1, "vessel_length": 1}]
)
def test_pairs_are_chosen_by_any_reward(reward):
    target, half, none = np.zeros((3, 20, 30), dtype=np.uint8)
    target[8:12, 2:28] = half[8:12, 2:12] = half[8:12, 16:28] = 1
    pair = make_pair(
        "best", "worst", target, np.stack([half, none, target]), get_reward(reward), 0.1, np.random.default_rng(0)
    )
    assert np.array_equal(pair.chosen, target) and np.array_equal(pair.rejected, none)
    (best, worst) = get_reward(reward)(pred_masks=[target, none], mask=[target] * 2)
    assert (pair.chosen_reward, pair.rejected_reward) == (best, worst)
