"""The Action Expert (Section III-E, Eq. 5): a transformer that predicts the velocity of an action chunk.

The state and the embedded flow time are concatenated to every noisy action token; the guided tokens z_guided are the context.
Where the motion prior does not come through z_guided (the other fusions of `lamp.model.guidance`), it is added or joined to
the action tokens, or has context tokens of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import flow_times, preconditioning
from lamp.model.layers import Block, KeyValue, check_dropout, check_heads, sinusoid
from lamp.types import AddedMotion, Guided, JoinedMotion, MotionTokens, PriorBeside

FOLDS = 8
"""Parts of the episodes, one of which is left out at a time when the baseline's penalty is chosen."""
PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""Of the squared slopes, in units of the states' variance."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Self-attention over [actions; context]: both see each other, at the cost of the whole sequence at every flow time."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The context does not see the actions: its keys and values are computed once for all solver steps and noise draws."""

    context_layers: int | None = None
    """Blocks that the context passes through; later blocks read the context as the last of these left it. None: all."""


@dataclass(frozen=True, kw_only=True)
class RidgeBaseline:
    """The velocity starts as the one that a linear regression of the actions on the state gives, at every flow time.

    For actions of mean m(s) and deviation sigma given the state, x^tau tells v = m + skip (x^tau - tau m) + out F, and the
    network is left with F, of unit scale (`lamp.flow_matching.Preconditioning`). Eq. 2 and Eq. 5 stay as they are.

    Deviation: the paper's network predicts v itself, and has to learn even that from its data.
    """

    least_std: float = 0.05
    """Smallest sigma, in units of the normalised actions."""

    def __post_init__(self) -> None:
        if self.least_std <= 0:
            raise ConfigError(f"RidgeBaseline: least_std {self.least_std} given, a positive number expected.")


@dataclass(frozen=True, kw_only=True)
class ActionExpertConfig:
    """Sizes of the Action Expert; the defaults are the release's for LIBERO, but for `time_frequencies` and `dropout`."""

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
    sees_t_1: bool = False
    """Whether t_1, the solver's first time after 0, is embedded beside tau (Algorithms 1 and 2). Deviation: it does not by
    default, since it is a constant."""
    baseline: RidgeBaseline | None = None
    """What the velocity starts at; None: at nothing, as in the paper."""
    dropout: float = 0.0
    """In training, the share that is dropped of the attention's weights, of its output, and in and after the MLP (the release:
    0.1); acting drops nothing."""

    def __post_init__(self) -> None:
        check_heads("Action Expert", self.width, self.heads)
        check_dropout("Action Expert", self.dropout)
        if self.positions <= self.chunk:
            raise ConfigError(
                f"Action Expert: {self.positions} positions given, more than the chunk of {self.chunk} expected."
            )
        depth = self.attention.context_layers if isinstance(self.attention, Prefix) else None
        if depth is not None and not 0 <= depth <= self.layers:
            raise ConfigError(f"Action Expert: context_layers {depth} given, 0 to {self.layers} (layers) expected.")

    @property
    def shape(self) -> tuple[int, int]:
        """(h, a) of one action chunk."""
        return self.chunk, self.action_dim


@dataclass(frozen=True, kw_only=True)
class Context:
    """What does not depend on the actions, computed once for all solver steps and noise draws."""

    mask: Bool[Tensor, "b n"] | None
    """Which tokens are real; None where all are."""
    motion: PriorBeside | None = None
    t_1: Float[Tensor, " b"] | None = None

    def added(self, layer: int) -> Float[Tensor, "b h d"] | None:
        """What the motion prior adds to the action tokens before a layer (Add)."""
        return self.motion.values[:, layer] if isinstance(self.motion, AddedMotion) else None


@dataclass(frozen=True, kw_only=True)
class JointContext(Context):
    """The context as tokens, and what they are asked and offer in the first block, before they have seen any action."""

    tokens: Float[Tensor, "b n d"]
    query: Float[Tensor, "b heads n e"]
    first: KeyValue


@dataclass(frozen=True, kw_only=True)
class PrefixContext(Context):
    """The context as each block's keys and values."""

    layers: list[KeyValue]
    tokens: Float[Tensor, "b n d"]
    """As the last block that it passes through leaves it."""


