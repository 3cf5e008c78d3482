"""Gated guidance (Section III-E, Eq. 4), and what all ways have in common in which the motion prior reaches the Action Expert;
`lamp.model.motion_fusion` has the others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lamp.errors import ConfigError
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.layers import CrossAttention, check_dropout, check_heads
from lamp.model.motion_expert import MotionExpertConfig
from lamp.types import Encoded, Guided


class FusionSettings:
    """What the settings of all fusions have in common; the defaults are those of a fusion that reads z_m."""

    needs_prior: ClassVar[bool] = True
    """Whether there has to be a Motion Expert."""

    @property
    def joined_width(self) -> int:
        """Width of what the Action Expert finds beside each action token: 0 where there is nothing."""
        return 0

    def check(self, motion: MotionExpertConfig) -> None:
        """
        Raises:
            ConfigError: It does not fit this Motion Expert.
        """
        width = getattr(self, "motion_width", motion.width)
        if width != motion.width:
            message = f"guidance expects motion_width {width}"
            raise ConfigError(f"LaMP: {message}, the Motion Expert's width is {motion.width}.")

    def hidden_shape(self, motion: MotionExpertConfig) -> tuple[int, int]:
        """Tokens and width of what it reads of the Motion Expert."""
        return motion.tokens, motion.width

    def build(self, action: ActionExpertConfig, motion: MotionExpertConfig) -> Fusion:
        """Builds the fusion between experts of these sizes."""
        raise NotImplementedError


class Fusion(nn.Module):
    """How the motion prior reaches the Action Expert. The defaults are those of a fusion without a gate."""

    skippable: ClassVar[bool] = False
    """Whether it need not be computed where no sample of a batch sees the prior: z alone is then the same."""

    def guide(self, encoded: Encoded, hidden: Float[Tensor, "b m dm"]) -> Guided:
        """Returns what the Action Expert is conditioned on: the tokens that it reads in place of z, or z as it is and the prior
        beside it."""
        raise NotImplementedError

    def opening(self) -> Float[Tensor, " 1"] | None:
        """Returns how far a gate is open; None where there is none."""
        return None

    def guide_through(self, encoded: Encoded, hidden: Float[Tensor, "b m dm"], opening: float) -> Guided:
        """As `guide`, with the gate at `opening`."""
        raise NotImplementedError

    def blank(self, hidden: Float[Tensor, "b m dm"]) -> Float[Tensor, "b m dm"]:
        """Returns what stands for no motion at all."""
        return torch.zeros_like(hidden)


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
class GuidanceConfig(FusionSettings):
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

    def build(self, action: ActionExpertConfig, motion: MotionExpertConfig) -> MotionGuidance:
        return MotionGuidance(self)


class MotionGuidance(Fusion):
    """z_guided = z + sigma(g) CA(Q = LN(z), K = V = LN(W_proj z_m))."""

    skippable = True

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

    def guide(self, encoded: Encoded, hidden: Float[Tensor, "b m dm"]) -> Guided:
        dtype = self.project.weight.dtype
        return Guided(tokens=self(encoded.tokens.to(dtype), hidden.to(dtype)), mask=encoded.mask, whole=encoded.whole)

    def guide_through(self, encoded: Encoded, hidden: Float[Tensor, "b m dm"], opening: float) -> Guided:
        z, z_m = (part.to(self.project.weight.dtype) for part in (encoded.tokens, hidden))
        return Guided(tokens=z + opening * self.update(z, z_m), mask=encoded.mask, whole=encoded.whole)

    def opening(self) -> Float[Tensor, " 1"]:
        """Returns how far the gate is open: sigma(g), in (0, 1), or tanh(g)."""
        return self.g.tanh() if isinstance(self.config.gate, Tanh) else self.g.sigmoid()

    def forward(self, z: Float[Tensor, "b n d"], z_m: Float[Tensor, "b m dm"]) -> Float[Tensor, "b n d"]:
        """Returns z_guided (Eq. 4)."""
        return z + self.opening() * self.update(z, z_m)

    def update(self, z: Float[Tensor, "b n d"], z_m: Float[Tensor, "b m dm"]) -> Float[Tensor, "b n d"]:
        """Returns what the gate lets through: CA(Q = LN(z), K = V = LN(W_proj z_m))."""
        return self.cross_attention(self.norm_z(z), self.norm_motion(self.project(z_m)))


def withhold_prior(guided: Guided, encoded: Encoded, seen: Bool[Tensor, " b"]) -> Guided:
    """Takes the motion prior away from the samples that have not `seen` it: they keep z, and nothing is added or joined
    or stands beside it."""
    tokens = guided.tokens.where(seen[:, None, None], encoded.tokens.to(guided.tokens.dtype))
    return replace(guided, tokens=tokens, motion=None if guided.motion is None else guided.motion.withheld(seen))
