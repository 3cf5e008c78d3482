"""Preconditioning: what the noisy state tells of the velocity by itself, and the scale of the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lamp.errors import ConfigError
from lamp.flow_matching import Preconditioning, euler, interpolate, velocity_target
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.motion_expert import MotionExpert, MotionExpertConfig
from lamp.types import Encoded, Motion, MotionBatch

STD = (0.1, 0.5, 2.0)
SMALL = MotionExpertConfig(
    token_width=12, width=32, layers=2, heads=2, grid=(4, 4), horizon=4, time_channels=16, frames_per_token=2
)


def encoded(b: int = 2) -> Encoded:
    tokens = torch.randn(b, 5, 12, generator=torch.Generator().manual_seed(3))
    return Encoded(tokens=tokens, mask=torch.ones(b, 5, dtype=torch.bool))


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_the_rest_is_uncorrelated_with_the_state_and_has_the_promised_scale(tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(200_000, 3, generator=generator) * torch.tensor(STD)
    noise = torch.randn(200_000, 3, generator=generator)
    times = torch.full((len(data),), tau)
    x = interpolate(noise, data, times)
    scale_in, skip, out = Preconditioning(data_std=STD).coefficients(times, x)
    rest = (velocity_target(noise, data) - skip * x) / out
    torch.testing.assert_close((scale_in * x).std(0), torch.ones(3), atol=0.01, rtol=0)
    torch.testing.assert_close(rest.std(0), torch.ones(3), atol=0.01, rtol=0)
    torch.testing.assert_close((rest * x * scale_in).mean(0), torch.zeros(3), atol=0.01, rtol=0)


def test_the_linear_part_alone_carries_noise_to_gaussian_data() -> None:
    preconditioning = Preconditioning(data_std=STD)
    noise = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(1))
    data = euler(lambda x, tau: preconditioning.coefficients(torch.tensor([tau]), x)[1] * x, noise, steps=400)
    torch.testing.assert_close(data.std(0) / torch.tensor(STD), torch.ones(3), atol=0.03, rtol=0)


def test_an_untrained_expert_predicts_the_linear_part() -> None:
    preconditioning = Preconditioning(data_std=STD)
    expert = MotionExpert(replace(SMALL, preconditioning=preconditioning))
    motion, tau = torch.randn(2, 16, 4, 3), torch.tensor([0.2, 0.8])
    torch.testing.assert_close(expert(motion, tau, encoded()), preconditioning.coefficients(tau, motion)[1] * motion)


def test_the_loss_of_an_untrained_expert_is_one_at_every_scale_of_the_data() -> None:
    for std in (0.05, 1.0):
        motion = replace(SMALL, preconditioning=Preconditioning(data_std=(std,) * 3))
        model = LaMP(LaMPConfig(token_width=12, motion=motion, guidance=None, action=None))
        values = std * torch.randn(512, 16, 4, 3, generator=torch.Generator().manual_seed(4))
        mask = torch.ones_like(values, dtype=torch.bool)
        batch = MotionBatch(encoded=encoded(512), motion=Motion(values=values, mask=mask))
        loss = model.motion_loss(batch, torch.Generator().manual_seed(5))
        assert abs(loss.total.item() - 1) < 0.05


@pytest.mark.parametrize("std", [(), (0.1, 0.0, 0.1)])
def test_a_standard_deviation_must_be_positive(std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="data_std"):
        Preconditioning(data_std=std)
