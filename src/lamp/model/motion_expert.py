"""The Motion Expert (Section III-B): a 3-D transformer that predicts the velocity of dense 3-D scene flow.

Tokens are 2x2 blocks of grid points, several flow steps at a time; they attend jointly with the backbone's tokens z_t, and
time drives AdaLN in every block, as in CogVideoX. `Conditioning` has the other ways in for z_t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import ConfigError
from lamp.flow_matching import Preconditioning, flow_times
from lamp.model.layers import (
    AdaLayerNorm,
    ExpertBlock,
    Mlp,
    Modulation,
    TimeEmbedding,
    attention,
    check_heads,
    grid_positions,
    merge_heads,
    split_heads,
)
from lamp.types import Encoded


@dataclass(frozen=True, kw_only=True)
class JointTokens:
    """Joint attention over [z_t; motion], padding masked; AdaLN carries time alone (as the release does).

    Deviation: the paper says "via Adaptive LayerNorm", see `AdaLNPooled`; pooling gives up where in the image a token is from.
    """


@dataclass(frozen=True, kw_only=True)
class AdaLNPooled:
    """AdaLN carries time and the mean of z_t, and attention is among motion tokens alone: the paper's words."""


@dataclass(frozen=True, kw_only=True)
class RepeatAndPad:
    """Motion tokens attend to exactly `tokens` of them, without a mask: more are cut; fewer are repeated, whole, as often as
    they fit, and learned rows fill the rest. The release's way.

    Deviation: in a batch, the release repeats the padding too. Here it is left out first, so that a sample gets what it would
    get alone.
    """

    tokens: int = 256

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"RepeatAndPad: {self.tokens} tokens given, at least 1 expected (256 in the release).")


Conditioning = JointTokens | AdaLNPooled | RepeatAndPad
"""How z_t enters the Motion Expert."""


@dataclass(frozen=True, kw_only=True)
class SpatialFlow:
    """(du, dv, dd): dense 3-D scene flow."""


@dataclass(frozen=True, kw_only=True)
class ImageFlow:
    """(du, dv): the 2D-Flow ablation. Tensors keep their third axis, which is zero in noise, input and prediction and does not
    supervise.

    Deviation: the paper masks depth "during training"; noise of an unused axis would still reach z_m.
    """


@dataclass(frozen=True, kw_only=True)
class ReferenceGrid:
    """The grid on which weights were first trained: token positions stay in its coordinates."""

    grid: tuple[int, int]
    """Rows and columns of grid points over the same image."""
    horizon: int
    """Flow steps."""
    pace: float = 1.0
    """Reference flow steps for each flow step now. 1 keeps the pace: a shorter horizon ends earlier. The reference's horizon
    over the present one keeps the span: fewer, longer steps."""

    def __post_init__(self) -> None:
        if min(*self.grid, self.horizon) < 1 or self.pace <= 0:
            given = f"grid {self.grid}, horizon {self.horizon}, pace {self.pace}"
            raise ConfigError(f"reference grid: {given} given, positive numbers expected, such as (20, 20), 32, 1.0.")


