"""The learned noise and the value head of PPO: density, ratio, gradient, a toy that they solve, checkpoints."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sa2va_trl.losses import advantages, clipped_surrogate, value_loss
from sa2va_trl.sampling import gaussian_log_prob
from sa2va_trl.trainers.actor_critic import NOISE_RANGE, STATE, ActorCritic


# One process.
ALONE = SimpleNamespace(reduce=lambda tensor, reduction: tensor)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(noise=0.1, by=0.2):
    """A learned noise that has changed since masks were drawn, and those masks' deviation."""
    extra, std = ActorCritic(4, noise), torch.tensor([0.3, 0.5])
    drawn_with = extra.noise
    with torch.no_grad():
        extra.log_noise += by
    return extra, std, drawn_with


def test_the_density_of_a_learned_noise_integrates_to_one():
    extra, std, drawn_with = moved()
    std = extra.std(std, drawn_with).detach()
    assert torch.allclose(std, math.exp(0.2) * torch.tensor([0.3, 0.5]))
    for own in std:
        step = 0.04 * own.item()
        axis = torch.arange(-200, 200) * step
        points = torch.cartesian_prod(axis, axis)
        log_prob = gaussian_log_prob(points[None], torch.zeros(1, 2), own[None])
        assert log_prob.exp().sum().item() * step**2 == pytest.approx(1, abs=1e-5)


def test_the_ratio_is_exactly_one_until_a_step_has_been_taken():
    # (Whatever the noise: its logarithm is not always exact.)
    for noise in np.geomspace(*NOISE_RANGE, 40):
        extra, std = ActorCritic(4, noise), random(5).abs()
        assert torch.equal(extra.std(std, extra.noise), std)


@pytest.mark.parametrize("by", [0.0, 0.05])
def test_the_gradient_of_the_noise_is_that_of_finite_differences(by):
    """Of the clipped surrogate, with some of the ratios beyond the clip."""
    extra, std, drawn_with = moved(by=by)
    mean, gains = random(2, 4, seed=1), random(2, 6, seed=2)
    drawn = mean[:, None] + std[:, None, None] * random(2, 6, 4, seed=3)
    before = gaussian_log_prob(drawn, mean, std)

    def loss():
        log_ratio = gaussian_log_prob(drawn, mean, extra.std(std, drawn_with)) - before
        return clipped_surrogate(log_ratio, gains, 0.05).sum()

    (found,) = torch.autograd.grad(loss(), extra.log_noise)
    with torch.no_grad():
        extra.log_noise += 1e-3
        above = loss()
        extra.log_noise -= 2e-3
        expected = (above - loss()) / 2e-3
    assert found.item() == pytest.approx(expected.item(), rel=5e-3) and abs(found.item()) > 1
    if by == 0:  # the textbook's: of a Gaussian's density
        score = ((drawn - mean[:, None]) / std[:, None, None]).square().sum(-1) - 4
        assert found.item() == pytest.approx(-(gains * score).sum().item(), rel=1e-4)


def test_the_noise_stays_in_its_range():
    for bound, sign in zip(NOISE_RANGE, (1, -1), strict=True):
        extra = ActorCritic(4, 0.5, learning_rate=1.0)
        for _ in range(8):
            (sign * extra.log_noise).backward()
            extra.update(ALONE)
        assert extra.noise == pytest.approx(bound)


def test_gradients_are_those_of_all_processes():
    alone, shared = ActorCritic(4, 0.1, value=True, seed=1), ActorCritic(4, 0.1, value=True, seed=1)
    for extra, factor in ((alone, 1.0), (shared, 4.0)):
        (factor * (extra.log_noise + extra.values(random(3, 4)).sum())).backward()
    # As if three other processes had none.
    seen = []
    shared.update(SimpleNamespace(reduce=lambda tensor, reduction: seen.append(reduction) or tensor / 4))
    alone.update(ALONE)
    assert seen == ["mean"]
    for one, two in zip(alone.state_dict().values(), shared.state_dict().values(), strict=True):
        assert torch.allclose(one, two, rtol=1e-5)


