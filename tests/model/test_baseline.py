"""The Action Expert that starts at a ridge regression: its fit, its start, its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lamp.errors import ConfigError
from lamp.flow_matching import euler
from lamp.model.action_expert import ActionBaseline, ActionExpert, ActionExpertConfig, Joint, Prefix, RidgeBaseline
from lamp.types import Guided

CONFIG = ActionExpertConfig(
    token_width=8,
    width=16,
    layers=2,
    heads=2,
    chunk=4,
    action_dim=3,
    state_dim=5,
    positions=32,
    baseline=RidgeBaseline(),
)


def demonstrations(n: int = 400, noise: float = 0.1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """States, actions that are linear in them but for noise, a mask, episodes of 40 frames, the slope."""
    random = torch.Generator().manual_seed(3)
    states = torch.randn(n, 5, generator=random)
    slope = torch.randn(5, 12, generator=random)
    actions = (states @ slope + 0.5 + noise * torch.randn(n, 12, generator=random)).unflatten(1, (4, 3))
    mask = torch.ones(n, 4, dtype=torch.bool)
    return states, actions, mask, torch.arange(n) // 40, slope


def test_the_regression_finds_a_linear_law_and_its_noise() -> None:
    states, actions, mask, episodes, slope = demonstrations()
    baseline = ActionBaseline(CONFIG)
    error = baseline.fit(states, actions, mask, episodes, 0.05)
    assert error == pytest.approx(0.01, rel=0.1)
    assert torch.allclose(baseline.weight, slope, atol=0.05)
    assert torch.allclose(baseline(states[:7]), actions[:7], atol=0.5)
    assert baseline.std.mean() == pytest.approx(0.1, rel=0.1)
    baseline.fit(*demonstrations(noise=0.0)[:4], 0.05)
    assert baseline.std.min() == pytest.approx(0.05)


def test_actions_that_do_not_count_change_nothing() -> None:
    states, actions, mask, episodes, _ = demonstrations()
    mask[episodes % 2 == 0, 2:] = False
    spoilt = actions.masked_fill(~mask[..., None], 1e3)
    one, other = ActionBaseline(CONFIG), ActionBaseline(CONFIG)
    assert one.fit(states, actions, mask, episodes, 0.05) == other.fit(states, spoilt, mask, episodes, 0.05)
    assert torch.equal(one.weight, other.weight) and torch.equal(one.std, other.std)


@pytest.mark.parametrize("episodes", [torch.zeros(400, dtype=torch.long), torch.arange(400)])
def test_few_and_many_episodes(episodes: Tensor) -> None:
    states, actions, mask, _, _ = demonstrations()
    assert ActionBaseline(CONFIG).fit(states, actions, mask, episodes, 0.05) < 0.02


def test_a_state_that_says_nothing_gets_no_slope() -> None:
    states, actions, mask, episodes, _ = demonstrations()
    random = torch.randn(states.shape, generator=torch.Generator().manual_seed(5))
    baseline = ActionBaseline(CONFIG)
    error = baseline.fit(random, actions, mask, episodes, 0.05)
    assert error < 1.2 * float(actions.var()) and baseline.weight.abs().max() < 1.0


@torch.no_grad()
@pytest.mark.parametrize("attention", [Joint(), Prefix()])
def test_an_untrained_network_gives_the_regressions_actions(attention: Joint | Prefix) -> None:
    states, actions, mask, episodes, _ = demonstrations()
    expert = ActionExpert(replace(CONFIG, attention=attention))
    assert expert.baseline is not None
    expert.baseline.fit(states, actions, mask, episodes, 0.05)
    tokens = torch.randn(6, 5, 8)
    context = expert.context(Guided(tokens=tokens, mask=torch.ones(6, 5, dtype=torch.bool)))
    noise = torch.randn(6, 4, 3)
    found = euler(lambda a, tau: expert(a[:, None], tau, states[:6], context)[:, 0], noise, 50)
    assert torch.allclose(found, expert.baseline(states[:6]), atol=0.5)
    spread = euler(lambda a, tau: expert(a[:, None], tau, states[:6], context)[:, 0], torch.randn(6, 4, 3), 50)
    assert (spread - found).std() == pytest.approx(2**0.5 * float(expert.baseline.std.mean()), rel=0.5)
    tau = torch.full((6, 1), 0.3)
    assert torch.equal(
        expert(noise[:, None], tau, states[:6], context), expert(noise[:, None], 0.3, states[:6], context)
    )


@torch.no_grad()
def test_the_loss_of_the_start_is_one() -> None:
    """What the regression leaves has unit scale at every flow time."""
    states, actions, mask, episodes, _ = demonstrations(4000)
    expert = ActionExpert(CONFIG)
    assert expert.baseline is not None
    expert.baseline.fit(states, actions, mask, episodes, 0.05)
    context = expert.context(Guided(tokens=torch.zeros(4000, 1, 8), mask=torch.ones(4000, 1, dtype=torch.bool)))
    for tau in (0.05, 0.5, 0.95):
        noise, time = torch.randn(actions.shape), torch.full((4000, 1), tau)
        predicted = expert(((1 - tau) * noise + tau * actions)[:, None], time, states, context)[:, 0]
        error = (predicted - (actions - noise)) / expert.error_scale(time)[:, 0]
        assert error.square().mean() == pytest.approx(1.0, rel=0.1)


def test_a_std_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"least_std 0.0 given, a positive number expected"):
        RidgeBaseline(least_std=0.0)