@dataclass(frozen=True, kw_only=True)
class MotionExpertConfig:
    """Sizes of the Motion Expert; the defaults are the paper's (Table III)."""

    token_width: int
    """Width of the backbone's tokens."""
    width: int = 1024
    layers: int = 12
    heads: int = 16
    grid: tuple[int, int] = (20, 20)
    """(K_h, K_w): rows and columns of grid points."""
    horizon: int = 32
    """T: flow steps."""
    patch: int = 2
    """Grid points along each side of a token."""
    frames_per_token: int = 2
    """Flow steps packed into a token's channels. Deviation: the paper's patch is one step; 1600 tokens fit better than 3200."""
    hidden_layer: int = -1
    """The block whose output is z_m, counted from the end where negative: the paper's is the last."""
    time_channels: int = 512
    whole_time: bool = False
    """Embed the integer part of 1000 tau, as the released weights were trained; False: 1000 tau itself."""
    preconditioning: Preconditioning | None = None
    """Predict what the noisy motion does not tell by itself; None: the velocity, as the paper."""
    conditioning: Conditioning = field(default_factory=JointTokens)
    flow: SpatialFlow | ImageFlow = field(default_factory=SpatialFlow)
    """What is predicted for each point and step."""
    reference: ReferenceGrid | None = None
    """Where the weights come from another grid or horizon: whose coordinates token positions keep. None: this grid's own."""

    def __post_init__(self) -> None:
        check_heads("Motion Expert", self.width, self.heads)
        if any(side % self.patch for side in self.grid):
            raise ConfigError(f"Motion Expert: patch {self.patch} does not divide the grid {self.grid}.")
        if self.horizon % self.frames_per_token:
            fitting = [n for n in range(1, self.horizon + 1) if self.horizon % n == 0]
            message = f"frames_per_token {self.frames_per_token} does not divide the horizon {self.horizon}"
            raise ConfigError(f"Motion Expert: {message}; these do: {fitting}.")
        if not -self.layers <= self.hidden_layer < self.layers:
            limits = f"{-self.layers} to {self.layers - 1}"
            raise ConfigError(f"Motion Expert: hidden_layer {self.hidden_layer} given, {limits} expected.")
        if self.preconditioning and len(self.preconditioning.data_std) != 3:
            given = self.preconditioning.data_std
            raise ConfigError(f"Motion Expert: data_std {given} given, three numbers (du, dv, dd) expected.")

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Motion tokens along time, rows and columns."""
        rows, columns = self.grid
        return self.horizon // self.frames_per_token, rows // self.patch, columns // self.patch

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, t, 3) of one sample's scene flow."""
        return self.grid[0] * self.grid[1], self.horizon, 3

    @property
    def tokens(self) -> int:
        """m: the number of motion tokens."""
        frames, rows, columns = self.token_grid
        return frames * rows * columns

    @property
    def token_values(self) -> int:
        """Scene-flow values in one token."""
        return 3 * self.frames_per_token * self.patch**2

    @property
    def position_scale(self) -> tuple[float, float, float]:
        """Tokens of the reference grid for each token of this one, along (time, height, width)."""
        if self.reference is None:
            return 1.0, 1.0, 1.0
        (rows, columns), (own_rows, own_columns) = self.reference.grid, self.grid
        return self.reference.pace, rows / own_rows, columns / own_columns


class BlockModulation(NamedTuple):
    """What one flow time does to a block: (motion, condition) before the attention, and before the MLP."""

    attention: tuple[Modulation, Modulation]
    mlp: tuple[Modulation, Modulation]


class TimeModulation(NamedTuple):
    """All that one flow time does to the network; of batch size 1 where every sample is at that time."""

    tau: Float[Tensor, " b"]
    blocks: list[BlockModulation]
    shift: Float[Tensor, "b 1 d"]
    scale: Float[Tensor, "b 1 d"]


class Condition(NamedTuple):
    """z_t as the first block finds it."""

    tokens: Float[Tensor, "b c d"]
    real: Bool[Tensor, "b c"] | None
    """Which of them; None where all are."""


