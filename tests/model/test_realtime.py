"""Chunks that go on from committed actions: weights, guidance against closed forms, flow times of each action, training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import euler
from lamp.model.action_expert import ActionExpert, RidgeBaseline
from lamp.model.lamp import LaMP
from lamp.model.realtime import Conditioned, Guided, PreviousChunk, TrainedDelays, overlap_weights, real_time_method
from lamp.types import Guided as Conditions


def test_weights_are_one_then_fall_to_nothing() -> None:
    weights = overlap_weights(8, 6, 2)
    assert weights[:2].tolist() == [1, 1] and weights[6:].tolist() == [0, 0]
    share = torch.tensor([4 / 5, 3 / 5, 2 / 5, 1 / 5])
    torch.testing.assert_close(weights[2:6], share * torch.expm1(share) / (np.e - 1))
    assert overlap_weights(5, 5, 5).tolist() == [1] * 5
    assert (overlap_weights(5, 3, 0) < 1).all()  # nothing is committed
    for left, delay in ((9, 2), (3, 4), (3, -1)):
        with pytest.raises(MismatchError, match="expected 0 <= delay <= left <= chunk"):
            overlap_weights(8, left, delay)


def previous_of(actions: Tensor, left: int, delay: int) -> PreviousChunk:
    weights = overlap_weights(actions.shape[1], left, delay).expand(len(actions), -1)
    return PreviousChunk(actions=actions, weights=weights)


class TwoWays:
    """The exact velocity of data that are one of two smooth paths, +-mean, with Gaussian noise of covariance S about them."""

    def __init__(self, chunk: int = 15) -> None:
        time = torch.arange(chunk).double()
        self.mean = torch.sin((time + 4) / (chunk + 8) * torch.pi)
        self.cov = 0.02 * torch.exp(-0.5 * ((time[:, None] - time) / 4) ** 2) + 1e-5 * torch.eye(chunk)
        self.chunk = chunk

    def __call__(self, x: Tensor, tau: Any) -> Tensor:
        means = torch.stack([self.mean, -self.mean])
        spread = tau**2 * self.cov + (1 - tau) ** 2 * torch.eye(self.chunk)
        rest = x[:, None, :, 0] - tau * means
        pulled = torch.linalg.solve(spread, rest.mT).mT
        share = torch.softmax(-0.5 * (rest * pulled).sum(-1), dim=-1)
        data = (share[..., None] * (means + tau * pulled @ self.cov)).sum(1)
        return ((data - x[..., 0]) / (1 - tau))[..., None]


def test_guidance_keeps_the_way_that_was_begun() -> None:
    network, generator = TwoWays(), torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(64, 15, 1, generator=generator, dtype=torch.float64)

    old = euler(network, noise(), 10)
    previous = previous_of(old, 10, 5)  # the same moments again: what is right is to repeat the old chunk
    step = old.diff(dim=1).abs().mean()

    def jump(new: Tensor) -> float:
        return float((new[:, 5] - old[:, 4]).abs().median() / step)

    other = {}
    for name, method in {"exact": Guided(), "identity": Guided(jacobian="identity")}.items():
        start = noise()
        new = previous.kept(euler(method.velocity(network, previous), start, 10))
        torch.testing.assert_close(new[:, :5], old[:, :5])
        other[name] = float((new.sum((1, 2)).sign() != old.sum((1, 2)).sign()).float().mean())
        assert jump(new) < 2.0, name
    naive = euler(network, noise(), 10)
    assert jump(naive) > 5 and max(other.values()) < 0.05
    assert 0.2 < float((naive.sum((1, 2)).sign() != old.sum((1, 2)).sign()).float().mean()) < 0.8


def test_the_correction_is_the_vector_jacobian_product() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = 0.3 * torch.randn(4, 4, generator=generator)
    x, target = torch.randn(1, 4, 1, generator=generator), torch.randn(1, 4, 1, generator=generator)
    previous, tau = previous_of(target, 3, 1), 0.4
    network = lambda a, t: matrix @ a  # noqa: E731
    jacobian = torch.eye(4) + (1 - tau) * matrix
    pull = jacobian.T @ ((target - x - (1 - tau) * matrix @ x) * previous.weights[..., None])
    weight = min(5.0, 0.6 / 0.4 * (0.36 + 0.16) / 0.36)
    torch.testing.assert_close(Guided().velocity(network, previous)(x, tau), matrix @ x + weight * pull)
    plain = Guided(jacobian="identity").velocity(network, previous)(x, tau)
    expected = matrix @ x + weight * (target - x - (1 - tau) * matrix @ x) * previous.weights[..., None]
    torch.testing.assert_close(plain, expected)
    assert Guided(beta=3.0).weight(0.0) == 3.0


@pytest.mark.parametrize("baseline", [None, RidgeBaseline()])
def test_a_flow_time_for_each_action(config: Any, batch: Any, baseline: Any) -> None:
    expert = ActionExpert(replace(config.action, baseline=baseline))
    torch.nn.init.normal_(expert.velocity_out.weight)
    if expert.baseline is not None:
        torch.nn.init.normal_(expert.baseline.bias)
        expert.baseline.std.uniform_(0.2, 2.0)
    context = expert.context(Conditions(tokens=batch.encoded.tokens, mask=batch.encoded.mask))
    actions, tau = torch.randn(2, 3, 5, 7), torch.rand(2, 3)
    alike = expert(actions, tau[..., None].expand(-1, -1, 5), batch.state, context)
    torch.testing.assert_close(alike, expert(actions, tau, batch.state, context), atol=1e-5, rtol=1e-5)
    times = tau[..., None].expand(-1, -1, 5).clone()
    times[..., :2] = 1.0
    other = expert(actions, times, batch.state, context)
    assert other.isfinite().all() and not torch.allclose(other, alike)
    torch.testing.assert_close(
        expert.error_scale(times[..., :1].expand(-1, -1, 5)).isfinite().all(), torch.tensor(True)
    )


def test_committed_actions_are_shown_clean_and_not_learnt(config: Any, batch: Any) -> None:
    plain, delayed = (LaMP(replace(config, real_time=one)) for one in (None, TrainedDelays(largest=3)))
    delayed.load_state_dict(plain.state_dict())
    seen: list[tuple[Tensor, Tensor]] = []
    expert = delayed.action_expert
    assert expert is not None
    forward = expert.forward

    def noted(actions: Tensor, tau: Any, state: Tensor, context: Any) -> Tensor:
        seen.append((actions.detach(), tau))
        return forward(actions, tau, state, context)

    expert.forward = noted
    draws = 64
    loss = delayed.action_loss(batch, torch.Generator().manual_seed(3), draws)
    actions, times = seen[0]
    committed = times == 1
    count = committed.sum(-1)
    assert set(count.unique().tolist()) == {0, 1, 2, 3} and not committed[..., 3:].any()
    data = batch.actions[:, None].expand(-1, draws, -1, -1)
    torch.testing.assert_close(actions[committed], data[committed])
    assert not torch.allclose(actions[~committed], data[~committed])
    # Of the second sample, three actions are known: where all are committed, nothing supervises.
    nothing = (count[1] == 3).reshape(-1)
    assert torch.equal(~loss.draws.supervised[draws:], nothing)
    assert loss.total.isfinite()


def test_without_the_setting_the_loss_is_as_before(config: Any, model: LaMP, batch: Any) -> None:
    again = LaMP(replace(config, real_time=None))
    again.load_state_dict(model.state_dict())
    losses = [one.eval().action_loss(batch, torch.Generator().manual_seed(3), 4).total for one in (model, again)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("method", [Guided(), Guided(jacobian="identity"), Conditioned()])
def test_a_chunk_goes_on_from_the_last_one(model: LaMP, batch: Any, method: Any) -> None:
    noise, motion = torch.randn(2, 5, 7), torch.randn(2, 24, 8, 3)
    model.eval()  # dropout would change all
    free = model.act(batch.encoded, batch.state, motion_noise=motion, action_noise=noise)
    left = torch.randn(2, 5, 7)
    weights = torch.stack([overlap_weights(5, 4, 2), torch.zeros(5)])
    previous = PreviousChunk(actions=left, weights=weights)
    bound = model.act(
        batch.encoded, batch.state, motion_noise=motion, action_noise=noise, previous=previous, real_time=method
    )
    assert not bound.requires_grad and torch.equal(bound[0, :2], left[0, :2])
    assert not torch.allclose(bound[0, 2:], free[0, 2:])
    torch.testing.assert_close(bound[1], free[1], atol=1e-5, rtol=1e-5)  # it has no chunk before


def test_methods_and_what_they_need() -> None:
    assert real_time_method("auto", None) == Guided() and real_time_method("auto", TrainedDelays()) == Conditioned()
    assert real_time_method("auto", TrainedDelays(largest=3), 4) == Guided()  # more than it was trained for
    assert real_time_method("identity", TrainedDelays()) == Guided(jacobian="identity")
    with pytest.raises(MismatchError, match="trained without delays"):
        real_time_method("trained", None)
    with pytest.raises(ConfigError, match="largest 0 given"):
        TrainedDelays(largest=0)


def test_delays_are_shorter_than_chunks(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"largest 5 given, less than the chunk of 5 expected"):
        replace(config, real_time=TrainedDelays(largest=5))
