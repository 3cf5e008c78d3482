"""Flow matching against closed forms and against a twin that runs time backwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.errors import ConfigError
from lamp.flow_matching import (
    Beta,
    LiteralBeta,
    Preconditioning,
    Uniform,
    euler,
    gaussian,
    interpolate,
    masked_velocity_loss,
    step_times,
    velocity_target,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def noise():
    return torch.randn(4, 5, 3, generator=seeded(1))


@pytest.fixture
def data():
    return torch.randn(4, 5, 3, generator=seeded(2))


def test_interpolation_ends_at_noise_and_data(noise, data):
    torch.testing.assert_close(interpolate(noise, data, torch.zeros(4)), noise)
    torch.testing.assert_close(interpolate(noise, data, torch.ones(4)), data)


def test_interpolation_takes_one_time_per_leading_index(noise, data):
    tau = torch.rand(4, 5, generator=seeded())
    mixed = interpolate(noise, data, tau)
    for i, j in [(0, 0), (3, 4), (2, 1)]:
        torch.testing.assert_close(mixed[i, j], (1 - tau[i, j]) * noise[i, j] + tau[i, j] * data[i, j])


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 40))
def test_euler_is_exact_on_straight_paths(steps):
    noise, data = torch.randn(2, 3, 4, generator=seeded(3)), torch.randn(2, 3, 4, generator=seeded(4))
    reached = euler(lambda x, tau: velocity_target(noise, data), noise, steps)
    torch.testing.assert_close(reached, data, atol=1e-5, rtol=0)


def test_one_of_ten_steps_lands_at_a_tenth(noise, data):
    reached = euler(lambda x, tau: data - noise, noise, 10, stop_after=1)
    torch.testing.assert_close(reached, interpolate(noise, data, torch.full((4,), 0.1)))


def test_euler_evaluates_where_the_previous_step_ended(noise):
    seen = []

    def velocity(x, tau):
        seen.append(tau)
        return torch.zeros_like(x)

    euler(velocity, noise, 4)
    assert seen == [n / 4 for n in range(4)]
    assert step_times(4) == [0, 0.25, 0.5, 0.75, 1]


def test_euler_on_a_linear_field(noise):
    reached = euler(lambda x, tau: -x, noise, 10)
    torch.testing.assert_close(reached, noise * 0.9**10)


def test_euler_keeps_the_state_in_float32(noise):
    assert euler(lambda x, tau: x.bfloat16(), noise, 3).dtype == torch.float32


@pytest.mark.parametrize(("steps", "stop_after"), [(0, None), (10, 11), (10, -1)])
def test_euler_refuses_impossible_steps(noise, steps, stop_after):
    with pytest.raises(ConfigError, match="euler"):
        euler(lambda x, tau: x, noise, steps, stop_after)


def reversed_loss(predicted, data, noise, t, mask):
    """The same loss written with t = 1 for noise: state t noise + (1 - t) data, velocity noise - data."""
    state = torch.stack([t[i] * noise[i] + (1 - t[i]) * data[i] for i in range(len(t))])
    per_sample = []
    for i in range(len(t)):
        errors = [
            float((predicted[i][index] - (noise - data)[i][index]) ** 2)
            for index in mask[i].nonzero().unbind(0)
            for index in [tuple(index.tolist())]
        ]
        if errors:
            per_sample.append(sum(errors) / len(errors))
    return state, sum(per_sample) / len(per_sample)


def test_loss_equals_its_time_reversed_twin(noise, data):
    tau = torch.rand(4, generator=seeded(5))
    mask = torch.rand(noise.shape, generator=seeded(6)) < 0.5
    mask[2] = False
    predicted = torch.randn(noise.shape, generator=seeded(7))
    state, twin = reversed_loss(-predicted, data, noise, 1 - tau, mask)
    torch.testing.assert_close(interpolate(noise, data, tau), state)
    ours = masked_velocity_loss(predicted, velocity_target(noise, data), mask)
    assert ours.item() == pytest.approx(twin, rel=1e-5)


def test_masked_elements_have_no_gradient(noise, data):
    predicted = noise.clone().requires_grad_()
    mask = torch.rand(noise.shape, generator=seeded(8)) < 0.5
    masked_velocity_loss(predicted, data, mask).backward()
    assert (predicted.grad[~mask] == 0).all()
    assert (predicted.grad[mask] != 0).all()


def test_a_sample_weighs_the_same_however_little_of_it_is_seen():
    predicted, target = torch.tensor([[2.0, 9.0, 9.0], [1.0, 1.0, 1.0]]), torch.zeros(2, 3)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    assert masked_velocity_loss(predicted, target, mask).item() == pytest.approx((4 + 1) / 2)


def test_loss_without_supervision_is_zero_and_finite(noise, data):
    predicted = noise.clone().requires_grad_()
    loss = masked_velocity_loss(predicted, data, torch.zeros(noise.shape, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (predicted.grad == 0).all()


def test_beta_is_a_noise_level_and_the_literal_one_a_time():
    n, device = 40_000, "cpu"
    assert Beta().sample(n, seeded(), device).mean().item() == pytest.approx(0.999 * 0.4, abs=0.01)
    assert LiteralBeta().sample(n, seeded(), device).mean().item() == pytest.approx(0.6, abs=0.01)
    assert Uniform().sample(n, seeded(), device).mean().item() == pytest.approx(0.5, abs=0.01)


def test_beta_has_its_distribution_function():
    level = (1 - Beta(alpha=1.5, beta=1.0, scale=1.0).sample(40_000, seeded(1), "cpu")).sort().values
    rank = torch.linspace(0, 1, len(level))
    torch.testing.assert_close(level**1.5, rank, atol=0.015, rtol=0)  # F(x) = x^alpha where beta = 1


@pytest.mark.parametrize("sampling", [Uniform(), Beta(), LiteralBeta(alpha=2.0, beta=3.0)])
def test_times_repeat_with_the_generator_and_stay_inside(sampling):
    first, second = (sampling.sample(500, seeded(4), "cpu") for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    assert (first >= 0).all()
    assert (first <= 1).all()


def test_bad_beta_is_refused():
    with pytest.raises(ConfigError, match="alpha -1"):
        Beta(alpha=-1.0)
    with pytest.raises(ConfigError, match="scale 2"):
        Beta(scale=2.0)


def test_preconditioning_splits_the_velocity_into_what_the_state_tells_and_the_rest():
    """Against the regression of drawn velocities on drawn states: `skip` is its slope, `out` what it leaves over."""
    n, stds, tau = 200_000, torch.tensor([0.1, 0.5, 2.0]), 0.3
    noise, data = torch.randn(n, 3, generator=seeded(1)), torch.randn(n, 3, generator=seeded(2)) * stds
    state, velocity = interpolate(noise, data, torch.full((n,), tau)), velocity_target(noise, data)
    scale_in, skip, out = Preconditioning(data_std=(0.1, 0.5, 2.0)).coefficients(torch.full((1,), tau), state)
    slope = (state * velocity).mean(0) / state.square().mean(0)
    torch.testing.assert_close(skip[0], slope, atol=0.01, rtol=0.01)
    torch.testing.assert_close(out[0], (velocity - slope * state).std(0), atol=0.01, rtol=0.01)
    torch.testing.assert_close((scale_in * state).std(0), torch.ones(3), atol=0.01, rtol=0)


def test_bad_preconditioning_is_refused():
    with pytest.raises(ConfigError, match="positive numbers"):
        Preconditioning(data_std=(0.1, 0.0, 0.1))


def test_gaussian_repeats_with_the_generator():
    assert torch.equal(gaussian((3, 2), seeded(1), "cpu"), gaussian((3, 2), seeded(1), "cpu"))
