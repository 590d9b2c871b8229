"""What rollouts say of masks that were drawn: held against the formulas, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sa2va_trl.losses import advantages
from sa2va_trl.rewards import CREDITS, GroupScorer, RankNormalizer, dice_reward
from sa2va_trl.sampling import Candidates
from sa2va_trl.trainers.rollouts import cell_advantages, roll_out


SIDE, K = 16, 4


class Policy(nn.Module):
    """Nothing but the options that drawing needs."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(
            mask_temperature=1.0, mask_threshold=0.5, grounding_config=SimpleNamespace(image_size=SIDE)
        )


class Drawer:
    """As `MaskSampler`, of masks that are given: `(masks, 1 + K, h, w)`, the greedy one first."""

    def __init__(self, masks, kinds=(K, 0)):
        self.masks, (self.embedding, self.field), self.embedding_noise = masks, kinds, 0.1

    def __call__(self, model, features, generators):
        count = len(self.masks)
        rng = torch.Generator().manual_seed(0)
        return Candidates(
            mask_logits=20.0 * self.masks.float() - 10.0,
            log_prob=torch.randn(count, 1 + K, generator=rng),
            source=("greedy", *self.embedding * ("embedding",), *self.field * ("field",)),
            embeddings=torch.randn(count, self.embedding, 3, generator=rng),
            embedding_std=torch.full((count,), 0.1),
            prompts=torch.randn(count, 3, generator=rng),
            iou_scores=torch.zeros(count),
        )


def blobs(groups=2, seed=0):
    """Targets and drawn masks that differ in several places."""
    rng = np.random.default_rng(seed)
    target = np.zeros((groups, SIDE, SIDE), dtype=bool)
    target[:, 3:13, 6:10] = True
    flips = np.repeat(np.repeat(rng.random((groups, 1 + K, 4, 4)) < 0.25, 4, -1), 4, -2)
    return torch.from_numpy(target), torch.from_numpy(target[:, None] ^ flips)


def found(masks, targets, reward="default", kinds=(K, 0), **options):
    columns = [{"sample_id": str(number)} for number in range(len(masks))]
    with GroupScorer(reward) as scorer:
        return roll_out(
            Policy(), None, Drawer(masks, kinds), [], [own.float() for own in targets], columns, scorer, **options
        )


@pytest.mark.parametrize(("kind", "scale"), [("group", "none"), ("rloo", "group"), ("batch", "batch")])
@pytest.mark.parametrize("kinds", [(K, 0), (K // 2, K // 2)])
def test_advantages_are_those_of_the_rewards(kind, scale, kinds):
    targets, masks = blobs()
    own = found(masks, targets, "dice", kinds, advantage=kind, scale=scale, cells=None)
    pairs = zip(masks, targets, strict=True)
    dice = [dice_reward(pred_masks=list(group[1:]), mask=K * [target]) for group, target in pairs]
    rewards = torch.tensor(dice)
    assert own.rewards == pytest.approx(rewards, abs=1e-6) and own.has_spread.all()
    parts = [advantages(part, kind, scale) for part in rewards.split([count for count in kinds if count], dim=1)]
    assert torch.allclose(own.advantages, torch.cat(parts, dim=1), atol=1e-5)
    assert torch.equal(own.credit, own.advantages[..., None, None])


def test_the_density_is_of_what_has_drawn_the_embeddings():
    targets, masks = blobs()
    drawer = Drawer(masks, (K // 2, K // 2))
    own = found(masks, targets, kinds=(K // 2, K // 2))
    assert torch.equal(own.log_prob, drawer(None, None, None).log_prob[:, 1 : 1 + K // 2])


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_local_credit_is_the_reward_around_each_cell(scale):
    targets, masks = blobs()
    own = found(masks, targets, "default", scale=scale, cells=4)
    maps = [
        sum(
            weight * CREDITS[name](group[1:].numpy(), target.numpy(), (4, 4))
            for name, weight in {"dice": 0.6, "cldice": 0.4}.items()
        )
        for group, target in zip(masks, targets, strict=True)
    ]
    rest = own.rewards - 0.6 * own.components["dice"] - 0.4 * own.components["cldice"]
    wanted = cell_advantages(torch.from_numpy(np.stack(maps)).float(), rest, scale)
    assert torch.allclose(own.credit, wanted, atol=1e-5)
    # A cell in which the candidate is better than its group has more credit than one in which it is worse.
    better = masks[0, 1:] == targets[0]
    cells = better.float().unfold(1, 4, 4).unfold(2, 4, 4).mean((-2, -1))
    cells = cells - cells.mean(0)
    assert (own.credit[0] * cells).sum() > 0


def test_gains_and_losses_that_cancel_out_do_not_blow_up():
    """The reward's own deviation is next to nothing there."""
    cells = torch.zeros(1, 2, 4, 4)
    cells[0, 0, 0, 0], cells[0, 0, 3, 3], cells[0, 1, 0, 3], cells[0, 1, 3, 0] = 0.1, -0.1001, 0.1, -0.1
    own = cell_advantages(cells, torch.zeros(1, 2), "group")
    assert 0.1 < own.abs().max() < 1


def test_where_all_lies_in_one_cell_credit_is_the_advantage():
    rewards = torch.rand(3, K, generator=torch.Generator().manual_seed(0))
    for scale in ("none", "group", "batch"):
        own = cell_advantages(rewards[..., None, None], torch.zeros(3, K), scale)[..., 0, 0]
        if scale == "batch":  # (Of the whole batch the deviation is around the groups' means.)
            centred = rewards - rewards.mean(1, keepdim=True)
            wanted = centred / ((centred.square().sum() / (centred.numel() - 1)).sqrt() + 1e-4)
        else:
            wanted = advantages(rewards, "group", scale)
        assert torch.allclose(own, wanted, atol=1e-5)


def test_a_group_without_spread_is_left_out():
    targets, masks = blobs()
    masks[1, 1:] = masks[1, :1]
    own = found(masks, targets, cells=4)
    assert own.has_spread.tolist() == [True, False]
    assert not own.advantages[1].any() and not own.credit[1].any() and own.credit[0].any()


def test_ranks_are_of_the_past_and_the_own_group():
    targets, masks = blobs()
    ranks = RankNormalizer(8)
    ranks.remember([0.0, 0.5, 1.0])
    together = found(masks, targets, ranks=ranks, cells=None)
    apart = [found(masks[[n]], targets[[n]], ranks=ranks, cells=None) for n in range(2)]
    assert torch.equal(together.ranked, torch.cat([own.ranked for own in apart]))
    assert ranks.state_dict()["values"] == [0.0, 0.5, 1.0]
    assert torch.equal(together.rewards.argsort(1), together.ranked.argsort(1))


def test_a_reward_has_the_columns_of_its_row():
    seen = []

    def reward(pred_masks, mask, sample_id, phrase, **columns):
        seen.append((sample_id, phrase))
        return [0.0] * len(pred_masks)

    targets, masks = blobs(1)
    with GroupScorer(reward) as scorer:
        columns = [{"sample_id": "a", "phrase": "vessel"}]
        roll_out(Policy(), None, Drawer(masks), [], [targets[0].float()], columns, scorer)
    assert seen == [(["a"] * (1 + K), ["vessel"] * (1 + K))]