def test_values_do_not_reach_the_embeddings_and_are_float32():
    extra, embeddings = ActorCritic(4, value=True, seed=3), random(3, 4).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        values = extra.values(embeddings)
    assert values.dtype == torch.float32
    values.sum().backward()
    assert embeddings.grad is None and extra.head[-1].bias.grad == 3
    same = ActorCritic(4, value=True, seed=3).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in extra.state_dict().items())
    # Any order of masks, any number of them.
    extra.load_state_dict({name: random(*value.shape, seed=5) for name, value in same.items()})
    assert torch.allclose(extra.values(embeddings)[[2, 0]], extra.values(embeddings[[2, 0]]), rtol=1e-5)
    assert extra.values(embeddings[:0]).shape == (0,)


SCORES = torch.linspace(0, 1, 501)


def test_ppo_with_a_value_head_and_learned_noise_solves_the_toy():
    """
    The toy of tests/losses/test_policy_gradient.py for three objects, each with a best threshold of its own, and one
    mask of each a row: there are no others of a group, and the value head has to tell objects apart.
    """
    best = torch.tensor([0.3, 0.5, 0.7])
    targets = SCORES > best[:, None]
    objects = torch.arange(3).repeat(8)
    embeddings = random(3, 8, seed=1)

    def dice(thresholds):
        masks = SCORES > thresholds
        return 2 * (masks & targets[objects]).sum(-1) / (masks.sum(-1) + targets[objects].sum(-1))

    extra, generator = ActorCritic(8, 0.1, value=True, learning_rate=0.01), torch.Generator().manual_seed(0)
    means = torch.full((3, 1), 0.15, requires_grad=True)
    optimizer, path, errors = torch.optim.Adam([means], lr=0.02), [], []
    for number in range(200):
        drawn_with, std = extra.noise, torch.full((24,), extra.noise)
        drawn = means.detach()[objects][:, None] + std[:, None, None] * torch.randn(24, 1, 1, generator=generator)
        rewards = dice(drawn[:, 0])[:, None]
        values = extra.values(embeddings[objects])
        gains = advantages(rewards, "value", values=values)
        if number < 30:  # the head first
            gains = torch.zeros_like(gains)
        before = gaussian_log_prob(drawn, means[objects], std).detach()
        for _ in range(2):
            log_ratio = gaussian_log_prob(drawn, means[objects], extra.std(std, drawn_with)) - before
            values = extra.values(embeddings[objects])
            optimizer.zero_grad()
            (clipped_surrogate(log_ratio, gains).mean() + value_loss(values, rewards).mean()).backward()
            optimizer.step()
            extra.update(ALONE)
        path.append(means.detach().flatten().clone())
        errors.append((values.detach() - rewards[:, 0]).square().mean().item())
    found = torch.stack(path[-50:]).mean(0)
    assert torch.allclose(found, best, atol=0.03)
    # What is left to learn is to draw less far, and what the masks are worth is known.
    assert extra.noise < 0.05
    assert np.mean(errors[-50:]) < 0.01 < errors[0]


def test_a_checkpoint_has_all_of_it(tmp_path):
    def step(extra, seed):
        (extra.log_noise * random(1, seed=seed)[0] + extra.values(random(3, 4, seed=seed)).square().sum()).backward()
        extra.update(ALONE)

    whole = ActorCritic(4, 0.1, value=True)
    torch.nn.init.ones_(whole.head[-1].weight)
    for seed in range(4):
        step(whole, seed)
        if seed == 1:
            whole.save(tmp_path / "new")
    resumed = ActorCritic(4, 0.7, value=True, seed=9)
    resumed.load(tmp_path / "new")
    for seed in (2, 3):
        step(resumed, seed)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert [file.name for file in (tmp_path / "new").iterdir()] == [STATE]


def test_checkpoints_that_it_cannot_go_on_from(tmp_path):
    extra = ActorCritic(4, 0.1)
    with pytest.raises(ValueError, match=f"lacks {STATE}: it was begun without learn_noise=True and advantage=value"):
        extra.load(tmp_path)
    ActorCritic(4, value=True).save(tmp_path)
    with pytest.raises(ValueError, match="begun with another learn_noise or advantage"):
        extra.load(tmp_path)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:-30])
    with pytest.raises(ValueError, match="damaged or cut off"):
        extra.load(tmp_path)