class JoinMotion(nn.Module):
    """[action token; motion] through a two-layer MLP, back to the token's width (Concat+MLP)."""

    def __init__(self, width: int, motion_width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width + motion_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b r h d"], motion: Float[Tensor, "b h dm"]) -> Float[Tensor, "b r h d"]:
        both = torch.cat([x, motion[:, None].to(x.dtype).expand(-1, x.shape[1], -1, -1)], dim=-1)
        return self.out(functional.gelu(self.mix(both), approximate="tanh"))


class ActionBaseline(nn.Module):
    """A ridge regression from the normalised state to the action chunk, and what it leaves unexplained."""

    weight: Tensor
    bias: Tensor
    std: Tensor

    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        values = config.chunk * config.action_dim
        self.register_buffer("weight", torch.zeros(config.state_dim, values))
        self.register_buffer("bias", torch.zeros(values))
        self.register_buffer("std", torch.ones(config.chunk, config.action_dim))

    def forward(self, state: Float[Tensor, "b s"]) -> Float[Tensor, "b h a"]:
        with torch.autocast(state.device.type, enabled=False):
            return (state.float() @ self.weight + self.bias).unflatten(-1, self.std.shape)

    @torch.no_grad()
    def fit(
        self,
        states: Float[Tensor, "n s"],
        actions: Float[Tensor, "n h a"],
        mask: Bool[Tensor, "n h"],
        episodes: Int64[Tensor, " n"],
        least_std: float,
    ) -> float:
        """Fits the regression by least squares; its penalty is the one with the smallest error on left-out episodes.

        Args:
            mask: Which actions count.
            episodes: Of each sample; an eighth of them is left out at a time.

        Returns:
            The mean squared error on left-out episodes.
        """
        x, y = states.double(), actions.double().flatten(1)
        weight = mask.double().repeat_interleave(actions.shape[2], dim=1)
        fold = torch.unique(episodes, return_inverse=True)[1] % FOLDS
        left_out = [fold == number for number in range(FOLDS) if bool((fold == number).any())]
        if len(left_out) < 2:  # one episode: halves of its frames stand for episodes
            half = torch.arange(len(x)) < len(x) // 2
            left_out = [half, ~half]

        def errors(penalty: float) -> Float[Tensor, "n v"]:
            squared = torch.zeros_like(y)
            for rows in left_out:
                slope, offset = _ridge(x[~rows], y[~rows], weight[~rows], penalty)
                squared[rows] = (y[rows] - x[rows] @ slope - offset).square() * weight[rows]
            return squared

        tried = {penalty: errors(penalty) for penalty in PENALTIES}
        penalty = min(tried, key=lambda one: float(tried[one].sum()))
        slope, offset = _ridge(x, y, weight, penalty)
        self.weight.copy_(slope)
        self.bias.copy_(offset)
        variance = tried[penalty].sum(0) / weight.sum(0).clamp(min=1)
        self.std.copy_(variance.sqrt().clamp(min=least_std).unflatten(0, actions.shape[1:]))
        return float(tried[penalty].sum() / weight.sum().clamp(min=1))


def _ridge(
    x: Float[Tensor, "n s"], y: Float[Tensor, "n v"], weight: Float[Tensor, "n v"], penalty: float
) -> tuple[Float[Tensor, "s v"], Float[Tensor, " v"]]:
    """Slope and offset; what does not count is taken for the mean."""
    mean_x, mean_y = x.mean(0), (y * weight).sum(0) / weight.sum(0).clamp(min=1)
    centred = x - mean_x
    gram = centred.T @ centred + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    slope = torch.linalg.solve(gram, centred.T @ ((y - mean_y) * weight))
    return slope, mean_y - mean_x @ slope


class ActionExpert(nn.Module):
    """v_phi(a^tau, tau, z_guided, s_t), and t_1 where the configuration says so."""

    def __init__(self, config: ActionExpertConfig, joined_width: int = 0) -> None:
        """
        Args:
            joined_width: Width of the motion that is joined to each action token; 0: none is.
        """
        super().__init__()
        self.config = config
        times = config.time_channels * (2 if config.sees_t_1 else 1)
        self.action_in = nn.Linear(config.action_dim + times + config.state_dim, config.width)
        self.context_in = nn.Linear(config.token_width, config.width)
        self.positions = nn.Parameter(torch.randn(config.positions, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.velocity_out = nn.Linear(config.width, config.action_dim)
        self.join = JoinMotion(config.width, joined_width) if joined_width else None
        self.baseline = ActionBaseline(config) if config.baseline is not None else None
        if self.baseline is not None:
            nn.init.zeros_(self.velocity_out.weight)
            nn.init.zeros_(self.velocity_out.bias)
        self._fixed: dict[float, Tensor] = {}

    def context(self, guided: Guided) -> JointContext | PrefixContext:
        """Computes, once, what does not depend on the actions.

        Raises:
            MismatchError: Where there are more tokens than learned positions, or the motion or t_1 that it needs is missing.
        """
        chunk, n = self.config.chunk, guided.tokens.shape[1]
        if chunk + n > self.config.positions:
            room = self.config.positions - chunk
            raise MismatchError(f"Action Expert: {n} context tokens given, at most {room} expected; raise `positions`.")
        if (self.join is not None) != isinstance(guided.motion, JoinedMotion):
            given = type(guided.motion).__name__
            expected = "JoinedMotion" if self.join else "none, AddedMotion or MotionTokens"
            raise MismatchError(f"Action Expert: motion of type {given} given, {expected} expected.")
        if self.config.sees_t_1 and guided.t_1 is None:
            raise MismatchError("Action Expert: sees_t_1 is set and no t_1 was given; use LaMP.guide.")
        tokens = self.context_in(guided.tokens.to(self.context_in.weight.dtype)) + self.positions[chunk : chunk + n]
        real, motion = None if guided.whole else guided.mask, guided.motion
        if isinstance(motion, MotionTokens):
            # After z, whose positions stay what they are without a prior; these have positions of their own.
            tokens = torch.cat([tokens, motion.values.to(tokens.dtype)], dim=1)
            real, motion = _context_mask(real, n, motion), None
        if isinstance(self.config.attention, Joint):
            query, first = self._block(0).project(tokens)
            return JointContext(tokens=tokens, query=query, first=first, mask=real, motion=motion, t_1=guided.t_1)
        depth = self.config.attention.context_layers
        # No block reads what the last one makes of the context.
        depth = self.config.layers - 1 if depth is None else min(depth, self.config.layers - 1)
        layers, mask = [], None if real is None else real[:, None, None]
        for index in range(self.config.layers):
            query, key_value = self._block(index).project(tokens)
            layers.append(key_value)
            if index < depth:
                tokens = self._block(index).attend(tokens, query, key_value, mask)
        return PrefixContext(layers=layers, tokens=tokens, mask=real, motion=motion, t_1=guided.t_1)

    def states(self, context: JointContext | PrefixContext) -> Float[Tensor, "b n d"]:
        """Returns the context's tokens as the blocks leave them, without any action: what else is learnt from is told from."""
        if isinstance(context, PrefixContext):
            return context.tokens
        tokens, query, seen = context.tokens, context.query, context.first
        mask = None if context.mask is None else context.mask[:, None, None]
        for index in range(self.config.layers):
            if index:
                query, seen = self._block(index).project(tokens)
            tokens = self._block(index).attend(tokens, query, seen, mask)
        return tokens

    def forward(
        self,
        actions: Float[Tensor, "b r h a"],
        tau: Float[Tensor, "b r *h"] | float,
        state: Float[Tensor, "b s"],
        context: JointContext | PrefixContext,
    ) -> Float[Tensor, "b r h a"]:
        """Returns the predicted velocity (Eq. 5) of r noise draws per sample, which share state and context.

        `tau` may be one flow time for all, or one for each action (`lamp.model.realtime`).
        """
        if self.baseline is None:
            return self._predict(actions, tau, state, context)
        mean = self.baseline(state)[:, None]
        time = flow_times(tau, 2, actions.device)
        scale_in, skip, out = self._preconditioning(time, self.baseline)
        rest = actions.float() - time[(..., *(None,) * (4 - time.ndim))] * mean
        return mean + skip * rest + out * self._predict(scale_in * rest, tau, state, context).float()

    def error_scale(self, tau: Float[Tensor, "b r *h"]) -> Float[Tensor, "..."]:
        """The unit in which the loss measures the velocity's error: 1 but for a network that starts at a baseline."""
        if self.baseline is None:
            return torch.ones((), device=tau.device)
        return self._preconditioning(tau, self.baseline)[2]

    @staticmethod
    def _preconditioning(tau: Float[Tensor, "#b #r *h"], baseline: ActionBaseline) -> tuple[Tensor, Tensor, Tensor]:
        """Of the baseline's deviations, shaped to multiply (b, r, h, a)."""
        if tau.ndim == 2:
            return preconditioning(tau, baseline.std)
        each = [preconditioning(tau[..., step], std) for step, std in enumerate(baseline.std)]
        return tuple(torch.stack(parts, dim=-2) for parts in zip(*each, strict=True))  # pyright: ignore[reportReturnType]

    def _predict(
        self,
        actions: Float[Tensor, "b r h a"],
        tau: Float[Tensor, "b r *h"] | float,
        state: Float[Tensor, "b s"],
        context: JointContext | PrefixContext,
    ) -> Float[Tensor, "b r h a"]:
        x = self.embed(actions, self._time(tau), state, context.t_1)
        if self.join is not None and isinstance(context.motion, JoinedMotion):
            x = self.join(x, context.motion.values)
        x = self._extra_inputs(x, context) if isinstance(context, PrefixContext) else self._attend_jointly(x, context)
        return self.velocity_out(self.norm(x))

    def precompute_times(self, times: Sequence[float]) -> None:
        """Embeds some flow times once and for all."""
        self._fixed = {tau: self._time(tau) for tau in times}

    def embed(
        self,
        actions: Float[Tensor, "b r h a"],
        time: Float[Tensor, "#b #r *h c"],
        state: Float[Tensor, "b s"],
        t_1: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b r h d"]:
        """Returns the action tokens as the first block finds them, from the embedded flow time, of all or of each."""
        b, r, h, _ = actions.shape
        time = time if time.ndim == 4 else time[:, :, None]
        parts = [actions, time.expand(b, r, h, -1), state[:, None, None].expand(b, r, h, -1)]
        if self.config.sees_t_1 and t_1 is not None:
            parts.append(self._times(t_1)[:, None, None].expand(b, r, h, -1))
        tokens = torch.cat(parts, dim=-1)
        return self.action_in(tokens.to(self.action_in.weight.dtype)) + self.positions[:h]

    def _time(self, tau: Float[Tensor, "b r *h"] | float) -> Float[Tensor, "#b #r *h c"]:
        if isinstance(tau, float) and tau in self._fixed:
            return self._fixed[tau]
        return self._times(flow_times(tau, 2, self.positions.device))

    def _times(self, tau: Float[Tensor, "*b"]) -> Float[Tensor, "*b c"]:
        slowest, fastest = self.config.time_frequencies
        return sinusoid(fastest * tau, self.config.time_channels, max_period=fastest / slowest)

    def _block(self, index: int) -> Block:
        return cast(Block, self.blocks[index])

    def _extra_inputs(self, x: Float[Tensor, "b r h d"], context: PrefixContext) -> Float[Tensor, "b r h d"]:
        b, r, h, _ = x.shape
        mask = None
        if r > 1 or context.mask is not None:
            # The draws lie side by side in one sequence, so that they share the context's keys; the mask keeps them apart.
            draw = torch.arange(r, device=x.device).repeat_interleave(h)
            apart = (draw[:, None] == draw).expand(b, -1, -1)
            n = context.layers[0].keys.shape[2]
            real = apart.new_ones(b, n) if context.mask is None else context.mask
            mask = torch.cat([apart, real[:, None].expand(-1, r * h, -1)], dim=-1)[:, None]
        x = x.flatten(1, 2)
        for index, prefix in enumerate(context.layers):
            if (added := context.added(index)) is not None:
                x = x + added.repeat(1, r, 1)
            x = self._block(index)(x, mask, prefix)
        return x.unflatten(1, (r, h))

    def _attend_jointly(self, x: Float[Tensor, "b r h d"], context: JointContext) -> Float[Tensor, "b r h d"]:
        b, r, h, _ = x.shape
        mask = None
        if context.mask is not None:
            seen = torch.cat([context.mask.new_ones(b, h), context.mask], dim=1)
            mask = seen.repeat_interleave(r, dim=0)[:, None, None]
        asked, keys, values, beyond = (
            part if r == 1 else part.repeat_interleave(r, dim=0)
            for part in (context.query, *context.first, context.tokens)
        )
        tokens = torch.cat([x.flatten(0, 1), beyond], dim=1)
        for index in range(self.config.layers):
            block = self._block(index)
            if (added := context.added(index)) is not None:
                tokens = tokens + functional.pad(added.repeat_interleave(r, dim=0), (0, 0, 0, beyond.shape[1]))
            if index == 0:
                query, own = block.project(tokens[:, :h])
                query, offered = torch.cat([query, asked], dim=2), own.then(KeyValue(keys, values))
            else:
                query, offered = block.project(tokens)
            if index == self.config.layers - 1:
                # Nobody reads what the last block would make of the context.
                tokens, query = tokens[:, :h], query[:, :, :h]
            tokens = block.attend(tokens, query, offered, mask)
        return tokens.unflatten(0, (b, r))


def _context_mask(real: Bool[Tensor, "b n"] | None, n: int, motion: MotionTokens) -> Bool[Tensor, "b m"] | None:
    """Which context tokens are real where the motion's follow z's; None where all are."""
    if real is None and motion.seen is None:
        return None
    b, c = motion.values.shape[:2]
    ones = torch.ones(b, 1, dtype=torch.bool, device=motion.values.device)
    seen = ones if motion.seen is None else motion.seen[:, None]
    return torch.cat([ones.expand(-1, n) if real is None else real, seen.expand(-1, c)], dim=1)
