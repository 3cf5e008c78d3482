"""Eq. 4: a twin written from torch's own parts, and the three gates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lamp.errors import ConfigError
from lamp.model.guidance import GuidanceConfig, MotionGuidance, Sigmoid, Tanh, ZeroOut

CONFIG = GuidanceConfig(token_width=24, motion_width=32, heads=3)


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def z():
    return some(2, 11, 24, seed=1)


@pytest.fixture
def z_m():
    return some(2, 6, 32, seed=2)


def build(gate=None, g: float = 0.0) -> MotionGuidance:
    torch.manual_seed(0)
    guidance = MotionGuidance(replace(CONFIG, gate=gate or Sigmoid())).eval()
    nn.init.constant_(guidance.g, g)
    return guidance


def test_equals_equation_4(z, z_m):
    ours = build(g=0.4)
    attention = nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(
            torch.cat([ours.cross_attention.query.weight, ours.cross_attention.key_value.weight])
        )
        attention.in_proj_bias.copy_(torch.cat([ours.cross_attention.query.bias, ours.cross_attention.key_value.bias]))
    attention.out_proj.load_state_dict(ours.cross_attention.out.state_dict())
    h = nn.LayerNorm(24)(z_m @ ours.project.weight.T + ours.project.bias)
    expected = z + torch.sigmoid(torch.tensor(0.4)) * attention(nn.LayerNorm(24)(z), h, h)[0]
    torch.testing.assert_close(ours(z, z_m), expected)


def test_a_closed_gate_leaves_z_unchanged(z, z_m):
    torch.testing.assert_close(build(g=-100.0)(z, z_m), z, rtol=0, atol=0)
    assert (build(g=0.0)(z, z_m) - z).abs().max() > 1e-2


@pytest.mark.parametrize(("gate", "opening"), [(Sigmoid(), 0.5), (Tanh(), 0.0), (ZeroOut(), 0.5)])
def test_openings_at_the_start(gate, opening):
    assert build(gate).opening().item() == opening


@pytest.mark.parametrize("gate", [Tanh(), ZeroOut()])
def test_gates_that_start_at_zero_can_learn(z, z_m, gate):
    guidance = build(gate)
    guided = guidance(z, z_m)
    assert torch.equal(guided, z)
    guided.square().sum().backward()
    learning = guidance.g if isinstance(gate, Tanh) else guidance.cross_attention.out.weight
    assert learning.grad is not None
    assert learning.grad.abs().max() > 0


def test_dropout_acts_in_training_only(z, z_m):
    guidance = build()
    assert torch.equal(guidance(z, z_m), guidance(z, z_m))
    guidance.train()
    assert not torch.equal(guidance(z, z_m), guidance(z, z_m))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="7 heads do not divide width 2560"):
        GuidanceConfig(heads=7)
    assert GuidanceConfig().heads == 40
