"""The Action Expert (Section III-E, Eq. 5): a transformer that predicts the velocity of an action chunk.

The state and the embedded flow time are concatenated to every noisy action token; the guided tokens z_guided are the context.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lamp.errors import ConfigError, MismatchError
from lamp.model.layers import Block, KeyValue, check_heads, sinusoid
from lamp.types import Guided


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Self-attention over [actions; context]: both see each other, at the cost of the whole sequence at every flow time."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The context does not see the actions: its keys and values are computed once for all solver steps and noise draws."""

    context_layers: int | None = None
    """Blocks that the context passes through; later blocks read the context as the last of these left it. None: all."""


@dataclass(frozen=True, kw_only=True)
class ActionExpertConfig:
    """Sizes of the Action Expert; the defaults are the release's for LIBERO."""

    token_width: int
    """Width of the guided tokens."""
    width: int = 1024
    layers: int = 24
    heads: int = 16
    chunk: int = 10
    """H + 1 actions: A_{t:t+H} is inclusive."""
    action_dim: int = 7
    state_dim: int = 8
    """Values of proprioception; 0 where the policy sees none."""
    attention: Joint | Prefix = field(default_factory=Joint)
    time_channels: int = 32
    """Sines and cosines of tau beside each action."""
    time_frequencies: tuple[float, float] = (1.0, 100.0)
    """The slowest and the fastest of them, in rad over the whole flow time (the release: 0.01 and 1)."""
    positions: int = 1024
    """Learned positions: for the actions, then for the context tokens."""

    def __post_init__(self) -> None:
        check_heads("Action Expert", self.width, self.heads)
        if self.positions <= self.chunk:
            raise ConfigError(
                f"Action Expert: {self.positions} positions given, more than the chunk of {self.chunk} expected."
            )
        depth = self.attention.context_layers if isinstance(self.attention, Prefix) else None
        if depth is not None and not 0 <= depth <= self.layers:
            raise ConfigError(f"Action Expert: context_layers {depth} given, 0 to {self.layers} (layers) expected.")


@dataclass(frozen=True, kw_only=True)
class JointContext:
    """The context as tokens."""

    tokens: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]


@dataclass(frozen=True, kw_only=True)
class PrefixContext:
    """The context as each block's keys and values."""

    layers: list[KeyValue]
    mask: Bool[Tensor, "b n"]


class ActionExpert(nn.Module):
    """v_phi(a^tau, tau, z_guided, s_t)."""

    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.action_in = nn.Linear(config.action_dim + config.time_channels + config.state_dim, config.width)
        self.context_in = nn.Linear(config.token_width, config.width)
        self.positions = nn.Parameter(torch.randn(config.positions, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.velocity_out = nn.Linear(config.width, config.action_dim)

    def context(self, guided: Guided) -> JointContext | PrefixContext:
        """Computes, once, what does not depend on the actions.

        Raises:
            MismatchError: Where there are more tokens than learned positions.
        """
        chunk, n = self.config.chunk, guided.tokens.shape[1]
        if chunk + n > self.config.positions:
            room = self.config.positions - chunk
            raise MismatchError(f"Action Expert: {n} context tokens given, at most {room} expected; raise `positions`.")
        tokens = self.context_in(guided.tokens.to(self.context_in.weight.dtype)) + self.positions[chunk : chunk + n]
        if isinstance(self.config.attention, Joint):
            return JointContext(tokens=tokens, mask=guided.mask)
        depth = self.config.attention.context_layers
        # No block reads what the last one makes of the context.
        depth = self.config.layers - 1 if depth is None else min(depth, self.config.layers - 1)
        layers, mask = [], guided.mask[:, None, None]
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            query, key_value = block.project(tokens)
            layers.append(key_value)
            if index < depth:
                tokens = block.attend(tokens, query, key_value, mask)
        return PrefixContext(layers=layers, mask=guided.mask)

    def forward(
        self,
        actions: Float[Tensor, "b r h a"],
        tau: Float[Tensor, "b r"],
        state: Float[Tensor, "b s"],
        context: JointContext | PrefixContext,
    ) -> Float[Tensor, "b r h a"]:
        """Returns the predicted velocity (Eq. 5) of r noise draws per sample, which share state and context."""
        x = self._embed(actions, tau, state)
        x = self._beside(x, context) if isinstance(context, PrefixContext) else self._together(x, context)
        return self.velocity_out(self.norm(x))

    def _embed(self, actions: Tensor, tau: Tensor, state: Tensor) -> Float[Tensor, "b r h d"]:
        b, r, h, _ = actions.shape
        slowest, fastest = self.config.time_frequencies
        time = sinusoid(fastest * tau, self.config.time_channels, max_period=fastest / slowest)
        time = time[:, :, None].expand(b, r, h, -1)
        tokens = torch.cat([actions, time, state[:, None, None].expand(b, r, h, -1)], dim=-1)
        return self.action_in(tokens.to(self.action_in.weight.dtype)) + self.positions[:h]

    def _beside(self, x: Float[Tensor, "b r h d"], context: PrefixContext) -> Float[Tensor, "b r h d"]:
        b, r, h, _ = x.shape
        # The draws lie side by side in one sequence, so that they share the context's keys; the mask keeps them apart.
        draw = torch.arange(r, device=x.device).repeat_interleave(h)
        apart = (draw[:, None] == draw).expand(b, -1, -1)
        mask = torch.cat([apart, context.mask[:, None].expand(-1, r * h, -1)], dim=-1)[:, None]
        x = x.flatten(1, 2)
        for block, prefix in zip(self.blocks, context.layers, strict=True):
            x = block(x, mask, prefix)
        return x.unflatten(1, (r, h))

    def _together(self, x: Float[Tensor, "b r h d"], context: JointContext) -> Float[Tensor, "b r h d"]:
        b, r, h, _ = x.shape
        tokens = torch.cat([x.flatten(0, 1), context.tokens.repeat_interleave(r, dim=0)], dim=1)
        seen = torch.cat([context.mask.new_ones(b, h), context.mask], dim=1)
        mask = seen.repeat_interleave(r, dim=0)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens[:, :h].unflatten(0, (b, r))
