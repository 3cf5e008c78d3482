"""Gated motion guidance (Section III-E, Eq. 4): the motion prior enters the backbone's tokens through one cross-attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.model.layers import CrossAttention, check_dropout, check_heads
from lamp.types import Encoded, Guided


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """sigma(g) with g = 0, as in Eq. 4.

    Deviation: the paper speaks of near-zero injection, yet sigma(0) = 0.5; `Tanh` and `ZeroOut` do start at zero.
    """


@dataclass(frozen=True, kw_only=True)
class Tanh:
    """tanh(g) with g = 0: the motion prior has no effect before the first step."""


@dataclass(frozen=True, kw_only=True)
class ZeroOut:
    """sigma(g) with g = 0, and an output projection that starts at zero."""


Gate = Sigmoid | Tanh | ZeroOut


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Sizes of the guidance; the defaults are the paper's."""

    token_width: int = 2560
    """Width of z."""
    motion_width: int = 1024
    """d_m: width of z_m."""
    heads: int = 40
    dropout: float = 0.1
    """Share of attention weights dropped in training."""
    gate: Gate = field(default_factory=Sigmoid)

    def __post_init__(self) -> None:
        check_heads("guidance", self.token_width, self.heads)
        check_dropout("guidance", self.dropout)


class MotionGuidance(nn.Module):
    """z_guided = z + sigma(g) CA(Q = LN(z), K = V = LN(W_proj z_m))."""

    def __init__(self, config: GuidanceConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(config.motion_width, config.token_width)
        self.norm_motion = nn.LayerNorm(config.token_width)
        self.norm_z = nn.LayerNorm(config.token_width)
        self.cross_attention = CrossAttention(config.token_width, config.heads, config.dropout)
        self.g = nn.Parameter(torch.zeros(1))
        if isinstance(config.gate, ZeroOut):
            nn.init.zeros_(self.cross_attention.out.weight)
            nn.init.zeros_(self.cross_attention.out.bias)

    def guide(self, encoded: Encoded, z_m: Float[Tensor, "b m dm"]) -> Guided:
        """Returns the tokens that the Action Expert reads in place of z."""
        dtype = self.project.weight.dtype
        return Guided(tokens=self(encoded.tokens.to(dtype), z_m.to(dtype)), mask=encoded.mask, whole=encoded.whole)

    def opening(self) -> Float[Tensor, " 1"]:
        """Returns how far the gate is open: sigma(g), in (0, 1), or tanh(g)."""
        return self.g.tanh() if isinstance(self.config.gate, Tanh) else self.g.sigmoid()

    def forward(self, z: Float[Tensor, "b n d"], z_m: Float[Tensor, "b m dm"]) -> Float[Tensor, "b n d"]:
        """Returns z_guided (Eq. 4)."""
        return z + self.opening() * self.update(z, z_m)

    def update(self, z: Float[Tensor, "b n d"], z_m: Float[Tensor, "b m dm"]) -> Float[Tensor, "b n d"]:
        """Returns what the gate lets through: CA(Q = LN(z), K = V = LN(W_proj z_m))."""
        return self.cross_attention(self.norm_z(z), self.norm_motion(self.project(z_m)))