class MotionBlock(ExpertBlock):
    """Joint attention over [condition; motion] and an MLP, both shared, with each stream modulated by time on its own.

    There may be no condition tokens, and then one stream is enough.
    """

    WITH_WEIGHTS = ("modulation",)
    RECOMPUTED = "forward"

    def __init__(self, width: int, heads: int, streams: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = AdaLayerNorm(width, width, streams)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.norm_query = nn.LayerNorm(width // heads, eps=1e-6)
        self.norm_key = nn.LayerNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)
        self.norm_mlp = AdaLayerNorm(width, width, streams)
        self.mlp = Mlp(width)

    def modulation(self, time: Float[Tensor, "b d"]) -> BlockModulation:
        """Returns what the embedded flow time does to this block."""
        return BlockModulation(self.norm_attention.modulations(time), self.norm_mlp.modulations(time))

    def forward(
        self,
        condition: Float[Tensor, "b n d"],
        motion: Float[Tensor, "b m d"],
        modulation: BlockModulation,
        mask: Bool[Tensor, "b 1 1 nm"] | None,
        *,
        last: bool = False,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Returns both streams; in the `last` block nobody reads the condition again, so it is returned as it came."""
        (on_motion, on_condition), (then_motion, then_condition) = modulation
        joint = [self.norm_attention(condition, on_condition), self.norm_attention(motion, on_motion)]
        query, key, value = (
            split_heads(part, self.heads) for part in self.query_key_value(torch.cat(joint, dim=1)).chunk(3, dim=-1)
        )
        asking = self.norm_query(query[:, :, condition.shape[1] :] if last else query)
        attended = merge_heads(attention(asking.to(value.dtype), self.norm_key(key).to(value.dtype), value, mask))
        motion_out = self._finish(motion, attended[:, -motion.shape[1] :], on_motion, then_motion)
        if last:
            return condition, motion_out
        return self._finish(condition, attended[:, : condition.shape[1]], on_condition, then_condition), motion_out

    def _finish(
        self, x: Float[Tensor, "b n d"], attended: Float[Tensor, "b n d"], first: Modulation, second: Modulation
    ) -> Float[Tensor, "b n d"]:
        x = x + first.gate * self.out(attended)
        return x + second.gate * self.mlp(self.norm_mlp(x, second))


class MotionExpert(nn.Module):
    """v_theta(M^tau, tau, z_t), and the hidden state z_m on the way there."""

    positions: Tensor

    def __init__(self, config: MotionExpertConfig) -> None:
        super().__init__()
        self.config = config
        width, pooled = config.width, isinstance(config.conditioning, AdaLNPooled)
        self.condition_in = nn.Linear(config.token_width, width)
        if isinstance(config.conditioning, RepeatAndPad):
            self.filling = nn.Parameter(torch.randn(config.conditioning.tokens, width) * 0.01)
        self.motion_in = nn.Linear(config.token_values, width)
        positions = grid_positions(*config.token_grid, width, config.position_scale)
        self.register_buffer("positions", positions, persistent=False)
        self.time = TimeEmbedding(config.time_channels, width, whole=config.whole_time)
        self.blocks = nn.ModuleList(
            MotionBlock(width, config.heads, streams=1 if pooled else 2) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.modulate_out = nn.Linear(width, 2 * width)
        self.velocity_out = nn.Linear(width, config.token_values)
        self.pooled = nn.Linear(width, width) if pooled else None
        self._fixed: dict[float, TimeModulation] = {}
        for layer in (self.modulate_out, self.velocity_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        motion: Float[Tensor, "b k t 3"],
        tau: Float[Tensor, " b"] | float,
        encoded: Encoded,
        condition: Condition | None = None,
    ) -> Float[Tensor, "b k t 3"]:
        """Returns the predicted velocity (Eq. 3); `tau` may be one flow time for all.

        `condition` is what `self.condition(encoded)` gave, where the network is asked more than once.
        """
        modulation = self.modulation(tau, encoded)
        tokens = self.norm(self._run(motion, modulation, condition or self.condition(encoded), self.config.layers))
        predicted = self.unpatchify(
            self.velocity_out(self.norm_out(tokens) * (1 + modulation.scale) + modulation.shift)
        )
        if self.config.preconditioning is not None:
            _, skip, out = self.config.preconditioning.coefficients(modulation.tau, motion)
            predicted = skip * motion + out * predicted.float()
        return self.modelled_part(predicted)

    def error_scale(self, tau: Float[Tensor, " b"], motion: Float[Tensor, "b k t 3"]) -> Tensor:
        """The unit in which the loss measures the velocity's error: 1 but for a preconditioned network."""
        if self.config.preconditioning is None:
            return torch.ones((), device=motion.device)
        return self.config.preconditioning.coefficients(tau, motion)[2]

    def hidden(
        self,
        motion: Float[Tensor, "b k t 3"],
        tau: Float[Tensor, " b"] | float,
        encoded: Encoded,
        condition: Condition | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Returns z_m: the motion tokens as they leave block `hidden_layer`, before any final norm."""
        depth = self.config.hidden_layer % self.config.layers + 1
        return self._run(motion, self.modulation(tau, encoded), condition or self.condition(encoded), depth)

    def modulation(self, tau: Float[Tensor, " b"] | float, encoded: Encoded) -> TimeModulation:
        """Returns what time (and the mean of z_t, where it enters that way) does to every block."""
        if isinstance(tau, float) and tau in self._fixed:
            return self._fixed[tau]
        tau = flow_times(tau, 1, self.positions.device)
        features = self._time_features(tau, encoded)
        shift, scale = self.modulate_out(functional.silu(features))[:, None].chunk(2, dim=-1)
        blocks = [block.modulation(features) for block in self.blocks if isinstance(block, MotionBlock)]
        return TimeModulation(tau, blocks, shift, scale)

    def precompute_times(self, times: Sequence[float]) -> None:
        """Computes the modulations of some flow times once and for all: the weights must not change any more."""
        if self.pooled is None:
            nothing = self.positions.new_zeros(1, 0, self.config.token_width)
            seen = Encoded(tokens=nothing, mask=nothing[..., 0].bool())
            self._fixed = {tau: self.modulation(tau, seen) for tau in times}

    def modelled_part(self, motion: Float[Tensor, "b k t 3"]) -> Float[Tensor, "b k t 3"]:
        """Returns what the expert models of some motion: an `ImageFlow` has no depth."""
        if isinstance(self.config.flow, SpatialFlow):
            return motion
        return functional.pad(motion[..., :2], (0, 1))

    def supervised(self, mask: Bool[Tensor, "b k t 3"]) -> Bool[Tensor, "b k t 3"]:
        """Returns what of a mask supervises this expert."""
        if isinstance(self.config.flow, SpatialFlow):
            return mask
        return functional.pad(mask[..., :2], (0, 1), value=False)

    def _scaled(self, motion: Float[Tensor, "b k t 3"], tau: Float[Tensor, " #b"]) -> Float[Tensor, "b k t 3"]:
        motion = self.modelled_part(motion)
        if self.config.preconditioning is None:
            return motion
        return self.config.preconditioning.coefficients(tau, motion)[0] * motion

    def _time_features(self, tau: Float[Tensor, " #b"], encoded: Encoded) -> Float[Tensor, "#b d"]:
        """What drives AdaLN: time, and the mean of z_t where it enters that way."""
        time = self.time(tau)
        if self.pooled is None:
            return time
        total = encoded.tokens.masked_fill(~encoded.mask[..., None], 0.0).sum(1)
        mean = total / encoded.mask.sum(1, keepdim=True).clamp(min=1)
        return time + self.pooled(functional.silu(self.condition_in(mean.to(self.condition_in.weight.dtype))))

    def _run(self, motion: Tensor, modulation: TimeModulation, given: Condition, depth: int) -> Float[Tensor, "b m d"]:
        scaled = self.patchify(self._scaled(motion, modulation.tau)).to(self.motion_in.weight.dtype)
        tokens = self.motion_in(scaled) + self.positions
        condition, seen = given
        mask = None if seen is None else torch.cat([seen, seen.new_ones(tokens.shape[:2])], dim=1)[:, None, None]
        for index, (block, then) in enumerate(zip(self.blocks[:depth], modulation.blocks, strict=False), start=1):
            condition, tokens = block(condition, tokens, then, mask, last=index == depth)
        return tokens

    def condition(self, encoded: Encoded) -> Condition:
        """Returns the condition tokens that attend jointly with the motion tokens; they do not depend on the flow time."""
        if isinstance(self.config.conditioning, AdaLNPooled):
            empty = self.condition_in.weight.new_empty(len(encoded.mask), 0, self.config.width)
            return Condition(empty, None)
        tokens = self.condition_in(encoded.tokens.to(self.condition_in.weight.dtype))
        if isinstance(self.config.conditioning, JointTokens):
            return Condition(tokens, None if encoded.whole else encoded.mask)
        # Row p of the result is token p mod n, while p is within a whole number of repetitions. Every size and address stays
        # on the device, so that nothing waits for the host.
        real = encoded.mask.sum(1, keepdim=True).clamp(min=1)
        place = torch.arange(self.config.conditioning.tokens, device=tokens.device).expand(len(tokens), -1)
        first = encoded.mask.int().argsort(dim=1, descending=True, stable=True)
        chosen = first.gather(1, place % real)
        repeated = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
        filled = place.shape[1] // real * real
        rest = (place - filled).clamp(min=0)
        whole = (place < filled) | (real > place.shape[1])
        # The projection's bias is part of every row, as if the rows had come through it.
        filling = (self.filling + self.condition_in.bias).to(tokens.dtype)
        return Condition(torch.where(whole[..., None], repeated, filling[rest]), None)

    def patchify(self, motion: Float[Tensor, "b k t 3"]) -> Float[Tensor, "b m v"]:
        """Cuts a grid (row by row) of paths into tokens of (axis, flow step, row, column) values."""
        (frames, rows, columns), patch = self.config.token_grid, self.config.patch
        x = motion.reshape(-1, rows, patch, columns, patch, frames, self.config.frames_per_token, 3)
        return x.permute(0, 5, 1, 3, 7, 6, 2, 4).flatten(4).flatten(1, 3)

    def unpatchify(self, tokens: Float[Tensor, "b m v"]) -> Float[Tensor, "b k t 3"]:
        """The inverse of `patchify`."""
        (frames, rows, columns), patch = self.config.token_grid, self.config.patch
        x = tokens.reshape(-1, frames, rows, columns, 3, self.config.frames_per_token, patch, patch)
        return x.permute(0, 2, 6, 3, 7, 1, 5, 4).reshape(-1, rows * columns * patch**2, self.config.horizon, 3)
