"""Tiny models and batches whose sizes are all different, so that a swapped axis cannot go unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from tests.model.recording import Replayed

from lamp.model import fast
from lamp.model.action_expert import ActionExpertConfig, Prefix
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.types import Encoded, Motion, MotionBatch, PolicyBatch

TOKENS, PADDING, SAMPLES = 11, 3, 2


@dataclass(frozen=True, kw_only=True)
class BatchOfBoth(PolicyBatch, MotionBatch):  # pyright: ignore[reportIncompatibleVariableOverride]
    """One batch for the losses of both stages."""

    motion: Motion  # pyright: ignore[reportGeneralTypeIssues]


@pytest.fixture
def config() -> LaMPConfig:
    return LaMPConfig(
        token_width=24,
        motion=MotionExpertConfig(
            token_width=24, width=32, layers=3, heads=2, grid=(4, 6), horizon=8, frames_per_token=2, time_channels=64
        ),
        guidance=GuidanceConfig(token_width=24, motion_width=32, heads=3),
        action=ActionExpertConfig(
            token_width=24, width=48, layers=3, heads=4, chunk=5, state_dim=9, attention=Prefix(), positions=40
        ),
    )


@pytest.fixture
def model(config: LaMPConfig) -> LaMP:
    return spread(LaMP(config))


@pytest.fixture
def batch(config: LaMPConfig) -> BatchOfBoth:
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(SAMPLES, TOKENS, dtype=torch.bool)
    mask[0, -PADDING:] = False
    values = torch.rand(SAMPLES, 24, 8, 3, generator=generator) * 2 - 1
    return BatchOfBoth(
        encoded=Encoded(tokens=torch.randn(SAMPLES, TOKENS, 24, generator=generator), mask=mask),
        motion=Motion(values=values, mask=torch.rand(values.shape, generator=generator) < 0.8),
        state=torch.randn(SAMPLES, 9, generator=generator),
        actions=torch.randn(SAMPLES, 5, 7, generator=generator),
        action_mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    )


def spread(model: LaMP) -> LaMP:
    """Gives every parameter, also those that start at zero, a random value: a fresh model is too simple to test."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, torch.Size]]:
    """Has stand-ins recorded instead of CUDA graphs; says the shapes of each."""
    monkeypatch.setattr(Replayed, "made", [])
    monkeypatch.setattr(fast, "CudaGraph", Replayed)
    return Replayed.made


@pytest.fixture
def with_other_padding() -> Callable[[Encoded], Encoded]:
    """Replaces what padding tokens hold."""

    def change(encoded: Encoded) -> Encoded:
        noise = torch.randn(encoded.tokens.shape, generator=torch.Generator().manual_seed(9)) * 100
        return replace(encoded, tokens=torch.where(encoded.mask[..., None], encoded.tokens, noise))

    return change
