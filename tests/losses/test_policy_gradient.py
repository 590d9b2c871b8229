"""Policy gradients against textbook formulas, enumeration, Monte Carlo and a toy whose optimum is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from sa2va_trl.losses import (
    advantages,
    bernoulli_kl,
    clip_fractions,
    clipped_surrogate,
    gaussian_kl,
    region_surrogate,
    value_loss,
)
from sa2va_trl.sampling import gaussian_log_prob


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Advantages


@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_advantages_of_a_group_add_up_to_nothing(groups, count, seed):
    rewards = random(groups, count, seed=seed)
    group, rloo = advantages(rewards, "group"), advantages(rewards, "rloo")
    assert torch.allclose(group.sum(1), torch.zeros(groups, dtype=torch.float64), atol=1e-12)
    others = (rewards.sum(1, keepdim=True) - rewards) / (count - 1)
    assert torch.allclose(rloo, rewards - others, atol=1e-12)
    scaled = advantages(rewards, "group", "group")
    assert torch.allclose(scaled, group / (rewards.std(1, keepdim=True) + 1e-4))
    batch = advantages(rewards, "batch", "batch")
    assert torch.allclose(batch, (rewards - rewards.mean()) / (rewards.std() + 1e-4))


def test_advantages_against_a_value_head_are_what_was_not_expected():
    rewards, values = random(3, 4), random(3, seed=1).requires_grad_()
    found = advantages(rewards, "value", values=values)
    assert torch.equal(found, rewards - values.detach()[:, None]) and not found.requires_grad
    assert torch.allclose(
        advantages(rewards, "value", "batch", values=values), found / (rewards.std() + 1e-4), rtol=1e-12
    )
    assert torch.equal(advantages(rewards[:, :1], "value", values=values), found[:, :1])


def test_the_loss_of_a_value_head_is_least_at_the_mean():
    rewards = random(3, 4)
    means = rewards.mean(1).requires_grad_()
    found = value_loss(means, rewards)
    assert torch.allclose(found, rewards.var(1, correction=0), rtol=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), means)
    assert slope.abs().max() < 1e-12
    (slope,) = torch.autograd.grad(value_loss(means + 1, rewards).sum(), means)
    assert torch.allclose(slope, 2 * torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["group", "rloo"])
@pytest.mark.parametrize("scale", ["none", "group"])
def test_a_group_without_spread_has_no_advantage(kind, scale):
    # (A third has no exact mean in float32.)
    assert not advantages(torch.full((2, 7), 1 / 3), kind, scale).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "mean"}, "`kind` must be one of group, rloo, batch, value"),
        ({"scale": "std"}, "`scale` must be one of none, group, batch"),
        ({"rewards": torch.ones(3, 1)}, "at least two masks a group, got 1"),
        ({"kind": "batch", "scale": "group"}, "kind='batch' is not of one group, so scale='group'"),
        ({"kind": "value", "scale": "group"}, "kind='value' is not of one group"),
        ({"kind": "value"}, "go together"),
        ({"kind": "group", "values": torch.ones(3)}, "go together"),
    ],
)
def test_bad_advantages(options, message):
    with pytest.raises(ValueError, match=message):
        advantages(**{"rewards": torch.ones(3, 2), **options})


# The clipped surrogate


def test_at_the_first_iteration_the_gradient_is_that_of_the_score_function():
    mean = random(3, 4).requires_grad_()
    std, drawn, gains = torch.full((3,), 0.3), random(3, 5, 4, seed=1), random(3, 5, seed=2) - 0.5
    log_prob = gaussian_log_prob(drawn, mean, std)
    log_ratio = log_prob - log_prob.detach()
    assert (log_ratio.exp() == 1).all()
    (found,) = torch.autograd.grad(clipped_surrogate(log_ratio, gains).sum(), mean)
    score = (drawn - mean.detach()[:, None]) / 0.3**2  # of a Gaussian
    assert torch.allclose(found, -(gains[..., None] * score).sum(1), rtol=1e-5)


@pytest.mark.parametrize("advantage", [-1.0, 0.5])
@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.0, 1.19, 1.27, 1.29, 2.0])
def test_the_gradient_is_that_of_finite_differences(ratio, advantage):
    gain = torch.tensor([advantage], dtype=torch.float64)

    def loss(value):
        return clipped_surrogate(value, gain, 0.2, 0.28)

    at = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(at).sum(), at)
    expected = (loss(at + 1e-6) - loss(at - 1e-6)) / 2e-6
    assert torch.allclose(found, expected.detach(), atol=1e-8)
    is_clipped = (ratio > 1.28 and advantage > 0) or (ratio < 0.8 and advantage < 0)
    assert (found == 0).item() == is_clipped
    low, high = clip_fractions(at, gain, 0.2, 0.28)
    assert (low + high).item() == is_clipped and not (low and high)


@pytest.mark.parametrize("bounds", [(0.0, None), (1.0, None), (0.2, 0.0)])
def test_bad_bounds(bounds):
    with pytest.raises(ValueError, match="epsilon must lie between 0 and 1"):
        clipped_surrogate(torch.zeros(1), torch.zeros(1), *bounds)


# Densities and divergences


@pytest.mark.parametrize("std", [0.1, 0.5, 1.5])
def test_the_density_integrates_to_one(std):
    step = 0.04 * std
    axis = torch.arange(-8 * std, 8 * std, step)
    points = torch.cartesian_prod(axis, axis)
    log_prob = gaussian_log_prob(points[None], torch.tensor([[0.3 * std, -0.2 * std]]), torch.tensor([std]))
    assert log_prob.exp().sum().item() * step**2 == pytest.approx(1, abs=1e-5)


def test_the_divergence_is_the_mean_gap_of_log_densities():
    mean, other, std = random(1, 6), random(1, 6, seed=1), torch.tensor([0.7])
    one, two = (Independent(Normal(own.float()[0], 0.7 * torch.ones(6)), 1) for own in (mean, other))
    kl = gaussian_kl(mean, other, std)
    assert kl.item() == pytest.approx(kl_divergence(one, two).item(), rel=1e-5)
    drawn = mean + 0.7 * torch.randn(1, 200_000, 6, generator=torch.Generator().manual_seed(0))
    gap = gaussian_log_prob(drawn, mean, std) - gaussian_log_prob(drawn, other, std)
    assert gap.mean().item() == pytest.approx(kl.item(), abs=4 * gap.std().item() / math.sqrt(200_000))


def test_the_divergence_of_pixels():
    one, two = 20 * random(2, 3, 4) - 10, 20 * random(2, 3, 4, seed=1) - 10
    expected = kl_divergence(Bernoulli(logits=one), Bernoulli(logits=two)).flatten(1).mean(1)
    assert torch.allclose(bernoulli_kl(one, two), expected.float(), rtol=1e-5)
    assert bernoulli_kl(one, one).abs().max() == 0
    assert torch.isfinite(bernoulli_kl(torch.full((1, 2, 2), 200.0), torch.full((1, 2, 2), -200.0))).all()


# Regions


def test_only_pixels_of_the_difference_count():
    logits = (4 * random(2, 3, 5) - 2).requires_grad_()
    greedy, drawn = random(2, 3, 5, seed=1) < 0.5, random(2, 4, 3, 5, seed=2) < 0.5
    drawn[1, 2] = greedy[1]
    credit = random(2, 4, 3, 5, seed=3) - 0.5
    found = region_surrogate(logits, drawn, greedy, credit)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for mask, own in np.ndindex(2, 4):
        pixels = [
            (row, column)
            for row, column in np.ndindex(3, 5)
            if drawn[mask, own, row, column] != greedy[mask, row, column]
        ]
        for row, column in pixels:
            chance = logits[mask, row, column].sigmoid()
            chance = chance if drawn[mask, own, row, column] else 1 - chance
            expected[mask, own] -= credit[mask, own, row, column] * chance.log().detach() / len(pixels)
    assert torch.allclose(found, expected) and found[1, 2] == 0
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert ((slope != 0) == (drawn != greedy[:, None]).any(1)).all()


# A toy with a known optimum


SCORES = torch.linspace(0, 1, 501)
TARGET = SCORES > 0.62


def dice_above(threshold):
    masks = SCORES > threshold
    return 2 * (masks & TARGET).sum(-1) / (masks.sum(-1) + TARGET.sum())


@pytest.mark.parametrize("kind", ["group", "rloo", "batch"])
def test_a_policy_that_can_only_shift_a_threshold_finds_the_best_one(kind):
    """
    Masks of pixels whose score is above a drawn threshold. The best mean is not quite the best threshold, since one
    that is too high costs more Dice than one as much too low: it is found by quadrature.
    """
    noise, means = torch.linspace(-4, 4, 201), torch.linspace(0.52, 0.72, 101)
    weight = torch.exp(-0.5 * noise**2)
    expected = torch.stack([(weight * dice_above((mean + 0.05 * noise)[:, None])).sum() for mean in means])
    best = means[expected.argmax()].item()
    assert 0.58 < best < 0.62

    generator, path = torch.Generator().manual_seed(0), []
    mean, std = torch.full((1, 1), 0.2, requires_grad=True), torch.tensor([0.05])
    optimizer = torch.optim.SGD([mean], lr=4e-3)
    for _ in range(300):
        drawn = mean.detach()[:, None] + std * torch.randn(1, 8, 1, generator=generator)
        rewards = dice_above(drawn[0])[None]
        before = gaussian_log_prob(drawn, mean, std).detach()
        for _ in range(2):
            log_ratio = gaussian_log_prob(drawn, mean, std) - before
            optimizer.zero_grad()
            clipped_surrogate(log_ratio, advantages(rewards, kind)).mean().backward()
            optimizer.step()
        path.append(mean.item())
    assert np.mean(path[-150:]) == pytest.approx(best, abs=0.01)


def test_ppo_with_a_value_head_and_grpo_agree_in_expectation():
    """
    On the same toy, whatever is expected (here too much): the mean gradients of many groups, of the policy's mean and
    of its log-deviation, are those of the expected reward. With a group's mean as baseline it is (K - 1) / K of that,
    since a mask is a part of its own baseline.
    """
    groups, count, at, sigma = 20_000, 4, 0.66, 0.05
    # The slopes of the expected reward by quadrature.
    noise = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    density = torch.exp(-0.5 * noise**2) / torch.exp(-0.5 * noise**2).sum()
    rewards = dice_above((at + sigma * noise)[:, None]).double()
    exact = torch.stack([(density * rewards * noise).sum() / sigma, (density * rewards * (noise**2 - 1)).sum()])

    generator = torch.Generator().manual_seed(0)
    drawn = at + sigma * torch.randn(groups, count, 1, generator=generator)
    found = dice_above(drawn)
    gradients = {}
    for kind in ("group", "rloo", "value"):
        mean = torch.full((groups, 1), at, requires_grad=True)
        log_std = torch.full((groups,), math.log(sigma), requires_grad=True)
        log_prob = gaussian_log_prob(drawn, mean, log_std.exp())
        values = torch.full((groups,), 1.0) if kind == "value" else None
        gains = advantages(found, kind, values=values)
        loss = clipped_surrogate(log_prob - log_prob.detach(), gains).mean(1).sum()
        slopes = torch.autograd.grad(loss, (mean, log_std))
        gradients[kind] = -torch.stack([slope.flatten() for slope in slopes]).double()
    gradients["group"] *= count / (count - 1)
    for kind, each in gradients.items():
        error = each.std(1) / math.sqrt(groups)
        assert ((each.mean(1) - exact).abs() < 3 * error).all(), kind
        assert (error < 0.1 * exact.abs()).all(), kind  # which a slope of another size would not pass
    between = gradients["value"] - gradients["group"]
    assert (between.mean(1).abs() < 3 * between.std(1) / math.sqrt(groups)).all()
